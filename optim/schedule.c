/* Learning rate by step; the formulas and their sources stand in optim/optimizer.h. */
#include <math.h>

#include "model/core/error.h"
#include "optim/optimizer.h"

static const double PI = 3.14159265358979323846;

int schedule_check(const Schedule *schedule) {
    if (!(schedule->peak >= 0 && schedule->peak < INFINITY))
        FAIL(ERR_USAGE, "schedule: the learning rate is %g; it must be a number of at least 0", schedule->peak);
    if (!(schedule->final_ratio >= 0 && schedule->final_ratio <= 1))
        FAIL(ERR_USAGE, "schedule: the final ratio is %g; it must be between 0 and 1", schedule->final_ratio);
    if (schedule->warmup < 0 || schedule->total < 0 || schedule->decay < 0)
        FAIL(ERR_USAGE, "schedule: warmup %lld, total %lld and decay %lld are steps; none may be negative",
             (long long)schedule->warmup, (long long)schedule->total, (long long)schedule->decay);
    return OK;
}

/* How far `step` is on the way from `begin` to `end`, 0 to 1. */
static double progress(int64_t step, int64_t begin, int64_t end) {
    if (step >= end) return 1;
    if (step <= begin) return 0;
    return (double)(step - begin) / (double)(end - begin);
}

/* Of the way down from the peak to the final rate, what is left: 1 to 0. */
static double remaining(const Schedule *schedule, int64_t step) {
    int64_t warmup = schedule->warmup, total = schedule->total;
    switch (schedule->kind) {
    case SCHEDULE_CONSTANT:
        return 1;
    case SCHEDULE_LINEAR:
        return 1 - progress(step, warmup, total);
    case SCHEDULE_COSINE:
        return (1 + cos(PI * progress(step, warmup, total))) / 2;
    case SCHEDULE_WSD: {
        int64_t decline = total - schedule->decay;
        return 1 - sqrt(progress(step, decline > warmup ? decline : warmup, total));
    }
    }
    return 1;
}

double schedule_at(const Schedule *schedule, int64_t step) {
    if (step < schedule->warmup) return schedule->peak * (double)(step + 1) / (double)schedule->warmup;
    double ratio = schedule->final_ratio;
    return schedule->peak * (ratio + (1 - ratio) * remaining(schedule, step));
}
