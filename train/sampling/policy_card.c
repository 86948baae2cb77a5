/* See policy_card.h. */
#include "train/sampling/policy_card.h"

#include <math.h>
#include <stdlib.h>

#include "eval/correlation.h"
#include "model/core/error.h"
#include "train/answers/rollout_answer.h"

enum { CAPACITY = 4096 /* tokens of a forward pass */ };

int policy_card_sampling(Config *config) {
    if (!config_is_set(config, OPTION_generate_temperature)) config->generate_temperature = 1;
    if (!config_is_set(config, OPTION_generate_top_p)) config->generate_top_p = 1;
    if (!(config->generate_temperature > 0))
        return config_fail(config, OPTION_generate_temperature, "a policy is a distribution: more than 0 is expected");
    if (config->generate_top_k != 0 || config->generate_top_p < 1 || config->generate_min_p > 0 ||
        config->generate_repetition_penalty != 1 || config->generate_stop.n > 0)
        FAIL(ERR_USAGE, "the KL divergence is that of the whole distribution: leave generate.top_k, top_p, min_p, "
                        "repetition_penalty and stop as they are");
    return OK;
}

typedef struct {
    const PolicyCardOptions *options;
    Rollout rollout;
    int n; /* answers */
    TokenList *prompts;
    Generation *generations; /* [n] */
    json_t **texts;          /* [n] */
    ScoredAnswer *answers;   /* [n] */
    TokenList sequence;
    Arena arena;
} Measurement;

static int allocate(Measurement *m, Mesh *mesh) {
    const PolicyCardOptions *options = m->options;
    const Prompts *prompts = &options->answering->prompts;
    if (prompts->n > (size_t)(INT32_MAX / options->samples))
        FAIL(ERR_REFUSED, "%zu prompts with %d answers each are too many", prompts->n, options->samples);
    m->n = (int)prompts->n * options->samples;
    PolicyOptions policy = {
        .prompts = (int)prompts->n, .samples = options->samples, .temperature = options->how.sampler.temperature};
    TRY(rollout_init(&m->rollout, &policy, mesh));
    rollout_clear(&m->rollout, 0);
    ARENA_TRY(m->prompts, &m->arena, prompts->n);
    ARENA_TRY(m->generations, &m->arena, m->n);
    ARENA_TRY(m->texts, &m->arena, m->n);
    ARENA_TRY(m->answers, &m->arena, m->n);
    for (size_t i = 0; i < prompts->n; i++) m->prompts[i] = prompts->items[i].tokens;
    return OK;
}

static void release(Measurement *m) {
    for (int i = 0; i < m->n && m->generations; i++) generation_free(&m->generations[i]);
    for (int i = 0; i < m->n && m->texts; i++) json_decref(m->texts[i]);
    token_list_free(&m->sequence);
    rollout_free(&m->rollout);
    arena_free(&m->arena);
}

/* ---- answers ---- */

static int sample(Measurement *m) {
    const PolicyCardOptions *options = m->options;
    const Answering *a = options->answering;
    Generator *generator;
    GenerateOptions how = options->how;
    int limit = a->file.model->rotary.n_positions, longest = 1;
    how.samples = options->samples;
    how.sampler.tempered_logprobs = true;
    for (size_t i = 0; i < a->prompts.n; i++) {
        int length = (int)m->prompts[i].n;
        const char *place = prompt_place(&a->prompts.items[i]);
        if (length == 0) FAIL(ERR_REFUSED, "%s: the prompt is empty, and there is no BOS to begin with", place);
        if (length >= limit)
            FAIL(ERR_REFUSED, "%s has %d tokens, and the model's context is %d: no room for an answer", place, length,
                 limit);
        if (length > longest) longest = length;
    }
    int64_t wanted = (int64_t)longest + how.max_new_tokens;
    TRY(generator_new(&generator, a->file.model, a->file.tokenizer,
                      (GeneratorOptions){.max_batch = m->n < options->max_batch ? m->n : options->max_batch,
                                         .max_sequence = (int)(wanted < limit ? wanted : limit)}));
    int rc = generator_run(generator, m->prompts, a->prompts.n, &how, m->generations);
    generator_free(generator);
    return rc;
}

static int add_answer(Measurement *m, int i) {
    const int prompt = i / m->options->samples;
    return rollout_add_generation(&m->rollout, i, &m->options->answering->prompts.items[prompt], prompt + 1,
                                  &m->generations[i], &m->sequence, &m->texts[i], &m->answers[i]);
}

/* ---- log-probabilities ---- */

static int longest_answer(const Measurement *m) {
    int longest = CAPACITY;
    for (int i = 0; i < m->n; i++)
        if (m->rollout.answers[i].n_tokens > longest) longest = m->rollout.answers[i].n_tokens;
    return longest;
}

static int add_logprobs(Measurement *m, Llama *model, bool reference) {
    LogprobPass *pass;
    int capacity = longest_answer(m);
    TRY(logprob_pass_new(&pass, model, m->rollout.options.temperature, capacity, llama_inference_dtype(model), NULL));
    int rc = rollout_logprobs(&m->rollout, pass, capacity, reference);
    logprob_pass_free(pass);
    return rc;
}

/* ---- figures ---- */

static PolicyFigure figure_of(const Measurement *m, const double *values) {
    int prompts = m->rollout.options.prompts, samples = m->rollout.options.samples;
    double sum = 0, squares = 0;
    for (int p = 0; p < prompts; p++) {
        double mean = 0;
        for (int k = 0; k < samples; k++) mean += values[p * samples + k] / samples;
        sum += mean;
        squares += mean * mean;
    }
    double mean = sum / prompts, variance = (squares - sum * mean) / (prompts - 1);
    return (PolicyFigure){mean, prompts > 1 ? sqrt(fmax(variance, 0) / prompts) : NAN};
}

static int measure(Measurement *m, PolicyCard *card) {
    const PolicyCardOptions *options = m->options;
    TRY(sample(m));
    for (int i = 0; i < m->n; i++) TRY(add_answer(m, i));
    TRY(options->scorer->score(options->scorer, m->answers, (size_t)m->n, m->rollout.scores));
    TRY(rollout_gather(&m->rollout));
    TRY(add_logprobs(m, options->answering->file.model, false));
    if (options->reference) TRY(add_logprobs(m, options->reference, true));
    TRY(rollout_divergences(&m->rollout));
    *card = (PolicyCard){.all = rollout_figures(&m->rollout),
                         .reward = figure_of(m, m->rollout.scores),
                         .kl = figure_of(m, m->rollout.kl),
                         .length_correlation = correlation(m->rollout.scores, m->rollout.lengths, (size_t)m->n),
                         .prompts = m->rollout.options.prompts,
                         .answers = m->n};
    return OK;
}

int policy_card(PolicyCard *card, const PolicyCardOptions *options, Mesh *mesh) {
    Measurement m = {.options = options};
    int rc = allocate(&m, mesh);
    if (rc == OK) rc = measure(&m, card);
    release(&m);
    return rc;
}
