/* How far two things go together. */
#ifndef CRIA_EVAL_CORRELATION_H
#define CRIA_EVAL_CORRELATION_H

#include <stddef.h>

/* Pearson's; NaN where one of the two does not vary. Pairs with a NaN are left out. */
double correlation(const double *x, const double *y, size_t n);

/* By how much y grows with one of x, by least squares; NaN where x does not vary. Likewise of NaNs. */
double slope(const double *x, const double *y, size_t n);

#endif
