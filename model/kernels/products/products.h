/* Matrix products in bf16 (see bf16.h), by instruction set: each function replaces the rows of the table it has. The
 * caller knows that the CPU can run the set. */
#ifndef CRIA_KERNELS_PRODUCTS_H
#define CRIA_KERNELS_PRODUCTS_H

#include "model/kernels/kernels.h"

void avx2_products(Bf16Kernels *table);
void avx512_products(Bf16Kernels *table);
void avx512bf16_products(Bf16Kernels *table);
void amx_products(Bf16Kernels *table);

#endif
