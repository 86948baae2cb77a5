/* The head of precision bf16; formulas in reference/head.c. Included by avx2_kernels.c, avx512_kernels.c and
 * avx512bf16_kernels.c; the products are the table's own.
 *
 * The vocabulary is dealt out to workers (threads), in chunks; the live tokens come in blocks, gathered so that skipped
 * ones cost nothing. head_forward_backward takes each block through five stages with a barrier between each two:
 *
 *   gather    rows of x side by side                                                               (tokens dealt out)
 *   logits    a few rows × a few panels at a time in fp32, in L1 or L2; turned into e_v = 2^(u_v − ref) with
 *             u = log2(e)·z, summed in fp32 and fp64, and kept in bf16: E[tokens, V], half of fp32 logits     (vocab)
 *   results   S = Σ_v e_v over the workers, log-sum-exp and the rest; e_y −= S; f = −dlogprob·scale/S       (tokens)
 *   gradients of a chunk, while its part of E is in L2: partial dx += E·W, dW += Eᵀ·(f·x)                   (vocab)
 *   dx        f times the workers' partial sums in order                                                    (tokens)
 *
 * A worker's reference for a token is near the largest logit of its first chunk, and whole, so that another one changes
 * E by an exact power of two: results do not depend on it, as long as nothing leaves the range of bf16's eight exponent
 * bits. Where a later logit lies more than RISE above it, or where another worker's sum is more than SPREAD above it,
 * the row so far is scaled to a higher reference. That is rare, and costs less than a chunk's products where it
 * happens.
 *
 * head_backward knows the log-sum-exp, so that no more of E is kept than each worker's chunk. head_forward keeps none.
 * The adapter: bf16_head_adapter.h. */
#include <omp.h>
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/fast/bf16_head_adapter.h"
#include "model/kernels/fast/fast.h"

enum { RISE = 40, SPREAD = 60 }; /* bits */

/* ---- logits ---- */

/* The row's powers so far, up to word `end`, and their sums, for the higher reference. */
static void head_raise(const Head *h, const HeadWorker *worker, int n, int row, int end, float ref) {
    HeadRow *r = &worker->row[row];
    double rise = (double)ref - (double)r->ref;
    float factor = head_power((float)-rise);
    r->moment = factor == 0 ? 0 : (r->moment - rise * r->sum) * (double)factor;
    r->sum *= (double)factor;
    r->ref = ref;
    for (int v = worker->begin; h->keep && v < end; v += h->plan.chunk) {
        HeadChunk chunk = head_chunk(&h->plan, worker, v);
        int last = end < chunk.end ? end : chunk.end;
        head_row_scale(head_e(h, &chunk, n, row), (size_t)(last - v), factor);
    }
}

/* A finite whole number near the logit u, which may be infinite or NaN. */
static float head_reference(float u) {
    return roundf(u > FLT_MAX ? FLT_MAX : u > -FLT_MAX ? u : -FLT_MAX);
}

/* Row `row` of the block meets its products c with the words [v, v + n); e is where their powers go. */
static void head_row_powers(const Head *h, const HeadWorker *worker, int n_tokens, int row, int v, int n,
                            const float *c, bf16 *e) {
    HeadRow *r = &worker->row[row];
    const bool moments = h->out.entropy || h->out.mean_logit;
    if (v == worker->begin)
        *r = (HeadRow){.ref = head_reference(head_row_top(c, (size_t)n) * h->s), .top = -INFINITY, .id = v};
    RowPass pass = head_pass_any(e, c, (size_t)n, h->s, r->ref, h->keep, moments);
    float top = pass.top * h->s;
    if (top > r->ref + RISE && top < INFINITY) {
        head_raise(h, worker, n_tokens, row, v, head_reference(top));
        pass = head_pass_any(e, c, (size_t)n, h->s, r->ref, h->keep, moments);
    }
    r->sum += (double)pass.sum;
    r->moment += (double)pass.moment;
    r->total += (double)pass.total;
    if (!(pass.top > r->top)) return;
    r->top = pass.top;
    if (h->out.top1) r->id = v + head_row_find(c, n, pass.top);
}

