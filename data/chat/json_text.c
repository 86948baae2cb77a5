/* Separators ", " and ": "; in strings only ", \ and what is below U+0020 are escaped; a real is the shortest decimal
 * that reads back as the same number, with an exponent where it is below 1e-4 or from 1e16 on (CPython, float_repr). */
#include "data/chat/json_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_DIGITS = 17, FIRST_EXPONENT = 16, LEAST_EXPONENT = -4 };

void json_text_string(Text *out, const char *bytes, size_t size) {
    static const char letters[] = {['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};
    text_puts(out, "\"");
    for (size_t i = 0, from = 0; i <= size; i++) {
        unsigned char c = i < size ? (unsigned char)bytes[i] : 0;
        if (i < size && c >= ' ' && c != '"' && c != '\\') continue;
        text_append(out, bytes + from, i - from);
        from = i + 1;
        if (i == size) break;
        if (c == '"' || c == '\\')
            text_printf(out, "\\%c", c);
        else if (c < sizeof letters && letters[c])
            text_printf(out, "\\%c", letters[c]);
        else
            text_printf(out, "\\u%04x", c);
    }
    text_puts(out, "\"");
}

static void append_real(Text *out, double value) {
    char digits[64];
    int precision = 0;
    do snprintf(digits, sizeof digits, "%.*e", precision, value);
    while (strtod(digits, NULL) != value && ++precision < MOST_DIGITS);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < LEAST_EXPONENT || exponent >= FIRST_EXPONENT) {
        text_puts(out, digits); /* two digits of exponent at least, as Python's */
        return;
    }
    int decimals = precision > exponent ? precision - exponent : 0;
    text_printf(out, "%.*f%s", decimals, value, decimals == 0 ? ".0" : "");
}

static void append_key(Text *out, const JsonNode *key) {
    json_text_string(out, key->bytes, key->size);
    text_puts(out, ": ");
}

static void append_within(Text *out, const JsonNode *container) {
    bool is_object = container->type == NODE_OBJECT;
    const JsonNode *at = json_node_first(container), *end = json_node_end(container);
    for (const char *between = ""; at < end; at = json_node_next(at), between = ", ") {
        text_puts(out, between);
        if (is_object) append_key(out, at++);
        json_text_append(out, at);
    }
}

void json_text_append(Text *out, const JsonNode *value) {
    switch (value ? value->type : NODE_NULL) {
    case NODE_NULL:
        text_puts(out, "null");
        break;
    case NODE_FALSE:
        text_puts(out, "false");
        break;
    case NODE_TRUE:
        text_puts(out, "true");
        break;
    case NODE_REAL:
        append_real(out, json_node_number(value));
        break;
    case NODE_STRING:
        json_text_string(out, value->bytes, value->size);
        break;
    case NODE_INTEGER: /* of any length; Python's has no negative zero */
        if (value->size == 2 && memcmp(value->bytes, "-0", 2) == 0)
            text_puts(out, "0");
        else
            text_append(out, value->bytes, value->size);
        break;
    case NODE_ARRAY:
    case NODE_OBJECT:
        text_puts(out, value->type == NODE_OBJECT ? "{" : "[");
        append_within(out, value);
        text_puts(out, value->type == NODE_OBJECT ? "}" : "]");
        break;
    }
}
