/* What the reductions share: sums over a range of rows, in fp64, and their transpose. */
#ifndef CRIA_OPS_REDUCE_H
#define CRIA_OPS_REDUCE_H

#include "model/ops/elementwise.h"

/* y[j] = factor · Σ_r x[r, j] over rows begin … end-1. */
static inline void reduce_rows(float *y, const float *x, int begin, int end, int width, double factor) {
    for (size_t j = 0, stride = (size_t)width; j < stride; j++) {
        double sum = 0;
        for (size_t r = (size_t)begin; r < (size_t)end; r++) sum += (double)x[r * stride + j];
        y[j] = (float)(factor * sum);
    }
}

/* dx[r, j] = factor · dy[j] in each of those rows, written or added. */
static inline void spread_row(float *dx, bool accumulate, const float *dy, int begin, int end, int width,
                              double factor) {
    for (size_t r = (size_t)begin, stride = (size_t)width; r < (size_t)end; r++)
        for (size_t j = 0; j < stride; j++)
            put_gradient(dx, accumulate, r * stride + j, (float)(factor * (double)dy[j]));
}

/* 1/n, and 0 for nothing: the mean of no rows is 0. */
static inline double mean_factor(int n) {
    return n > 0 ? 1.0 / n : 0.0;
}

#endif
