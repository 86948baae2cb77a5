/* The low-rank addition to a weight's product, for linear.c and qkv.c. x is [rows, K], y and its gradient dz [rows, N],
 * u = x·Aᵀ [rows, n·rank], kept from forward to backward; all of one dtype, fp32 or bf16. */
#ifndef CRIA_OPS_ADAPTER_H
#define CRIA_OPS_ADAPTER_H

#include "model/ops/registry.h"

/* Width of u; 0 where the weight has no adapter. */
int adapter_width(const Weight *weight);
/* Floats of scratch for the two below. */
size_t adapter_scratch(const Weight *weight, int rows);

/* u = x·Aᵀ; y += scale·u·Bᵀ. */
void adapter_forward(void *y, void *u, const void *x, const Weight *weight, Dtype dtype, int rows, float *scratch);
/* du = scale·dz·B; dx += du·A (dx NULL: not wanted); with `weights`, dA += duᵀ·x and dB += scale·dzᵀ·u. */
void adapter_backward(void *dx, const void *dz, const void *x, const void *u, const Weight *weight, bool weights,
                      Dtype dtype, int rows, float *scratch);

#endif
