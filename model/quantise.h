/* Filling quantised matrices, a slice of fp32 at a time, by all threads. */
#ifndef CRIA_MODEL_QUANTISE_H
#define CRIA_MODEL_QUANTISE_H

#include "model/formats/named.h"
#include "model/kernels/quantised.h"

/* ERR_REFUSED, naming it, where the matrix has an infinite number or NaN. Elements come from `fill` in ascending
 * slices, or from memory of a floating dtype: of a mapped file what comes next is read meanwhile. */
int quantise_fill(Quantised *q, const char *name, NamedFill fill, void *context);
int quantise_memory(Quantised *q, const char *name, const void *data, Dtype dtype);

#endif
