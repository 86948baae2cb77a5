/* The products of bf16.h for any instruction set: blocks, threads, packing in cache. Included by a <set>_products.c
 * behind its micro-kernel (tile.h says what that is) and these sizes:
 *
 *   ROW_BLOCK      rows of A that stay in L2 while all of a packed B passes by
 *   FROZEN_ROWS    the same where B is packed on the way: as many as pay for the packing
 *   DEPTH_BLOCK    depths summed in registers before a tile goes to C or to partial sums. Where they end depends on the
 *                  depth alone, so a sum has one order, whatever the threads and whether B was packed before
 *   PARTIAL_SUMS   room for such sums, in floats; else FROZEN_ROWS rows of one group of panels
 *   FEW_ROWS       at most so many rows of A take a B that is not packed a few depths at a time, which stay in L1; 0:
 * the tiles are not those of registers.h FORK_WORK      multiply-adds worth a fork and join; else what VDPBF16PS does
 * in 5 µs WEIGHT_ROWS    rows of a weight's gradient whose dy is packed at a time WEIGHT_TOKENS  tokens summed before
 * the gradient is read and written
 *
 * A product is the nest (Goto and van de Geijn 2008, with the roles of the two operands exchanged, since it is B that
 * comes packed)
 *
 *   block of rows of A → as many groups of panels of B as have room for their partial sums → block of depths (A's piece
 *   in L2) → group (its piece in L2 or L1) → tile of C
 *
 * where the next piece of B is prefetched into L2 during the tiles of the present one. Threads share out rows; where
 * there are too few, or B must be packed, they share out lanes. The gradient of a weight is the same nest with
 * A = dyᵀ, packed by each thread for its rows, and B = x, packed by all threads together.
 */
#ifndef CRIA_KERNELS_PRODUCTS_DRIVER_H
#define CRIA_KERNELS_PRODUCTS_DRIVER_H

#include <omp.h>

#include "model/core/threads.h"
#include "model/kernels/products/one_row.h"
#include "model/kernels/products/workspace.h"

/* What a thread does before its tiles and after them: AMX configures its registers and releases them, so that they are
 * never left to other code (`finish`, callers of blocks). */
#ifndef TILES_BEGIN
#define TILES_BEGIN() ((void)0)
#define TILES_END() ((void)0)
#endif

#ifndef PARTIAL_SUMS
#define PARTIAL_SUMS ((FROZEN_ROWS + TILE_ROWS) * GROUP_LANES)
#endif
/* Whether a block of A is copied first, as the left operand of a gradient lies, for so many lanes. */
#ifndef A_COPIED
#define A_COPIED(product, lanes) ((void)(lanes), false)
#define A_COPY(to, product, row, rows, d, end) ((void)0)
#define A_COPY_ELEMENTS 0
#endif
/* Whether a gradient's blocks of tokens are added up apart, before the sum is added to dw; else they are added to dw
 * one after the other. */
#ifndef WEIGHT_APART
#define WEIGHT_APART false
#endif
#ifndef FORK_WORK
#define FORK_WORK (1 << 19)
#endif

enum { GROUP_LANES = TILE_PANELS * PANEL_LANES, CACHE_LINE = 64 };
enum { FEW_DEPTHS = 128 }; /* whole blocks of a quantised weight, and 12 KiB of panels */

_Static_assert(DEPTH_BLOCK % PANEL_DEPTH == 0 && WEIGHT_TOKENS % PANEL_DEPTH == 0, "whole pairs and tiles of depths");
_Static_assert(FROZEN_ROWS >= ROW_BLOCK && PARTIAL_SUMS >= (FROZEN_ROWS + TILE_ROWS - 1) * GROUP_LANES,
               "the partial sums have room for whole tiles of either's rows");
