/* The numerical kernels: raw arrays in, raw arrays out. Nothing here allocates, fails, or knows of tensors; shapes were
 * checked when the tape was recorded.
 *
 * Every kernel has a plain C reference (reference_*.c); faster ones (avx2_*.c, avx512_*.c) replace rows of the table at
 * start-up according to the CPU's feature bits. Callers go through kernels()->name(…). Kernels use the threads of
 * model/core/threads.h themselves; calls come from one thread.
 *
 * Shapes: T tokens (live rows), D width, F hidden width, H query heads, KV key/value heads, HD head width, V
 * vocabulary. All arrays row-major fp32. `stride` arguments are in elements between rows. `accumulate` false: the
 * output is overwritten; true: added to. Weight gradients (dw) are always added to. Backward kernels may be given NULL
 * for an output that is not wanted.
 *
 * Determinism: for one table and one number of threads, every result is bitwise repeatable; sums over tokens run over
 * fixed chunks in index order.
 */
#ifndef CRIA_KERNELS_KERNELS_H
#define CRIA_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/kernels/bf16.h"

/* One flat run of tokens: segment s owns rows segment_start[s] … segment_start[s+1]-1; n_segments + 1 entries. */
typedef struct Segments {
    int n_segments;
    const int32_t *segment_start;
} Segments;

/* q[T, H*HD], k and v[T, KV*HD] at their own strides, so that all three may lie in one QKV row. Query head h reads
 * key/value head h / (H/KV). scale is 1/sqrt(HD) usually. */
typedef struct {
    int n_heads, n_kv_heads, head_dim;
    float scale;
    const float *q, *k, *v;
    size_t q_stride, kv_stride;
} AttentionInputs;

/* Attention over a cache, for generation. Keys and values are in pages of CACHE_PAGE positions, KV·CACHE_PAGE·HD
 * elements each, which only a table's own cache_store writes and attention_cached reads: how they lie in a page is its
 * own business. Position p of sequence s is in page pages[s·page_stride + p / CACHE_PAGE] (Kwon et al. 2023, section
 * 4.1). Row t is at positions[t] of sequence slots[t]. Rows of one sequence that follow one another are computed
 * together. What a row gets depends on its sequence, on its position and on the rows of its own sequence that come with
 * it, never on others. */
enum { CACHE_PAGE = 64 };
typedef struct CachedAttention {
    int n_tokens, n_heads, n_kv_heads, head_dim;
    float scale;
    size_t stride;                    /* elements between rows of q, of k and of v */
    const int32_t *positions, *slots; /* [T] */
    const int32_t *pages;             /* [sequences, page_stride] */
    size_t page_stride;
    size_t page_size; /* elements from a page's keys to the next one's, and of values: at least KV·CACHE_PAGE·HD */
} CachedAttention;

/* One AdamW step (Loshchilov and Hutter 2019, algorithm 2, as in PyTorch: decay multiplies the weight by 1 - lr·wd
 * before the update; update = m̂ / (sqrt(v̂) + eps)). grad_scale multiplies the gradient first (clipping). */
typedef struct AdamwStep {
    double learning_rate, beta1, beta2, epsilon, weight_decay; /* fp64: 1 - beta2 loses digits in fp32 */
    double bias_correction1, bias_correction2;                 /* 1 - beta^step */
    double grad_scale;
} AdamwStep;

/* Per-token results of the head. Arrays of T; entropy, top1 and mean_logit may be NULL. A skipped token gets 0 (top1:
 * -1), and its target is not looked at. NaN or +infinity among the logits gives lse and logprob NaN. */
typedef struct HeadResults {
    float *logprob; /* log softmax(logits)[target] */
    float *lse;     /* log-sum-exp of the logits */
    float *entropy; /* nats */
    int32_t *top1;  /* argmax, lowest id among equals; with NaN among the logits, any id */
    float *mean_logit;
} HeadResults;

