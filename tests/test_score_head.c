/* A Llama with a score head: its parameters and names, the scores of chosen and of all tokens, gradients in fp32, bf16
 * and beside a frozen body, and the scorer that batches texts. */
#include <math.h>
#include <string.h>

#include "eval/reward_scorer.h"
#include "model/kernels/kernels.h"
#include "tests/check_main.h"

static const LlamaShape shape = {.dim = 48,
                                 .n_layers = 2,
                                 .n_heads = 4,
                                 .n_kv_heads = 2,
                                 .head_dim = 12,
                                 .ffn_dim = 64,
                                 .vocab_size = 40,
                                 .max_context = 64,
                                 .norm_eps = 1e-5f,
                                 .rope_theta = 1e4f,
                                 .n_scores = 1};
static const LlamaInit init = {.seed = 3, .std = 0.2f};

static Llama *make(LlamaOptions options) {
    Llama *model;
    CHECK_OK(llama_new(&model, &shape, options));
    CHECK_OK(llama_init(model, init));
    return model;
}

/* Three segments of 5, 1 and 7 tokens. */
enum { T = 13, S = 3 };
static const int32_t tokens[T] = {1, 7, 30, 2, 39, 11, 0, 5, 5, 18, 22, 9, 3};
static const int32_t positions[T] = {0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 4, 5, 6};
static const int32_t starts[S + 1] = {0, 5, 6, 13}, last[S] = {4, 5, 12};
static const TapeBatch batch = {
    .n_tokens = T, .n_segments = S, .tokens = tokens, .positions = positions, .segment_start = starts};

/* Scores of the last tokens, or of all, by every row of the head; with `gradient` (of either) backward too. */
static void run(Llama *model, Dtype dtype, bool all, const float *gradient, float *scores) {
    Tape *tape = tape_new(&(TapeOptions){.capacity = 20, .dtype = dtype, .training = gradient != NULL});
    Tensor *index = all ? NULL : tape_input(tape, ROWS_SEGMENTS, 1, DTYPE_I32, false), *seed = NULL;
    Tensor *out = llama_score(tape, model, (LlamaRecord){0}, index);
    tape_keep(out);
    if (gradient) {
        seed = tape_input(tape, all ? ROWS_TOKENS : ROWS_SEGMENTS, model->shape.n_scores, DTYPE_F32, false);
        tape_seed(tape, out, seed);
    }
    CHECK_OK(tape_plan(tape));
    CHECK_OK(tape_bind(tape, 0, &batch));
    if (index) tape_bind_input(0, index, last);
    if (seed) tape_bind_input(0, seed, gradient);
    CHECK_OK(tape_forward(tape, 0));
    memcpy(scores, tape_value(tape, 0, out), (size_t)(all ? T : S) * (size_t)model->shape.n_scores * sizeof *scores);
    if (gradient) CHECK_OK(tape_backward(tape, 0));
    tape_free(tape);
}

START_TEST(the_head_is_one_row_named_score) {
    Arena arena = {0};
    NamedArray *arrays;
    size_t n;
    uint64_t elements = 0;
    Llama *model = make((LlamaOptions){.training = true});
    CHECK_OK(llama_arrays(model, (WeightStorage){0}, &arena, &arrays, &n));
    ck_assert_str_eq(arrays[n - 1].name, "score.weight");
    ck_assert(arrays[n - 1].n_dims == 2 && arrays[n - 1].dims[0] == 1 && arrays[n - 1].dims[1] == shape.dim);
    for (size_t i = 0; i < n; i++) elements += named_elements(&arrays[i]);
    ck_assert_uint_eq(elements, llama_parameters(&shape));
    ck_assert(model->head.decay && !model->head.tied);
    arena_free(&arena);
    llama_free(model);
}
END_TEST