_Static_assert(PARTIAL_SUMS * sizeof(float) + (DEPTH_BLOCK * GROUP_LANES + A_COPY_ELEMENTS) * sizeof(bf16) <=
                   WORKSPACE_THREAD,
               "partial sums, packed panels and a copy of A fit the workspace");
enum { LEFT_ELEMENTS = (WEIGHT_ROWS + TILE_ROWS) * (WEIGHT_TOKENS + PANEL_DEPTH) };
_Static_assert(LEFT_ELEMENTS * sizeof(bf16) + (WEIGHT_ROWS + TILE_ROWS) * GROUP_LANES * sizeof(float) <=
                   WORKSPACE_THREAD,
               "the packed left operand and partial sums fit the workspace");
_Static_assert(GROUP_LANES *WEIGHT_TOKENS * sizeof(bf16) <= WORKSPACE_SHARED, "so does a group of the right one");

static inline int round_up(int n, int to) {
    return (n + to - 1) / to * to;
}
static inline int at_most(int a, int b) {
    return a < b ? a : b;
}
static inline size_t c_bytes(Dtype dtype) {
    return dtype == DTYPE_BF16 ? sizeof(bf16) : sizeof(float);
}
/* Lanes of the next group where `lanes` are left: panels are dealt out evenly, since narrow tiles cost more. */
static inline int group_lanes(int lanes) {
    int panels = (lanes + PANEL_LANES - 1) / PANEL_LANES, groups = (panels + TILE_PANELS - 1) / TILE_PANELS;
    return at_most(lanes, (panels + groups - 1) / groups * PANEL_LANES);
}

/* What will be wanted after the present panels: the next ones, or the part of a row-major weight that makes them. */
typedef struct {
    const bf16 *b; /* NULL: not packed */
    size_t panel_stride;
    int panels, depth;
    const RowMajor *rows; /* NULL: nothing, if b is NULL too */
    int first_row, n_rows, first_col, n_cols;
} Ahead;

static inline void prefetch_to_l2(const char *from, const char *end) {
    for (; from < end; from += CACHE_LINE) __builtin_prefetch(from, 0, 2);
}

/* The i-th of n parts of it goes to L2. */
static inline void ahead_prefetch(const Ahead *next, int i, int n) {
    const int whole = next->b ? next->depth * PANEL_LANES : next->rows ? next->n_rows : 0;
    const int begin = (int)((long)whole * i / n), end = (int)((long)whole * (i + 1) / n);
    if (next->b) {
        const bf16 *panel = next->b;
        for (int p = 0; p < next->panels; p++, panel += next->panel_stride)
            prefetch_to_l2((const char *)(panel + begin), (const char *)(panel + end));
    } else if (next->rows) {
        for (int r = begin; r < end; r++) {
            const Span row = row_major_span(next->rows, next->first_row + r, next->first_col, next->n_cols);
            prefetch_to_l2((const char *)((uintptr_t)row.begin / CACHE_LINE * CACHE_LINE), row.end);
        }
    }
}

/* All tiles of a column of `rows` rows; a_tile: elements of A between tiles. `tile` describes the first. */
static void tiles_down(Tile tile, size_t a_tile, int rows, const Ahead *next) {
    int n = (rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int i = 0; i < n; i++) {
        tile.rows = at_most(TILE_ROWS, rows - i * TILE_ROWS);
        ahead_prefetch(next, i, n);
        tile_multiply(&tile);
        tile.a += a_tile;
        tile.c = (char *)tile.c + TILE_ROWS * tile.c_stride * c_bytes(tile.c_dtype);
        if (tile.partial) tile.partial += TILE_ROWS * GROUP_LANES;
    }
}

/* ---- product ---- */

/* Where a thread packs and adds up: the parts of its workspace. */
typedef struct {
    float *partial; /* [groups][rows, GROUP_LANES] */
    bf16 *panels;   /* [TILE_PANELS, DEPTH_BLOCK, 16] */
    bf16 *a;        /* [rows, DEPTH_BLOCK] in tiles, where A is copied */
} ProductSpace;

