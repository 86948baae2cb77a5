/* What can be known to be wrong before the first stage starts: see rounds.h. */
#include <stdlib.h>
#include <string.h>

#include "data/source.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "train/answers/reward_model.h"
#include "train/files/model_template.h"
#include "train/ppo/stage.h"
#include "train/rounds/record.h"
#include "train/sampling/answering.h"
#include "train/sampling/policy_card.h"
#include "train/setup.h"

/* ---- options ---- */

/* Rules and patterns are tried; models and programs are there, or will be. */
static int check_reward(RewardKind kind, int (*make)(Scorer **, const Config *), const Config *config, OptionId model) {
    Scorer *scorer;
    if (kind == REWARD_MODEL) return config_require(config, model);
    TRY(make(&scorer, config));
    scorer_free(scorer);
    return OK;
}

static int check_options(const RoundStage *stage) {
    Config *config = stage->config;
    const StageCommand *command = stage->spec->command;
    if (command->training) {
        TRY(run_check_config(command->training, config));
        if (command->training != &stage_ppo) return OK;
        return check_reward((RewardKind)config->ppo_reward, ppo_scorer, config, OPTION_ppo_model);
    }
    if (!*command->sections) return OK; /* a merge's */
    if (command->makes & MAKES_FIGURES) TRY(policy_card_sampling(config));
    TRY(config_require(config, OPTION_rejection_prompts));
    return check_reward((RewardKind)config->rejection_reward, answering_scorer, config, OPTION_rejection_model);
}

/* ---- scores ---- */

/* Where a stage makes the reward model, its config says which scores that has. */
static int check_head(const Rounds *rounds, const RoundStage *stage, const char *path, OptionId id, const char *head) {
    int row;
    HfLabels labels;
    const RoundStage *made = references_stage(rounds, path);
    if (!made || made->spec->command->makes != MAKES_REWARD) return OK;
    TRY(setup_labels(&labels, made->config));
    if (labels.n == 0) return OK; /* one, or what its base has */
    int rc = reward_row(&row, &labels, head, option_table[id].key, path);
    return rc == OK ? OK : error_context(rc, "%s", stage->spec->where);
}

static int check_heads(const Rounds *rounds, const RoundStage *stage) {
    const Config *c = stage->config;
    bool ppo = stage->spec->command->training == &stage_ppo;
    if ((ppo ? c->ppo_reward : c->rejection_reward) != REWARD_MODEL) return OK;
    const char *model = ppo ? c->ppo_model : c->rejection_model;
    const char *safety = ppo ? c->ppo_safety_model : c->rejection_safety_model;
    const char *safety_head = ppo ? c->ppo_safety_head : c->rejection_safety_head;
    TRY(check_head(rounds, stage, model, ppo ? OPTION_ppo_head : OPTION_rejection_head,
                   ppo ? c->ppo_head : c->rejection_head));
    if (!*safety && !*safety_head) return OK;
    return check_head(rounds, stage, *safety ? safety : model,
                      ppo ? OPTION_ppo_safety_head : OPTION_rejection_safety_head, safety_head);
}

/* ---- adapters ---- */

static bool is_adapter(const RoundStage *stage) {
    return stage && stage->spec->command->training && stage->config->lora_rank > 0;
}

/* An adapter's base is a whole model: it would be refused when its turn comes. */
static int check_adapter(const Rounds *rounds, const RoundStage *stage) {
    if (!is_adapter(stage)) return OK;
    const RoundStage *base = references_stage(rounds, stage->config->model_base);
    if (!is_adapter(base)) return OK;
    return config_fail(stage->config, OPTION_model_base,
                       "stage '%s' trains an adapter, and so does '%s' on it: put a stage between that folds it in, as "
                       "{stage: folded, run: merge, models: [\"{%s}\"]}",
                       base->spec->name, stage->spec->name, base->spec->name);
}

/* ---- files ---- */

typedef struct {
    const Rounds *rounds;
    const RoundStage *stage;
} FileCheck;

static int check_file(void *context, OptionId id, const char *path, const char *symbolic) {
    const FileCheck *check = context;
    char **paths;
    size_t n;
    (void)symbolic;
    if (references_stage(check->rounds, path)) return OK;
    bool is_source = id != OPTION_COUNT && option_table[id].type == OPTION_SOURCES;
    if (is_source || id == OPTION_rejection_prompts) {
        if (source_files(&paths, &n, path) != OK) return config_fail(check->stage->config, id, "%s", error_text());
        names_free(paths, n);
        return OK;
    }
    char *run = text_ends_with(path, "/best") ? strndup(path, strlen(path) - strlen("/best")) : NULL;
    bool there = file_exists(path) || directory_exists(path) || (run && directory_exists(run));
    free(run);
    if (there) return OK;
    if (id != OPTION_COUNT) return config_fail(check->stage->config, id, "%s is not there", path);
    FAIL(ERR_USAGE, "%s: models: %s is not there", check->stage->spec->where, path);
}

/* ---- templates ---- */

/* Training adds the tokens of its template; a model that answers before it was trained must have them. */
static int check_template(const Rounds *rounds, const RoundStage *stage) {
    Config *config = stage->config;
    bool answers = !stage->spec->command->training && *config->rejection_prompts;
    bool named = *config->template_name || *config->template_user_before;
    if (!answers || !named || config->rejection_chat == ANSWER_PLAIN || references_stage(rounds, config->model_base))
        return OK;
    ModelFile file = {0};
    ModelTemplate chat = {0};
    int rc = model_file_open(&file, config->model_base, (ModelFileOptions){.shape_only = true, .need_tokenizer = true});
    if (rc == OK) rc = model_template_choose(&chat, config, file.chat_template, file.path, file.tokenizer);
    if (rc == OK) rc = model_template_open(&chat, file.tokenizer);
    if (rc != OK)
        rc = config_fail(config, OPTION_model_base,
                         "%s cannot answer: %s; or put a stage before that trains it (run: sft), which adds its tokens",
                         config->model_base, error_text());
    model_template_free(&chat);
    model_file_close(&file);
    return rc;
}

/* ---- all ---- */

static int check_stage(const Rounds *rounds, const RoundStage *stage) {
    FileCheck check = {rounds, stage};
    TRY(check_options(stage));
    TRY(check_heads(rounds, stage));
    TRY(check_adapter(rounds, stage));
    TRY(inputs_visit(stage, check_file, &check));
    return check_template(rounds, stage);
}

/* The same is wrong in every round: it is told once. */
static void add_finding(Text *found, int *n) {
    const char *text = error_text();
    if (found->bytes && strstr(found->bytes, text)) return;
    text_printf(found, "%s%s", *n > 0 ? "\n" : "", text);
    ++*n;
}

int rounds_check(const Rounds *rounds, const RoundState *states) {
    Text found = {0};
    int rc = OK, n = 0;
    for (size_t i = 0; i < rounds->n_stages; i++) {
        const RoundStage *stage = &rounds->stages[i];
        if (states[i].finished) continue;
        int own = check_stage(rounds, stage);
        if (own == OK) continue;
        error_context(own, "stage '%s'", stage->spec->name);
        add_finding(&found, &n);
        if (rc == OK) rc = own;
    }
    if (rc != OK && found.bytes) error_set(rc, __FILE__, __LINE__, "%s", found.bytes);
    text_free(&found);
    return rc;
}
