/* How often each word (a piece of a split pattern) occurs. */
#ifndef CRIA_DATA_WORD_COUNT_H
#define CRIA_DATA_WORD_COUNT_H

#include <stddef.h>
#include <stdint.h>

#include "model/core/text.h"

typedef struct {
    size_t offset; /* into WordCounts.bytes */
    uint32_t length;
    uint32_t hash;
    int64_t count;
} CountedWord;

typedef struct {
    CountedWord *words; /* in the order of their first occurrence */
    size_t n, capacity;
    uint32_t *slots; /* open addressing: 1 + index of a word, 0 = empty */
    size_t n_slots;
    Text bytes;
} WordCounts; /* {0} is empty */

int word_counts_add(WordCounts *counts, const char *word, size_t length, int64_t count);
int word_counts_merge(WordCounts *into, const WordCounts *from);
void word_counts_free(WordCounts *counts);

#endif
