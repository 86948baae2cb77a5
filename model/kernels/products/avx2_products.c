/* Products with AVX2: as avx512_products.c, in tiles of 6 rows × 1 panel (12 sums of 8 lanes, of 16 registers). */
#include "model/kernels/products/products.h"

#if defined(__AVX2__) && defined(__FMA__)
#include "model/kernels/products/pack.h"

enum { TILE_ROWS = SLOT, TILE_PANELS = 1 };
enum { PANEL_VECTORS = PANEL_LANES / VF, TILE_VECTORS = TILE_PANELS * PANEL_VECTORS };
enum { ROW_BLOCK = 192, FROZEN_ROWS = 1024, FEW_ROWS = 60, DEPTH_BLOCK = 1024, WEIGHT_ROWS = 96, WEIGHT_TOKENS = 2048 };

static TILE_INLINE vf even_depth(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}
static TILE_INLINE vf odd_depth(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000)));
}

static TILE_INLINE void tile_step(const int rows, const int panels, vf sum[TILE_ROWS][TILE_VECTORS],
                                  const uint32_t pair[TILE_ROWS], const bf16 *b, size_t panel_stride) {
    (void)panels;
    (void)panel_stride;
    const __m256i *from = (const __m256i *)b;
    vf low = even_depth(_mm256_loadu_si256(from)), high = even_depth(_mm256_loadu_si256(from + 1));
    TILE_UNROLL
    for (int r = 0; r < rows; r++) {
        vf x = even_depth(_mm256_set1_epi32((int)pair[r]));
        sum[r][0] = vf_fma(x, low, sum[r][0]);
        sum[r][1] = vf_fma(x, high, sum[r][1]);
    }
    low = odd_depth(_mm256_loadu_si256(from));
    high = odd_depth(_mm256_loadu_si256(from + 1));
    TILE_UNROLL
    for (int r = 0; r < rows; r++) {
        vf x = odd_depth(_mm256_set1_epi32((int)pair[r]));
        sum[r][0] = vf_fma(x, low, sum[r][0]);
        sum[r][1] = vf_fma(x, high, sum[r][1]);
    }
}

#include "model/kernels/products/registers.h"

TILE_KERNEL(1, 1)
TILE_KERNEL(2, 1)
TILE_KERNEL(3, 1)
TILE_KERNEL(4, 1)
TILE_KERNEL(5, 1)
TILE_KERNEL(6, 1)

static void tile_multiply(const Tile *t) {
    static void (*const kernel[TILE_ROWS])(const Tile *) = {tile_1_1, tile_2_1, tile_3_1, tile_4_1, tile_5_1, tile_6_1};
    kernel[t->rows - 1](t);
}

#include "model/kernels/products/driver.h"

void avx2_products(Bf16Kernels *table) {
    driver_table(table);
}
#else
void avx2_products(Bf16Kernels *table) {
    (void)table;
}
#endif
