/* The figures of one step, or of a validation, before they are written. */
#ifndef CRIA_TRAIN_LOOP_FIGURES_H
#define CRIA_TRAIN_LOOP_FIGURES_H

#include "data/loader.h"
#include "train/console/metrics.h"
#include "train/objectives/objective.h"

enum { FIGURES_MOST = 16 + OBJECTIVE_MAX_SOURCES + OBJECTIVE_MAX_METRICS, FIGURES_NAME = 128 };

typedef struct {
    Metric rows[FIGURES_MOST];
    char source_names[OBJECTIVE_MAX_SOURCES][FIGURES_NAME], own_names[OBJECTIVE_MAX_METRICS][FIGURES_NAME];
    size_t n;
} Figures;

/* The name must stay. At most 16 of these. */
void figures_put(Figures *figures, const char *name, double value);
/* The objective's own. */
void figures_put_own(Figures *figures, const char *prefix, const Objective *objective, const ObjectiveSums *sums);
/* "PREFIX/NAME" for every one of n sources that has tokens, where there are several. */
void figures_put_sources(Figures *figures, const char *prefix, int n, const ObjectiveSums *sums, const Loader *loader,
                         const char *(*name_of)(const Loader *, int));

#endif
