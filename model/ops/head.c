/* The fused language-model head: logprob[t] = log softmax(scale · hidden[t]·Wᵀ)[targets[t]], and log-sum-exp, in blocks
 * of logits that stay in cache. With p = softmax: dlogits = dlogprob·(onehot - p)·scale; dhidden = dlogits·W,
 * dW += dlogitsᵀ·hidden.
 *
 * Where dL/dlogprob is known before forward (a sum of w·nll: pretraining, SFT), both gradients are taken while the
 * logits are there, and forward leaves dhidden as output 2; elsewhere backward computes the logits again from the saved
 * log-sum-exp. Outputs: logprob, lse, dhidden, entropy, mean logit, top-1; the last three only where asked for. A
 * masked token's logprob is the constant 0, whatever gradient its loss sends back. An adapter's A is outside of the
 * kernels, which get u and give du (kernels.h's HeadAdapter); in backward u is computed again. */
#include <string.h>

#include "model/kernels/kernels.h"
#include "model/ops/adapter.h"
#include "model/ops/ops.h"
#include "model/ops/registry.h"

typedef struct {
    float logit_scale;
    bool known;                    /* input 1 is the known gradient; else, if present, the mask */
    int entropy, mean_logit, top1; /* outputs, or NO_OUTPUT */
} HeadAttributes;
enum { LOGPROB = 0, LSE = 1, DHIDDEN = 2, NO_OUTPUT = -1 };

HeadOutputs op_head(Tape *tape, Tensor *hidden, Weight *weight, HeadOptions options) {
    HeadOutputs none = {0};
    bool known = options.known_gradient != NULL;
    Tensor *row_input = known ? options.known_gradient : options.mask;
    HeadAttributes attributes = {.logit_scale = options.logit_scale != 0 ? options.logit_scale : 1.0f, .known = known};
    int next = DHIDDEN + 1;
    attributes.entropy = options.entropy ? next++ : NO_OUTPUT;
    attributes.mean_logit = options.mean_logit ? next++ : NO_OUTPUT;
    attributes.top1 = options.top1 ? next++ : NO_OUTPUT;
    Node *node = tape_node(tape, &op_specs[OP_head], row_input ? 2 : 1, (Tensor *[]){hidden, row_input}, weight,
                           &attributes, sizeof attributes);
    if (!node) return none;
    if (hidden->width != weight->cols || hidden->rows != ROWS_TOKENS) {
        tape_fail(tape, "head: %s is %d×%d and its input has width %d", weight->views[0].name, weight->rows,
                  weight->cols, hidden->width);
        return none;
    }
    if (row_input && (!row_input->input || row_input->width != 1 || row_input->rows != ROWS_TOKENS ||
                      row_input->dtype != DTYPE_F32)) {
        tape_fail(tape, "head: mask and known gradient must be fp32 inputs with one number for each token");
        return none;
    }
    tape_limit_targets(tape, weight->rows);
    if (weight->adapter && weight->adapter->dropout > 0 && tape_is_training(tape)) tape_require_segment_ids(tape);
    if (known && node->region >= 0) { /* its forward adds to the weight's gradient, so it cannot run twice */
        tape_fail(tape, "head: with a known gradient it cannot be in a recompute region");
        return none;
    }
    node->starts_backward = known && (node->backward_inputs || node->backward_weights);
    HeadOutputs out = {.logprob = tape_output(tape, node, ROWS_TOKENS, 1, DTYPE_F32),
                       .lse = tape_output(tape, node, ROWS_TOKENS, 1, DTYPE_F32)};
    bool leaves_dhidden = node->starts_backward && node->backward_inputs;
    tape_output(tape, node, leaves_dhidden ? ROWS_TOKENS : ROWS_ONE, leaves_dhidden ? hidden->width : 1, hidden->dtype);
    if (options.entropy) out.entropy = tape_output(tape, node, ROWS_TOKENS, 1, DTYPE_F32);
    if (options.mean_logit) out.mean_logit = tape_output(tape, node, ROWS_TOKENS, 1, DTYPE_F32);
    if (options.top1) out.top1 = tape_output(tape, node, ROWS_TOKENS, 1, DTYPE_I32);
    for (int o = known ? LOGPROB : LSE; o < node->n_outputs; o++) node->outputs[o]->needs_grad = false;
    return out;
}

static HeadResults results(const OpCall *call) {
    const HeadAttributes *a = call->node->attributes;
    return (HeadResults){.logprob = call->out[LOGPROB],
                         .lse = call->out[LSE],
                         .entropy = a->entropy == NO_OUTPUT ? NULL : call->out[a->entropy],
                         .mean_logit = a->mean_logit == NO_OUTPUT ? NULL : call->out[a->mean_logit],
                         .top1 = a->top1 == NO_OUTPUT ? NULL : call->out[a->top1]};
}

