/* Learns the merges of a byte-level BPE from counted words. */
#ifndef CRIA_DATA_BPE_TRAIN_H
#define CRIA_DATA_BPE_TRAIN_H

#include "data/tokenizer/word_count.h"

typedef struct {
    uint32_t left, right; /* symbols: 0–255 are bytes, 256 + i is what merge i makes */
} BpeMerge;

typedef struct {
    size_t n_merges;                                             /* how many to learn */
    int64_t min_count;                                           /* a pair that occurs less often is not merged */
    uint32_t longest_token;                                      /* bytes */
    void (*progress)(void *context, size_t done, size_t wanted); /* or NULL */
    void *context;
} BpeTrainOptions;

/* Merges the most frequent pair of neighbours (of equal ones the one of the smaller symbols), again and again. `merges`
 * has room for n_merges; *n are learned, fewer where the words have no more. The result depends on the counts alone. */
int bpe_train(const WordCounts *counts, const BpeTrainOptions *options, BpeMerge *merges, size_t *n);

#endif
