/* What the command of a stage is started with. */
#ifndef CRIA_TRAIN_ROUNDS_WORDS_H
#define CRIA_TRAIN_ROUNDS_WORDS_H

#include "train/rounds/rounds.h"

enum { MOST_WORDS = 256 };

typedef struct {
    char *items[MOST_WORDS + 1]; /* NULL at the end */
    size_t n;
    Arena arena;
} Words; /* {0} is empty */
void words_free(Words *words);

/* "sft round-1/sft.yaml", "merge A B TO --format checkpoint". */
int words_of(Words *words, const RoundStage *stage);
/* "eval policy MODEL PROMPTS --json rejection.samples=4 …"; reference: NULL: none. */
int words_of_eval(Words *words, const RoundStage *stage, const char *model, const char *reference);

#endif
