/* Sampling and generation: filters against their definitions, sequences that share a cache against each alone and
 * against the model without a cache, stop texts, limits, and logits that are not numbers. */
#include <math.h>
#include <string.h>

#include "eval/generator.h"
#include "eval/sampler.h"
#include "model/core/philox.h"
#include "model/core/text.h"
#include "model/kernels/kernels.h"
#include "model/lora.h"
#include "tests/check_main.h"

/* ---- the sampler ---- */

enum { VOCAB = 6, DRAWS = 20000 };
static const float logits[VOCAB] = {1.0f, -2.0f, 3.0f, 0.5f, 3.0f, -INFINITY};

static int32_t draw(SamplerOptions options, const int32_t *history, size_t n, uint64_t position) {
    Sampler *sampler;
    Draw one = {
        .logits = logits, .history = history, .n_history = n, .position = position, .temperature = options.temperature};
    CHECK_OK(sampler_new(&sampler, VOCAB, options));
    CHECK_OK(sampler_draw(sampler, &one, 1));
    sampler_free(sampler);
    return one.token;
}

/* Shares of DRAWS draws. */
static void shares(SamplerOptions options, double share[VOCAB]) {
    static Draw draws[DRAWS];
    Sampler *sampler;
    memset(share, 0, VOCAB * sizeof *share);
    CHECK_OK(sampler_new(&sampler, VOCAB, options));
    for (uint64_t position = 0; position < DRAWS; position++)
        draws[position] =
            (Draw){.logits = logits, .prompt = 7, .position = position, .temperature = options.temperature};
    CHECK_OK(sampler_draw(sampler, draws, DRAWS));
    for (uint64_t position = 0; position < DRAWS; position++) share[draws[position].token] += 1.0 / DRAWS;
    sampler_free(sampler);
}

/* The expected shares, from weights; 4.5 standard deviations of 20,000 draws are below 0.016. */
static void check_shares(SamplerOptions options, const double weight[VOCAB]) {
    double share[VOCAB], total = 0;
    for (int i = 0; i < VOCAB; i++) total += weight[i];
    shares(options, share);
    for (int i = 0; i < VOCAB; i++) {
        ck_assert_double_eq_tol(share[i], weight[i] / total, 0.016);
        if (weight[i] == 0) ck_assert(share[i] == 0);
    }
}

static const SamplerOptions plain = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 3};

START_TEST(temperature_divides_the_logits) {
    double weight[VOCAB];
    SamplerOptions options = plain;
    options.temperature = 2;
    for (int i = 0; i < VOCAB; i++) weight[i] = exp((double)logits[i] / 2);
    check_shares(options, weight);
}
END_TEST

START_TEST(filters_keep_what_their_papers_say) {
    SamplerOptions k = plain, p = plain, least = plain;
    k.top_k = 3;
    check_shares(k, (double[VOCAB]){exp(1), 0, exp(3), 0, exp(3), 0});
    p.top_p = 0.5; /* the two at the top have 0.45 each */
    check_shares(p, (double[VOCAB]){0, 0, 1, 0, 1, 0});
    least.min_p = 0.1; /* exp(1 - 3) = 0.135, exp(0.5 - 3) = 0.082 */
    check_shares(least, (double[VOCAB]){exp(1), 0, exp(3), 0, exp(3), 0});
}
END_TEST

START_TEST(the_first_of_the_most_probable_where_nothing_else_may_pass) {
    SamplerOptions greedy = plain, p = plain, k = plain;
    greedy.temperature = 0;
    p.top_p = 1e-12;
    k.top_k = 1;
    for (uint64_t position = 0; position < 50; position++) {
        ck_assert_int_eq(draw(greedy, NULL, 0, position), 2);
        ck_assert_int_eq(draw(p, NULL, 0, position), 2);
        ck_assert_int_eq(draw(k, NULL, 0, position), 2);
    }
}
END_TEST

