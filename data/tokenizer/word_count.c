#include "data/tokenizer/word_count.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

static uint32_t hash_word(const char *word, size_t length) {
    uint64_t hash = length;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)word[i]) * 0x9e3779b97f4a7c15ull;
    return (uint32_t)(hash >> 32);
}

/* Twice as many slots as words at least. */
static int grow(WordCounts *counts) {
    size_t capacity = counts->capacity ? counts->capacity * 2 : 4096, n_slots = capacity * 2;
    if (capacity >= UINT32_MAX / 2) FAIL(ERR_REFUSED, "more than %zu different words", counts->n);
    CountedWord *words = realloc(counts->words, capacity * sizeof *words);
    if (words) counts->words = words;
    uint32_t *slots = calloc(n_slots, sizeof *slots);
    if (!words || !slots) {
        free(slots);
        FAIL(ERR_FAILED, "out of memory for %zu words", capacity);
    }
    counts->capacity = capacity;
    free(counts->slots);
    counts->slots = slots;
    counts->n_slots = n_slots;
    for (size_t i = 0; i < counts->n; i++) {
        size_t slot = words[i].hash & (n_slots - 1);
        while (slots[slot]) slot = (slot + 1) & (n_slots - 1);
        slots[slot] = (uint32_t)i + 1;
    }
    return OK;
}

static int add_hashed(WordCounts *counts, const char *word, size_t length, uint32_t hash, int64_t count) {
    if (counts->n == counts->capacity) TRY(grow(counts));
    size_t slot = hash & (counts->n_slots - 1);
    for (; counts->slots[slot]; slot = (slot + 1) & (counts->n_slots - 1)) {
        CountedWord *known = &counts->words[counts->slots[slot] - 1];
        if (known->hash == hash && known->length == length &&
            memcmp(counts->bytes.bytes + known->offset, word, length) == 0) {
            known->count += count;
            return OK;
        }
    }
    if (length > UINT32_MAX) FAIL(ERR_REFUSED, "a word of %zu bytes is too long", length);
    counts->words[counts->n] = (CountedWord){counts->bytes.length, (uint32_t)length, hash, count};
    counts->slots[slot] = (uint32_t)++counts->n;
    text_append(&counts->bytes, word, length);
    return text_check(&counts->bytes);
}

int word_counts_add(WordCounts *counts, const char *word, size_t length, int64_t count) {
    return add_hashed(counts, word, length, hash_word(word, length), count);
}

int word_counts_merge(WordCounts *into, const WordCounts *from) {
    for (size_t i = 0; i < from->n; i++) {
        const CountedWord *word = &from->words[i];
        TRY(add_hashed(into, from->bytes.bytes + word->offset, word->length, word->hash, word->count));
    }
    return OK;
}

void word_counts_free(WordCounts *counts) {
    free(counts->words);
    free(counts->slots);
    text_free(&counts->bytes);
    *counts = (WordCounts){0};
}