static ProductSpace product_space(const Workspace *w, int thread) {
    char *own = w->own + (size_t)thread * WORKSPACE_THREAD;
    void *partial = own, *panels = own + PARTIAL_SUMS * sizeof(float);
    return (ProductSpace){partial, panels, (bf16 *)panels + DEPTH_BLOCK * GROUP_LANES};
}

/* Depths of a block: as even as whole tiles of 32 allow. */
static inline int depth_step(int depth) {
    int blocks = (depth + DEPTH_BLOCK - 1) / DEPTH_BLOCK;
    return blocks <= 1 ? round_up(depth, PANEL_DEPTH) : round_up((depth + blocks - 1) / blocks, PANEL_DEPTH);
}

/* Where the groups end that begin at `lane` and whose partial sums are kept at a time. */
static int groups_end(int lane, int end_lane, int rows) {
    int groups = PARTIAL_SUMS / (round_up(rows, TILE_ROWS) * GROUP_LANES);
    for (; groups > 0 && lane < end_lane; groups--) lane += group_lanes(end_lane - lane);
    return lane;
}

/* B of the lanes from `lane` on and the depths [d, end), packed now if it is not yet. */
static void tile_panels(Tile *tile, const Panels *b, const ProductSpace *space, int lane, int d, int end) {
    if (b->packed) {
        tile->panel_stride = (size_t)round_up(b->depth, PANEL_DEPTH) * PANEL_LANES;
        tile->b = b->packed + (size_t)(lane / PANEL_LANES) * tile->panel_stride + (size_t)d * PANEL_LANES;
    } else {
        tile->panel_stride = (size_t)round_up(end - d, PANEL_DEPTH) * PANEL_LANES;
        tile->b = space->panels;
        panels_pack(space->panels, tile->panel_stride, b, lane, lane + tile->lanes, d, end);
    }
}

/* The group of lanes from `lane` on, the depths from d on; nothing, if end_lane is reached. `stride`: of packed panels.
 */
static Ahead panels_ahead(const Panels *b, size_t stride, int lane, int end_lane, int d, int step) {
    if (lane >= end_lane) return (Ahead){0};
    const int lanes = group_lanes(end_lane - lane), depth = at_most(step, b->depth - d);
    if (b->packed) {
        return (Ahead){.b = b->packed + (size_t)(lane / PANEL_LANES) * stride + (size_t)d * PANEL_LANES,
                       .panel_stride = stride,
                       .panels = round_up(lanes, PANEL_LANES) / PANEL_LANES,
                       .depth = depth};
    }
    if (b->transposed)
        return (Ahead){.rows = b->rows, .first_row = d, .n_rows = depth, .first_col = lane, .n_cols = lanes};
    return (Ahead){.rows = b->rows, .first_row = lane, .n_rows = lanes, .first_col = d, .n_cols = depth};
}

/* C of rows × lanes over the depths [d, end). A bf16 C of several blocks of depths is summed in fp32, in `partial`. */
typedef struct {
    int row, rows, lane, lanes, d, end;
    bool copied; /* A, in the workspace */
    float *partial;
    Ahead next;
} Piece;

/* A tile's column of few rows while B is packed FEW_DEPTHS of it at a time: the sums go on in registers from one part
 * to the next, so they are those of whole panels, bit for bit. The rows of B that are wanted next are fetched
 * meanwhile. */
