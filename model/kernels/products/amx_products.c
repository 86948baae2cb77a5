/* Products with AMX tiles: TDPBF16PS multiplies 16 rows × 32 depths by 32 depths × 16 lanes, 8,192 multiply-adds, and
 * one can start every 16 cycles. A tile of the driver is 32 rows × 2 panels of C in four registers, with two of A and
 * two of B.
 *
 * What the sizes rest on: arithmetic with the figures of Intel's optimization manual (248966, chapter on AMX) for
 * Sapphire Rapids (L1d 48 KiB, L2 2 MiB of which about 48 bytes arrive per cycle); none of it was timed when this was
 * written, since the CPU at hand had no tiles and the tests run this file on emulated ones. `make tune` on a CPU with
 * tiles is the judge.
 *   - 32 depths of a 2 × 2 block load 4 tiles of 1 KiB for 4 products: 4 KiB in 64 cycles. All from L2 they need 85
 *     (64 bytes per cycle are wanted and 48 arrive: 3/4 of the peak). B's piece is used by every tile down a column:
 *     DEPTH_BLOCK keeps it, the rows of A that pass and a tile of C (20 + 20 + 4 KiB) in L1, so that L2 gives A alone:
 *     32 bytes per cycle.
 *   - a tile of partial sums comes and goes as 4 KiB each way per 10 steps of 64 cycles: 13 bytes per cycle, in L2.
 *   - ROW_BLOCK rows of A × 512 lanes of B are summed over all depths while their partial sums (1 MiB) and 320 depths
 * of A (320 KiB) stay in L2. From L3 or memory come 512 lanes × 32 depths of B and 512 rows × 32 depths of A (32 KiB
 * each) per 16 × 16 blocks of 64 cycles: 4 bytes per cycle, of them B's 2 perhaps from memory, 4 GB/s at 2.2 GHz. A
 * depth of one block (288) needs no partial sums, and A comes once.
 *   - a weight's gradient: WEIGHT_ROWS rows of dy, 2,048 tokens deep (768 KiB), stay in L2 while x passes by from L3,
 * 32 columns × 32 tokens (2 KiB) per 6 blocks: 5 bytes per cycle. The gradient, whose rows may lie a power of two
 *     apart, comes and goes once for 2,048 tokens: 4 KiB each way per 64 steps, 2 bytes per cycle.
 */
#include "model/kernels/products/amx_tiles.h"
#include "model/kernels/products/products.h"

#if defined(TILES_CONFIGURE)
#include "model/kernels/products/pack.h"

enum { TILE_ROWS = 32, TILE_PANELS = 2 };
enum { ROW_BLOCK = 512, FROZEN_ROWS = 1024, FEW_ROWS = 0, DEPTH_BLOCK = 320, WEIGHT_ROWS = 192, WEIGHT_TOKENS = 2048 };
#define PARTIAL_SUMS (ROW_BLOCK * 512)
#define WEIGHT_APART true
#define FORK_WORK (1 << 22)
#define A_COPIED(product, lanes) a_copied(product, lanes)
#define A_COPY(to, product, row, rows, d, end) a_copy(to, product, row, rows, d, end)
#define A_COPY_ELEMENTS (FROZEN_ROWS * DEPTH_BLOCK)

enum { REGISTER_ROWS = 16, REGISTER_BYTES = 64, WIDTH = TILE_PANELS * PANEL_LANES };

/* One shape for all: parts of tiles pass through buffers, since a new configuration costs more than a copy. */
static const TileConfig whole_tiles = {
    .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
_Static_assert(REGISTER_BYTES == PANEL_DEPTH * sizeof(bf16) && REGISTER_BYTES == PANEL_LANES * sizeof(float),
               "a row of a register is 32 depths of A, a pair of depths of a panel, or 16 sums");

#define TILES_BEGIN() TILES_CONFIGURE(&whole_tiles)
#define TILES_END() TILES_RELEASE()

/* The left operand of a weight's gradient: [row / 32][token / 32][row % 32][token % 32], so that the two registers of
 * a step are 2 KiB in one piece. */
static inline size_t left_row(size_t depth) {
    (void)depth;
    return PANEL_DEPTH;
}
static inline size_t left_pair(size_t depth) {
    (void)depth;
    return 2 * TILE_ROWS;
}

/* 32 tokens × 16 rows of dy to 16 rows × 32 tokens: pairs of tokens are joined, then turned as words of 32 bits. */
static TILE_INLINE void left_square(bf16 *to, const bf16 *dy, size_t stride, int n_tokens, int rows) {
    __m512i pair[16];
    for (int i = 0; i < 16; i++) {
        const char *even = 2 * i < n_tokens ? (const char *)(dy + (size_t)(2 * i) * stride) : NULL;
        const char *odd = 2 * i + 1 < n_tokens ? (const char *)(dy + (size_t)(2 * i + 1) * stride) : NULL;
        pair[i] = join_pairs(load_lanes(even, DTYPE_BF16, 0, rows), load_lanes(odd, DTYPE_BF16, 0, rows));
    }
    transpose16(pair);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * PANEL_DEPTH, pair[i]);
}

