/* GRPO and RLOO against TRL: the same base, the same samples and scores, 20 AdamW steps (tests/golden/policy_trl.py),
 * micro-batches cut in two ways. Bounds: the first step's gradients within 1e-5 of their norm and its metrics within
 * 1e-5; every loss within 1e-6; the parameters' change after the last step within 1e-3 of its norm. */
#include <math.h>
#include <string.h>

#include <jansson.h>

#include "model/core/threads.h"
#include "tests/policy_golden.h"
#include "train/loop/loop.h"

#define GOLDEN "tests/golden/policy_trl"
enum { STEPS = 20, MAX_NEW = 10, MOST_TOKENS = 64 };

static const char *const case_names[] = {"dapo", "grpo", "bnpo", "dr_grpo", "rloo", "rloo_normalised"};
enum { N_CASES = sizeof case_names / sizeof *case_names };
static const int capacities[] = {256, 20};

typedef struct {
    const char *name;
    json_t *samples, *golden;
    NamedFile *base, *expected;
    Llama *policy, *reference;
    TapeMemory *memory;
    LogprobPass *old_pass, *reference_pass;
    Rollout rollout;
    Trained trained;
    Arena arena;
    LoopParts parts;
    int capacity;
} Fixture;

/* The place of an option's word in `words`. */
static int choice(const Fixture *f, const char *name, const char *const *words, int n, int otherwise) {
    const char *word = json_string_value(policy_given(f->golden, name));
    for (int i = 0; word && i < n; i++)
        if (strcmp(word, words[i]) == 0) return i;
    ck_assert_ptr_null(word);
    return otherwise;
}

static PolicyOptions options_of(const Fixture *f) {
    static const char *const losses[] = {"dapo", "grpo", "bnpo", "dr_grpo"}, *const scales[] = {"group", "batch",
                                                                                                "none"};
    const json_t *unweighed = json_object_get(json_object_get(f->golden, "options"), "use_bias_correction_kl");
    bool rloo = strcmp(json_string_value(json_object_get(f->golden, "algorithm")), "rloo") == 0;
    const json_t *first = json_array_get(json_object_get(f->samples, "rollouts"), 0);
    PolicyOptions options = {.algorithm = rloo ? ALGORITHM_RLOO : ALGORITHM_GRPO,
                             .prompts = (int)json_array_size(json_object_get(first, "prompts")),
                             .samples = (int)json_integer_value(json_object_get(f->samples, "samples_per_prompt")),
                             .epochs = (int)policy_option(f->golden, "num_iterations", 1),
                             .minibatches = 1,
                             .max_new_tokens = MAX_NEW,
                             .temperature = policy_option(f->golden, "temperature", 1),
                             .beta = policy_option(f->golden, "beta", rloo ? 0.05 : 0),
                             .epsilon_low = policy_option(f->golden, "epsilon", 0.2),
                             .weigh_kl = !json_is_false(unweighed),
                             .loss_type = (PolicyLossType)choice(f, "loss_type", losses, 4, LOSS_DAPO),
                             .scale = (ScaleRewards)choice(f, "scale_rewards", scales, 3, SCALE_GROUP),
                             .normalise = rloo && json_is_true(json_object_get(json_object_get(f->golden, "options"),
                                                                               "normalize_advantages"))};
    options.epsilon_high = policy_option(f->golden, "epsilon_high", options.epsilon_low);
    return options;
}

/* What a run does where it samples and scores. */
static int fill_rollout(Fixture *f, int64_t number) {
    Rollout *rollout = &f->rollout;
    const json_t *golden = json_array_get(json_object_get(f->samples, "rollouts"), (size_t)number);
    const int32_t eos = 2;
    rollout_clear(rollout, number);
    for (int i = 0; i < rollout->options.prompts * rollout->options.samples; i++) {
        int32_t tokens[MOST_TOKENS];
        size_t prompt = (size_t)(i / rollout->options.samples);
        int n_prompt =
            policy_append(tokens, 0, MOST_TOKENS, json_array_get(json_object_get(golden, "prompts"), prompt));
        int n = policy_append(tokens, n_prompt, MOST_TOKENS,
                              json_array_get(json_object_get(golden, "completions"), (size_t)i));
        TRY(rollout_add(rollout, i, tokens, n, n_prompt, tokens[n - 1] == eos, NULL));
        const json_t *score = json_array_get(json_object_get(golden, "scores"), (size_t)i);
        rollout->scores[i] = json_is_number(score) ? json_number_value(score) : NAN;
    }
    TRY(rollout_gather(rollout));
    TRY(rollout_logprobs(rollout, f->old_pass, f->capacity, false));
    if (f->reference_pass) TRY(rollout_logprobs(rollout, f->reference_pass, f->capacity, true));
    TRY(rollout_divergences(rollout));
    return rollout_advantages(rollout);
}

