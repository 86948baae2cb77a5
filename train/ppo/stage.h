/* cria ppo: what its parts share. stage.c sets the run up, prompts.c has the prompts, sampling.c answers and scores
 * them, step.c makes rollouts and hands their updates to the loop. */
#ifndef CRIA_TRAIN_PPO_STAGE_H
#define CRIA_TRAIN_PPO_STAGE_H

#include "train/chat_stage.h"
#include "train/objectives/policy.h"
#include "train/objectives/value.h"
#include "train/ppo/value.h"
#include "train/answers/prompts.h"
#include "train/answers/scorer.h"

enum { PPO_MOST_STOPS = 16 };

typedef struct {
    ChatStage chat;
    bool has_template; /* prompts are conversations; else texts, to be continued */
    PolicyOptions options;
    Prompts prompts;
    uint32_t *training, *held_out; /* prompts' indices */
    uint32_t n_training, n_held_out;
    Scorer *scorer;
    int32_t stops[PPO_MOST_STOPS];
    size_t n_stops;
    int capacity; /* tokens of a micro-batch */
    Dtype precision;
    Llama *reference;          /* what training begins from, a copy; NULL: the model under its adapter, or: */
    ModelFile other_reference; /* ppo.reference */
    ValueModel value;          /* PPO's */
    TapeMemory *memory;
    LogprobPass *policy_pass, *reference_pass;
    ValuePass *value_pass;
    Rollout rollout, validation;
    bool made; /* rollout is of the model's present or, within its updates, recent state */
} Ppo;

extern const Stage stage_ppo;

/* By ppo.reward and what belongs to it. */
int ppo_scorer(Scorer **scorer, const Config *config);

/* ---- prompts.c ---- */

/* Reads data.train and data.validation, and splits prompts off where a share is given. */
int ppo_prompts_open(Run *run);
/* The prompt with number `k` in the endless sequence of passes over the training prompts. */
const Prompt *ppo_prompt(const Ppo *ppo, int64_t k);

/* ---- sampling.c ---- */

/* Answers prompts[0…n prompts of the rollout), of which this rank has its own, and scores the answers: fills the
 * rollout up to rollout_gather. `first` numbers the first prompt among all that are ever answered with this seed. */
int ppo_answer(Run *run, Rollout *rollout, const Prompt *const *prompts, uint64_t seed, int64_t first);

/* ---- step.c ---- */

/* How far what is recorded when sampling may be from what the training graph computes, in the order of whose sums alone
 * the two differ: times max(1, |log-sum-exp|). */
double ppo_most_distance(Dtype precision);

/* LoopBatches of the run. */
int ppo_step(void *context, int64_t step, StepBatch *batch);
/* Stage's measure: one answer to every held-out prompt. */
int ppo_measure(Run *run, int64_t step, double *loss, bool *found);

#endif
