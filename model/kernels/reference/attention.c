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

void reference_attention_cached(float *out, const float *q, size_t q_stride, int n_tokens, int n_heads, int n_kv_heads,
                                int head_dim, float scale, const int32_t *positions, const int32_t *slot,
                                const float *k_cache, const float *v_cache, size_t slot_stride) {
    size_t row = (size_t)n_kv_heads * (size_t)head_dim;
    int group = n_heads / n_kv_heads;
#pragma omp parallel for num_threads(threads_count()) schedule(static) collapse(2)
    for (int t = 0; t < n_tokens; t++)
        for (int h = 0; h < n_heads; h++) {
            size_t kv = (size_t)slot[t] * slot_stride + (size_t)(h / group) * (size_t)head_dim;
            float *out_HD = out + ((size_t)t * (size_t)n_heads + (size_t)h) * (size_t)head_dim;
            const float *q_HD = q + (size_t)t * q_stride + (size_t)h * (size_t)head_dim;
            attend(out_HD, q_HD, k_cache + kv, v_cache + kv, row, positions[t] + 1, head_dim, scale);
        }
}
