/* Attention in bf16, from the definition. Results are rounded once; p and ds are not. */
#include "model/kernels/kernels.h"

typedef bf16 Element;
typedef AttentionInputsBf16 Inputs;

static double read(Element x) {
    return (double)bf16_to_f32(x);
}

static Element rounded(double x) {
    return f32_to_bf16((float)x);
}

#include "model/kernels/reference/attention.h"

void reference_bf16_attention_forward(bf16 *out, float *lse, const AttentionInputsBf16 *in, Segments segments) {
    attention_forward(out, lse, in, segments);
}

void reference_bf16_attention_backward(bf16 *dq, bf16 *dk, bf16 *dv, bool accumulate, const bf16 *dout, const bf16 *out,
                                       const float *lse, const AttentionInputsBf16 *in, Segments segments,
                                       float *scratch) {
    (void)scratch;
    attention_backward(dq, dk, dv, accumulate, dout, out, lse, in, segments);
}

void reference_bf16_cache_store(bf16 *keys, bf16 *values, const bf16 *k, const bf16 *v, const CachedAttention *c) {
    cache_store(keys, values, k, v, c);
}

void reference_bf16_attention_cached(bf16 *out, const bf16 *q, const bf16 *keys, const bf16 *values,
                                     const CachedAttention *c) {
    attention_cached(out, q, keys, values, c);
}

void reference_bf16_attention(Bf16Kernels *table) {
    table->attention_forward = reference_bf16_attention_forward;
    table->attention_backward = reference_bf16_attention_backward;
    table->cache_store = reference_bf16_cache_store;
    table->attention_cached = reference_bf16_attention_cached;
}
