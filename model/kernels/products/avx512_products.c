/* Products with AVX-512 and no bf16 instructions: the two halves of a pair are widened to fp32 in registers (an even
 * depth is the lower half of 32 bits, an odd one the upper) and multiplied one after the other. Tiles as with
 * VDPBF16PS.
 */
#include "model/kernels/products/products.h"

#if defined(__AVX512F__) && defined(__AVX512BW__)
#include "model/kernels/products/pack.h"

enum { TILE_ROWS = SLOT, TILE_PANELS = 3 };
enum { PANEL_VECTORS = PANEL_LANES / VF, TILE_VECTORS = TILE_PANELS * PANEL_VECTORS };
enum { ROW_BLOCK = 192, FROZEN_ROWS = 1024, FEW_ROWS = 64, DEPTH_BLOCK = 1024, WEIGHT_ROWS = 96, WEIGHT_TOKENS = 2048 };

static TILE_INLINE vf even_depth(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}
static TILE_INLINE vf odd_depth(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

static TILE_INLINE void tile_step(const int rows, const int panels, vf sum[TILE_ROWS][TILE_VECTORS],
                                  const uint32_t pair[TILE_ROWS], const bf16 *b, size_t panel_stride) {
    vf lane[TILE_PANELS];
    TILE_UNROLL
    for (int p = 0; p < panels; p++) lane[p] = even_depth(_mm512_loadu_si512(b + (size_t)p * panel_stride));
    TILE_UNROLL
    for (int r = 0; r < rows; r++) {
        vf x = even_depth(_mm512_set1_epi32((int)pair[r]));
        TILE_UNROLL
        for (int p = 0; p < panels; p++) sum[r][p] = vf_fma(x, lane[p], sum[r][p]);
    }
    TILE_UNROLL
    for (int p = 0; p < panels; p++) lane[p] = odd_depth(_mm512_loadu_si512(b + (size_t)p * panel_stride));
    TILE_UNROLL
    for (int r = 0; r < rows; r++) {
        vf x = odd_depth(_mm512_set1_epi32((int)pair[r]));
        TILE_UNROLL
        for (int p = 0; p < panels; p++) sum[r][p] = vf_fma(x, lane[p], sum[r][p]);
    }
}

#include "model/kernels/products/registers_avx512.h"

#include "model/kernels/products/driver.h"

void avx512_products(Bf16Kernels *table) {
    driver_table(table);
}
#else
void avx512_products(Bf16Kernels *table) {
    (void)table;
}
#endif
