/* See figures.h. */
#include "train/loop/figures.h"

#include <stdio.h>

void figures_put(Figures *figures, const char *name, double value) {
    figures->rows[figures->n++] = (Metric){.name = name, .value = value};
}

void figures_put_own(Figures *figures, const char *prefix, const Objective *objective, const ObjectiveSums *sums) {
    for (int i = 0; i < objective->n_metrics; i++) {
        if (!objective->metrics[i] || !(sums->metric_weight[i] > 0)) continue;
        snprintf(figures->own_names[i], FIGURES_NAME, "%s%s", prefix, objective->metrics[i]);
        figures_put(figures, figures->own_names[i], sums->metric[i] / sums->metric_weight[i]);
    }
}

void figures_put_sources(Figures *figures, const char *prefix, int n, const ObjectiveSums *sums, const Loader *loader,
                         const char *(*name_of)(const Loader *, int)) {
    for (int s = 0; s < n && n > 1 && s < OBJECTIVE_MAX_SOURCES; s++) {
        bool rest = n > OBJECTIVE_MAX_SOURCES && s == OBJECTIVE_MAX_SOURCES - 1;
        snprintf(figures->source_names[s], FIGURES_NAME, "%s/%s", prefix, rest ? "others" : name_of(loader, s));
        if (sums->source_weight[s] > 0)
            figures_put(figures, figures->source_names[s], sums->source_loss[s] / sums->source_weight[s]);
    }
}
