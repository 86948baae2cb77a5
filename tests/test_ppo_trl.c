/* PPO against TRL 0.24's PPOTrainer: the same policy and value model, the same samples and scores, 20 AdamW steps of
 * both (tests/golden/ppo_train_trl.py), micro-batches cut in two ways. Bounds: the first step's gradients of both
 * within 1e-5 of their norm; every loss within 1e-6; every metric within 1e-5 in the first rollout and 1e-4 thereafter,
 * relative to those above 1; the change of both models after the last step within 1e-3 of its norm. */
#include <math.h>
#include <string.h>

#include <jansson.h>

#include "model/core/threads.h"
#include "tests/policy_golden.h"
#include "train/loop/loop.h"
#include "train/objectives/value.h"

#define GOLDEN "tests/golden/ppo_train_trl"
#define POLICY "tests/golden/policy_trl"
enum { STEPS = 20, MOST_TOKENS = 64, EOS = 2, MOST_UPDATES = 4 };

static const char *const case_names[] = {"plain", "minibatches", "whitened"};
enum { N_CASES = sizeof case_names / sizeof *case_names };
static const int capacities[] = {256, 20};

typedef struct {
    const char *name;
    json_t *samples, *golden;
    NamedFile *policy_base, *value_base, *expected;
    Llama *policy, *reference, *value;
    TapeMemory *memory;
    LogprobPass *old_pass, *reference_pass;
    ValuePass *value_pass;
    Rollout rollout;
    Trained trained;
    Companion companion;
    Arena arena;
    LoopParts parts;
    int capacity;
} Fixture;

/* Where the case does not say, PPOConfig's own. */
static PolicyOptions options_of(const Fixture *f) {
    const json_t *first = json_array_get(json_object_get(f->samples, "rollouts"), 0);
    const char *estimator = json_string_value(policy_given(f->golden, "kl_estimator"));
    PolicyOptions options = {.algorithm = ALGORITHM_PPO,
                             .prompts = (int)json_array_size(json_object_get(first, "prompts")),
                             .samples = 1,
                             .epochs = (int)policy_option(f->golden, "num_ppo_epochs", 4),
                             .minibatches = (int)policy_option(f->golden, "num_mini_batches", 1),
                             .temperature = policy_option(f->golden, "temperature", 0.7),
                             .beta = policy_option(f->golden, "kl_coef", 0.05),
                             .epsilon_low = policy_option(f->golden, "cliprange", 0.2),
                             .most_distance = 1e-5,
                             .missing_eos_penalty = policy_option(f->golden, "missing_eos_penalty", 0),
                             .kl_estimator = estimator && strcmp(estimator, "k3") == 0 ? KL_K3 : KL_K1,
                             .gamma = policy_option(f->golden, "gamma", 1),
                             .lambda = policy_option(f->golden, "lam", 0.95),
                             .whiten_rewards = json_is_true(policy_given(f->golden, "whiten_rewards")),
                             .value_epsilon = policy_option(f->golden, "cliprange_value", 0.2),
                             .value_weight = policy_option(f->golden, "vf_coef", 0.1)};
    options.epsilon_high = options.epsilon_low;
    return options;
}

/* What a run does where it samples and scores. */
static int fill_rollout(Fixture *f, int64_t number) {
    Rollout *rollout = &f->rollout;
    const json_t *golden = json_array_get(json_object_get(f->samples, "rollouts"), (size_t)number);
    rollout_clear(rollout, number);
    for (int i = 0; i < rollout->options.prompts; i++) {
        int32_t tokens[MOST_TOKENS];
        const json_t *prompt = json_array_get(json_object_get(golden, "prompts"), (size_t)i);
        const json_t *completion = json_array_get(json_object_get(golden, "completions"), (size_t)i);
        int n_prompt = policy_append(tokens, 0, MOST_TOKENS, prompt);
        int n = policy_append(tokens, n_prompt, MOST_TOKENS, completion);
        TRY(rollout_add(rollout, i, tokens, n, n_prompt, tokens[n - 1] == EOS, NULL));
        rollout->scores[i] = json_number_value(json_array_get(json_object_get(golden, "scores"), (size_t)i));
    }
    TRY(rollout_gather(rollout));
    TRY(rollout_logprobs(rollout, f->old_pass, f->capacity, false));
    TRY(rollout_logprobs(rollout, f->reference_pass, f->capacity, true));
    TRY(rollout_values(rollout, f->value_pass, f->capacity));
    TRY(rollout_divergences(rollout));
    return rollout_advantages(rollout);
}

