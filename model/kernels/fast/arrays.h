/* Passes over plain arrays: AdamW (formulas in reference/adamw.c), the sum of squares and addition. Each element is
 * read and written once. Included by avx2_kernels.c and avx512_kernels.c. */
#include <math.h>

#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/kernels/fast/simd.h"

/* Elements per unit of work: large enough to hide the sharing out, a multiple of every VF. */
enum { ARRAY_GRAIN = 4096 };

static inline size_t part_of(size_t n, size_t begin, size_t grain) {
    return n - begin < grain ? n - begin : grain;
}

/* The numbers of a step in all lanes. */
typedef struct {
    vf decay, beta1, rest1, beta2, rest2, rate, unbias, epsilon, scale;
} AdamwVectors;

static AdamwVectors adamw_vectors(AdamwStep step) {
    return (AdamwVectors){
        .decay = vf_set1((float)(1 - step.learning_rate * step.weight_decay)),
        .beta1 = vf_set1((float)step.beta1),
        .rest1 = vf_set1((float)(1 - step.beta1)),
        .beta2 = vf_set1((float)step.beta2),
        .rest2 = vf_set1((float)(1 - step.beta2)),
        .rate = vf_set1((float)(step.learning_rate / step.bias_correction1)),
        .unbias = vf_set1((float)(1 / sqrt(step.bias_correction2))),
        .epsilon = vf_set1((float)step.epsilon),
        .scale = vf_set1((float)step.grad_scale),
    };
}

/* The new parameter; m and v are updated. */
static ALWAYS_INLINE vf adamw_vector(const AdamwVectors *k, vf param, vf grad, vf *m, vf *v) {
    vf g = grad * k->scale;
    *m = vf_fma(k->beta1, *m, k->rest1 * g);
    *v = vf_fma(k->beta2, *v, k->rest2 * g * g);
    return param * k->decay - k->rate * *m / vf_fma(vf_sqrt(*v), k->unbias, k->epsilon);
}

static void fast_adamw(float *param, float *m, float *v, const float *grad, size_t n, AdamwStep step) {
    AdamwVectors k = adamw_vectors(step);
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (size_t begin = 0; begin < n; begin += ARRAY_GRAIN) {
        size_t end = begin + part_of(n, begin, ARRAY_GRAIN);
        for (size_t i = begin; i < end; i += VF) {
            size_t rest = end - i;
            vf m_new = vf_get(m + i, rest), v_new = vf_get(v + i, rest);
            vf_put(param + i, rest, adamw_vector(&k, vf_get(param + i, rest), vf_get(grad + i, rest), &m_new, &v_new));
            vf_put(m + i, rest, m_new);
            vf_put(v + i, rest, v_new);
        }
    }
}

enum { SQUARES_CHUNK = 65536, SQUARES_WAVE = 512 };

static double chunk_squares(const float *x, size_t n) {
    vd even = vd_zero(), odd = vd_zero();
    size_t i = 0;
    for (; i + 2 * VF <= n; i += 2 * VF) {
        even = vd_add_square(even, vf_load(x + i));
        odd = vd_add_square(odd, vf_load(x + i + VF));
    }
    for (; i < n; i += VF) even = vd_add_square(even, vf_get(x + i, n - i));
    return vd_sum(even) + vd_sum(odd);
}

/* Chunks whatever the number of threads, their sums added in index order: see reference/reduce.c. */
static double fast_sum_of_squares(const float *x, size_t n) {
    double total = 0, sums[SQUARES_WAVE];
    size_t n_chunks = (n + SQUARES_CHUNK - 1) / SQUARES_CHUNK;
    for (size_t first = 0; first < n_chunks; first += SQUARES_WAVE) {
        size_t in_wave = part_of(n_chunks, first, SQUARES_WAVE);
#pragma omp parallel for num_threads(threads_count()) schedule(static) if (in_wave > 1)
        for (size_t c = 0; c < in_wave; c++) {
            size_t begin = (first + c) * SQUARES_CHUNK;
            sums[c] = chunk_squares(x + begin, part_of(n, begin, SQUARES_CHUNK));
        }
        for (size_t c = 0; c < in_wave; c++) total += sums[c];
    }
    return total;
}

static void fast_add(float *y, const float *a, const float *b, size_t n) {
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (size_t begin = 0; begin < n; begin += ARRAY_GRAIN) {
        size_t end = begin + part_of(n, begin, ARRAY_GRAIN);
        for (size_t i = begin; i < end; i += VF)
            vf_put(y + i, end - i, vf_get(a + i, end - i) + vf_get(b + i, end - i));
    }
}
