/* Typed look-ups in a Jansson object. */
#include "model/formats/json_read.h"

#include <stdio.h>
#include <stdlib.h>

#include "model/core/error.h"

int json_read_object(json_t **object, const char *json, size_t size, const char *name) {
    json_error_t where;
    *object = json_loadb(json, size, JSON_REJECT_DUPLICATES, &where);
    if (!*object) FAIL(ERR_REFUSED, "%s:%d:%d: %s", name, where.line, where.column, where.text);
    if (!json_is_object(*object)) {
        json_decref(*object);
        *object = NULL;
        FAIL(ERR_REFUSED, "%s: a JSON object {…} is expected", name);
    }
    return OK;
}

static const char *type_name(const json_t *value) {
    static const char *const names[] = {
        [JSON_OBJECT] = "an object", [JSON_ARRAY] = "a list", [JSON_STRING] = "a text", [JSON_INTEGER] = "a number",
        [JSON_REAL] = "a number",    [JSON_TRUE] = "true",    [JSON_FALSE] = "false",   [JSON_NULL] = "null",
    };
    return names[json_typeof(value)];
}

/* NULL where the key is absent or null. */
static const json_t *present(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

int json_read_int(int64_t *value, const json_t *object, const char *key, int64_t min, int64_t max, const char *name) {
    const json_t *found = present(object, key);
    if (!found) return OK;
    if (!json_is_integer(found))
        FAIL(ERR_REFUSED, "%s: '%s' is %s; a whole number is expected", name, key, type_name(found));
    json_int_t integer = json_integer_value(found);
    if (integer < min || integer > max)
        FAIL(ERR_REFUSED, "%s: '%s' is %lld; %lld to %lld is expected", name, key, (long long)integer, (long long)min,
             (long long)max);
    *value = integer;
    return OK;
}

int json_read_int32(int *value, const json_t *object, const char *key, int min, int max, const char *name) {
    int64_t wide = *value;
    TRY(json_read_int(&wide, object, key, min, max, name));
    *value = (int)wide;
    return OK;
}

int json_read_number(double *value, const json_t *object, const char *key, const char *name) {
    const json_t *found = present(object, key);
    if (!found) return OK;
    if (!json_is_number(found)) FAIL(ERR_REFUSED, "%s: '%s' is %s; a number is expected", name, key, type_name(found));
    *value = json_number_value(found);
    return OK;
}

int json_read_bool(bool *value, const json_t *object, const char *key, const char *name) {
    const json_t *found = present(object, key);
    if (!found) return OK;
    if (!json_is_boolean(found))
        FAIL(ERR_REFUSED, "%s: '%s' is %s; true or false is expected", name, key, type_name(found));
    *value = json_is_true(found);
    return OK;
}

int json_read_text(const char **value, const json_t *object, const char *key, const char *name) {
    const json_t *found = present(object, key);
    if (!found) return OK;
    if (!json_is_string(found)) FAIL(ERR_REFUSED, "%s: '%s' is %s; a text is expected", name, key, type_name(found));
    *value = json_string_value(found);
    return OK;
}

/* Digits that any real inside needs. */
static int digits_needed(const json_t *value) {
    enum { ALWAYS_ENOUGH = 17 };
    int digits = 1;
    const char *key;
    json_t *inner;
    if (json_is_real(value)) {
        char text[40];
        for (; digits < ALWAYS_ENOUGH; digits++) {
            snprintf(text, sizeof text, "%.*g", digits, json_real_value(value));
            if (strtod(text, NULL) == json_real_value(value)) break;
        }
    } else if (json_is_object(value)) {
        json_object_foreach((json_t *)(uintptr_t)value, key, inner) {
            int needed = digits_needed(inner);
            if (needed > digits) digits = needed;
        }
    }
    return digits;
}

int json_write_text(char **text, const json_t *object) {
    char *body =
        json_dumps(object, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION((size_t)digits_needed(object)));
    *text = NULL;
    if (body && asprintf(text, "%s\n", body) < 0) *text = NULL;
    free(body);
    if (!*text) FAIL(ERR_FAILED, "out of memory, or a text that is not UTF-8");
    return OK;
}
