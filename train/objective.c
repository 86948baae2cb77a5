/* See objective.h. Extremes pass between ranks as integers of the same order. */
#include "train/objective.h"

#include <math.h>
#include <string.h>

#include "model/core/error.h"

void objective_add(const Objective *objective, ObjectiveSums *sums, int figure, double value, double weight) {
    double *sum = &sums->figure[figure];
    bool first = sums->figure_weight[figure] == 0;
    sums->figure_weight[figure] += weight;
    switch (objective->figures[figure].kind) {
    case FIGURE_MEAN:
        *sum += weight * value;
        break;
    case FIGURE_LEAST:
        *sum = first || !(value >= *sum) ? value : *sum;
        break; /* a NaN stays */
    case FIGURE_MOST:
        *sum = first || !(value <= *sum) ? value : *sum;
        break;
    }
}

void objective_add_loss(ObjectiveSums *sums, int source, double loss, double weight) {
    int row = source < OBJECTIVE_MAX_SOURCES ? source : OBJECTIVE_MAX_SOURCES - 1;
    sums->loss += weight * loss;
    sums->weight += weight;
    sums->scored += 1;
    sums->source_loss[row] += weight * loss;
    sums->source_weight[row] += weight;
}

/* An integer that is larger where the number is; its own inverse. */
static int64_t ordered(int64_t bits) {
    return bits < 0 ? bits ^ INT64_MAX : bits;
}

static int64_t ordered_number(double value) {
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return ordered(bits);
}

static double number_of(int64_t order) {
    double value;
    order = ordered(order);
    memcpy(&value, &order, sizeof value);
    return value;
}

int objective_sum(const Objective *objective, Mesh *mesh, ObjectiveSums *sums) {
    int64_t most[OBJECTIVE_MAX_FIGURES];
    int n = objective->n_figures, extremes = 0;
    for (int f = 0; f < n; f++) {
        bool least = objective->figures[f].kind == FIGURE_LEAST;
        double value = sums->figure_weight[f] > 0 ? sums->figure[f] : least ? INFINITY : -INFINITY;
        most[f] = ordered_number(least ? -value : value);
        extremes += objective->figures[f].kind != FIGURE_MEAN;
    }
    TRY(mesh_sum_f64(mesh, (double *)(void *)sums, OBJECTIVE_SUMS));
    if (extremes == 0) return OK;
    TRY(mesh_max_i64(mesh, most, (size_t)n));
    for (int f = 0; f < n; f++) {
        if (objective->figures[f].kind == FIGURE_MEAN) continue;
        double value = number_of(most[f]);
        sums->figure[f] = objective->figures[f].kind == FIGURE_LEAST ? -value : value;
    }
    return OK;
}

double objective_figure(const Objective *objective, const ObjectiveSums *sums, int figure) {
    double weight = sums->figure_weight[figure];
    if (weight == 0) return NAN;
    return objective->figures[figure].kind == FIGURE_MEAN ? sums->figure[figure] / weight : sums->figure[figure];
}
