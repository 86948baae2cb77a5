/* Checks one operation against fp64: its forward against a formula, its backward against central finite differences of
 * that formula. The formula's step is 1e-5, so with values near 1 its own error is about 1e-10; what is left is the
 * operation's rounding in fp32. Each case runs in several surroundings (Mode), which make the planner put values and
 * gradients in place, accumulate, recompute, or leave a part of backward out. */
#ifndef CRIA_TESTS_GRADIENT_CHECK_H
#define CRIA_TESTS_GRADIENT_CHECK_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/autodiff/tape.h"
#include "model/core/philox.h"
#include "model/ops/ops.h"
#include "tests/check_main.h"

enum { MAX_INPUTS = 2, CAPACITY = 32, MAX_SEGMENTS = 9, MAX_SAMPLES = 4, VOCABULARY = 23 };

/* Inputs are drawn from [low, high). */
typedef struct {
    RowsKind rows;
    int width;
    double low, high;
} Leaf;

typedef struct Problem Problem;

typedef struct {
    const char *op, *what; /* the row of ops.def; what is special about this case */
    int n_inputs;
    Leaf inputs[MAX_INPUTS];
    int weight_rows, weight_cols; /* 0: no weight */
    RowsKind out_rows;
    int out_width;
    Tensor *(*record)(Problem *p, Tape *tape, Tensor *const *in, Weight *weight);
    void (*formula)(const Problem *p, double *y);
    double number[2]; /* of the op: a scale, bounds, … */
    int shape[4];
    const void *extra; /* values of an input that is not differentiated: see Problem */
} Case;

struct Problem {
    const Case *c;
    TapeBatch batch;
    double *x[MAX_INPUTS], *w; /* what the formula reads: fp32 values, so that both start from the same numbers */
    float *x32[MAX_INPUTS], *w32, *seed;
    size_t n_x[MAX_INPUTS], n_w, n_y;
    double *y, *dx[MAX_INPUTS], *dw; /* the formula's value and gradients for `seed` */
    Tensor *extra;  /* where the op reads one more input, an index or a mask: bound to the case's `extra` */
    void *owned[4]; /* tables that `record` made */
};

/* ---- batches ---- */

typedef struct {
    int32_t tokens[CAPACITY], positions[CAPACITY], targets[CAPACITY], slots[CAPACITY], start[MAX_SEGMENTS + 1];
} BatchArrays;

/* Segments of these lengths; positions restart in each. */
static inline TapeBatch make_batch(BatchArrays *a, int n_segments, const int *lengths, int n_samples) {
    PhiloxKey key = philox_key(5, PHILOX_TEST, 0, 0);
    int t = 0;
    for (int s = 0; s < n_segments; s++) {
        a->start[s] = t;
        for (int i = 0; i < lengths[s]; i++, t++) {
            a->positions[t] = i;
            a->slots[t] = s;
            a->tokens[t] = (int32_t)philox_below(key, (uint64_t)(2 * t), VOCABULARY);
            a->targets[t] = (int32_t)philox_below(key, (uint64_t)(2 * t + 1), VOCABULARY);
        }
    }
    a->start[n_segments] = t;
    return (TapeBatch){.n_tokens = t,
                       .n_segments = n_segments,
                       .n_samples = n_samples,
                       .tokens = a->tokens,
                       .positions = a->positions,
                       .segment_start = a->start,
                       .targets = a->targets,
                       .slots = a->slots};
}

static inline size_t rows_of(const TapeBatch *batch, RowsKind rows) {
    int n = rows == ROWS_TOKENS     ? batch->n_tokens
            : rows == ROWS_SEGMENTS ? batch->n_segments
            : rows == ROWS_SAMPLES  ? batch->n_samples
                                    : 1;
    return (size_t)n;
}

/* ---- numbers ---- */

static inline void *array(size_t n, size_t size) {
    void *a = calloc(n ? n : 1, size);
    ck_assert_ptr_nonnull(a);
    return a;
}

static inline float *random_floats(size_t n, double low, double high, uint64_t seed) {
    float *a = array(n, sizeof *a);
    PhiloxKey key = philox_key(seed, PHILOX_TEST, 1, 0);
    for (size_t i = 0; i < n; i++) a[i] = (float)(low + (high - low) * (double)philox_uniform(key, i));
    return a;
}