/* The row's gradient with respect to c, over f: e_v = p_v, from the known log-sum-exp. */
static void head_row_known(const Head *h, int token, int v, int n, const float *c, bf16 *e) {
    float lse = (float)((double)h->lse[token] / head_ln2);
    int y = h->targets[token] - v;
    head_pass(e, c, (size_t)n, h->s, lse, true, false);
    if (y >= 0 && y < n) e[y] = f32_to_bf16(exp2f(c[y] * h->s - lse) - 1);
}

/* Panels of the words [v, v + n), packed now if they are not yet. */
static const bf16 *head_forward_panels(const Head *h, const HeadWorker *worker, int v, int n, size_t *stride) {
    const Panels *b = &h->forward;
    *stride = head_panel_stride(b->depth);
    if (b->packed) return b->packed + (size_t)(v / PANEL_LANES) * *stride;
    kernels()->bf16.pack(worker->panels, *stride, b, v, v + n, 0, b->depth);
    return worker->panels;
}

/* Packed panels that the next lanes will want go to L2, part i of n of them. */
static void head_prefetch(const bf16 *panels, int lanes, size_t stride, int i, int n) {
    enum { LINE = 32 };
    if (lanes <= 0) return;
    size_t elements = ((size_t)lanes + PANEL_LANES - 1) / PANEL_LANES * stride;
    size_t begin = elements * (size_t)i / (size_t)n / LINE * LINE, end = elements * ((size_t)i + 1) / (size_t)n;
    for (; begin < end; begin += LINE) __builtin_prefetch(panels + begin, 0, 2);
}

/* Rows [first, first + rows) of the block have met the words [v, v + n): worker->c holds the products; e is where the
 * first row's powers go, or NULL. */
static void head_rows_powers(const Head *h, const HeadWorker *worker, const int32_t *token, int n_tokens, int first,
                             int rows, int v, int n, bf16 *e, size_t e_stride) {
    for (int i = first; i < first + rows; i++) {
        const float *c = worker->c + (size_t)(i - first) * (size_t)h->plan.lanes;
        bf16 *to = e ? e + (size_t)(i - first) * e_stride : NULL;
        int y = h->targets[token[i]] - v;
        if (h->lse)
            head_row_known(h, token[i], v, n, c, to);
        else
            head_row_powers(h, worker, n_tokens, i, v, n, c, to);
        if (y >= 0 && y < n) h->target[i] = c[y];
    }
}

/* Products of the block's n rows with the chunk's words, and what follows from them. */
static void head_chunk_logits(const Head *h, const HeadWorker *worker, const HeadChunk *chunk, const int32_t *token,
                              int n, bf16 *e) {
    const HeadPlan *p = &h->plan;
    for (int v = chunk->begin, lanes; v < chunk->end; v += lanes) {
        lanes = chunk->end - v < p->lanes ? chunk->end - v : p->lanes;
        int after = h->forward.packed ? worker->end - (v + lanes) : 0;
        size_t stride;
        const bf16 *panels = head_forward_panels(h, worker, v, lanes, &stride);
        const bf16 *next = panels + (size_t)(lanes / PANEL_LANES) * stride;
        for (int first = 0; first < n; first += HEAD_ROWS) {
            int rows = n - first < HEAD_ROWS ? n - first : HEAD_ROWS;
            bf16 *to = e ? e + (size_t)first * chunk->stride + (v - chunk->begin) : NULL;
            head_prefetch(next, after < p->lanes ? after : p->lanes, stride, first / HEAD_ROWS,
                          (n + HEAD_ROWS - 1) / HEAD_ROWS);
            kernels()->bf16.blocks->multiply(worker->c, (size_t)p->lanes, false,
                                             h->x_rows + (size_t)first * p->x_stride, p->x_stride, rows, panels, stride,
                                             lanes, p->width);
            if (h->adapter) head_adapter_logits(h, worker, first, rows, v, lanes);
            head_rows_powers(h, worker, token, n, first, rows, v, lanes, to, chunk->stride);
        }
    }
}

