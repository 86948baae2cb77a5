/* Seeded orders that can be entered anywhere: permutations without a table, the validation split, the mix of sources.
 * All of it is a function of its arguments (DESIGN: no hidden randomness). */
#ifndef CRIA_DATA_ORDER_H
#define CRIA_DATA_ORDER_H

#include <stdint.h>

#include "model/core/philox.h"

/* What is drawn for a source, as the low part of the key's `layer`; the epoch is its `module`. */
typedef enum { ORDER_DOCUMENTS, ORDER_SEQUENCES, ORDER_PHASE, ORDER_KINDS } OrderKind;
PhiloxKey order_key(uint64_t seed, int source, OrderKind kind, int64_t epoch);

/* The image of `index` under a permutation of 0..n-1 chosen by `key`. */
uint64_t order_permute(PhiloxKey key, uint64_t n, uint64_t index);

/* Splits documents 0..n-1 after a seeded shuffle: `validation` of them (rounded, at least one where the share is above
 * 0, at most n - 1) and the rest, both in rising order. Arrays are malloc'd. n is at least 1. */
int order_split(uint32_t **train, uint32_t *n_train, uint32_t **validation, uint32_t *n_validation, uint32_t n,
                double share, uint64_t seed, int source);

/* Which source each sequence of the mixed order is from. Sequence k's point on a circle of 2^32 is k·golden + offset
 * (a Weyl sequence; the offset is drawn from the seed), and each source owns an arc as long as its share. Among the
 * first k sequences a source then has k·share to within 1 + log2(k + 1): the golden ratio's discrepancy grows with the
 * logarithm, where independent draws would be off by the square root. */
typedef struct {
    int n;
    uint64_t *bound; /* [n + 1] arcs: 0 … 2^32 */
    uint64_t offset;
} Mix;
int mix_init(Mix *mix, const double *shares, int n, uint64_t seed);
void mix_free(Mix *mix);
int mix_source(const Mix *mix, int64_t k);
int64_t mix_count(const Mix *mix, int source, int64_t k); /* of `source` among sequences 0..k-1; O(log k) */

#endif
