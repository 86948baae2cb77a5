/* Which implementation serves which product: a committed table (choice.def) asked with the shape alone, so that a run
 * that is resumed computes the same bits. */
#ifndef CRIA_KERNELS_PRODUCTS_CHOICE_H
#define CRIA_KERNELS_PRODUCTS_CHOICE_H

#include "model/kernels/bf16.h"

typedef enum { BY_AVX512BF16, BY_AMX, BY_ONEDNN, BY_COUNT } ProductBy;
typedef enum { KIND_PACKED, KIND_FROZEN, KIND_WEIGHT, KIND_BLOCK, KIND_BLOCK_T, KIND_COUNT } ProductKind;

/* m, lanes and depth as choice.def names them for the kind. */
ProductBy product_choice(ProductBy set, ProductKind kind, int m, int lanes, int depth);

/* Takes the table's products for what `set` itself does (BY_AVX512BF16 or BY_AMX), and puts rows in their place that
 * follow choice.def. What oneDNN should compute and cannot, the set computes itself. */
void product_choices(Bf16Kernels *table, ProductBy set);

/* The products that a set itself gave; NULL: none. */
const Bf16Kernels *product_own(ProductBy set);

#endif
