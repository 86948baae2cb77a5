/* One row of A times a weight that lies row-major, as decoding one sequence has it: squares of the weight are
 * multiplied where they are, in registers, and never become panels. A sum runs over the depths in their order, as a
 * tile's does, to the same bits; the sums of several panels go on in turns, since each waits for the one before.
 *
 * With AVX-512 alone. A weight in bf16 is faster by way of panels where it comes from memory (110M: by 16 %), which
 * prefers fewer rows at a time. */
#ifndef CRIA_KERNELS_PRODUCTS_ONE_ROW_H
#define CRIA_KERNELS_PRODUCTS_ONE_ROW_H

#include "model/kernels/products/pack.h"

#if defined(__AVX512F__)

/* The sixteen rows of a panel. */
typedef struct {
    QuantisedRow row; /* the first */
    SquareScales scales;
} RowPanel;

/* The pairs of one square from depth d on, a's there, are added to *sum. */
static TILE_INLINE void one_row_square(vf *sum, const bf16 *a, RowPanel *panel, const bool is_nf4, size_t cols,
                                       size_t d, bool first, size_t ahead) {
    enum { LINE = 64 };
    const PairSink sink = {.at_once = true, .a = a, .sum = sum};
    const size_t per_byte = is_nf4 ? 2 : 1, at = panel->row.first + d, stride = cols / per_byte;
    const char *from = (const char *)panel->row.q->codes + at / per_byte;
    for (size_t i = 0; d % (LINE * per_byte) == 0 && i < PANEL_LANES; i++)
        fetch_ahead(from + i * stride, ahead * stride);
    if (first || at % QUANTISED_BLOCK == 0 || cols % QUANTISED_BLOCK != 0)
        square_scales(&panel->scales, panel->row.q, is_nf4, at, cols);
    whole_square(sink, panel->row.q, is_nf4, at, cols, &panel->scales);
}

static TILE_INLINE void one_row_panels(vf *sum, const bf16 *a, const Panels *b, const bool is_nf4, int lane, int panels,
                                       int d, int end) {
    RowPanel panel[TILE_PANELS];
    const size_t cols = (size_t)b->rows->cols, ahead = (size_t)panels * PANEL_LANES;
    for (int p = 0; p < panels; p++) {
        sum[p] = vf_zero();
        panel[p].row = quantised_row(b->rows, lane + p * PANEL_LANES);
    }
    for (int at = d; at < end; at += PANEL_DEPTH, a += PANEL_DEPTH)
        for (int p = 0; p < panels; p++)
            one_row_square(&sum[p], a, &panel[p], is_nf4, cols, (size_t)at, at == d, ahead);
}

/* Whether the panels are whole squares that lie together. */
static inline bool one_row_fits(const Panels *b, int lane, int lanes, int d, int end) {
    if (lanes % PANEL_LANES != 0 || (end - d) % PANEL_DEPTH != 0) return false;
    if (!b->rows->quantised || b->rows->cols % PANEL_DEPTH != 0) return false;
    for (int l = lane; l < lane + lanes; l += PANEL_LANES)
        if (!lie_together(b, l)) return false;
    return true;
}

/* A tile of one row, of the lanes from `lane` on and the depths [d, end). False where it is not for here, and nothing
 * is done. */
static inline bool one_row_tile(const Tile *tile, const Panels *b, int lane, int d, int end) {
    vf sum[TILE_PANELS];
    float sums[TILE_PANELS * PANEL_LANES];
    const int panels = tile->lanes / PANEL_LANES;
    if (tile->rows != 1 || !one_row_fits(b, lane, tile->lanes, d, end)) return false;
    if (b->rows->quantised->kind == QUANTISED_NF4)
        one_row_panels(sum, tile->a, b, true, lane, panels, d, end);
    else
        one_row_panels(sum, tile->a, b, false, lane, panels, d, end);
    for (int p = 0; p < panels; p++) vf_store(sums + p * PANEL_LANES, sum[p]);
    tile_store(tile, sums, TILE_PANELS * PANEL_LANES);
    return true;
}

#else

static inline bool one_row_tile(const Tile *tile, const Panels *b, int lane, int d, int end) {
    (void)tile, (void)b, (void)lane, (void)d, (void)end;
    return false;
}

#endif

#endif