START_TEST(the_repetition_penalty_counts_a_token_once) {
    SamplerOptions options = plain;
    options.temperature = 0;
    options.repetition_penalty = 2; /* 3 / 2 = 1.5 stays above 1; twice it would not */
    ck_assert_int_eq(draw(options, (int32_t[]){2}, 1, 0), 4);
    ck_assert_int_eq(draw(options, (int32_t[]){2, 4, 2, 4, -1, VOCAB}, 6, 0), 2);
}
END_TEST

START_TEST(logits_that_are_no_numbers_are_an_error_at_any_temperature) {
    static const float bad[][VOCAB] = {{NAN, 1, 2, 3, 4, 5},
                                       {1, 2, 3, NAN, 4, 5},
                                       {1, 2, INFINITY, 3, 4, 5},
                                       {-INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY}};
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++)
        for (int t = 0; t < 2; t++) {
            SamplerOptions options = plain;
            Sampler *sampler;
            Draw one = {.logits = bad[b], .temperature = t};
            options.temperature = t;
            options.top_p = 0.95;
            CHECK_OK(sampler_new(&sampler, VOCAB, options));
            CHECK_ERROR(sampler_draw(sampler, &one, 1), ERR_REFUSED, "logit");
            sampler_free(sampler);
        }
}
END_TEST

/* ---- the generator ---- */

enum { LONGEST = 700, NEW = 12, N_PROMPTS = 11 };
static const size_t lengths[N_PROMPTS] = {1, 300, 256, 2, 257, 511, 40, 513, 255, 600, 3}; /* around the chunk of 256 */

typedef struct {
    Tokenizer *bytes;
    Llama *model;
    Lora *lora; /* NULL: none */
    TokenList prompts[N_PROMPTS];
} Fixture;

/* How the model that samples is kept. */
typedef struct {
    const char *name;
    Frozen frozen;
    bool quantised_head;
    int rank; /* of its adapter; 0: none */
    bool magnitudes;
} Policy;

/* B is random, so that the adapter changes what is computed. */
static void adapt(Fixture *fixture, const Policy *policy, Dtype precision) {
    LoraOptions options = {
        .rank = policy->rank, .alpha = 2 * (float)policy->rank, .targets = LORA_ALL, .magnitudes = policy->magnitudes};
    CHECK_OK(lora_new(&fixture->lora, fixture->model, options, (LlamaOptions){.precision = precision}));
    CHECK_OK(lora_init(fixture->lora, 11));
    for (int i = 0; i < fixture->lora->n_weights; i++) {
        Weight *w = fixture->lora->weights[i];
        if (!lora_is_a(w) && w->n_dims == 2)
            philox_fill_normal(w->value, 0, weight_elements(w), philox_key(5, PHILOX_TEST, (uint32_t)i, 0), 0, 0.1f);
    }
    lora_pack(fixture->lora);
}

static void set_up_as(Fixture *fixture, Dtype precision, float std, const Policy *policy) {
    LlamaShape shape = {.dim = 32,
                        .n_layers = 2,
                        .n_heads = 4,
                        .n_kv_heads = 2,
                        .vocab_size = 260, /* two rows more than the tokenizer has */
                        .max_context = LONGEST,
                        .norm_eps = 1e-5f,
                        .rope_theta = 1e4f};
    *fixture = (Fixture){0};
    CHECK_OK(tokenizer_load(&fixture->bytes, "bytes"));
    CHECK_OK(llama_shape_check(&shape));
    CHECK_OK(llama_new(
        &fixture->model, &shape,
        (LlamaOptions){.precision = precision, .frozen = policy->frozen, .quantised_head = policy->quantised_head}));
    CHECK_OK(llama_init(fixture->model, (LlamaInit){.seed = 5, .std = std}));
    llama_pack(fixture->model);
    ck_assert_int_eq(llama_inference_dtype(fixture->model), precision);
    if (policy->rank > 0) adapt(fixture, policy, precision);
    for (size_t p = 0; p < N_PROMPTS; p++)
        for (size_t i = 0; i < lengths[p]; i++) {
            int32_t id = (int32_t)(philox_u64(philox_key(1, PHILOX_SAMPLE, (uint32_t)p, 0), i) % 256);
            CHECK_OK(token_list_append(&fixture->prompts[p], &id, 1));
        }
}

