/* From fp32 to the codes of quantised.h, in plain C without a branch on values: every set of kernels compiles it, for
 * vectors as wide as it has. All give the same bits. */
#ifndef CRIA_KERNELS_QUANTISED_ENCODE_H
#define CRIA_KERNELS_QUANTISED_ENCODE_H

#include <float.h>
#include <string.h>

#include "model/kernels/quantised.h"

enum { INFINITE_BITS = 0x7f800000, SIZE_BITS = 0x7fffffff };

static inline float clamp_unit(float x) {
    return x < -1 ? -1 : x > 1 ? 1 : x;
}

/* The largest of the numbers' sizes, in bits, which are in order as the numbers are: INFINITE_BITS or more where one is
 * not finite. */
static inline int32_t largest_bits(const float *values, size_t n) {
    int32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        bits &= SIZE_BITS;
        most = bits > most ? bits : most;
    }
    return most;
}

/* As many numbers as a register holds. */
#if defined(__AVX512F__)
enum { REGISTER_BYTES = 64 };
#elif defined(__AVX2__)
enum { REGISTER_BYTES = 32 };
#else
enum { REGISTER_BYTES = 16 };
#endif
typedef float Floats __attribute__((vector_size(REGISTER_BYTES)));
typedef int32_t Words __attribute__((vector_size(REGISTER_BYTES)));

/* The nearest level to each: how many of the middles between levels are below it. (A comparison is 0 or -1.) */
static inline void nf4_codes(int32_t code[QUANTISED_BLOCK], const float x[QUANTISED_BLOCK], const float *middles) {
    for (size_t i = 0; i < QUANTISED_BLOCK; i += REGISTER_BYTES / sizeof *x) {
        Floats some;
        Words below = {0};
        memcpy(&some, x + i, sizeof some);
        for (int l = 0; l + 1 < NF4_LEVELS; l++) below -= some > middles[l];
        memcpy(code + i, &below, sizeof below);
    }
}

/* What is divided by where a block is zero. bitsandbytes multiplies whole blocks by the inverse and divides a last one
 * that is not whole, whose absmax it also keeps from being 0. */
static const float least_absmax = 1e-38f;

static inline void encode_nf4(uint8_t *to, const float *values, size_t n, float *absmax, const float *middles) {
    float x[QUANTISED_BLOCK] = {0};
    int32_t code[QUANTISED_BLOCK];
    float divisor = *absmax > least_absmax ? *absmax : least_absmax, inverse = 1 / divisor;
    if (n == QUANTISED_BLOCK) {
        for (int i = 0; i < QUANTISED_BLOCK; i++) x[i] = clamp_unit(values[i] * inverse);
    } else {
        for (size_t i = 0; i < n; i++) x[i] = clamp_unit(values[i] / divisor);
        *absmax = divisor;
    }
    nf4_codes(code, x, middles);
    for (size_t i = 0; i < (n + 1) / 2; i++) to[i] = (uint8_t)(code[2 * i] << 4 | code[2 * i + 1]);
}

/* To the nearest whole number, ties to even: the fp32 adder's own rounding where an ulp is 1, whose last byte is the
 * code in two's complement. */
static inline void encode_int8(uint8_t *to, float *scale, const float *values, size_t n, float absmax) {
    enum { MOST = 127 };
    const float one_ulp = 0x1.8p23f;
    *scale = absmax / MOST;
    float inverse = *scale >= FLT_MIN ? 1 / *scale : 0;
    for (size_t i = 0; i < n; i++) {
        float shifted = values[i] * inverse + one_ulp;
        int32_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        to[i] = (uint8_t)bits;
    }
}

/* quantised_encode. */
static bool encode_blocks(const Quantised *q, size_t first, size_t n, const float *values, float *absmax) {
    float middles[NF4_LEVELS];
    int32_t most = 0;
    for (int l = 0; l + 1 < NF4_LEVELS; l++) middles[l] = (nf4_levels[l] + nf4_levels[l + 1]) / 2;
    for (size_t at = 0; at < n; at += QUANTISED_BLOCK) {
        size_t in_block = n - at < QUANTISED_BLOCK ? n - at : QUANTISED_BLOCK, block = (first + at) / QUANTISED_BLOCK;
        int32_t bits = largest_bits(values + at, in_block);
        float *size = &absmax[at / QUANTISED_BLOCK];
        most = bits > most ? bits : most;
        memcpy(size, &bits, sizeof bits);
        if (q->kind == QUANTISED_NF4)
            encode_nf4(q->codes + (first + at) / 2, values + at, in_block, size, middles);
        else
            encode_int8(q->codes + first + at, &q->scales[block], values + at, in_block, *size);
    }
    return most < INFINITE_BITS;
}

#endif
