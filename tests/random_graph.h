/* Random graphs of operations: drawn by Philox, interpreted in fp64, and recorded on a tape. A draw is taken back where
 * it would make numbers large or lie near a kink (where a finite difference means nothing). */
#ifndef CRIA_TESTS_RANDOM_GRAPH_H
#define CRIA_TESTS_RANDOM_GRAPH_H

#include "tests/gradient_check.h"

enum { MAX_VALUES = 48, GRAPH_INPUTS = 3, GRAPH_WEIGHTS = 3, MAX_ELEMENTS = CAPACITY * 8 };

typedef enum {
    G_INPUT, /* in order: inputs first */
    G_ADD,
    G_MUL,
    G_MIN,
    G_SCALE,
    G_EXP,
    G_LOG,
    G_SIGMOID,
    G_LOG_SIGMOID,
    G_CLAMP,
    G_LINEAR,
    G_RMSNORM,
    G_SWIGLU,
    G_SEGMENT_SUM,
    G_SEGMENT_MEAN,
    G_SUM,
    G_MEAN,
    G_GATHER,
    G_KINDS
} GraphKind;

typedef struct {
    GraphKind kind;
    int a, b, weight; /* values and weight read */
    RowsKind rows;
    int width, region; /* recompute region, or -1 */
    bool kept, used;
} GraphValue;

typedef struct {
    PhiloxKey key;
    uint64_t draws;
    TapeBatch batch;
    BatchArrays arrays;
    int32_t index[CAPACITY]; /* of G_GATHER: segments' rows from tokens */
    int n_values, n_weights, n_regions;
    GraphValue values[MAX_VALUES];
    int weight_rows[GRAPH_WEIGHTS], weight_cols[GRAPH_WEIGHTS];
    bool frozen[GRAPH_WEIGHTS];
    float *x32[GRAPH_INPUTS], *w32[GRAPH_WEIGHTS], *seed[MAX_VALUES];
    double *x[GRAPH_INPUTS], *w[GRAPH_WEIGHTS], *out[MAX_VALUES];
} Graph;

static inline size_t graph_elements(const Graph *g, int v) {
    return rows_of(&g->batch, g->values[v].rows) * (size_t)g->values[v].width;
}

/* ---- the interpreter ---- */

static inline double graph_unary(GraphKind kind, double a) {
    switch (kind) {
    case G_SCALE:
        return -0.75 * a + 0.25;
    case G_EXP:
        return exp(a);
    case G_LOG:
        return log(a);
    case G_SIGMOID:
        return 1 / (1 + exp(-a));
    case G_LOG_SIGMOID:
        return -log1p(exp(-a));
    default:
        return fmin(fmax(a, -0.5), 1);
    }
}

static inline void graph_rows(const Graph *g, int v) {
    const GraphValue *value = &g->values[v];
    const double *a = g->out[value->a];
    size_t width = (size_t)value->width, n = rows_of(&g->batch, g->values[value->a].rows);
    size_t groups = rows_of(&g->batch, value->rows);
    bool segments = value->rows == ROWS_SEGMENTS, mean = value->kind == G_SEGMENT_MEAN || value->kind == G_MEAN;
    for (size_t s = 0; s < groups; s++)
        for (size_t j = 0; j < width; j++) {
            size_t begin = segments ? (size_t)g->batch.segment_start[s] : 0;
            size_t end = segments ? (size_t)g->batch.segment_start[s + 1] : n;
            double sum = 0;
            for (size_t r = begin; r < end; r++) sum += a[r * width + j];
            g->out[v][s * width + j] = mean && end > begin ? sum / (double)(end - begin) : sum;
        }
}

static inline void graph_products(const Graph *g, int v) {
    const GraphValue *value = &g->values[v];
    size_t width = (size_t)value->width, k = (size_t)g->values[value->a].width;
    const double *w = g->w[value->weight];
    for (size_t i = 0; i < graph_elements(g, v); i++) {
        const double *row = g->out[value->a] + i / width * k;
        double sum = 0, squares = 0;
        for (size_t j = 0; j < k; j++) squares += row[j] * row[j];
        if (value->kind == G_LINEAR) {
            for (size_t j = 0; j < k; j++) sum += row[j] * w[i % width * k + j];
            g->out[v][i] = sum;
        } else {
            g->out[v][i] = row[i % width] / sqrt(squares / (double)k + 0.5) * w[i % width];
        }
    }
}

