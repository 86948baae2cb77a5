/* The operations a tape can record: constructors check shapes, and return NULL after an error (kept for tape_plan).
 * Every one has a file of its own and a row in ops.def. "Activations" have the tape's dtype; everything else is fp32.
 * Shapes: T tokens, S segments, D, F, V widths; "rows" is T, S,
 * samples or one, whatever the input has. */
#ifndef CRIA_OPS_OPS_H
#define CRIA_OPS_OPS_H

#include "model/autodiff/tape.h"

/* ---- the transformer ---- */

/* Row tokens[t] of weight [V, D] -> [T, D]. */
Tensor *op_embedding(Tape *tape, Weight *weight);

/* x[rows, K] · weight[N, K]ᵀ -> [rows, N], activations both. */
Tensor *op_linear(Tape *tape, Tensor *x, Weight *weight);

/* The same with an fp32 output, for sampling: inference only. */
Tensor *op_logits(Tape *tape, Tensor *hidden, Weight *weight);

/* x[rows, K] · weight[1, K] -> fp32 [rows, 1]: a reward's or a value's head. The weight stays fp32 where activations
 * are not, so that a score has more digits than an activation. */
Tensor *op_score(Tape *tape, Tensor *x, Weight *weight);

/* x / sqrt(mean(x²) + epsilon) · gain (Zhang and Sennrich 2019): fp32 in, an activation out. */
Tensor *op_rmsnorm(Tape *tape, Tensor *x, Weight *gain, float epsilon);

/* The residual connection, x + delta: fp32 + an activation -> fp32. */
Tensor *op_residual(Tape *tape, Tensor *x, Tensor *delta);

/* The residual connection and the next norm in one: sum = x + delta (fp32), y = op_rmsnorm(sum). delta and y are
 * activations. */
typedef struct {
    Tensor *sum, *y;
} Normed;
Normed op_add_rmsnorm(Tape *tape, Tensor *x, Tensor *delta, Weight *gain, float epsilon);

/* cos and sin of position × frequency, [n_positions, head_dim/2] each; not owned. */
typedef struct {
    const float *cos_table, *sin_table;
    int n_positions, head_dim;
} RotaryTable;
/* op_linear whose rows are queries | keys | values, with rotary position embedding on their first n_heads heads (those
 * of queries and keys). */
Tensor *op_qkv(Tape *tape, Tensor *x, Weight *weight, int n_heads, RotaryTable table);

typedef struct {
    int n_heads, n_kv_heads, head_dim;
    float scale; /* of the scores; 0 means 1/sqrt(head_dim) */
} AttentionShape;
/* Causal grouped-query attention inside each segment: qkv [T, (H + 2·KV)·HD] -> [T, H·HD]. */
Tensor *op_attention(Tape *tape, Tensor *qkv, AttentionShape shape);

/* One layer's keys and values of n_slots sequences, in the pages of model/kernels/kernels.h (CachedAttention): those of
 * a slot are slot_pages entries of `pages`. Not owned. */
typedef struct {
    void *keys, *values; /* of page 0 */
    const int32_t *pages;
    int slot_pages, n_slots, max_sequence;
    size_t page_size; /* elements between pages */
    Dtype dtype;      /* that of the rows */
} KvLayer;
/* For generation: stores the rows' keys and values at (slots[t], positions[t]), for which the slot must have pages, and
 * attends over that slot's positions 0 … positions[t]. The rows of one slot come in order of position. */
Tensor *op_attention_cached(Tape *tape, Tensor *qkv, AttentionShape shape, const KvLayer *cache);

/* silu(gate)·up: [rows, 2F] = gate | up -> [rows, F] (Shazeer 2020). */
Tensor *op_swiglu(Tape *tape, Tensor *gate_up);

/* The fused language-model head: log-softmax(hidden · weightᵀ · logit_scale) at the batch's targets. Logits are never
 * stored. Tokens whose mask is zero cost nothing and have logprob 0. */
typedef struct {
    float logit_scale; /* 0 means 1 */
    bool entropy, top1, mean_logit;
    Tensor *mask;           /* input [T, 1], or NULL: every token */
    Tensor *known_gradient; /* input [T, 1] = dL/d logprob known before forward: gradients are taken in the forward
                               pass, so logits are computed once; it is the mask too. No gradient then flows through
                               logprob. */
} HeadOptions;
typedef struct {
    Tensor *logprob, *lse;        /* [T, 1]; logprob is differentiable */
    Tensor *entropy, *mean_logit; /* [T, 1] or NULL: for reading only */
    Tensor *top1;                 /* int32 [T, 1] or NULL */
} HeadOutputs;
HeadOutputs op_head(Tape *tape, Tensor *hidden, Weight *weight, HeadOptions options);

/* ---- elementwise, for losses; operands of the same shape ---- */

Tensor *op_add(Tape *tape, Tensor *a, Tensor *b);
Tensor *op_mul(Tape *tape, Tensor *a, Tensor *b);
Tensor *op_min(Tape *tape, Tensor *a, Tensor *b); /* the gradient goes to the smaller, to `a` when equal */
Tensor *op_scale(Tape *tape, Tensor *x, float factor, float offset); /* factor·x + offset */
Tensor *op_exp(Tape *tape, Tensor *x);
Tensor *op_log(Tape *tape, Tensor *x);
Tensor *op_sigmoid(Tape *tape, Tensor *x);
Tensor *op_log_sigmoid(Tape *tape, Tensor *x);                  /* accurate at both ends */
Tensor *op_clamp(Tape *tape, Tensor *x, float low, float high); /* gradient 1 inside and at the bounds, else 0 */

/* ---- reductions and selection ---- */

Tensor *op_segment_sum(Tape *tape, Tensor *x);  /* [T, W] -> [S, W], sums in fp64 */
Tensor *op_segment_mean(Tape *tape, Tensor *x); /* an empty segment gives 0 */
Tensor *op_sum(Tape *tape, Tensor *x);          /* [rows, W] -> [1, W] */
Tensor *op_mean(Tape *tape, Tensor *x);
/* Rows x[index[i]], of x's dtype: index is an int32 input [rows', 1] with values in x's live rows -> [rows', W]. */
Tensor *op_gather(Tape *tape, Tensor *x, Tensor *index);

#endif
