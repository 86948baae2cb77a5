/* A rollout: prompts, the answers that the policy as it was gave to them, and all that its updates need to know of
 * them: log-probabilities then, the reference's, scores, advantages. Every rank holds the answers of its own prompts
 * (a run of consecutive prompts); lengths and scores, one number an answer, are known to all, so that whatever is taken
 * over the step covers all ranks.
 *
 * Updates: each of `epochs` passes takes the prompts in another order, cut into `minibatches` of equal numbers of
 * prompts; a minibatch is one optimizer step, with all answers to its prompts. */
#ifndef CRIA_TRAIN_ROLLOUT_H
#define CRIA_TRAIN_ROLLOUT_H

#include "data/loader.h"
#include "dist/mesh.h"
#include "model/core/arena.h"
#include "model/llama.h"
#include "train/objectives/advantages.h"
#include "train/objectives/answer_batch.h"

typedef enum { ALGORITHM_GRPO, ALGORITHM_RLOO, ALGORITHM_PPO } PolicyAlgorithm;

/* How GRPO's loss is a mean of its tokens' (TRL's names): of all tokens of the rollout, a minibatch's share (Yu et al.
 * 2025); of each answer's mean (Shao et al. 2024); of the minibatch's tokens; or over answers × max_new_tokens (Liu et
 * al. 2025). */
typedef enum { LOSS_DAPO, LOSS_GRPO, LOSS_BNPO, LOSS_DR_GRPO } PolicyLossType;

typedef struct {
    PolicyAlgorithm algorithm;
    int prompts, samples;    /* of a rollout; answers to each prompt */
    int epochs, minibatches; /* prompts is a multiple of the latter */
    int max_new_tokens;
    double temperature;               /* of sampling, and of every log-probability */
    double beta;                      /* of the KL penalty: GRPO in the loss, RLOO and PPO in the reward */
    double epsilon_low, epsilon_high; /* the ratio's bounds are 1 - low and 1 + high */
    bool
        weigh_kl; /* GRPO: the KL estimate times the ratio, so that its gradient is the KL's (DeepSeek-AI 2025, V3.2) */
    PolicyLossType loss_type;   /* GRPO */
    ScaleRewards scale;         /* GRPO */
    bool whiten_scores;         /* over the rollout, before anything else is made of them */
    bool normalise;             /* RLOO: whiten the advantages */
    double most_distance;       /* of a log-probability from what it must equal, times max(1, |log-sum-exp|); 0: any */
    double missing_eos_penalty; /* off the scores of answers that did not end by themselves */
    KlEstimator kl_estimator;   /* of the KL penalty in the reward, and of what is told of it */
    double gamma, lambda;       /* PPO: of generalised advantage estimation */
    bool whiten_rewards;        /* PPO: divide them by their standard deviation over the rollout's states */
    double value_epsilon;       /* PPO: a value's change is clipped at this */
    double value_weight;        /* PPO: of the value loss beside the policy's */
    uint64_t seed;
} PolicyOptions;

typedef struct {
    double largest, mean;
    double
        relative; /* the largest, over max(1, |log-sum-exp|): a log-probability is the difference of two such numbers */
} LogprobDistance;

typedef struct {
    PolicyOptions options;
    Mesh *mesh;
    int64_t number;                     /* of this rollout: the first is 0 */
    Answer *answers;                    /* [prompts × samples], those to one prompt side by side */
    double *lengths;                    /* likewise, of all ranks from rollout_gather on: tokens */
    double *scores;                     /* NaN: could not be judged */
    double *finished;                   /* 1: it ended by itself */
    double *kl;                         /* Σ over its tokens of kl_estimator; from rollout_divergences on */
    double *entropy;                    /* Σ of -log p, likewise */
    double *clipped_low, *clipped_high; /* share of it that the current update clips; this rank's */
    double equal_groups;                /* share of prompts whose answers all have the same score */
    LogprobDistance distance;           /* a token's, of what was recorded when sampling from the training graph's */
    bool has_reference, has_sampled;
    double explained; /* PPO: share of the returns' variance that the values explain; from rollout_gae on */
    int update;       /* that the current minibatch is for */
    int *minibatch;   /* [prompts / minibatches × samples] answers of the current step */
    int n_minibatch;
    double minibatch_states; /* of those answers, over all ranks */
    Arena arena;             /* of the answers */
    Arena lasting;
    AnswerBatch batch; /* the step's micro-batches */
} Rollout;             /* {0} is empty; rollout_free */

