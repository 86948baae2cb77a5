/* What the elementwise ops share: the shape rules, and the number of live elements. */
#ifndef CRIA_OPS_ELEMENTWISE_H
#define CRIA_OPS_ELEMENTWISE_H

#include "model/ops/ops.h"
#include "model/ops/registry.h"

/* One fp32 input -> one output of its shape. */
Tensor *elementwise_unary(Tape *tape, const OpSpec *spec, Tensor *x, const void *attributes, size_t attributes_size);
/* Two fp32 inputs of one shape -> one output of that shape. */
Tensor *elementwise_binary(Tape *tape, const OpSpec *spec, Tensor *a, Tensor *b);

static inline size_t elementwise_count(const OpCall *call) {
    const Tensor *x = call->node->inputs[0];
    return (size_t)batch_rows(call->batch, x->rows) * (size_t)x->width;
}

/* Overwrites or adds, as the plan wants it. */
static inline void put_gradient(float *gradient, bool accumulate, size_t i, float value) {
    gradient[i] = accumulate ? gradient[i] + value : value;
}

#endif
