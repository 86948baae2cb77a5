/* The planner: from recorded nodes to a linear schedule of steps, and a place in one arena for every value and
 * gradient.
 *
 *   1. activity   which tensors have a gradient flowing in, hence which nodes take part in backward
 *   2. schedule   F 0 … F n-1, then B n-1 … B 0; before the backward steps of a recompute region, the R steps that make
 *                 the values those steps read
 *   3. liveness   the steps at which each value and gradient is first written and last read. A tensor inside a
 *                 recompute region has two values: one of the forward pass and one of the recomputation
 *   4. blocks     values and gradients that may share memory by being written over each other (in place) become one
 *   5. placement  blocks in order of size, each at the lowest offset where nothing that lives at the same time is
 *
 * Everything here is a function of the recording alone, so the plan, and the bytes, are the same in every run.
 */
#include <stdlib.h>
#include <string.h>

#include "model/autodiff/node.h"
#include "model/core/error.h"

enum { NONE = -1, VALUE = 0, RECOMPUTED = 1, GRADIENT = 2, KINDS = 3 };

typedef struct {
    size_t size;
    int first, last; /* steps */
    ptrdiff_t offset;
} Block;

typedef struct {
    Tape *tape;
    Plan *plan;
    bool *flows;   /* [tensor] a gradient reaches it in backward */
    bool *active;  /* [node] takes part in backward */
    int *last_use; /* [tensor][KINDS] step, or NONE */
    int *block;    /* [tensor][KINDS] index into blocks, or NONE */
    Block *blocks;
    int n_blocks;
} Planner;

static size_t tensor_bytes(const Tape *tape, const Tensor *tensor) {
    const TapeOptions *options = &tape->options;
    TapeBatch full = {.n_tokens = options->capacity, .n_segments = options->segments, .n_samples = options->samples};
    size_t bytes = (size_t)batch_rows(&full, tensor->rows) * (size_t)tensor->width * dtype_size(tensor->dtype);
    return arena_round_up(bytes);
}

/* ---- 1. activity ---- */

static bool wants_input_grad(const Node *node, int i) {
    return node->backward_inputs && node->inputs[i]->needs_grad;
}

static int find_activity(Planner *p) {
    Tape *tape = p->tape;
    for (int t = 0; t < tape->n_tensors; t++) p->flows[t] = tape->tensors[t]->seed != NULL;
    if (!tape->options.training) return OK;
    for (int n = tape->n_nodes - 1; n >= 0; n--) {
        Node *node = tape->nodes[n];
        bool reached = node->starts_backward;
        for (int o = 0; o < node->n_outputs; o++) reached |= p->flows[node->outputs[o]->id];
        p->active[n] = reached && (node->backward_inputs || node->backward_weights);
        for (int i = 0; i < node->n_inputs && p->active[n]; i++) {
            if (!wants_input_grad(node, i)) continue;
            if (node->inputs[i]->seed)
                FAIL(ERR_FAILED,
                     "%s: its input %d has a seed, and a tensor takes its gradient from a seed or from its consumers, "
                     "not "
                     "both; record op_scale(tensor, 1, 0) and seed that",
                     node->spec->name, i);
            p->flows[node->inputs[i]->id] = true;
        }
    }
    return OK;
}

/* ---- 2. schedule ---- */

/* The value of `tensor` that a backward or recomputed step of `node` reads. */
static int kind_in_backward(const Node *node, const Tensor *tensor) {
    return tensor->region >= 0 && tensor->region == node->region ? RECOMPUTED : VALUE;
}

static unsigned saved(const Planner *p, int n) {
    const Node *node = p->tape->nodes[n];
    if (!p->active[n]) return SAVES_NOTHING;
    return (node->backward_inputs ? node->spec->saves_for_inputs : 0) |
           (node->backward_weights ? node->spec->saves_for_weights : 0);
}

static void add_step(Plan *plan, StepKind kind, int node) {
    Step *step = &plan->steps[plan->n_steps++];
    step->kind = kind;
    step->node = node;
}

