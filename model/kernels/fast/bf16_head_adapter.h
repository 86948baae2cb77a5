/* The low-rank addition to the head of precision bf16 (HeadAdapter): its part of a chunk's logits and gradients. Its
 * inner rows u lie behind the rows of x, and their gradients behind those of dx, so that they are gathered, scaled and
 * summed with them. With gains, E meets them before the chunk's products, after gain·dgain_v = Σ_t f/scale·e_tv·z_tv
 * was taken of it, where z_tv = (ref + log2 e_tv)·ln 2. Included by fast/bf16_head.h. */
#ifndef CRIA_KERNELS_BF16_HEAD_ADAPTER_H
#define CRIA_KERNELS_BF16_HEAD_ADAPTER_H

#include "model/kernels/fast/bf16_head_parts.h"

/* The adapter's part of the products of rows [first, first + rows) with the words [v, v + n), in worker->c. */
static void head_adapter_logits(const Head *h, const HeadWorker *worker, int first, int rows, int v, int n) {
    const HeadPlan *p = &h->plan;
    const HeadAdapter *a = h->adapter;
    const size_t stride = head_panel_stride(p->rank);
    kernels()->bf16.blocks->multiply(worker->c, (size_t)p->lanes, true,
                                     h->x_rows + (size_t)first * p->x_stride + p->u_at, p->x_stride, rows,
                                     a->forward.packed + (size_t)(v / PANEL_LANES) * stride, stride, n, p->rank);
    for (int r = 0; a->gains && r < rows; r++) {
        float *c = worker->c + (size_t)r * (size_t)p->lanes;
        for (size_t i = 0; i < (size_t)n; i += VF) {
            size_t left = (size_t)n - i;
            vf_put(c + i, left, vf_get(a->gains + v + i, left) * vf_get(c + i, left));
        }
    }
}

/* The chunk's part of dlog_gains, and E ← gain∘E. */
static void head_chunk_gains(const Head *h, const HeadWorker *worker, const HeadChunk *chunk, const int32_t *token,
                             bf16 *e, int n) {
    double sum[HEAD_CHUNK + HEAD_GRAIN] = {0};
    const size_t words = (size_t)(chunk->end - chunk->begin);
    const float *gains = h->adapter->gains + chunk->begin;
    for (int row = 0; row < n; row++) {
        bf16 *e_row = e + (size_t)row * chunk->stride;
        const float ref = h->lse ? (float)((double)h->lse[token[row]] / head_ln2) : worker->row[row].ref;
        const double factor = h->scale > 0 ? (double)head_factor(h, worker, row) / (double)h->scale * head_ln2 : 0;
        const size_t y = (size_t)(h->targets[token[row]] - chunk->begin); /* wraps below the chunk */
        for (size_t i = 0; h->adapter->db && i < words; i++) {
            float power = bf16_to_f32(e_row[i]),
                  u = i == y ? h->target[row] * h->s : ref + log2f(fmaxf(power, 0x1p-126f));
            sum[i] += factor * (double)power * (double)u;
        }
        for (size_t i = 0; i < words; i += VF)
            vf_put_bf16(e_row + i, words - i, vf_get(gains + i, words - i) * vf_get_bf16(e_row + i, words - i));
    }
    for (size_t i = 0; h->adapter->db && i < words; i++)
        h->adapter->dlog_gains[(size_t)chunk->begin + i] += (float)sum[i];
}

/* partial du (+)= E·B, dB += Eᵀ·(f·u) */
static void head_chunk_adapter(const Head *h, const HeadWorker *worker, const HeadChunk *chunk, const bf16 *e, int n) {
    const HeadPlan *p = &h->plan;
    const HeadAdapter *a = h->adapter;
    const ProductBlocks *blocks = kernels()->bf16.blocks;
    const int words = chunk->end - chunk->begin;
    const size_t stride = head_panel_stride(p->vocab), rank = (size_t)p->rank;
    blocks->multiply(worker->dx + p->u_at, p->dx_stride, chunk->begin > worker->begin, e, chunk->stride, n,
                     a->backward.packed + (size_t)chunk->begin * PANEL_LANES, stride, p->rank, words);
    if (a->db)
        blocks->multiply_transposed(a->db + (size_t)chunk->begin * rank, rank, e, chunk->stride, worker->x + p->u_at,
                                    p->x_stride, n, words, p->rank, worker->scratch);
}

#endif
