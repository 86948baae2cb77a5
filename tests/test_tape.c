/* The tape as its users meet it: memory, callbacks, errors of recording and of batches, and a new loss. */
#include <malloc.h>
#include <unistd.h>

#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/ops/ops.h"
#include "tests/gradient_check.h"

static void start(void) {
    threads_init(2);
    CHECK_OK(kernels_select("auto"));
}

static Tape *training_tape(int capacity) {
    return tape_new(
        &(TapeOptions){.capacity = capacity, .segments = MAX_SEGMENTS, .samples = MAX_SAMPLES, .training = true});
}

static Tensor *token_input(Tape *tape, int width, bool differentiable) {
    return tape_input(tape, ROWS_TOKENS, width, DTYPE_F32, differentiable);
}

/* ---- a tensor with several consumers ---- */

typedef Tensor *(*Build)(Tape *tape, Tensor *x);
static Tensor *build_square(Tape *tape, Tensor *x) {
    return op_mul(tape, x, x);
}
static Tensor *build_double(Tape *tape, Tensor *x) {
    return op_add(tape, x, x);
}
static Tensor *build_least(Tape *tape, Tensor *x) {
    return op_min(tape, x, x);
}
static Tensor *build_three(Tape *tape, Tensor *x) {
    return op_add(tape, op_mul(tape, op_exp(tape, x), x), op_add(tape, x, op_sigmoid(tape, x)));
}
/* The sum would be written over exp(x), were that not read by backward. */
static Tensor *build_over_saved(Tape *tape, Tensor *x) {
    return op_add(tape, x, op_exp(tape, op_scale(tape, op_exp(tape, op_scale(tape, x, 0.5f, 0)), 0.25f, 0)));
}
static double slope_square(double x) {
    return 2 * x;
}
static double slope_double(double x) {
    (void)x;
    return 2;
}
static double slope_least(double x) {
    (void)x;
    return 1;
}
static double slope_three(double x) {
    double s = 1 / (1 + exp(-x));
    return exp(x) * (1 + x) + 1 + s * (1 - s);
}
static double slope_over_saved(double x) {
    return 1 + exp(0.25 * exp(0.5 * x)) * 0.25 * exp(0.5 * x) * 0.5;
}

START_TEST(every_use_of_a_tensor_adds_to_its_gradient) {
    static const struct {
        Build build;
        double (*slope)(double x);
    } uses[] = {{build_square, slope_square},
                {build_double, slope_double},
                {build_least, slope_least},
                {build_three, slope_three},
                {build_over_saved, slope_over_saved}};
    enum { WIDTH = 3, N = 11 };
    static const int one[] = {N};
    BatchArrays arrays;
    TapeBatch batch = make_batch(&arrays, 1, one, 1);
    float *values = random_floats(N * WIDTH, -2, 2, 1), *seeds = random_floats(N * WIDTH, -1, 1, 2);
    start();
    for (size_t u = 0; u < 2 * sizeof uses / sizeof *uses; u++) { /* of an input, and of an op's output */
        Tape *tape = training_tape(CAPACITY);
        Tensor *input = token_input(tape, WIDTH, true), *seed = token_input(tape, WIDTH, false);
        Tensor *x = u % 2 ? op_scale(tape, input, 1, 0) : input;
        tape_seed(tape, uses[u / 2].build(tape, x), seed);
        CHECK_OK(tape_plan(tape));
        CHECK_OK(tape_bind(tape, 0, &batch));
        tape_bind_input(0, input, values);
        tape_bind_input(0, seed, seeds);
        CHECK_OK(tape_forward(tape, 0));
        CHECK_OK(tape_backward(tape, 0));
        double expected[N * WIDTH];
        for (int i = 0; i < N * WIDTH; i++) expected[i] = (double)seeds[i] * uses[u / 2].slope((double)values[i]);
        ck_assert_double_le(relative_error(tape_grad(tape, 0, input), expected, N * WIDTH), 5e-7);
        tape_free(tape);
    }
    free(values);
    free(seeds);
}
END_TEST

