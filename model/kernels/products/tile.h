/* What a set's micro-kernel is given, and how a finished tile of fp32 sums goes to C.
 *
 * A set (<set>_products.c) defines before it includes driver.h
 *
 *   TILE_ROWS, TILE_PANELS   the largest tile of C that it holds in registers
 *   tile_multiply(tile)      C = (or +=) A·B of one tile over tile->depth
 *   left_pack(…)             the left operand of a weight's gradient (see pack.h); LEFT_ROW and LEFT_PAIR say where it
 *                            puts things
 *   the sizes of the blocks  see driver.h
 */
#ifndef CRIA_KERNELS_PRODUCTS_TILE_H
#define CRIA_KERNELS_PRODUCTS_TILE_H

#include <string.h>

#include "model/kernels/bf16.h"
#include "model/kernels/fast/simd.h"

/* Of A, row r has its pair (2p, 2p+1) of the reduction at a + r·a_row + p·a_pair. An odd depth's last element has no
 * partner: what lies behind it is not used. B's pairs beyond an odd depth are zero. */
typedef struct {
    int rows, lanes, depth; /* rows ≤ TILE_ROWS, lanes ≤ 16·TILE_PANELS */
    const bf16 *a;
    size_t a_row, a_pair;
    const bf16 *b; /* panels, panel_stride elements apart */
    size_t panel_stride;
    void *c;
    size_t c_stride;
    Dtype c_dtype;
    bool accumulate;
    const float *partial; /* [rows, 16·TILE_PANELS] sums over the depths before these, to be added; or NULL */
    /* [rows, 16·TILE_PANELS] of a tile whose depths come in parts (tiles in registers alone): what its registers hold
     * from one part to the next, or NULL */
    float *carry;
    bool first, last; /* part */
} Tile;

#define TILE_INLINE inline __attribute__((always_inline))

/* Over loops with constant ends of at most 8, whose arrays are to be registers. */
#if defined(__clang__)
#define TILE_UNROLL _Pragma("unroll")
#else
#define TILE_UNROLL _Pragma("GCC unroll 8")
#endif

static TILE_INLINE uint32_t tile_pair(const bf16 *a) {
    uint32_t pair;
    memcpy(&pair, a, sizeof pair);
    return pair;
}

#if defined(__AVX512F__)
static TILE_INLINE vf tile_widen(const bf16 *x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
}
/* To nearest even, NaN stays NaN; the upper half of each lane's bits is the bfloat16. */
static TILE_INLINE __m512i tile_round(vf x) {
    __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
}
/* The same of a number that is no NaN. */
static TILE_INLINE __m512i tile_round_finite(vf x) {
    __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}
static TILE_INLINE void tile_narrow(bf16 *to, vf x) {
#if defined(__AVX512BF16__)
    __m256bh y = _mm512_cvtneps_pbh(x);
    memcpy(to, &y, sizeof y);
#else
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(tile_round(x), 16)));
#endif
}
#else
static TILE_INLINE vf tile_widen(const bf16 *x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)x)), 16));
}
static TILE_INLINE __m256i tile_round_finite(vf x) {
    __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}
static TILE_INLINE void tile_narrow(bf16 *to, vf x) {
    __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i half = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(half, half), _MM_SHUFFLE(3, 1, 2, 0));
    _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(packed));
}
#endif

/* n ≤ VF lanes of a bf16 row */
static TILE_INLINE void tile_put_bf16(bf16 *to, size_t n, vf x, bool accumulate) {
    if (n >= VF) {
        if (accumulate) x = x + tile_widen(to);
        tile_narrow(to, x);
        return;
    }
    bf16 lane[VF] = {0};
    memcpy(lane, to, accumulate ? n * sizeof *to : 0);
    if (accumulate) x = x + tile_widen(lane);
    tile_narrow(lane, x);
    memcpy(to, lane, n * sizeof *to);
}

static TILE_INLINE void tile_put(float *to, size_t n, vf x, bool accumulate) {
    if (accumulate) x = x + vf_get(to, n);
    vf_put(to, n, x);
}

/* C = (or +=) sums + partial, for any tile; sums and partial have `width` floats to a row. */
static inline void tile_store(const Tile *t, const float *sums, size_t width) {
    for (size_t r = 0; r < (size_t)t->rows; r++)
        for (size_t lane = 0; lane < (size_t)t->lanes; lane += VF) {
            size_t n = (size_t)t->lanes - lane, at = r * t->c_stride + lane;
            vf x = vf_load(sums + r * width + lane);
            if (t->partial) x = x + vf_load(t->partial + r * width + lane);
            if (t->c_dtype == DTYPE_BF16)
                tile_put_bf16((bf16 *)t->c + at, n, x, t->accumulate);
            else
                tile_put((float *)t->c + at, n, x, t->accumulate);
        }
}

#endif
