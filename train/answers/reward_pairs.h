/* Preference records as texts to be scored: what `cria eval reward` reads. */
#ifndef CRIA_TRAIN_REWARD_PAIRS_H
#define CRIA_TRAIN_REWARD_PAIRS_H

#include "data/chat/pairs.h"
#include "data/chat/template.h"
#include "eval/reward_card.h"
#include "eval/reward_scorer.h"
#include "model/core/arena.h"

/* One pair: where it is from, and the beginnings of its texts, without line breaks. */
typedef struct {
    const char *path;
    int64_t line;
    const char *prompt, *answer[2]; /* the last user's message; the chosen and the rejected answer's last */
} RewardPlace;

typedef struct {
    RewardPair *pairs; /* [n] lengths and strength; rewards once they are scored */
    RewardPlace *places;
    RewardText *texts; /* [2·n] chosen, rejected, chosen, … */
    size_t n, capacity, dropped, malformed;
    Arena arena; /* ids and excerpts */
} RewardPairs;   /* {0} is empty; reward_pairs_free */
void reward_pairs_free(RewardPairs *pairs);

typedef struct {
    const ChatTemplate *chat;
    const ChatColumns *columns; /* NULL: none */
    size_t context;             /* of each answer with its prompt */
    Overlong overlong;
    PairObjectives objectives; /* what pairs may be about */
    bool skip_errors;          /* records that are no pairs are counted in `malformed`, and left out */
} RewardPairsOptions;

/* Appends every pair of the records in the files behind `path` (of three ranked answers all pairs) to pairs[0], or
 * where there are several objectives to those of its own: [objectives.n]; to be freed together. Pairs whose answers are
 * equal say nothing and are left out, and so are those that the policy drops: counted in the first's `dropped`.
 * ERR_REFUSED with file and line for a record that is no pair, or is too long where the policy is to fail. */
int reward_pairs_read(RewardPairs *pairs, const char *path, const RewardPairsOptions *options);

#endif