static const Policy whole_model = {.name = "whole"};

static void set_up(Fixture *fixture) {
    set_up_as(fixture, DTYPE_F32, 0.3f, &whole_model);
}

static void tear_down(Fixture *fixture) {
    for (size_t p = 0; p < N_PROMPTS; p++) token_list_free(&fixture->prompts[p]);
    tokenizer_free(fixture->bytes);
    lora_free(fixture->lora);
    llama_free(fixture->model);
}

static int generate(Fixture *fixture, size_t first, size_t n, int max_batch, int max_sequence,
                    const GenerateOptions *options, Generation *out) {
    Generator *generator;
    CHECK_OK(generator_new(&generator, fixture->model, fixture->bytes,
                           (GeneratorOptions){.max_batch = max_batch, .max_sequence = max_sequence}));
    int rc = generator_run(generator, fixture->prompts + first, n, options, out);
    generator_free(generator);
    return rc;
}

/* The largest difference of recorded log-probabilities from those of the training graph: the whole sequence at once,
 * without a cache, through the fused head. */
static double worst_logprob(Llama *model, const TokenList *prompt, const Generation *answer, double temperature) {
    int n_prompt = (int)prompt->n, n = n_prompt + (int)answer->n_logprobs;
    int32_t tokens[LONGEST], targets[LONGEST], positions[LONGEST], segments[2] = {0, n - 1};
    memcpy(tokens, prompt->ids, prompt->n * sizeof *tokens);
    memcpy(tokens + n_prompt, answer->tokens.ids, answer->tokens.n * sizeof *tokens);
    if (answer->stop_token >= 0) tokens[n - 1] = answer->stop_token;
    for (int t = 0; t + 1 < n; t++) {
        targets[t] = tokens[t + 1];
        positions[t] = t;
    }
    Tape *tape = tape_new(&(TapeOptions){.capacity = LONGEST, .dtype = llama_inference_dtype(model)});
    HeadOutputs head =
        llama_record(tape, model, (LlamaRecord){0}, (HeadOptions){.logit_scale = (float)(1 / temperature)});
    tape_keep(head.logprob);
    CHECK_OK(tape_plan(tape));
    TapeBatch batch = {.n_tokens = n - 1,
                       .n_segments = 1,
                       .tokens = tokens,
                       .targets = targets,
                       .positions = positions,
                       .segment_start = segments};
    CHECK_OK(tape_bind(tape, 0, &batch));
    CHECK_OK(tape_forward(tape, 0));
    const float *logprob = tape_value(tape, 0, head.logprob);
    double worst = 0;
    for (int t = n_prompt - 1; t + 1 < n; t++)
        worst = fmax(worst, fabs((double)logprob[t] - (double)answer->logprobs[t + 1 - n_prompt]));
    tape_free(tape);
    return worst;
}

/* Log-probabilities of the training graph: the bounds that whoever trains on samples relies on. */
static const double logprob_bound[] = {[DTYPE_F32] = 1e-5, [DTYPE_BF16] = 2e-2};

/* The same tokens, and log-probabilities bit for bit (or, in fp32, to rounding). */
static void check_same(const Generation *a, const Generation *b, bool exact) {
    ck_assert_uint_eq(a->tokens.n, b->tokens.n);
    ck_assert_mem_eq(a->tokens.ids, b->tokens.ids, a->tokens.n * sizeof(int32_t));
    ck_assert_uint_eq(a->n_logprobs, b->n_logprobs);
    ck_assert_int_eq(a->reason, b->reason);
    if (exact) ck_assert_mem_eq(a->logprobs, b->logprobs, a->n_logprobs * sizeof *a->logprobs);
    for (size_t i = 0; i < a->n_logprobs; i++)
        ck_assert_double_eq_tol((double)a->logprobs[i], (double)b->logprobs[i], logprob_bound[DTYPE_F32]);
}

/* Three samples of eleven prompts in three slots, in one and in forty: slots are taken over, prompts arrive in chunks
 * beside sequences that decode, samples share pages or come when the others have gone. */
