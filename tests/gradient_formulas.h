/* Every operation's forward in fp64, from its definition, for tests/test_gradients.c. Written apart from the kernels
 * and without looking like them: one output element at a time wherever that is possible. */
#ifndef CRIA_TESTS_GRADIENT_FORMULAS_H
#define CRIA_TESTS_GRADIENT_FORMULAS_H

#include "tests/gradient_check.h"

#define ELEMENTWISE(name, expression)                                       \
    static inline void formula_##name(const Problem *p, double *y) {        \
        for (size_t i = 0; i < p->n_y; i++) {                               \
            double a = p->x[0][i], b = p->c->n_inputs > 1 ? p->x[1][i] : 0; \
            (void)b;                                                        \
            y[i] = (expression);                                            \
        }                                                                   \
    }
ELEMENTWISE(add, a + b)
ELEMENTWISE(residual, a + b)
ELEMENTWISE(mul, a *b)
ELEMENTWISE(min, fmin(a, b))
ELEMENTWISE(scale, p->c->number[0] * a + p->c->number[1])
ELEMENTWISE(exp, exp(a))
ELEMENTWISE(log, log(a))
ELEMENTWISE(sigmoid, 1 / (1 + exp(-a)))
ELEMENTWISE(log_sigmoid, -log1p(exp(-a)))
ELEMENTWISE(clamp, fmin(fmax(a, p->c->number[0]), p->c->number[1]))

static inline void formula_embedding(const Problem *p, double *y) {
    int width = p->c->weight_cols;
    for (size_t i = 0; i < p->n_y; i++) {
        size_t t = i / (size_t)width, j = i % (size_t)width;
        y[i] = p->w[(size_t)p->batch.tokens[t] * (size_t)width + j];
    }
}

