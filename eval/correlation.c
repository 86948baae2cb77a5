/* See correlation.h. */
#include "eval/correlation.h"

#include <math.h>

typedef struct {
    double xx, yy, xy; /* sums of products of differences from the means */
} Products;

static Products products(const double *x, const double *y, size_t n) {
    double sx = 0, sy = 0, m = 0;
    Products p = {0, 0, 0};
    for (size_t i = 0; i < n; i++) {
        if (isnan(x[i]) || isnan(y[i])) continue;
        m++;
        sx += x[i];
        sy += y[i];
    }
    for (size_t i = 0; i < n; i++) {
        if (isnan(x[i]) || isnan(y[i])) continue;
        double a = x[i] - sx / m, b = y[i] - sy / m;
        p.xx += a * a;
        p.yy += b * b;
        p.xy += a * b;
    }
    return p;
}

double correlation(const double *x, const double *y, size_t n) {
    Products p = products(x, y, n);
    return p.xx > 0 && p.yy > 0 ? p.xy / sqrt(p.xx * p.yy) : NAN;
}

double slope(const double *x, const double *y, size_t n) {
    Products p = products(x, y, n);
    return p.xx > 0 ? p.xy / p.xx : NAN;
}