static void few_rows_down(Tile tile, const Panels *b, const ProductSpace *space, const Piece *at) {
    float carry[FEW_ROWS > 0 ? FEW_ROWS * GROUP_LANES : 1];
    const bf16 *a = tile.a;
    tile.rows = at->rows;
    if (one_row_tile(&tile, b, at->lane, at->d, at->end)) return;
    void *c = tile.c;
    const float *partial = tile.partial;
    for (int d = at->d, end; d < at->end; d = end) {
        end = at_most(d + FEW_DEPTHS, at->end);
        tile.depth = end - d;
        tile.panel_stride = (size_t)round_up(tile.depth, PANEL_DEPTH) * PANEL_LANES;
        tile.b = space->panels;
        tile.first = d == at->d;
        tile.last = end == at->end;
        panels_pack_ahead(space->panels, tile.panel_stride, b, at->lane, at->lane + at->lanes, d, end, at->lanes);
        for (int r = 0; r < at->rows; r += TILE_ROWS) {
            tile.rows = at_most(TILE_ROWS, at->rows - r);
            tile.a = a + (size_t)r * tile.a_row + (d - at->d);
            tile.c = (char *)c + (size_t)r * tile.c_stride * c_bytes(tile.c_dtype);
            tile.partial = partial ? partial + (size_t)r * GROUP_LANES : NULL;
            tile.carry = carry + (size_t)r * GROUP_LANES;
            tile_multiply(&tile);
        }
    }
}

static void product_piece(const Product *p, const ProductSpace *space, const Piece *at) {
    const bool last = at->end == p->b.depth, apart = p->c_dtype == DTYPE_BF16;
    Tile tile = {.lanes = at->lanes, .depth = at->end - at->d, .a_row = p->a_stride, .a_pair = 2};
    size_t a_tile = TILE_ROWS * p->a_stride;
    tile.a = p->a + (size_t)at->row * p->a_stride + at->d;
    if (at->copied) {
        const size_t depth = (size_t)round_up(tile.depth, PANEL_DEPTH);
        tile.a = space->a;
        tile.a_row = left_row(depth);
        tile.a_pair = left_pair(depth);
        a_tile = TILE_ROWS * depth;
    }
    const bool few = !p->b.packed && !p->b.transposed && at->rows <= FEW_ROWS;
    if (!few) tile_panels(&tile, &p->b, space, at->lane, at->d, at->end);
    tile.partial = apart && at->d > 0 ? at->partial : NULL;
    if (apart && !last) {
        tile.c = at->partial;
        tile.c_stride = GROUP_LANES;
        tile.c_dtype = DTYPE_F32;
    } else {
        tile.c = (char *)p->c + ((size_t)at->row * p->c_stride + (size_t)at->lane) * c_bytes(p->c_dtype);
        tile.c_stride = p->c_stride;
        tile.c_dtype = p->c_dtype;
        tile.accumulate = p->accumulate || (at->d > 0 && !apart);
    }
    if (few)
        few_rows_down(tile, &p->b, space, at);
    else
        tiles_down(tile, a_tile, at->rows, &at->next);
}

/* The groups [lane, end) of a row block; more groups follow them up to end_lane. */
static void product_groups(const Product *p, const ProductSpace *space, int row, int rows, int lane, int end,
                           int end_lane) {
    const int depth = p->b.depth, step = depth_step(depth);
    const size_t stride = (size_t)round_up(depth, PANEL_DEPTH) * PANEL_LANES;
    for (int d = 0; d < depth; d += step) {
        Piece at = {.row = row, .rows = rows, .d = d, .end = at_most(d + step, depth), .partial = space->partial};
        at.copied = A_COPIED(p, end - lane);
        if (at.copied) A_COPY(space->a, p, row, rows, d, at.end);
        for (at.lane = lane; at.lane < end; at.lane += at.lanes) {
            at.lanes = group_lanes(end_lane - at.lane);
            if (at.lane + at.lanes < end)
                at.next = panels_ahead(&p->b, stride, at.lane + at.lanes, end_lane, d, step);
            else if (at.end < depth)
                at.next = panels_ahead(&p->b, stride, lane, end_lane, at.end, step);
            else
                at.next = panels_ahead(&p->b, stride, end, end_lane, 0, step);
            product_piece(p, space, &at);
            at.partial += (size_t)round_up(rows, TILE_ROWS) * GROUP_LANES;
        }
    }
}

