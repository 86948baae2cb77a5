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

void json_text_append(Text *out, const json_t *value) {
    const char *between = "";
    if (json_is_object(value)) {
        text_puts(out, "{");
        /* jansson's iterators want a mutable object and do not change it */
        json_t *object = (json_t *)(uintptr_t)value;
        for (void *at = json_object_iter(object); at; at = json_object_iter_next(object, at), between = ", ") {
            text_puts(out, between);
            json_text_string(out, json_object_iter_key(at), strlen(json_object_iter_key(at)));
            text_puts(out, ": ");
            json_text_append(out, json_object_iter_value(at));
        }
        text_puts(out, "}");
    } else if (json_is_array(value)) {
        text_puts(out, "[");
        for (size_t i = 0; i < json_array_size(value); i++, between = ", ") {
            text_puts(out, between);
            json_text_append(out, json_array_get(value, i));
        }
        text_puts(out, "]");
    } else if (json_is_string(value)) {
        json_text_string(out, json_string_value(value), json_string_length(value));
    } else if (json_is_integer(value)) {
        text_printf(out, "%lld", (long long)json_integer_value(value));
    } else if (json_is_real(value)) {
        append_real(out, json_real_value(value));
    } else {
        text_puts(out, json_is_true(value) ? "true" : json_is_false(value) ? "false" : "null");
    }
}
