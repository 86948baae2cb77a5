/* Llama 3's split pattern, alternative by alternative as a regular expression engine would try them:
 *
 *   (?i:'s|'t|'re|'ve|'m|'ll|'d)     an English contraction; U+017F folds to s
 *   [^\r\n\p{L}\p{N}]?\p{L}+         letters, with one other character before them
 *   \p{N}{1,3}                       up to three digits
 *    ?[^\s\p{L}\p{N}]+[\r\n]*        symbols, with a space before and line ends after them
 *   \s*[\r\n]+                       white space up to and including its last line end
 *   \s+(?!\S)                        white space, leaving its last character to the word that follows
 *   \s+                              a single one that precedes something that does not take it
 *
 * Bytes of malformed UTF-8 count as symbols. */
#include "data/tokenizer/split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/text.h"

enum { CODES = 0x110000, LETTER = 1, NUMBER = 2, SPACE = 4, LINE_END = 8 };

struct Splitter {
    uint8_t *classes; /* [CODES], or NULL where `code` serves */
    pcre2_code *code; /* NULL with classes NULL: no splitting */
};

static void mark(uint8_t *classes, const UnicodeRange *ranges, int n, uint8_t bit) {
    for (int i = 0; i < n; i++)
        for (uint32_t code = ranges[i].first; code <= ranges[i].last; code++) classes[code] |= bit;
}

int splitter_new(Splitter **splitter, const char *pattern) {
    if (pattern && strcmp(pattern, SPLIT_LLAMA3) != 0) return splitter_new_regex(splitter, pattern);
    Splitter *made = calloc(1, sizeof *made);
    if (made && pattern) made->classes = calloc(CODES, 1);
    if (!made || (pattern && !made->classes)) {
        free(made);
        FAIL(ERR_FAILED, "out of memory");
    }
    *splitter = made;
    if (!pattern) return OK;
    mark(made->classes, unicode_letters, n_unicode_letters, LETTER);
    mark(made->classes, unicode_numbers, n_unicode_numbers, NUMBER);
    mark(made->classes, unicode_spaces, n_unicode_spaces, SPACE);
    made->classes['\r'] |= LINE_END;
    made->classes['\n'] |= LINE_END;
    return OK;
}

int splitter_new_regex(Splitter **splitter, const char *pattern) {
    int code;
    PCRE2_SIZE where;
    pcre2_code *compiled = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                         PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &where, NULL);
    if (!compiled) {
        char why[256];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        FAIL(ERR_REFUSED, "the split pattern '%s' is not understood at character %zu: %s", pattern, (size_t)where, why);
    }
    pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE); /* where there is no JIT, the interpreter serves */
    *splitter = calloc(1, sizeof **splitter);
    if (!*splitter) {
        pcre2_code_free(compiled);
        FAIL(ERR_FAILED, "out of memory");
    }
    (*splitter)->code = compiled;
    return OK;
}

void splitter_free(Splitter *splitter) {
    if (!splitter) return;
    free(splitter->classes);
    pcre2_code_free(splitter->code);
    free(splitter);
}

/* ---- by hand ------------------------------------------------------------------------------------------------------
 */

/* Class of the character at `at`, its length in *length. */
static inline unsigned class_at(const SplitPass *pass, size_t at, size_t *length) {
    unsigned char byte = pass->text[at];
    if (byte < 0x80) {
        *length = 1;
        return pass->splitter->classes[byte];
    }
    uint32_t code;
    int n = utf8_decode((const char *)pass->text + at, pass->size - at, &code);
    *length = n > 0 ? (size_t)n : 1;
    return n > 0 ? pass->splitter->classes[code] : 0;
}

/* Over the characters whose class has one of the bits (or none of them: `without`). */
static size_t skip(const SplitPass *pass, size_t at, unsigned bits, bool without) {
    size_t length;
    while (at < pass->size && ((class_at(pass, at, &length) & bits) == 0) == without) at += length;
    return at;
}

