/* cria ppo: a model learns from its own answers to prompts, by what a rule, a program or a reward model says they are
 * worth. */
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "train/commands.h"
#include "train/other_model.h"
#include "train/ppo/plan.h"
#include "train/ppo/stage.h"
#include "train/sample.h"
#include "train/setup.h"

static void free_own(Run *run) {
    Ppo *ppo = run->own;
    if (!ppo) return;
    logprob_pass_free(ppo->policy_pass);
    logprob_pass_free(ppo->reference_pass);
    value_pass_free(ppo->value_pass);
    tape_memory_free(ppo->memory);
    llama_free(ppo->reference);
    model_file_close(&ppo->other_reference);
    value_model_free(&ppo->value);
    rollout_free(&ppo->rollout);
    rollout_free(&ppo->validation);
    scorer_free(ppo->scorer);
    prompts_free(&ppo->prompts);
    free(ppo->training);
    free(ppo->held_out);
    chat_stage_free(&ppo->chat);
    free(ppo);
}

static void about(Text *out) {
    text_puts(out, "Trains model.base by reinforcement: it answers prompts (data.train: lines of text, or JSONL of\n"
                   "prompt, messages or instruction), the answers are scored (ppo.reward), and those that score\n"
                   "better than others to the same prompt (ppo.algorithm grpo, rloo), or than a value model that is\n"
                   "trained beside foretells (ppo), become more probable, near the model it began from (ppo.beta). A "
                   "rollout is ppo.prompts prompts with ppo.samples answers each,\n"
                   "of at most generate.max_new_tokens; ppo.epochs x ppo.minibatches optimizer steps learn from it.\n"
                   "Held-out prompts (data.validation) are answered every train.validate_every steps. The same\n"
                   "command on the same output resumes.");
}

/* ---- options ---- */

static PolicyOptions policy_options(const Config *config) {
    double high = config->ppo_epsilon_high;
    bool exact = config->lora_dropout <= 0; /* what is trained is what is measured */
    return (PolicyOptions){.algorithm = (PolicyAlgorithm)config->ppo_algorithm,
                           .prompts = (int)config->ppo_prompts,
                           .samples = (int)config->ppo_samples,
                           .epochs = (int)config->ppo_epochs,
                           .minibatches = (int)config->ppo_minibatches,
                           .max_new_tokens = (int)config->generate_max_new_tokens,
                           .temperature = config->ppo_temperature,
                           .beta = config->ppo_beta,
                           .epsilon_low = config->ppo_epsilon,
                           .epsilon_high = high > 0 ? high : config->ppo_epsilon,
                           .weigh_kl = config->ppo_weigh_kl,
                           .loss_type = (PolicyLossType)config->ppo_loss,
                           .scale = (ScaleRewards)config->ppo_scale_rewards,
                           .normalise = config->ppo_normalize_advantages,
                           .whiten_scores = config->ppo_whiten_scores,
                           .most_distance = exact ? ppo_most_distance(setup_precision(config)) : 0,
                           .missing_eos_penalty = config->ppo_missing_eos_penalty,
                           .kl_estimator = (KlEstimator)config->ppo_kl_estimator,
                           .gamma = config->ppo_gamma,
                           .lambda = config->ppo_lambda,
                           .whiten_rewards = config->ppo_whiten_rewards,
                           .value_epsilon = config->ppo_cliprange_value,
                           .value_weight = config->ppo_vf_coef,
                           .seed = (uint64_t)config->seed};
}

