/* RMSNorm (Zhang and Sennrich 2019, eq. 4): y = x·r·w with r = 1 / sqrt(mean(x²) + eps), for each token.
 *
 * Backward, with g = dL/dy:
 *   dL/dx_i = r·w_i·g_i − x_i·r³/D · Σ_j g_j·w_j·x_j
 *   dL/dw_i = Σ_t g_ti·x_ti·r_t
 *
 * The fused rows: s = x + delta, y = norm(s); with h = dL/ds from the stream's other users, dL/dx = dL/ddelta = h + the
 * norm's dL/ds.
 */
#include <math.h>

#include "model/core/threads.h"
#include "model/kernels/reference/reference.h"

void reference_rmsnorm_forward(float *y, float *rstd, const float *x, const float *w, int n_tokens, int width,
                               float eps) {
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const float *x_D = x + (size_t)t * (size_t)width;
        float *y_D = y + (size_t)t * (size_t)width;
        double squares = 0;
        for (int i = 0; i < width; i++) squares += (double)x_D[i] * x_D[i];
        float r = (float)(1 / sqrt(squares / width + (double)eps));
        for (int i = 0; i < width; i++) y_D[i] = x_D[i] * r * w[i];
        if (rstd) rstd[t] = r;
    }
}

static void backward_weight(float *dw, const float *dy, const float *x, const float *rstd, int n_tokens, int width) {
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int i = 0; i < width; i++) {
        double sum = 0;
        for (int t = 0; t < n_tokens; t++) {
            size_t at = (size_t)t * (size_t)width + (size_t)i;
            sum += (double)dy[at] * x[at] * rstd[t];
        }
        dw[i] = (float)(dw[i] + sum);
    }
}

void reference_add_rmsnorm_forward(float *sum, float *y, float *rstd, const float *x, const float *delta,
                                   const float *w, int n_tokens, int width, float eps) {
    reference_add(sum, x, delta, (size_t)n_tokens * (size_t)width);
    reference_rmsnorm_forward(y, rstd, sum, w, n_tokens, width, eps);
}

void reference_add_rmsnorm_backward(float *dx, bool accumulate, float *ddelta, float *dw, const float *dsum,
                                    const float *dy, const float *sum, const float *w, const float *rstd, int n_tokens,
                                    int width, float *scratch) {
    (void)scratch;
    size_t D = (size_t)width;
    if (dw) backward_weight(dw, dy, sum, rstd, n_tokens, width); /* first: ddelta may be dy */
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        size_t row = (size_t)t * D;
        double r = rstd[t], dot = 0;
        for (size_t i = row; i < row + D; i++) dot += (double)dy[i] * w[i - row] * sum[i];
        double shrink = dot * r * r * r / width;
        for (size_t i = row; i < row + D; i++) {
            double d = r * w[i - row] * dy[i] - shrink * sum[i];
            if (dsum) d += dsum[i];
            if (ddelta) ddelta[i] = (float)d;
            if (dx) dx[i] = (float)(accumulate ? dx[i] + d : d);
        }
    }
}