static bool narrow(const OpCall *call) {
    return call->node->inputs[0]->dtype == DTYPE_BF16;
}

/* Floats that the kernels take of the scratch. */
static size_t kernel_scratch(const Node *node, int n_tokens) {
    const Weight *w = node->weight;
    int rank = adapter_width(w);
    return node->inputs[0]->dtype == DTYPE_BF16 ? head_scratch_bf16(n_tokens, w->cols, rank, w->rows)
                                                : head_scratch(n_tokens, w->cols, rank, w->rows);
}

/* ---- the adapter ---- */

/* An adapter's arrays, behind what the kernels take of the scratch and a row of numbers for the mask. */
typedef struct {
    HeadAdapter kernel;
    void *u;
    float *dropped, *log_gains;
} Addition;

static size_t floats_of_tokens(int n_tokens) {
    return arena_round_up((size_t)n_tokens * sizeof(float)) / sizeof(float);
}

static size_t addition_floats(const Weight *w, Dtype dtype, int n_tokens) {
    if (!w->adapter) return 0;
    size_t floats = 2 * adapter_inner_floats(w, dtype, n_tokens) + adapter_dropped_floats(w, dtype, n_tokens);
    return floats + (has_magnitudes(w) ? (size_t)w->rows : 0);
}

/* u, and the gains as they are now. `gradients`: they are wanted. */
static const HeadAdapter *begin_addition(Addition *a, OpCall *call, bool gradients) {
    Weight *w = call->node->weight;
    const Adapter *adapter = w->adapter;
    const Weight *b = &adapter->views[0].b;
    Dtype dtype = call->node->inputs[0]->dtype;
    int n = call->batch->n_tokens;
    bool weights = gradients && call->node->backward_weights && adapter->a.trainable;
    size_t inner = adapter_inner_floats(w, dtype, n);
    a->u = call->scratch + arena_round_up(kernel_scratch(call->node, n) * sizeof(float)) / sizeof(float) +
           floats_of_tokens(n);
    float *du = (float *)a->u + inner;
    a->dropped = du + inner;
    a->log_gains = a->dropped + adapter_dropped_floats(w, dtype, n);
    if (has_magnitudes(w)) {
        dora_refresh(w, call->scratch);
        memset(a->log_gains, 0, (size_t)w->rows * sizeof *a->log_gains);
    }
    adapter_inner(call, a->u, n, a->dropped);
    a->kernel = (HeadAdapter){.rank = adapter->rank,
                              .u = a->u,
                              .b = b->value,
                              .forward = weight_forward(b),
                              .backward = weight_backward(b),
                              .gains = adapter->gains,
                              .du = gradients ? du : NULL,
                              .db = weights ? b->grad : NULL,
                              .dlog_gains = a->log_gains};
    return &a->kernel;
}

/* From du on: dhidden is added to. dm = gain·dgain/m, as gain = m/norm; that of a magnitude of 0 is taken as 0. */
static void end_addition(Addition *a, OpCall *call, void *dhidden) {
    Weight *w = call->node->weight;
    const Weight *m = &w->adapter->views[0].magnitude;
    adapter_inner_backward(call, dhidden, a->kernel.du, a->kernel.db != NULL, call->batch->n_tokens, a->dropped);
    if (!has_magnitudes(w) || !a->kernel.db) return;
    for (int v = 0; v < w->rows; v++)
        if (m->value[v] != 0) m->grad[v] += a->log_gains[v] / m->value[v];
    adapter_changed(w);
}

/* ---- forward and backward ---- */

static float *weight_gradient(const OpCall *call) {
    const Weight *w = call->node->weight;
    return call->node->backward_weights && w->trainable ? w->grad : NULL;
}

static void forward_backward(OpCall *call) {
    const HeadAttributes *a = call->node->attributes;
    const Weight *w = call->node->weight;
    Addition addition;
    const HeadAdapter *adapter = w->adapter ? begin_addition(&addition, call, true) : NULL;
    int n_tokens = call->batch->n_tokens;
    const int32_t *targets = call->batch->targets;
    void *dhidden = call->node->backward_inputs ? call->out[DHIDDEN] : NULL;
    float *dw = weight_gradient(call);
    if (narrow(call))
        kernels()->bf16.head_forward_backward(results(call), dhidden, dw, call->in[1], call->in[0], weight_forward(w),
                                              weight_backward(w), adapter, targets, n_tokens, a->logit_scale,
                                              call->scratch);
    else
        kernels()->head_forward_backward(results(call), dhidden, dw, call->in[1], call->in[0], w->value, adapter,
                                         targets, n_tokens, w->cols, w->rows, a->logit_scale, call->scratch);
    if (adapter) end_addition(&addition, call, dhidden);
}

