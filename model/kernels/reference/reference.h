/* The plain C kernels, one per row of the table in kernels.h: what every faster kernel is tested against, and what runs
 * on a CPU that has nothing better. One file per family: gemm.c, norm.c, rotary.c, attention.c, swiglu.c, head.c,
 * adamw.c, reduce.c. Sums run in fp64.
 */
#ifndef CRIA_KERNELS_REFERENCE_H
#define CRIA_KERNELS_REFERENCE_H

#include "model/kernels/kernels.h"

void reference_gemm(bool trans_a, bool trans_b, int m, int n, int k, float alpha, const float *a, size_t lda,
                    const float *b, size_t ldb, float beta, float *c, size_t ldc);

void reference_row_major_product(float *y, size_t y_stride, const float *x, size_t x_stride, int m, const RowMajor *w);

void reference_rmsnorm_forward(float *y, float *rstd, const float *x, const float *w, int n_tokens, int width,
                               float eps);

void reference_add_rmsnorm_forward(float *sum, float *y, float *rstd, const float *x, const float *delta,
                                   const float *w, int n_tokens, int width, float eps);
void reference_add_rmsnorm_backward(float *dx, bool accumulate, float *ddelta, float *dw, const float *dsum,
                                    const float *dy, const float *sum, const float *w, const float *rstd, int n_tokens,
                                    int width, float *scratch);

void reference_rotary(float *x, size_t stride, int n_tokens, int n_heads, int head_dim, const int32_t *positions,
                      const float *cos_table, const float *sin_table, bool inverse);

void reference_attention_forward(float *out, float *lse, const AttentionInputs *in, Segments segments);
void reference_attention_backward(float *dq, float *dk, float *dv, bool accumulate, const float *dout, const float *out,
                                  const float *lse, const AttentionInputs *in, Segments segments, float *scratch);
void reference_cache_store(float *keys, float *values, const float *k, const float *v, const CachedAttention *c);
void reference_attention_cached(float *out, const float *q, const float *keys, const float *values,
                                const CachedAttention *c);

void reference_swiglu_forward(float *y, const float *gate_up, int n_tokens, int width);
void reference_swiglu_backward(float *dgate_up, bool accumulate, const float *dy, const float *gate_up, int n_tokens,
                               int width);

/* What the references of the head share: the results of token t from its row of logits, and of one that the mask leaves
 * out. */
void reference_token_results(HeadResults out, int t, const float *z, int vocab, int target);
void reference_token_skipped(HeadResults out, int t);
void reference_head_forward(HeadResults out, const float *x, const float *w, const HeadAdapter *adapter,
                            const int32_t *targets, const float *mask, int n_tokens, int width, int vocab,
                            float logit_scale, float *scratch);
void reference_head_backward(float *dx, bool accumulate, float *dw, const float *dlogprob, const float *x,
                             const float *w, const HeadAdapter *adapter, const float *lse, const int32_t *targets,
                             int n_tokens, int width, int vocab, float logit_scale, float *scratch);
void reference_head_forward_backward(HeadResults out, float *dx, float *dw, const float *dlogprob, const float *x,
                                     const float *w, const HeadAdapter *adapter, const int32_t *targets, int n_tokens,
                                     int width, int vocab, float logit_scale, float *scratch);

double reference_softmax_weights(float *weights, float *top, const float *x, size_t n, float scale);

void reference_adamw(float *param, float *m, float *v, const float *grad, size_t n, AdamwStep step);
double reference_sum_of_squares(const float *x, size_t n);
void reference_add(float *y, const float *a, const float *b, size_t n);

/* B(lane, d), packed or taken from its rows and rounded as packing does. */
float reference_panels_at(const Panels *b, int lane, int d);

/* The rows of bf16.h. */
void reference_bf16_products(Bf16Kernels *table);
void reference_bf16_rows(Bf16Kernels *table); /* norms, rotary, SwiGLU */
void reference_bf16_attention(Bf16Kernels *table);
void reference_bf16_attention_forward(bf16 *out, float *lse, const AttentionInputsBf16 *in, Segments segments);
void reference_bf16_attention_backward(bf16 *dq, bf16 *dk, bf16 *dv, bool accumulate, const bf16 *dout, const bf16 *out,
                                       const float *lse, const AttentionInputsBf16 *in, Segments segments,
                                       float *scratch);
void reference_bf16_cache_store(bf16 *keys, bf16 *values, const bf16 *k, const bf16 *v, const CachedAttention *c);
void reference_bf16_attention_cached(bf16 *out, const bf16 *q, const bf16 *keys, const bf16 *values,
                                     const CachedAttention *c);
void reference_bf16_head(Bf16Kernels *table);
void reference_bf16_adamw(Bf16Kernels *table);

#endif
