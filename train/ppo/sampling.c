/* See stage.h. The generator lives for one rollout, so that training holds no cache beside its own activations. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/generator.h"
#include "model/core/error.h"
#include "train/answers/rollout_answer.h"
#include "train/ppo/stage.h"

/* This rank's part of a rollout. */
typedef struct {
    const Prompt *const *prompts;
    int first, n;            /* prompts */
    TokenList *tokens;       /* [n] of the prompts; not owned */
    Generation *generations; /* [n × samples] */
    ScoredAnswer *answers;   /* likewise */
    json_t **texts;          /* likewise: their texts */
    double *scores;
    TokenList sequence;
    Arena arena;
} Part;

/* A sign of life for ranks that wait. */
static int one_finished(void *context, size_t sequence, const Generation *generation) {
    const Run *run = context;
    (void)sequence;
    (void)generation;
    watchdog_pat(run->watchdog, "sampling answers");
    return OK;
}

static int generate(Run *run, const Rollout *rollout, Part *part, uint64_t seed, int64_t first) {
    const Ppo *ppo = run->own;
    const PolicyOptions *options = &rollout->options;
    Generator *generator;
    int wanted = part->n * options->samples, most = (int)run->config->ppo_max_batch;
    GenerateOptions how = {.sampler = {.temperature = options->temperature,
                                       .top_p = 1,
                                       .repetition_penalty = 1,
                                       .seed = seed,
                                       .tempered_logprobs = true},
                           .max_new_tokens = options->max_new_tokens,
                           .samples = options->samples,
                           .first_prompt = (uint32_t)(first + part->first),
                           .stop_tokens = ppo->stops,
                           .n_stop_tokens = ppo->n_stops,
                           .finished = one_finished,
                           .context = run};
    TRY(generator_new(&generator, run->model, run->tokenizer,
                      (GeneratorOptions){.max_batch = wanted < most ? wanted : most,
                                         .max_sequence = (int)run->config->train_context}));
    int rc = generator_run(generator, part->tokens, (size_t)part->n, &how, part->generations);
    generator_free(generator);
    return rc;
}

static int add_answer(const Ppo *ppo, Rollout *rollout, Part *part, int i) {
    const int samples = rollout->options.samples;
    const Prompt *prompt = part->prompts[part->first + i / samples];
    return rollout_add_generation(rollout, part->first * samples + i, prompt, prompt - ppo->prompts.items + 1,
                                  &part->generations[i], &part->sequence, &part->texts[i], &part->answers[i]);
}

static int answer_part(Run *run, Rollout *rollout, Part *part, uint64_t seed, int64_t first) {
    const Ppo *ppo = run->own;
    int n = part->n * rollout->options.samples;
    if (n == 0) return OK;
    ARENA_TRY(part->tokens, &part->arena, part->n);
    ARENA_TRY(part->generations, &part->arena, n);
    ARENA_TRY(part->texts, &part->arena, n);
    ARENA_TRY(part->answers, &part->arena, n);
    ARENA_TRY(part->scores, &part->arena, n);
    for (int p = 0; p < part->n; p++) part->tokens[p] = part->prompts[part->first + p]->tokens;
    TRY(generate(run, rollout, part, seed, first));
    for (int i = 0; i < n; i++) TRY(add_answer(ppo, rollout, part, i));
    watchdog_pat(run->watchdog, "scoring answers");
    TRY(ppo->scorer->score(ppo->scorer, part->answers, (size_t)n, part->scores));
    for (int i = 0; i < n; i++) rollout->scores[part->first * rollout->options.samples + i] = part->scores[i];
    return OK;
}

int ppo_answer(Run *run, Rollout *rollout, const Prompt *const *prompts, uint64_t seed, int64_t first) {
    int64_t rank = mesh_rank(run->mesh), size = mesh_size(run->mesh), all = rollout->options.prompts;
    Part part = {.prompts = prompts, .first = (int)(all * rank / size)};
    part.n = (int)(all * (rank + 1) / size) - part.first;
    int rc = answer_part(run, rollout, &part, seed, first);
    for (int i = 0; part.generations && i < part.n * rollout->options.samples; i++)
        generation_free(&part.generations[i]);
    for (int i = 0; part.texts && i < part.n * rollout->options.samples; i++) json_decref(part.texts[i]);
    token_list_free(&part.sequence);
    arena_free(&part.arena);
    TRY(mesh_agree(run->mesh, rc));
    return rollout_gather(rollout);
}
