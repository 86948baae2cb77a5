/* The fast kernels with vectors of 16 floats. The Makefile gives this file its instruction set; on another architecture
 * it is empty. */
#include "model/kernels/fast/fast.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include "model/kernels/fast/arrays.h"
#include "model/kernels/fast/attention.h"
#include "model/kernels/fast/attention_backward.h"
#include "model/kernels/fast/attention_cached.h"
#include "model/kernels/fast/bf16_adamw.h"
#include "model/kernels/fast/bf16_attention.h"
#include "model/kernels/fast/bf16_head.h"
#include "model/kernels/fast/bf16_rows.h"
#include "model/kernels/fast/head.h"
#include "model/kernels/fast/norm.h"
#include "model/kernels/fast/rotary.h"
#include "model/kernels/fast/row_major_product.h"
#include "model/kernels/fast/swiglu.h"
#include "model/kernels/quantised_encode.h"
#include "model/kernels/fast/table.h"

bool avx512_kernels(Kernels *table) {
    fast_table(table);
    table->name = "avx512";
    return true;
}

void avx512_exponentials(float *exp_y, float *exp2_y, const float *x, size_t n) {
    simd_exp_array(exp_y, x, n);
    simd_exp2_array(exp2_y, x, n);
}
#else
bool avx512_kernels(Kernels *table) {
    (void)table;
    return false;
}

void avx512_exponentials(float *exp_y, float *exp2_y, const float *x, size_t n) {
    (void)exp_y, (void)exp2_y, (void)x, (void)n;
}
#endif
