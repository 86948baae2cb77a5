/* The low-rank addition to a weight's product, for linear.c and qkv.c. x is [rows, K], y and its gradient dz [rows, N],
 * u = x·Aᵀ [rows, n·rank], kept from forward to backward; all of one dtype, fp32 or bf16. While training with dropout
 * the addition reads x' = x∘mask/(1-p) in place of x (dropout.c); with magnitudes the sum is z, and y = gain∘z
 * (dora.c).
 */
#ifndef CRIA_OPS_ADAPTER_H
#define CRIA_OPS_ADAPTER_H

#include "model/ops/registry.h"

/* Width of u; 0 where the weight has no adapter. */
int adapter_width(const Weight *weight);
/* Floats of scratch that forward and backward of a node with an adapter want. */
size_t adapter_scratch(const Node *node, int rows);

/* u = x·Aᵀ; y += scale·u·Bᵀ. */
void adapter_forward(OpCall *call, void *y, int rows);
/* du = scale·dz·B; dx += du·A (dx NULL: not wanted); with `weights`, dA += duᵀ·x and dB += scale·dzᵀ·u. */
void adapter_backward(OpCall *call, void *dx, const void *dz, bool weights, int rows, float *scratch);

/* The same in two steps, for products in blocks (the head). inner: u = scale·x'·Aᵀ, and where dropout applies x' goes
 * to `dropped` (adapter_dropped floats). inner_backward, from the gradient du of that u, which it scales in place:
 * dx += du·A (NULL: not wanted); with `weights`, dA += duᵀ·x'. */
void adapter_inner(OpCall *call, void *u, int rows, float *dropped);
void adapter_inner_backward(OpCall *call, void *dx, void *du, bool weights, int rows, float *dropped);
size_t adapter_inner_floats(const Weight *weight, Dtype dtype, int rows); /* of u, in floats */
size_t adapter_dropped_floats(const Weight *weight, Dtype dtype, int rows);
/* The addition to the fp32 product y of `rows` rows, magnitudes included; scratch as adapter_logits_scratch. */
void adapter_logits(OpCall *call, float *y, int rows, float *scratch);
size_t adapter_logits_scratch(const Weight *weight, Dtype dtype, int rows);
/* Floating-point operations of one forward of so many rows. */
double adapter_flops(const Weight *weight, int rows);

/* ---- dropout.c ---- */

bool dropout_applies(const OpCall *call);
/* to = x∘mask/(1-p), or to += that; [rows, K] of the tokens' rows. */
void dropout_rows(const OpCall *call, void *to, const void *x, bool add, int rows);

/* ---- dora.c ---- */

/* Floats of the gradient of z. */
size_t dora_scratch(const Weight *weight, Dtype dtype, int rows);
bool has_magnitudes(const Weight *weight);
/* The values of the adapter or its weight have changed. */
void adapter_changed(Weight *weight);
/* norms and gains, where they are not current. `scratch`: dora_refresh_scratch floats. */
void dora_refresh(Weight *weight, float *scratch);
/* The same of an embedding whose rows come from elsewhere: `read` puts n of them from `first` on into [n, cols]. */
typedef int (*DoraRows)(void *context, int first, int n, float *rows);
int dora_columns(Weight *weight, DoraRows read, void *context, float *scratch);
size_t dora_refresh_scratch(const Weight *weight);
/* y = gain∘z */
void dora_forward(void *y, const void *z, const Weight *weight, Dtype dtype, int rows);
/* to = gain∘dy, the gradient of z; with `weights`, dm += Σ dy∘z / norm. */
void dora_backward(void *to, const void *dy, const void *z, Weight *weight, bool weights, Dtype dtype, int rows);

#endif
