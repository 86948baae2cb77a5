/* See reward_card.h. */
#include "eval/reward_card.h"

#include <math.h>
#include <stdlib.h>

#include "eval/correlation.h"
#include "model/core/error.h"

/* 0 where one of the two does not vary. */
static double together(const double *x, const double *y, size_t n) {
    double r = correlation(x, y, n);
    return isnan(r) ? 0 : r;
}

/* ---- ranks ---- */

typedef struct {
    double value;
    size_t index;
} Ranked;

static int by_value(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    if (x->value != y->value) return x->value < y->value ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

/* x becomes its ranks; equal values share the mean of theirs. */
static void rank(double *x, size_t n, Ranked *scratch) {
    for (size_t i = 0; i < n; i++) scratch[i] = (Ranked){x[i], i};
    qsort(scratch, n, sizeof *scratch, by_value);
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i; end < n && scratch[end].value == scratch[i].value;) end++;
        for (size_t k = i; k < end; k++) x[scratch[k].index] = (double)(i + end - 1) / 2;
    }
}

/* ---- the card ---- */

static void correlate(RewardCard *card, const RewardPair *pairs, size_t n, double *x, double *y, Ranked *scratch) {
    for (size_t i = 0; i < n; i++) {
        x[i] = pairs[i].reward[0] - pairs[i].reward[1];
        y[i] = pairs[i].length[0] - pairs[i].length[1];
    }
    card->difference_pearson = together(x, y, n);
    for (size_t i = 0; i < 2 * n; i++) {
        x[i] = pairs[i / 2].reward[i % 2];
        y[i] = pairs[i / 2].length[i % 2];
    }
    card->length_pearson = together(x, y, 2 * n);
    rank(x, 2 * n, scratch);
    rank(y, 2 * n, scratch);
    card->length_spearman = together(x, y, 2 * n);
}

static void take_rewards(RewardCard *card, const RewardPair *pairs, size_t n) {
    double count = 2 * (double)n, squares = 0;
    card->least = INFINITY;
    card->most = -INFINITY;
    for (size_t i = 0; i < 2 * n; i++) {
        double reward = pairs[i / 2].reward[i % 2];
        card->mean += reward / count;
        card->least = fmin(card->least, reward);
        card->most = fmax(card->most, reward);
    }
    for (size_t i = 0; i < 2 * n; i++) squares += pow(pairs[i / 2].reward[i % 2] - card->mean, 2);
    card->deviation = sqrt(squares / count);
}

typedef struct {
    int64_t n, right;
} Count;

static void count(Count *to, int right) {
    to->n++;
    to->right += right;
}

static Proportion share_of(Count c) {
    return proportion(c.right, c.n);
}

static void take_pairs(RewardCard *card, const RewardPair *pairs, size_t n) {
    Count all = {0}, strengths[N_STRENGTHS] = {{0}}, bins[CALIBRATION_BINS] = {{0}}, chosen = {0}, preferred = {0};
    double predicted[CALIBRATION_BINS] = {0};
    for (size_t i = 0; i < n; i++) {
        double apart = pairs[i].reward[0] - pairs[i].reward[1], longer = pairs[i].length[0] - pairs[i].length[1];
        double confidence = 1 / (1 + exp(-fabs(apart)));
        int bin = (int)((confidence - 0.5) * 2 * CALIBRATION_BINS), right = apart > 0;
        bin = bin < CALIBRATION_BINS ? bin : CALIBRATION_BINS - 1; /* a confidence of 1, and a NaN's */
        bin = bin < 0 ? 0 : bin;
        count(&all, right);
        count(&strengths[pairs[i].strength], right);
        count(&bins[bin], right);
        predicted[bin] += confidence;
        card->loss += (log1p(exp(-fabs(apart))) + (apart < 0 ? -apart : 0)) / (double)n;
        card->margin += apart / (double)n;
        if (longer == 0) continue;
        count(&chosen, longer > 0);
        count(&preferred, apart * longer > 0);
    }
    card->accuracy = share_of(all);
    card->longer_chosen = share_of(chosen);
    card->longer_preferred = share_of(preferred);
    for (int s = 0; s < N_STRENGTHS; s++) card->by_strength[s] = share_of(strengths[s]);
    for (int b = 0; b < CALIBRATION_BINS; b++) {
        card->bins[b].observed = share_of(bins[b]);
        if (bins[b].n == 0) continue;
        card->bins[b].predicted = predicted[b] / (double)bins[b].n;
        card->calibration_error +=
            (double)bins[b].n / (double)n * fabs(card->bins[b].predicted - card->bins[b].observed.share);
    }
}

int reward_card(RewardCard *card, const RewardPair *pairs, size_t n) {
    double *x = calloc(4 * n + 1, sizeof *x);
    Ranked *scratch = calloc(2 * n + 1, sizeof *scratch);
    *card = (RewardCard){.loss = 0};
    if (x && scratch) {
        take_rewards(card, pairs, n);
        take_pairs(card, pairs, n);
        correlate(card, pairs, n, x, x + 2 * n, scratch);
    }
    bool done = x && scratch;
    free(x);
    free(scratch);
    if (!done) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

/* ---- the worst ---- */

static int by_margin(const void *a, const void *b, void *context) {
    const RewardPair *pairs = context, *p = &pairs[*(const size_t *)a], *q = &pairs[*(const size_t *)b];
    double x = p->reward[0] - p->reward[1], y = q->reward[0] - q->reward[1];
    if (x != y) return x < y ? -1 : 1;
    return (p > q) - (p < q);
}

void reward_worst_first(size_t *order, const RewardPair *pairs, size_t n) {
    for (size_t i = 0; i < n; i++) order[i] = i;
    qsort_r(order, n, sizeof *order, by_margin, (void *)(uintptr_t)pairs);
}