static int next_step(void *context, int64_t step, StepBatch *batch) {
    Fixture *f = context;
    int updates = rollout_updates(&f->rollout);
    if (step % updates == 0) TRY(fill_rollout(f, step / updates));
    return rollout_update(&f->rollout, (int)(step % updates), f->capacity, batch);
}

static Llama *load(const NamedFile *base, bool scores, bool training) {
    HfConfig config;
    Llama *model;
    CHECK_OK(hf_config_read(&config, POLICY));
    LlamaShape shape = llama_shape_from_hf(&config);
    shape.n_scores = scores;
    CHECK_OK(llama_new(&model, &shape, (LlamaOptions){.training = training}));
    CHECK_OK(llama_load(model, base));
    return model;
}

static void open_passes(Fixture *f, int capacity) {
    double temperature = f->rollout.options.temperature;
    f->memory = tape_memory_new();
    CHECK_OK(logprob_pass_new(&f->old_pass, f->policy, temperature, capacity, DTYPE_F32, f->memory));
    CHECK_OK(logprob_pass_new(&f->reference_pass, f->reference, temperature, capacity, DTYPE_F32, f->memory));
    CHECK_OK(value_pass_new(&f->value_pass, f->value,
                            (ValuePassOptions){.capacity = capacity, .precision = DTYPE_F32, .memory = f->memory}));
}

static void open_case(Fixture *f, const char *name, int capacity) {
    char path[256];
    *f = (Fixture){.name = name, .capacity = capacity};
    f->samples = json_load_file(GOLDEN "/samples.json", 0, NULL);
    snprintf(path, sizeof path, GOLDEN "/%s.json", name);
    f->golden = json_load_file(path, 0, NULL);
    ck_assert(f->samples && f->golden);
    CHECK_OK(named_open(&f->policy_base, POLICY "/model.safetensors"));
    CHECK_OK(named_open(&f->value_base, GOLDEN "/value.safetensors"));
    snprintf(path, sizeof path, GOLDEN "/%s.safetensors", name);
    CHECK_OK(named_open(&f->expected, path));
    f->policy = load(f->policy_base, false, true);
    f->reference = load(f->policy_base, false, false);
    f->value = load(f->value_base, true, true);
    CHECK_OK(mesh_init(&f->parts.mesh, NULL, NULL));
    PolicyOptions options = options_of(f);
    CHECK_OK(rollout_init(&f->rollout, &options, f->parts.mesh));
    open_passes(f, capacity);
    CHECK_OK(policy_objective_new(&f->parts.objective, &f->rollout, f->value, capacity));
    f->companion = (Companion){.name = "value", .rate = 1};
    CHECK_OK(trained_list(&f->trained, f->policy, NULL, &f->arena));
    CHECK_OK(trained_list(&f->companion.trained, f->value, NULL, &f->arena));
    policy_optimizer(&f->parts.optimizer, &f->trained, 1e-8, 0, &f->arena);
    policy_optimizer(&f->companion.optimizer, &f->companion.trained, 1e-8, 0, &f->arena);
    f->parts.model = f->policy;
    f->parts.companion = &f->companion;
    f->parts.batches = (LoopBatches){.context = f, .step = next_step};
}

static void close_case(Fixture *f) {
    f->parts.objective->free(f->parts.objective);
    optimizer_free(f->parts.optimizer);
    optimizer_free(f->companion.optimizer);
    logprob_pass_free(f->old_pass);
    logprob_pass_free(f->reference_pass);
    value_pass_free(f->value_pass);
    tape_memory_free(f->memory);
    rollout_free(&f->rollout);
    llama_free(f->policy);
    llama_free(f->reference);
    llama_free(f->value);
    named_close(f->policy_base);
    named_close(f->value_base);
    named_close(f->expected);
    mesh_finalize(f->parts.mesh);
    arena_free(&f->arena);
    json_decref(f->samples);
    json_decref(f->golden);
}

/* ---- metrics ---- */

/* TRL's means over a rectangle of tokens and padding, where padding counts `padding`; ours are over the tokens. */
static double over_padding(const Fixture *f, const ObjectiveSums *sums, double mean, double padding) {
    double width = json_number_value(json_object_get(f->golden, "width"));
    double all = width * f->rollout.n_minibatch, tokens = sums->scored;
    return (mean * tokens + padding * (all - tokens)) / all;
}

/* What TRL tells of a rollout, from its updates. */
typedef struct {
    ObjectiveSums sums[MOST_UPDATES]; /* of each update */
    double ratio[MOST_UPDATES], approx_kl[MOST_UPDATES];
    int n;
} Told;

