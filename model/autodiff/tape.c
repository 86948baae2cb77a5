/* Recording and replay of the tape. Placement is plan.c's. */
#include "model/autodiff/tape.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/autodiff/node.h"
#include "model/core/clock.h"
#include "model/core/error.h"

/* ---- memory ----------------------------------------------------------------------------------------------------- */

struct TapeMemory {
    size_t bytes, mapped_bytes;
    char *base;
    const Tape *user; /* whose values are in it */
    uint64_t lease;   /* counts changes of user and of place */
    int holders;      /* tapes, and whoever made it */
};

TapeMemory *tape_memory_new(void) {
    TapeMemory *memory = calloc(1, sizeof *memory);
    if (memory) memory->holders = 1;
    return memory;
}

void tape_memory_free(TapeMemory *memory) {
    if (!memory || --memory->holders > 0) return;
    pages_free(memory->base, memory->mapped_bytes);
    free(memory);
}

size_t tape_memory_bytes(const TapeMemory *memory) {
    return memory->bytes;
}

/* The memory is mapped and holds this tape's values from now on. */
static int memory_lease(TapeMemory *memory, const Tape *tape) {
    if (memory->user != tape) memory->lease++;
    memory->user = tape;
    if (memory->base && memory->mapped_bytes >= memory->bytes) return OK;
    memory->lease++;
    pages_free(memory->base, memory->mapped_bytes);
    memory->base = pages_alloc(memory->bytes);
    memory->mapped_bytes = memory->bytes;
    if (!memory->base) FAIL(ERR_FAILED, "out of memory: the tape needs %zu bytes for activations", memory->bytes);
    return OK;
}

/* ---- recording -------------------------------------------------------------------------------------------------- */

Tape *tape_new(const TapeOptions *options) {
    Tape *tape = calloc(1, sizeof *tape);
    if (!tape) return NULL;
    tape->options = *options;
    if (tape->options.buffers <= 0) tape->options.buffers = 1;
    if (tape->options.segments <= 0) tape->options.segments = options->capacity;
    if (tape->options.samples <= 0) tape->options.samples = options->capacity;
    tape->memory = options->memory ? options->memory : tape_memory_new();
    if (options->memory) tape->memory->holders++;
    tape->replays = calloc((size_t)tape->options.buffers, sizeof *tape->replays);
    if (!tape->memory || !tape->replays) {
        tape_free(tape);
        return NULL;
    }
    if (options->dtype != DTYPE_F32 && options->dtype != DTYPE_BF16)
        tape_fail(tape, "a tape's activations are fp32 or bf16, not %s", dtype_name(options->dtype));
    if (options->capacity <= 0)
        tape_fail(tape, "a tape's capacity is %d tokens; it must be positive", options->capacity);
    return tape;
}

const TapeOptions *tape_options(const Tape *tape) {
    return &tape->options;
}

void tape_free(Tape *tape) {
    if (!tape) return;
    if (tape->memory && tape->memory->user == tape) tape->memory->user = NULL;
    tape_memory_free(tape->memory);
    arena_free(&tape->arena);
    free(tape->nodes);
    free(tape->tensors);
    free(tape->replays);
    free(tape->seconds);
    free(tape);
}

void *tape_fail(Tape *tape, const char *format, ...) {
    if (!tape->failed) {
        va_list args;
        va_start(args, format);
        vsnprintf(tape->failure, sizeof tape->failure, format, args);
        va_end(args);
    }
    tape->failed = true;
    return NULL;
}

/* `items` with room for one more pointer, or NULL when memory is out. */
static void *grown(void *items, int count, int *capacity) {
    if (count < *capacity) return items;
    int larger = *capacity ? 2 * *capacity : 64;
    void *moved = realloc(items, (size_t)larger * sizeof(void *));
    if (moved) *capacity = larger;
    return moved;
}

static Tensor *tensor_new(Tape *tape, RowsKind rows, int width, Dtype dtype) {
    if (tape->failed) return NULL;
    if (tape->planned) return tape_fail(tape, "a tensor was recorded after tape_plan");
    if (width <= 0) return tape_fail(tape, "a tensor's width is %d; it must be positive", width);
    Tensor *tensor = arena_alloc(&tape->arena, sizeof *tensor);
    Tensor **tensors = grown(tape->tensors, tape->n_tensors, &tape->tensors_capacity);
    if (tensors) tape->tensors = tensors;
    if (!tensor || !tensors) return tape_fail(tape, "out of memory while recording");
    *tensor =
        (Tensor){.id = tape->n_tensors, .width = width, .rows = rows, .dtype = dtype, .producer = -1, .region = -1};
    tape->tensors[tape->n_tensors++] = tensor;
    return tensor;
}