static inline void graph_value(const Graph *g, int v) {
    const GraphValue *value = &g->values[v];
    size_t n = graph_elements(g, v), width = (size_t)value->width;
    double *y = g->out[v];
    const double *a = g->out[value->a], *b = g->out[value->b];
    switch (value->kind) {
    case G_INPUT:
        memcpy(y, g->x[v], n * sizeof *y);
        break;
    case G_ADD:
    case G_MUL:
    case G_MIN:
        for (size_t i = 0; i < n; i++)
            y[i] = value->kind == G_ADD ? a[i] + b[i] : value->kind == G_MUL ? a[i] * b[i] : fmin(a[i], b[i]);
        break;
    case G_LINEAR:
    case G_RMSNORM:
        graph_products(g, v);
        break;
    case G_SWIGLU:
        for (size_t i = 0; i < n; i++) {
            const double *row = a + i / width * 2 * width;
            y[i] = row[i % width] / (1 + exp(-row[i % width])) * row[width + i % width];
        }
        break;
    case G_GATHER:
        for (size_t i = 0; i < n; i++) y[i] = a[(size_t)g->index[i / width] * width + i % width];
        break;
    case G_SEGMENT_SUM:
    case G_SEGMENT_MEAN:
    case G_SUM:
    case G_MEAN:
        graph_rows(g, v);
        break;
    default:
        for (size_t i = 0; i < n; i++) y[i] = graph_unary(value->kind, a[i]);
    }
}

/* Σ over sinks of seed·value. */
static inline double graph_loss(const Graph *g) {
    double loss = 0;
    for (int v = 0; v < g->n_values; v++) graph_value(g, v);
    for (int v = 0; v < g->n_values; v++)
        for (size_t i = 0; !g->values[v].used && i < graph_elements(g, v); i++)
            loss += (double)g->seed[v][i] * g->out[v][i];
    return loss;
}

static inline double *graph_differences(const Graph *g, double *x, size_t n) {
    double *gradient = array(n, sizeof *gradient), h = 1e-5;
    for (size_t i = 0; i < n; i++) {
        double value = x[i];
        x[i] = value + h;
        double above = graph_loss(g);
        x[i] = value - h;
        gradient[i] = (above - graph_loss(g)) / (2 * h);
        x[i] = value;
    }
    return gradient;
}

/* ---- drawing ---- */

static inline int draw(Graph *g, int bound) {
    return (int)philox_below(g->key, g->draws++, (uint64_t)bound);
}

/* A shape and operands for a new value of this kind; false where what was drawn does not fit. */
static inline bool graph_fits(Graph *g, GraphValue *value) {
    const GraphValue *a = &g->values[value->a], *b = &g->values[value->b];
    value->rows = a->rows;
    value->width = a->width;
    switch (value->kind) {
    case G_ADD:
    case G_MUL:
        return a->rows == b->rows && a->width == b->width;
    case G_MIN:
        return a->rows == b->rows && a->width == b->width && a != b;
    case G_LINEAR:
        value->width = g->weight_rows[value->weight];
        return g->weight_cols[value->weight] == a->width && value->weight != 2;
    case G_RMSNORM:
        return g->weight_cols[value->weight] == a->width && value->weight == 2;
    case G_SWIGLU:
        value->width = a->width / 2;
        return a->width % 2 == 0;
    case G_SEGMENT_SUM:
    case G_SEGMENT_MEAN:
    case G_GATHER:
        value->rows = ROWS_SEGMENTS;
        return a->rows == ROWS_TOKENS;
    case G_SUM:
    case G_MEAN:
        value->rows = ROWS_ONE;
        return a->rows != ROWS_ONE;
    default:
        return true;
    }
}

