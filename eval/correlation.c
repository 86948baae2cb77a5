/* See correlation.h. */
#include "eval/correlation.h"

#include <math.h>

double correlation(const double *x, const double *y, size_t n) {
    double sx = 0, sy = 0, sxx = 0, syy = 0, sxy = 0, m = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(x[i]) || isnan(y[i])) continue;
        m++;
        sx += x[i];
        sy += y[i];
    }
    for (size_t i = 0; i < n; i++) {
        if (isnan(x[i]) || isnan(y[i])) continue;
        double a = x[i] - sx / m, b = y[i] - sy / m;
        sxx += a * a;
        syy += b * b;
        sxy += a * b;
    }
    return sxx > 0 && syy > 0 ? sxy / sqrt(sxx * syy) : NAN;
}