START_TEST(ties_bounds_and_nan_follow_the_documented_convention) {
    static const float a_values[] = {1, 2, 3, NAN, 0}, b_values[] = {1, 1, 4, 0, NAN}, ones[] = {1, 1, 1, 1, 1};
    static const float to_a[] = {1, 0, 1, 1, 0}, clamped[] = {1, 1, 0, 1, 0};
    static const int lengths[] = {5};
    BatchArrays arrays;
    TapeBatch batch = make_batch(&arrays, 1, lengths, 1);
    start();
    Tape *tape = training_tape(8);
    Tensor *a = token_input(tape, 1, true), *b = token_input(tape, 1, true), *c = token_input(tape, 1, true);
    Tensor *seed = token_input(tape, 1, false), *least = op_min(tape, a, b), *bounded = op_clamp(tape, c, 1, 2);
    tape_seed(tape, least, seed);
    tape_seed(tape, bounded, seed);
    tape_keep(least);
    tape_keep(bounded);
    CHECK_OK(tape_plan(tape));
    CHECK_OK(tape_bind(tape, 0, &batch));
    tape_bind_input(0, a, a_values);
    tape_bind_input(0, b, b_values);
    tape_bind_input(0, c, a_values);
    tape_bind_input(0, seed, ones);
    CHECK_OK(tape_forward(tape, 0));
    const float *y = tape_value(tape, 0, least), *z = tape_value(tape, 0, bounded);
    ck_assert(y[0] == 1 && y[1] == 1 && y[2] == 3 && isnan(y[3]) && isnan(y[4]));
    ck_assert(z[0] == 1 && z[1] == 2 && z[2] == 2 && isnan(z[3]) && z[4] == 1);
    CHECK_OK(tape_backward(tape, 0));
    for (int i = 0; i < 5; i++) {
        ck_assert(tape_grad(tape, 0, a)[i] == to_a[i] && tape_grad(tape, 0, b)[i] == 1 - to_a[i]);
        ck_assert(tape_grad(tape, 0, c)[i] == clamped[i]);
    }
    tape_free(tape);
}
END_TEST

START_TEST(functions_at_the_ends_of_the_range_are_accurate) {
    static const float x_values[] = {-200, -90, 90, 200, -1e-6f, 0}, ones[] = {1, 1, 1, 1, 1, 1};
    static const int lengths[] = {6};
    BatchArrays arrays;
    TapeBatch batch = make_batch(&arrays, 1, lengths, 1);
    start();
    Tape *tape = training_tape(8);
    Tensor *x = token_input(tape, 1, true), *x2 = token_input(tape, 1, true), *seed = token_input(tape, 1, false);
    Tensor *s = op_sigmoid(tape, x), *l = op_log_sigmoid(tape, x2);
    tape_seed(tape, s, seed);
    tape_seed(tape, l, seed);
    tape_keep(s);
    tape_keep(l);
    CHECK_OK(tape_plan(tape));
    CHECK_OK(tape_bind(tape, 0, &batch));
    tape_bind_input(0, x, x_values);
    tape_bind_input(0, x2, x_values);
    tape_bind_input(0, seed, ones);
    CHECK_OK(tape_forward(tape, 0));
    const float *sigmoid = tape_value(tape, 0, s), *log_sigmoid = tape_value(tape, 0, l);
    for (int i = 0; i < 6; i++) {
        double v = (double)x_values[i];
        ck_assert_double_eq_tol((double)sigmoid[i], 1 / (1 + exp(-v)), 1e-7);
        ck_assert_double_eq_tol((double)log_sigmoid[i], v < -80 ? v : -log1p(exp(-v)), 1e-7 + 1e-7 * fabs(v));
    }
    CHECK_OK(tape_backward(tape, 0));
    for (int i = 0; i < 6; i++)
        ck_assert_double_eq_tol((double)tape_grad(tape, 0, x2)[i], 1 / (1 + exp((double)x_values[i])), 1e-7);
    tape_free(tape);
}
END_TEST

/* ---- a new loss, as a user writes it ---- */

/* DPO (Rafailov et al. 2023, eq. 7): -mean log σ(β((π_c - π_r) - (ref_c - ref_r))), π the segments' summed logprobs. */
typedef struct {
    Tensor *loss, *reference, *chosen, *rejected;
} Dpo;
static Dpo dpo_loss(Tape *tape, Tensor *logprobs, float beta) {
    Dpo dpo = {.reference = tape_input(tape, ROWS_SEGMENTS, 1, DTYPE_F32, false),
               .chosen = tape_input(tape, ROWS_SAMPLES, 1, DTYPE_I32, false),
               .rejected = tape_input(tape, ROWS_SAMPLES, 1, DTYPE_I32, false)};
    Tensor *log_ratio = op_add(tape, op_segment_sum(tape, logprobs), op_scale(tape, dpo.reference, -1, 0));
    Tensor *chosen = op_gather(tape, log_ratio, dpo.chosen), *rejected = op_gather(tape, log_ratio, dpo.rejected);
    Tensor *margin = op_scale(tape, op_add(tape, chosen, op_scale(tape, rejected, -1, 0)), beta, 0);
    dpo.loss = op_scale(tape, op_mean(tape, op_log_sigmoid(tape, margin)), -1, 0);
    return dpo;
}