static void mark_needed(const Node *node, const Tensor *tensor, bool *needed) {
    if (kind_in_backward(node, tensor) == RECOMPUTED) needed[tensor->producer] = true;
}

/* The R steps of the region that ends at node `last`; `first` is its first node. */
static int add_recomputation(Planner *p, int first, int last) {
    Tape *tape = p->tape;
    bool *needed = calloc((size_t)tape->n_nodes, sizeof *needed);
    if (!needed) FAIL(ERR_FAILED, "out of memory while planning");
    for (int n = first; n <= last; n++) {
        const Node *node = tape->nodes[n];
        for (int i = 0; i < node->n_inputs; i++)
            if (saved(p, n) & SAVES_IN(i)) mark_needed(node, node->inputs[i], needed);
        for (int o = 0; o < node->n_outputs; o++)
            if (saved(p, n) & SAVES_OUT(o)) mark_needed(node, node->outputs[o], needed);
    }
    for (int n = last; n >= first; n--)
        for (int i = 0; needed[n] && i < tape->nodes[n]->n_inputs; i++)
            mark_needed(tape->nodes[n], tape->nodes[n]->inputs[i], needed);
    for (int n = first; n <= last; n++)
        if (needed[n]) add_step(p->plan, STEP_RECOMPUTE, n);
    free(needed);
    return OK;
}

static int make_schedule(Planner *p) {
    Tape *tape = p->tape;
    Plan *plan = p->plan;
    for (int n = 0; n < tape->n_nodes; n++) add_step(plan, STEP_FORWARD, n);
    plan->n_forward = plan->n_steps;
    for (int n = tape->n_nodes - 1; n >= 0; n--) {
        int region = tape->nodes[n]->region;
        if (region >= 0 && (n == tape->n_nodes - 1 || tape->nodes[n + 1]->region != region)) {
            int first = n;
            while (first > 0 && tape->nodes[first - 1]->region == region) first--;
            TRY(add_recomputation(p, first, n));
        }
        if (p->active[n]) add_step(plan, STEP_BACKWARD, n);
    }
    for (int s = plan->n_forward; s < plan->n_steps; s++) { /* the last step of each weight wins */
        Step *step = &plan->steps[s];
        const Node *node = tape->nodes[step->node];
        if (step->kind != STEP_BACKWARD || !node->backward_weights) continue;
        step->last_use_of_weight = true;
        for (int earlier = plan->n_forward; earlier < s; earlier++)
            if (plan->steps[earlier].last_use_of_weight &&
                tape->nodes[plan->steps[earlier].node]->weight == node->weight)
                plan->steps[earlier].last_use_of_weight = false;
    }
    return OK;
}

/* ---- 3. liveness ---- */

static int *slot(int *table, const Tensor *tensor, int kind) {
    return &table[tensor->id * KINDS + kind];
}

static void find_last_uses(Planner *p) {
    const Plan *plan = p->plan;
    for (int s = 0; s < plan->n_steps; s++) {
        const Step *step = &plan->steps[s];
        const Node *node = p->tape->nodes[step->node];
        unsigned reads = step->kind == STEP_BACKWARD ? saved(p, step->node) : SAVES_OUT(0) - 1;
        for (int i = 0; i < node->n_inputs; i++) {
            int kind = step->kind == STEP_FORWARD ? VALUE : kind_in_backward(node, node->inputs[i]);
            if (reads & SAVES_IN(i)) *slot(p->last_use, node->inputs[i], kind) = s;
            if (step->kind == STEP_BACKWARD && wants_input_grad(node, i))
                *slot(p->last_use, node->inputs[i], GRADIENT) = node->inputs[i]->input ? plan->n_steps : s;
        }
        for (int o = 0; o < node->n_outputs; o++) {
            int kind = step->kind == STEP_FORWARD ? VALUE : kind_in_backward(node, node->outputs[o]);
            if (step->kind != STEP_BACKWARD || (reads & SAVES_OUT(o))) *slot(p->last_use, node->outputs[o], kind) = s;
            if (step->kind == STEP_BACKWARD) *slot(p->last_use, node->outputs[o], GRADIENT) = s;
        }
    }
    for (int t = 0; t < p->tape->n_tensors; t++)
        if (p->tape->tensors[t]->kept) *slot(p->last_use, p->tape->tensors[t], VALUE) = plan->n_steps;
}

