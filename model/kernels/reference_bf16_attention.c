#include <math.h>
#include <stdlib.h>

#include "model/kernels/reference.h"

static float *widen(const bf16 *x, size_t stride, size_t width, int n) {
    float *y = malloc((size_t)n * width * sizeof *y + 4);
    for (int t = 0; t < n; t++) for (size_t i = 0; i < width; i++) y[(size_t)t * width + i] = bf16_to_f32(x[(size_t)t * stride + i]);
    return y;
}
static void fwd(bf16 *out, float *lse, const AttentionInputsBf16 *in, Segments segments) {
    int n = segments.segment_start[segments.n_segments];
    size_t qw = (size_t)(in->n_heads * in->head_dim), kw = (size_t)(in->n_kv_heads * in->head_dim);
    float *q = widen(in->q, in->q_stride, qw, n), *k = widen(in->k, in->kv_stride, kw, n), *v = widen(in->v, in->kv_stride, kw, n), *o = malloc((size_t)n * qw * 4 + 4);
    AttentionInputs w = {in->n_heads, in->n_kv_heads, in->head_dim, in->scale, q, k, v, qw, kw};
    reference_attention_forward(o, lse, &w, segments);
    for (size_t i = 0; i < (size_t)n * qw; i++) out[i] = f32_to_bf16(o[i]);
    free(q); free(k); free(v); free(o);
}
static void bwd(bf16 *dq, bf16 *dk, bf16 *dv, bool accumulate, const bf16 *dout, const bf16 *out, const float *lse, const AttentionInputsBf16 *in, Segments segments, float *scratch) {
    int n = segments.segment_start[segments.n_segments];
    size_t qw = (size_t)(in->n_heads * in->head_dim), kw = (size_t)(in->n_kv_heads * in->head_dim);
    float *q = widen(in->q, in->q_stride, qw, n), *k = widen(in->k, in->kv_stride, kw, n), *v = widen(in->v, in->kv_stride, kw, n), *o = widen(out, qw, qw, n), *g = widen(dout, qw, qw, n);
    float *eq = calloc((size_t)n * qw + 1, 4), *ek = calloc((size_t)n * kw + 1, 4), *ev = calloc((size_t)n * kw + 1, 4);
    AttentionInputs w = {in->n_heads, in->n_kv_heads, in->head_dim, in->scale, q, k, v, qw, kw};
    reference_attention_backward(eq, ek, ev, false, g, o, lse, &w, segments, scratch);
    for (int t = 0; t < n; t++) {
        for (size_t i = 0; i < qw; i++) { bf16 *to = dq + (size_t)t * in->q_stride + i; *to = f32_to_bf16(eq[(size_t)t * qw + i] + (accumulate ? bf16_to_f32(*to) : 0)); }
        for (size_t i = 0; i < kw; i++) { bf16 *to = dk + (size_t)t * in->kv_stride + i; *to = f32_to_bf16(ek[(size_t)t * kw + i] + (accumulate ? bf16_to_f32(*to) : 0)); }
        for (size_t i = 0; i < kw; i++) { bf16 *to = dv + (size_t)t * in->kv_stride + i; *to = f32_to_bf16(ev[(size_t)t * kw + i] + (accumulate ? bf16_to_f32(*to) : 0)); }
    }
    free(q); free(k); free(v); free(o); free(g); free(eq); free(ek); free(ev);
}
void reference_bf16_attention(Bf16Kernels *table) {
    table->attention_forward = fwd;
    table->attention_backward = bwd;
}
