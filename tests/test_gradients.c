/* Every row of ops.def against fp64: forward against a formula, backward against finite differences of it, with each
 * kernel table that this CPU has. A row without a case here fails. */
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/ops/registry.h"
#include "tests/gradient_formulas.h"

/* ---- recording ---- */

#define UNARY(name)                                                                           \
    static Tensor *record_##name(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) { \
        (void)p;                                                                              \
        (void)weight;                                                                         \
        return op_##name(tape, in[0]);                                                        \
    }
#define BINARY(name)                                                                          \
    static Tensor *record_##name(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) { \
        (void)p;                                                                              \
        (void)weight;                                                                         \
        return op_##name(tape, in[0], in[1]);                                                 \
    }
UNARY(exp)
UNARY(log)
UNARY(sigmoid)
UNARY(log_sigmoid)
UNARY(swiglu)
UNARY(segment_sum)
UNARY(segment_mean)
UNARY(sum)
UNARY(mean)
BINARY(add)
BINARY(mul)
BINARY(min)

static Tensor *record_scale(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    (void)weight;
    return op_scale(tape, in[0], (float)p->c->number[0], (float)p->c->number[1]);
}

static Tensor *record_clamp(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    (void)weight;
    return op_clamp(tape, in[0], (float)p->c->number[0], (float)p->c->number[1]);
}

static Tensor *record_embedding(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    (void)p;
    (void)in;
    return op_embedding(tape, weight);
}

static Tensor *record_linear(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    (void)p;
    return op_linear(tape, in[0], weight);
}

static Tensor *record_logits(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    (void)p;
    return op_logits(tape, in[0], weight);
}

static Tensor *record_score(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    (void)p;
    return op_score(tape, in[0], weight);
}

static Tensor *record_rmsnorm(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    return op_rmsnorm(tape, in[0], weight, (float)p->c->number[0]);
}

static Tensor *record_qkv(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    int half = p->c->shape[1] / 2;
    float *table = array((size_t)(2 * CAPACITY * half), sizeof *table), *sines = table + CAPACITY * half;
    p->owned[0] = table;
    rotary_tables(table, sines, CAPACITY, 2 * half, (float)rotary_theta, (RotaryScaling){0});
    return op_qkv(tape, in[0], weight, p->c->shape[0], (RotaryTable){table, sines, CAPACITY, 2 * half});
}

static Tensor *record_residual(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    (void)p;
    (void)weight;
    return op_residual(tape, in[0], in[1]);
}

/* The sum joins the output where it has a factor; else nothing but the norm reads it. */
static Tensor *record_add_rmsnorm(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    Normed out = op_add_rmsnorm(tape, in[0], in[1], weight, (float)p->c->number[0]);
    if (p->c->number[1] == 0) return out.y;
    return op_add(tape, op_scale(tape, out.sum, (float)p->c->number[1], 0), out.y);
}

static AttentionShape attention_shape(const Case *c) {
    return (AttentionShape){c->shape[0], c->shape[1], c->shape[2], (float)c->number[0]};
}

static Tensor *record_attention(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    (void)weight;
    return op_attention(tape, in[0], attention_shape(p->c));
}

/* Every segment is a sequence of its own in the cache. */
static Tensor *record_attention_cached(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    size_t floats = (size_t)(MAX_SEGMENTS * CACHE_PAGE * p->c->shape[1] * p->c->shape[2]);
    (void)weight;
    p->owned[0] = random_floats(floats, -1, 1, 60);
    p->owned[1] = random_floats(floats, -1, 1, 61);
    static int32_t pages[MAX_SEGMENTS];
    for (int32_t s = 0; s < MAX_SEGMENTS; s++) pages[s] = MAX_SEGMENTS - 1 - s;
    _Static_assert((int)CAPACITY <= (int)CACHE_PAGE, "a sequence is a page");
    KvLayer cache = {p->owned[0],
                     p->owned[1],
                     pages,
                     1,
                     MAX_SEGMENTS,
                     CAPACITY,
                     (size_t)(CACHE_PAGE * p->c->shape[1] * p->c->shape[2]),
                     DTYPE_F32};
    return op_attention_cached(tape, in[0], attention_shape(p->c), &cache);
}

