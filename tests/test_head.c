/* The fused head beyond its row in test_gradients.c: known gradients, what it reports, tied weights, what it refuses.
 */
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "tests/gradient_check.h"

enum { WIDTH = 19, N_TABLES = 3 };
static const char *const tables[N_TABLES] = {"reference", "avx2", "avx512"};

typedef struct {
    BatchArrays arrays;
    TapeBatch batch;
    float *hidden, *w, *gradient; /* gradient: dL/d logprob, zero for some tokens */
} Data;

static Data data_new(void) {
    Data d = {.hidden = random_floats((size_t)(CAPACITY * WIDTH), -1, 1, 1),
              .w = random_floats((size_t)(VOCABULARY * WIDTH), -1, 1, 2),
              .gradient = random_floats(CAPACITY, -1, 1, 3)};
    for (int t = 0; t < CAPACITY; t += 3) d.gradient[t] = 0;
    return d;
}

static void data_batch(Data *d) {
    static const int lengths[] = {7, 0, 1, 13};
    d->batch = make_batch(&d->arrays, 4, lengths, 2);
}

static void data_free(Data *d) {
    free(d->hidden);
    free(d->w);
    free(d->gradient);
}

static Weight weight_of(float *value, float *grad, bool trainable) {
    return (Weight){.rows = VOCABULARY,
                    .cols = WIDTH,
                    .n_dims = 2,
                    .value = value,
                    .grad = grad,
                    .trainable = trainable,
                    .n_views = 1,
                    .views = {{"lm_head.weight", 0, VOCABULARY}}};
}

typedef struct {
    float logprob[CAPACITY], entropy[CAPACITY], mean_logit[CAPACITY], lse[CAPACITY];
    int32_t top1[CAPACITY];
    float dx[CAPACITY * WIDTH], dw[VOCABULARY * WIDTH];
} Results;

typedef struct {
    bool known, shared, frozen, constant_hidden;
} Setting;

/* The same loss Σ gradient·logprob either way: the gradient known before forward, or as mask and seed. */
static void run_head(Results *r, Data *d, Setting s) {
    memset(r, 0, sizeof *r);
    Tape *tape = tape_new(&(TapeOptions){.capacity = CAPACITY, .training = true});
    Weight w = weight_of(d->w, s.frozen ? NULL : r->dw, !s.frozen);
    Tensor *hidden = tape_input(tape, ROWS_TOKENS, WIDTH, DTYPE_F32, !s.constant_hidden);
    Tensor *gradient = tape_input(tape, ROWS_TOKENS, 1, DTYPE_F32, false);
    HeadOptions options = {.entropy = true, .top1 = true, .mean_logit = true};
    *(s.known ? &options.known_gradient : &options.mask) = gradient;
    HeadOutputs out = op_head(tape, hidden, &w, options);
    Tensor *const kept[] = {out.logprob, out.lse, out.entropy, out.mean_logit, out.top1};
    for (int i = 0; i < 5; i++) tape_keep(kept[i]);
    if (!s.known) tape_seed(tape, out.logprob, gradient);
    Tensor *other = tape_input(tape, ROWS_TOKENS, WIDTH, DTYPE_F32, false);
    if (s.shared) tape_seed(tape, op_scale(tape, hidden, 1, 0), other);
    CHECK_OK(tape_plan(tape));
    CHECK_OK(tape_bind(tape, 0, &d->batch));
    tape_bind_input(0, hidden, d->hidden);
    tape_bind_input(0, gradient, d->gradient);
    tape_bind_input(0, other, d->hidden);
    CHECK_OK(tape_forward(tape, 0));
    CHECK_OK(tape_backward(tape, 0));
    size_t n = (size_t)d->batch.n_tokens;
    memcpy(r->logprob, tape_value(tape, 0, out.logprob), n * sizeof(float));
    memcpy(r->lse, tape_value(tape, 0, out.lse), n * sizeof(float));
    memcpy(r->entropy, tape_value(tape, 0, out.entropy), n * sizeof(float));
    memcpy(r->mean_logit, tape_value(tape, 0, out.mean_logit), n * sizeof(float));
    memcpy(r->top1, tape_value(tape, 0, out.top1), n * sizeof(int32_t));
    if (s.constant_hidden)
        ck_assert_ptr_null(tape_grad(tape, 0, hidden));
    else
        memcpy(r->dx, tape_grad(tape, 0, hidden), n * WIDTH * sizeof(float));
    for (size_t i = 0; i < n * WIDTH && s.shared; i++) r->dx[i] -= d->hidden[i];
    tape_free(tape);
}

