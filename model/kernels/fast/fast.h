/* What the fast sets give the table: each function replaces the rows it has. */
#ifndef CRIA_KERNELS_FAST_H
#define CRIA_KERNELS_FAST_H

#include "model/kernels/kernels.h"

/* OpenBLAS, on any CPU. openblas_start sets its threads and warns of a build that does not use OpenMP. */
void openblas_start(void);
void openblas_gemm(bool trans_a, bool trans_b, int m, int n, int k, float alpha, const float *a, size_t lda,
                   const float *b, size_t ldb, float beta, float *c, size_t ldc);

/* Tokens whose logits [tokens, vocab] are held at a time: 256 with 32,000 words. */
enum { HEAD_BLOCK_MAX = 512 };
int head_block_tokens(int n_tokens, int vocab);

/* Tokens whose part of a norm's dw is summed in fp32, one after the other; the parts are added in fp64. */
enum { NORM_CHUNK = 32 };

/* Attention's backward pass in bf16: floats of a thread's slot of the scratch, for keys of up to n_tokens, padded to
 * tiles of 64: fp32 sums of dk and dv, three packings in bf16, and a tile more. */
size_t attention_slot(int n_tokens, int head_dim);

/* False where this build has no such set (another architecture). The caller knows that the CPU can run it. */
bool avx2_kernels(Kernels *table);
bool avx512_kernels(Kernels *table);
bool avx512bf16_kernels(Kernels *table);
bool amx_kernels(Kernels *table);

/* The sets' own exponentials, elementwise: e^x and 2^x. For the tests that measure their error. */
void avx2_exponentials(float *exp_y, float *exp2_y, const float *x, size_t n);
void avx512_exponentials(float *exp_y, float *exp2_y, const float *x, size_t n);

#endif
