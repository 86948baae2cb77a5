/* What all objectives share. Extremes among their metrics pass between ranks as integers of the same order. */
#include "train/objectives/objective.h"

#include <math.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"

int objective_made(Objective **objective, int rc) {
    if (rc == OK) return OK;
    (*objective)->free(*objective);
    *objective = NULL;
    return rc;
}

void objective_tell(Objective *self, int64_t step, const Text *found) {
    if (found->length) text_append(&self->remarks, found->bytes, found->length);
    for (const char *line = found->bytes; line && *line;) {
        size_t n = strcspn(line, "\n");
        log_warning("step %lld: %.*s", (long long)step, (int)n, line);
        line += n + (line[n] == '\n');
    }
}

/* ---- extremes ---- */

static bool is_extreme(const Objective *objective, int metric) {
    return ((objective->least | objective->most) >> metric & 1) != 0;
}

void objective_extreme(const Objective *objective, ObjectiveSums *sums, int metric, double value) {
    bool least = (objective->least >> metric & 1) != 0, first = sums->metric_weight[metric] == 0;
    double *extreme = &sums->metric[metric];
    if (first || isnan(value) || (least ? value < *extreme : value > *extreme)) *extreme = value;
    sums->metric_weight[metric] = 1;
}

/* Larger where the number is; its own inverse. */
static int64_t reorder(int64_t bits) {
    return bits < 0 ? bits ^ INT64_MAX : bits;
}

static int64_t order_of(double value) {
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return reorder(bits);
}

static double number_of(int64_t order) {
    double value;
    order = reorder(order);
    memcpy(&value, &order, sizeof value);
    return value;
}

int objective_share_extremes(const Objective *objective, Mesh *mesh, ObjectiveSums *sums) {
    int64_t most[OBJECTIVE_MAX_METRICS];
    if ((objective->least | objective->most) == 0 || mesh_size(mesh) == 1) return OK;
    for (int i = 0; i < objective->n_metrics; i++) {
        double sign = (objective->least >> i & 1) ? -1 : 1;
        most[i] = order_of(sums->metric_weight[i] > 0 ? sign * sums->metric[i] : -INFINITY);
    }
    TRY(mesh_max_i64(mesh, most, (size_t)objective->n_metrics));
    for (int i = 0; i < objective->n_metrics; i++) {
        if (!is_extreme(objective, i)) continue;
        double sign = (objective->least >> i & 1) ? -1 : 1, value = sign * number_of(most[i]);
        bool mine = mesh_rank(mesh) == 0 && most[i] != order_of(-INFINITY);
        sums->metric[i] = mine ? value : 0;
        sums->metric_weight[i] = mine ? 1 : 0;
    }
    return OK;
}