static const double beta = 0.3;
static double dpo_in_fp64(const double *logprobs, const int32_t *start, const float *reference, const int32_t *chosen,
                          const int32_t *rejected, int n_pairs) {
    double total = 0;
    for (int p = 0; p < n_pairs; p++) {
        double margin = 0;
        for (int t = start[chosen[p]]; t < start[chosen[p] + 1]; t++) margin += logprobs[t];
        for (int t = start[rejected[p]]; t < start[rejected[p] + 1]; t++) margin -= logprobs[t];
        margin -= (double)reference[chosen[p]] - (double)reference[rejected[p]];
        total += log1p(exp(-beta * margin));
    }
    return total / n_pairs;
}

START_TEST(dpo_written_with_the_ops_agrees_with_fp64) {
    static const int lengths[] = {5, 3, 1, 7};
    static const int32_t chosen[] = {0, 3}, rejected[] = {1, 2};
    static const float one = 1;
    BatchArrays arrays;
    TapeBatch batch = make_batch(&arrays, 4, lengths, 2);
    float *logprobs = random_floats(CAPACITY, -3, 0, 1), *reference = random_floats(4, -9, 0, 2);
    start();
    Tape *tape = training_tape(CAPACITY);
    Tensor *x = token_input(tape, 1, true), *seed = tape_input(tape, ROWS_ONE, 1, DTYPE_F32, false);
    Dpo dpo = dpo_loss(tape, x, (float)beta);
    tape_keep(dpo.loss);
    tape_seed(tape, dpo.loss, seed);
    CHECK_OK(tape_plan(tape));
    CHECK_OK(tape_bind(tape, 0, &batch));
    tape_bind_input(0, x, logprobs);
    tape_bind_input(0, dpo.reference, reference);
    tape_bind_input(0, dpo.chosen, chosen);
    tape_bind_input(0, dpo.rejected, rejected);
    CHECK_OK(tape_forward(tape, 0));
    tape_bind_input(0, seed, &one); /* a seed may come after forward */
    CHECK_OK(tape_backward(tape, 0));
    double *values = doubles(logprobs, CAPACITY), expected[CAPACITY], h = 1e-5;
    double loss = dpo_in_fp64(values, arrays.start, reference, chosen, rejected, 2);
    ck_assert_double_eq_tol((double)*(float *)tape_value(tape, 0, dpo.loss), loss, 5e-7 * loss);
    for (int t = 0; t < batch.n_tokens; t++) {
        double value = values[t];
        values[t] = value + h;
        expected[t] = dpo_in_fp64(values, arrays.start, reference, chosen, rejected, 2);
        values[t] = value - h;
        expected[t] = (expected[t] - dpo_in_fp64(values, arrays.start, reference, chosen, rejected, 2)) / (2 * h);
        values[t] = value;
    }
    ck_assert_double_le(relative_error(tape_grad(tape, 0, x), expected, (size_t)batch.n_tokens), 1e-6);
    tape_free(tape);
    free(values);
    free(logprobs);
    free(reference);
}
END_TEST

/* ---- weights and their callback ---- */

enum { DIM = 6 };
typedef struct {
    Weight *weights[4];
    int calls[4];
    float at_call[4]; /* first element of the gradient when it was said to be ready */
} Ready;

static void count_ready(void *context, Weight *weight) {
    Ready *ready = context;
    for (int i = 0; i < 4; i++) {
        if (ready->weights[i] != weight) continue;
        ready->calls[i]++;
        ready->at_call[i] = weight->grad[0];
    }
}

static Weight square(float *value, float *grad) {
    return (Weight){.rows = DIM, .cols = DIM, .n_dims = 2, .value = value, .grad = grad, .trainable = grad != NULL};
}

