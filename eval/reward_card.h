/* A reward model's report card, from the rewards of held-out pairs. Plain numbers in and out. */
#ifndef CRIA_EVAL_REWARD_CARD_H
#define CRIA_EVAL_REWARD_CARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/encoder.h"
#include "eval/proportion.h"
#include "model/core/text.h"

/* One pair: [0] the chosen answer, [1] the rejected one. */
typedef struct {
    double reward[2];
    double length[2]; /* tokens of the answer */
    Strength strength;
} RewardPair;

enum { CALIBRATION_BINS = 5 };

typedef struct {
    Proportion accuracy;                 /* the chosen answer's reward is the higher one; a tie is not */
    Proportion by_strength[N_STRENGTHS]; /* the same; n is 0 where no pair has that strength */
    double loss;                         /* mean of -log σ(chosen - rejected) */
    double margin;                       /* mean of chosen - rejected */
    double mean, deviation, least, most; /* of all rewards */
    /* Of pairs whose more likely answer, by the model, has a probability max(p, 1-p), p = σ(chosen - rejected), from
     * 0.5 + 0.1·bin on: how likely it was on average, and how often it was the chosen one. */
    struct {
        Proportion observed;
        double predicted;
    } bins[CALIBRATION_BINS];
    double calibration_error; /* Σ over bins of their share of the pairs · |predicted - observed| (Guo et al. 2017) */
    double length_pearson,
        length_spearman;         /* of reward and length, over all answers; 0 where one of them is constant */
    double difference_pearson;   /* of the differences of rewards and of lengths, over pairs */
    Proportion longer_chosen;    /* of the pairs whose answers differ in length: the chosen one is longer */
    Proportion longer_preferred; /* of the same: the model's higher reward is the longer one's */
} RewardCard;

/* ERR_FAILED when memory is out. n > 0. */
int reward_card(RewardCard *card, const RewardPair *pairs, size_t n);

/* What the card says in words, a line each: that it is no better than chance, follows length, is too sure of itself or
 * not sure enough, or does not see slight preferences; and what to do. Nothing where there is nothing to say. */
void reward_remarks(Text *out, const RewardCard *card);

/* The pairs' indices, those first whose rejected answer is scored highest above the chosen one. */
void reward_worst_first(size_t *order, const RewardPair *pairs, size_t n);

#endif
