#include "model/kernels/head_plan.h"

#include "model/core/arena.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"

/* Tokens whose E is held at a time. */
static int block_tokens(int n_tokens, int vocab) {
    int tokens = HEAD_E / head_round_up(vocab, HEAD_GRAIN);
    if (tokens > HEAD_TOKENS_MAX) tokens = HEAD_TOKENS_MAX;
    if (tokens < HEAD_TOKENS_MIN) tokens = HEAD_TOKENS_MIN;
    return tokens < n_tokens ? tokens : n_tokens;
}

/* Blocks are as even as may be, and an odd number of HEAD_GRAIN long: streams of that length do not fall into the same
 * set of a cache when multiply_transposed packs them side by side (2 % of the whole). */
int head_block_step(int n_live, int block) {
    int blocks = (n_live + block - 1) / block, even = (n_live + blocks - 1) / blocks;
    int step = ((even + HEAD_GRAIN - 1) / HEAD_GRAIN | 1) * HEAD_GRAIN;
    return step < block ? step : block;
}

/* Words whose forward panels stay in L2. */
static int panel_lanes(int width, int chunk) {
    int lanes = HEAD_PANELS / head_round_up(width, PANEL_DEPTH) / HEAD_LANES * HEAD_LANES;
    if (lanes < PANEL_LANES) lanes = PANEL_LANES;
    return lanes < chunk ? lanes : chunk;
}

/* An odd number of cache lines, so that rows of a tile do not fall into the same set of a cache. */
static size_t odd_lines(int elements) {
    enum { LINE = 32 };
    return (((size_t)elements + LINE - 1) / LINE | 1) * LINE;
}

/* Elements of packed panels a worker has room for: one of the full width at least. */
static size_t panels_room(int width) {
    size_t one = panels_elements(PANEL_LANES, width);
    return one > HEAD_PANELS ? one : HEAD_PANELS;
}

static size_t place(size_t *bytes, size_t more) {
    size_t at = *bytes;
    *bytes += arena_round_up(more);
    return at;
}

HeadPlan head_plan(int n_tokens, int width, int rank, int vocab) {
    const int grains = (vocab + HEAD_GRAIN - 1) / HEAD_GRAIN, threads = threads_count();
    HeadPlan p = {.width = width, .rank = rank, .vocab = vocab, .workers = threads < grains ? threads : grains};
    p.u_at = rank > 0 ? head_round_up(width, PANEL_DEPTH) : width;
    const int part = (grains + p.workers - 1) / p.workers * HEAD_GRAIN;
    p.block = block_tokens(n_tokens, vocab);
    p.rows = n_tokens < HEAD_TOKENS_MAX ? n_tokens : HEAD_TOKENS_MAX;
    const int pieces = (part + HEAD_CHUNK - 1) / HEAD_CHUNK;
    p.chunk = head_round_up((part + pieces - 1) / pieces, HEAD_GRAIN);
    p.lanes = panel_lanes(width, p.chunk);
    p.x_stride = odd_lines(p.u_at + rank);
    p.dx_stride = (size_t)head_round_up(p.u_at + rank, PANEL_LANES);

    const size_t block = (size_t)p.block, rows = (size_t)p.rows, x_row = p.x_stride * sizeof(bf16);
    const size_t words = (size_t)(grains * HEAD_GRAIN);
    p.live_at = place(&p.bytes, (size_t)n_tokens * sizeof(int32_t));
    p.target_at = place(&p.bytes, 3 * rows * sizeof(float));
    p.x_rows_at = place(&p.bytes, rows * x_row);
    p.e_at = place(&p.bytes, block * words * sizeof(bf16));
    p.own_at = p.bytes;

    size_t own = 0;
    p.row_at = place(&own, rows * sizeof(HeadRow));
    p.c_at = place(&own, (size_t)HEAD_ROWS * (size_t)p.lanes * sizeof(float));
    p.dx_at = place(&own, block * p.dx_stride * sizeof(float));
    p.x_at = place(&own, block * x_row);
    p.panels_at = place(&own, panels_room(width) * sizeof(bf16));
    p.scratch_at = place(&own, product_block_scratch(p.block, p.chunk, width > rank ? width : rank) * sizeof(float));
    p.worker_bytes = own;
    p.bytes += own * (size_t)p.workers;
    return p;
}

/* The reference wants a row of logits or a column of their gradients for each thread. */
size_t head_scratch_bf16(int n_tokens, int width, int rank, int vocab) {
    size_t fast = head_plan(n_tokens, width, rank, vocab).bytes / sizeof(float);
    size_t reference = (size_t)threads_count() * (size_t)(n_tokens > vocab ? n_tokens : vocab);
    return fast > reference ? fast : reference;
}