static double mean_of(const Fixture *f, const Told *told, const char *name) {
    double sum = 0;
    for (int u = 0; u < told->n; u++) {
        if (strcmp(name, "val/ratio") == 0)
            sum += told->ratio[u];
        else if (strcmp(name, "policy/approxkl_avg") == 0)
            sum += told->approx_kl[u];
        else
            sum += policy_metric(f->parts.objective, &told->sums[u], name);
    }
    return sum / told->n;
}

static double variance_of_ratios(const Fixture *f, const Told *told) {
    double mean = mean_of(f, told, "val/ratio"), squares = 0;
    for (int u = 0; u < told->n; u++) squares += (told->ratio[u] - mean) * (told->ratio[u] - mean);
    return squares / (told->n - 1);
}

/* Told once a rollout: with its first update. */
static bool is_of_rollout(const char *name) {
    return strncmp(name, "objective/", strlen("objective/")) == 0 || strcmp(name, "val/num_eos_tokens") == 0;
}

/* TRL counts each token of padding as one of log-probability 1. */
static double entropy_with_padding(const Fixture *f, double entropy) {
    double width = json_number_value(json_object_get(f->golden, "width")), tokens = 0;
    int n = f->rollout.options.prompts;
    for (int i = 0; i < n; i++) tokens += f->rollout.lengths[i];
    return entropy - (width * n - tokens) / n;
}

static double found_metric(const Fixture *f, const Told *told, const char *name) {
    if (strcmp(name, "objective/entropy") == 0)
        return entropy_with_padding(f, policy_metric(f->parts.objective, &told->sums[0], name));
    if (is_of_rollout(name)) return policy_metric(f->parts.objective, &told->sums[0], name);
    if (strcmp(name, "val/ratio_var") == 0) return variance_of_ratios(f, told);
    return mean_of(f, told, name);
}

static double compare_metrics(const Fixture *f, size_t rollout, const Told *told) {
    const char *name;
    json_t *value;
    double worst = 0;
    size_t compared = 0;
    json_object_foreach(json_array_get(json_object_get(f->golden, "metrics"), rollout), name, value) {
        double expected = json_number_value(value), found = found_metric(f, told, name);
        double difference = fabs(found - expected) / fmax(1, fabs(expected));
        ck_assert_msg(difference <= 1e-4, "%s, rollout %zu, %s: %.9g, expected %.9g", f->name, rollout, name, found,
                      expected);
        if (difference > worst) worst = difference;
        compared++;
    }
    ck_assert_uint_ge(compared, 13);
    ck_assert(!isnan(policy_metric(f->parts.objective, &told->sums[told->n - 1], "val/ratio_var")));
    ck_assert(!isnan(policy_metric(f->parts.objective, &told->sums[0], "policy/entropy_avg")));
    return worst;
}

/* ---- the comparison ---- */

typedef struct {
    double loss, metrics, gradients, value_gradients, change, value_change;
} Distance;

static void tell_update(const Fixture *f, Told *told, const ObjectiveSums *sums) {
    int u = told->n++;
    told->sums[u] = *sums;
    told->ratio[u] = over_padding(f, sums, policy_metric(f->parts.objective, sums, "val/ratio"), 1);
    told->approx_kl[u] = over_padding(f, sums, policy_metric(f->parts.objective, sums, "policy/approxkl_avg"), 0);
}

static void run_steps(Fixture *f, Loop *loop, Distance *distance, bool compare) {
    LoopState state = {.best_step = -1};
    static Told told;
    for (int step = 0; step < STEPS; step++) {
        LoopStep result;
        CHECK_OK(loop_step(loop, &state, &result));
        double expected = json_number_value(json_array_get(json_object_get(f->golden, "losses"), (size_t)step));
        distance->loss = fmax(distance->loss, fabs(result.loss - expected) / fmax(1, fabs(expected)));
        if (f->rollout.update == 0) told = (Told){.n = 0};
        tell_update(f, &told, &result.sums);
        if (told.n < rollout_updates(&f->rollout) || !compare) continue;
        double metrics = compare_metrics(f, (size_t)f->rollout.number, &told);
        if (f->rollout.number == 0) distance->metrics = metrics;
    }
}