static int next_step(void *context, int64_t step, StepBatch *batch) {
    Fixture *f = context;
    int updates = f->rollout.options.epochs;
    if (step % updates == 0) TRY(fill_rollout(f, step / updates));
    return rollout_update(&f->rollout, (int)(step % updates), f->capacity, batch);
}

static Llama *load(const Fixture *f, bool training) {
    HfConfig config;
    Llama *model;
    CHECK_OK(hf_config_read(&config, GOLDEN));
    LlamaShape shape = llama_shape_from_hf(&config);
    CHECK_OK(llama_new(&model, &shape, (LlamaOptions){.training = training}));
    CHECK_OK(llama_load(model, f->base));
    return model;
}

static void make_optimizer(Fixture *f) {
    CHECK_OK(trained_list(&f->trained, f->policy, NULL, &f->arena));
    policy_optimizer(&f->parts.optimizer, &f->trained, policy_option(f->golden, "adam_epsilon", 1e-8), 1, &f->arena);
}

static void open_case(Fixture *f, const char *name, int capacity) {
    char path[256];
    *f = (Fixture){.name = name, .capacity = capacity};
    f->samples = json_load_file(GOLDEN "/samples.json", 0, NULL);
    snprintf(path, sizeof path, GOLDEN "/%s.json", name);
    f->golden = json_load_file(path, 0, NULL);
    ck_assert(f->samples && f->golden);
    CHECK_OK(named_open(&f->base, GOLDEN "/model.safetensors"));
    snprintf(path, sizeof path, GOLDEN "/%s.safetensors", name);
    CHECK_OK(named_open(&f->expected, path));
    f->policy = load(f, true);
    f->reference = load(f, false);
    CHECK_OK(mesh_init(&f->parts.mesh, NULL, NULL));
    PolicyOptions options = options_of(f);
    CHECK_OK(rollout_init(&f->rollout, &options, f->parts.mesh));
    f->memory = tape_memory_new();
    CHECK_OK(logprob_pass_new(&f->old_pass, f->policy, options.temperature, capacity, DTYPE_F32, f->memory));
    if (options.beta != 0)
        CHECK_OK(
            logprob_pass_new(&f->reference_pass, f->reference, options.temperature, capacity, DTYPE_F32, f->memory));
    CHECK_OK(policy_objective_new(&f->parts.objective, &f->rollout, NULL, capacity));
    make_optimizer(f);
    f->parts.model = f->policy;
    f->parts.batches = (LoopBatches){.context = f, .step = next_step};
}

static void close_case(Fixture *f) {
    f->parts.objective->free(f->parts.objective);
    optimizer_free(f->parts.optimizer);
    logprob_pass_free(f->old_pass);
    logprob_pass_free(f->reference_pass);
    tape_memory_free(f->memory);
    rollout_free(&f->rollout);
    llama_free(f->policy);
    llama_free(f->reference);
    named_close(f->base);
    named_close(f->expected);
    mesh_finalize(f->parts.mesh);
    arena_free(&f->arena);
    json_decref(f->samples);
    json_decref(f->golden);
}

/* ---- comparing ---- */

static bool belongs_to_the_loop(const char *name) {
    static const char *const names[] = {"grad_norm", "learning_rate", "num_tokens", "rewards/score/mean",
                                        "rewards/score/std"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) return true;
    return false;
}

