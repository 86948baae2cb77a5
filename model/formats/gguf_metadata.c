/* Parsing the head of a GGUF file. A file is a stranger's: every length is checked against what is left of it before
 * it is used, and every count against the least its items would need. */
#include "model/formats/gguf_metadata.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/text.h"

enum {
    MAGIC = 0x46554747, /* "GGUF" */
    OLDEST_VERSION = 2, /* the first had 32-bit counts; nobody has written it since August 2023 */
    NEWEST_VERSION = 3,
    DEFAULT_ALIGNMENT = 32,
    LARGEST_ALIGNMENT = 1 << 20,
    LONGEST_KEY = 65535,
    LONGEST_NAME = 255,
    LEAST_VALUE = 8 + 4 + 1,      /* bytes: an empty key, a type, a byte */
    LEAST_TENSOR = 8 + 4 + 4 + 8, /* bytes: an empty name, no dimensions, a type, an offset */
    LEAST_TEXT = 8,
};

static const size_t type_sizes[GGUF_TYPES] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

typedef struct {
    const unsigned char *start, *at, *end;
} Cursor;

static size_t left(const Cursor *cursor) {
    return (size_t)(cursor->end - cursor->at);
}

static uint64_t little_endian(const unsigned char *bytes, size_t n) {
    uint64_t value = 0;
    for (size_t i = n; i-- > 0;) value = value << 8 | bytes[i];
    return value;
}

static int take(Cursor *cursor, size_t n, uint64_t *value) {
    if (left(cursor) < n)
        FAIL(ERR_REFUSED, "the file ends at byte %zu, inside its head: truncated",
             (size_t)(cursor->end - cursor->start));
    *value = little_endian(cursor->at, n);
    cursor->at += n;
    return OK;
}

static int take_text(Cursor *cursor, GgufText *text) {
    uint64_t length;
    TRY(take(cursor, 8, &length));
    if (length > left(cursor))
        FAIL(ERR_REFUSED, "at byte %td: a text of %llu bytes, and %zu are left (truncated?)",
             cursor->at - cursor->start, (unsigned long long)length, left(cursor));
    *text = (GgufText){(const char *)cursor->at, (size_t)length};
    cursor->at += length;
    return OK;
}

/* Valid UTF-8 without NUL, so that it can be a C string. */
static bool is_plain(GgufText text) {
    uint32_t code;
    if (memchr(text.bytes, 0, text.length)) return false;
    for (int n; text.length > 0; text.bytes += n, text.length -= (size_t)n)
        if ((n = utf8_decode(text.bytes, text.length, &code)) == 0) return false;
    return true;
}

static int take_name(GgufHead *head, Cursor *cursor, size_t longest, const char **name) {
    GgufText text;
    char *copy;
    const unsigned char *at = cursor->at;
    TRY(take_text(cursor, &text));
    if (text.length == 0 || text.length > longest || !is_plain(text))
        FAIL(ERR_REFUSED, "at byte %td: a name of %zu bytes; 1 to %zu of UTF-8 are expected", at - cursor->start,
             text.length, longest);
    ARENA_TRY(copy, &head->arena, text.length + 1);
    memcpy(copy, text.bytes, text.length);
    *name = copy;
    return OK;
}

/* ---- metadata ---- */

static int take_array(Cursor *cursor, GgufValue *value) {
    uint64_t type;
    GgufText skipped;
    TRY(take(cursor, 4, &type));
    TRY(take(cursor, 8, &value->n));
    if (type >= GGUF_TYPES || type == GGUF_ARRAY)
        FAIL(ERR_REFUSED, "'%s' is an array of type %llu, which is not known", value->key, (unsigned long long)type);
    value->item_type = (GgufType)type;
    size_t least = type == GGUF_STRING ? LEAST_TEXT : type_sizes[type];
    if (value->n > left(cursor) / least)
        FAIL(ERR_REFUSED, "'%s' claims %llu items, and %zu bytes of file are left (truncated?)", value->key,
             (unsigned long long)value->n, left(cursor));
    value->bytes = cursor->at;
    if (type != GGUF_STRING) cursor->at += value->n * least;
    for (uint64_t i = 0; type == GGUF_STRING && i < value->n; i++) TRY(take_text(cursor, &skipped));
    return OK;
}