static double difference(const float *a, const float *b, size_t n) {
    double *reference = doubles(b, n), error = relative_error(a, reference, n);
    free(reference);
    return error;
}

static const double tolerance = 1e-6;

START_TEST(a_known_gradient_gives_what_a_seed_gives) {
    Data d = data_new();
    Results *known = array(1, sizeof *known), *seeded = array(1, sizeof *seeded);
    data_batch(&d);
    threads_init(2);
    for (int k = 0; k < N_TABLES; k++) {
        if (kernels_select(tables[k]) != OK) continue;
        for (int bits = 0; bits < 6; bits++) {
            Setting s = {.shared = bits % 2 == 1, .frozen = bits / 2 == 1, .constant_hidden = bits / 2 == 2};
            if (s.shared && s.constant_hidden) continue;
            run_head(seeded, &d, s);
            s.known = true;
            run_head(known, &d, s);
            size_t n = (size_t)d.batch.n_tokens;
            ck_assert_mem_eq(known->top1, seeded->top1, n * sizeof(int32_t));
            ck_assert_double_le(difference(known->logprob, seeded->logprob, n), tolerance);
            ck_assert_double_le(difference(known->entropy, seeded->entropy, n), tolerance);
            ck_assert_double_le(difference(known->dx, seeded->dx, n * WIDTH), tolerance);
            ck_assert_double_le(difference(known->dw, seeded->dw, VOCABULARY * WIDTH), tolerance);
            for (size_t i = 0; i < WIDTH && !s.shared; i++) ck_assert(known->dx[i] == 0); /* token 0 is masked */
        }
    }
    data_free(&d);
    free(known);
    free(seeded);
}
END_TEST

START_TEST(reports_are_those_of_the_softmax_and_zero_where_masked) {
    Data d = data_new();
    Results *r = array(1, sizeof *r);
    data_batch(&d);
    threads_init(2);
    for (int k = 0; k < 2 * N_TABLES; k++) {
        if (kernels_select(tables[k / 2]) != OK) continue;
        run_head(r, &d, (Setting){.known = k % 2 == 1});
        for (int t = 0; t < d.batch.n_tokens; t++) {
            double z[VOCABULARY], total = 0, sum = 0, weighted = 0;
            int top = 0;
            for (int v = 0; v < VOCABULARY; v++) {
                z[v] = 0;
                for (int i = 0; i < WIDTH; i++) z[v] += (double)d.hidden[t * WIDTH + i] * (double)d.w[v * WIDTH + i];
                total += exp(z[v]);
                weighted += exp(z[v]) * z[v];
                sum += z[v];
                if (z[v] > z[top]) top = v;
            }
            bool masked = d.gradient[t] == 0;
            double lse = log(total), near = 2e-6;
            ck_assert_int_eq(r->top1[t], masked ? -1 : top);
            ck_assert_double_eq_tol((double)r->logprob[t], masked ? 0 : z[d.batch.targets[t]] - lse, near);
            ck_assert_double_eq_tol((double)r->entropy[t], masked ? 0 : lse - weighted / total, near);
            ck_assert_double_eq_tol((double)r->mean_logit[t], masked ? 0 : sum / VOCABULARY, near);
            if (!masked) ck_assert_double_eq_tol((double)r->lse[t], lse, near);
        }
    }
    data_free(&d);
    free(r);
}
END_TEST

/* Σ gradient·logprob with hidden = embedding(w) and the head's matrix w, in fp64. */
static double tied_loss(const Data *d, const double *w) {
    double loss = 0;
    for (int t = 0; t < d->batch.n_tokens; t++) {
        const double *x = w + d->batch.tokens[t] * WIDTH;
        double total = 0, target = 0;
        for (int v = 0; v < VOCABULARY; v++) {
            double z = 0;
            for (int i = 0; i < WIDTH; i++) z += x[i] * w[v * WIDTH + i];
            total += exp(z);
            if (v == d->batch.targets[t]) target = z;
        }
        loss += (double)d->gradient[t] * (target - log(total));
    }
    return loss;
}

