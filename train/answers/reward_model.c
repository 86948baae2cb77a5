/* See reward_model.h. */
#include "train/answers/reward_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/reward_scorer.h"
#include "model/core/error.h"
#include "train/files/model_template.h"

struct RewardModel {
    Config *config; /* of the template alone */
    ModelFile file;
    ModelTemplate model_template;
    RewardScorer *scorer;
};

void reward_model_free(RewardModel *self) {
    if (!self) return;
    reward_scorer_free(self->scorer);
    model_template_free(&self->model_template);
    config_free(self->config);
    model_file_close(&self->file);
    free(self);
}

/* ---- rows ---- */

const HfLabels *reward_model_labels(const RewardModel *self) {
    return &self->file.config.labels;
}

int reward_row(int *row, const HfLabels *labels, const char *name, const char *option, const char *path) {
    char names[HF_LABELS_TEXT];
    *row = *name ? hf_label_find(labels, name) : 0;
    if (!*name && labels->n > 1)
        FAIL(ERR_USAGE, "%s: %s scores answers by %s: name one of them", option, path, hf_labels_text(labels, names));
    if (*row < 0)
        FAIL(ERR_USAGE, "%s: %s has no score '%s'; it has %s", option, path, name, hf_labels_text(labels, names));
    return OK;
}

/* ---- scoring ---- */

/* A string is a user's message. */
static int read_prompt(Conversation *conversation, const Prompt *prompt) {
    json_t *root = json_is_array(prompt->prompt)
                       ? json_pack("{s:O}", "messages", prompt->prompt)
                       : json_pack("{s:[{s:s, s:O}]}", "messages", "role", "user", "content", prompt->prompt);
    char *json = root ? json_dumps(root, 0) : NULL;
    json_decref(root);
    if (!json) FAIL(ERR_REFUSED, "the prompt is not UTF-8, and a reward model's template cannot show it");
    int rc = conversation_parse(conversation, json, strlen(json), NULL);
    free(json);
    return rc;
}

static int render(const RewardModel *self, const ScoredAnswer *answer, ChatTokens *tokens) {
    Conversation conversation = {0};
    int rc = read_prompt(&conversation, answer->prompt);
    if (rc == OK) rc = conversation_add(&conversation, CHAT_ASSISTANT, answer->text);
    if (rc == OK) rc = chat_render(self->model_template.chat, &conversation, TRAIN_ON_LAST, tokens);
    conversation_free(&conversation);
    return rc == OK ? OK : error_context(rc, "prompt %lld", (long long)answer->index);
}

/* `tokens` [n], zeroed; `rewards` [n, the head's rows]. */
static int score_with(const RewardModel *self, const ScoredAnswer *answers, size_t n, ChatTokens *tokens,
                      RewardText *texts, float *rewards) {
    for (size_t i = 0; i < n; i++) {
        TRY(render(self, &answers[i], &tokens[i]));
        texts[i] = (RewardText){tokens[i].ids, tokens[i].n};
        if ((int64_t)tokens[i].n > self->file.model->rotary.n_positions)
            FAIL(ERR_REFUSED, "prompt %lld and its answer have %zu tokens; the reward model %s takes %d",
                 (long long)answers[i].index, tokens[i].n, self->file.path, self->file.model->rotary.n_positions);
    }
    return reward_scorer_score(self->scorer, texts, n, rewards, NULL, NULL);
}

static int take_row(const RewardModel *self, const ScoredAnswer *answers, size_t n, const float *rewards, int row,
                    double *scores) {
    for (size_t i = 0; i < n; i++) {
        float reward = rewards[i * (size_t)self->file.model->shape.n_scores + (size_t)row];
        if (!isfinite(reward))
            FAIL(ERR_REFUSED, "prompt %lld: the reward model %s gives an answer %g: its numbers are broken",
                 (long long)answers[i].index, self->file.path, (double)reward);
        scores[i] = (double)reward;
    }
    return OK;
}

int reward_model_score(const RewardModel *self, const ScoredAnswer *answers, size_t n, const int *rows, int n_rows,
                       double *const *scores) {
    ChatTokens *tokens = calloc(n + 1, sizeof *tokens);
    RewardText *texts = calloc(n + 1, sizeof *texts);
    float *rewards = calloc(n * (size_t)self->file.model->shape.n_scores + 1, sizeof *rewards);
    int rc = tokens && texts && rewards
                 ? score_with(self, answers, n, tokens, texts, rewards)
                 : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory: %zu answers to be scored", n);
    for (int r = 0; r < n_rows && rc == OK; r++) rc = take_row(self, answers, n, rewards, rows[r], scores[r]);
    for (size_t i = 0; tokens && i < n; i++) chat_tokens_free(&tokens[i]);
    free(tokens);
    free(texts);
    free(rewards);
    return rc;
}

/* ---- opening ---- */

ModelFileOptions reward_model_options(void) {
    return (ModelFileOptions){.head = HEAD_SCORE, .inference = INFERENCE_AUTO, .need_tokenizer = true};
}

static int open_model(RewardModel *self, const char *path) {
    ModelTemplate *m = &self->model_template;
    TRY(model_file_open(&self->file, path, reward_model_options()));
    TRY(config_new(&self->config));
    TRY(config_set_text(self->config, OPTION_template_name, "from-model"));
    TRY(model_template_choose(m, self->config, self->file.chat_template, path, self->file.tokenizer));
    TRY(model_template_open(m, self->file.tokenizer));
    return reward_scorer_new(&self->scorer, self->file.model, REWARD_MODEL_BATCH,
                             llama_inference_dtype(self->file.model));
}

int reward_model_open(RewardModel **model, const char *path) {
    RewardModel *self = calloc(1, sizeof *self);
    *model = NULL;
    if (!self) FAIL(ERR_FAILED, "out of memory");
    int rc = open_model(self, path);
    if (rc == OK)
        *model = self;
    else
        reward_model_free(self);
    return rc;
}