/* Rows and tokens are padded with zeros to whole registers; `depth` is n_tokens rounded up to 32. */
static void left_pack(bf16 *to, size_t depth, const bf16 *dy, size_t stride, int n_tokens, int rows) {
    for (int r = 0; r < rows; r += REGISTER_ROWS) {
        bf16 *square = to + (size_t)(r / TILE_ROWS) * TILE_ROWS * depth + (size_t)(r % TILE_ROWS) * PANEL_DEPTH;
        for (int t = 0; t < n_tokens; t += PANEL_DEPTH, square += TILE_ROWS * PANEL_DEPTH)
            left_square(square, dy + (size_t)t * stride + r, stride, n_tokens - t, rows - r);
    }
}

/* Rows of A whose stride is a multiple of 2 KiB share two sets of L1 or one, 12 lines each, so that a register's 16
 * rows throw out each other and B: those are copied, in the layout of `left`, where they meet several groups of lanes.
 * (On the CPU at hand, loads of as many lines in the same order took 1.7 times as long with such a stride.) */
static bool a_copied(const Product *p, int lanes) {
    enum { SHARED = 2048, LANES = 4 * WIDTH };
    return p->a_stride * sizeof *p->a % SHARED == 0 && lanes >= LANES;
}

static void a_copy(bf16 *to, const Product *p, int row, int rows, int d, int end) {
    const size_t depth = (size_t)(end - d + PANEL_DEPTH - 1) / PANEL_DEPTH * PANEL_DEPTH;
    for (size_t r = 0; r < (size_t)rows; r++) {
        const bf16 *a = p->a + ((size_t)row + r) * p->a_stride + d;
        bf16 *line = to + r / TILE_ROWS * TILE_ROWS * depth + r % TILE_ROWS * PANEL_DEPTH;
        for (int left = end - d; left > 0; left -= PANEL_DEPTH, a += PANEL_DEPTH, line += TILE_ROWS * PANEL_DEPTH)
            _mm512_storeu_si512(line, load_depths((const char *)a, DTYPE_BF16, 0, left));
    }
}

/* Registers: 0 1 / 2 3 are C, 4 / 5 are A's rows, 6 7 are B's panels. Constants at every call. */
static TILE_INLINE void tile_start(const int halves, const int panels, const float *sums, size_t width) {
    const size_t stride = width * sizeof *sums;
    if (!sums) {
        TILES_ZERO(0);
        if (panels > 1) TILES_ZERO(1);
        if (halves > 1) TILES_ZERO(2);
        if (halves > 1 && panels > 1) TILES_ZERO(3);
        return;
    }
    const float *below = sums + REGISTER_ROWS * width;
    TILES_LOAD(0, sums, stride);
    if (panels > 1) TILES_LOAD(1, sums + PANEL_LANES, stride);
    if (halves > 1) TILES_LOAD(2, below, stride);
    if (halves > 1 && panels > 1) TILES_LOAD(3, below + PANEL_LANES, stride);
}

static TILE_INLINE void tile_step(const int halves, const int panels, const bf16 *a, size_t a_row, const bf16 *b,
                                  size_t panel_stride) {
    const size_t stride = a_row * sizeof *a;
    TILES_LOAD(6, b, REGISTER_BYTES);
    TILES_LOAD(4, a, stride);
    TILES_DOT(0, 4, 6);
    if (panels > 1) {
        TILES_LOAD(7, b + panel_stride, REGISTER_BYTES);
        TILES_DOT(1, 4, 7);
    }
    if (halves > 1) {
        TILES_LOAD(5, a + REGISTER_ROWS * a_row, stride);
        TILES_DOT(2, 5, 6);
        if (panels > 1) TILES_DOT(3, 5, 7);
    }
}

static TILE_INLINE void tile_end(const int halves, const int panels, float *sums, size_t width) {
    const size_t stride = width * sizeof *sums;
    float *below = sums + REGISTER_ROWS * width;
    TILES_STORE(0, sums, stride);
    if (panels > 1) TILES_STORE(1, sums + PANEL_LANES, stride);
    if (halves > 1) TILES_STORE(2, below, stride);
    if (halves > 1 && panels > 1) TILES_STORE(3, below + PANEL_LANES, stride);
}