int rollout_init(Rollout *rollout, const PolicyOptions *options, Mesh *mesh);
void rollout_free(Rollout *rollout);

/* Forgets all answers; the numbers of all ranks are 0 again. */
void rollout_clear(Rollout *rollout, int64_t number);
/* Copies one; `sampled` may be NULL. The score is the caller's to set. */
int rollout_add(Rollout *rollout, int index, const int32_t *tokens, int n_tokens, int n_prompt, bool finished,
                const float *sampled);
/* After it lengths, scores and ends are those of all ranks. Collective. */
int rollout_gather(Rollout *rollout);

/* The states of an answer that PPO's value model judges: that before each of its tokens and, where it ended by itself,
 * the one behind its last, which is where its score is then due (TRL's PPOTrainer has it so). State t is row
 * n_prompt - 1 + t of its segment. */
int answer_states(const Rollout *rollout, int answer);

/* The micro-batches of all answers of this rank. */
int rollout_all(Rollout *rollout, int capacity, StepBatch *batch);
/* Copies rows of a tape's kept fp32 [T, 1] tensor into the rollout's memory. */
int rollout_take(float **out, Rollout *rollout, const float *values, int row, int n);

/* A forward pass for log-probabilities alone. Shares `memory` with others of its kind. */
typedef struct LogprobPass LogprobPass;
int logprob_pass_new(LogprobPass **pass, Llama *model, double temperature, int capacity, Dtype precision,
                     TapeMemory *memory);
void logprob_pass_free(LogprobPass *pass);
size_t logprob_pass_bytes(const LogprobPass *pass); /* of its plan */
/* Fills the answers' logprob, or their reference. `capacity` bounds a micro-batch as it does the pass. */
int rollout_logprobs(Rollout *rollout, LogprobPass *pass, int capacity, bool reference);

/* Sets rollout->distance. Collective. */
int rollout_distance(Rollout *rollout);

/* Sums each answer's KL and entropy, from its log-probabilities. Collective. */
int rollout_divergences(Rollout *rollout);
/* From scores, divergences and PPO's values (rollout_values) to advantages. Collective. */
int rollout_advantages(Rollout *rollout);

/* What there is to say of the answers of all ranks; NaN where there are none. */
typedef struct {
    double mean, least, most;
} LengthFigures;
typedef struct {
    double reward, reward_std; /* of those that were judged */
    LengthFigures length, ended;
    double cut_off;  /* share that did not end by itself */
    double kl;       /* of an answer: Σ over its tokens of kl_estimator, mean over answers */
    double token_kl; /* the same, mean over tokens */
    double entropy;  /* of an answer: -log p, mean over answers */
    double n_ended;  /* answers that ended by themselves */
} RolloutFigures;
RolloutFigures rollout_figures(const Rollout *rollout);

/* The micro-batches of update `update` of this rollout (0 … epochs × minibatches - 1), of at most `capacity` tokens,
 * this rank's. sample_id of a segment is its answer's index. Valid until the next call. total_weight is what the
 * objective divides by. */
int rollout_update(Rollout *rollout, int update, int capacity, StepBatch *batch);

int rollout_updates(const Rollout *rollout); /* that it serves */

/* What a token of this answer counts in the loss, and what the answer adds to the loss's denominator. */
double rollout_token_weight(const Rollout *rollout, int answer);
double rollout_answer_weight(const Rollout *rollout, int answer);

#endif