/* A low-rank addition to the head's matrix, and what it gets back (LoRA: Hu et al. 2022; with gains DoRA: Liu et al.
 * 2024): logits = gain∘(x·wᵀ + u·bᵀ)·logit_scale. u, du: fp32 for the fp32 kernels, bf16 for those of bf16. */
typedef struct HeadAdapter {
    int rank;
    const void *u;            /* [T, rank], the adapter's scale multiplied in */
    const float *b;           /* [V, rank]; for the bf16 kernels its packings instead: */
    Panels forward, backward; /* lanes V, depth rank; lanes rank, depth V */
    const float *gains;       /* [V], or NULL: all are 1 */
    void *du;                 /* [T, rank], overwritten (skipped tokens: 0); NULL where no gradients are wanted */
    float *db;                /* [V, rank], added to; NULL: not wanted */
    float *dlog_gains;        /* [V], with db and gains added to: Σ_t logit·dL/dlogit = gain·dL/dgain */
} HeadAdapter;

typedef struct {
    const char *name; /* "reference", "openblas", "avx2", "avx512", "avx512bf16", "amx": the last that gave a row */

    /* C[M,N] = alpha·op(A)·op(B) + beta·C, row-major (OpenBLAS; the reference is a triple loop with fp64 sums). */
    void (*gemm)(bool trans_a, bool trans_b, int m, int n, int k, float alpha, const float *a, size_t lda,
                 const float *b, size_t ldb, float beta, float *c, size_t ldc);

    /* y[m, rows] = x[m, cols]·Wᵀ in fp32 for few rows of x, of a W in fewer bits, which is read once for every 8 of
     * them as it lies. A row of y does not depend on m. Strides: elements between rows. */
    void (*row_major_product)(float *y, size_t y_stride, const float *x, size_t x_stride, int m, const RowMajor *w);

    /* y = x / sqrt(mean(x²) + eps) · w; rstd[T] is kept for backward (NULL when not training). Zhang & Sennrich 2019.
     */
    void (*rmsnorm_forward)(float *y, float *rstd, const float *x, const float *w, int n_tokens, int width, float eps);

    /* Rotary embedding in place on n_heads heads of each row (Su et al. 2021), Hugging Face's half-split layout:
     * element i pairs with i + HD/2. cos, sin: tables [positions, HD/2]. inverse rotates back (the backward pass). */
    void (*rotary)(float *x, size_t stride, int n_tokens, int n_heads, int head_dim, const int32_t *positions,
                   const float *cos_table, const float *sin_table, bool inverse);

    /* Causal grouped-query attention within each segment; lse[T,H] is kept for backward (never T×T). out[T, H*HD]. */
    void (*attention_forward)(float *out, float *lse, const AttentionInputs *in, Segments segments);
    /* dq, dk, dv have the strides of q, k, v. `scratch` has attention_backward_scratch() floats. */
    void (*attention_backward)(float *dq, float *dk, float *dv, bool accumulate, const float *dout, const float *out,
                               const float *lse, const AttentionInputs *in, Segments segments, float *scratch);
    /* Keys and values k, v[T, KV*HD] of rows go to their places in the cache. Positions of a sequence are stored in
     * order. */
    void (*cache_store)(float *keys, float *values, const float *k, const float *v, const CachedAttention *c);
    /* out[T, H*HD], of q[T, H*HD] whose sequences' positions 0…positions[t] are stored. */
    void (*attention_cached)(float *out, const float *q, const float *keys, const float *values,
                             const CachedAttention *c);

    /* y[T,F] = silu(gate)·up, gate_up[T,2F] = gate | up (Shazeer 2020). dgate_up may alias nothing. */
    void (*swiglu_forward)(float *y, const float *gate_up, int n_tokens, int width);
    void (*swiglu_backward)(float *dgate_up, bool accumulate, const float *dy, const float *gate_up, int n_tokens,
                            int width);

    /* The head: logits = x[T,D]·w[V,D]ᵀ · logit_scale, in blocks that never leave cache. Tokens with mask[t] == 0 are
     * skipped (mask NULL: none). `adapter`: what is added to w, or NULL. `scratch` has head_scratch() floats. */
    void (*head_forward)(HeadResults out, const float *x, const float *w, const HeadAdapter *adapter,
                         const int32_t *targets, const float *mask, int n_tokens, int width, int vocab,
                         float logit_scale, float *scratch);
    /* Given dlogprob[t] = dL/d logprob (0: skipped): dx (accumulate or not; rows of skipped tokens are zeroed when not
     * accumulating) and dw (added to; either may be NULL). Recomputes the logits from lse. */
    void (*head_backward)(float *dx, bool accumulate, float *dw, const float *dlogprob, const float *x, const float *w,
                          const HeadAdapter *adapter, const float *lse, const int32_t *targets, int n_tokens, int width,
                          int vocab, float logit_scale, float *scratch);
    /* Both at once, logits computed once, for gradients known beforehand (dlogprob is also the mask). dx overwritten.
     * The results are those of head_forward. */
    void (*head_forward_backward)(HeadResults out, float *dx, float *dw, const float *dlogprob, const float *x,
                                  const float *w, const HeadAdapter *adapter, const int32_t *targets, int n_tokens,
                                  int width, int vocab, float logit_scale, float *scratch);

    /* What a sampler draws from: weights[i] = e^(scale·(x[i] − top)), top = max x; returns their sum. NaN where x has a
     * NaN or +infinity, or nothing finite. */
    double (*softmax_weights)(float *weights, float *top, const float *x, size_t n, float scale);

    void (*adamw)(float *param, float *m, float *v, const float *grad, size_t n, AdamwStep step);
    /* Sum of squares in fp64: fixed chunks of 65,536 elements, each summed alone, chunk sums added in index order: the
     * same for any number of threads. Infinity or NaN in, the same out. */
    double (*sum_of_squares)(const float *x, size_t n);
    /* y = a + b (y may be a or b) */
    void (*add)(float *y, const float *a, const float *b, size_t n);
    /* sum = x + delta (sum may be x), y = its RMSNorm; and backward: as bf16.h says of its own, all in fp32. */
    void (*add_rmsnorm_forward)(float *sum, float *y, float *rstd, const float *x, const float *delta, const float *w,
                                int n_tokens, int width, float eps);
    void (*add_rmsnorm_backward)(float *dx, bool accumulate, float *ddelta, float *dw, const float *dsum,
                                 const float *dy, const float *sum, const float *w, const float *rstd, int n_tokens,
                                 int width, float *scratch);

    /* quantised_encode (quantised.h); the same bits in every table. */
    bool (*quantise)(const struct Quantised *q, size_t first, size_t n, const float *values, float *absmax);

    Bf16Kernels bf16;
} Kernels;