START_TEST(a_new_head_is_drawn_from_its_name_alone) {
    Llama *whole = make((LlamaOptions){0}), *other;
    CHECK_OK(llama_new(&other, &shape, (LlamaOptions){0}));
    CHECK_OK(llama_init_head(other, init));
    ck_assert_mem_eq(other->head.value, whole->head.value, (size_t)shape.dim * sizeof(float));
    double squares = 0;
    for (int i = 0; i < shape.dim; i++) squares += pow((double)other->head.value[i], 2);
    ck_assert(squares / shape.dim > 0.25 * 0.04 && squares / shape.dim < 2 * 0.04); /* 0.2², of 48 draws */
    ck_assert(other->embedding.value[0] == 0);
    llama_free(whole);
    llama_free(other);
}
END_TEST

START_TEST(the_last_tokens_scores_are_rows_of_all) {
    float all[T], chosen[S];
    Llama *model = make((LlamaOptions){0});
    run(model, DTYPE_F32, true, NULL, all);
    run(model, DTYPE_F32, false, NULL, chosen);
    for (int s = 0; s < S; s++) ck_assert(chosen[s] == all[last[s]] && fabsf(chosen[s]) > 1e-3f);
    llama_free(model);
}
END_TEST

/* Σ gradient·score as a function of one parameter, in finite differences. */
static double objective(Llama *model, const float *gradient) {
    float scores[S];
    double sum = 0;
    run(model, DTYPE_F32, false, NULL, scores);
    for (int s = 0; s < S; s++) sum += (double)gradient[s] * (double)scores[s];
    return sum;
}

START_TEST(gradients_are_those_of_the_scores) {
    static const float gradient[S] = {0.7f, -1.3f, 0.4f};
    float scores[S];
    Llama *model = make((LlamaOptions){.training = true});
    run(model, DTYPE_F32, false, gradient, scores);
    for (int w = 0; w < model->n_weights; w++) {
        Weight *weight = model->weights[w];
        for (size_t place = 0; place < 5; place++) {
            size_t i = place * (weight_elements(weight) - 1) / 4;
            if (weight == &model->embedding) i = (size_t)tokens[place] * (size_t)shape.dim + place;
            const float step = 1e-2f, before = weight->value[i];
            weight->value[i] = before + step;
            double above = objective(model, gradient);
            weight->value[i] = before - step;
            double below = objective(model, gradient), slope = (above - below) / (2 * (double)step);
            weight->value[i] = before;
            ck_assert_msg(fabs((double)weight->grad[i] - slope) <= 2e-3 * fmax(1, fabs(slope)), "%s[%zu]: %g, slope %g",
                          weight->views[0].name, i, (double)weight->grad[i], slope);
        }
    }
    llama_free(model);
}
END_TEST

START_TEST(every_token_may_have_a_gradient) { /* a value head's */
    float gradient[T], scores[T], chosen[S] = {0}, last_gradient[S] = {1, 1, 1};
    Llama *model = make((LlamaOptions){.training = true}), *other = make((LlamaOptions){.training = true});
    for (int t = 0; t < T; t++) gradient[t] = t == 4 || t == 5 || t == 12 ? 1 : 0;
    run(model, DTYPE_F32, true, gradient, scores);
    run(other, DTYPE_F32, false, last_gradient, chosen);
    float *a, *b;
    size_t n, m;
    llama_gradients(model, &a, &n);
    llama_gradients(other, &b, &m);
    ck_assert_uint_eq(n, m);
    for (size_t i = 0; i < n; i++) ck_assert_double_eq_tol((double)a[i], (double)b[i], 1e-5);
    llama_free(model);
    llama_free(other);
}
END_TEST

