/* The micro-kernel of the sets that broadcast pairs of A: TILE_ROWS × TILE_PANELS sums in registers. The including
 * <set>_products.c gives before
 *
 *   tile_step(rows, panels, sum, pair, b, panel_stride)   sum[r][…] += pair r of A times a pair of depths of B
 */
#ifndef CRIA_KERNELS_PRODUCTS_REGISTERS_H
#define CRIA_KERNELS_PRODUCTS_REGISTERS_H

#include "model/kernels/products/pack.h"

_Static_assert((int)TILE_ROWS == (int)SLOT, "the left operand of a weight's gradient comes in slots of a tile's rows");

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

/* C is fetched during the sums, to be there when they are done. */
static TILE_INLINE void tile_begin(const int rows, const int panels, vf sum[TILE_ROWS][TILE_VECTORS], const Tile *t) {
    const size_t size = t->c_dtype == DTYPE_BF16 ? sizeof(bf16) : sizeof(float);
    if (t->carry && !t->first) {
        TILE_UNROLL
        for (int r = 0; r < rows; r++) {
            TILE_UNROLL
            for (int v = 0; v < panels * PANEL_VECTORS; v++)
                sum[r][v] = vf_load(t->carry + (r * TILE_VECTORS + v) * VF);
        }
        return;
    }
    TILE_UNROLL
    for (int r = 0; r < rows; r++) {
        const char *c = (const char *)t->c + (size_t)r * t->c_stride * size;
        TILE_UNROLL
        for (int v = 0; v < panels * PANEL_VECTORS; v++) {
            sum[r][v] = vf_zero();
            __builtin_prefetch(c + (size_t)v * VF * size, 1);
        }
    }
}

/* Whole tiles that only replace C go straight there. */
static TILE_INLINE void tile_end(const int rows, const int panels, vf sum[TILE_ROWS][TILE_VECTORS], const Tile *t) {
    float spilled[TILE_ROWS * TILE_VECTORS * VF];
    if (t->carry && !t->last) {
        TILE_UNROLL
        for (int r = 0; r < rows; r++) {
            TILE_UNROLL
            for (int v = 0; v < panels * PANEL_VECTORS; v++)
                vf_store(t->carry + (r * TILE_VECTORS + v) * VF, sum[r][v]);
        }
        return;
    }
    const bool plain = !t->accumulate && !t->partial && t->lanes == panels * PANEL_LANES;
    TILE_UNROLL
    for (int r = 0; r < rows; r++) {
        TILE_UNROLL
        for (int v = 0; v < panels * PANEL_VECTORS; v++) {
            size_t at = (size_t)r * t->c_stride + (size_t)v * VF;
            if (!plain)
                vf_store(spilled + (r * TILE_VECTORS + v) * VF, sum[r][v]);
            else if (t->c_dtype == DTYPE_BF16)
                tile_narrow((bf16 *)t->c + at, sum[r][v]);
            else
                vf_store((float *)t->c + at, sum[r][v]);
        }
    }
    if (!plain) tile_store(t, spilled, TILE_VECTORS * VF);
}

/* rows and panels are constants at every call, so the loops over them unroll. */
static TILE_INLINE void tile_registers(const int rows, const int panels, const Tile *t) {
    vf sum[TILE_ROWS][TILE_VECTORS];
    tile_begin(rows, panels, sum, t);
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
    tile_end(rows, panels, sum, t);
}

#define TILE_KERNEL(rows, panels)                       \
    static void tile_##rows##_##panels(const Tile *t) { \
        tile_registers(rows, panels, t);                \
    }

#endif