/* The numbers stay moderate and away from kinks. */
static inline bool graph_is_smooth(const Graph *g, int v) {
    const double largest = 8, clear = 1e-3;
    const GraphValue *value = &g->values[v];
    const double *a = g->out[value->a], *b = g->out[value->b];
    for (size_t i = 0; i < graph_elements(g, value->a); i++) {
        if (value->kind == G_MIN && fabs(a[i] - b[i]) < clear) return false;
        if (value->kind == G_CLAMP && (fabs(a[i] + 0.5) < clear || fabs(a[i] - 1) < clear)) return false;
        if (value->kind == G_LOG && a[i] < 0.1) return false;
    }
    for (size_t i = 0; i < graph_elements(g, v); i++)
        if (!(fabs(g->out[v][i]) < largest)) return false;
    return true;
}

static inline void graph_grow(Graph *g, bool regions) {
    static const int one_in = 4;
    int region = -1;
    for (int tries = 0; tries < 400 && g->n_values < MAX_VALUES; tries++) {
        int v = g->n_values;
        if (regions && draw(g, one_in) == 0) region = region >= 0 ? -1 : g->n_regions++;
        GraphValue value = {.kind = (GraphKind)(1 + draw(g, G_KINDS - 1)),
                            .a = draw(g, v),
                            .b = draw(g, v),
                            .weight = draw(g, GRAPH_WEIGHTS),
                            .region = region};
        if (!graph_fits(g, &value)) continue;
        g->values[v] = value;
        graph_value(g, v);
        if (!graph_is_smooth(g, v)) continue;
        bool binary = value.kind == G_ADD || value.kind == G_MUL || value.kind == G_MIN;
        g->values[value.a].used = true;
        if (binary) g->values[value.b].used = true;
        g->values[v].kept = draw(g, one_in) == 0;
        g->n_values++;
    }
}

static inline Graph *graph_new(uint64_t seed, bool regions) {
    static const int lengths[] = {3, 1, 0, 5}, rows[] = {4, 6, 1}, cols[] = {4, 4, 4};
    Graph *g = array(1, sizeof *g);
    g->key = philox_key(seed, PHILOX_TEST, 7, 0);
    g->batch = make_batch(&g->arrays, 4, lengths, 2);
    g->n_values = GRAPH_INPUTS;
    for (int s = 0; s < g->batch.n_segments; s++) g->index[s] = draw(g, g->batch.n_tokens);
    for (int w = 0; w < GRAPH_WEIGHTS; w++) {
        size_t n = (size_t)rows[w] * (size_t)cols[w];
        g->weight_rows[w] = rows[w];
        g->weight_cols[w] = cols[w];
        g->frozen[w] = draw(g, 3) == 0;
        g->w32[w] = random_floats(n, -1, 1, seed * 10 + (uint64_t)w);
        g->w[w] = doubles(g->w32[w], n);
    }
    for (int v = 0; v < MAX_VALUES; v++) {
        g->out[v] = array(MAX_ELEMENTS, sizeof(double));
        g->seed[v] = random_floats(MAX_ELEMENTS, -1, 1, seed * 100 + (uint64_t)v);
    }
    for (int v = 0; v < GRAPH_INPUTS; v++) {
        g->values[v] =
            (GraphValue){.kind = G_INPUT, .rows = v == 2 ? ROWS_SEGMENTS : ROWS_TOKENS, .width = 4, .region = -1};
        g->x32[v] = random_floats(graph_elements(g, v), -2, 2, seed * 1000 + (uint64_t)v);
        g->x[v] = doubles(g->x32[v], graph_elements(g, v));
        graph_value(g, v);
    }
    graph_grow(g, regions);
    for (int v = 0; v < GRAPH_INPUTS; v++) g->values[v].used = true; /* never seeded */
    return g;
}

static inline void graph_free(Graph *g) {
    for (int i = 0; i < GRAPH_INPUTS; i++) {
        free(g->x[i]);
        free(g->x32[i]);
    }
    for (int i = 0; i < GRAPH_WEIGHTS; i++) {
        free(g->w[i]);
        free(g->w32[i]);
    }
    for (int v = 0; v < MAX_VALUES; v++) {
        free(g->out[v]);
        free(g->seed[v]);
    }
    free(g);
}

/* ---- recording ---- */