/* ---- 4. blocks ---- */

/* Defines (tensor, kind) at step s: on top of `under` where that is possible, else in a block of its own. */
static void define(Planner *p, int s, const Tensor *tensor, int kind, const Tensor *under, int under_kind) {
    int last = *slot(p->last_use, tensor, kind);
    if (last < s) last = s;
    int *block = slot(p->block, tensor, kind);
    if (under && *slot(p->block, under, under_kind) != NONE && *slot(p->last_use, under, under_kind) == s &&
        tensor_bytes(p->tape, under) == tensor_bytes(p->tape, tensor)) {
        *block = *slot(p->block, under, under_kind);
        if (last > p->blocks[*block].last) p->blocks[*block].last = last;
        return;
    }
    *block = p->n_blocks;
    p->blocks[p->n_blocks++] = (Block){.size = tensor_bytes(p->tape, tensor), .first = s, .last = last};
}

static void define_outputs(Planner *p, int s, const Step *step, const Node *node) {
    const Tensor *under = node->spec->in_place == NOT_IN_PLACE ? NULL : node->inputs[node->spec->in_place];
    int under_kind = VALUE;
    if (under && step->kind == STEP_RECOMPUTE) under_kind = kind_in_backward(node, under);
    for (int o = 0; o < node->n_outputs; o++)
        define(p, s, node->outputs[o], step->kind == STEP_FORWARD ? VALUE : RECOMPUTED, o == 0 ? under : NULL,
               under_kind);
}

static void define_gradients(Planner *p, int s, Step *step, const Node *node) {
    for (int i = 0; i < node->n_inputs; i++) {
        if (!wants_input_grad(node, i)) continue;
        step->accumulate[i] = *slot(p->block, node->inputs[i], GRADIENT) != NONE;
        bool in_place = node->spec->grad_in_place == i && p->flows[node->outputs[0]->id] && !node->outputs[0]->seed;
        if (!step->accumulate[i]) define(p, s, node->inputs[i], GRADIENT, in_place ? node->outputs[0] : NULL, GRADIENT);
    }
}

static void make_blocks(Planner *p) {
    for (int s = 0; s < p->plan->n_steps; s++) {
        Step *step = &p->plan->steps[s];
        const Node *node = p->tape->nodes[step->node];
        if (step->kind == STEP_BACKWARD)
            define_gradients(p, s, step, node);
        else
            define_outputs(p, s, step, node);
    }
}

/* ---- 5. placement ---- */

static int larger_first(const void *a, const void *b) {
    const Block *x = *(Block *const *)a, *y = *(Block *const *)b;
    if (x->size != y->size) return x->size < y->size ? 1 : -1;
    return x->first != y->first ? (x->first > y->first) - (x->first < y->first) : (x > y) - (x < y);
}

/* placed[0…n) is sorted by offset; puts `block` at the lowest free offset and keeps the order. */
static void place_block(Block **placed, int n, Block *block) {
    size_t offset = 0;
    for (int i = 0; i < n; i++) {
        const Block *other = placed[i];
        if (other->last < block->first || other->first > block->last) continue;
        if ((size_t)other->offset >= offset + block->size) break;
        size_t end = (size_t)other->offset + other->size;
        if (end > offset) offset = end;
    }
    block->offset = (ptrdiff_t)offset;
    int at = n;
    for (; at > 0 && placed[at - 1]->offset > block->offset; at--) placed[at] = placed[at - 1];
    placed[at] = block;
}

