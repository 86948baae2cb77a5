/* What scores answers: a rule, a program of the user's, or a reward model. All there is to one is a function from
 * prompts and answers to scores. */
#ifndef CRIA_TRAIN_SCORER_H
#define CRIA_TRAIN_SCORER_H

#include "train/answers/prompts.h"

typedef struct {
    const Prompt *prompt;
    int64_t index;    /* of the prompt */
    const char *text; /* UTF-8, NUL-terminated */
    size_t size;
    size_t n_tokens;
} ScoredAnswer;

typedef struct Scorer {
    /* scores[n], finite; an error names what was wrong with which answer. The same answers get the same scores, in
     * whatever company. */
    int (*score)(struct Scorer *scorer, const ScoredAnswer *answers, size_t n, double *scores);
    void (*free)(struct Scorer *scorer);
} Scorer;

/* In the order of the options rejection.reward and ppo.reward. */
typedef enum { REWARD_CONTAINS, REWARD_LENGTH, REWARD_REGEX, REWARD_NUMBER, REWARD_PROGRAM, REWARD_MODEL } RewardKind;

typedef struct {
    RewardKind kind;
    const char *word, *pattern, *program, *model;  /* the caller's, who keeps them */
    const char *head, *safety_model, *safety_head; /* likewise, of kind model; "" where they are not given */
    double length, timeout;
    const char *section; /* of the config, that these are options of: for messages */
} ScorerOptions;
/* ERR_USAGE where what the kind needs is missing or no pattern. */
int scorer_new(Scorer **scorer, const ScorerOptions *options);
void scorer_free(Scorer *scorer); /* NULL will do */

/* What a model wrote as a JSON string, UTF-8 whatever it made: bytes that are none become U+FFFD. NULL: out of memory.
 */
json_t *answer_text(const char *bytes, size_t size);

/* A shell command: a JSON object {"index", "prompt", "answer", "record"} a line on its standard input, in answer a
 * number a line on its standard output. It is started for every call, in a process group of its own, and ended where it
 * takes no line and gives no score for `timeout` seconds. */
int scorer_program_new(Scorer **scorer, const ScorerOptions *options);

/* A reward model (reward_model.h): the score that `head` names, or its only one. With `safety_model` or `safety_head`
 * two scores, of two models or of one, put together as Llama 2 does (reward_llama2); a prompt is one of safety where
 * its record has "safety": true. */
int scorer_model_new(Scorer **scorer, const ScorerOptions *options);

/* The last number of a text as GSM8K writes it (Cobbe et al. 2021): after "####" where that is, digits with commas,
 * a sign, a point. False where there is none. */
bool final_number(const char *text, size_t size, double *number);

#endif
