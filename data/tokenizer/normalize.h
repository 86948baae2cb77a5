/* SentencePiece's normaliser (its normalizer.cc and the NormalizerSpec of its model format): a table of replacements,
 * white space rules, and a space in front.
 *
 * The precompiled table is a 32-bit little-endian size, a double-array trie of that many bytes (darts-clone's units),
 * and the replacements as NUL-terminated strings; a key's value is the offset of its replacement. */
#ifndef CRIA_DATA_NORMALIZE_H
#define CRIA_DATA_NORMALIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/tokenizer/trie.h"
#include "model/core/text.h"

/* How tokenizer.json says remove_extra_whitespaces: both replaced, the first by nothing, the second by a space. */
#define NORMALIZE_ENDS_REGEX "\\A +|[ \xe2\x96\x81]+\\z"
#define NORMALIZE_RUNS_REGEX " {2,}"

typedef enum { PREFIX_NEVER, PREFIX_FIRST, PREFIX_ALWAYS } PrefixScheme;

typedef struct {
    uint32_t *units; /* the trie */
    size_t n_units;
    char *strings; /* replacements; ends with a NUL */
    size_t strings_size;
    PrefixScheme prefix;           /* a space in front of: nothing, the text, every stretch between special tokens */
    bool prefix_unless_there;      /* … but not where the text begins with one already (Metaspace) */
    bool remove_extra_whitespaces; /* none at the ends, one at a time inside */
    bool strips_ends;              /* while a tokenizer.json is read */
    bool escape_whitespaces;       /* U+2581 and the space are one (see tokenizer_internal.h) */
} Normalizer;

/* Takes the precompiled table apart and copies it; an empty one is none. */
int normalizer_set_table(Normalizer *normalizer, const char *bytes, size_t size);
/* Appends with every U+2581 as a space. */
void text_escape_meta_space(Text *out, const char *bytes, size_t n);
void normalizer_free(Normalizer *normalizer);

/* What a stretch of text follows: nothing, a special token, or more text (which it continues: no space is put in
 * front, and one that is there stays). */
typedef enum { STRETCH_FIRST, STRETCH_AFTER_TOKEN, STRETCH_AFTER_TEXT } StretchPlace;

/* Appends the normalised text. Strings in `user` are left as they are. */
int normalizer_apply(const Normalizer *normalizer, const Trie *user, const char *text, size_t size, StretchPlace place,
                     Text *out);

#endif
