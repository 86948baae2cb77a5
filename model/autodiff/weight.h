/* A parameter matrix: storage plus a view. The storage is one row-major fp32 array, and for bf16 products the two
 * packings of model/kernels/bf16.h beside it; or, of a frozen weight, row-major values in 16 bits where they are (a
 * mapped file) or quantised, packed as they are used. The views name the row ranges that Hugging Face keeps as matrices
 * of their own (a fused QKV has three), so that files and initialisation never see the fusion. A tied weight shares its
 * values with another. What comes from its two uses is summed apart and added once, at the end of a step, so a pipeline
 * that keeps embedding and head on different ranks computes the same bits: the head adds to `grad`, the embedding to
 * `row_grad`, which takes one row for each token that a step looks up. */
#ifndef CRIA_AUTODIFF_WEIGHT_H
#define CRIA_AUTODIFF_WEIGHT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/core/philox.h"
#include "model/kernels/bf16.h"

enum { WEIGHT_MAX_VIEWS = 3 };

typedef struct {
    const char *name; /* Hugging Face name, e.g. "model.layers.0.self_attn.q_proj.weight" */
    int first_row, rows;
} WeightView;

typedef struct Weight {
    int rows, cols; /* a norm's gain is one row, and n_dims is 1 */
    int n_dims;
    float *value;        /* [rows, cols]; not owned. NULL where only `stored` has the values */
    RowMajor stored;     /* the same values as products read them where there are no packings; not owned */
    bf16 *forward;       /* packing for x·Wᵀ, or NULL; not owned */
    bf16 *backward;      /* packing for dy·W, or NULL; not owned */
    float *grad;         /* the same shape, added to by backward passes; NULL when frozen */
    float *row_grad;     /* a tied embedding: what op_embedding adds to instead; [rows, cols], the first n_row_grads */
    int32_t *row_slot;   /* [rows] 1 + which row of row_grad, 0 where none was looked up; NULL where there is none */
    int n_row_grads;     /* used; those behind them are zero */
    bool narrow;         /* only `stored` has the values, in fewer than 32 bits */
    bool trainable;      /* false: frozen, no gradient work is done */
    bool decay;          /* weight decay applies (not on norms) */
    struct Weight *tied; /* the weight whose values this one shares, or NULL */
    struct Adapter *adapter; /* what is added to it (below), or NULL; not owned */
    int n_views;
    WeightView views[WEIGHT_MAX_VIEWS];
} Weight;

/* A low-rank addition to some of a weight's views (LoRA: Hu et al. 2022): y += scale·(x·Aᵀ)·Bᵀ, and the same for their
 * gradients. One A for all of them, since they read the same x.
 *
 * With magnitudes (DoRA: Liu et al. 2024, equation 5) the rows of W + scale·B·A are brought to the lengths m, which are
 * trained: y = gain∘(x·Wᵀ + scale·(x·Aᵀ)·Bᵀ), gain = m/‖W + scale·B·A‖; the norm is a constant to gradients (section
 * 4.3). It is computed anew by the first forward pass after a backward pass or after adapter_changed.
 *
 * An embedding reads tokens, which are columns of one 1 each, and what PEFT adapts is its transpose: y = W[token] +
 * scale·B·A[:, token] with A [rank, rows] and B [cols, rank], and it is the columns of W that magnitudes bring to their
 * lengths. */
typedef struct Adapter {
    int rank, n;    /* n: adapted views */
    bool of_tokens; /* the weight is an embedding: below, rows and cols are those of its transpose */
    float scale;    /* alpha/rank; rsLoRA: alpha/sqrt(rank) (Kalajdzievski 2023) */
    float dropout;  /* share of x's elements that a training tape leaves out of the addition, the others enlarged */
    PhiloxKey key;  /* of their choice: (seed, PHILOX_DROPOUT, layer, which of its matrices) */
    Weight a;       /* [n·rank, cols]: one view of `rank` rows for each adapted view */
    struct {
        int first_row;    /* of the weight's rows: where the adapted view begins */
        Weight b;         /* [the view's rows, rank] */
        Weight magnitude; /* m, a vector: one for each of the view's rows. Empty without magnitudes */
    } views[WEIGHT_MAX_VIEWS];
    float *norms, *gains; /* [rows] 1 where a row is not adapted; NULL without magnitudes; not owned */
    bool current;         /* norms and gains are those of the values */
} Adapter;

/* One array for each untied weight, shaped like it: gradients, moments; their names are the weights' behind `prefix`.
 * {0}: the parameters themselves. */
typedef struct {
    void *const *arrays; /* NULL: the weights' fp32 values */
    Dtype dtype;         /* of `arrays`: DTYPE_F32 or DTYPE_BF16 */
    const char *prefix;  /* NULL: none */
} WeightStorage;

static inline size_t weight_elements(const Weight *weight) {
    return (size_t)weight->rows * (size_t)weight->cols;
}

/* The weight's two uses in bf16 products. */
static inline Panels weight_forward(const Weight *weight) {
    return (Panels){.lanes = weight->rows, .depth = weight->cols, .packed = weight->forward, .rows = &weight->stored};
}
static inline Panels weight_backward(const Weight *weight) {
    return (Panels){.lanes = weight->cols,
                    .depth = weight->rows,
                    .packed = weight->backward,
                    .rows = &weight->stored,
                    .transposed = true};
}

#endif