static Distance train(const char *name, int capacity, void (*wrong)(PolicyOptions *)) {
    Fixture f;
    Loop *loop;
    Distance distance = {0};
    ObjectiveSums sums;
    open_case(&f, name, capacity);
    if (wrong) wrong(&f.rollout.options);
    LoopOptions options = {.steps = STEPS,
                           .tokens_per_microbatch = capacity,
                           .schedule = {.kind = SCHEDULE_CONSTANT, .peak = 4e-3, .total = STEPS}};
    CHECK_OK(loop_new(&loop, &f.parts, &options));
    CHECK_OK(loop_gradients(loop, 0, &sums));
    distance.gradients = policy_gradients(f.policy, f.expected, "grad.policy.", &f.arena);
    distance.value_gradients = policy_gradients(f.value, f.expected, "grad.value.", &f.arena);
    run_steps(&f, loop, &distance, !wrong);
    distance.change = policy_change(&f.trained, f.policy_base, f.expected, "policy.", &f.arena);
    distance.value_change = policy_change(&f.companion.trained, f.value_base, f.expected, "value.", &f.arena);
    loop_free(loop);
    close_case(&f);
    return distance;
}

START_TEST(twenty_steps_of_policy_and_value_model_end_where_those_of_trl_end) {
    threads_init(1);
    for (int c = 0; c < N_CASES; c++)
        for (size_t w = 0; w < sizeof capacities / sizeof *capacities; w++) {
            Distance d = train(case_names[c], capacities[w], NULL);
            printf("%s, micro-batches of %d: gradients %.1e, the value model's %.1e, metrics %.1e, losses %.1e, change "
                   "%.1e, the value model's %.1e\n",
                   case_names[c], capacities[w], d.gradients, d.value_gradients, d.metrics, d.loss, d.change,
                   d.value_change);
            ck_assert_msg(d.gradients <= 1e-5, "%s: gradients %g", case_names[c], d.gradients);
            ck_assert_msg(d.value_gradients <= 1e-5, "%s: the value model's gradients %g", case_names[c],
                          d.value_gradients);
            ck_assert_msg(d.metrics <= 1e-5, "%s: metrics %g", case_names[c], d.metrics);
            ck_assert_msg(d.loss <= 1e-6, "%s: losses %g", case_names[c], d.loss);
            ck_assert_msg(d.change <= 1e-3, "%s: change %g", case_names[c], d.change);
            ck_assert_msg(d.value_change <= 1e-3, "%s: the value model's change %g", case_names[c], d.value_change);
        }
}
END_TEST

/* One log-probability of the rollout is not the policy's. */
static int tampered_step(void *context, int64_t step, StepBatch *batch) {
    Fixture *f = context;
    TRY(next_step(context, step, batch));
    f->rollout.answers[1].logprob[0] += 1e-3f;
    return OK;
}

START_TEST(a_policy_that_is_not_what_was_measured_is_refused) {
    Fixture f;
    Loop *loop;
    LoopState state = {.best_step = -1};
    LoopStep result;
    open_case(&f, "plain", 256);
    f.parts.batches.step = tampered_step;
    LoopOptions options = {.steps = 1, .tokens_per_microbatch = 256, .schedule = {.peak = 4e-3, .total = 1}};
    CHECK_OK(loop_new(&loop, &f.parts, &options));
    ck_assert_int_eq(loop_step(loop, &state, &result), ERR_FAILED);
    ck_assert_msg(strstr(error_text(), "its ratio is 0.999"), "%s", error_text());
    loop_free(loop);
    close_case(&f);
}
END_TEST

static void other_lambda(PolicyOptions *options) {
    options->lambda = 1;
}
static void no_penalty(PolicyOptions *options) {
    options->missing_eos_penalty = 0;
}
static void no_whitening(PolicyOptions *options) {
    options->whiten_rewards = false;
}
static void other_weight(PolicyOptions *options) {
    options->value_weight *= 1.1;
}

START_TEST(another_lambda_penalty_whitening_or_weight_is_noticed) {
    void (*const wrong[])(PolicyOptions *) = {other_lambda, no_penalty, no_whitening, other_weight};
    threads_init(1);
    for (int i = 0; i < 4; i++) {
        Distance d = train("whitened", 256, wrong[i]);
        ck_assert_msg(d.loss > 1e-5 && fmax(d.gradients, d.value_gradients) > 1e-4,
                      "%d passes: losses %g, gradients %g", i, d.loss, d.gradients);
    }
}
END_TEST

CHECK_MAIN("PPO and TRL", twenty_steps_of_policy_and_value_model_end_where_those_of_trl_end,
           another_lambda_penalty_whitening_or_weight_is_noticed, a_policy_that_is_not_what_was_measured_is_refused)