/* ---- results ---- */

static void head_bf16_skip(HeadResults out, int t) {
    out.logprob[t] = 0;
    out.lse[t] = 0;
    if (out.entropy) out.entropy[t] = 0;
    if (out.top1) out.top1[t] = -1;
    if (out.mean_logit) out.mean_logit[t] = 0;
}

/* The workers' sums of a row, put together for the largest of their references. */
static HeadRow head_whole_row(const Head *h, int row) {
    HeadRow whole = {.ref = -INFINITY, .top = -INFINITY, .id = 0};
    for (int w = 0; w < h->plan.workers; w++) {
        HeadWorker worker = head_worker(h, w);
        const HeadRow *r = &worker.row[row];
        if (r->ref > whole.ref) whole.ref = r->ref;
        if (r->top > whole.top) whole.top = r->top, whole.id = r->id;
    }
    for (int w = 0; w < h->plan.workers; w++) {
        HeadWorker worker = head_worker(h, w);
        const HeadRow *r = &worker.row[row];
        double fall = (double)r->ref - (double)whole.ref, factor = (double)head_power((float)fall);
        whole.sum += r->sum * factor;
        if (factor != 0) whole.moment += (r->moment + fall * r->sum) * factor;
        whole.total += r->total;
    }
    if (!isfinite(whole.top)) whole.sum = NAN; /* one is +infinity, or all are −infinity */
    return whole;
}

static void head_results(const Head *h, int t, int row, const HeadRow *whole) {
    double bits = log2(whole->sum), lse = (double)whole->ref + bits;
    double logprob = ((double)h->target[row] * (double)h->s - lse) * head_ln2;
    h->out.lse[t] = (float)(lse * head_ln2);
    h->out.logprob[t] = logprob > 0 ? 0 : (float)logprob;
    if (h->out.entropy) h->out.entropy[t] = (float)((bits - whole->moment / whole->sum) * head_ln2);
    if (h->out.top1) h->out.top1[t] = whole->id;
    if (h->out.mean_logit) h->out.mean_logit[t] = (float)(whole->total * (double)h->scale / h->plan.vocab);
}

/* The row of E becomes that of its gradient over f, which is the same for all workers but for powers of two. */
static void head_row_gradient(const Head *h, int t, int n, int row, const HeadRow *whole) {
    const int y = h->targets[t];
    h->ref[row] = whole->ref;
    h->factor[row] = (float)(-(double)h->dlogprob[t] * (double)h->scale / whole->sum);
    for (int w = 0; w < h->plan.workers; w++) {
        HeadWorker worker = head_worker(h, w);
        HeadRow *r = &worker.row[row];
        double bits = (double)whole->ref - (double)r->ref;
        if (bits > 0 && bits + log2(whole->sum) > SPREAD) head_raise(h, &worker, n, row, worker.end, whole->ref);
        if (y < worker.begin || y >= worker.end) continue;
        int first = worker.begin + (y - worker.begin) / h->plan.chunk * h->plan.chunk;
        HeadChunk chunk = head_chunk(&h->plan, &worker, first);
        float e = exp2f((float)((double)h->target[row] * (double)h->s - (double)r->ref));
        double sum = whole->sum / (double)head_power(r->ref - whole->ref);
        head_e(h, &chunk, n, row)[y - first] = f32_to_bf16((float)((double)e - sum));
    }
}

/* ---- gradients ---- */

static void head_scale_x(const Head *h, const HeadWorker *worker, int n) {
    const size_t stride = h->plan.x_stride;
    for (size_t i = 0; i < (size_t)n; i++)
        head_scaled_row(worker->x + i * stride, h->x_rows + i * stride, (size_t)(h->plan.u_at + h->plan.rank),
                        head_factor(h, worker, (int)i));
}

