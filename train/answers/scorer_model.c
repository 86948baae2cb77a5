/* Rewards by a reward model: the prompt and the answer, rendered with the model's own template, scored at the last
 * token. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/reward_scorer.h"
#include "model/core/error.h"
#include "train/files/model_file.h"
#include "train/files/model_template.h"
#include "train/answers/scorer.h"

enum { BATCH = 4096 };

typedef struct {
    Scorer base;
    Config *config; /* of the template alone */
    ModelFile file;
    ModelTemplate model_template;
    RewardScorer *scorer;
} ModelScorer;

static void free_scorer(Scorer *base) {
    ModelScorer *self = (ModelScorer *)base;
    reward_scorer_free(self->scorer);
    model_template_free(&self->model_template);
    config_free(self->config);
    model_file_close(&self->file);
    free(self);
}

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

static int render(const ModelScorer *self, const ScoredAnswer *answer, ChatTokens *tokens) {
    Conversation conversation = {0};
    int rc = read_prompt(&conversation, answer->prompt);
    if (rc == OK) rc = conversation_add(&conversation, CHAT_ASSISTANT, answer->text);
    if (rc == OK) rc = chat_render(self->model_template.chat, &conversation, TRAIN_ON_LAST, tokens);
    conversation_free(&conversation);
    return rc == OK ? OK : error_context(rc, "%s", prompt_place(answer->prompt));
}

/* `tokens` [n], zeroed. */
static int score_with(const ModelScorer *self, const ScoredAnswer *answers, size_t n, double *scores,
                      ChatTokens *tokens, RewardText *texts, float *rewards) {
    for (size_t i = 0; i < n; i++) {
        TRY(render(self, &answers[i], &tokens[i]));
        texts[i] = (RewardText){tokens[i].ids, tokens[i].n};
        if ((int64_t)tokens[i].n > self->file.model->rotary.n_positions)
            FAIL(ERR_REFUSED, "%s and its answer have %zu tokens; the reward model %s takes %d",
                 prompt_place(answers[i].prompt), tokens[i].n, self->file.path, self->file.model->rotary.n_positions);
    }
    TRY(reward_scorer_score(self->scorer, texts, n, rewards, NULL, NULL));
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(rewards[i]))
            FAIL(ERR_REFUSED, "%s: the reward model %s gives an answer %g: its numbers are broken",
                 prompt_place(answers[i].prompt), self->file.path, (double)rewards[i]);
        scores[i] = (double)rewards[i];
    }
    return OK;
}

static int score(Scorer *base, const ScoredAnswer *answers, size_t n, double *scores) {
    ChatTokens *tokens = calloc(n + 1, sizeof *tokens);
    RewardText *texts = calloc(n + 1, sizeof *texts);
    float *rewards = calloc(n + 1, sizeof *rewards);
    int rc = tokens && texts && rewards
                 ? score_with((ModelScorer *)base, answers, n, scores, tokens, texts, rewards)
                 : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory: %zu answers to be scored", n);
    for (size_t i = 0; tokens && i < n; i++) chat_tokens_free(&tokens[i]);
    free(tokens);
    free(texts);
    free(rewards);
    return rc;
}

static int open_model(ModelScorer *self, const char *path) {
    ModelFileOptions options = {.head = HEAD_SCORE, .inference = INFERENCE_AUTO, .need_tokenizer = true};
    ModelTemplate *m = &self->model_template;
    TRY(model_file_open(&self->file, path, options));
    TRY(config_new(&self->config));
    TRY(config_set_text(self->config, OPTION_template_name, "from-model"));
    TRY(model_template_choose(m, self->config, self->file.chat_template, path, self->file.tokenizer));
    TRY(model_template_open(m, self->file.tokenizer));
    return reward_scorer_new(&self->scorer, self->file.model, BATCH, llama_inference_dtype(self->file.model));
}

int scorer_model_new(Scorer **scorer, const char *path) {
    ModelScorer *self = calloc(1, sizeof *self);
    *scorer = NULL;
    if (!self) FAIL(ERR_FAILED, "out of memory");
    self->base = (Scorer){score, free_scorer};
    int rc = open_model(self, path);
    if (rc == OK)
        *scorer = &self->base;
    else
        free_scorer(&self->base);
    return rc;
}
