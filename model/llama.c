/* The model. A page for its layer, a page for its parameters. */
#include "model/llama.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

/* ---- the forward pass ------------------------------------------------------------------------------------------- */

Tensor *llama_layer(Tape *tape, Tensor *x, Llama *model, int layer, const KvCache *cache) {
    const LlamaShape *shape = &model->shape;
    LlamaLayer *w = &model->layers[layer];
    AttentionShape heads = {.n_heads = shape->n_heads, .n_kv_heads = shape->n_kv_heads, .head_dim = shape->head_dim};

    Tensor *h = op_rmsnorm(tape, x, &w->attention_norm, shape->norm_eps);
    Tensor *qkv = op_linear(tape, h, &w->qkv);
    qkv = op_rotary(tape, qkv, shape->n_heads + shape->n_kv_heads, model->rotary);
    Tensor *mixed =
        cache ? op_attention_cached(tape, qkv, heads, &cache->layers[layer]) : op_attention(tape, qkv, heads);
    x = op_add(tape, x, op_linear(tape, mixed, &w->attention_out));

    h = op_rmsnorm(tape, x, &w->ffn_norm, shape->norm_eps);
    h = op_swiglu(tape, op_linear(tape, h, &w->gate_up));
    return op_add(tape, x, op_linear(tape, h, &w->down));
}

Tensor *llama_hidden(Tape *tape, Llama *model, LlamaRecord record) {
    Tensor *x = op_embedding(tape, &model->embedding);
    for (int layer = 0; layer < model->shape.n_layers; layer++) {
        if (record.recompute) tape_recompute_begin(tape);
        x = llama_layer(tape, x, model, layer, record.cache);
        if (record.recompute) tape_recompute_end(tape);
    }
    return op_rmsnorm(tape, x, &model->norm, model->shape.norm_eps);
}

HeadOutputs llama_record(Tape *tape, Llama *model, LlamaRecord record, HeadOptions head) {
    return op_head(tape, llama_hidden(tape, model, record), &model->head, head);
}

/* ---- the parameters --------------------------------------------------------------------------------------------- */

/* Names a weight and gives it its shape; views are "prefix + suffix", `rows` each. */
static int describe(Llama *model, Weight *weight, int cols, int n_views, const char *const *suffixes, const int *rows,
                    int layer) {
    weight->cols = cols;
    weight->n_dims = rows[0] == 1 && cols == model->shape.dim ? 1 : 2;
    weight->decay = weight->n_dims == 2;
    weight->n_views = n_views;
    for (int v = 0; v < n_views; v++) {
        char name[128];
        if (layer >= 0)
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, suffixes[v]);
        else
            snprintf(name, sizeof name, "%s.weight", suffixes[v]);
        weight->views[v] = (WeightView){arena_strdup(&model->arena, name), weight->rows, rows[v]};
        if (!weight->views[v].name) FAIL(ERR_FAILED, "out of memory");
        weight->rows += rows[v];
    }
    model->weights[model->n_weights++] = weight;
    return OK;
}

static int describe_one(Llama *model, Weight *weight, int rows, int cols, const char *suffix, int layer) {
    return describe(model, weight, cols, 1, &suffix, &rows, layer);
}