/* partial dx (+)= E·W over the chunk's words; panels that are not packed yet are a few lanes at a time. */
static void head_chunk_dx(const Head *h, const HeadWorker *worker, const HeadChunk *chunk, const bf16 *e, int n) {
    const HeadPlan *p = &h->plan;
    const Panels *b = &h->backward;
    const ProductBlocks *blocks = kernels()->bf16.blocks;
    const int words = chunk->end - chunk->begin;
    const bool add = chunk->begin > worker->begin;
    if (b->packed) {
        size_t stride = head_panel_stride(b->depth);
        blocks->multiply(worker->dx, p->dx_stride, add, e, chunk->stride, n,
                         b->packed + (size_t)chunk->begin * PANEL_LANES, stride, p->width, words);
        return;
    }
    size_t stride = chunk->stride * PANEL_LANES;
    int step = (int)(HEAD_PANELS / stride) * PANEL_LANES;
    for (int lane = 0; lane < p->width; lane += step) {
        int end = lane + step < p->width ? lane + step : p->width;
        kernels()->bf16.pack(worker->panels, stride, b, lane, end, chunk->begin, chunk->end);
        blocks->multiply(worker->dx + lane, p->dx_stride, add, e, chunk->stride, n, worker->panels, stride, end - lane,
                         words);
    }
}

static void head_chunk_gradients(const Head *h, const HeadWorker *worker, const HeadChunk *chunk, const int32_t *token,
                                 bf16 *e, int n) {
    const HeadPlan *p = &h->plan;
    if (h->adapter && h->adapter->gains) head_chunk_gains(h, worker, chunk, token, e, n);
    if (h->adapter && h->adapter->du) head_chunk_adapter(h, worker, chunk, e, n);
    if (h->dx) head_chunk_dx(h, worker, chunk, e, n);
    if (h->dw)
        kernels()->bf16.blocks->multiply_transposed(h->dw + (size_t)chunk->begin * (size_t)p->width, (size_t)p->width,
                                                    e, chunk->stride, worker->x, p->x_stride, n,
                                                    chunk->end - chunk->begin, p->width, worker->scratch);
}

/* n columns of a row of dx, or of du: the workers' partial sums, from column `at` on, in order. */
static void head_row_sum(const Head *h, bf16 *to, bool accumulate, int row, size_t at, size_t n) {
    const HeadPlan *p = &h->plan;
    float *sum = head_worker(h, 0).dx + (size_t)row * p->dx_stride + at;
    for (int w = 0; w < p->workers; w++) {
        const HeadWorker worker = head_worker(h, w);
        const vf f = vf_set1(h->sign * head_factor(h, &worker, row));
        const float *from = worker.dx + (size_t)row * p->dx_stride + at;
        const bool add = w == 0 && accumulate;
        for (size_t i = 0; i < n; i += VF) {
            vf x = f * vf_get(from + i, n - i);
            if (w > 0) x = x + vf_get(sum + i, n - i);
            if (add) x = x + vf_get_bf16(to + i, n - i);
            if (w + 1 < p->workers)
                vf_put(sum + i, n - i, x);
            else
                vf_put_bf16(to + i, n - i, x);
        }
    }
}

static void head_row_sums(const Head *h, int t, int row) {
    const size_t D = (size_t)h->plan.width, rank = (size_t)h->plan.rank;
    if (h->dx) head_row_sum(h, h->dx + (size_t)t * D, h->accumulate, row, 0, D);
    if (h->adapter && h->adapter->du)
        head_row_sum(h, (bf16 *)h->adapter->du + (size_t)t * rank, false, row, (size_t)h->plan.u_at, rank);
}

/* ---- blocks of tokens ---- */