static inline double *doubles(const float *x, size_t n) {
    double *a = array(n, sizeof *a);
    for (size_t i = 0; i < n; i++) a[i] = (double)x[i];
    return a;
}

/* ‖a - b‖ / ‖b‖; NaN where a has one. */
static inline double relative_error(const float *a, const double *b, size_t n) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    for (size_t i = 0; i < n; i++) norm += b[i] * b[i];
    if (difference == 0) return 0;
    return sqrt(difference) / sqrt(norm);
}

/* ---- the reference ---- */

static inline double seeded_sum(Problem *p, double *y) {
    double sum = 0;
    p->c->formula(p, y);
    for (size_t i = 0; i < p->n_y; i++) sum += (double)p->seed[i] * y[i];
    return sum;
}

static inline double *differences(Problem *p, double *x, size_t n) {
    const double h = 1e-5;
    double *gradient = array(n, sizeof *gradient), *y = array(p->n_y, sizeof *y);
    for (size_t i = 0; i < n; i++) {
        double value = x[i];
        x[i] = value + h;
        double above = seeded_sum(p, y);
        x[i] = value - h;
        double below = seeded_sum(p, y);
        x[i] = value;
        gradient[i] = (above - below) / (2 * h);
    }
    free(y);
    return gradient;
}

static inline Problem problem_new(const Case *c, TapeBatch batch) {
    Problem p = {.c = c, .batch = batch};
    for (int i = 0; i < c->n_inputs; i++) {
        p.n_x[i] = rows_of(&batch, c->inputs[i].rows) * (size_t)c->inputs[i].width;
        p.x32[i] = random_floats(p.n_x[i], c->inputs[i].low, c->inputs[i].high, 10 + (uint64_t)i);
        p.x[i] = doubles(p.x32[i], p.n_x[i]);
    }
    p.n_w = (size_t)c->weight_rows * (size_t)c->weight_cols;
    p.w32 = random_floats(p.n_w, -1, 1, 20);
    p.w = doubles(p.w32, p.n_w);
    p.n_y = rows_of(&batch, c->out_rows) * (size_t)c->out_width;
    p.seed = random_floats(p.n_y, -1, 1, 30);
    p.y = array(p.n_y, sizeof *p.y);
    c->formula(&p, p.y);
    return p;
}

static inline void problem_differentiate(Problem *p) {
    for (int i = 0; i < p->c->n_inputs; i++) p->dx[i] = differences(p, p->x[i], p->n_x[i]);
    p->dw = differences(p, p->w, p->n_w);
}

static inline void problem_free(Problem *p) {
    for (int i = 0; i < MAX_INPUTS; i++) {
        free(p->x[i]);
        free(p->x32[i]);
        free(p->dx[i]);
    }
    free(p->w);
    free(p->w32);
    free(p->seed);
    free(p->y);
    free(p->dw);
}

/* ---- the operation on a tape ---- */

typedef enum {
    MODE_PLAIN,      /* input -> op -> seed */
    MODE_SHARED,     /* the inputs have a second consumer, whose gradient comes first: the op must add to it */
    MODE_CHAIN,      /* input -> scale -> op -> scale -> seed: in place wherever the op allows it */
    MODE_RECOMPUTED, /* the chain, recomputed in backward */
    MODE_FROZEN,     /* the weight is frozen and has no gradient array */
    MODE_WEIGHTS,    /* the inputs are not differentiable */
    MODE_INFERENCE,  /* forward alone */
    MODES
} Mode;

typedef struct {
    float *y, *dx[MAX_INPUTS], *dw;
} Measured;

enum { CHAIN_FACTOR = 2 };
static const double shared_factor = 0.5;

static inline float *copy_floats(const float *x, size_t n) {
    float *a = array(n, sizeof *a);
    if (x) memcpy(a, x, n * sizeof *a);
    return a;
}