void op_head_forward(OpCall *call) {
    const HeadAttributes *a = call->node->attributes;
    const Weight *w = call->node->weight;
    int n_tokens = call->batch->n_tokens;
    Addition addition;
    if (call->node->starts_backward) {
        forward_backward(call);
        return;
    }
    const HeadAdapter *adapter = w->adapter ? begin_addition(&addition, call, false) : NULL;
    if (narrow(call))
        kernels()->bf16.head_forward(results(call), call->in[0], weight_forward(w), adapter, call->batch->targets,
                                     call->in[1], n_tokens, a->logit_scale, call->scratch);
    else
        kernels()->head_forward(results(call), call->in[0], w->value, adapter, call->batch->targets, call->in[1],
                                n_tokens, w->cols, w->rows, a->logit_scale, call->scratch);
}

static void backward(OpCall *call, void *dhidden, float *dw) {
    const HeadAttributes *a = call->node->attributes;
    const Weight *w = call->node->weight;
    const float *dlogprob = call->out_grad[LOGPROB], *mask = call->in[1];
    int n_tokens = call->batch->n_tokens;
    Addition addition;
    const HeadAdapter *adapter = w->adapter ? begin_addition(&addition, call, true) : NULL;
    if (mask) {
        size_t kernel = arena_round_up(kernel_scratch(call->node, n_tokens) * sizeof(float));
        float *masked = call->scratch + kernel / sizeof(float);
        for (int t = 0; t < n_tokens; t++) masked[t] = mask[t] == 0 ? 0 : dlogprob[t];
        dlogprob = masked;
    }
    if (narrow(call))
        kernels()->bf16.head_backward(dhidden, call->accumulate[0], dw, dlogprob, call->in[0], weight_forward(w),
                                      weight_backward(w), adapter, call->out[LSE], call->batch->targets, n_tokens,
                                      a->logit_scale, call->scratch);
    else
        kernels()->head_backward(dhidden, call->accumulate[0], dw, dlogprob, call->in[0], w->value, adapter,
                                 call->out[LSE], call->batch->targets, n_tokens, w->cols, w->rows, a->logit_scale,
                                 call->scratch);
    if (adapter) end_addition(&addition, call, dhidden);
}

/* dx += dhidden */
static void add_dhidden(const OpCall *call, size_t n) {
    const bf16 *dhidden = call->out[DHIDDEN];
    bf16 *dx = call->in_grad[0];
    if (!narrow(call))
        kernels()->add(call->in_grad[0], call->in_grad[0], call->out[DHIDDEN], n);
    else
        for (size_t i = 0; i < n; i++) dx[i] = f32_to_bf16(bf16_to_f32(dx[i]) + bf16_to_f32(dhidden[i]));
}

/* Where both gradients are wanted, op_head_backward_weights has taken them from one set of logits. */
void op_head_backward_inputs(OpCall *call) {
    if (!call->node->starts_backward) {
        if (!call->node->backward_weights) backward(call, call->in_grad[0], NULL);
        return;
    }
    size_t n = (size_t)call->batch->n_tokens * (size_t)call->node->weight->cols;
    if (call->accumulate[0])
        add_dhidden(call, n);
    else
        memcpy(call->in_grad[0], call->out[DHIDDEN], n * dtype_size(call->node->inputs[0]->dtype));
}

void op_head_backward_weights(OpCall *call) {
    if (!call->node->starts_backward)
        backward(call, call->node->backward_inputs ? call->in_grad[0] : NULL, weight_gradient(call));
}

size_t op_head_scratch(const Node *node, int capacity) {
    const Weight *w = node->weight;
    bool masked = node->n_inputs == 2 && !node->starts_backward;
    if (!w->adapter) return kernel_scratch(node, capacity) + (masked ? floats_of_tokens(capacity) : 0);
    size_t kernel = arena_round_up(kernel_scratch(node, capacity) * sizeof(float)) / sizeof(float);
    size_t floats = kernel + floats_of_tokens(capacity) + addition_floats(w, node->inputs[0]->dtype, capacity);
    return has_magnitudes(w) && floats < dora_refresh_scratch(w) ? dora_refresh_scratch(w) : floats;
}

/* Counted over the tokens that are scored at all; the mask's zeros are not known here. */
double op_head_flops(const Node *node, const TapeBatch *batch) {
    return 2.0 * batch->n_tokens * (double)weight_elements(node->weight) + adapter_flops(node->weight, batch->n_tokens);
}
