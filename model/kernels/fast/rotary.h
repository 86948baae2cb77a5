/* Rotary embedding over vectors; formulas in reference/rotary.c. Included by avx2_kernels.c and avx512_kernels.c. */
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/kernels/fast/simd.h"

/* Heads narrower than two vectors (head_dim 8 to 24) turn four pairs at a time. */
static inline void rotate_narrow(float *head, size_t half, const float *cosine, const float *sine, float direction) {
    size_t i = 0;
    for (; i + 4 <= half; i += 4) {
        __m128 a = _mm_loadu_ps(head + i), b = _mm_loadu_ps(head + half + i);
        __m128 c = _mm_loadu_ps(cosine + i), s = _mm_loadu_ps(sine + i) * _mm_set1_ps(direction);
        _mm_storeu_ps(head + i, a * c - b * s);
        _mm_storeu_ps(head + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        float a = head[i], b = head[half + i], c = cosine[i], s = direction * sine[i];
        head[i] = a * c - b * s;
        head[half + i] = b * c + a * s;
    }
}

static inline void rotate_wide(float *head, size_t half, const float *cosine, const float *sine, float direction) {
    for (size_t i = 0; i < half; i += VF) {
        size_t n = half - i;
        vf a = vf_get(head + i, n), b = vf_get(head + half + i, n);
        vf c = vf_get(cosine + i, n), s = vf_get(sine + i, n) * vf_set1(direction);
        vf_put(head + i, n, a * c - b * s);
        vf_put(head + half + i, n, b * c + a * s);
    }
}

static void fast_rotary(float *x, size_t stride, int n_tokens, int n_heads, int head_dim, const int32_t *positions,
                        const float *cos_table, const float *sin_table, bool inverse) {
    size_t half = (size_t)head_dim / 2;
    float direction = inverse ? -1.0f : 1.0f;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const float *cosine = cos_table + (size_t)positions[t] * half, *sine = sin_table + (size_t)positions[t] * half;
        for (int h = 0; h < n_heads; h++) {
            float *head = x + (size_t)t * stride + (size_t)h * (size_t)head_dim;
            if (half < VF)
                rotate_narrow(head, half, cosine, sine, direction);
            else
                rotate_wide(head, half, cosine, sine, direction);
        }
    }
}