static void check_composition(const char *set, Dtype precision, bool tempered, const Policy *policy) {
    enum { SAMPLES = 3, N = SAMPLES * N_PROMPTS };
    Fixture fixture;
    if (kernels_select(set) != OK) return;
    set_up_as(&fixture, precision, 0.1f, policy); /* std·sqrt(dim) = 0.57: products grow as a trained model's do */
    GenerateOptions options = {.sampler = plain, .max_new_tokens = NEW, .samples = SAMPLES};
    options.sampler.temperature = 0.7;
    options.sampler.tempered_logprobs = tempered;
    Generation few[N], one[N], all[N], last[SAMPLES];
    CHECK_OK(generate(&fixture, 0, N_PROMPTS, 3, LONGEST, &options, few));
    CHECK_OK(generate(&fixture, 0, N_PROMPTS, 1, LONGEST, &options, one));
    CHECK_OK(generate(&fixture, 0, N_PROMPTS, 40, LONGEST, &options, all));
    options.first_prompt = N_PROMPTS - 1;
    CHECK_OK(generate(&fixture, N_PROMPTS - 1, 1, 2, LONGEST, &options, last));
    double worst = 0;
    for (size_t i = 0; i < N; i++) {
        check_same(&few[i], &one[i], precision == DTYPE_BF16);
        check_same(&few[i], &all[i], precision == DTYPE_BF16);
        worst = fmax(worst, worst_logprob(fixture.model, &fixture.prompts[i / SAMPLES], &few[i], tempered ? 0.7 : 1));
    }
    for (size_t k = 0; k < SAMPLES; k++) check_same(&few[N - SAMPLES + k], &last[k], precision == DTYPE_BF16);
    ck_assert_msg(few[0].tokens.n != few[1].tokens.n ||
                      memcmp(few[0].tokens.ids, few[1].tokens.ids, few[0].tokens.n * sizeof(int32_t)) != 0,
                  "two samples of a prompt are the same");
    printf("%s, %s, %s: log-probabilities within %.1e of the training graph's\n", set, dtype_name(precision),
           policy->name, worst);
    ck_assert_double_le(worst, logprob_bound[precision]);
    for (size_t i = 0; i < N; i++) {
        generation_free(&few[i]);
        generation_free(&one[i]);
        generation_free(&all[i]);
    }
    for (size_t k = 0; k < SAMPLES; k++) generation_free(&last[k]);
    tear_down(&fixture);
}

START_TEST(many_samples_at_once_are_what_each_is_alone_and_without_a_cache) {
    static const char *const sets[] = {"openblas", "avx2", "avx512", "avx512bf16"};
    for (size_t s = 0; s < sizeof sets / sizeof *sets; s++) {
        check_composition(sets[s], DTYPE_F32, s % 2, &whole_model);
        if (s > 0) check_composition(sets[s], DTYPE_BF16, s % 2, &whole_model);
    }
    CHECK_OK(kernels_select("auto"));
}
END_TEST

/* What cria ppo and rejection sample from where an adapter is trained, and what generate.weights makes of a model. The
 * fp32 training graph's head needs fp32 values. */
START_TEST(so_are_those_of_adapters_and_of_models_in_fewer_bits) {
    static const char *const sets[] = {"openblas", "avx2", "avx512", "avx512bf16"};
    static const Policy policies[] = {
        {.name = "LoRA on 16 bits", .frozen = FROZEN_16BIT, .rank = 4},
        {.name = "LoRA on int8", .frozen = FROZEN_INT8, .rank = 3},
        {.name = "DoRA on NF4", .frozen = FROZEN_NF4, .rank = 4, .magnitudes = true},
        {.name = "int8, the head too", .frozen = FROZEN_INT8, .quantised_head = true},
        {.name = "NF4, the head too", .frozen = FROZEN_NF4, .quantised_head = true},
    };
    for (size_t s = 0; s < sizeof sets / sizeof *sets; s++)
        for (size_t p = 0; p < sizeof policies / sizeof *policies; p++) {
            if (!policies[p].quantised_head && s % 2 == 0) check_composition(sets[s], DTYPE_F32, p % 2, &policies[p]);
            if (s > 0) check_composition(sets[s], DTYPE_BF16, p % 2, &policies[p]);
        }
    CHECK_OK(kernels_select("auto"));
}
END_TEST

