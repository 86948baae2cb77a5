/* The fast kernels with vectors of 16 floats. The Makefile gives this file its instruction set; on another architecture
 * it is empty. */
#include "model/kernels/fast.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include "model/kernels/fast_arrays.h"
#include "model/kernels/fast_attention.h"
#include "model/kernels/fast_attention_backward.h"
#include "model/kernels/fast_attention_cached.h"
#include "model/kernels/fast_bf16_adamw.h"
#include "model/kernels/fast_bf16_attention.h"
#include "model/kernels/fast_bf16_head.h"
#include "model/kernels/fast_bf16_rows.h"
#include "model/kernels/fast_head.h"
#include "model/kernels/fast_norm.h"
#include "model/kernels/fast_rotary.h"
#include "model/kernels/fast_swiglu.h"
#include "model/kernels/fast_table.h"

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