/* The first n depths of the tile's rows; what follows them in `edge` [TILE_ROWS, PANEL_DEPTH] up to 32 becomes zero. */
static void edge_fill(bf16 *edge, const Tile *t, const bf16 *a, int n) {
    for (size_t r = 0; r < (size_t)t->rows; r++)
        _mm512_storeu_si512(edge + r * PANEL_DEPTH, load_depths((const char *)(a + r * t->a_row), DTYPE_BF16, 0, n));
}

/* C's own fp32 sums, to be gone on with: rows × lanes of them, zeros behind. */
static void sums_fill(float *sums, const Tile *t) {
    const float *c = t->c;
    memset(sums, 0, TILE_ROWS * WIDTH * sizeof *sums);
    for (size_t r = 0; r < (size_t)t->rows; r++)
        memcpy(sums + r * WIDTH, c + r * t->c_stride, (size_t)t->lanes * sizeof *sums);
}

/* C is fetched during the sums, to be there when they are done. */
static inline void c_prefetch(const Tile *t) {
    const size_t row = t->c_stride * (t->c_dtype == DTYPE_BF16 ? sizeof(bf16) : sizeof(float));
    const char *c = t->c;
    for (int r = 0; r < t->rows; r++, c += row) __builtin_prefetch(c, 1);
}

/* A bf16 C of whole panels */
static TILE_INLINE void narrow(const int panels, const Tile *t, const float *sums) {
    bf16 *c = t->c;
    for (int r = 0; r < t->rows; r++, sums += WIDTH, c += t->c_stride) {
        tile_narrow(c, vf_load(sums));
        if (panels > 1) tile_narrow(c + PANEL_LANES, vf_load(sums + PANEL_LANES));
    }
}

/* halves and panels are constants at every call. Of fewer rows than registers have, and of a depth that is no multiple
 * of 32, A passes through `edge`: nothing beyond it is read, and NaN beyond its depth does not meet B's zeros.
 *
 * An fp32 C that is added to is where the sums start, whether the tile is whole or not: a row has the same bits in any
 * company. */
static TILE_INLINE void tile_registers(const int halves, const int panels, const Tile *t) {
    bf16 edge[TILE_ROWS * PANEL_DEPTH] __attribute__((aligned(64)));
    float sums[TILE_ROWS * WIDTH] __attribute__((aligned(64)));
    const bool rows = t->rows == halves * REGISTER_ROWS, lanes = t->lanes == panels * PANEL_LANES;
    const bool onward = t->accumulate && t->c_dtype == DTYPE_F32 && !t->partial;
    const bool straight = rows && lanes && t->c_dtype == DTYPE_F32 && (onward || !t->accumulate);
    const bf16 *a = t->a, *b = t->b;
    const size_t step = t->a_pair * (PANEL_DEPTH / 2), a_row = t->a_row, panel_stride = t->panel_stride;
    if (!rows) memset(edge, 0, sizeof edge);
    c_prefetch(t);
    if (onward && !straight) sums_fill(sums, t);
    tile_start(halves, panels, !onward ? t->partial : straight ? t->c : sums, straight && onward ? t->c_stride : WIDTH);
    int left = t->depth;
    for (; rows && left >= PANEL_DEPTH; left -= PANEL_DEPTH, a += step, b += PANEL_DEPTH * PANEL_LANES)
        tile_step(halves, panels, a, a_row, b, panel_stride);
    for (; left > 0; left -= PANEL_DEPTH, a += step, b += PANEL_DEPTH * PANEL_LANES) {
        edge_fill(edge, t, a, left);
        tile_step(halves, panels, edge, PANEL_DEPTH, b, panel_stride);
    }
    if (straight) {
        tile_end(halves, panels, t->c, t->c_stride);
        return;
    }
    tile_end(halves, panels, sums, WIDTH);
    Tile rest = *t;
    rest.partial = NULL; /* they, and C where it goes on, are in the sums since the start */
    rest.accumulate = t->accumulate && !onward;
    if (lanes && t->c_dtype == DTYPE_BF16 && !t->accumulate)
        narrow(panels, &rest, sums);
    else
        tile_store(&rest, sums, WIDTH);
}

static void tile_multiply(const Tile *t) {
    const bool low = t->rows <= REGISTER_ROWS, narrow = t->lanes <= PANEL_LANES;
    if (low && narrow)
        tile_registers(1, 1, t);
    else if (low)
        tile_registers(1, 2, t);
    else if (narrow)
        tile_registers(2, 1, t);
    else
        tile_registers(2, 2, t);
}

#include "model/kernels/products/driver.h"
#endif

#if defined(AMX_EMULATED)
void amx_emulated_products(Bf16Kernels *table) {
    driver_table(table);
}
#elif defined(TILES_CONFIGURE)
void amx_products(Bf16Kernels *table) {
    driver_table(table);
}
#else
void amx_products(Bf16Kernels *table) {
    (void)table;
}
#endif
