/* The tape: operations recorded once, for a capacity, then planned and replayed.
 *
 *     record   op_…(tape, …) adds a node; shapes are checked here, and the first error is kept for tape_plan
 *     plan     every value and gradient gets its place in an arena by liveness (plan.c); every byte is known
 *     replay   tape_bind gives a buffer its batch; tape_forward; tape_backward; no allocation after the first
 *
 * Rows of a tensor are counted in tokens, segments or samples of the batch, whose live numbers may be below the
 * capacity at every replay, or there is one row. A plan can have several buffers (micro-batches in flight), and several
 * tapes can share one TapeMemory (a validation pass reuses the training step's).
 *
 * Activations (what products read and make) have the tape's dtype; the residual stream, losses and everything recorded
 * for them are fp32 whatever it is. A gradient has its tensor's dtype.
 *
 * A gradient enters where tape_seed says, as a tensor of dL/d(value) known before backward (objectives scale it by
 * 1/Σw), or inside the head (see op_head). Gradients of weights are added to weight->grad.
 */
#ifndef CRIA_AUTODIFF_TAPE_H
#define CRIA_AUTODIFF_TAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/autodiff/weight.h"
#include "model/core/dtype.h"

typedef struct Tape Tape;
typedef struct Tensor Tensor;

typedef enum { ROWS_TOKENS, ROWS_SEGMENTS, ROWS_SAMPLES, ROWS_ONE } RowsKind;

/* Memory that one or more tapes place their plans in: as large as the largest, mapped at the first replay. */
typedef struct TapeMemory TapeMemory;
TapeMemory *tape_memory_new(void);
void tape_memory_free(TapeMemory *memory); /* it lives as long as a tape uses it */
size_t tape_memory_bytes(const TapeMemory *memory);

typedef struct {
    int capacity;          /* tokens of a batch, at most */
    int segments, samples; /* at most; 0: as many as tokens */
    int buffers;           /* micro-batches in flight; 0 means 1 */
    Dtype dtype;           /* of activations: DTYPE_F32, or DTYPE_BF16 (model/kernels/bf16.h says what stays fp32) */
    bool training;         /* a backward pass will follow the forward pass */
    TapeMemory *memory;    /* NULL: memory of its own */
    /* Called during backward when a weight's gradient of this micro-batch is complete: once for each weight that any
     * gradient reaches. */
    void (*on_grad_ready)(void *context, Weight *weight);
    void *context;
} TapeOptions;

/* NULL when memory is out. */
Tape *tape_new(const TapeOptions *options);
void tape_free(Tape *tape);
const TapeOptions *tape_options(const Tape *tape); /* as it was made with: for another tape beside it */

/* ---- recording (the operations are in model/ops/ops.h) ---- */

/* A tensor that the caller binds at replay: rows × width of fp32 or int32. With `differentiable`, its gradient is
 * computed and can be read with tape_grad after backward. */
Tensor *tape_input(Tape *tape, RowsKind rows, int width, Dtype dtype, bool differentiable);

/* dL/d(tensor) is what `gradient` (an fp32 input of the same shape) holds at backward; it may be bound after forward.
 * The tensor is fp32, an op's output and has no differentiable consumer besides (seed op_scale(tensor, 1, 0) instead).
 * Without effect where nothing behind the tensor is trained. */
void tape_seed(Tape *tape, Tensor *tensor, Tensor *gradient);

/* The value stays readable with tape_value after forward (and until the buffer's next forward). */
void tape_keep(Tensor *tensor);

/* Nodes recorded between the two are a region whose inner values are dropped after forward and computed again in
 * backward (Chen et al. 2016). Ignored when not training. Regions do not nest. */
void tape_recompute_begin(Tape *tape);
void tape_recompute_end(Tape *tape);

/* Places everything; returns the first error of recording. After it nothing can be recorded. */
int tape_plan(Tape *tape);
size_t tape_bytes(const Tape *tape); /* the plan's arena for all buffers, and scratch */

/* ---- replay ---- */

/* One flat run of tokens. The arrays are the caller's and must stay until this buffer's backward is done. */
typedef struct {
    int n_tokens, n_segments, n_samples;
    const int32_t *tokens, *positions, *segment_start; /* [n_tokens], [n_tokens], [n_segments + 1] */
    const int32_t *targets;                            /* [n_tokens]; NULL where nothing is scored */
    const int32_t *slots;                              /* [n_tokens] cache slot of each token; generation only */
    /* What random draws (dropout) depend on besides the token's position, so that they do not depend on packing,
     * micro-batches and ranks; training with dropout only. */
    const uint32_t *segment_ids; /* [n_segments] tape_segment_id */
    uint32_t step;
} TapeBatch;

/* A segment's id, from its sample's in the data set and its place in the sample. */
uint32_t tape_segment_id(uint64_t sample_id, int place);

/* Checks the batch against the capacity, the vocabulary and the positions. */
int tape_bind(Tape *tape, int buffer, const TapeBatch *batch);
void tape_bind_input(int buffer, Tensor *input, const void *values);

/* Backward follows a forward of the same buffer, once; between the two no other tape may use the memory. */
int tape_forward(Tape *tape, int buffer);
int tape_backward(Tape *tape, int buffer);

/* A kept value, or the gradient of a differentiable input (after backward, until the buffer's next forward), live rows
 * × width. NULL where the tensor has none, or when another tape has used the memory since. */
void *tape_value(Tape *tape, int buffer, const Tensor *tensor);
const float *tape_grad(Tape *tape, int buffer, const Tensor *tensor);

/* Floating-point operations of one forward pass over what is bound; a backward pass counts twice that for trained
 * weights and inputs (recomputation is not counted). */
double tape_forward_flops(const Tape *tape, int buffer);

/* Time by operation, when switched on: seconds spent in forward (recomputation included) and backward. */
void tape_profile(Tape *tape, bool on);
int tape_profile_rows(const Tape *tape);
const char *tape_profile_row(const Tape *tape, int row, double *forward_seconds, double *backward_seconds);

#endif
