/* What the numbers of policy-gradient training show, in words: the usual ways in which it goes wrong, and what to
 * change. */
#ifndef CRIA_TRAIN_POLICY_WATCH_H
#define CRIA_TRAIN_POLICY_WATCH_H

#include <stdbool.h>
#include <stddef.h>

#include "model/core/text.h"

/* Of one rollout. */
typedef struct {
    double reward, kl;         /* mean over answers; kl in nats, NaN without a reference */
    double entropy;            /* nats a token */
    double length;             /* tokens, mean over answers */
    double length_correlation; /* of scores and lengths, over answers; NaN where one of them does not vary */
    double length_slope;       /* the score that a token more goes with, over answers; likewise */
    double equal_groups;       /* share of prompts all whose answers score the same; NaN where there are no groups */
    double beta;               /* of the KL penalty */
    double value_loss;         /* PPO: a state's, before the rollout's first update; NaN without a value model */
    double explained;          /* PPO: share of the returns' variance that the values explain; likewise */
} WatchFigures;

enum { WATCH_BACK = 5 /* rollouts that a trend is taken over */ };

typedef enum {
    WATCH_KL,
    WATCH_LENGTH,
    WATCH_ENTROPY,
    WATCH_NO_SIGNAL,
    WATCH_VALUE_LOSS,
    WATCH_UNEXPLAINED,
    N_WATCHED
} Watched;

typedef struct {
    WatchFigures first, past[WATCH_BACK];
    long n;               /* rollouts seen */
    long told[N_WATCHED]; /* the rollout after which each was told last; 0: never */
    long without_signal;  /* rollouts in a row */
    long unexplained;     /* likewise */
} PolicyWatch;            /* {0} has seen nothing */

/* Takes in one rollout more. Appends a line for each thing that is wrong, each at most once in 20 rollouts. */
void policy_watch(PolicyWatch *watch, const WatchFigures *figures, Text *out);

#endif
