/* How the head of precision bf16 is cut, and where things lie in its scratch: the sizes of all blocks are chosen here.
 *
 *   block   tokens whose powers E[tokens, V] are held at a time. dW is read and written once for each block, frozen
 *           weights are packed once for each, so it is as large as HEAD_E allows: with 32,000 words, 256 tokens cost 3
 * % more time than 512, and 960 save nothing chunk   words whose part of E, [tokens, chunk], is made, or turned into
 * gradients, in L2 lanes   words whose panels stay in L2 while the block's rows pass by
 */
#ifndef CRIA_KERNELS_HEAD_PLAN_H
#define CRIA_KERNELS_HEAD_PLAN_H

#include <stddef.h>
#include <stdint.h>

enum {
    HEAD_GRAIN = 32,  /* words, least: a chunk begins at whole panels, and whole tiles of depths of the backward ones */
    HEAD_CHUNK = 480, /* words: ten groups of three panels, an odd number of cache lines */
    HEAD_LANES = 48,  /* words of a group */
    HEAD_ROWS = 16,   /* rows of a product whose results stay in L1 or L2 until they are powers */
    HEAD_PANELS = 192 << 10, /* elements of panels that stay in L2 */
    HEAD_E = 17 << 20,       /* elements of E: 34 MiB */
    HEAD_TOKENS_MIN = 256,
    HEAD_TOKENS_MAX = 992 /* beyond it nothing is gained */
};

/* A worker's sums of one token's row: Σ 2^(u − ref), Σ (u − ref)·2^(u − ref), Σ c (see fast/bf16_head.h). */
typedef struct {
    double sum, moment, total;
    float ref, top; /* top: the largest c */
    int32_t id;     /* where it is */
} HeadRow;

typedef struct {
    int width, rank, vocab; /* rank: of the adapter; 0: none */
    int u_at;               /* where u begins in a row of x, and du in one of dx */
    int workers, block, chunk, lanes;
    int rows;                   /* the most tokens of a block of head_forward, which holds no E */
    size_t x_stride, dx_stride; /* elements */
    /* bytes */
    size_t live_at, target_at, x_rows_at, e_at, own_at;
    size_t worker_bytes, row_at, c_at, dx_at, x_at, panels_at, scratch_at;
    size_t bytes;
} HeadPlan;

static inline int head_round_up(int n, int to) {
    return (n + to - 1) / to * to;
}

/* Tokens of each block but the last, where `block` are the most. */
int head_block_step(int n_live, int block);

/* For the current number of threads. */
HeadPlan head_plan(int n_tokens, int width, int rank, int vocab);

#endif
