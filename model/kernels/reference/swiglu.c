/* SwiGLU (Shazeer 2020, eq. 6, without its products with matrices): y = silu(g)·u, silu(g) = g·σ(g), σ(g) = 1/(1+e^−g).
 *
 * Backward: dL/du = dy·silu(g);  dL/dg = dy·u·σ(g)·(1 + g·(1 − σ(g))). */
#include <math.h>

#include "model/core/threads.h"
#include "model/kernels/reference/reference.h"

void reference_swiglu_forward(float *y, const float *gate_up, int n_tokens, int width) {
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const float *gate = gate_up + 2 * (size_t)t * (size_t)width, *up = gate + width;
        float *y_F = y + (size_t)t * (size_t)width;
        for (int i = 0; i < width; i++) y_F[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
    }
}

void reference_swiglu_backward(float *dgate_up, bool accumulate, const float *dy, const float *gate_up, int n_tokens,
                               int width) {
    if (!dgate_up) return;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        size_t row = 2 * (size_t)t * (size_t)width;
        const float *gate = gate_up + row, *up = gate + width, *dy_F = dy + (size_t)t * (size_t)width;
        float *dgate = dgate_up + row, *dup = dgate + width;
        for (int i = 0; i < width; i++) {
            float g = gate[i], sigmoid = 1 / (1 + expf(-g));
            float dg = dy_F[i] * up[i] * sigmoid * (1 + g * (1 - sigmoid));
            float du = dy_F[i] * g * sigmoid;
            dgate[i] = accumulate ? dgate[i] + dg : dg;
            dup[i] = accumulate ? dup[i] + du : du;
        }
    }
}
