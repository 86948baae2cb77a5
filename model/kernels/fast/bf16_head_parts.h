/* What the head of precision bf16 works with: the call, how it is cut, and each worker's part. Included by
 * fast/bf16_head.h, which says how they go together. */
#ifndef CRIA_KERNELS_BF16_HEAD_PARTS_H
#define CRIA_KERNELS_BF16_HEAD_PARTS_H

#include "model/core/threads.h"
#include "model/kernels/fast/head_rows.h"
#include "model/kernels/head_plan.h"
#include "model/kernels/kernels.h"

static const double head_ln2 = 0x1.62e42fefa39efp-1;

typedef struct {
    /* the call */
    HeadResults out;
    bf16 *dx;
    float *dw;
    bool accumulate, keep; /* keep: E is wanted */
    const float *dlogprob, *lse;
    const bf16 *x;
    Panels forward, backward;
    const HeadAdapter *adapter; /* or NULL */
    const int32_t *targets;
    float scale, sign, s; /* logit_scale = sign·scale, scale >= 0; s = log2(e)·scale. The sign goes to the rows of x. */
    /* how it is cut, and its scratch */
    HeadPlan plan;
    int n_live;
    int32_t *live; /* [T] tokens that are not skipped */
    bf16 *x_rows;  /* [rows, x_stride] */
    float *target; /* [rows] c of the target */
    float *factor; /* [rows] f above, for the reference ref */
    float *ref;    /* [rows] the largest of the workers' references */
    bf16 *e;
    char *own; /* what each worker has */
} Head;

/* What worker w has. */
typedef struct {
    int begin, end; /* of the vocabulary */
    HeadRow *row;   /* [rows] */
    float *c;       /* [HEAD_ROWS, lanes] */
    float *dx;      /* [block, dx_stride] */
    bf16 *x;        /* [block, x_stride]: f·x */
    bf16 *panels;
    float *scratch; /* for multiply_transposed */
} HeadWorker;

static void *head_at(char *base, size_t bytes) {
    return base + bytes;
}

static HeadWorker head_worker(const Head *h, int w) {
    const HeadPlan *p = &h->plan;
    char *own = h->own + (size_t)w * p->worker_bytes;
    size_t begin, end;
    threads_range((size_t)p->vocab, HEAD_GRAIN, w, p->workers, &begin, &end);
    return (HeadWorker){.begin = (int)begin,
                        .end = (int)end,
                        .row = head_at(own, p->row_at),
                        .c = head_at(own, p->c_at),
                        .dx = head_at(own, p->dx_at),
                        .x = head_at(own, p->x_at),
                        .panels = head_at(own, p->panels_at),
                        .scratch = head_at(own, p->scratch_at)};
}

/* Words [begin, end), one piece of a worker's part; E of n tokens there is at e + begin·n, `stride` to a row. */
typedef struct {
    int begin, end;
    size_t stride;
} HeadChunk;

static HeadChunk head_chunk(const HeadPlan *p, const HeadWorker *worker, int begin) {
    int end = begin + p->chunk < worker->end ? begin + p->chunk : worker->end;
    return (HeadChunk){begin, end, (size_t)head_round_up(end - begin, HEAD_GRAIN)};
}

static bf16 *head_e(const Head *h, const HeadChunk *chunk, int n, int row) {
    return h->e + (size_t)chunk->begin * (size_t)n + (size_t)row * chunk->stride;
}

/* Elements between packed panels of that depth. */
static size_t head_panel_stride(int depth) {
    return (size_t)head_round_up(depth, PANEL_DEPTH) * PANEL_LANES;
}

/* f for the reference of worker w */
static float head_factor(const Head *h, const HeadWorker *worker, int row) {
    return h->lse ? h->factor[row] : h->factor[row] * head_power(worker->row[row].ref - h->ref[row]);
}

#endif