/* A rectangle of C; `finish`: its rows are whole. */
static void product_part(const Product *p, const ProductSpace *space, size_t row, size_t end_row, size_t lane,
                         size_t end_lane, bool finish) {
    const int block = p->b.packed ? ROW_BLOCK : FROZEN_ROWS;
    for (int r = (int)row; r < (int)end_row; r += block) {
        int rows = at_most(block, (int)end_row - r);
        TILES_BEGIN();
        for (int l = (int)lane, end; l < (int)end_lane; l = end) {
            end = groups_end(l, (int)end_lane, rows);
            product_groups(p, space, r, rows, l, end, (int)end_lane);
        }
        TILES_END();
        if (finish && p->finish) p->finish(p->context, r, rows);
    }
}

/* Threads in a grid over C: row parts × lane parts. */
typedef struct {
    int rows, lanes;
} Grid;

/* Rows alone where every thread has a block of them. Else the grid whose largest part is the least work, in tiles'
 * rows: a panel costs as much as `load` of them to be fetched (and packed). */
static Grid grid_of(int rows, int lanes, int load, int threads) {
    enum { ROWS_ENOUGH = 96, FETCHED = 1 };
    if (load <= FETCHED && rows >= threads * ROWS_ENOUGH) return (Grid){threads, 1};
    long row_tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, panels = (lanes + PANEL_LANES - 1) / PANEL_LANES, least = -1;
    Grid best = {threads, 1};
    for (int l = 1; l <= threads; l++) {
        if (threads % l != 0) continue;
        int r = threads / l;
        long cost = ((row_tiles + r - 1) / r + load) * ((panels + l - 1) / l);
        if (least >= 0 && cost >= least) continue;
        least = cost;
        best = (Grid){r, l};
    }
    return best;
}

static void grid_part(Grid grid, int thread, int rows, int lanes, size_t range[4]) {
    threads_range((size_t)rows, TILE_ROWS, thread / grid.lanes, grid.rows, &range[0], &range[1]);
    threads_range((size_t)lanes, PANEL_LANES, thread % grid.lanes, grid.lanes, &range[2], &range[3]);
}

/* Threads worth starting: a fork and join costs some microseconds. */
static int threads_for(const Workspace *w, int m, int n, int k) {
    if (omp_in_parallel() || (double)m * n * k < FORK_WORK) return 1;
    return at_most(threads_count(), w->threads);
}

static void finish_rows(const Product *p, int thread, int threads) {
    enum { FINISH_ROWS = 32 };
    size_t begin, end;
    threads_range((size_t)p->m, 1, thread, threads, &begin, &end);
    for (size_t r = begin; r < end; r += FINISH_ROWS)
        p->finish(p->context, (int)r, at_most(FINISH_ROWS, (int)(end - r)));
}

static void driver_product(const Product *p) {
    enum { LOAD_PACKED = 1, LOAD_FROZEN = 4 };
    if (p->m <= 0) return;
    const Workspace w = workspace();
    const int threads = threads_for(&w, p->m, p->b.lanes, p->b.depth);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int thread = omp_get_thread_num() % threads, count = threads > 1 ? omp_get_num_threads() : 1;
        const Grid grid = grid_of(p->m, p->b.lanes, p->b.packed ? LOAD_PACKED : LOAD_FROZEN, count);
        const ProductSpace space = product_space(&w, thread);
        size_t part[4];
        grid_part(grid, thread, p->m, p->b.lanes, part);
        product_part(p, &space, part[0], part[1], part[2], part[3], grid.lanes == 1);
        if (grid.lanes > 1 && p->finish) {
#pragma omp barrier
            finish_rows(p, thread, count);
        }
    }
}

/* ---- the gradient of a weight ---- */

