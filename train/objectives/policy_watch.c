/* See policy_watch.h. */
#include "train/objectives/policy_watch.h"

#include <math.h>

enum {
    TELL_AGAIN = 20,     /* rollouts */
    SIGNAL_PATIENCE = 3, /* rollouts without a signal, before it is said */
    VALUE_PATIENCE = 10, /* rollouts whose returns the values do not explain */
};
static const double KL_MUCH = 10;   /* nats an answer: Gao et al. 2023's proxy rewards part from true ones there */
static const double KL_GROWS = 1.5; /* times, over WATCH_BACK rollouts */
static const double ENTROPY_COLLAPSED = 0.2; /* of the first rollout's */
static const double LENGTH_GROWN = 1.2;      /* times the first rollout's */
static const double LENGTH_FOLLOWED = 0.7;   /* correlation of score and length */
static const double LENGTH_EXPLAINS = 0.5;   /* share of the reward's rise that the growth in length alone foretells */
static const double NO_SIGNAL = 0.9;         /* share of prompts */
static const double VALUE_LOSS_GROWN = 10;   /* times, over WATCH_BACK rollouts */
static const double WORSE_THAN_MEAN = -1;    /* explained: the values' errors vary twice as much as the returns */
static const double UNEXPLAINED = 0.05;      /* share of the returns' variance, at most */

/* Whether it may be told now. */
static bool tell(PolicyWatch *watch, Watched what) {
    if (watch->told[what] > 0 && watch->n - watch->told[what] < TELL_AGAIN) return false;
    watch->told[what] = watch->n;
    return true;
}

static void watch_kl(PolicyWatch *watch, const WatchFigures *now, const WatchFigures *then, Text *out) {
    if (!(now->kl > KL_MUCH && now->kl > KL_GROWS * then->kl) || !tell(watch, WATCH_KL)) return;
    text_printf(out,
                "the KL divergence runs away: %.1f nats an answer, %.1f %d rollouts ago. The policy leaves what the "
                "reference would say, where rewards are easily fooled: raise ppo.beta (%g), or lower optim.lr\n",
                now->kl, then->kl, (int)WATCH_BACK, now->beta);
}

static void watch_length(PolicyWatch *watch, const WatchFigures *now, Text *out) {
    const WatchFigures *first = &watch->first;
    double rise = now->reward - first->reward, growth = now->length - first->length;
    if (!(rise > 0 && now->length > LENGTH_GROWN * first->length && now->length_correlation > LENGTH_FOLLOWED &&
          now->length_slope * growth > LENGTH_EXPLAINS * rise) ||
        !tell(watch, WATCH_LENGTH))
        return;
    text_printf(out,
                "the reward rises with length only: answers have %.0f tokens (%.0f at first), and the correlation of "
                "score and length is %.2f. Penalise length in the reward, centre or retrain the reward model, or lower "
                "generate.max_new_tokens\n",
                now->length, first->length, now->length_correlation);
}

static void watch_entropy(PolicyWatch *watch, const WatchFigures *now, Text *out) {
    if (!(now->entropy < ENTROPY_COLLAPSED * watch->first.entropy) || !tell(watch, WATCH_ENTROPY)) return;
    text_printf(out,
                "the entropy collapses: %.3f nats a token, %.3f at first. Answers to a prompt become the same, and "
                "nothing new is tried: raise ppo.beta (%g) or ppo.epsilon_high, lower optim.lr, or stop here\n",
                now->entropy, watch->first.entropy, now->beta);
}

static void watch_signal(PolicyWatch *watch, const WatchFigures *now, Text *out) {
    watch->without_signal = now->equal_groups >= NO_SIGNAL ? watch->without_signal + 1 : 0;
    if (watch->without_signal < SIGNAL_PATIENCE || !tell(watch, WATCH_NO_SIGNAL)) return;
    text_printf(
        out,
        "no signal: for %.0f %% of the prompts all answers score the same (reward %.3g), which teaches nothing. "
        "The prompts are too easy or too hard: take others, more ppo.samples, a higher ppo.temperature, or a "
        "reward with finer steps\n",
        100 * now->equal_groups, now->reward);
}

/* Where a policy begins to earn, returns and so losses grow too: values that go on explaining them are sound. */
static void watch_value_loss(PolicyWatch *watch, const WatchFigures *now, const WatchFigures *then, Text *out) {
    if (!(now->value_loss > VALUE_LOSS_GROWN * then->value_loss && now->explained < WORSE_THAN_MEAN) ||
        !tell(watch, WATCH_VALUE_LOSS))
        return;
    text_printf(out,
                "the value loss explodes: %.3g a state, %.3g %d rollouts ago, and the values are further from the "
                "returns than their mean is. Lower ppo.value_lr or ppo.cliprange_value, or whiten the scores "
                "(ppo.whiten_scores) if they are large\n",
                now->value_loss, then->value_loss, (int)WATCH_BACK);
}

static void watch_explained(PolicyWatch *watch, const WatchFigures *now, Text *out) {
    watch->unexplained = now->explained <= UNEXPLAINED ? watch->unexplained + 1 : 0;
    if (watch->unexplained < VALUE_PATIENCE || !tell(watch, WATCH_UNEXPLAINED)) return;
    text_printf(out,
                "the value model has learned nothing: for %ld rollouts it explains less than %.0f %% of the returns' "
                "variance (now %.1f %%), so that advantages are as noisy as the scores. Raise ppo.value_lr, "
                "ppo.epochs or ppo.minibatches, or begin from the reward model (ppo.value_model)\n",
                watch->unexplained, 100 * UNEXPLAINED, 100 * now->explained);
}

void policy_watch(PolicyWatch *watch, const WatchFigures *figures, Text *out) {
    if (watch->n == 0) watch->first = *figures;
    const WatchFigures then = watch->n >= WATCH_BACK ? watch->past[watch->n % WATCH_BACK] : watch->first;
    watch->past[watch->n % WATCH_BACK] = *figures;
    watch->n++;
    watch_kl(watch, figures, &then, out);
    watch_length(watch, figures, out);
    watch_entropy(watch, figures, out);
    watch_signal(watch, figures, out);
    watch_value_loss(watch, figures, &then, out);
    watch_explained(watch, figures, out);
}