START_TEST(bf16_scores_have_more_digits_than_bf16) {
    CHECK_OK(kernels_select("auto"));
    if (!kernels_have_bf16()) {
        puts("without bf16, which this CPU cannot run");
        return;
    }
    float wide[T], narrow[T], gradient[T];
    for (int t = 0; t < T; t++) gradient[t] = 1;
    Llama *f32 = make((LlamaOptions){.training = true}),
          *b16 = make((LlamaOptions){.training = true, .precision = DTYPE_BF16});
    run(f32, DTYPE_F32, true, gradient, wide);
    run(b16, DTYPE_BF16, true, gradient, narrow);
    double difference = 0, size = 0;
    int exact = 0;
    for (int t = 0; t < T; t++) {
        difference += pow((double)narrow[t] - (double)wide[t], 2);
        size += pow((double)wide[t], 2);
        exact += bf16_to_f32(f32_to_bf16(narrow[t])) == narrow[t];
    }
    ck_assert_msg(sqrt(difference / size) < 2e-2, "scores: %g", sqrt(difference / size));
    ck_assert_int_lt(exact, T / 2);
    difference = size = 0;
    for (int i = 0; i < shape.dim; i++) {
        difference += pow((double)b16->head.grad[i] - (double)f32->head.grad[i], 2);
        size += pow((double)f32->head.grad[i], 2);
    }
    ck_assert_msg(sqrt(difference / size) < 2e-2, "the head's gradient: %g", sqrt(difference / size));
    llama_free(f32);
    llama_free(b16);
}
END_TEST

START_TEST(a_head_is_trained_on_a_frozen_body) {
    static const float gradient[S] = {1, -2, 3};
    float scores[S], whole_scores[S];
    Llama *whole = make((LlamaOptions){.training = true}), *head = make((LlamaOptions){.train_head = true});
    run(whole, DTYPE_F32, false, gradient, whole_scores);
    run(head, DTYPE_F32, false, gradient, scores);
    ck_assert_mem_eq(scores, whole_scores, sizeof scores);
    ck_assert_mem_eq(head->head.grad, whole->head.grad, (size_t)shape.dim * sizeof(float));
    for (int w = 0; w < head->n_weights - 1; w++) ck_assert(!head->weights[w]->trainable && !head->weights[w]->grad);
    llama_free(whole);
    llama_free(head);
}
END_TEST

START_TEST(a_reward_does_not_depend_on_the_others_of_its_batch) {
    RewardScorer *scorer;
    RewardText texts[S];
    float together[S], alone, chosen[S];
    Llama *model = make((LlamaOptions){0});
    for (int s = 0; s < S; s++) texts[s] = (RewardText){tokens + starts[s], (size_t)(starts[s + 1] - starts[s])};
    run(model, DTYPE_F32, false, NULL, chosen);
    for (int capacity = 1; capacity <= 20; capacity += 6) { /* also below the longest text */
        CHECK_OK(reward_scorer_new(&scorer, model, capacity, DTYPE_F32));
        CHECK_OK(reward_scorer_score(scorer, texts, S, together, NULL, NULL));
        for (int s = 0; s < S; s++) {
            CHECK_OK(reward_scorer_score(scorer, &texts[s], 1, &alone, NULL, NULL));
            ck_assert_double_eq_tol((double)together[s], (double)chosen[s], 1e-5);
            ck_assert_double_eq_tol((double)alone, (double)chosen[s], 1e-5);
        }
        reward_scorer_free(scorer);
    }
    CHECK_OK(reward_scorer_new(&scorer, model, 8, DTYPE_F32));
    CHECK_ERROR(reward_scorer_score(scorer, &(RewardText){tokens, 0}, 1, &alone, NULL, NULL), ERR_REFUSED, "empty");
    CHECK_ERROR(reward_scorer_score(scorer, &(RewardText){tokens, 65}, 1, &alone, NULL, NULL), ERR_REFUSED, "64");
    reward_scorer_free(scorer);
    llama_free(model);
}
END_TEST

/* ---- several rows ---- */

enum { ROWS = 3 };

/* The body of `one` under a head of ROWS rows, the middle one that of `one`. */
static Llama *make_rows(const Llama *one, LlamaOptions options) {
    Llama *model;
    LlamaShape rows = shape;
    rows.n_scores = ROWS;
    CHECK_OK(llama_new(&model, &rows, options));
    CHECK_OK(llama_init(model, init));
    llama_copy_body(model, one);
    memcpy(model->head.value + shape.dim, one->head.value, (size_t)shape.dim * sizeof(float));
    for (int i = 0; i < shape.dim; i++) model->head.value[i] *= -2; /* it was drawn like that one */
    return model;
}