static void head_gather_row(const Head *h, const int32_t *token, int row) {
    const size_t D = (size_t)h->plan.width, rank = (size_t)h->plan.rank;
    bf16 *to = h->x_rows + (size_t)row * h->plan.x_stride;
    const bf16 *from = h->x + (size_t)token[row] * D;
    if (h->sign == 1)
        memcpy(to, from, D * sizeof *to);
    else
        head_scaled_row(to, from, D, h->sign);
    if (h->adapter) {
        const size_t at = (size_t)h->plan.u_at;
        memset(to + D, 0, (at - D) * sizeof *to);
        head_scaled_row(to + at, (const bf16 *)h->adapter->u + (size_t)token[row] * rank, rank, h->sign);
    }
    if (h->lse) h->factor[row] = -h->dlogprob[token[row]] * h->scale;
}

/* A worker's part with the log-sum-exp known: its chunk of E is the first one's, again and again. */
static void head_part_known(const Head *h, const HeadWorker *worker, const int32_t *token, int n) {
    bf16 *e = h->e + (size_t)worker->begin * (size_t)n;
    if (h->dw || h->adapter) head_scale_x(h, worker, n);
    for (int v = worker->begin; v < worker->end; v += h->plan.chunk) {
        HeadChunk chunk = head_chunk(&h->plan, worker, v);
        head_chunk_logits(h, worker, &chunk, token, n, e);
        head_chunk_gradients(h, worker, &chunk, token, e, n);
    }
}

static void head_part_logits(const Head *h, const HeadWorker *worker, const int32_t *token, int n) {
    for (int v = worker->begin; v < worker->end; v += h->plan.chunk) {
        HeadChunk chunk = head_chunk(&h->plan, worker, v);
        head_chunk_logits(h, worker, &chunk, token, n, h->keep ? head_e(h, &chunk, n, 0) : NULL);
    }
}

static void head_part_gradients(const Head *h, const HeadWorker *worker, const int32_t *token, int n) {
    if (h->dw || h->adapter) head_scale_x(h, worker, n);
    for (int v = worker->begin; v < worker->end; v += h->plan.chunk) {
        HeadChunk chunk = head_chunk(&h->plan, worker, v);
        head_chunk_gradients(h, worker, &chunk, token, head_e(h, &chunk, n, 0), n);
    }
}

static bool head_wants_gradients(const Head *h) {
    return h->dx || h->dw || (h->adapter && h->adapter->du);
}

/* One block: n tokens, of which this thread has rows [begin, end) in the stages that deal out tokens. */
static void head_block(const Head *h, const int32_t *token, int n, int thread, int threads) {
    const bool gradients = head_wants_gradients(h);
    size_t begin, end;
    threads_range((size_t)n, 1, thread, threads, &begin, &end);
    for (size_t i = begin; i < end; i++) head_gather_row(h, token, (int)i);
#pragma omp barrier
    for (int w = thread; w < h->plan.workers; w += threads) {
        HeadWorker worker = head_worker(h, w);
        if (h->lse)
            head_part_known(h, &worker, token, n);
        else
            head_part_logits(h, &worker, token, n);
    }
#pragma omp barrier
    for (size_t i = begin; !h->lse && i < end; i++) {
        HeadRow whole = head_whole_row(h, (int)i);
        head_results(h, token[i], (int)i, &whole);
        if (gradients) head_row_gradient(h, token[i], n, (int)i, &whole);
    }
    if (!h->lse && gradients) {
#pragma omp barrier
        for (int w = thread; w < h->plan.workers; w += threads) {
            HeadWorker worker = head_worker(h, w);
            head_part_gradients(h, &worker, token, n);
        }
#pragma omp barrier
    }
    for (size_t i = begin; gradients && i < end; i++) head_row_sums(h, token[i], (int)i);
    if (h->lse) {
#pragma omp barrier /* the next block's factors are set when its rows are gathered */
    }
}