Tensor *tape_input(Tape *tape, RowsKind rows, int width, Dtype dtype, bool differentiable) {
    Tensor *tensor = tensor_new(tape, rows, width, dtype);
    if (!tensor) return NULL;
    if (dtype != DTYPE_I32 && dtype != DTYPE_F32)
        return tape_fail(tape, "a tape's input is fp32 or int32, not %s", dtype_name(dtype));
    if (dtype != DTYPE_F32 && differentiable)
        return tape_fail(tape, "an input of %s is not differentiable", dtype_name(dtype));
    tensor->input = true;
    tensor->needs_grad = differentiable && tape->options.training;
    tensor->bound = arena_alloc(&tape->arena, (size_t)tape->options.buffers * sizeof *tensor->bound);
    return tensor->bound ? tensor : tape_fail(tape, "out of memory while recording");
}

Dtype tape_dtype(const Tape *tape) {
    return tape->options.dtype;
}

/* An activation where one is expected; elsewhere fp32, or (beyond the first input) the op's own affair. */
static bool dtype_serves(const Tape *tape, const OpSpec *spec, int i, Dtype dtype) {
    if (spec->activation == i) return dtype == tape->options.dtype;
    if (spec->activation == ANY_DTYPE && i == 0) return dtype == DTYPE_F32 || dtype == tape->options.dtype;
    return dtype == DTYPE_F32 || (i > 0 && dtype != DTYPE_BF16);
}

Node *tape_node(Tape *tape, const OpSpec *spec, int n_inputs, Tensor *const *inputs, Weight *weight,
                const void *attributes, size_t attributes_size) {
    if (tape->failed) return NULL;
    if (tape->planned) return tape_fail(tape, "%s: recorded after tape_plan", spec->name);
    if (spec->inference && tape->options.training)
        return tape_fail(tape, "%s has no backward; it cannot be on a training tape", spec->name);
    if (spec->backward_weights && !weight) return tape_fail(tape, "%s: its weight is missing", spec->name);
    Node *node = arena_alloc(&tape->arena, sizeof *node);
    Node **nodes = grown(tape->nodes, tape->n_nodes, &tape->nodes_capacity);
    if (nodes) tape->nodes = nodes;
    void *copy = attributes_size ? arena_alloc(&tape->arena, attributes_size) : NULL;
    if (!node || !nodes || (attributes_size && !copy)) return tape_fail(tape, "out of memory while recording");
    if (copy) memcpy(copy, attributes, attributes_size);
    *node = (Node){.spec = spec,
                   .n_inputs = n_inputs,
                   .region = tape->in_region ? tape->n_regions - 1 : -1,
                   .weight = weight,
                   .attributes = copy};
    for (int i = 0; i < n_inputs; i++) {
        if (!inputs[i]) return tape_fail(tape, "%s: input %d is missing", spec->name, i);
        if (!dtype_serves(tape, spec, i, inputs[i]->dtype))
            return tape_fail(tape, "%s: its input %d is %s; it must be %s", spec->name, i, dtype_name(inputs[i]->dtype),
                             dtype_name(spec->activation == i ? tape->options.dtype : DTYPE_F32));
        node->inputs[i] = inputs[i];
        node->backward_inputs |= inputs[i]->needs_grad && spec->backward_inputs;
    }
    node->backward_weights = tape->options.training && weight &&
                             (weight->trainable || (weight->adapter && weight->adapter->a.trainable)) &&
                             spec->backward_weights;
    tape->nodes[tape->n_nodes++] = node;
    return node;
}

Tensor *tape_output(Tape *tape, Node *node, RowsKind rows, int width, Dtype dtype) {
    Tensor *tensor = node ? tensor_new(tape, rows, width, dtype) : NULL;
    if (!tensor) return NULL;
    tensor->producer = tape->n_nodes - 1;
    tensor->region = node->region;
    tensor->needs_grad =
        (dtype == DTYPE_F32 || dtype == DTYPE_BF16) && (node->backward_inputs || node->backward_weights);
    node->outputs[node->n_outputs++] = tensor;
    return tensor;
}

