/* A model, the prompts it is to answer, and how: what `generate`, `rejection` and `ghost` have in common. */
#ifndef CRIA_TRAIN_ANSWERING_H
#define CRIA_TRAIN_ANSWERING_H

#include "eval/generator.h"
#include "train/files/model_file.h"
#include "train/files/model_template.h"
#include "train/answers/prompts.h"
#include "train/answers/scorer.h"

/* Whether a prompt is a user's message to be answered by the chat template. Auto: where template.* names or writes one,
 * or the model has one. In the order of the option rejection.chat. */
typedef enum { ANSWER_CHAT_AUTO, ANSWER_CHAT, ANSWER_PLAIN } AnswerChat;

typedef struct {
    const char *model, *tokenizer; /* tokenizer: instead of the model's own, or NULL */
    const char *base;              /* of adapters; NULL: the one they name */
    AnswerChat chat;
    const char *columns;     /* as chat_columns_parse, or "" */
    bool no_bos;             /* a plain prompt does not begin with BOS */
    bool fingerprint;        /* of the model's parameters is wanted (file.fingerprint) */
    const char *chat_option; /* as PromptOptions has it */
} AnsweringOptions;

typedef struct {
    ModelFile file;
    ModelTemplate chat; /* .chat is NULL where prompts are plain */
    ChatColumns columns;
    PromptOptions how;
    Prompts prompts;
    int32_t stops[HF_MAX_EOS + 2]; /* that end an answer: the model's, and the template's */
    size_t n_stops;
} Answering; /* {0} is empty; answering_close */

/* Model and template. The config must outlive it; prompts are added with prompts_read and prompts_add_text. */
int answering_open(Answering *answering, const Config *config, const AnsweringOptions *options);
void answering_close(Answering *answering);

/* By rejection.*: ERR_USAGE as scorer_new. */
int answering_scorer(Scorer **scorer, const Config *config);

/* By generate.*, with the model's stop tokens and the template's. */
GenerateOptions answering_generate_options(const Answering *answering, const Config *config);

/* Tokens of the longest prompt and its continuation, unless that is more than the model was made for. */
int answering_longest(const Answering *answering, const Config *config);

#endif
