/* Products of bf16.h by oneDNN, where it was there at build time (CRIA_ONEDNN): a candidate in choice.def, and the
 * tests' second opinion. A primitive is made when a shape is met for the first time (this allocates, once) and kept. */
#ifndef CRIA_KERNELS_PRODUCTS_ONEDNN_H
#define CRIA_KERNELS_PRODUCTS_ONEDNN_H

#include "model/kernels/bf16.h"

/* False, with C untouched, where oneDNN is not there or does not do it: B of several views or not in bf16. Calls come
 * from one thread. */
bool onednn_product(const Product *product);
bool onednn_product_weight(float *dw, size_t dw_stride, const bf16 *dy, size_t dy_stride, const bf16 *x,
                           size_t x_stride, int n_tokens, int rows, int cols);

#endif
