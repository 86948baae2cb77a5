/* The logistic function and its logarithm in fp64, accurate at both ends: what losses on preferences are made of. */
#ifndef CRIA_TRAIN_LOGISTIC_H
#define CRIA_TRAIN_LOGISTIC_H

#include <math.h>

static inline double sigmoid(double x) {
    double e = exp(-fabs(x));
    return (x >= 0 ? 1 : e) / (1 + e);
}

static inline double log_sigmoid(double x) {
    return (x < 0 ? x : 0) - log1p(exp(-fabs(x)));
}

#endif