void tape_seed(Tape *tape, Tensor *tensor, Tensor *gradient) {
    if (!tensor || !gradient) return;
    const Node *node = tensor->input ? NULL : tape->nodes[tensor->producer];
    if (tape->planned)
        tape_fail(tape, "a seed was given after tape_plan");
    else if (!node || tensor->seed)
        tape_fail(tape, "a seed goes to an operation's output, and at most one to each");
    else if (tensor->dtype != DTYPE_F32)
        tape_fail(tape, "%s: a seed goes to an fp32 tensor, and this one is %s", node->spec->name,
                  dtype_name(tensor->dtype));
    else if (!gradient->input || gradient->dtype != DTYPE_F32 || gradient->rows != tensor->rows ||
             gradient->width != tensor->width)
        tape_fail(tape, "a seed must be an fp32 input of its tensor's shape");
    else if (!tensor->needs_grad && (node->backward_inputs || node->backward_weights))
        tape_fail(tape, "%s: the seeded output carries no gradient", node->spec->name);
    else if (tensor->needs_grad) /* else there is nothing to train behind it */
        tensor->seed = gradient;
}

void tape_keep(Tensor *tensor) {
    if (tensor) tensor->kept = true;
}

void tape_recompute_begin(Tape *tape) {
    if (!tape->options.training) return;
    if (tape->in_region) tape_fail(tape, "recompute regions do not nest");
    tape->in_region = true;
    tape->n_regions++;
}

void tape_recompute_end(Tape *tape) {
    if (!tape->options.training) return;
    if (!tape->in_region) tape_fail(tape, "a recompute region ends that did not begin");
    tape->in_region = false;
}

static int smaller_limit(int limit, int other) {
    return limit == 0 || other < limit ? other : limit;
}

void tape_limit_tokens(Tape *tape, int limit) {
    tape->limit_tokens = smaller_limit(tape->limit_tokens, limit);
}
void tape_limit_targets(Tape *tape, int limit) {
    tape->limit_targets = smaller_limit(tape->limit_targets, limit);
}
void tape_limit_positions(Tape *tape, int limit) {
    tape->limit_positions = smaller_limit(tape->limit_positions, limit);
}
void tape_limit_slots(Tape *tape, int limit) {
    tape->limit_slots = smaller_limit(tape->limit_slots, limit);
}
void tape_require_segments(Tape *tape) {
    tape->needs_segments = true;
}
void tape_require_segment_ids(Tape *tape) {
    tape->needs_segments = tape->needs_ids = true;
}
bool tape_is_training(const Tape *tape) {
    return tape->options.training;
}

uint32_t tape_segment_id(uint64_t sample_id, int place) {
    PhiloxKey mixed = philox_key(sample_id, PHILOX_DROPOUT, (uint32_t)place, 0);
    return mixed.word[0];
}

size_t tape_bytes(const Tape *tape) {
    return tape->plan.bytes * (size_t)tape->options.buffers + tape->scratch_floats * sizeof(float);
}

int tape_plan(Tape *tape) {
    if (tape->in_region) tape_fail(tape, "a recompute region was not ended");
    if (tape->failed) FAIL(ERR_FAILED, "%s", tape->failure);
    if (tape->planned) FAIL(ERR_FAILED, "the tape is planned already");
    enum { FLOATS_PER_LINE = ARENA_ALIGNMENT / sizeof(float) };
    for (int n = 0; n < tape->n_nodes; n++) {
        const Node *node = tape->nodes[n];
        size_t floats = node->spec->scratch ? node->spec->scratch(node, tape->options.capacity) : 0;
        floats = (floats + FLOATS_PER_LINE - 1) / FLOATS_PER_LINE * FLOATS_PER_LINE;
        if (floats > tape->scratch_floats) tape->scratch_floats = floats;
    }
    int rc = tape_make_plan(&tape->plan, tape);
    if (rc != OK) tape_fail(tape, "%s", error_text()); /* so that every later call says so */
    TRY(rc);
    tape->seconds = calloc((size_t)tape->n_nodes * 2 + 1, sizeof *tape->seconds);
    if (!tape->seconds) FAIL(ERR_FAILED, "out of memory while planning");
    if (tape_bytes(tape) > tape->memory->bytes) tape->memory->bytes = tape_bytes(tape);
    tape->planned = true;
    return OK;
}

/* ---- replay ----------------------------------------------------------------------------------------------------- */

static int check_ids(const int32_t *ids, int n, int limit, const char *what) {
    if (limit == 0 || n == 0) return OK;
    if (!ids) FAIL(ERR_REFUSED, "the batch has no %ss, which the tape reads", what);
    for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= limit)
            FAIL(ERR_REFUSED, "%s %d at row %d of the batch is outside 0…%d", what, ids[i], i, limit - 1);
    return OK;
}

