/* cria reward: a model learns which of two answers people prefer. Its body is model.base's, its head gives a number, or
 * one for each of reward.objectives; the data are preference records, rendered with a chat template, and a pair's two
 * answers share a micro-batch. */
#include <stdlib.h>

#include "model/core/error.h"
#include "train/chat_stage.h"
#include "train/commands.h"
#include "train/objectives/reward_objective.h"
#include "train/setup.h"

enum { USUAL_PAIRS = 64 };

typedef struct {
    ChatStage chat;
    const char *names[HF_MAX_LABELS]; /* of the run's base's labels */
} RewardStage;

static void free_own(Run *run) {
    if (run->own) chat_stage_free(run->own);
    free(run->own);
}

static void about(Text *out) {
    text_puts(out, "Trains a reward model: model.base with a score head (or a reward model, which learns on) on\n"
                   "preferences (data.train: JSONL or JSON arrays of prompt, chosen and rejected). With several\n"
                   "reward.objectives the head has a row for each, and each pair trains the row that its record or\n"
                   "its source (objective:) names. The same command on the same output resumes; 'cria eval reward'\n"
                   "reports on the result.");
}

static int defaults(Config *config) {
    TRY(chat_stage_defaults(config));
    if (config->preferences_per_batch == 0) config->preferences_per_batch = USUAL_PAIRS;
    if (config->train_sample_every > 0)
        return config_fail(config, OPTION_train_sample_every, "a reward model writes no texts; leave it 0");
    HfLabels labels;
    return setup_labels(&labels, config);
}

/* ---- the scores' names ---- */

/* A reward model that learns on has names already, unless nobody gave them. */
static int settle_labels(Run *run) {
    HfLabels wanted, *labels = &run->base.config.labels;
    char expected[HF_LABELS_TEXT], found[HF_LABELS_TEXT];
    TRY(setup_labels(&wanted, run->config));
    if (wanted.n == 0 || hf_labels_equal(&wanted, labels)) return OK;
    if (wanted.n != labels->n || !hf_labels_are_unnamed(labels))
        return config_fail(run->config, OPTION_reward_objectives,
                           "%s is a reward model already, with %d score%s (%s), and not for %s: begin with a language "
                           "model, or leave its objectives as they are",
                           run->config->model_base, labels->n, labels->n == 1 ? "" : "s", hf_labels_text(labels, found),
                           hf_labels_text(&wanted, expected));
    *labels = wanted;
    return OK;
}

/* Without names there is one objective, whatever records say. */
static PairObjectives objectives_of(const Run *run) {
    RewardStage *stage = run->own;
    const HfLabels *labels = &run->base.config.labels;
    bool named = labels->n > 1 || !hf_labels_are_unnamed(labels);
    for (int i = 0; i < labels->n; i++) stage->names[i] = labels->names[i];
    return (PairObjectives){.names = stage->names, .n = named ? labels->n : 0, .usual = labels->n == 1 ? 0 : -1};
}

static int prepare(Run *run) {
    run->own = calloc(1, sizeof(RewardStage));
    if (!run->own) FAIL(ERR_FAILED, "out of memory");
    TRY(settle_labels(run));
    return chat_stage_prepare(run);
}

/* ---- the data ---- */

static int make_encoder(const RecordEncoder **encoder, Run *run, const ConfigSource *source,
                        const ChatColumns *columns) {
    char known[HF_LABELS_TEXT];
    const HfLabels *labels = &run->base.config.labels;
    PairObjectives objectives = objectives_of(run);
    if (*source->objective) {
        objectives.usual = hf_label_find(labels, source->objective);
        if (objectives.n == 0 || objectives.usual < 0)
            FAIL(ERR_USAGE, "%s: objective: '%s' is none of %s%s", source->path, source->objective,
                 objectives.n > 0 ? "the model's: " : "reward.objectives, which are not given",
                 objectives.n > 0 ? hf_labels_text(labels, known) : "");
    }
    return chat_stage_pair_encoder(encoder, run, columns, objectives, SAMPLE_PAIR);
}

static int data(Run *run, LoaderOptions *options) {
    return chat_stage_data(run, options, make_encoder);
}

static int objective(Objective **out, Run *run, int capacity) {
    const Config *config = run->config;
    RewardOptions options = {.margin = (RewardMargin)config->reward_margin,
                             .center_coefficient = config->reward_center_coefficient,
                             .labels = run->base.config.labels};
    return reward_objective_new(out, capacity, options);
}

const Stage stage_reward = {
    .head = HEAD_TO_SCORE,
    .about = about,
    .sections = "output seed precision model tokenizer data preferences template lora reward optim train parallel",
    .defaults = defaults,
    .prepare = prepare,
    .new_rows = chat_stage_new_rows,
    .data = data,
    .data_opened = chat_stage_data_opened,
    .objective = objective,
    .free = free_own};

int command_reward(int argc, char **argv) {
    return run_command(&stage_reward, argc, argv);
}