static int check_options(const Config *config) {
    int64_t answers = config->ppo_prompts * config->ppo_samples;
    if (*config->lora_init && !*config->ppo_reference)
        return config_fail(config, OPTION_lora_init,
                           "the reference is the model under a fresh adapter: merge %s into its base (cria merge), and "
                           "begin from that, or name another reference (ppo.reference)",
                           config->lora_init);
    if (setup_trains_vocabulary(config))
        return config_fail(config, OPTION_lora_vocabulary,
                           "the reference is the model without its adapter, so that what is trained must be the "
                           "adapter alone; frozen is expected");
    if (config->ppo_prompts % config->ppo_minibatches != 0)
        return config_fail(config, OPTION_ppo_minibatches, "%lld does not divide ppo.prompts, %lld",
                           (long long)config->ppo_minibatches, (long long)config->ppo_prompts);
    if (config->ppo_samples == 1 && config->ppo_algorithm != ALGORITHM_PPO)
        return config_fail(config, OPTION_ppo_samples,
                           "an answer is compared with others to the same prompt: at least 2 are needed");
    if (answers > INT32_MAX)
        return config_fail(config, OPTION_ppo_samples, "%lld answers in a rollout are too many", (long long)answers);
    return OK;
}

static int defaults(Config *config) {
    TRY(config_require(config, OPTION_model_base));
    if (config_is_set(config, OPTION_train_tokens_per_batch))
        return config_fail(config, OPTION_train_tokens_per_batch,
                           "a step is ppo.prompts / ppo.minibatches prompts with ppo.samples answers each, however "
                           "long they are");
    if (config->train_tokens > 0)
        return config_fail(config, OPTION_train_tokens,
                           "answers' lengths are not known beforehand: give train.steps or train.epochs");
    ppo_settle(config);
    return check_options(config);
}

/* ---- the model ---- */

static void add_stop(Ppo *ppo, int32_t id) {
    for (size_t i = 0; i < ppo->n_stops; i++)
        if (ppo->stops[i] == id) return;
    if (id >= 0 && ppo->n_stops < PPO_MOST_STOPS) ppo->stops[ppo->n_stops++] = id;
}

static void find_stops(Run *run) {
    Ppo *ppo = run->own;
    add_stop(ppo, tokenizer_eos(run->tokenizer));
    for (size_t i = 0; i < run->n_stop_tokens; i++) add_stop(ppo, run->stop_tokens[i]);
    for (int i = 0; i < run->base.generation.n_eos; i++) add_stop(ppo, run->base.generation.eos_token_ids[i]);
}

int ppo_scorer(Scorer **scorer, const Config *config) {
    return scorer_new(scorer, &(ScorerOptions){.kind = (RewardKind)config->ppo_reward,
                                               .word = config->ppo_word,
                                               .pattern = config->ppo_pattern,
                                               .program = config->ppo_program,
                                               .model = config->ppo_model,
                                               .head = config->ppo_head,
                                               .safety_model = config->ppo_safety_model,
                                               .safety_head = config->ppo_safety_head,
                                               .length = (double)config->ppo_length,
                                               .timeout = config->ppo_timeout,
                                               .section = "ppo"});
}

/* Without a template, neither named nor the model's own, prompts are texts that the model continues. */
static int prepare(Run *run) {
    const Config *config = run->config;
    Ppo *ppo = calloc(1, sizeof *ppo);
    if (!ppo) FAIL(ERR_FAILED, "out of memory");
    run->own = ppo;
    ppo->options = policy_options(config);
    ppo->precision = setup_precision(config);
    ppo->has_template = *config->template_name || *config->template_user_before || run->base.chat_template;
    if (ppo->has_template) TRY(chat_stage_prepare(run));
    find_stops(run);
    if (ppo->n_stops == 0)
        log_warning("%s has no token that ends an answer: all will have generate.max_new_tokens (%d)",
                    config->model_base, ppo->options.max_new_tokens);
    return ppo_scorer(&ppo->scorer, config);
}

/* ---- the data ---- */