static int describe_layer(Llama *model, int index) {
    static const char *const qkv[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
    static const char *const gate_up[] = {"mlp.gate_proj", "mlp.up_proj"};
    const LlamaShape *shape = &model->shape;
    LlamaLayer *layer = &model->layers[index];
    int query = shape->n_heads * shape->head_dim, key = shape->n_kv_heads * shape->head_dim;
    TRY(describe_one(model, &layer->attention_norm, 1, shape->dim, "input_layernorm", index));
    TRY(describe(model, &layer->qkv, shape->dim, 3, qkv, (int[]){query, key, key}, index));
    TRY(describe_one(model, &layer->attention_out, shape->dim, query, "self_attn.o_proj", index));
    TRY(describe_one(model, &layer->ffn_norm, 1, shape->dim, "post_attention_layernorm", index));
    TRY(describe(model, &layer->gate_up, shape->dim, 2, gate_up, (int[]){shape->ffn_dim, shape->ffn_dim}, index));
    TRY(describe_one(model, &layer->down, shape->dim, shape->ffn_dim, "mlp.down_proj", index));
    return OK;
}

static int describe_all(Llama *model) {
    const LlamaShape *shape = &model->shape;
    ARENA_TRY(model->layers, &model->arena, shape->n_layers);
    ARENA_TRY(model->weights, &model->arena, 6 * shape->n_layers + 3);
    TRY(describe_one(model, &model->embedding, shape->vocab_size, shape->dim, "model.embed_tokens", -1));
    for (int layer = 0; layer < shape->n_layers; layer++) TRY(describe_layer(model, layer));
    TRY(describe_one(model, &model->norm, 1, shape->dim, "model.norm", -1));
    TRY(describe_one(model, &model->head, shape->vocab_size, shape->dim, "lm_head", -1));
    if (shape->tied) model->head.tied = &model->embedding;
    return OK;
}

/* Every weight starts on a cache line. */
static size_t padded(const Weight *weight) {
    size_t bytes = weight_elements(weight) * sizeof(float);
    return arena_round_up(bytes);
}

/* How much storage the model takes. */
static void measure(Llama *model, LlamaOptions options) {
    for (int i = 0; i < model->n_weights; i++) {
        if (!model->weights[i]->tied) model->value_bytes += padded(model->weights[i]);
        if (options.training) model->grad_bytes += padded(model->weights[i]);
        model->weights[i]->trainable = options.training;
    }
}

static int allocate(Llama *model, LlamaOptions options) {
    model->values = pages_alloc(model->value_bytes);
    model->grads = options.training ? pages_alloc(model->grad_bytes) : NULL;
    if (!model->values || (options.training && !model->grads))
        FAIL(ERR_FAILED, "out of memory: the model needs %zu bytes for parameters and %zu for gradients",
             model->value_bytes, model->grad_bytes);
    size_t value = 0, grad = 0;
    for (int i = 0; i < model->n_weights; i++) {
        Weight *weight = model->weights[i];
        weight->value = weight->tied ? weight->tied->value : model->values + value / sizeof(float);
        weight->grad = options.training ? model->grads + grad / sizeof(float) : NULL;
        if (!weight->tied) value += padded(weight);
        grad += padded(weight);
    }
    return OK;
}

size_t llama_table_bytes(const LlamaShape *shape, int n_positions) {
    return (size_t)n_positions * (size_t)shape->head_dim * sizeof(float);
}

static int make_rotary(Llama *model, LlamaOptions options) {
    const LlamaShape *shape = &model->shape;
    int n_positions = options.n_positions > 0 ? options.n_positions : shape->max_context;
    model->rotary = (RotaryTable){NULL, NULL, n_positions, shape->head_dim};
    if (options.names_only) return OK;
    float *tables;
    ARENA_TRY(tables, &model->arena, (size_t)n_positions * (size_t)shape->head_dim);
    float *sines = tables + (size_t)n_positions * (size_t)(shape->head_dim / 2);
    rotary_tables(tables, sines, n_positions, shape->head_dim, shape->rope_theta, shape->rope_scaling);
    model->rotary = (RotaryTable){tables, sines, n_positions, shape->head_dim};
    return OK;
}

int llama_new(Llama **out, const LlamaShape *shape, LlamaOptions options) {
    int rc = OK;
    Llama *model = calloc(1, sizeof *model);
    *out = NULL;
    if (!model) FAIL(ERR_FAILED, "out of memory");
    model->shape = *shape;
    TRY_TO(failed, llama_shape_check(&model->shape));
    TRY_TO(failed, describe_all(model));
    measure(model, options);
    if (!options.names_only) TRY_TO(failed, allocate(model, options));
    TRY_TO(failed, make_rotary(model, options));
    *out = model;
    return OK;
failed:
    llama_free(model);
    return rc;
}

void llama_free(Llama *model) {
    if (!model) return;
    pages_free(model->values, model->value_bytes); /* NULL where there are names only */
    pages_free(model->grads, model->grad_bytes);
    arena_free(&model->arena);
    free(model);
}

size_t llama_bytes(const Llama *model) {
    return model->value_bytes + model->grad_bytes + model->arena.total;
}

void llama_merge_tied_gradients(Llama *model) {
    Weight *head = &model->head;
    if (!head->tied || !head->grad) return;
    size_t n = weight_elements(head);
    kernels()->add(head->tied->grad, head->tied->grad, head->grad, n);
    memset(head->grad, 0, n * sizeof *head->grad);
}

void llama_gradients(const Llama *model, float **gradients, size_t *n) {
    *gradients = model->grads;
    *n = (model->head.tied ? (size_t)(model->head.grad - model->grads) : model->grad_bytes / sizeof(float));
}
