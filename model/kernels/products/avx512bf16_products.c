/* Products with VDPBF16PS: c += a₀·b₀ + a₁·b₁ in fp32, in every lane. A tile is 8 rows × 3 panels: 24 sums, 3 vectors
 * of B and a pair of A broadcast to all lanes, of 32 registers; 11 loads for 24 products. The instruction rounds after
 * each of its two sums, to nearest even, and takes subnormal numbers for zero, as does the rounding of a bf16 C. */
#include "model/kernels/products/products.h"

#if defined(__AVX512BF16__)
#include "model/kernels/products/pack.h"

enum { TILE_ROWS = SLOT, TILE_PANELS = 3 };
enum {
    ROW_BLOCK = 192,
    FROZEN_ROWS = 1024,
    DEPTH_BLOCK = 1024,
    PARTIAL_SUMS = FROZEN_ROWS * TILE_PANELS * PANEL_LANES
};
enum { WEIGHT_ROWS = 96, WEIGHT_TOKENS = 2048, WEIGHT_DEPTH = WEIGHT_TOKENS };

/* The left operand of a weight's gradient, in slots of TILE_ROWS rows. */
static inline size_t left_row(size_t depth) {
    (void)depth;
    return 2;
}
static inline size_t left_pair(size_t depth) {
    (void)depth;
    return 2 * SLOT;
}
static void left_pack(bf16 *to, size_t depth, const bf16 *x, size_t stride, int n_tokens, int rows) {
    slots_pack(to, SLOT * depth, x, stride, n_tokens, rows);
}

static TILE_INLINE __m512bh tile_bits(__m512i bits) {
    __m512bh pairs;
    memcpy(&pairs, &bits, sizeof pairs);
    return pairs;
}

static TILE_INLINE void tile_step(const int rows, const int panels, __m512 sum[TILE_ROWS][TILE_PANELS],
                                  const uint32_t pair[TILE_ROWS], const bf16 *b, size_t panel_stride) {
    __m512bh lane[TILE_PANELS];
    TILE_UNROLL
    for (int p = 0; p < panels; p++) lane[p] = tile_bits(_mm512_loadu_si512(b + (size_t)p * panel_stride));
    TILE_UNROLL
    for (int r = 0; r < rows; r++) {
        __m512bh x = tile_bits(_mm512_set1_epi32((int)pair[r]));
        TILE_UNROLL
        for (int p = 0; p < panels; p++) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], x, lane[p]);
    }
}

/* rows and panels are constants at every call, so the loops over them unroll. */
static TILE_INLINE void tile_registers(const int rows, const int panels, const Tile *t) {
    __m512 sum[TILE_ROWS][TILE_PANELS];
    const size_t size = t->c_dtype == DTYPE_BF16 ? sizeof(bf16) : sizeof(float);
    TILE_UNROLL
    for (int r = 0; r < rows; r++) {
        const char *c = (const char *)t->c + (size_t)r * t->c_stride * size;
        TILE_UNROLL
        for (int p = 0; p < panels; p++) {
            sum[r][p] = _mm512_setzero_ps();
            __builtin_prefetch(c + (size_t)p * PANEL_LANES * size, 1);
        }
    }
    const bf16 *a = t->a, *b = t->b;
    uint32_t pair[TILE_ROWS];
    for (int pairs = t->depth / 2; pairs > 0; pairs--, a += t->a_pair, b += PAIR) {
        TILE_UNROLL
        for (int r = 0; r < rows; r++) pair[r] = tile_pair(a + (size_t)r * t->a_row);
        tile_step(rows, panels, sum, pair, b, t->panel_stride);
    }
    if (t->depth % 2) {
        TILE_UNROLL
        for (int r = 0; r < rows; r++) pair[r] = a[(size_t)r * t->a_row];
        tile_step(rows, panels, sum, pair, b, t->panel_stride);
    }
    float spilled[TILE_ROWS * TILE_PANELS * PANEL_LANES];
    const bool plain = !t->accumulate && !t->partial && t->lanes == panels * PANEL_LANES;
    TILE_UNROLL
    for (int r = 0; r < rows; r++) {
        TILE_UNROLL
        for (int p = 0; p < panels; p++) {
            size_t at = (size_t)r * t->c_stride + (size_t)p * PANEL_LANES;
            if (!plain)
                vf_store(spilled + (r * TILE_PANELS + p) * PANEL_LANES, sum[r][p]);
            else if (t->c_dtype == DTYPE_BF16)
                tile_narrow((bf16 *)t->c + at, sum[r][p]);
            else
                vf_store((float *)t->c + at, sum[r][p]);
        }
    }
    if (!plain) tile_store(t, spilled, TILE_PANELS * PANEL_LANES);
}

#define TILE(rows, panels)                              \
    static void tile_##rows##_##panels(const Tile *t) { \
        tile_registers(rows, panels, t);                \
    }
#define TILES_OF(rows) TILE(rows, 1) TILE(rows, 2) TILE(rows, 3)
TILES_OF(1)
TILES_OF(2)
TILES_OF(3)
TILES_OF(4)
TILES_OF(5)
TILES_OF(6) TILES_OF(7) TILES_OF(8)

    static void tile_multiply(const Tile *t) {
#define ROW(rows) \
    { tile_##rows##_1, tile_##rows##_2, tile_##rows##_3 }
    static void (*const kernel[TILE_ROWS][TILE_PANELS])(const Tile *) = {ROW(1), ROW(2), ROW(3), ROW(4),
                                                                         ROW(5), ROW(6), ROW(7), ROW(8)};
#undef ROW
    kernel[t->rows - 1][(t->lanes - 1) / PANEL_LANES](t);
}

#include "model/kernels/products/driver.h"

void avx512bf16_products(Bf16Kernels *table) {
    driver_table(table);
}
#else
void avx512bf16_products(Bf16Kernels *table) {
    (void)table;
}
#endif
