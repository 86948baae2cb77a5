/* Asking the metadata of a GGUF file for values. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/text.h"
#include "model/formats/gguf_metadata.h"

static const char *const type_names[GGUF_TYPES] = {
    [GGUF_U8] = "uint8",    [GGUF_I8] = "int8",     [GGUF_U16] = "uint16",  [GGUF_I16] = "int16",
    [GGUF_U32] = "uint32",  [GGUF_I32] = "int32",   [GGUF_F32] = "float32", [GGUF_BOOL] = "bool",
    [GGUF_STRING] = "text", [GGUF_ARRAY] = "array", [GGUF_U64] = "uint64",  [GGUF_I64] = "int64",
    [GGUF_F64] = "float64",
};

const GgufValue *gguf_find(const GgufHead *head, const char *key) {
    size_t low = 0, high = head->n_values;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(key, head->values[middle].key);
        if (order == 0) return &head->values[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static uint64_t bits_of(const unsigned char *bytes, size_t n) {
    uint64_t bits = 0;
    for (size_t i = n; i-- > 0;) bits = bits << 8 | bytes[i];
    return bits;
}

/* A scalar of an integer type; false for another type, or beyond int64. */
static bool as_int(int64_t *out, GgufType type, const unsigned char *bytes) {
    switch (type) {
    case GGUF_U8:
        *out = bytes[0];
        return true;
    case GGUF_I8:
        *out = (bytes[0] ^ 0x80) - 0x80; /* the sign is carried on */
        return true;
    case GGUF_U16:
        *out = (int64_t)bits_of(bytes, 2);
        return true;
    case GGUF_I16:
        *out = (int16_t)bits_of(bytes, 2);
        return true;
    case GGUF_U32:
        *out = (int64_t)bits_of(bytes, 4);
        return true;
    case GGUF_I32:
        *out = (int32_t)bits_of(bytes, 4);
        return true;
    case GGUF_U64:
    case GGUF_I64:
        *out = (int64_t)bits_of(bytes, 8);
        return type == GGUF_I64 || *out >= 0;
    default:
        return false;
    }
}

static bool as_double(double *out, GgufType type, const unsigned char *bytes) {
    int64_t whole;
    if (type == GGUF_F32) {
        uint32_t bits = (uint32_t)bits_of(bytes, 4);
        float value;
        memcpy(&value, &bits, sizeof value);
        *out = (double)value;
        return true;
    }
    if (type == GGUF_F64) {
        uint64_t bits = bits_of(bytes, 8);
        memcpy(out, &bits, sizeof *out);
        return true;
    }
    if (!as_int(&whole, type, bytes)) return false;
    *out = (double)whole;
    return true;
}

static int wrong_type(const GgufValue *value, const char *expected) {
    FAIL(ERR_REFUSED, "'%s' is of type %s%s%s; %s is expected", value->key, type_names[value->type],
         value->type == GGUF_ARRAY ? " of " : "", value->type == GGUF_ARRAY ? type_names[value->item_type] : "",
         expected);
}

int gguf_get_int(int64_t *out, const GgufHead *head, const char *key, int64_t low, int64_t high) {
    const GgufValue *value = gguf_find(head, key);
    int64_t found;
    if (!value) return OK;
    if (!as_int(&found, value->type, value->bytes)) return wrong_type(value, "a whole number");
    if (found < low || found > high)
        FAIL(ERR_REFUSED, "'%s' is %" PRId64 "; %" PRId64 " to %" PRId64 " is expected", key, found, low, high);
    *out = found;
    return OK;
}

int gguf_get_double(double *out, const GgufHead *head, const char *key) {
    const GgufValue *value = gguf_find(head, key);
    double found;
    if (!value) return OK;
    if (!as_double(&found, value->type, value->bytes)) return wrong_type(value, "a number");
    if (!isfinite(found)) FAIL(ERR_REFUSED, "'%s' is %g", key, found);
    *out = found;
    return OK;
}

int gguf_get_bool(bool *out, const GgufHead *head, const char *key) {
    const GgufValue *value = gguf_find(head, key);
    if (!value) return OK;
    if (value->type != GGUF_BOOL) return wrong_type(value, "true or false");
    *out = value->bytes[0] != 0;
    return OK;
}