const Kernels *kernels(void);

/* Fills the table. `which`: "auto" (CPU features; the environment's CRIA_KERNELS overrides), "reference", "openblas"
 * (the reference with OpenBLAS's products), "avx2", "avx512". ERR_USAGE for an unknown name, ERR_REFUSED for one this
 * CPU cannot run. After threads_init. */
int kernels_select(const char *which);

/* Whether the selected table multiplies bf16 numbers by instructions made for it. */
bool kernels_have_bf16(void);

/* Floats of scratch for the kernels above, for any table and the current number of threads. */
size_t attention_backward_scratch(int n_tokens, int n_heads, int head_dim);
/* rank: of the head's adapter; 0: none. */
size_t head_scratch(int n_tokens, int width, int rank, int vocab);

/* Rotary tables [n_positions, head_dim/2] of cos and sin, computed in fp64. Llama 3.1's frequency scaling when
 * scaling.factor > 0 (wavelengths beyond original_context/low_freq are divided by factor, those below
 * original_context/high_freq kept, smooth between). */
typedef struct {
    float factor, low_freq_factor, high_freq_factor;
    int original_context;
} RotaryScaling;
void rotary_tables(float *cos_table, float *sin_table, int n_positions, int head_dim, float theta,
                   RotaryScaling scaling);

#endif