/* One token block of dw += dyᵀ·x, with x packed. */
typedef struct {
    float *dw;
    size_t dw_stride;
    const bf16 *dy;
    size_t dy_stride;
    int tokens, depth; /* room in the packings: whole tiles of 32 tokens at least */
    const bf16 *right; /* panels of x */
    float *partial;    /* NULL, or [rows, GROUP_LANES] where blocks of tokens are added up apart */
} Gradient;

/* Streams that are a power of two apart share the few ways of a set of the caches. */
static inline int spread_depth(int tokens) {
    return round_up(tokens, PANEL_DEPTH) + PANEL_DEPTH;
}

/* The rows [row, row + rows), packed in `left`, of one group of columns. The blocks of tokens are added up while dw, or
 * the partial sums, are in cache. */
static void gradient_group(const Gradient *g, const bf16 *left, int row, int rows, int col, int cols, int end_col) {
    const size_t depth = (size_t)g->depth, panel_stride = depth * PANEL_LANES;
    const Panels right = {.lanes = end_col, .depth = round_up(g->tokens, 2), .packed = g->right};
    const int step = depth_step(right.depth);
    for (int d = 0; d < right.depth; d += step) {
        const int end = at_most(d + step, right.depth);
        Tile tile = {.lanes = cols, .depth = end - d, .accumulate = true};
        tile.a_row = left_row(depth);
        tile.a_pair = left_pair(depth);
        tile.a = left + (size_t)(d / 2) * tile.a_pair;
        tile.b = g->right + (size_t)(col / PANEL_LANES) * panel_stride + (size_t)d * PANEL_LANES;
        tile.panel_stride = panel_stride;
        tile.c = g->dw + (size_t)row * g->dw_stride + col;
        tile.c_stride = g->dw_stride;
        tile.c_dtype = DTYPE_F32;
        if (d > 0) tile.partial = g->partial;
        if (g->partial && end < right.depth) {
            tile.c = g->partial;
            tile.c_stride = GROUP_LANES;
            tile.accumulate = false;
        }
        const Ahead next = end < right.depth ? panels_ahead(&right, panel_stride, col, end_col, end, step)
                                             : panels_ahead(&right, panel_stride, col + cols, end_col, 0, step);
        tiles_down(tile, TILE_ROWS * depth, rows, &next);
    }
}

/* Rows [row, end_row) × columns [col, end_col) of dw; `left` is where dy of `block` rows is packed. */
static void gradient_part(const Gradient *g, bf16 *left, size_t row, size_t end_row, size_t col, size_t end_col,
                          int block) {
    TILES_BEGIN();
    for (int r = (int)row; r < (int)end_row; r += block) {
        int rows = at_most(block, (int)end_row - r);
        left_pack(left, (size_t)g->depth, g->dy + r, g->dy_stride, g->tokens, rows);
        for (int c = (int)col, cols; c < (int)end_col; c += cols) {
            cols = group_lanes((int)end_col - c);
            gradient_group(g, left, r, rows, c, cols, (int)end_col);
        }
    }
    TILES_END();
}

/* This thread's share of packing x[tokens, cols]. */
static void right_pack_part(bf16 *right, int depth, const bf16 *x, size_t x_stride, int tokens, int cols, int thread,
                            int threads) {
    const size_t panel_stride = (size_t)depth * PANEL_LANES;
    size_t begin, end;
    threads_range((size_t)tokens, PANEL_DEPTH, thread, threads, &begin, &end);
    tokens_pack(right, panel_stride, x, x_stride, (int)begin, (int)end, cols);
    if (begin < end && (int)end == tokens)
        tokens_pad(right, panel_stride, round_up(tokens, 2), round_up(tokens, PANEL_DEPTH), cols);
}