START_TEST(a_row_scores_as_a_head_of_its_own_does) {
    float scores[S * ROWS], alone[S];
    RewardScorer *scorer;
    RewardText texts[S];
    Llama *one = make((LlamaOptions){0}), *model = make_rows(one, (LlamaOptions){0});
    LlamaShape rows = shape;
    rows.n_scores = ROWS;
    ck_assert_uint_eq(llama_parameters(&rows), llama_parameters(&shape) + 2 * (uint64_t)shape.dim);
    run(one, DTYPE_F32, false, NULL, alone);
    run(model, DTYPE_F32, false, NULL, scores);
    for (int s = 0; s < S; s++) {
        ck_assert(scores[s * ROWS + 1] == alone[s]);
        ck_assert(scores[s * ROWS] != alone[s] && scores[s * ROWS + 2] != alone[s]);
        texts[s] = (RewardText){tokens + starts[s], (size_t)(starts[s + 1] - starts[s])};
    }
    float found[S * ROWS];
    CHECK_OK(reward_scorer_new(&scorer, model, 7, DTYPE_F32)); /* so that there are several batches */
    CHECK_OK(reward_scorer_score(scorer, texts, S, found, NULL, NULL));
    for (int e = 0; e < S * ROWS; e++) ck_assert_double_eq_tol((double)found[e], (double)scores[e], 1e-5);
    reward_scorer_free(scorer);
    llama_free(model);
    llama_free(one);
}
END_TEST

START_TEST(a_gradient_by_one_row_is_that_of_a_head_of_its_own) {
    static const float gradient[S] = {0.7f, -1.3f, 0.4f};
    float by_rows[S * ROWS] = {0}, scores[S * ROWS];
    Llama *one = make((LlamaOptions){.training = true}), *model = make_rows(one, (LlamaOptions){.training = true});
    for (int s = 0; s < S; s++) by_rows[s * ROWS + 1] = gradient[s];
    run(one, DTYPE_F32, false, gradient, scores);
    run(model, DTYPE_F32, false, by_rows, scores);
    for (int w = 0; w < one->n_weights - 1; w++)
        for (size_t i = 0; i < weight_elements(one->weights[w]); i++)
            ck_assert_msg(one->weights[w]->grad[i] == model->weights[w]->grad[i], "%s[%zu]: %g, %g",
                          one->weights[w]->views[0].name, i, (double)one->weights[w]->grad[i],
                          (double)model->weights[w]->grad[i]);
    for (int i = 0; i < shape.dim; i++) {
        const float *row = model->head.grad + i;
        ck_assert(row[shape.dim] == one->head.grad[i] && row[0] == 0 && row[2 * shape.dim] == 0);
    }
    llama_free(model);
    llama_free(one);
}
END_TEST

START_TEST(a_language_model_scores_nothing) {
    RewardScorer *scorer;
    Llama *model;
    LlamaShape language = shape;
    language.n_scores = 0;
    CHECK_OK(llama_new(&model, &language, (LlamaOptions){0}));
    CHECK_ERROR(reward_scorer_new(&scorer, model, 8, DTYPE_F32), ERR_REFUSED, "language model");
    Tape *tape = tape_new(&(TapeOptions){.capacity = 4});
    ck_assert_ptr_null(llama_score(tape, model, (LlamaRecord){0}, NULL));
    CHECK_ERROR(tape_plan(tape), ERR_FAILED, "no score head");
    tape_free(tape);
    llama_free(model);
}
END_TEST

CHECK_MAIN("score head", the_head_is_one_row_named_score, a_new_head_is_drawn_from_its_name_alone,
           the_last_tokens_scores_are_rows_of_all, gradients_are_those_of_the_scores, every_token_may_have_a_gradient,
           bf16_scores_have_more_digits_than_bf16, a_head_is_trained_on_a_frozen_body,
           a_reward_does_not_depend_on_the_others_of_its_batch, a_row_scores_as_a_head_of_its_own_does,
           a_gradient_by_one_row_is_that_of_a_head_of_its_own, a_language_model_scores_nothing)