/* The largest difference of this step's metrics, relative to those above 1. Every one that TRL logs is there. */
static double compare_metrics(const Fixture *f, int64_t step, const ObjectiveSums *sums) {
    const char *name;
    json_t *value;
    double worst = 0;
    int compared = 0;
    json_object_foreach(json_array_get(json_object_get(f->golden, "metrics"), (size_t)step), name, value) {
        if (belongs_to_the_loop(name)) continue;
        double expected = json_number_value(value), found = policy_metric(f->parts.objective, sums, name);
        double difference = fabs(found - expected) / fmax(1, fabs(expected));
        ck_assert_msg(difference <= 1e-4, "%s, step %d, %s: %.9g, expected %.9g", f->name, (int)step, name, found,
                      expected);
        if (difference > worst) worst = difference;
        compared++;
    }
    ck_assert_int_ge(compared, 6);
    return worst;
}

typedef struct {
    double loss, norm, metrics, gradients, change;
} Distance;

static Distance train(const char *name, int capacity, void (*wrong)(PolicyOptions *)) {
    Fixture f;
    Loop *loop;
    Distance distance = {0};
    open_case(&f, name, capacity);
    if (wrong) wrong(&f.rollout.options);
    LoopOptions options = {.steps = STEPS,
                           .tokens_per_microbatch = capacity,
                           .schedule = {.kind = SCHEDULE_CONSTANT, .peak = 4e-3, .total = STEPS}};
    CHECK_OK(loop_new(&loop, &f.parts, &options));
    ObjectiveSums sums;
    CHECK_OK(loop_gradients(loop, 0, &sums));
    distance.gradients = policy_gradients(f.policy, f.expected, "grad.", &f.arena);
    LoopState state = {.best_step = -1};
    for (int step = 0; step < STEPS; step++) {
        LoopStep result;
        CHECK_OK(loop_step(loop, &state, &result));
        double expected = json_number_value(json_array_get(json_object_get(f.golden, "losses"), (size_t)step));
        distance.loss = fmax(distance.loss, fabs(result.loss - expected));
        double norm = json_number_value(
            json_object_get(json_array_get(json_object_get(f.golden, "metrics"), (size_t)step), "grad_norm"));
        distance.norm = fmax(distance.norm, fabs(result.grad_norm - norm) / norm);
        if (!wrong) {
            double metrics = compare_metrics(&f, step, &result.sums);
            if (step == 0) distance.metrics = metrics;
        }
    }
    distance.change = policy_change(&f.trained, f.base, f.expected, "", &f.arena);
    loop_free(loop);
    close_case(&f);
    return distance;
}

START_TEST(twenty_steps_end_where_those_of_trl_end) {
    threads_init(1);
    for (int c = 0; c < N_CASES; c++)
        for (size_t w = 0; w < sizeof capacities / sizeof *capacities; w++) {
            Distance d = train(case_names[c], capacities[w], NULL);
            printf("%s, micro-batches of %d: gradients %.1e, norms %.1e, metrics %.1e, losses %.1e, change %.1e\n",
                   case_names[c], capacities[w], d.gradients, d.norm, d.metrics, d.loss, d.change);
            ck_assert_msg(d.gradients <= 1e-5, "%s: gradients %g", case_names[c], d.gradients);
            ck_assert_msg(d.metrics <= 1e-5, "%s: metrics %g", case_names[c], d.metrics);
            ck_assert_msg(d.norm <= 2e-5, "%s: norms %g", case_names[c], d.norm);
            ck_assert_msg(d.loss <= 1e-6, "%s: losses %g", case_names[c], d.loss);
            ck_assert_msg(d.change <= 1e-3, "%s: change %g", case_names[c], d.change);
        }
}
END_TEST

static void other_bound(PolicyOptions *options) {
    options->epsilon_high = options->epsilon_low;
}
static void other_penalty(PolicyOptions *options) {
    options->beta *= 1.1;
}
static void other_mean(PolicyOptions *options) {
    options->loss_type = LOSS_BNPO;
}

START_TEST(another_bound_penalty_or_mean_is_noticed) {
    void (*const wrong[])(PolicyOptions *) = {other_bound, other_penalty, other_mean};
    threads_init(1);
    for (int i = 0; i < 3; i++) {
        Distance d = train("grpo", 256, wrong[i]);
        ck_assert_msg(d.change > 1e-3 && d.loss > 1e-6, "%d passes: change %g, losses %g", i, d.change, d.loss);
    }
}
END_TEST

CHECK_MAIN("GRPO, RLOO and TRL", twenty_steps_end_where_those_of_trl_end, another_bound_penalty_or_mean_is_noticed)
