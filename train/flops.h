/* What a model's forward pass takes, from its shape alone: for predictions, and for shares of a measured time. The tape
 * counts the same when it is replayed (tape_forward_flops). Backward takes twice as much. */
#ifndef CRIA_TRAIN_FLOPS_H
#define CRIA_TRAIN_FLOPS_H

#include <stddef.h>

#include "model/core/dtype.h"
#include "model/shape.h"

/* Floating-point operations of one token in sequences of `context`. */
typedef struct {
    double matrices;  /* of all layers */
    double attention; /* of all layers: causal, so (context + 1) / 2 keys a query on average */
    double head;
} ForwardFlops;

ForwardFlops forward_flops(const LlamaShape *shape, int context);

static inline double forward_flops_total(ForwardFlops flops) {
    return flops.matrices + flops.attention + flops.head;
}

/* Bytes of memory that one token's norms and SwiGLUs of all layers read and write when they are computed again
 * (train.recompute: norms), activations of `activation_bytes` a number; the residual stream is fp32. */
double recomputed_norm_bytes(const LlamaShape *shape, size_t activation_bytes);

/* Bytes of memory that AdamW's pass moves for a parameter: it reads parameter, gradient and two moments, writes
 * parameter, moments and a cleared gradient, and two packings where they are kept (padding left out; norms, which have
 * none, are few). */
double adamw_bytes_per_parameter(bool packed, Dtype moments);

#endif
