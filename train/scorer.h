/* What scores answers: a rule, a program of the user's, or a reward model. All there is to one is a function from
 * prompts and answers to scores. */
#ifndef CRIA_TRAIN_SCORER_H
#define CRIA_TRAIN_SCORER_H

#include "configs/config.h"
#include "train/prompts.h"

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

/* In the order of the option rejection.reward. */
typedef enum { REWARD_CONTAINS, REWARD_LENGTH, REWARD_REGEX, REWARD_NUMBER, REWARD_PROGRAM } RewardKind;

/* What rejection.reward asks for. The config must outlive it. */
int scorer_from_config(Scorer **scorer, const Config *config);
void scorer_free(Scorer *scorer); /* NULL will do */

/* A shell command: a JSON object {"index", "prompt", "answer", "record"} a line on its standard input, in answer a
 * number a line on its standard output. It is started for every call, in a process group of its own, and ended where it
 * takes no line and gives no score for `timeout` seconds. */
int scorer_program_new(Scorer **scorer, const char *command, double timeout);

/* The last number of a text as GSM8K writes it (Cobbe et al. 2021): after "####" where that is, digits with commas,
 * a sign, a point. False where there is none. */
bool final_number(const char *text, size_t size, double *number);

#endif