static void head_run(Head *h, const float *mask, int n_tokens, float logit_scale, float *scratch) {
    HeadPlan *p = &h->plan;
    *p = head_plan(n_tokens, h->forward.depth, h->adapter ? h->adapter->rank : 0, h->forward.lanes);
    h->sign = logit_scale < 0 ? -1.0f : logit_scale > 0 ? 1.0f : 0.0f;
    h->scale = fabsf(logit_scale);
    h->s = (float)((double)h->scale / head_ln2);
    char *base = (char *)scratch;
    h->live = head_at(base, p->live_at);
    h->target = head_at(base, p->target_at);
    h->factor = h->target + p->rows;
    h->ref = h->factor + p->rows;
    h->x_rows = head_at(base, p->x_rows_at);
    h->e = head_at(base, p->e_at);
    h->own = base + p->own_at;
    for (int t = 0; t < n_tokens; t++) {
        if (!mask || mask[t] != 0)
            h->live[h->n_live++] = t;
        else {
            if (!h->lse) head_bf16_skip(h->out, t);
            if (h->dx && !h->accumulate)
                memset(h->dx + (size_t)t * (size_t)p->width, 0, (size_t)p->width * sizeof(bf16));
            if (h->adapter && h->adapter->du)
                memset((bf16 *)h->adapter->du + (size_t)t * (size_t)p->rank, 0, (size_t)p->rank * sizeof(bf16));
        }
    }
    if (h->n_live == 0) return;
    const int step = head_block_step(h->n_live, h->keep || h->lse ? p->block : p->rows);
#pragma omp parallel num_threads(threads_count())
    for (int first = 0; first < h->n_live; first += step) {
        int n = h->n_live - first < step ? h->n_live - first : step;
        head_block(h, h->live + first, n, omp_get_thread_num(), omp_get_num_threads());
    }
}

static void fast_bf16_head_forward(HeadResults out, const bf16 *x, Panels forward, const HeadAdapter *adapter,
                                   const int32_t *targets, const float *mask, int n_tokens, float logit_scale,
                                   float *scratch) {
    HeadAdapter constant = adapter ? *adapter : (HeadAdapter){0};
    Head h = {.out = out, .x = x, .forward = forward, .targets = targets, .adapter = adapter ? &constant : NULL};
    constant.du = NULL;
    constant.db = NULL;
    head_run(&h, mask, n_tokens, logit_scale, scratch);
}

static void fast_bf16_head_backward(bf16 *dx, bool accumulate, float *dw, const float *dlogprob, const bf16 *x,
                                    Panels forward, Panels backward, const HeadAdapter *adapter, const float *lse,
                                    const int32_t *targets, int n_tokens, float logit_scale, float *scratch) {
    Head h = {.dx = dx, .dw = dw, .accumulate = accumulate, .dlogprob = dlogprob, .x = x, .forward = forward};
    h.backward = backward;
    h.adapter = adapter;
    h.lse = lse;
    h.targets = targets;
    if (head_wants_gradients(&h)) head_run(&h, dlogprob, n_tokens, logit_scale, scratch);
}

static void fast_bf16_head_forward_backward(HeadResults out, bf16 *dx, float *dw, const float *dlogprob, const bf16 *x,
                                            Panels forward, Panels backward, const HeadAdapter *adapter,
                                            const int32_t *targets, int n_tokens, float logit_scale, float *scratch) {
    Head h = {.out = out, .dx = dx, .dw = dw, .dlogprob = dlogprob, .x = x, .forward = forward, .targets = targets};
    h.backward = backward;
    h.adapter = adapter;
    h.keep = head_wants_gradients(&h);
    head_run(&h, dlogprob, n_tokens, logit_scale, scratch);
}

static void fast_bf16_head(Bf16Kernels *table) {
    table->head_forward = fast_bf16_head_forward;
    table->head_backward = fast_bf16_head_backward;
    table->head_forward_backward = fast_bf16_head_forward_backward;
}
