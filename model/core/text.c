/* See text.h. UTF-8 follows RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF. */
#include "model/core/text.h"
#include "model/core/error.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool reserve(Text *text, size_t extra) {
    if (text->failed) return false;
    size_t needed = text->length + extra + 1;
    if (needed <= text->capacity) return true;
    size_t capacity = text->capacity ? text->capacity : 64;
    while (capacity < needed) capacity *= 2;
    char *bytes = realloc(text->bytes, capacity);
    if (!bytes) {
        text->failed = true;
        return false;
    }
    text->bytes = bytes;
    text->capacity = capacity;
    return true;
}

void text_append(Text *text, const char *bytes, size_t n) {
    if (!reserve(text, n)) return;
    if (n) memcpy(text->bytes + text->length, bytes, n);
    text->length += n;
    text->bytes[text->length] = '\0';
}

void text_puts(Text *text, const char *string) {
    text_append(text, string, strlen(string));
}

void text_printf(Text *text, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n >= 0 && reserve(text, (size_t)n)) {
        vsnprintf(text->bytes + text->length, (size_t)n + 1, format, again);
        text->length += (size_t)n;
    }
    va_end(again);
}

void text_clear(Text *text) {
    text->length = 0;
    if (text->bytes) text->bytes[0] = '\0';
}

void text_free(Text *text) {
    free(text->bytes);
    *text = (Text){0};
}

int text_check(const Text *text) {
    if (text->failed) FAIL(ERR_FAILED, "out of memory after %zu bytes of text", text->length);
    return OK;
}

static size_t edit_distance(const char *a, const char *b) {
    enum { LONGEST = 64 };
    size_t row[LONGEST + 1], n = strlen(a), m = strlen(b);
    if (n > LONGEST || m > LONGEST) return SIZE_MAX;
    for (size_t j = 0; j <= m; j++) row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[m];
}

const char *text_nearest(const char *word, const char *const *names, size_t n) {
    const char *nearest = NULL;
    size_t best = strlen(word) / 3 + 2; /* a third of the letters wrong, and one more */
    for (size_t i = 0; i < n; i++) {
        size_t distance = edit_distance(word, names[i]);
        if (distance < best) {
            best = distance;
            nearest = names[i];
        }
    }
    return nearest;
}

bool text_starts_with(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

bool text_ends_with(const char *text, const char *suffix) {
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && memcmp(text + n - m, suffix, m) == 0;
}

char *text_bytes(char out[32], uint64_t bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1024 && unit < 5) {
        value /= 1024;
        unit++;
    }
    snprintf(out, 32, unit ? "%.2f %s" : "%.0f %s", value, units[unit]);
    return out;
}

char *text_thousands(char out[32], uint64_t n) {
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%llu", (unsigned long long)n), used = 0;
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0) out[used++] = ',';
        out[used++] = digits[i];
    }
    out[used] = '\0';
    return out;
}

char *text_duration(char out[32], double seconds) {
    if (!(seconds >= 0) || seconds > 1e9) {
        snprintf(out, 32, "?");
        return out;
    }
    long whole = lround(seconds);
    if (whole >= 3600)
        snprintf(out, 32, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
    else
        snprintf(out, 32, "%ld:%02ld", whole / 60, whole % 60);
    return out;
}

bool text_parse_double(const char *word, double *value) {
    if (!*word || isspace((unsigned char)*word)) return false;
    char *end;
    errno = 0;
    *value = strtod(word, &end);
    return *end == '\0' && errno != ERANGE;
}

double text_float(float value) {
    char text[32];
    enum { ALWAYS_ENOUGH = 9 };
    for (int digits = 1; digits <= ALWAYS_ENOUGH; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    return strtod(text, NULL);
}

bool text_parse_int(const char *word, int64_t *value) {
    char digits[40];
    size_t n = strlen(word), used = 0;
    if (n == 0 || n >= sizeof digits || isspace((unsigned char)*word)) return false;
    int64_t unit = 1;
    switch (word[n - 1]) {
    case 'k':
    case 'K':
        unit = INT64_C(1) << 10;
        break;
    case 'M':
        unit = INT64_C(1) << 20;
        break;
    case 'G':
        unit = INT64_C(1) << 30;
        break;
    default:
        break;
    }
    if (unit != 1) n--;
    for (size_t i = 0; i < n; i++)
        if (word[i] != '_') digits[used++] = word[i];
    digits[used] = '\0';
    if (used == 0) return false;
    char *end;
    errno = 0;
    long long parsed = strtoll(digits, &end, 10);
    if (*end != '\0') { /* 1e6 */
        double real;
        if (!text_parse_double(digits, &real) || real != floor(real) || fabs(real) > 0x1p53) return false;
        parsed = (long long)real;
    } else if (errno == ERANGE) {
        return false;
    }
    return !__builtin_mul_overflow((int64_t)parsed, unit, value);
}

int utf8_decode(const char *p, size_t n, uint32_t *code) {
    static const uint32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (n == 0) return 0;
    unsigned char first = (unsigned char)p[0];
    if (first < 0x80) {
        *code = first;
        return 1;
    }
    int length = first >= 0xf0 && first <= 0xf4  ? 4
                 : first >= 0xe0 && first < 0xf0 ? 3
                 : first >= 0xc2 && first < 0xe0 ? 2
                                                 : 0;
    if (length == 0 || (size_t)length > n) return 0;
    uint32_t value = first & (0xffu >> (length + 1));
    for (int i = 1; i < length; i++) {
        unsigned char next = (unsigned char)p[i];
        if ((next & 0xc0) != 0x80) return 0;
        value = value << 6 | (next & 0x3f);
    }
    if (value < smallest[length] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return 0;
    *code = value;
    return length;
}

int utf8_encode(char out[4], uint32_t code) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return 0;
    int length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (code & 0x3f));
        code >>= 6;
    }
    static const unsigned char lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    out[0] = (char)(lead[length] | code);
    return length;
}
