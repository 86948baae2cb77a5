/* A share, and how sure it is. */
#ifndef CRIA_EVAL_PROPORTION_H
#define CRIA_EVAL_PROPORTION_H

#include <stdint.h>

/* A share of n and its 95 % interval (Wilson 1927, score interval without continuity correction): 0 to 1 where n is 0.
 */
typedef struct {
    int64_t n, right;
    double share, low, high;
} Proportion;
Proportion proportion(int64_t right, int64_t n);

#endif
