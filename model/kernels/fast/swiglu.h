/* SwiGLU over vectors; formulas in reference/swiglu.c. Included by avx2_kernels.c and avx512_kernels.c. */
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/kernels/fast/simd.h"

static void fast_swiglu_forward(float *y, const float *gate_up, int n_tokens, int width) {
    size_t F = (size_t)width;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const float *gate = gate_up + 2 * (size_t)t * F, *up = gate + F;
        float *y_F = y + (size_t)t * F;
        for (size_t i = 0; i < F; i += VF) {
            vf g = vf_get(gate + i, F - i);
            vf_put(y_F + i, F - i, g * vf_sigmoid(g) * vf_get(up + i, F - i));
        }
    }
}

static void fast_swiglu_backward(float *dgate_up, bool accumulate, const float *dy, const float *gate_up, int n_tokens,
                                 int width) {
    if (!dgate_up) return;
    size_t F = (size_t)width;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const float *gate = gate_up + 2 * (size_t)t * F, *up = gate + F, *dy_F = dy + (size_t)t * F;
        float *dgate = dgate_up + 2 * (size_t)t * F, *dup = dgate + F;
        for (size_t i = 0; i < F; i += VF) {
            size_t n = F - i;
            vf g = vf_get(gate + i, n), d = vf_get(dy_F + i, n), sigmoid = vf_sigmoid(g), one = vf_set1(1);
            vf slope = sigmoid * vf_fma(g, one - sigmoid, one);
            vf dg = d * vf_get(up + i, n) * slope, du = d * g * sigmoid;
            if (accumulate) {
                dg = dg + vf_get(dgate + i, n);
                du = du + vf_get(dup + i, n);
            }
            vf_put(dgate + i, n, dg);
            vf_put(dup + i, n, du);
        }
    }
}