static int check_segments(const TapeBatch *batch, bool needed) {
    const int32_t *start = batch->segment_start;
    if (!start && needed) FAIL(ERR_REFUSED, "the batch does not say where its segments start");
    if (!start) return OK;
    if (start[0] != 0 || start[batch->n_segments] != batch->n_tokens)
        FAIL(ERR_REFUSED, "segments span rows %d to %d of a batch of %d tokens", start[0], start[batch->n_segments],
             batch->n_tokens);
    for (int s = 0; s < batch->n_segments; s++)
        if (start[s] > start[s + 1]) FAIL(ERR_REFUSED, "segment %d ends before it begins", s);
    return OK;
}

int tape_bind(Tape *tape, int buffer, const TapeBatch *batch) {
    const TapeOptions *options = &tape->options;
    if (tape->failed) FAIL(ERR_FAILED, "%s", tape->failure);
    if (buffer < 0 || buffer >= options->buffers) FAIL(ERR_FAILED, "tape buffer %d of %d", buffer, options->buffers);
    if (batch->n_tokens < 0 || batch->n_tokens > options->capacity || batch->n_segments < 0 ||
        batch->n_segments > options->segments || batch->n_samples < 0 || batch->n_samples > options->samples)
        FAIL(ERR_REFUSED, "a batch of %d tokens, %d segments, %d samples; the tape holds %d, %d, %d", batch->n_tokens,
             batch->n_segments, batch->n_samples, options->capacity, options->segments, options->samples);
    TRY(check_segments(batch, tape->needs_segments));
    if (tape->needs_ids && !batch->segment_ids && batch->n_segments > 0)
        FAIL(ERR_FAILED, "the batch does not say which segments it has, and dropout depends on that");
    TRY(check_ids(batch->tokens, batch->n_tokens, tape->limit_tokens, "token"));
    TRY(check_ids(batch->targets, batch->n_tokens, tape->limit_targets, "target"));
    TRY(check_ids(batch->positions, batch->n_tokens, tape->limit_positions, "position"));
    TRY(check_ids(batch->slots, batch->n_tokens, tape->limit_slots, "slot"));
    tape->replays[buffer] = (Replay){.batch = *batch, .bound = true};
    return OK;
}

void tape_bind_input(int buffer, Tensor *input, const void *values) {
    input->bound[buffer] = values;
}

int batch_rows(const TapeBatch *batch, RowsKind rows) {
    switch (rows) {
    case ROWS_TOKENS:
        return batch->n_tokens;
    case ROWS_SEGMENTS:
        return batch->n_segments;
    case ROWS_SAMPLES:
        return batch->n_samples;
    default:
        return 1;
    }
}

static char *buffer_base(const Tape *tape, int buffer) {
    return tape->memory->base + tape->scratch_floats * sizeof(float) + (size_t)buffer * tape->plan.bytes;
}

static void *place(const Tape *tape, int buffer, ptrdiff_t offset) {
    return offset == NO_PLACE ? NULL : buffer_base(tape, buffer) + offset;
}

static void *place_or_bound(const Tape *tape, int buffer, ptrdiff_t offset, const Tensor *bound) {
    /* Inputs are read-only to ops; the cast only lets them share OpCall's arrays with values. */
    if (offset == BOUND) return (void *)(uintptr_t)bound->bound[buffer];
    return place(tape, buffer, offset);
}

static void run_step(Tape *tape, int buffer, const Step *step) {
    Node *node = tape->nodes[step->node];
    OpCall call = {.node = node,
                   .batch = &tape->replays[buffer].batch,
                   .training = tape->options.training,
                   .scratch = (float *)(void *)tape->memory->base};
    for (int i = 0; i < node->n_inputs; i++) {
        call.in[i] = place_or_bound(tape, buffer, step->in[i], node->inputs[i]);
        call.in_grad[i] = place(tape, buffer, step->in_grad[i]);
        call.accumulate[i] = step->accumulate[i];
    }
    for (int i = 0; i < node->n_outputs; i++) {
        call.out[i] = place(tape, buffer, step->out[i]);
        call.out_grad[i] = place_or_bound(tape, buffer, step->out_grad[i], node->outputs[i]->seed);
    }
    double start = tape->profile ? clock_seconds() : 0;
    if (step->kind != STEP_BACKWARD) {
        node->spec->forward(&call);
    } else {
        if (node->backward_weights) node->spec->backward_weights(&call);
        if (node->backward_inputs) node->spec->backward_inputs(&call); /* last: may overwrite out_grad */
    }
    if (tape->profile) tape->seconds[2 * step->node + (step->kind == STEP_BACKWARD)] += clock_seconds() - start;
    if (step->last_use_of_weight && tape->options.on_grad_ready)
        tape->options.on_grad_ready(tape->options.context, node->weight);
}

