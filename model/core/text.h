/* Growable text, and the small text helpers everybody needs. */
#ifndef CRIA_CORE_TEXT_H
#define CRIA_CORE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    char *bytes; /* always NUL-terminated once anything was appended; may contain NULs inside */
    size_t length, capacity;
    bool failed; /* an append ran out of memory: contents are incomplete */
} Text;          /* {0} is empty */

void text_append(Text *text, const char *bytes, size_t n);
void text_puts(Text *text, const char *string);
void text_printf(Text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_clear(Text *text);
void text_free(Text *text);
int text_check(const Text *text); /* ERR_FAILED if an append ran out of memory */

/* Of n names, the nearest to `word` by edit distance if near enough to be a typing error, else NULL. */
const char *text_nearest(const char *word, const char *const *names, size_t n);

bool text_starts_with(const char *text, const char *prefix);
bool text_ends_with(const char *text, const char *suffix);

/* "1.50 GiB", "12,345", "1:02:03", into a buffer of the caller's; returns it. */
char *text_bytes(char out[32], uint64_t bytes);
char *text_thousands(char out[32], uint64_t n);
char *text_duration(char out[32], double seconds);

/* Parse all of `word`; false where anything is left over or out of range. Integers take 1_000, 1e6 and 64k/2M/1G
 * (powers of 1024) forms. */
bool text_parse_int(const char *word, int64_t *value);
bool text_parse_double(const char *word, double *value);
/* The shortest decimal that is this float, as people write it: 1e-5 and not 9.99999975e-6. */
double text_float(float value);

/* Length in bytes (1–4) of the UTF-8 sequence at `p` of `n` bytes, its code point in *code; 0 where it is malformed. */
int utf8_decode(const char *p, size_t n, uint32_t *code);
int utf8_encode(char out[4], uint32_t code); /* bytes written; 0 for a surrogate or above U+10FFFF */

#endif
