/* Matrices in 8 or 4 bits, for weights that are not trained. Elements are counted through the rows, e = row·cols + col,
 * and cut into blocks of 64, each with a scale (Dettmers et al. 2023, "QLoRA", section 3; blocks go on across rows, as
 * in bitsandbytes):
 *
 *   NF4    element = nf4_levels[code]·scale, code of 4 bits, two to a byte, the first in the upper half; scale is the
 *          block's largest absolute value, itself in 8 bits (double quantisation): scale = scale_levels[code]·s +
 * offset with s one for 256 blocks and the offset (the mean) one for all. 4 + 8/64 + 32/(64·256) = 4.127 bits INT8
 * element = code·scale, code in -127 … 127, scale fp32: 8.5 bits. One scale a row (LLM.int8(): Dettmers et al. 2022)
 * would take 8.0; its error on normal numbers in rows of 4,096 is 0.87 % in place of 0.59 %, and of Student's t with 5
 * degrees of freedom, nearer to a trained matrix' outliers, 2.0 % in place of 0.81 %
 *
 * NF4's values, before and after, are those of bitsandbytes on a CPU, bit for bit, but that it sums the mean in an
 * order of its own. Nothing here allocates. */
#ifndef CRIA_KERNELS_QUANTISED_H
#define CRIA_KERNELS_QUANTISED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { QUANTISED_BLOCK = 64, QUANTISED_GROUP = 256, NF4_LEVELS = 16, SCALE_LEVELS = 256 };

/* Quantiles of the normal distribution, an exact zero among them (QLoRA, appendix E). */
extern const float nf4_levels[NF4_LEVELS];
/* Of dynamic trees (Dettmers 2015, "8-bit approximations"): with k = |code - 127|, of 2^i <= k < 2^(i+1) the middle of
 * the (k - 2^i)-th of 2^i equal parts of [0.1, 1], times 10^(i-6); below 127 negative; 127 is 0, 255 is 1. */
extern const float scale_levels[SCALE_LEVELS];

typedef enum { QUANTISED_INT8, QUANTISED_NF4 } QuantisedKind;

/* Its arrays are not owned. */
typedef struct Quantised {
    QuantisedKind kind;
    size_t elements;
    uint8_t *codes;       /* INT8: two's complement. QUANTISED_SLACK bytes behind the last may be read */
    uint8_t *scale_codes; /* NF4: [blocks] */
    float *scales;        /* INT8: [blocks]; NF4: [blocks / 256, rounded up] */
    float offset;         /* NF4 */
} Quantised;
enum { QUANTISED_SLACK = 64 };

static inline size_t quantised_blocks(size_t elements) {
    return (elements + QUANTISED_BLOCK - 1) / QUANTISED_BLOCK;
}
/* Bytes of all its arrays, each on a cache line. */
size_t quantised_bytes(QuantisedKind kind, size_t elements);
/* Arrays in `storage`, which is on a cache line and has so many bytes, zeroed. */
Quantised quantised_place(QuantisedKind kind, size_t elements, void *storage);

/* ---- from fp32 ---- */

/* Writes the codes of the elements [first, first + n), whole blocks but for the last, and absmax[block - first's] of
 * each block; of INT8 the scales too. False where a number is infinite or NaN. Several threads may each write blocks of
 * their own. */
bool quantised_encode(const Quantised *q, size_t first, size_t n, const float *values, float *absmax);
/* The mean of n numbers, summed in fp64. */
float quantised_mean(const float *absmax, size_t n);
static inline size_t quantised_groups(size_t elements) {
    return (quantised_blocks(elements) + QUANTISED_GROUP - 1) / QUANTISED_GROUP;
}
/* NF4, behind all codes: the scales of these groups, from every block's absmax and their mean, which is to be
 * q->offset. Several threads may each write groups of their own. */
void quantised_encode_scales(const Quantised *q, size_t first_group, size_t end_group, const float *absmax, float mean);

/* ---- to fp32 ---- */

static inline float quantised_scale(const Quantised *q, size_t block) {
    if (q->kind == QUANTISED_INT8) return q->scales[block];
    return scale_levels[q->scale_codes[block]] * q->scales[block / QUANTISED_GROUP] + q->offset;
}
void quantised_read(const Quantised *q, size_t first, size_t n, float *out);

#endif
