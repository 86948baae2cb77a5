/* Norms, rotary and SwiGLU on bf16 rows (formulas: reference_norm.c, reference_rotary.c, reference_swiglu.c), in plain C. */
#include <math.h>
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/reference.h"

static void add_rmsnorm_row(float *sum, bf16 *y, float *rstd, const float *x, const bf16 *delta, const float *w,
                            int width, float eps) {
    double squares = 0;
    for (int i = 0; i < width; i++) {
        float s = delta ? x[i] + bf16_to_f32(delta[i]) : x[i];
        if (sum) sum[i] = s;
        squares += (double)s * s;
    }
    float r = (float)(1 / sqrt(squares / width + (double)eps));
    for (int i = 0; i < width; i++) y[i] = f32_to_bf16((sum ? sum[i] : x[i]) * r * w[i]);
    if (rstd) *rstd = r;
}

static void reference_rmsnorm(bf16 *y, float *rstd, const float *x, const float *w, int n_tokens, int width,
                              float eps) {
    for (int t = 0; t < n_tokens; t++) {
        size_t row = (size_t)t * (size_t)width;
        add_rmsnorm_row(NULL, y + row, rstd ? rstd + t : NULL, x + row, NULL, w, width, eps);
    }
}

static void reference_add_rmsnorm(float *sum, bf16 *y, float *rstd, const float *x, const bf16 *delta, const float *w,
                                  int n_tokens, int width, float eps) {
    for (int t = 0; t < n_tokens; t++) {
        size_t row = (size_t)t * (size_t)width;
        add_rmsnorm_row(sum + row, y + row, rstd ? rstd + t : NULL, x + row, delta + row, w, width, eps);
    }
}

static void reference_add_rmsnorm_back(float *dx, bool accumulate, bf16 *ddelta, float *dw, const float *dsum,
                                       const bf16 *dy, const float *sum, const float *w, const float *rstd,
                                       int n_tokens, int width, float *scratch) {
    (void)scratch;
    for (int t = 0; t < n_tokens; t++) {
        size_t row = (size_t)t * (size_t)width;
        double r = rstd[t], dot = 0;
        for (int i = 0; i < width; i++) dot += (double)bf16_to_f32(dy[row + (size_t)i]) * w[i] * sum[row + (size_t)i];
        double shrink = dot * r * r * r / width;
        for (int i = 0; i < width; i++) {
            size_t at = row + (size_t)i;
            double g = bf16_to_f32(dy[at]);
            double d = (dsum ? dsum[at] : 0) + r * w[i] * g - shrink * sum[at];
            if (ddelta) ddelta[at] = f32_to_bf16((float)d);
            if (dx) dx[at] = (float)(accumulate ? dx[at] + d : d);
            if (dw) dw[i] += (float)(g * sum[at] * r);
        }
    }
}

static void rotate_row(bf16 *y, const bf16 *x, int n_heads, int head_dim, const float *cosine, const float *sine,
                       bool inverse) {
    int half = head_dim / 2;
    for (int h = 0; h < n_heads; h++, x += head_dim, y += head_dim)
        for (int i = 0; i < half; i++) {
            float a = bf16_to_f32(x[i]), b = bf16_to_f32(x[half + i]), c = cosine[i], s = inverse ? -sine[i] : sine[i];
            y[i] = f32_to_bf16(a * c - b * s);
            y[half + i] = f32_to_bf16(b * c + a * s);
        }
}

static void reference_rotary_bf16(bf16 *x, size_t stride, int n_tokens, int n_heads, int head_dim,
                                  const int32_t *positions, const float *cos_table, const float *sin_table,
                                  bool inverse) {
    for (int t = 0; t < n_tokens; t++) {
        size_t at = (size_t)positions[t] * (size_t)(head_dim / 2);
        rotate_row(x + (size_t)t * stride, x + (size_t)t * stride, n_heads, head_dim, cos_table + at, sin_table + at,
                   inverse);
    }
}

static void reference_rotary_copy(bf16 *y, const bf16 *x, size_t stride, size_t width, int n_tokens, int n_heads,
                                  int head_dim, const int32_t *positions, const float *cos_table,
                                  const float *sin_table, bool inverse) {
    for (int t = 0; t < n_tokens; t++) {
        size_t at = (size_t)positions[t] * (size_t)(head_dim / 2);
        memcpy(y + (size_t)t * stride, x + (size_t)t * stride, width * sizeof *y);
        rotate_row(y + (size_t)t * stride, x + (size_t)t * stride, n_heads, head_dim, cos_table + at, sin_table + at,
                   inverse);
    }
}

static void reference_swiglu(bf16 *y, const bf16 *gate_up, int n_tokens, int width) {
    for (int t = 0; t < n_tokens; t++)
        for (int i = 0; i < width; i++) {
            const bf16 *gate = gate_up + 2 * (size_t)t * (size_t)width + i;
            float g = bf16_to_f32(*gate), u = bf16_to_f32(gate[width]);
            y[(size_t)t * (size_t)width + (size_t)i] = f32_to_bf16(g / (1 + expf(-g)) * u);
        }
}

static void reference_swiglu_back(bf16 *dgate_up, bool accumulate, const bf16 *dy, const bf16 *gate_up, int n_tokens,
                                  int width) {
    for (int t = 0; t < n_tokens; t++)
        for (int i = 0; i < width; i++) {
            size_t at = 2 * (size_t)t * (size_t)width + (size_t)i;
            float g = bf16_to_f32(gate_up[at]), u = bf16_to_f32(gate_up[at + (size_t)width]);
            float d = bf16_to_f32(dy[(size_t)t * (size_t)width + (size_t)i]), sigmoid = 1 / (1 + expf(-g));
            float dg = d * u * sigmoid * (1 + g * (1 - sigmoid)), du = d * g * sigmoid;
            if (accumulate) dg += bf16_to_f32(dgate_up[at]);
            if (accumulate) du += bf16_to_f32(dgate_up[at + (size_t)width]);
            dgate_up[at] = f32_to_bf16(dg);
            dgate_up[at + (size_t)width] = f32_to_bf16(du);
        }
}

void reference_bf16_rows(Bf16Kernels *table) {
    table->rmsnorm_forward = reference_rmsnorm;
    table->add_rmsnorm_forward = reference_add_rmsnorm;
    table->add_rmsnorm_backward = reference_add_rmsnorm_back;
    table->rotary = reference_rotary_bf16;
    table->rotary_copy = reference_rotary_copy;
    table->swiglu_forward = reference_swiglu;
    table->swiglu_backward = reference_swiglu_back;
}