START_TEST(a_gradient_is_announced_once_and_complete) {
    static const int lengths[] = {4, 3};
    static float dw[4][DIM * DIM];
    BatchArrays arrays;
    TapeBatch batch = make_batch(&arrays, 2, lengths, 1);
    float *w = random_floats(DIM * DIM, -1, 1, 1), *values = random_floats(DIM * CAPACITY, -1, 1, 2);
    start();
    /* used twice; frozen; once; trainable, but no gradient reaches it */
    Weight weights[4] = {square(w, dw[0]), square(w, NULL), square(w, dw[2]), square(w, dw[3])};
    Ready ready = {.weights = {&weights[0], &weights[1], &weights[2], &weights[3]}};
    Tape *tape = tape_new(
        &(TapeOptions){.capacity = CAPACITY, .training = true, .on_grad_ready = count_ready, .context = &ready});
    Tensor *x = token_input(tape, DIM, false), *seed = token_input(tape, DIM, false), *y = x;
    static const int order[] = {0, 1, 2, 0};
    for (int i = 0; i < 4; i++) y = op_linear(tape, y, &weights[order[i]]);
    op_linear(tape, y, &weights[3]);
    tape_seed(tape, y, seed);
    CHECK_OK(tape_plan(tape));
    CHECK_OK(tape_bind(tape, 0, &batch));
    tape_bind_input(0, x, values);
    tape_bind_input(0, seed, values);
    for (int step = 1; step <= 3; step++) {
        CHECK_OK(tape_forward(tape, 0));
        CHECK_OK(tape_backward(tape, 0));
        ck_assert_int_eq(ready.calls[0], step);
        ck_assert_int_eq(ready.calls[1], 0);
        ck_assert_int_eq(ready.calls[2], step);
        ck_assert_int_eq(ready.calls[3], 0);
        ck_assert(ready.at_call[0] == dw[0][0] && ready.at_call[2] == dw[2][0] && dw[0][0] != 0);
    }
    tape_free(tape);
    free(w);
    free(values);
}
END_TEST

/* ---- memory ---- */

/* A chain of products: every factor is saved for backward. */
static Tensor *chain(Tape *tape, Tensor *x, int links) {
    for (int i = 0; i < links; i++) x = op_sigmoid(tape, op_mul(tape, x, x));
    return x;
}

typedef struct {
    Tape *tape;
    Tensor *x, *seed, *y;
} Chain;

static Chain chain_tape(TapeOptions options, int width, int links, int per_region) {
    Chain c = {.tape = tape_new(&options)};
    c.x = token_input(c.tape, width, true);
    c.seed = token_input(c.tape, width, false);
    c.y = c.x;
    for (int i = 0; i < links; i += per_region) {
        if (per_region < links) tape_recompute_begin(c.tape);
        c.y = chain(c.tape, c.y, per_region);
        if (per_region < links) tape_recompute_end(c.tape);
    }
    tape_keep(c.y);
    tape_seed(c.tape, c.y, c.seed);
    CHECK_OK(tape_plan(c.tape));
    return c;
}

static void chain_replay(Chain c, const TapeBatch *batch, const float *values) {
    CHECK_OK(tape_bind(c.tape, 0, batch));
    tape_bind_input(0, c.x, values);
    tape_bind_input(0, c.seed, values);
    CHECK_OK(tape_forward(c.tape, 0));
    CHECK_OK(tape_backward(c.tape, 0));
}

START_TEST(recomputation_saves_bytes_and_changes_no_bit) {
    enum { WIDTH = 5, LINKS = 16 };
    static const int lengths[] = {9, 4};
    BatchArrays arrays;
    TapeBatch batch = make_batch(&arrays, 2, lengths, 1);
    float *values = random_floats(CAPACITY * WIDTH, -1, 1, 1);
    TapeOptions options = {.capacity = CAPACITY, .training = true};
    start();
    Chain stored = chain_tape(options, WIDTH, LINKS, LINKS), recomputed = chain_tape(options, WIDTH, LINKS, 4);
    chain_replay(stored, &batch, values);
    chain_replay(recomputed, &batch, values);
    ck_assert_mem_eq(tape_grad(stored.tape, 0, stored.x), tape_grad(recomputed.tape, 0, recomputed.x),
                     (size_t)(batch.n_tokens * WIDTH) * sizeof(float));
    ck_assert_uint_le(2 * tape_bytes(recomputed.tape), tape_bytes(stored.tape)); /* √n regions of √n links */
    tape_free(stored.tape);
    tape_free(recomputed.tape);
    free(values);
}
END_TEST