START_TEST(a_tied_matrix_has_two_accumulators_that_add_up) {
    Data d = data_new();
    static float rows[VOCABULARY * WIDTH], head[VOCABULARY * WIDTH], both[VOCABULARY * WIDTH];
    static double expected[VOCABULARY * WIDTH];
    data_batch(&d);
    threads_init(2);
    CHECK_OK(kernels_select("auto"));
    Weight embedding = weight_of(d.w, rows, true), tied = weight_of(d.w, head, true);
    tied.tied = &embedding;
    Tape *tape = tape_new(&(TapeOptions){.capacity = CAPACITY, .training = true});
    Tensor *gradient = tape_input(tape, ROWS_TOKENS, 1, DTYPE_F32, false);
    op_head(tape, op_embedding(tape, &embedding), &tied, (HeadOptions){.known_gradient = gradient});
    CHECK_OK(tape_plan(tape));
    CHECK_OK(tape_bind(tape, 0, &d.batch));
    tape_bind_input(0, gradient, d.gradient);
    CHECK_OK(tape_forward(tape, 0));
    CHECK_OK(tape_backward(tape, 0));
    double *w = doubles(d.w, VOCABULARY * WIDTH), h = 1e-5;
    for (int i = 0; i < VOCABULARY * WIDTH; i++) {
        double value = w[i];
        w[i] = value + h;
        expected[i] = tied_loss(&d, w);
        w[i] = value - h;
        expected[i] = (expected[i] - tied_loss(&d, w)) / (2 * h);
        w[i] = value;
        both[i] = rows[i] + head[i];
    }
    ck_assert_double_le(relative_error(both, expected, VOCABULARY * WIDTH), 2e-6);
    tape_free(tape);
    free(w);
    data_free(&d);
}
END_TEST

static void expect_refusal(HeadOptions (*options)(Tape *), bool in_region, const char *text) {
    static float w[VOCABULARY * WIDTH], dw[VOCABULARY * WIDTH];
    Weight weight = weight_of(w, dw, true);
    Tape *tape = tape_new(&(TapeOptions){.capacity = CAPACITY, .training = true});
    Tensor *hidden = tape_input(tape, ROWS_TOKENS, WIDTH, DTYPE_F32, true);
    if (in_region) tape_recompute_begin(tape);
    HeadOutputs out = op_head(tape, hidden, &weight, options(tape));
    if (in_region) tape_recompute_end(tape);
    tape_seed(tape, out.entropy, tape_input(tape, ROWS_TOKENS, 1, DTYPE_F32, false));
    CHECK_ERROR(tape_plan(tape), ERR_FAILED, text);
    tape_free(tape);
}

static HeadOptions wide_mask(Tape *tape) {
    return (HeadOptions){.mask = tape_input(tape, ROWS_TOKENS, 2, DTYPE_F32, false)};
}
static HeadOptions computed_mask(Tape *tape) {
    Tensor *input = tape_input(tape, ROWS_TOKENS, 1, DTYPE_F32, false);
    return (HeadOptions){.mask = op_scale(tape, input, 1, 0)};
}
static HeadOptions integer_gradient(Tape *tape) {
    return (HeadOptions){.known_gradient = tape_input(tape, ROWS_TOKENS, 1, DTYPE_I32, false)};
}
static HeadOptions known_gradient(Tape *tape) {
    return (HeadOptions){.known_gradient = tape_input(tape, ROWS_TOKENS, 1, DTYPE_F32, false)};
}
static HeadOptions with_entropy(Tape *tape) {
    (void)tape;
    return (HeadOptions){.entropy = true};
}

START_TEST(wrong_masks_and_gradients_are_refused) {
    expect_refusal(wide_mask, false, "one number for each token");
    expect_refusal(computed_mask, false, "one number for each token");
    expect_refusal(integer_gradient, false, "one number for each token");
    expect_refusal(known_gradient, true, "cannot be in a recompute region");
    expect_refusal(with_entropy, false, "carries no gradient");
}
END_TEST

CHECK_MAIN("head", a_known_gradient_gives_what_a_seed_gives, reports_are_those_of_the_softmax_and_zero_where_masked,
           a_tied_matrix_has_two_accumulators_that_add_up, wrong_masks_and_gradients_are_refused)