static void driver_product_weight(float *dw, size_t dw_stride, const bf16 *dy, size_t dy_stride, const bf16 *x,
                                  size_t x_stride, int n_tokens, int rows, int cols) {
    if (n_tokens <= 0) return;
    const Workspace w = workspace();
    const int threads = threads_for(&w, n_tokens, rows, cols);
    const int blocks = (n_tokens + WEIGHT_TOKENS - 1) / WEIGHT_TOKENS;
    const int step = round_up((n_tokens + blocks - 1) / blocks, PANEL_DEPTH);
    const int depth = spread_depth(step);
    const int col_step = (int)(WORKSPACE_SHARED / sizeof(bf16) / (size_t)depth) / GROUP_LANES * GROUP_LANES;
    bf16 *right = (bf16 *)w.shared;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int thread = omp_get_thread_num() % threads, count = threads > 1 ? omp_get_num_threads() : 1;
        bf16 *left = (void *)(w.own + (size_t)thread * WORKSPACE_THREAD);
        float *partial = WEIGHT_APART ? (void *)(left + LEFT_ELEMENTS) : NULL;
        for (int c = 0; c < cols; c += col_step)
            for (int t = 0; t < n_tokens; t += step) {
                const int n = at_most(step, n_tokens - t), width = at_most(col_step, cols - c);
                right_pack_part(right, depth, x + (size_t)t * x_stride + c, x_stride, n, width, thread, count);
#pragma omp barrier
                Gradient g = {dw + c, dw_stride, dy + (size_t)t * dy_stride, dy_stride, n, depth, right, partial};
                size_t part[4];
                grid_part(grid_of(rows, width, 1, count), thread, rows, width, part);
                gradient_part(&g, left, part[0], part[1], part[2], part[3], WEIGHT_ROWS);
#pragma omp barrier
            }
    }
}

/* ---- blocks ---- */

static void driver_multiply(float *c, size_t c_stride, bool accumulate, const bf16 *a, size_t a_stride, int m,
                            const bf16 *packed, size_t panel_stride, int lanes, int depth) {
    const Ahead nothing = {0};
    const int step = depth_step(depth);
    TILES_BEGIN();
    for (int lane = 0, n; lane < lanes; lane += n) {
        n = group_lanes(lanes - lane);
        for (int d = 0; d < depth; d += step) {
            Tile tile = {.lanes = n, .depth = at_most(step, depth - d), .a = a + d, .a_row = a_stride, .a_pair = 2};
            tile.b = packed + (size_t)(lane / PANEL_LANES) * panel_stride + (size_t)d * PANEL_LANES;
            tile.panel_stride = panel_stride;
            tile.c = c + lane;
            tile.c_stride = c_stride;
            tile.c_dtype = DTYPE_F32;
            tile.accumulate = accumulate || d > 0;
            tiles_down(tile, TILE_ROWS * a_stride, m, &nothing);
        }
    }
    TILES_END();
}

static void driver_multiply_transposed(float *c, size_t c_stride, const bf16 *a, size_t a_stride, const bf16 *b,
                                       size_t b_stride, int n_tokens, int rows, int cols, float *scratch) {
    if (n_tokens <= 0) return;
    const int depth = round_up(n_tokens, PANEL_DEPTH);
    void *room = scratch;
    bf16 *right = room, *left = right + (size_t)round_up(cols, PANEL_LANES) * (size_t)depth;
    right_pack_part(right, depth, b, b_stride, n_tokens, cols, 0, 1);
    Gradient g = {c, c_stride, a, a_stride, n_tokens, depth, right, NULL};
    gradient_part(&g, left, 0, (size_t)rows, 0, (size_t)cols, rows);
}

/* Fills the rows of the table; without memory to pack in, they stay as they are. */
static void driver_table(Bf16Kernels *table) {
    static const ProductBlocks blocks = {driver_multiply, driver_multiply_transposed};
    if (!workspace_reserve()) return;
    table->pack = panels_pack;
    table->blocks = &blocks;
    table->product = driver_product;
    table->product_weight = driver_product_weight;
}

#endif
