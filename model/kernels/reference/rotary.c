/* Rotary position embedding (Su et al. 2021, eq. 34) in Hugging Face's half-split layout: elements i and i + HD/2 of a
 * head are one pair, turned by the angle position·θ^(−2i/HD):
 *
 *   a' = a·cos − b·sin        b' = b·cos + a·sin
 *
 * The backward pass is the inverse turn (the transpose of a rotation). */
#include "model/core/threads.h"
#include "model/kernels/reference/reference.h"

void reference_rotary(float *x, size_t stride, int n_tokens, int n_heads, int head_dim, const int32_t *positions,
                      const float *cos_table, const float *sin_table, bool inverse) {
    size_t half = (size_t)head_dim / 2;
    float direction = inverse ? -1.0f : 1.0f;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const float *cosine = cos_table + (size_t)positions[t] * half;
        const float *sine = sin_table + (size_t)positions[t] * half;
        for (int h = 0; h < n_heads; h++) {
            float *head = x + (size_t)t * stride + (size_t)h * (size_t)head_dim;
            for (size_t i = 0; i < half; i++) {
                float a = head[i], b = head[half + i], c = cosine[i], s = direction * sine[i];
                head[i] = a * c - b * s;
                head[half + i] = b * c + a * s;
            }
        }
    }
}
