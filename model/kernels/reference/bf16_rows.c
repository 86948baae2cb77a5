/* The kernels over rows of precision bf16: reference/norm.c, reference/rotary.c and reference/swiglu.c hold the
 * formulas. Here bf16 is widened on the way in and rounded once on the way out. */
#include <math.h>
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/reference/reference.h"

static float inverse_rms(const float *x, size_t n, float eps) {
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += (double)x[i] * x[i];
    return (float)(1 / sqrt(squares / (double)n + (double)eps));
}

static void rmsnorm_forward(bf16 *y, float *rstd, const float *x, const float *w, int n_tokens, int width, float eps) {
    size_t D = (size_t)width;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const float *x_D = x + (size_t)t * D;
        bf16 *y_D = y + (size_t)t * D;
        float r = inverse_rms(x_D, D, eps);
        for (size_t i = 0; i < D; i++) y_D[i] = f32_to_bf16(x_D[i] * r * w[i]);
        if (rstd) rstd[t] = r;
    }
}

static void add_rmsnorm_forward(float *sum, bf16 *y, float *rstd, const float *x, const bf16 *delta, const float *w,
                                int n_tokens, int width, float eps) {
    size_t n = (size_t)n_tokens * (size_t)width;
    for (size_t i = 0; i < n; i++) sum[i] = x[i] + bf16_to_f32(delta[i]);
    rmsnorm_forward(y, rstd, sum, w, n_tokens, width, eps);
}

static void norm_backward_weight(float *dw, const bf16 *dy, const float *x, const float *rstd, int n_tokens,
                                 int width) {
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int i = 0; i < width; i++) {
        double total = 0;
        for (int t = 0; t < n_tokens; t++) {
            size_t at = (size_t)t * (size_t)width + (size_t)i;
            total += (double)bf16_to_f32(dy[at]) * x[at] * rstd[t];
        }
        dw[i] = (float)(dw[i] + total);
    }
}

static void add_rmsnorm_backward(float *dx, bool accumulate, bf16 *ddelta, float *dw, const float *dsum, const bf16 *dy,
                                 const float *sum, const float *w, const float *rstd, int n_tokens, int width,
                                 float *scratch) {
    (void)scratch;
    size_t D = (size_t)width;
    if (dw) norm_backward_weight(dw, dy, sum, rstd, n_tokens, width); /* first: ddelta may be dy */
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        size_t row = (size_t)t * D;
        double r = rstd[t], dot = 0;
        for (size_t i = row; i < row + D; i++) dot += (double)bf16_to_f32(dy[i]) * w[i - row] * sum[i];
        double shrink = dot * r * r * r / width;
        for (size_t i = row; i < row + D; i++) {
            double d = r * w[i - row] * bf16_to_f32(dy[i]) - shrink * sum[i];
            if (dsum) d += dsum[i];
            if (ddelta) ddelta[i] = f32_to_bf16((float)d);
            if (dx) dx[i] = (float)(accumulate ? dx[i] + d : d);
        }
    }
}

static void rotate_row(bf16 *y, const bf16 *x, int n_heads, size_t half, const float *cosine, const float *sine,
                       float direction) {
    for (int h = 0; h < n_heads; h++, x += 2 * half, y += 2 * half)
        for (size_t i = 0; i < half; i++) {
            float a = bf16_to_f32(x[i]), b = bf16_to_f32(x[half + i]), c = cosine[i], s = direction * sine[i];
            y[i] = f32_to_bf16(a * c - b * s);
            y[half + i] = f32_to_bf16(b * c + a * s);
        }
}

static void rotary(bf16 *x, size_t stride, int n_tokens, int n_heads, int head_dim, const int32_t *positions,
                   const float *cos_table, const float *sin_table, bool inverse) {
    size_t half = (size_t)head_dim / 2;
    for (int t = 0; t < n_tokens; t++) {
        size_t angle = (size_t)positions[t] * half;
        bf16 *row = x + (size_t)t * stride;
        rotate_row(row, row, n_heads, half, cos_table + angle, sin_table + angle, inverse ? -1.0f : 1.0f);
    }
}

static void rotary_copy(bf16 *y, const bf16 *x, size_t stride, size_t width, int n_tokens, int n_heads, int head_dim,
                        const int32_t *positions, const float *cos_table, const float *sin_table, bool inverse) {
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        size_t row = (size_t)t * stride;
        memcpy(y + row, x + row, width * sizeof *y);
        rotary(y + row, stride, 1, n_heads, head_dim, positions + t, cos_table, sin_table, inverse);
    }
}

static void swiglu_forward(bf16 *y, const bf16 *gate_up, int n_tokens, int width) {
    size_t F = (size_t)width;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const bf16 *gate = gate_up + 2 * (size_t)t * F, *up = gate + F;
        bf16 *y_F = y + (size_t)t * F;
        for (size_t i = 0; i < F; i++) {
            float g = bf16_to_f32(gate[i]);
            y_F[i] = f32_to_bf16(g / (1 + expf(-g)) * bf16_to_f32(up[i]));
        }
    }
}

static void swiglu_backward(bf16 *dgate_up, bool accumulate, const bf16 *dy, const bf16 *gate_up, int n_tokens,
                            int width) {
    if (!dgate_up) return;
    size_t F = (size_t)width;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const bf16 *gate = gate_up + 2 * (size_t)t * F, *up = gate + F, *dy_F = dy + (size_t)t * F;
        bf16 *dgate = dgate_up + 2 * (size_t)t * F, *dup = dgate + F;
        for (size_t i = 0; i < F; i++) {
            float g = bf16_to_f32(gate[i]), sigmoid = 1 / (1 + expf(-g)), d = bf16_to_f32(dy_F[i]);
            float dg = d * bf16_to_f32(up[i]) * sigmoid * (1 + g * (1 - sigmoid));
            float du = d * g * sigmoid;
            dgate[i] = f32_to_bf16(accumulate ? bf16_to_f32(dgate[i]) + dg : dg);
            dup[i] = f32_to_bf16(accumulate ? bf16_to_f32(dup[i]) + du : du);
        }
    }
}

void reference_bf16_rows(Bf16Kernels *table) {
    table->rmsnorm_forward = rmsnorm_forward;
    table->add_rmsnorm_forward = add_rmsnorm_forward;
    table->add_rmsnorm_backward = add_rmsnorm_backward;
    table->rotary = rotary;
    table->rotary_copy = rotary_copy;
    table->swiglu_forward = swiglu_forward;
    table->swiglu_backward = swiglu_backward;
}