static int collect(void *context, size_t prompt, const char *bytes, size_t n) {
    (void)prompt;
    text_append(context, bytes, n);
    return text_check(context);
}

/* Any three tokens of a text as its stop text: with a tokenizer of bytes it always lies over token borders. */
START_TEST(a_stop_text_ends_the_text_before_it_and_no_part_of_it_is_shown) {
    Fixture fixture;
    set_up(&fixture);
    GenerateOptions options = {.sampler = plain, .max_new_tokens = 40};
    Generation whole, cut;
    CHECK_OK(generate(&fixture, 0, 1, 1, 64, &options, &whole));
    ck_assert_uint_ge(whole.text_size, 20);
    for (size_t at = 0; at + 3 <= 20; at++) {
        char stop[4] = "";
        memcpy(stop, whole.text + at, 3);
        if (strlen(stop) != 3) continue;
        Text shown = {0};
        const char *first = memmem(whole.text, whole.text_size, stop, 3);
        GenerateOptions stopping = options;
        stopping.stop = (const char *const[]){"never in it, however long it may be", stop};
        stopping.n_stop = 2;
        stopping.emit = collect;
        stopping.context = &shown;
        CHECK_OK(generate(&fixture, 0, 1, 1, 64, &stopping, &cut));
        ck_assert_int_eq(cut.reason, FINISH_STOP_TEXT);
        ck_assert_uint_eq(cut.text_size, (size_t)(first - whole.text));
        ck_assert_uint_eq(shown.length, cut.text_size);
        if (cut.text_size) ck_assert_mem_eq(shown.bytes, whole.text, cut.text_size);
        text_free(&shown);
        generation_free(&cut);
    }
    generation_free(&whole);
    tear_down(&fixture);
}
END_TEST

START_TEST(the_last_place_of_the_cache_is_used_and_no_more) {
    Fixture fixture;
    set_up(&fixture);
    GenerateOptions options = {.sampler = plain, .max_new_tokens = NEW};
    Generation out;
    CHECK_OK(generate(&fixture, 1, 1, 1, 301, &options, &out)); /* prompt 1 has 300 tokens */
    ck_assert_uint_eq(out.tokens.n, 1);
    ck_assert_int_eq(out.reason, FINISH_CONTEXT);
    generation_free(&out);
    CHECK_ERROR(generate(&fixture, 1, 1, 1, 300, &options, &out), ERR_REFUSED, "no room");
    tear_down(&fixture);
}
END_TEST

START_TEST(a_model_that_computes_nan_is_refused) {
    Fixture fixture;
    set_up(&fixture);
    fixture.model->norm.value[3] = NAN;
    for (int t = 0; t < 2; t++) {
        GenerateOptions options = {.sampler = plain, .max_new_tokens = NEW};
        Generation out[2];
        options.sampler.temperature = t;
        options.sampler.top_p = 0.95;
        CHECK_ERROR(generate(&fixture, 0, 2, 2, 400, &options, out), ERR_REFUSED, "logit");
    }
    tear_down(&fixture);
}
END_TEST

CHECK_MAIN("generate", temperature_divides_the_logits, filters_keep_what_their_papers_say,
           the_first_of_the_most_probable_where_nothing_else_may_pass, the_repetition_penalty_counts_a_token_once,
           logits_that_are_no_numbers_are_an_error_at_any_temperature,
           many_samples_at_once_are_what_each_is_alone_and_without_a_cache,
           so_are_those_of_adapters_and_of_models_in_fewer_bits,
           a_stop_text_ends_the_text_before_it_and_no_part_of_it_is_shown,
           the_last_place_of_the_cache_is_used_and_no_more, a_model_that_computes_nan_is_refused)