START_TEST(tapes_can_share_memory_between_steps_but_not_within_one) {
    enum { WIDTH = 4 };
    static const int lengths[] = {9, 4};
    BatchArrays arrays;
    TapeBatch batch = make_batch(&arrays, 2, lengths, 1);
    float *values = random_floats(CAPACITY * WIDTH, -1, 1, 1), first[CAPACITY * WIDTH];
    start();
    TapeMemory *memory = tape_memory_new();
    Chain training = chain_tape((TapeOptions){.capacity = CAPACITY, .training = true, .memory = memory}, WIDTH, 5, 5);
    ck_assert_uint_eq(tape_memory_bytes(memory), tape_bytes(training.tape));
    Chain evaluation = chain_tape((TapeOptions){.capacity = 2 * CAPACITY, .memory = memory}, WIDTH, 3, 3);
    ck_assert_uint_ge(tape_memory_bytes(memory), tape_bytes(evaluation.tape));
    for (int step = 0; step < 3; step++) {
        chain_replay(training, &batch, values);
        const float *gradient = tape_grad(training.tape, 0, training.x);
        if (step == 0) memcpy(first, gradient, sizeof first);
        ck_assert_mem_eq(first, gradient, (size_t)(batch.n_tokens * WIDTH) * sizeof(float));
        CHECK_OK(tape_bind(evaluation.tape, 0, &batch));
        tape_bind_input(0, evaluation.x, values);
        CHECK_OK(tape_forward(evaluation.tape, 0)); /* its seed is not bound: without training it is not read */
        ck_assert_ptr_nonnull(tape_value(evaluation.tape, 0, evaluation.y));
        ck_assert_ptr_null(tape_value(training.tape, 0, training.y)); /* overwritten since */
    }
    CHECK_OK(tape_forward(training.tape, 0));
    CHECK_OK(tape_forward(evaluation.tape, 0));
    CHECK_ERROR(tape_backward(training.tape, 0), ERR_FAILED, "another tape has used the memory");
    CHECK_ERROR(tape_backward(evaluation.tape, 0), ERR_FAILED, "not recorded for training");
    tape_free(training.tape);
    tape_free(evaluation.tape);
    tape_memory_free(memory);
    free(values);
}
END_TEST

static size_t resident_bytes(void) {
    size_t total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fscanf(file, "%zu %zu", &total, &resident), 2);
    fclose(file);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}

/* Malloc calls are counted by standing in front of the C library's; a sanitizer stands there already. */
#if defined(__SANITIZE_ADDRESS__)
enum { COUNTS_ALLOCATIONS = 0 };
static size_t n_allocations;
#else
enum { COUNTS_ALLOCATIONS = 1 };
static size_t n_allocations;
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
void *malloc(size_t size) {
    n_allocations++;
    return __libc_malloc(size);
}
void *calloc(size_t n, size_t size) {
    n_allocations++;
    return __libc_calloc(n, size);
}
#endif

START_TEST(the_plan_is_the_memory_used_and_replays_allocate_nothing) {
    enum { WIDTH = 256, TOKENS = 4096, LINKS = 6 };
    int32_t starts[] = {0, TOKENS};
    TapeBatch batch = {.n_tokens = TOKENS, .n_segments = 1, .n_samples = 1, .segment_start = starts};
    float *values = random_floats((size_t)(TOKENS * WIDTH), -1, 1, 1);
    start();
    Chain c = chain_tape((TapeOptions){.capacity = TOKENS, .training = true}, WIDTH, LINKS, LINKS);
    size_t before = resident_bytes();
    chain_replay(c, &batch, values);
    double grown = (double)(resident_bytes() - before), planned = (double)tape_bytes(c.tape), threads = 2 << 20;
    ck_assert_msg(grown < planned + threads && grown > 0.98 * planned - threads, "%.0f bytes planned, %.0f used",
                  planned, grown);
    size_t allocations = n_allocations, in_use = mallinfo2().uordblks;
    int rc = OK; /* Check's own assertions allocate */
    for (int i = 0; i < 3; i++) {
        rc |= tape_bind(c.tape, 0, &batch);
        rc |= tape_forward(c.tape, 0);
        rc |= tape_backward(c.tape, 0);
    }
    size_t allocations_after = n_allocations, in_use_after = mallinfo2().uordblks;
    ck_assert_int_eq(rc, OK);
    if (COUNTS_ALLOCATIONS) {
        ck_assert_uint_gt(allocations, 0); /* the count counts */
        ck_assert_uint_eq(allocations_after, allocations);
        ck_assert_uint_eq(in_use_after, in_use);
    }
    tape_free(c.tape);
    free(values);
}
END_TEST

CHECK_MAIN("tape", every_use_of_a_tensor_adds_to_its_gradient, ties_bounds_and_nan_follow_the_documented_convention,
           functions_at_the_ends_of_the_range_are_accurate, dpo_written_with_the_ops_agrees_with_fp64,
           a_gradient_is_announced_once_and_complete, recomputation_saves_bytes_and_changes_no_bit,
           tapes_can_share_memory_between_steps_but_not_within_one,
           the_plan_is_the_memory_used_and_replays_allocate_nothing)