typedef struct {
    Tensor *values[MAX_VALUES], *seeds[MAX_VALUES], *index;
    Weight weights[GRAPH_WEIGHTS];
    float *dw[GRAPH_WEIGHTS];
} Recording;

static inline Tensor *graph_record_value(Tape *tape, Recording *r, const GraphValue *value) {
    Tensor *a = r->values[value->a], *b = r->values[value->b];
    switch (value->kind) {
    case G_ADD:
        return op_add(tape, a, b);
    case G_MUL:
        return op_mul(tape, a, b);
    case G_MIN:
        return op_min(tape, a, b);
    case G_SCALE:
        return op_scale(tape, a, -0.75f, 0.25f);
    case G_EXP:
        return op_exp(tape, a);
    case G_LOG:
        return op_log(tape, a);
    case G_SIGMOID:
        return op_sigmoid(tape, a);
    case G_LOG_SIGMOID:
        return op_log_sigmoid(tape, a);
    case G_LINEAR:
        return op_linear(tape, a, &r->weights[value->weight]);
    case G_RMSNORM:
        return op_rmsnorm(tape, a, &r->weights[value->weight], 0.5f);
    case G_SWIGLU:
        return op_swiglu(tape, a);
    case G_SEGMENT_SUM:
        return op_segment_sum(tape, a);
    case G_SEGMENT_MEAN:
        return op_segment_mean(tape, a);
    case G_SUM:
        return op_sum(tape, a);
    case G_MEAN:
        return op_mean(tape, a);
    case G_GATHER:
        return op_gather(tape, a, r->index);
    default:
        return op_clamp(tape, a, -0.5f, 1);
    }
}

/* Records and plans the graph; `recompute`: its regions are recomputed; `keep_all`: every value is kept. */
static inline Recording *graph_record(Graph *g, Tape *tape, bool recompute, bool keep_all) {
    Recording *r = array(1, sizeof *r);
    int region = -1;
    for (int w = 0; w < GRAPH_WEIGHTS; w++) {
        r->dw[w] = array((size_t)(g->weight_rows[w] * g->weight_cols[w]), sizeof(float));
        r->weights[w] = (Weight){.rows = g->weight_rows[w],
                                 .cols = g->weight_cols[w],
                                 .n_dims = 2,
                                 .value = g->w32[w],
                                 .grad = g->frozen[w] ? NULL : r->dw[w],
                                 .trainable = !g->frozen[w],
                                 .n_views = 1,
                                 .views = {{"w", 0, g->weight_rows[w]}}};
    }
    r->index = tape_input(tape, ROWS_SEGMENTS, 1, DTYPE_I32, false);
    for (int v = 0; v < g->n_values; v++) {
        const GraphValue *value = &g->values[v];
        if (recompute && value->region != region) {
            if (region >= 0) tape_recompute_end(tape);
            if (value->region >= 0) tape_recompute_begin(tape);
            region = value->region;
        }
        r->values[v] = value->kind == G_INPUT ? tape_input(tape, value->rows, value->width, DTYPE_F32, true)
                                              : graph_record_value(tape, r, value);
        if (value->kept || keep_all) tape_keep(r->values[v]);
        if (value->used) continue;
        r->seeds[v] = tape_input(tape, value->rows, value->width, DTYPE_F32, false);
        tape_seed(tape, r->values[v], r->seeds[v]);
    }
    if (region >= 0) tape_recompute_end(tape);
    CHECK_OK(tape_plan(tape));
    return r;
}

static inline void graph_bind(const Graph *g, Tape *tape, const Recording *r, int buffer) {
    CHECK_OK(tape_bind(tape, buffer, &g->batch));
    tape_bind_input(buffer, r->index, g->index);
    for (int v = 0; v < GRAPH_INPUTS; v++) tape_bind_input(buffer, r->values[v], g->x32[v]);
    for (int v = 0; v < g->n_values; v++)
        if (r->seeds[v]) tape_bind_input(buffer, r->seeds[v], g->seed[v]);
}

static inline void recording_free(Recording *r) {
    for (int w = 0; w < GRAPH_WEIGHTS; w++) free(r->dw[w]);
    free(r);
}

#endif