static int open(Run *run) {
    Ppo *ppo = run->own;
    PolicyOptions one_each = ppo->options;
    TRY(ppo_prompts_open(run));
    one_each.prompts = (int)ppo->n_held_out;
    one_each.samples = 1;
    TRY(rollout_init(&ppo->rollout, &ppo->options, run->mesh));
    if (ppo->n_held_out > 0) TRY(rollout_init(&ppo->validation, &one_each, run->mesh));
    int64_t updates = (int64_t)ppo->options.epochs * ppo->options.minibatches, prompts = ppo->options.prompts;
    run->batches = (LoopBatches){.context = run, .step = ppo_step};
    run->steps_per_epoch = (ppo->n_training + prompts - 1) / prompts * updates;
    run->whole_steps = updates;
    return OK;
}

/* Another MODEL, which must know the same tokens. */
static int open_reference(Run *run) {
    Ppo *ppo = run->own;
    const Config *config = run->config;
    ModelFile *file = &ppo->other_reference;
    TRY(model_file_open(file, config->ppo_reference,
                        (ModelFileOptions){.need_tokenizer = true,
                                           .precision = ppo->precision,
                                           .frozen = setup_frozen(config),
                                           .unpacked = !config->train_packed_weights}));
    return other_model_check(run, OPTION_ppo_reference, file);
}

/* The model as it is before any checkpoint is loaded into it. */
static int copy_reference(Run *run) {
    Ppo *ppo = run->own;
    LlamaOptions options = setup_llama(run->config, run->model->rotary.n_positions);
    options.training = false;
    TRY(llama_new(&ppo->reference, &run->model->shape, options));
    llama_copy_rows(ppo->reference, run->model);
    return OK;
}

/* A policy's answers are of the whole distribution; rounds may share `generate` with stages that choose from it. */
static void warn_of_generate(const Config *config) {
    static const OptionId unused[] = {OPTION_generate_temperature, OPTION_generate_top_k,
                                      OPTION_generate_top_p,       OPTION_generate_min_p,
                                      OPTION_generate_stop,        OPTION_generate_repetition_penalty};
    for (size_t i = 0; i < sizeof unused / sizeof *unused; i++)
        if (config_is_set(config, unused[i]))
            log_warning("%s: %s has no effect on the answers that are learned from: they are sampled at "
                        "ppo.temperature from the whole distribution",
                        config_where(config, unused[i]), option_table[unused[i]].key);
}

static int ready(Run *run) {
    Ppo *ppo = run->own;
    warn_of_generate(run->config);
    if (*run->config->ppo_reference)
        TRY(open_reference(run));
    else if (run->config->lora_rank == 0)
        TRY(copy_reference(run));
    if (ppo->options.algorithm != ALGORITHM_PPO) return OK;
    TRY(value_model_new(&ppo->value, run));
    run->companion = &ppo->value.companion;
    return OK;
}

static int restart(Run *run) {
    Ppo *ppo = run->own;
    return value_model_start(&ppo->value, run);
}

static int objective(Objective **out, Run *run, int capacity) {
    Ppo *ppo = run->own;
    ppo->capacity = capacity;
    return policy_objective_new(out, &ppo->rollout, ppo->value.model, capacity);
}

static void reloaded(Run *run) {
    Ppo *ppo = run->own;
    ppo->made = false;
}

static void new_rows(Run *run) {
    const Ppo *ppo = run->own;
    if (ppo->has_template) chat_stage_new_rows(run);
}

static void sample(Run *run, int64_t step) {
    const Ppo *ppo = run->own;
    if (ppo->has_template)
        chat_stage_sample(run, step);
    else
        sample_text(run->model, run->tokenizer, run->config, step);
}

const Stage stage_ppo = {
    .name = "ppo",
    .about = about,
    .sections = "output seed precision model tokenizer data template lora ppo optim train generate parallel",
    .defaults = defaults,
    .prepare = prepare,
    .open = open,
    .measure = ppo_measure,
    .reloaded = reloaded,
    .new_rows = new_rows,
    .ready = ready,
    .restart = restart,
    .objective = objective,
    .plan = ppo_plan,
    .sample = sample,
    .free = free_own};

int command_ppo(int argc, char **argv) {
    return run_command(&stage_ppo, argc, argv);
}
