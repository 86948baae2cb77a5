/* Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
 * There is no state: every number is a function of (seed, purpose, layer, module) and a four-word counter, so any
 * layout of ranks, threads and micro-batches draws the same numbers, and a checkpoint has no generator to save. */
#ifndef CRIA_CORE_PHILOX_H
#define CRIA_CORE_PHILOX_H

#include <stdint.h>

/* What numbers are drawn for; part of the key. Append only: the order is part of every saved run's meaning. */
typedef enum {
    PHILOX_INIT,    /* layer = hash of the parameter's name, counter = element/4 */
    PHILOX_SHUFFLE, /* order of documents and sequences */
    PHILOX_SPLIT,   /* which documents are validation */
    PHILOX_MIX,     /* which source a sequence is drawn from */
    PHILOX_SAMPLE,  /* generation */
    PHILOX_DROPOUT,
    PHILOX_TEST,
    PHILOX_ROUNDING,  /* of bf16 moments: layer = hash of the parameter's name, counter = update, row, column */
    PHILOX_MINIBATCH, /* order of a rollout's prompts: layer = rollout, module = epoch */
} PhiloxPurpose;

typedef struct {
    uint32_t word[2];
} PhiloxKey;

PhiloxKey philox_key(uint64_t seed, PhiloxPurpose purpose, uint32_t layer, uint32_t module);

void philox4x32(uint32_t out[4], const uint32_t counter[4], PhiloxKey key);

/* The n blocks of counters (c0, c1, c2, c3), (c0 + 1, c1, c2, c3), … one after the other: 4·n words. */
void philox_blocks(uint32_t *out, const uint32_t counter[4], uint64_t n, PhiloxKey key);

/* Element `index` of the stream of `key`: uniform in [0, 1) with 24 bits; standard normal (Box–Muller on pairs). */
float philox_uniform(PhiloxKey key, uint64_t index);
void philox_fill_normal(float *out, uint64_t first, uint64_t n, PhiloxKey key, float mean, float stddev);

/* 64 random bits at `index`; and an unbiased-enough integer below `bound` (64-bit multiply-high; bias < bound/2^64). */
uint64_t philox_u64(PhiloxKey key, uint64_t index);
uint64_t philox_below(PhiloxKey key, uint64_t index, uint64_t bound);

/* A permutation of 0..n-1 (Fisher–Yates driven by the key's stream). `out` has room for n. */
void philox_permutation(uint32_t *out, uint32_t n, PhiloxKey key);

/* 64-bit FNV-1a of bytes, for keys made from names and for fingerprints; chain by passing the last value as `start`. */
enum { HASH_START = 0 };
uint64_t hash_bytes(const void *bytes, uint64_t n, uint64_t start);

#endif