static int check_replay(const Tape *tape, int buffer) {
    if (tape->failed) FAIL(ERR_FAILED, "%s", tape->failure);
    if (!tape->planned) FAIL(ERR_FAILED, "the tape was not planned");
    if (buffer < 0 || buffer >= tape->options.buffers)
        FAIL(ERR_FAILED, "tape buffer %d of %d", buffer, tape->options.buffers);
    if (!tape->replays[buffer].bound) FAIL(ERR_FAILED, "tape buffer %d has no batch; tape_bind gives it one", buffer);
    return OK;
}

/* What forward reads is there, and so is what backward adds to. */
static int check_bound(const Tape *tape, int buffer) {
    for (int n = 0; n < tape->n_nodes; n++) {
        const Node *node = tape->nodes[n];
        for (int i = 0; i < node->n_inputs; i++)
            if (node->inputs[i]->input && !node->inputs[i]->bound[buffer])
                FAIL(ERR_FAILED, "%s: tape input %d is not bound in buffer %d", node->spec->name, node->inputs[i]->id,
                     buffer);
        if (node->backward_weights && node->weight->trainable && !node->weight->grad)
            FAIL(ERR_FAILED, "%s: its weight %s is trainable and has no gradient array", node->spec->name,
                 node->weight->views[0].name);
    }
    return OK;
}

int tape_forward(Tape *tape, int buffer) {
    TRY(check_replay(tape, buffer));
    TRY(check_bound(tape, buffer));
    TRY(memory_lease(tape->memory, tape));
    tape->replays[buffer].lease = tape->memory->lease;
    tape->replays[buffer].awaits_backward = tape->options.training;
    for (int s = 0; s < tape->plan.n_forward; s++) run_step(tape, buffer, &tape->plan.steps[s]);
    return OK;
}

static bool values_are_there(const Tape *tape, int buffer) {
    return tape->replays[buffer].lease == tape->memory->lease && tape->memory->lease != 0;
}

int tape_backward(Tape *tape, int buffer) {
    TRY(check_replay(tape, buffer));
    if (!tape->options.training) FAIL(ERR_FAILED, "backward on a tape that was not recorded for training");
    Replay *replay = &tape->replays[buffer];
    if (!replay->awaits_backward) FAIL(ERR_FAILED, "backward without a forward before it in tape buffer %d", buffer);
    if (!values_are_there(tape, buffer))
        FAIL(ERR_FAILED, "another tape has used the memory between forward and backward of tape buffer %d", buffer);
    for (int t = 0; t < tape->n_tensors; t++)
        if (tape->tensors[t]->seed && !tape->tensors[t]->seed->bound[buffer])
            FAIL(ERR_FAILED, "the seed that is tape input %d is not bound in buffer %d", tape->tensors[t]->seed->id,
                 buffer);
    replay->awaits_backward = false; /* gradients are written over the saved values */
    for (int s = tape->plan.n_forward; s < tape->plan.n_steps; s++) run_step(tape, buffer, &tape->plan.steps[s]);
    return OK;
}

void *tape_value(Tape *tape, int buffer, const Tensor *tensor) {
    if (!values_are_there(tape, buffer)) return NULL;
    return place(tape, buffer, tape->plan.value_place[tensor->id]);
}

const float *tape_grad(Tape *tape, int buffer, const Tensor *tensor) {
    if (!values_are_there(tape, buffer)) return NULL;
    return place(tape, buffer, tape->plan.grad_place[tensor->id]);
}

double tape_forward_flops(const Tape *tape, int buffer) {
    double total = 0;
    for (int n = 0; n < tape->n_nodes; n++)
        if (tape->nodes[n]->spec->flops)
            total += tape->nodes[n]->spec->flops(tape->nodes[n], &tape->replays[buffer].batch);
    return total;
}

void tape_profile(Tape *tape, bool on) {
    tape->profile = on;
    memset(tape->seconds, 0, (size_t)tape->n_nodes * 2 * sizeof *tape->seconds);
}

int tape_profile_rows(const Tape *tape) {
    return tape->n_nodes;
}

const char *tape_profile_row(const Tape *tape, int row, double *forward_seconds, double *backward_seconds) {
    *forward_seconds = tape->seconds[2 * (size_t)row];
    *backward_seconds = tape->seconds[2 * (size_t)row + 1];
    return tape->nodes[row]->spec->name;
}
