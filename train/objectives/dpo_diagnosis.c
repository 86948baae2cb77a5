/* See dpo_diagnosis.h. */
#include "train/objectives/dpo_diagnosis.h"

#include <math.h>

#include "train/objectives/dpo_objective.h"
#include "train/objectives/kto_objective.h"

static double mean(const ObjectiveSums *sums, int metric) {
    return sums->metric_weight[metric] > 0 ? sums->metric[metric] / sums->metric_weight[metric] : 0;
}

static double count(const ObjectiveSums *sums, int metric) {
    return sums->metric_weight[metric];
}

/* ---- rules --------------------------------------------------------------------------------------------------------
 */

static bool chosen_falls(const DpoFigures *f, Text *out) {
    const ObjectiveSums *w = &f->window;
    double pairs = count(w, DPO_REWARDS_CHOSEN), length = pairs > 0 ? count(w, DPO_NLL) / pairs : 0;
    double ratio = mean(w, DPO_REWARDS_CHOSEN) / f->beta;
    if (!f->has_reference || pairs < DPO_WINDOW_PAIRS) return false;
    if (!(ratio < -fmax(1, DPO_FALL * length) && mean(w, DPO_MARGINS) > 0)) return false;
    text_printf(
        out,
        "chosen answers become less likely: by %.3g nats each (%.2g a token), while the margin grows to %.3g. The "
        "probability goes to answers that nobody compared. Try dpo.nll=%g, a larger dpo.beta (here %g), or a "
        "smaller optim.lr",
        -ratio, -ratio / length, mean(w, DPO_MARGINS), f->nll > 0 ? 2 * f->nll : 0.2, f->beta);
    return true;
}

static bool margins_are_lengths(const DpoFigures *f, Text *out) {
    const ObjectiveSums *w = &f->window;
    double n = count(w, DPO_MARGINS), d = mean(w, DPO_SUM_D);
    double mm = w->metric[DPO_SUM_MM], dd = w->metric[DPO_SUM_DD], md = w->metric[DPO_SUM_MD];
    if (n < DPO_WINDOW_PAIRS) return false;
    if (!(mm > 0 && dd > 0) || !(fabs(md) > DPO_LENGTH_CORRELATION * sqrt(mm * dd))) return false;
    text_printf(
        out,
        "margins follow the answers' lengths: their correlation with the difference in tokens is %.2f over %.0f "
        "pairs, and chosen answers are %.3g tokens %s on average. What is learned is to be %s. Try "
        "dpo.length_normalised=true, dpo.loss=simpo, or pairs of like lengths",
        md / sqrt(mm * dd), n, fabs(d), d < 0 ? "shorter" : "longer", md > 0 ? "long" : "short");
    return true;
}

static bool slight_pairs_are_flat(const DpoFigures *f, Text *out) {
    const ObjectiveSums *w = &f->window;
    double n_slight = count(w, DPO_ACCURACIES_SLIGHT) + count(w, DPO_ACCURACIES_NEGLIGIBLE);
    double n_clear = count(w, DPO_ACCURACIES_BETTER) + count(w, DPO_ACCURACIES_SIGNIFICANT);
    if (n_slight < DPO_WINDOW_PAIRS || n_clear < DPO_WINDOW_PAIRS) return false;
    double slight = (w->metric[DPO_ACCURACIES_SLIGHT] + w->metric[DPO_ACCURACIES_NEGLIGIBLE]) / n_slight;
    double clear = (w->metric[DPO_ACCURACIES_BETTER] + w->metric[DPO_ACCURACIES_SIGNIFICANT]) / n_clear;
    if (!(slight < DPO_SLIGHT_ACCURACY && clear > DPO_CLEAR_ACCURACY)) return false;
    text_printf(
        out,
        "slightly and negligibly better answers are not told apart: %.0f %% of %.0f pairs are right, of the clear "
        "ones %.0f %%. Their labels may be noise. Try without them, or dpo.label_smoothing=0.1 with dpo.loss=robust",
        100 * slight, n_slight, 100 * clear);
    return true;
}

static bool entropy_fell(double before, double now, double beta, Text *out) {
    if (!(before > 0 && now < DPO_ENTROPY_SHARE * before)) return false;
    text_printf(out,
                "entropy collapses: from %.3g to %.3g nats a token; answers will all be alike. Try a smaller optim.lr, "
                "fewer epochs, or a larger dpo.beta (here %g)",
                before, now, beta);
    return true;
}