static int place_blocks(Planner *p) {
    Block **order = malloc(2 * ((size_t)p->n_blocks + 1) * sizeof *order);
    if (!order) FAIL(ERR_FAILED, "out of memory while planning");
    Block **placed = order + p->n_blocks + 1;
    for (int b = 0; b < p->n_blocks; b++) order[b] = &p->blocks[b];
    qsort(order, (size_t)p->n_blocks, sizeof *order, larger_first);
    for (int b = 0; b < p->n_blocks; b++) {
        place_block(placed, b, order[b]);
        size_t end = (size_t)order[b]->offset + order[b]->size;
        if (end > p->plan->bytes) p->plan->bytes = end;
    }
    free(order);
    return OK;
}

static ptrdiff_t place_of(const Planner *p, const Tensor *tensor, int kind) {
    if (tensor->input && kind != GRADIENT) return BOUND;
    int block = p->block[tensor->id * KINDS + kind];
    return block == NONE ? NO_PLACE : p->blocks[block].offset;
}

static void write_places(Planner *p) {
    for (int s = 0; s < p->plan->n_steps; s++) {
        Step *step = &p->plan->steps[s];
        const Node *node = p->tape->nodes[step->node];
        bool backward = step->kind == STEP_BACKWARD;
        unsigned reads = backward ? saved(p, step->node) : ~0u;
        for (int i = 0; i < node->n_inputs; i++) {
            int kind = step->kind == STEP_FORWARD ? VALUE : kind_in_backward(node, node->inputs[i]);
            step->in[i] = reads & SAVES_IN(i) ? place_of(p, node->inputs[i], kind) : NO_PLACE;
            step->in_grad[i] =
                backward && wants_input_grad(node, i) ? place_of(p, node->inputs[i], GRADIENT) : NO_PLACE;
        }
        for (int o = 0; o < node->n_outputs; o++) {
            const Tensor *output = node->outputs[o];
            int kind = step->kind == STEP_FORWARD ? VALUE : kind_in_backward(node, output);
            step->out[o] = reads & SAVES_OUT(o) ? place_of(p, output, kind) : NO_PLACE;
            step->out_grad[o] = !backward ? NO_PLACE : output->seed ? BOUND : place_of(p, output, GRADIENT);
        }
    }
    for (int t = 0; t < p->tape->n_tensors; t++) {
        const Tensor *tensor = p->tape->tensors[t];
        p->plan->value_place[t] = tensor->kept && !tensor->input ? place_of(p, tensor, VALUE) : NO_PLACE;
        p->plan->grad_place[t] = tensor->input ? place_of(p, tensor, GRADIENT) : NO_PLACE;
    }
}

int tape_make_plan(Plan *plan, Tape *tape) {
    int rc = OK;
    size_t n_tensors = (size_t)tape->n_tensors, n_nodes = (size_t)tape->n_nodes;
    Planner p = {.tape = tape, .plan = plan};
    Arena temporary = {0};
    ARENA_TRY(plan->steps, &tape->arena, 3 * n_nodes + 1);
    ARENA_TRY(plan->value_place, &tape->arena, n_tensors + 1);
    ARENA_TRY(plan->grad_place, &tape->arena, n_tensors + 1);
    p.flows = arena_alloc(&temporary, n_tensors * sizeof *p.flows);
    p.active = arena_alloc(&temporary, n_nodes * sizeof *p.active);
    p.last_use = arena_alloc(&temporary, n_tensors * KINDS * sizeof *p.last_use);
    p.block = arena_alloc(&temporary, n_tensors * KINDS * sizeof *p.block);
    p.blocks = arena_alloc(&temporary, n_tensors * KINDS * sizeof *p.blocks);
    if (!p.flows || !p.active || !p.last_use || !p.block || !p.blocks)
        FAIL_TO(done, ERR_FAILED, "out of memory while planning %zu tensors", n_tensors);
    for (size_t i = 0; i < n_tensors * KINDS; i++) p.last_use[i] = p.block[i] = NONE;
    TRY_TO(done, find_activity(&p));
    TRY_TO(done, make_schedule(&p));
    find_last_uses(&p);
    make_blocks(&p);
    TRY_TO(done, place_blocks(&p));
    write_places(&p);
done:
    arena_free(&temporary);
    return rc;
}
