/* Products with VDPBF16PS: c += a₀·b₀ + a₁·b₁ in fp32, in every lane. A tile is 8 rows × 3 panels: 24 sums, 3 vectors
 * of B and a pair of A broadcast to all lanes, of 32 registers; 11 loads for 24 products. The instruction rounds after
 * each of its two sums, to nearest even, and takes subnormal numbers for zero, as does the rounding of a bf16 C. */
#include "model/kernels/products/products.h"

#if defined(__AVX512BF16__)
#include "model/kernels/products/pack.h"

enum { TILE_ROWS = SLOT, TILE_PANELS = 3 };
enum { PANEL_VECTORS = PANEL_LANES / VF, TILE_VECTORS = TILE_PANELS * PANEL_VECTORS };
enum {
    ROW_BLOCK = 192,
    FROZEN_ROWS = 1024,
    FEW_ROWS = 64,
    DEPTH_BLOCK = 1024,
    WEIGHT_ROWS = 192,
    WEIGHT_TOKENS = 2048
};

static TILE_INLINE __m512bh pairs_of(__m512i bits) {
    __m512bh pairs;
    memcpy(&pairs, &bits, sizeof pairs);
    return pairs;
}

static TILE_INLINE void tile_step(const int rows, const int panels, vf sum[TILE_ROWS][TILE_VECTORS],
                                  const uint32_t pair[TILE_ROWS], const bf16 *b, size_t panel_stride) {
    __m512bh lane[TILE_PANELS];
    TILE_UNROLL
    for (int p = 0; p < panels; p++) lane[p] = pairs_of(_mm512_loadu_si512(b + (size_t)p * panel_stride));
    TILE_UNROLL
    for (int r = 0; r < rows; r++) {
        __m512bh x = pairs_of(_mm512_set1_epi32((int)pair[r]));
        TILE_UNROLL
        for (int p = 0; p < panels; p++) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], x, lane[p]);
    }
}

#include "model/kernels/products/registers_avx512.h"

#include "model/kernels/products/driver.h"

void avx512bf16_products(Bf16Kernels *table) {
    driver_table(table);
}
#else
void avx512bf16_products(Bf16Kernels *table) {
    (void)table;
}
#endif