static bool entropy_collapses(const DpoFigures *f, Text *out) {
    return count(&f->window, DPO_ENTROPY) > 0 &&
           entropy_fell(mean(&f->baseline, DPO_ENTROPY), mean(&f->window, DPO_ENTROPY), f->beta, out);
}

DpoRule *const dpo_rules[N_DPO_RULES] = {[DPO_CHOSEN_FALLS] = chosen_falls,
                                         [DPO_MARGINS_ARE_LENGTHS] = margins_are_lengths,
                                         [DPO_SLIGHT_PAIRS_ARE_FLAT] = slight_pairs_are_flat,
                                         [DPO_ENTROPY_COLLAPSES] = entropy_collapses};

/* ---- windows ------------------------------------------------------------------------------------------------------
 */

/* Squares and products become those of differences from the step's means, so that margins that grow from step to step
 * do not hide what they go with. */
static void centre(ObjectiveSums *sums) {
    double n = count(sums, DPO_MARGINS), m = sums->metric[DPO_MARGINS], d = sums->metric[DPO_SUM_D];
    if (!(n > 0)) return;
    sums->metric[DPO_SUM_MM] -= m * m / n;
    sums->metric[DPO_SUM_DD] -= d * d / n;
    sums->metric[DPO_SUM_MD] -= m * d / n;
}

static void add_sums(ObjectiveSums *to, const ObjectiveSums *from) {
    for (int i = 0; i < OBJECTIVE_MAX_METRICS; i++) {
        to->metric[i] += from->metric[i];
        to->metric_weight[i] += from->metric_weight[i];
    }
}

/* `windowed`: the step's sums as the window has them. */
static void take_in(DpoWatch *watch, const ObjectiveSums *sums, const ObjectiveSums *windowed) {
    if (watch->baseline_steps < DPO_BASELINE_STEPS) {
        add_sums(&watch->figures.baseline, sums);
        watch->baseline_steps++;
    }
    add_sums(&watch->figures.window, windowed);
    watch->window_steps++;
}

static void close_window(DpoWatch *watch, DpoRule *const *rules, int n, Text *out) {
    for (int i = 0; i < n; i++) {
        if (watch->told[i] || !rules[i](&watch->figures, out)) continue;
        watch->told[i] = true;
        text_puts(out, "\n");
    }
    watch->figures.window = (ObjectiveSums){0};
    watch->window_steps = 0;
}

bool dpo_watch(DpoWatch *watch, const ObjectiveSums *sums, Text *out) {
    ObjectiveSums centred = *sums;
    centre(&centred);
    take_in(watch, sums, &centred);
    bool full = count(&watch->figures.window, DPO_MARGINS) >= DPO_WINDOW_PAIRS;
    if (watch->window_steps < DPO_WINDOW_STEPS || !full) return false;
    close_window(watch, dpo_rules, N_DPO_RULES, out);
    return true;
}

/* ---- KTO ----------------------------------------------------------------------------------------------------------
 */

static bool divergence_runs_away(const DpoFigures *f, Text *out) {
    double kl = mean(&f->window, KTO_KL);
    if (!(kl > KTO_DIVERGENCE)) return false;
    text_printf(
        out,
        "the policy runs away from its reference: %.3g nats an answer on answers to other prompts. Try a larger "
        "dpo.beta (here %g), or a smaller optim.lr",
        kl, f->beta);
    return true;
}

static bool kto_entropy_collapses(const DpoFigures *f, Text *out) {
    return count(&f->window, KTO_ENTROPY) > 0 &&
           entropy_fell(mean(&f->baseline, KTO_ENTROPY), mean(&f->window, KTO_ENTROPY), f->beta, out);
}

DpoRule *const kto_rules[N_KTO_RULES] = {
    [KTO_RUNS_AWAY] = divergence_runs_away, [KTO_ENTROPY_COLLAPSES] = kto_entropy_collapses};

bool kto_watch(DpoWatch *watch, const ObjectiveSums *sums, Text *out) {
    take_in(watch, sums, sums);
    if (watch->window_steps < DPO_WINDOW_STEPS) return false;
    close_window(watch, kto_rules, N_KTO_RULES, out);
    return true;
}
