/* A parameter matrix: storage plus a view. The storage is one row-major fp32 array; the views name the row ranges that
 * Hugging Face keeps as matrices of their own (a fused QKV has three), so that files and initialisation never see the
 * fusion. A tied weight shares its values with another but has its own gradient accumulator: the two are added once, at
 * the end of a step, so a pipeline that keeps embedding and head on different ranks computes the same bits. */
#ifndef CRIA_AUTODIFF_WEIGHT_H
#define CRIA_AUTODIFF_WEIGHT_H

#include <stdbool.h>
#include <stddef.h>

enum { WEIGHT_MAX_VIEWS = 3 };

typedef struct {
    const char *name; /* Hugging Face name, e.g. "model.layers.0.self_attn.q_proj.weight" */
    int first_row, rows;
} WeightView;

typedef struct Weight {
    int rows, cols; /* a norm's gain is one row, and n_dims is 1 */
    int n_dims;
    float *value;        /* [rows, cols]; not owned */
    float *grad;         /* the same shape, added to by backward passes; NULL when frozen */
    bool trainable;      /* false: frozen, no gradient work is done */
    bool decay;          /* weight decay applies (not on norms) */
    struct Weight *tied; /* the weight whose values this one shares, or NULL */
    int n_views;
    WeightView views[WEIGHT_MAX_VIEWS];
} Weight;

static inline size_t weight_elements(const Weight *weight) {
    return (size_t)weight->rows * (size_t)weight->cols;
}

#endif
