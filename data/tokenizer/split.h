/* Cuts text into the pieces that byte-level BPE never merges across. Llama 3's pattern is scanned by hand; any other is
 * a PCRE2 regular expression. Pieces cover the text: what a pattern does not match is a piece of its own. */
#ifndef CRIA_DATA_SPLIT_H
#define CRIA_DATA_SPLIT_H

#include <stddef.h>
#include <stdint.h>

#define SPLIT_LLAMA3                                                           \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| " \
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+"                              \
    "|\\s+(?!\\S)|\\s+"
#define SPLIT_GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

typedef struct {
    uint32_t first, last;
} UnicodeRange;
extern const UnicodeRange unicode_letters[], unicode_numbers[], unicode_spaces[];
extern const int n_unicode_letters, n_unicode_numbers, n_unicode_spaces;

typedef struct Splitter Splitter; /* immutable: threads may share it */

/* By hand where `pattern` is SPLIT_LLAMA3, else through PCRE2; NULL: the whole text is one piece. */
int splitter_new(Splitter **splitter, const char *pattern);
/* Through PCRE2 in any case: the reference for the scan by hand. */
int splitter_new_regex(Splitter **splitter, const char *pattern);
void splitter_free(Splitter *splitter);

/* A pass over one text. */
typedef struct {
    const Splitter *splitter;
    const unsigned char *text;
    size_t size, at; /* `at`: where the next piece begins */
    void *match;     /* PCRE2's */
    size_t run_end;  /* the well-formed UTF-8 that `at` stands in ends here */
} SplitPass;
int split_begin(SplitPass *pass, const Splitter *splitter, const char *text, size_t size);
/* Moves over one piece, which is text[old at … new at). Not to be called at the end of the text. */
int split_next(SplitPass *pass);
void split_end(SplitPass *pass);

#endif