static int take_value(GgufHead *head, Cursor *cursor, GgufValue *value) {
    uint64_t type;
    GgufText text;
    TRY(take_name(head, cursor, LONGEST_KEY, &value->key));
    TRY(take(cursor, 4, &type));
    if (type >= GGUF_TYPES)
        FAIL(ERR_REFUSED, "'%s' has type %llu, which is not known", value->key, (unsigned long long)type);
    value->type = value->item_type = (GgufType)type;
    value->n = 1;
    value->bytes = cursor->at;
    if (type == GGUF_ARRAY) {
        TRY(take_array(cursor, value));
    } else if (type == GGUF_STRING) {
        TRY(take_text(cursor, &text));
        if (!is_plain(text)) FAIL(ERR_REFUSED, "'%s' is a text that is not UTF-8", value->key);
    } else if (type_sizes[type] > left(cursor)) {
        FAIL(ERR_REFUSED, "'%s': the file ends inside its value: truncated", value->key);
    } else {
        cursor->at += type_sizes[type];
    }
    value->size = (size_t)(cursor->at - value->bytes);
    return OK;
}

static int by_key(const void *a, const void *b) {
    return strcmp(((const GgufValue *)a)->key, ((const GgufValue *)b)->key);
}

static int take_values(GgufHead *head, Cursor *cursor) {
    ARENA_TRY(head->values, &head->arena, head->n_values);
    for (size_t i = 0; i < head->n_values; i++) TRY(take_value(head, cursor, &head->values[i]));
    if (head->n_values) qsort(head->values, head->n_values, sizeof *head->values, by_key);
    for (size_t i = 1; i < head->n_values; i++)
        if (strcmp(head->values[i - 1].key, head->values[i].key) == 0)
            FAIL(ERR_REFUSED, "the key '%s' is there twice", head->values[i].key);
    int64_t alignment = DEFAULT_ALIGNMENT;
    TRY(gguf_get_int(&alignment, head, "general.alignment", 1, LARGEST_ALIGNMENT));
    head->alignment = (uint64_t)alignment;
    if (alignment & (alignment - 1))
        FAIL(ERR_REFUSED, "'general.alignment' is %lld; a power of 2 is expected", (long long)alignment);
    return OK;
}

/* ---- tensors ---- */

static int take_dims(Cursor *cursor, GgufTensor *tensor) {
    uint64_t n_dims, dim;
    TRY(take(cursor, 4, &n_dims));
    if (n_dims > NAMED_MAX_DIMS)
        FAIL(ERR_REFUSED, "'%s' has %llu dimensions; at most %d are expected", tensor->name, (unsigned long long)n_dims,
             NAMED_MAX_DIMS);
    tensor->n_dims = (int)n_dims;
    for (int d = tensor->n_dims; d-- > 0;) {
        TRY(take(cursor, 8, &dim));
        if (dim > INT64_MAX) FAIL(ERR_REFUSED, "'%s' has a dimension of %llu", tensor->name, (unsigned long long)dim);
        tensor->dims[d] = (int64_t)dim;
    }
    return OK;
}

static int take_tensor(GgufHead *head, Cursor *cursor, GgufTensor *tensor) {
    uint64_t type;
    TRY(take_name(head, cursor, LONGEST_NAME, &tensor->name));
    TRY(take_dims(cursor, tensor));
    TRY(take(cursor, 4, &type));
    TRY(take(cursor, 8, &tensor->offset));
    tensor->type = ggml_type_info((uint32_t)type);
    if (!tensor->type)
        FAIL(ERR_REFUSED, "'%s' has element type %llu, which is not known", tensor->name, (unsigned long long)type);
    NamedArray array = {.name = tensor->name, .n_dims = tensor->n_dims};
    memcpy(array.dims, tensor->dims, sizeof array.dims);
    TRY(named_check(&array)); /* 8 bytes per element fit, and no block has more than 4 */
    uint64_t row = tensor->n_dims ? (uint64_t)tensor->dims[tensor->n_dims - 1] : 1;
    if (row % tensor->type->elements)
        FAIL(ERR_REFUSED, "'%s' is of type %s, whose blocks of %u do not fit its rows of %llu", tensor->name,
             tensor->type->name, tensor->type->elements, (unsigned long long)row);
    tensor->size = named_elements(&array) / tensor->type->elements * tensor->type->bytes;
    if (tensor->offset % head->alignment)
        FAIL(ERR_REFUSED, "'%s' begins at byte %llu of the data, which is no multiple of %llu", tensor->name,
             (unsigned long long)tensor->offset, (unsigned long long)head->alignment);
    return OK;
}

