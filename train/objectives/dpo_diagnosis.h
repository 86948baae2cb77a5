/* What the figures of preference training mean, in words, and what to change. A rule is a function of two sets of sums:
 * the run's first steps (the baseline) and its latest ones (the window). A rule that holds is told once. */
#ifndef CRIA_TRAIN_DPO_DIAGNOSIS_H
#define CRIA_TRAIN_DPO_DIAGNOSIS_H

#include "model/core/text.h"
#include "train/objectives/objective.h"

typedef struct {
    ObjectiveSums baseline, window; /* sums of dpo_objective.h's metrics; in `window` those of squares and products are
                                       of differences from each step's means */
    double beta, nll;
    bool has_reference; /* rewards are log-ratios */
} DpoFigures;

/* Appends its finding to `out` and returns true where it holds. */
typedef bool DpoRule(const DpoFigures *figures, Text *out);
enum { DPO_CHOSEN_FALLS, DPO_MARGINS_ARE_LENGTHS, DPO_SLIGHT_PAIRS_ARE_FLAT, DPO_ENTROPY_COLLAPSES, N_DPO_RULES };
extern DpoRule *const dpo_rules[N_DPO_RULES];

/* Chosen answers have lost DPO_FALL nats a token and a nat an answer, while margins grow (Pal et al. 2024, "Smaug"). */
#define DPO_FALL 0.1
/* Margins and differences of length have a correlation above this (Park et al. 2024, "Disentangling length"). */
#define DPO_LENGTH_CORRELATION 0.8
/* Slight pairs are right less often than this, where clear ones are more often than that. */
#define DPO_SLIGHT_ACCURACY 0.55
#define DPO_CLEAR_ACCURACY 0.65
/* The entropy is below this share of the baseline's. */
#define DPO_ENTROPY_SHARE 0.5

enum { DPO_BASELINE_STEPS = 5, DPO_WINDOW_STEPS = 25, DPO_WINDOW_PAIRS = 200 /* at least, of what a rule counts */ };

typedef struct {
    DpoFigures figures;
    int baseline_steps, window_steps;
    bool told[N_DPO_RULES]; /* by rule; KTO has fewer */
} DpoWatch;

/* A step's sums. True: a window is full, and `out` has what its rules say that was not told before, a line each. */
bool dpo_watch(DpoWatch *watch, const ObjectiveSums *sums, Text *out);

/* ---- KTO: sums of kto_objective.h's metrics, in the same figures; nll and has_reference are not looked at ---- */

/* The estimated divergence from the reference is above this, in nats an answer. */
#define KTO_DIVERGENCE 10.0

enum { KTO_RUNS_AWAY, KTO_ENTROPY_COLLAPSES, N_KTO_RULES };
extern DpoRule *const kto_rules[N_KTO_RULES];
bool kto_watch(DpoWatch *watch, const ObjectiveSums *sums, Text *out); /* as dpo_watch */

#endif