static Tensor *record_head(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    HeadOptions options = {.logit_scale = (float)p->c->number[0]};
    if (p->c->extra) options.mask = p->extra = tape_input(tape, ROWS_TOKENS, 1, DTYPE_F32, false);
    return op_head(tape, in[0], weight, options).logprob;
}

static Tensor *record_gather(Problem *p, Tape *tape, Tensor *const *in, Weight *weight) {
    (void)weight;
    p->extra = tape_input(tape, p->c->out_rows, 1, DTYPE_I32, false);
    return op_gather(tape, in[0], p->extra);
}

/* ---- the table ---- */

#define INPUT(kind, width)              \
    {                                   \
        { ROWS_##kind, (width), -2, 2 } \
    }
#define TWO_INPUTS(kind, width)          \
    {                                    \
        {ROWS_##kind, (width), -2, 2}, { \
            ROWS_##kind, (width), -2, 2  \
        }                                \
    }
#define FUNCTIONS(name) .record = record_##name, .formula = formula_##name
/* The output has the input's shape. */
#define SAME(name, comment, kind, width)                                                                  \
    .op = #name, .what = (comment), .n_inputs = 1, .inputs = INPUT(kind, width), .out_rows = ROWS_##kind, \
    .out_width = (width), FUNCTIONS(name)
#define PAIR(name, comment, kind, width)                                                                       \
    .op = #name, .what = (comment), .n_inputs = 2, .inputs = TWO_INPUTS(kind, width), .out_rows = ROWS_##kind, \
    .out_width = (width), FUNCTIONS(name)
#define LINEAR(kind, k, n)                                                                                    \
    .op = "linear", .what = #kind " " #k "x" #n, .n_inputs = 1, .inputs = INPUT(kind, k), .weight_rows = (n), \
    .weight_cols = (k), .out_rows = ROWS_##kind, .out_width = (n), FUNCTIONS(linear)
#define SCORE(kind, k, n)                                                                                    \
    .op = "score", .what = #kind " " #k "x" #n, .n_inputs = 1, .inputs = INPUT(kind, k), .weight_rows = (n), \
    .weight_cols = (k), .out_rows = ROWS_##kind, .out_width = (n), .record = record_score, .formula = formula_linear
#define RMSNORM(kind, width) \
    SAME(rmsnorm, #kind " " #width, kind, width), .weight_rows = 1, .weight_cols = (width), .number = {1e-5}
#define ADD_RMSNORM(kind, width, factor)                                                                            \
    PAIR(add_rmsnorm, #kind " " #width ", factor " #factor, kind, width), .weight_rows = 1, .weight_cols = (width), \
                                                                          .number = {1e-5, (factor)}
#define QKV(heads, hd, k, total)                                                                                     \
    .op = "qkv", .what = #heads " heads of " #hd, .n_inputs = 1, .inputs = INPUT(TOKENS, k), .weight_rows = (total), \
    .weight_cols = (k), .out_rows = ROWS_TOKENS, .out_width = (total), .shape = {(heads), (hd)}, FUNCTIONS(qkv)
#define ATTENTION(h, kv, hd, scale)                                                                       \
    .what = #h "/" #kv " heads of " #hd, .n_inputs = 1, .inputs = INPUT(TOKENS, ((h) + 2 * (kv)) * (hd)), \
    .out_rows = ROWS_TOKENS, .out_width = (h) * (hd), .number = {(scale)}, .shape = {(h), (kv), (hd)},    \
    .formula = formula_attention
#define SWIGLU(kind, width)                                                                      \
    .op = "swiglu", .what = #kind " " #width, .n_inputs = 1, .inputs = INPUT(kind, 2 * (width)), \
    .out_rows = ROWS_##kind, .out_width = (width), FUNCTIONS(swiglu)
#define HEAD(width, scale)                                                                            \
    .op = "head", .what = "width " #width ", scale " #scale, .n_inputs = 1,                           \
    .inputs = {{ROWS_TOKENS, (width), -0.5, 0.5}}, .weight_rows = VOCABULARY, .weight_cols = (width), \
    .out_rows = ROWS_TOKENS, .out_width = 1, .number = {(scale)}, FUNCTIONS(head)
#define REDUCTION(name, kind, width, to)                                                                       \
    .op = #name, .what = #kind " " #width, .n_inputs = 1, .inputs = INPUT(kind, width), .out_rows = ROWS_##to, \
    .out_width = (width), FUNCTIONS(name)

/* With repetitions, and rows that nothing points at. */
static const int32_t index_values[CAPACITY] = {2, 0, 2, 1, 1, 4, 0, 3, 2};
static const float mask_values[CAPACITY] = {1, 0, 0, 1, 0.5f, -2, 0, 0, 1, 1, 0, 1};

static const Case cases[] = {
    {.op = "embedding",
     .what = "",
     .weight_rows = VOCABULARY,
     .weight_cols = 37,
     .out_rows = ROWS_TOKENS,
     .out_width = 37,
     FUNCTIONS(embedding)},
    {LINEAR(TOKENS, 19, 7)},
    {LINEAR(SAMPLES, 1, 1)},
    {LINEAR(SEGMENTS, 33, 18)},
    {.op = "logits",
     .what = "",
     .n_inputs = 1,
     .inputs = INPUT(SAMPLES, 19),
     .weight_rows = 7,
     .weight_cols = 19,
     .out_rows = ROWS_SAMPLES,
     .out_width = 7,
     .record = record_logits,
     .formula = formula_linear},
    {SCORE(TOKENS, 19, 1)},
    {SCORE(TOKENS, 21, 2)},
    {SCORE(SEGMENTS, 70, 1)},
    {SCORE(SEGMENTS, 70, 3)},
    {SCORE(SAMPLES, 1, 1)},
    {RMSNORM(TOKENS, 37)},
    {RMSNORM(SEGMENTS, 3)},
    {RMSNORM(TOKENS, 16)},
    {PAIR(residual, "", TOKENS, 19)},
    {ADD_RMSNORM(TOKENS, 37, 0)},
    {ADD_RMSNORM(TOKENS, 16, 0.5)},
    {ADD_RMSNORM(SEGMENTS, 3, 2)},
    {QKV(3, 6, 13, 31)},
    {QKV(2, 34, 20, 68)},
    {.op = "attention", .record = record_attention, ATTENTION(4, 2, 6, 0)},
    {.op = "attention", .record = record_attention, ATTENTION(3, 3, 17, 0)},
    {.op = "attention", .record = record_attention, ATTENTION(5, 1, 8, 0.7)},
    {.op = "attention_cached", .record = record_attention_cached, ATTENTION(4, 2, 6, 0)},
    {.op = "attention_cached", .record = record_attention_cached, ATTENTION(3, 1, 33, 0.2)},
    {SWIGLU(TOKENS, 19)},
    {SWIGLU(SEGMENTS, 1)},
    {HEAD(19, 1)},
    {HEAD(5, 1.7)},
    {HEAD(6, 1), .extra = mask_values},
    {PAIR(add, "", TOKENS, 19)},
    {PAIR(add, "one row", ONE, 1)},
    {PAIR(mul, "", TOKENS, 5)},
    {PAIR(mul, "segments", SEGMENTS, 1)},
    {PAIR(min, "", TOKENS, 5)},
    {SAME(scale, "", TOKENS, 7), .number = {-1.7, 0.3}},
    {SAME(exp, "", TOKENS, 7)},
    {.op = "log",
     .what = "",
     .n_inputs = 1,
     .inputs = {{ROWS_TOKENS, 7, 0.3, 3}},
     .out_rows = ROWS_TOKENS,
     .out_width = 7,
     FUNCTIONS(log)},
    {SAME(sigmoid, "", TOKENS, 7)},
    {SAME(sigmoid, "samples", SAMPLES, 1)},
    {SAME(log_sigmoid, "", TOKENS, 7)},
    {SAME(clamp, "", TOKENS, 7), .number = {-0.9, 1.1}},
    {REDUCTION(segment_sum, TOKENS, 5, SEGMENTS)},
    {REDUCTION(segment_mean, TOKENS, 5, SEGMENTS)},
    {REDUCTION(sum, TOKENS, 5, ONE)},
    {REDUCTION(sum, SEGMENTS, 1, ONE)},
    {REDUCTION(mean, TOKENS, 5, ONE)},
    {REDUCTION(mean, SAMPLES, 3, ONE)},
    {REDUCTION(gather, TOKENS, 5, SAMPLES), .extra = index_values},
    {REDUCTION(gather, SEGMENTS, 1, TOKENS), .extra = index_values},
    {REDUCTION(gather, TOKENS, 3, TOKENS), .extra = index_values},
};
enum { N_CASES = sizeof cases / sizeof *cases };

/* ---- running ---- */

static const char *const tables[] = {"reference", "avx2", "avx512"};
enum { N_TABLES = sizeof tables / sizeof *tables, N_THREADS = 2 };

/* Rounding in fp32: 6e-8 an operation, and sums of at most a few dozen terms. */
static const double forward_tolerance = 5e-7, gradient_tolerance = 2e-6;

static void expect_near(const Case *c, Mode mode, const char *what, const float *found, const double *expected,
                        size_t n, double tolerance) {
    static const char *const modes[MODES] = {"plain",  "shared",  "chain",    "recomputed",
                                             "frozen", "weights", "inference"};
    double error = relative_error(found, expected, n);
    if (getenv("CRIA_TEST_VERBOSE"))
        printf("%s (%s) %s %s: %s %.1e\n", c->op, c->what, kernels()->name, modes[mode], what, error);
    ck_assert_msg(error <= tolerance, "%s (%s), %s kernels, %s: %s is off by %.2e relative; at most %.0e is rounding",
                  c->op, c->what, kernels()->name, modes[mode], what, error, tolerance);
}

static void check_mode(Problem *p, Mode mode) {
    const Case *c = p->c;
    bool inputs = mode != MODE_WEIGHTS && mode != MODE_INFERENCE,
         weights = mode != MODE_FROZEN && mode != MODE_INFERENCE;
    Measured m = measure(p, mode);
    expect_near(c, mode, "output", m.y, p->y, p->n_y, forward_tolerance);
    for (int i = 0; i < c->n_inputs && inputs; i++)
        expect_near(c, mode, i ? "second input's gradient" : "input's gradient", m.dx[i], p->dx[i], p->n_x[i],
                    gradient_tolerance);
    if (weights && c->weight_rows) expect_near(c, mode, "weight's gradient", m.dw, p->dw, p->n_w, gradient_tolerance);
    measured_free(&m);
}

static void check_case(const Case *c, TapeBatch batch, const OpSpec *spec) {
    Problem p = problem_new(c, batch);
    if (!spec->inference) problem_differentiate(&p);
    for (int k = 0; k < N_TABLES; k++) {
        if (kernels_select(tables[k]) != OK) continue;
        for (Mode mode = spec->inference ? MODE_INFERENCE : MODE_PLAIN; mode < MODES; mode++) {
            if ((mode == MODE_FROZEN || mode == MODE_WEIGHTS) && !c->weight_rows) continue;
            check_mode(&p, mode);
        }
    }
    problem_free(&p);
}

START_TEST(every_op_agrees_with_fp64) {
    static const int ragged[] = {5, 1, 0, 9, 2, 4}, one[] = {CAPACITY};
    BatchArrays arrays[2];
    TapeBatch below_capacity = make_batch(&arrays[0], 6, ragged, 3), full = make_batch(&arrays[1], 1, one, 1);
    full.n_segments = 1;
    threads_init(N_THREADS);
    for (int k = 0; k < N_TABLES && _i == 0; k++)
        if (kernels_select(tables[k]) != OK) printf("without the %s kernels, which this CPU cannot run\n", tables[k]);
    const OpSpec *spec = &op_specs[_i];
    int n_cases = 0;
    for (int i = 0; i < N_CASES; i++) {
        if (strcmp(cases[i].op, spec->name) != 0) continue;
        n_cases++;
        check_case(&cases[i], below_capacity, spec);
        bool gathers = strcmp(spec->name, "gather") == 0; /* its index suits the first batch */
        if (!gathers) check_case(&cases[i], full, spec);
    }
    ck_assert_msg(n_cases > 0, "%s has a row in ops.def and no case in tests/test_gradients.c", spec->name);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("gradients");
    TCase *group = tcase_create("gradients");
    tcase_set_timeout(group, 300);
    tcase_add_loop_test(group, every_op_agrees_with_fp64, 0, OP_COUNT);
    suite_add_tcase(suite, group);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
