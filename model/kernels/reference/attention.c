/* Attention in fp32, from the definition. */
#include "model/kernels/kernels.h"

typedef float Element;
typedef AttentionInputs Inputs;

static double read(Element x) {
    return (double)x;
}

static Element rounded(double x) {
    return (float)x;
}

#include "model/kernels/reference/attention.h"

void reference_attention_forward(float *out, float *lse, const AttentionInputs *in, Segments segments) {
    attention_forward(out, lse, in, segments);
}

void reference_attention_backward(float *dq, float *dk, float *dv, bool accumulate, const float *dout, const float *out,
                                  const float *lse, const AttentionInputs *in, Segments segments, float *scratch) {
    (void)scratch;
    attention_backward(dq, dk, dv, accumulate, dout, out, lse, in, segments);
}

void reference_cache_store(float *keys, float *values, const float *k, const float *v, const CachedAttention *c) {
    cache_store(keys, values, k, v, c);
}

void reference_attention_cached(float *out, const float *q, const float *keys, const float *values,
                                const CachedAttention *c) {
    attention_cached(out, q, keys, values, c);
}
