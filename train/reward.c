/* cria reward: a model learns which of two answers people prefer. Its body is model.base's, its head gives one number;
 * the data are preference records, rendered with a chat template, and a pair's two answers share a micro-batch. */
#include <stdlib.h>

#include "model/core/error.h"
#include "train/chat_stage.h"
#include "train/commands.h"
#include "train/objectives/reward_objective.h"

enum { USUAL_PAIRS = 64 };

static void free_own(Run *run) {
    if (run->own) chat_stage_free(run->own);
    free(run->own);
}

static void about(Text *out) {
    text_puts(out, "Trains a reward model: model.base with a score head (or a reward model, which learns on) on\n"
                   "preferences (data.train: JSONL or JSON arrays of prompt, chosen and rejected). The same\n"
                   "command on the same output resumes; 'cria eval reward' reports on the result.");
}

static int defaults(Config *config) {
    TRY(chat_stage_defaults(config));
    if (config->preferences_per_batch == 0) config->preferences_per_batch = USUAL_PAIRS;
    if (config->train_sample_every > 0)
        return config_fail(config, OPTION_train_sample_every, "a reward model writes no texts; leave it 0");
    return OK;
}

static int prepare(Run *run) {
    run->own = calloc(1, sizeof(ChatStage));
    if (!run->own) FAIL(ERR_FAILED, "out of memory");
    return chat_stage_prepare(run);
}

static int make_encoder(const RecordEncoder **encoder, Run *run, const ChatColumns *columns) {
    return chat_stage_pair_encoder(encoder, run, columns, SAMPLE_PAIR);
}

static int data(Run *run, LoaderOptions *options) {
    return chat_stage_data(run, options, make_encoder);
}

static int objective(Objective **out, Run *run, int capacity) {
    const Config *config = run->config;
    RewardOptions options = {.margin = (RewardMargin)config->reward_margin,
                             .center_coefficient = config->reward_center_coefficient};
    return reward_objective_new(out, capacity, options);
}

const Stage stage_reward = {
    .name = "reward",
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
