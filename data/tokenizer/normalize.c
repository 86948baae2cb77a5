/* Normalising text as SentencePiece does, so that the ids come out the same. */
#include "data/tokenizer/normalize.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

static const char META_SPACE[] = "\xe2\x96\x81"; /* U+2581 */
enum { META_LENGTH = 3, LARGEST_TABLE = 4 << 20 };

/* ---- the double-array trie (darts-clone) --------------------------------------------------------------------------
 *
 * A unit is 32 bits: for a leaf, bits 0-30 its value; else bits 0-7 the label of the edge that leads here (bit 31
 * clear), bit 8 "a key ends here", and an offset in bits 10-31, shifted left by 8 when bit 9 is set. Node s has its
 * child for byte b at s ^ offset ^ b, its value at s ^ offset. */

static uint32_t unit_offset(uint32_t unit) {
    return (unit >> 10) << ((unit & (1u << 9)) >> 6);
}
static uint32_t unit_label(uint32_t unit) {
    return unit & (1u << 31 | 0xffu);
}

/* The replacement of the longest key at `text`, NULL where none begins there. */
static const char *longest_rule(const Normalizer *normalizer, const char *text, size_t size, size_t *length) {
    const char *found = NULL;
    if (normalizer->n_units == 0) return NULL;
    size_t node = unit_offset(normalizer->units[0]);
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = (unsigned char)text[i];
        node ^= byte;
        if (node >= normalizer->n_units) break;
        uint32_t unit = normalizer->units[node];
        if (unit_label(unit) != byte) break;
        node ^= unit_offset(unit);
        if (unit >> 8 & 1) {
            if (node >= normalizer->n_units) break;
            uint32_t value = normalizer->units[node] & 0x7fffffffu;
            if (value >= normalizer->strings_size) break;
            found = normalizer->strings + value;
            *length = i + 1;
        }
    }
    return found;
}

int normalizer_set_table(Normalizer *normalizer, const char *bytes, size_t size) {
    free(normalizer->units);
    free(normalizer->strings);
    normalizer->units = NULL;
    normalizer->strings = NULL;
    normalizer->n_units = normalizer->strings_size = 0;
    if (size == 0) return OK;
    uint32_t trie_size = 0;
    for (size_t i = 0; i < 4 && i < size; i++) trie_size |= (uint32_t)(unsigned char)bytes[i] << (8 * i);
    if (size <= 4 || size > LARGEST_TABLE || trie_size >= size - 4 || trie_size % 4 != 0 || trie_size == 0)
        FAIL(ERR_REFUSED, "precompiled_charsmap: a table of %zu bytes cannot hold a trie of %u", size, trie_size);
    normalizer->n_units = trie_size / 4;
    normalizer->strings_size = size - 4 - trie_size;
    normalizer->units = malloc(trie_size);
    normalizer->strings = calloc(normalizer->strings_size + 1, 1);
    if (!normalizer->units || !normalizer->strings) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < normalizer->n_units; i++) {
        const unsigned char *p = (const unsigned char *)bytes + 4 + 4 * i;
        normalizer->units[i] = p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    }
    memcpy(normalizer->strings, bytes + 4 + trie_size, normalizer->strings_size);
    return OK;
}

void normalizer_free(Normalizer *normalizer) {
    free(normalizer->units);
    free(normalizer->strings);
    *normalizer = (Normalizer){0};
}

/* ---- text ---------------------------------------------------------------------------------------------------------
 */

/* The next stretch that normalises as one: its length in *taken, what it becomes as a pointer and length. */
static const char *next_stretch(const Normalizer *normalizer, const Trie *user, const char *text, size_t size,
                                size_t *taken, size_t *length) {
    int32_t unused;
    uint32_t code;
    size_t n = trie_longest(user, text, size, &unused);
    if (n == 0) {
        const char *rule = longest_rule(normalizer, text, size, &n);
        if (rule) {
            *taken = n;
            *length = strlen(rule);
            return rule;
        }
        n = (size_t)utf8_decode(text, size, &code);
    }
    *taken = *length = n > 0 ? n : 1; /* a stray byte goes through, for byte fallback */
    return text;
}

void text_escape_meta_space(Text *out, const char *bytes, size_t n) {
    const char *end = bytes + n, *meta;
    while ((meta = memmem(bytes, (size_t)(end - bytes), META_SPACE, META_LENGTH)) != NULL) {
        text_append(out, bytes, (size_t)(meta - bytes));
        text_append(out, " ", 1);
        bytes = meta + META_LENGTH;
    }
    text_append(out, bytes, (size_t)(end - bytes));
}

static void apply_rules(const Normalizer *normalizer, const Trie *user, const char *text, size_t size, Text *out) {
    bool after_space = normalizer->remove_extra_whitespaces;
    size_t taken, length;
    for (size_t at = 0; at < size; at += taken) {
        const char *piece = next_stretch(normalizer, user, text + at, size - at, &taken, &length);
        while (after_space && length > 0 && *piece == ' ') {
            piece++;
            length--;
        }
        if (length == 0) continue;
        after_space = normalizer->remove_extra_whitespaces && piece[length - 1] == ' ';
        if (normalizer->escape_whitespaces)
            text_escape_meta_space(out, piece, length);
        else
            text_append(out, piece, length);
    }
}

int normalizer_apply(const Normalizer *normalizer, const Trie *user, const char *text, size_t size, StretchPlace place,
                     Text *out) {
    if (size == 0) return OK;
    size_t start = out->length;
    bool begins_with_space = text[0] == ' ' || (size >= META_LENGTH && memcmp(text, META_SPACE, META_LENGTH) == 0);
    bool wanted = normalizer->prefix == PREFIX_ALWAYS || (normalizer->prefix == PREFIX_FIRST && place == STRETCH_FIRST);
    bool there = normalizer->prefix_unless_there && begins_with_space;
    if (place == STRETCH_AFTER_TEXT) { /* of the spaces between two words one stays, where extra ones are removed */
        wanted = normalizer->remove_extra_whitespaces && begins_with_space;
        there = false;
    }
    if (wanted && !there) text_append(out, " ", 1);
    size_t body = out->length;
    if (!normalizer->remove_extra_whitespaces && normalizer->n_units == 0) {
        if (normalizer->escape_whitespaces)
            text_escape_meta_space(out, text, size);
        else
            text_append(out, text, size);
    } else {
        apply_rules(normalizer, user, text, size, out);
    }
    if (normalizer->remove_extra_whitespaces) {
        while (out->length > body && out->bytes[out->length - 1] == ' ') out->length--;
        if (out->length == body) out->length = start; /* nothing but white space */
    }
    if (out->bytes) out->bytes[out->length] = 0;
    return text_check(out);
}
