/* What the stages will need, before the first of them starts: see rounds.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "train/plan.h"
#include "train/rounds/record.h"

typedef struct {
    const Rounds *rounds;
    const RoundState *states;
    uint64_t *bytes; /* [specs] the most of a stage's rounds that are planned; 0: none yet */
    int64_t *tokens; /* [stages] of the data that are there */
    uint64_t available;
    bool all; /* every round of a stage is planned, and not one for all: their data differ */
} Planner;

/* A model of the same shape that is there already: where a stage has yet to make it, what that one begins from. */
static const char *standing_base(const Rounds *rounds, const RoundState *states, const char *path) {
    const RoundStage *stage = references_stage(rounds, path);
    if (!stage || states[stage->place].finished) return path;
    return standing_base(rounds, states, stage->models.n > 0 ? stage->models.items[0] : stage->config->model_base);
}

/* Every other model that the stage reads, likewise. */
static int stand_in(const Planner *planner, Config *config) {
    static const OptionId models[] = {OPTION_model_base, OPTION_ppo_reference, OPTION_ppo_model,
                                      OPTION_ppo_safety_model, OPTION_ppo_value_model};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        const char *path = *(const char *const *)((const char *)config + option_table[models[i]].offset);
        if (*path) TRY(config_set_text(config, models[i], standing_base(planner->rounds, planner->states, path)));
    }
    return OK;
}

static int copy_config(Config **out, const RoundStage *stage) {
    TRY(config_new(out));
    for (int id = 0; id < OPTION_COUNT; id++)
        if (config_is_set(stage->config, (OptionId)id)) TRY(config_copy_option(*out, stage->config, (OptionId)id));
    return run_check_config(stage->spec->command->training, *out);
}

static int plan_stage(Planner *planner, const RoundStage *stage) {
    const Stage *training = stage->spec->command->training;
    size_t spec = (size_t)(stage->spec - planner->rounds->specs);
    if (!training || (planner->bytes[spec] > 0 && !planner->all)) return OK;
    MemoryPlan plan = {.total = 0};
    Config *config = NULL;
    int rc = copy_config(&config, stage);
    if (rc == OK) rc = stand_in(planner, config);
    int ranks = rc == OK && config->parallel_data > 1 ? (int)config->parallel_data : 1;
    if (rc == OK)
        rc = memory_plan(
            &plan, config,
            (MemoryPlanOptions){.head = training->head, .stage = training->plan, .ranks = ranks, .ranks_here = ranks});
    if (rc == OK) rc = memory_plan_check(&plan);
    if (plan.total > planner->bytes[spec]) planner->bytes[spec] = plan.total;
    planner->tokens[stage->place] = plan.tokens;
    planner->available = plan.available;
    if (rc == OK || plan.total > 0) memory_plan_free(&plan);
    config_free(config);
    return rc == OK ? OK : error_context(rc, "stage '%s'", stage->spec->name);
}

/* ---- the listing ---- */

static void print_length(const Config *config, int64_t tokens) {
    char number[32];
    if (config->train_steps > 0)
        printf("%lld steps", (long long)config->train_steps);
    else if (config->train_tokens > 0)
        printf("%s tokens", text_thousands(number, (uint64_t)config->train_tokens));
    else
        printf("%g epoch%s", config->train_epochs > 0 ? config->train_epochs : 1,
               config->train_epochs > 1 || (config->train_epochs > 0 && config->train_epochs < 1) ? "s" : "");
    if (tokens > 0) printf(", %s tokens in an epoch", text_thousands(number, (uint64_t)tokens));
}

static void print_inputs(const RoundStage *stage) {
    const Config *config = stage->config;
    const char *separator = "";
    if (stage->models.n > 0) {
        printf("of");
        for (size_t i = 0; i < stage->models.n; i++) printf(" %s", stage->models.items[i]);
        return;
    }
    if (*config->rejection_prompts && !stage->spec->command->training) {
        printf("%lld answers to each prompt of %s", (long long)config->rejection_samples, config->rejection_prompts);
        return;
    }
    for (size_t i = 0; i < config->data_train.n; i++, separator = ", ")
        printf("%s%s", separator, config->data_train.items[i].path);
}

static void print_stage(const Planner *planner, const RoundStage *stage) {
    char bytes[32] = "";
    size_t spec = (size_t)(stage->spec - planner->rounds->specs);
    const RoundState *state = &planner->states[stage->place];
    if (planner->bytes[spec] > 0) text_bytes(bytes, planner->bytes[spec]);
    printf("  %d  %-16s %-10s %-9s %12s  ", stage->number, stage->spec->name, stage->spec->command->name,
           state->finished ? "finished"
           : state->begun  ? "goes on"
                           : "to do",
           bytes);
    print_inputs(stage);
    if (stage->spec->command->training) {
        printf("; ");
        print_length(stage->config, planner->tokens[stage->place]);
    }
    if (stage->models.n == 0) printf("\n%44s from %s", "", stage->config->model_base);
    printf("\n");
}

/* Stages of rounds that are not gone through. */
static void print_left_out(const Rounds *rounds) {
    for (size_t i = 0; i < rounds->n_specs; i++) {
        const RoundSpec *spec = &rounds->specs[i];
        if (spec->first_round > rounds->config->rounds_count)
            printf("not in these rounds: %s (cria %s), from round %lld on\n", spec->name, spec->command->name,
                   (long long)spec->first_round);
    }
}

static void print_all(const Planner *planner) {
    const Rounds *rounds = planner->rounds;
    const RoundSpec *largest = NULL;
    uint64_t most = 0;
    char bytes[32], available[32];
    for (size_t i = 0; i < rounds->n_stages; i++) {
        const RoundStage *stage = &rounds->stages[i];
        if (stage->number == 1)
            printf("round %lld of %lld\n", (long long)stage->round, (long long)rounds->config->rounds_count);
        print_stage(planner, stage);
    }
    print_left_out(rounds);
    for (size_t i = 0; i < rounds->n_specs; i++)
        if (planner->bytes[i] > most) {
            most = planner->bytes[i];
            largest = &rounds->specs[i];
        }
    if (!largest) return;
    printf("\nmost memory: stage '%s', %s", largest->name, text_bytes(bytes, most));
    if (planner->available > 0) printf(" of the %s available", text_bytes(available, planner->available));
    printf(" ('cria plan' shows the parts)\n");
}

int rounds_plan(const Rounds *rounds, const RoundState *states, bool print) {
    int rc = OK;
    Planner planner = {.rounds = rounds,
                       .states = states,
                       .bytes = calloc(rounds->n_specs, sizeof *planner.bytes),
                       .tokens = calloc(rounds->n_stages, sizeof *planner.tokens),
                       .all = print};
    if (!planner.bytes || !planner.tokens) FAIL_TO(done, ERR_FAILED, "out of memory");
    for (size_t i = 0; i < rounds->n_stages; i++)
        if (print || !states[i].finished) TRY_TO(done, plan_stage(&planner, &rounds->stages[i]));
    if (print) print_all(&planner);
done:
    free(planner.bytes);
    free(planner.tokens);
    return rc;
}