static GgufText text_at(const unsigned char *bytes) {
    return (GgufText){(const char *)bytes + 8, (size_t)bits_of(bytes, 8)};
}

int gguf_get_text(GgufText *out, const GgufHead *head, const char *key) {
    const GgufValue *value = gguf_find(head, key);
    if (!value) return OK;
    if (value->type != GGUF_STRING) return wrong_type(value, "a text");
    *out = text_at(value->bytes);
    return OK;
}

/* ---- arrays ---- */

/* The array under `key`, or *value NULL where there is none; *items has room for its items. */
static int find_array(const GgufValue **value, void **items, size_t *n, const GgufHead *head, const char *key,
                      size_t item_size) {
    *items = NULL;
    *n = 0;
    *value = gguf_find(head, key);
    if (!*value) return OK;
    if ((*value)->type != GGUF_ARRAY) return wrong_type(*value, "an array");
    *n = (size_t)(*value)->n;
    *items = calloc(*n + 1, item_size);
    if (!*items) FAIL(ERR_FAILED, "out of memory for '%s'", key);
    return OK;
}

/* Where the array's items cannot be taken. */
static int refuse_items(const GgufValue *value, void **items, const char *expected) {
    free(*items);
    *items = NULL;
    return wrong_type(value, expected);
}

int gguf_get_texts(GgufText **out, size_t *n, const GgufHead *head, const char *key) {
    const GgufValue *value;
    void *items;
    TRY(find_array(&value, &items, n, head, key, sizeof **out));
    if (value && value->item_type != GGUF_STRING) TRY(refuse_items(value, &items, "an array of texts"));
    *out = items;
    const unsigned char *at = value ? value->bytes : NULL;
    for (size_t i = 0; i < *n; i++) {
        (*out)[i] = text_at(at);
        at += 8 + (*out)[i].length;
    }
    return OK;
}

int gguf_get_floats(float **out, size_t *n, const GgufHead *head, const char *key) {
    const GgufValue *value;
    void *items;
    double number;
    TRY(find_array(&value, &items, n, head, key, sizeof **out));
    if (value && value->item_type != GGUF_F32) TRY(refuse_items(value, &items, "an array of float32"));
    *out = items;
    for (size_t i = 0; i < *n; i++) {
        (void)as_double(&number, GGUF_F32, value->bytes + 4 * i);
        (*out)[i] = (float)number;
    }
    return OK;
}

int gguf_get_ints(int32_t **out, size_t *n, const GgufHead *head, const char *key) {
    const GgufValue *value;
    void *items;
    int64_t number;
    TRY(find_array(&value, &items, n, head, key, sizeof **out));
    if (value && value->item_type != GGUF_I32 && value->item_type != GGUF_U32)
        TRY(refuse_items(value, &items, "an array of int32"));
    *out = items;
    for (size_t i = 0; i < *n; i++) {
        (void)as_int(&number, GGUF_I32, value->bytes + 4 * i);
        (*out)[i] = (int32_t)number;
    }
    return OK;
}

/* ---- for people ---- */

int gguf_value_text(const GgufValue *value, char **out) {
    Text text = {0};
    int64_t whole;
    double number;
    if (value->type == GGUF_ARRAY)
        text_printf(&text, "[%" PRIu64 " × %s]", value->n, type_names[value->item_type]);
    else if (value->type == GGUF_STRING)
        text_append(&text, text_at(value->bytes).bytes, text_at(value->bytes).length);
    else if (value->type == GGUF_BOOL)
        text_puts(&text, value->bytes[0] ? "true" : "false");
    else if (as_int(&whole, value->type, value->bytes))
        text_printf(&text, "%" PRId64, whole);
    else if (as_double(&number, value->type, value->bytes))
        text_printf(&text, "%.9g", number);
    else
        text_printf(&text, "%" PRIu64, bits_of(value->bytes, 8));
    text_append(&text, "", 0); /* an empty text is a text */
    if (text_check(&text) != OK) {
        text_free(&text);
        FAIL(ERR_FAILED, "out of memory");
    }
    *out = text.bytes;
    return OK;
}
