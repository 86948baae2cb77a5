/* What a tape is made of, for the ops and the planner; users of a tape need tape.h alone. */
#ifndef CRIA_AUTODIFF_NODE_H
#define CRIA_AUTODIFF_NODE_H

#include "model/autodiff/tape.h"
#include "model/core/arena.h"

enum { OP_MAX_INPUTS = 3, OP_MAX_OUTPUTS = 6 };

typedef struct OpSpec OpSpec;
typedef struct Node Node;

struct Tensor {
    int id, width;
    RowsKind rows;
    Dtype dtype;
    bool input, kept, needs_grad;
    int producer;       /* node index; -1 for an input */
    int region;         /* recompute region the producer is in; -1: none */
    Tensor *seed;       /* from tape_seed */
    const void **bound; /* [buffers] an input's values */
};

struct Node {
    const OpSpec *spec;
    int n_inputs, n_outputs, region;
    Tensor *inputs[OP_MAX_INPUTS], *outputs[OP_MAX_OUTPUTS];
    Weight *weight;                         /* or NULL */
    const void *attributes;                 /* the op's own struct, owned by the tape */
    bool backward_inputs, backward_weights; /* that part of backward is wanted */
    bool starts_backward;                   /* knows its own gradient: backward runs though none flows in (the head) */
};

/* What an op's functions get at replay: pointers to live rows. Absent things are NULL. */
typedef struct {
    const Node *node;
    const TapeBatch *batch;
    void *in[OP_MAX_INPUTS];
    void *out[OP_MAX_OUTPUTS];
    void *in_grad[OP_MAX_INPUTS];   /* NULL: not wanted */
    bool accumulate[OP_MAX_INPUTS]; /* in_grad is added to, not overwritten */
    void *out_grad[OP_MAX_OUTPUTS]; /* NULL: nothing flows in there. May be the same array as the in_grad named by
                                        the spec's grad_in_place. */
    float *scratch;
    bool training;
} OpCall;

/* Bits of OpSpec.saves_…: which values the backward functions read. */
#define SAVES_IN(i) (1u << (i))
#define SAVES_OUT(i) (1u << (8 + (i)))
enum { SAVES_NOTHING = 0, NOT_IN_PLACE = -1, NO_ACTIVATION = -1, ANY_DTYPE = -2 };

struct OpSpec {
    const char *name;
    int activation; /* this input has the tape's dtype, and every other is fp32; NO_ACTIVATION: all are fp32;
                       ANY_DTYPE: input 0 may be either */
    void (*forward)(OpCall *call);
    void (*backward_inputs)(OpCall *call);                     /* NULL: no input is differentiable */
    void (*backward_weights)(OpCall *call);                    /* NULL: has no weights */
    double (*flops)(const Node *node, const TapeBatch *batch); /* of one forward; NULL: negligible */
    size_t (*scratch)(const Node *node, int capacity);         /* floats, for forward or backward; NULL: none */
    unsigned saves_for_inputs, saves_for_weights;
    int in_place;      /* output 0 may be written over this input's value, or NOT_IN_PLACE */
    int grad_in_place; /* this input's gradient may be written over output 0's gradient, or NOT_IN_PLACE */
    bool inference;    /* has no backward by intent */
};

int batch_rows(const TapeBatch *batch, RowsKind rows);

/* ---- for op constructors ---- */

/* The dtype of activations, for outputs. */
Dtype tape_dtype(const Tape *tape);
/* Starts a node with copies of its attributes; NULL after an error (recorded in the tape) or when an input is NULL. */
Node *tape_node(Tape *tape, const OpSpec *spec, int n_inputs, Tensor *const *inputs, Weight *weight,
                const void *attributes, size_t attributes_size);
Tensor *tape_output(Tape *tape, Node *node, RowsKind rows, int width, Dtype dtype);
/* Records an error about the op being built, and returns NULL. Only the first is kept. */
void *tape_fail(Tape *tape, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Batches must have tokens (targets, positions, slots), all in [0, limit): checked by tape_bind. Of several limits the
 * smallest holds. */
void tape_limit_tokens(Tape *tape, int limit);
void tape_limit_targets(Tape *tape, int limit);
void tape_limit_positions(Tape *tape, int limit);
void tape_limit_slots(Tape *tape, int limit);
/* Batches must say where their segments start; which segments they are (segment_ids). */
void tape_require_segments(Tape *tape);
void tape_require_segment_ids(Tape *tape);
bool tape_is_training(const Tape *tape);

/* ---- the planned schedule (plan.c) ---- */

typedef enum { STEP_FORWARD, STEP_RECOMPUTE, STEP_BACKWARD } StepKind;

typedef struct {
    StepKind kind;
    int node;
    /* Offsets into the buffer's arena, by slot; NO_PLACE where absent, BOUND where the caller's array serves. */
    ptrdiff_t in[OP_MAX_INPUTS], out[OP_MAX_OUTPUTS], in_grad[OP_MAX_INPUTS], out_grad[OP_MAX_OUTPUTS];
    bool accumulate[OP_MAX_INPUTS];
    bool last_use_of_weight;
} Step;
enum { NO_PLACE = -1, BOUND = -2 };

typedef struct {
    Step *steps;
    int n_steps, n_forward;              /* the first n_forward steps are the forward pass */
    size_t bytes;                        /* of one buffer */
    ptrdiff_t *value_place, *grad_place; /* by tensor id: of kept values and of inputs' gradients */
} Plan;

/* What a buffer holds. */
typedef struct {
    TapeBatch batch;
    bool bound;
    bool awaits_backward; /* forward ran since the last backward */
    uint64_t lease;       /* of the memory, at its last forward: its values are there while the memory's is the same */
} Replay;

struct Tape {
    Arena arena;
    TapeOptions options;
    TapeMemory *memory;
    bool planned, failed, in_region, needs_segments, needs_ids;
    char failure[512];
    Node **nodes;
    int n_nodes, nodes_capacity;
    Tensor **tensors;
    int n_tensors, tensors_capacity;
    int n_regions;
    int limit_tokens, limit_targets, limit_positions, limit_slots; /* 0: not read by any node */
    size_t scratch_floats;
    Plan plan;
    Replay *replays; /* [buffers] */
    bool profile;
    double *seconds; /* [n_nodes][2] */
};

int tape_make_plan(Plan *plan, Tape *tape);

#endif