static inline double dot(const double *a, const double *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static inline void formula_linear(const Problem *p, double *y) {
    size_t n = (size_t)p->c->weight_rows, k = (size_t)p->c->weight_cols;
    for (size_t i = 0; i < p->n_y; i++) y[i] = dot(p->x[0] + i / n * k, p->w + i % n * k, (int)k);
}

static inline void formula_rmsnorm(const Problem *p, double *y) {
    int width = p->c->weight_cols;
    for (size_t i = 0; i < p->n_y; i++) {
        const double *x = p->x[0] + i / (size_t)width * (size_t)width;
        y[i] = p->x[0][i] / sqrt(dot(x, x, width) / width + p->c->number[0]) * p->w[i % (size_t)width];
    }
}

/* number[1]: the factor with which the sum joins the output */
static inline void formula_add_rmsnorm(const Problem *p, double *y) {
    size_t width = (size_t)p->c->weight_cols;
    double sum[64];
    for (size_t row = 0; row < p->n_y; row += width) {
        for (size_t i = 0; i < width; i++) sum[i] = p->x[0][row + i] + p->x[1][row + i];
        double rms = sqrt(dot(sum, sum, (int)width) / (double)width + p->c->number[0]);
        for (size_t i = 0; i < width; i++) y[row + i] = sum[i] / rms * p->w[i] + p->c->number[1] * sum[i];
    }
}

/* shape: heads rotated, head width. Elements i and i + HD/2 of a head turn by position·theta^(-2i/HD). */
static const double rotary_theta = 10000;

static inline void formula_qkv(const Problem *p, double *y) {
    int width = p->c->out_width, n_heads = p->c->shape[0], head = p->c->shape[1], half = head / 2;
    formula_linear(p, y);
    for (int t = 0; t < p->batch.n_tokens; t++)
        for (int h = 0; h < n_heads; h++)
            for (int i = 0; i < half; i++) {
                size_t at = (size_t)(t * width + h * head + i);
                double angle = p->batch.positions[t] * pow(rotary_theta, -2.0 * i / head);
                double a = y[at], b = y[at + (size_t)half];
                y[at] = a * cos(angle) - b * sin(angle);
                y[at + (size_t)half] = b * cos(angle) + a * sin(angle);
            }
}

/* shape: heads, key/value heads, head width. number[0]: the scores' scale, 0 for 1/sqrt(HD). */
static inline void attend_row(const Problem *p, double *out, int t, int first, int h) {
    int heads = p->c->shape[0], kv = p->c->shape[1], hd = p->c->shape[2], width = p->c->inputs[0].width;
    double scale = p->c->number[0] != 0 ? p->c->number[0] : 1 / sqrt(hd), scores[CAPACITY], total = 0;
    const double *x = p->x[0], *q = x + t * width + h * hd;
    int key_at = (heads + h / (heads / kv)) * hd, value_at = key_at + kv * hd;
    for (int j = first; j <= t; j++) total += scores[j] = exp(scale * dot(q, x + j * width + key_at, hd));
    for (int i = 0; i < hd; i++) {
        out[i] = 0;
        for (int j = first; j <= t; j++) out[i] += scores[j] / total * x[j * width + value_at + i];
    }
}

static inline void formula_attention(const Problem *p, double *y) {
    int heads = p->c->shape[0], hd = p->c->shape[2];
    for (int s = 0; s < p->batch.n_segments; s++)
        for (int t = p->batch.segment_start[s]; t < p->batch.segment_start[s + 1]; t++)
            for (int h = 0; h < heads; h++) attend_row(p, y + (t * heads + h) * hd, t, p->batch.segment_start[s], h);
}

static inline void formula_swiglu(const Problem *p, double *y) {
    size_t width = (size_t)p->c->out_width;
    for (size_t i = 0; i < p->n_y; i++) {
        const double *row = p->x[0] + i / width * 2 * width;
        double gate = row[i % width], up = row[width + i % width];
        y[i] = gate / (1 + exp(-gate)) * up;
    }
}

/* number[0]: the logits' scale; extra: the mask, or NULL. */
static inline void formula_head(const Problem *p, double *y) {
    int vocab = p->c->weight_rows, width = p->c->weight_cols;
    const float *mask = p->c->extra;
    for (int t = 0; t < p->batch.n_tokens; t++) {
        double total = 0, target = 0;
        y[t] = 0;
        if (mask && mask[t] == 0) continue;
        for (int v = 0; v < vocab; v++) {
            double z = p->c->number[0] * dot(p->x[0] + t * width, p->w + v * width, width);
            total += exp(z);
            if (v == p->batch.targets[t]) target = z;
        }
        y[t] = target - log(total);
    }
}

static inline void sum_rows(const Problem *p, double *y, int begin, int end, bool mean) {
    int width = p->c->out_width;
    for (int j = 0; j < width; j++) {
        y[j] = 0;
        for (int r = begin; r < end; r++) y[j] += p->x[0][r * width + j];
        if (mean && end > begin) y[j] /= end - begin;
    }
}

static inline void sum_segments(const Problem *p, double *y, bool mean) {
    const int32_t *start = p->batch.segment_start;
    for (int s = 0; s < p->batch.n_segments; s++) sum_rows(p, y + s * p->c->out_width, start[s], start[s + 1], mean);
}

static inline void formula_segment_sum(const Problem *p, double *y) {
    sum_segments(p, y, false);
}
static inline void formula_segment_mean(const Problem *p, double *y) {
    sum_segments(p, y, true);
}
static inline void formula_sum(const Problem *p, double *y) {
    sum_rows(p, y, 0, (int)rows_of(&p->batch, p->c->inputs[0].rows), false);
}
static inline void formula_mean(const Problem *p, double *y) {
    sum_rows(p, y, 0, (int)rows_of(&p->batch, p->c->inputs[0].rows), true);
}

static inline void formula_gather(const Problem *p, double *y) {
    size_t width = (size_t)p->c->out_width;
    const int32_t *index = p->c->extra;
    for (size_t i = 0; i < p->n_y; i++) y[i] = p->x[0][(size_t)index[i / width] * width + i % width];
}

#endif
