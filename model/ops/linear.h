/* The three products of a weight, in the dtype of the tape's activations: what linear.c and qkv.c are made of. x is
 * [rows, K], y [rows, N], W[N, K]; dtype is DTYPE_F32 or DTYPE_BF16. */
#ifndef CRIA_OPS_LINEAR_H
#define CRIA_OPS_LINEAR_H

#include "model/kernels/kernels.h"
#include "model/ops/adapter.h"
#include "model/ops/ops.h"
#include "model/ops/registry.h"

/* Runs when rows of y are complete and still in cache, from several threads at once (bf16), or once (fp32). */
typedef void (*LinearFinish)(void *context, int first_row, int n_rows);

/* `scratch`: linear_scratch floats (NULL where that is 0). */
void linear_product(void *y, Dtype y_dtype, const void *x, const Weight *weight, Dtype dtype, int rows, float *scratch,
                    LinearFinish finish, void *context);
void linear_product_inputs(void *dx, bool accumulate, const void *dy, const Weight *weight, Dtype dtype, int rows,
                           float *scratch);
size_t linear_scratch(const Weight *weight, Dtype dtype);
void linear_product_weights(const Weight *weight, const void *dy, const void *x, Dtype dtype, int rows);

/* The outputs of a node that multiplies by `weight`: y, and where it has an adapter its inner rows, and with magnitudes
 * z (adapter.h). */
Tensor *linear_output(Tape *tape, Node *node, const Weight *weight);
/* y, the adapter's part included. */
void linear_forward(OpCall *call, int rows);
/* All of backward that is asked for, from the gradient of the product. */
void linear_backward(OpCall *call, const void *dz, bool inputs, bool weights, float *scratch);
double linear_flops(const Weight *weight, int rows);

/* "op: W is 3×4 and its input has width 5", or true. */
bool linear_fits(Tape *tape, const char *op, const Tensor *x, const Weight *weight);

#endif