static int by_offset(const void *a, const void *b) {
    const GgufTensor *x = *(const GgufTensor *const *)a, *y = *(const GgufTensor *const *)b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->size < y->size ? -1 : x->size > y->size;
}

static int check_extents(const GgufHead *head, uint64_t data_size) {
    int rc = OK;
    uint64_t end = 0;
    const GgufTensor **order = malloc((head->n_tensors + 1) * sizeof *order);
    if (!order) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < head->n_tensors; i++) order[i] = &head->tensors[i];
    qsort(order, head->n_tensors, sizeof *order, by_offset);
    for (size_t i = 0; i < head->n_tensors; i++) {
        if (order[i]->offset < end)
            FAIL_TO(done, ERR_REFUSED, "'%s' and '%s' overlap", order[i - 1]->name, order[i]->name);
        if (order[i]->offset > data_size || order[i]->size > data_size - order[i]->offset)
            FAIL_TO(done, ERR_REFUSED, "'%s' has %llu bytes from byte %llu of the data, which ends at %llu: truncated?",
                    order[i]->name, (unsigned long long)order[i]->size, (unsigned long long)order[i]->offset,
                    (unsigned long long)data_size);
        end = order[i]->offset + order[i]->size;
    }
done:
    free(order);
    return rc;
}

static int take_tensors(GgufHead *head, Cursor *cursor) {
    ARENA_TRY(head->tensors, &head->arena, head->n_tensors);
    for (size_t i = 0; i < head->n_tensors; i++) TRY(take_tensor(head, cursor, &head->tensors[i]));
    size_t used = (size_t)(cursor->at - cursor->start), over = used % head->alignment;
    size_t padding = over ? head->alignment - over : 0;
    if (padding > left(cursor)) padding = left(cursor); /* a file without tensors need not be padded */
    head->data = cursor->at + padding;
    return check_extents(head, left(cursor) - padding);
}

/* ---- the whole ---- */

static int parse(GgufHead *head, const FileMap *map) {
    Cursor cursor = {map->bytes, map->bytes, map->bytes + map->size};
    uint64_t magic, version, n_tensors, n_values;
    if (map->size < 24) FAIL(ERR_REFUSED, "%zu bytes are too few for a GGUF file (is it truncated?)", map->size);
    TRY(take(&cursor, 4, &magic));
    TRY(take(&cursor, 4, &version));
    if (magic != MAGIC) FAIL(ERR_REFUSED, "it does not begin with \"GGUF\"");
    if (version < OLDEST_VERSION || version > NEWEST_VERSION)
        FAIL(ERR_REFUSED, "GGUF version %llu%s; %d and %d are read", (unsigned long long)version,
             (version & 0xffff) == 0 ? " (a big-endian file?)" : "", OLDEST_VERSION, NEWEST_VERSION);
    head->version = (uint32_t)version;
    TRY(take(&cursor, 8, &n_tensors));
    TRY(take(&cursor, 8, &n_values));
    if (n_tensors > map->size / LEAST_TENSOR || n_values > map->size / LEAST_VALUE)
        FAIL(ERR_REFUSED,
             "it claims %llu tensors and %llu metadata values, and has only %zu bytes: truncated, or no GGUF",
             (unsigned long long)n_tensors, (unsigned long long)n_values, map->size);
    head->n_tensors = (size_t)n_tensors;
    head->n_values = (size_t)n_values;
    TRY(take_values(head, &cursor));
    TRY(take_tensors(head, &cursor));
    return OK;
}

int gguf_head_parse(GgufHead *head, const FileMap *map) {
    *head = (GgufHead){0};
    int rc = parse(head, map);
    if (rc != OK) gguf_head_free(head);
    return rc;
}

void gguf_head_free(GgufHead *head) {
    arena_free(&head->arena);
    *head = (GgufHead){0};
}