/* Replays the case's op once in its surroundings. */
static inline Measured measure(Problem *p, Mode mode) {
    const Case *c = p->c;
    bool chain = mode == MODE_CHAIN || mode == MODE_RECOMPUTED;
    Tape *tape = tape_new(&(TapeOptions){
        .capacity = CAPACITY, .segments = MAX_SEGMENTS, .samples = MAX_SAMPLES, .training = mode != MODE_INFERENCE});
    float *dw0 = random_floats(p->n_w, -1, 1, 40), *dw = copy_floats(dw0, p->n_w);
    const char *name = "w";
    Weight weight = {.rows = c->weight_rows,
                     .cols = c->weight_cols,
                     .n_dims = 2,
                     .value = p->w32,
                     .grad = mode == MODE_FROZEN ? NULL : dw,
                     .trainable = mode != MODE_FROZEN,
                     .n_views = 1,
                     .views = {{name, 0, c->weight_rows}}};
    Tensor *leaf[MAX_INPUTS] = {0}, *in[MAX_INPUTS] = {0}, *other_seed[MAX_INPUTS] = {0};
    float *other[MAX_INPUTS] = {0};
    p->extra = NULL;
    for (int i = 0; i < c->n_inputs; i++)
        leaf[i] = tape_input(tape, c->inputs[i].rows, c->inputs[i].width, DTYPE_F32, mode != MODE_WEIGHTS);
    if (mode == MODE_RECOMPUTED) tape_recompute_begin(tape);
    for (int i = 0; i < c->n_inputs; i++) in[i] = chain ? op_scale(tape, leaf[i], 1, 0) : leaf[i];
    Tensor *y = c->record(p, tape, in, c->weight_rows ? &weight : NULL);
    if (chain) y = op_scale(tape, y, CHAIN_FACTOR, 0);
    if (mode == MODE_RECOMPUTED) tape_recompute_end(tape);
    tape_keep(y);
    Tensor *seed = tape_input(tape, c->out_rows, c->out_width, DTYPE_F32, false);
    if (mode != MODE_INFERENCE) tape_seed(tape, y, seed);
    for (int i = 0; i < c->n_inputs && mode == MODE_SHARED; i++) {
        other_seed[i] = tape_input(tape, c->inputs[i].rows, c->inputs[i].width, DTYPE_F32, false);
        tape_seed(tape, op_scale(tape, in[i], (float)shared_factor, 0), other_seed[i]);
        other[i] = random_floats(p->n_x[i], -1, 1, 50 + (uint64_t)i);
        tape_bind_input(0, other_seed[i], other[i]);
    }
    ck_assert_msg(tape_plan(tape) == OK, "%s (%s): %s", c->op, c->what, error_text());
    CHECK_OK(tape_bind(tape, 0, &p->batch));
    for (int i = 0; i < c->n_inputs; i++) tape_bind_input(0, leaf[i], p->x32[i]);
    float *seed_values = copy_floats(p->seed, p->n_y);
    tape_bind_input(0, seed, seed_values);
    if (p->extra) tape_bind_input(0, p->extra, c->extra);
    CHECK_OK(tape_forward(tape, 0));
    Measured m = {.y = copy_floats(tape_value(tape, 0, y), p->n_y)};
    if (mode != MODE_INFERENCE) CHECK_OK(tape_backward(tape, 0));
    ck_assert_msg(memcmp(seed_values, p->seed, p->n_y * sizeof(float)) == 0, "%s (%s): wrote over its seed", c->op,
                  c->what);
    for (int i = 0; i < c->n_inputs; i++) {
        m.dx[i] = copy_floats(tape_grad(tape, 0, leaf[i]), p->n_x[i]);
        for (size_t j = 0; j < p->n_x[i]; j++) {
            if (mode == MODE_SHARED) m.dx[i][j] -= (float)shared_factor * other[i][j];
            if (chain) m.dx[i][j] /= CHAIN_FACTOR;
        }
        free(other[i]);
    }
    m.dw = dw;
    for (size_t j = 0; j < p->n_w; j++) m.dw[j] = (m.dw[j] - dw0[j]) / (chain ? CHAIN_FACTOR : 1);
    for (size_t j = 0; j < p->n_y && chain; j++) m.y[j] /= CHAIN_FACTOR;
    free(dw0);
    free(seed_values);
    tape_free(tape);
    for (int i = 0; i < 4; i++) {
        free(p->owned[i]);
        p->owned[i] = NULL;
    }
    return m;
}

static inline void measured_free(Measured *m) {
    free(m->y);
    free(m->dw);
    for (int i = 0; i < MAX_INPUTS; i++) free(m->dx[i]);
}

#endif