static size_t contraction(const SplitPass *pass, size_t at) {
    const unsigned char *p = pass->text + at + 1;
    size_t left = pass->size - at - 1;
    if (left == 0) return at;
    unsigned first = p[0] | 0x20u, second = left > 1 ? p[1] | 0x20u : 0;
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
    if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l'))
        return at + 3;
    if (left > 1 && p[0] == 0xc5 && p[1] == 0xbf) return at + 3; /* U+017F */
    return at;
}

static size_t next_llama3(const SplitPass *pass) {
    size_t at = pass->at, length, second_length;
    unsigned class = class_at(pass, at, &length);
    if (pass->text[at] == '\'') {
        size_t end = contraction(pass, at);
        if (end > at) return end;
    }
    if (class & LETTER) return skip(pass, at + length, LETTER, false);
    if (class & NUMBER) {
        size_t end = at + length;
        for (int n = 1; n < 3 && end < pass->size && (class_at(pass, end, &length) & NUMBER); n++) end += length;
        return end;
    }
    unsigned second = at + length < pass->size ? class_at(pass, at + length, &second_length) : SPACE;
    if (!(class & LINE_END) && (second & LETTER)) return skip(pass, at + length, LETTER, false);
    if (!(class & SPACE) || (pass->text[at] == ' ' && (second & (SPACE | LETTER | NUMBER)) == 0)) {
        size_t end = skip(pass, at + length, SPACE | LETTER | NUMBER, true);
        return skip(pass, end, LINE_END, false);
    }
    size_t end = at, last = at, after_line = at;
    while (end < pass->size && ((class = class_at(pass, end, &length)) & SPACE)) {
        last = end;
        end += length;
        if (class & LINE_END) after_line = end;
    }
    if (after_line > at) return after_line;
    return end == pass->size || last == at ? end : last;
}

/* ---- through PCRE2 ------------------------------------------------------------------------------------------------
 */

/* The end of the well-formed UTF-8 from `at`; PCRE2 is then told not to check again at each match. */
static size_t well_formed_end(const SplitPass *pass, size_t at) {
    uint32_t code;
    for (int n; at < pass->size; at += (size_t)n)
        if ((n = utf8_decode((const char *)pass->text + at, pass->size - at, &code)) == 0) break;
    return at;
}

static int next_regex(SplitPass *pass) {
    if (pass->run_end <= pass->at) {
        pass->run_end = well_formed_end(pass, pass->at);
        if (pass->run_end == pass->at) { /* a stray byte */
            pass->at++;
            return OK;
        }
    }
    const uint32_t flags = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    int found = pcre2_match(pass->splitter->code, pass->text, pass->run_end, pass->at, flags, pass->match, NULL);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT)
        found = pcre2_match(pass->splitter->code, pass->text, pass->run_end, pass->at, flags | PCRE2_NO_JIT,
                            pass->match, NULL);
    if (found < 0 && found != PCRE2_ERROR_NOMATCH) {
        char why[256];
        pcre2_get_error_message(found, (PCRE2_UCHAR *)why, sizeof why);
        FAIL(ERR_REFUSED, "the tokenizer's split pattern failed at byte %zu of the text: %s", pass->at, why);
    }
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(pass->match);
    if (found < 0)
        pass->at = pass->run_end;
    else if (span[0] > pass->at) /* what lies before the match is a piece; the match comes again */
        pass->at = span[0];
    else
        pass->at = span[1] > pass->at ? span[1] : pass->run_end;
    return OK;
}

int split_begin(SplitPass *pass, const Splitter *splitter, const char *text, size_t size) {
    *pass = (SplitPass){.splitter = splitter, .text = (const unsigned char *)text, .size = size};
    if (!splitter->code) return OK;
    pass->match = pcre2_match_data_create_from_pattern(splitter->code, NULL);
    if (!pass->match) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

int split_next(SplitPass *pass) {
    if (pass->splitter->code) return next_regex(pass);
    pass->at = pass->splitter->classes ? next_llama3(pass) : pass->size;
    return OK;
}

void split_end(SplitPass *pass) {
    pcre2_match_data_free(pass->match);
    pass->match = NULL;
}
