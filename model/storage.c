/* Where a model's parameters live: names and shapes, fp32 values and gradients, the packings of bf16 products, the
 * matrices of a frozen model in fewer bits, rotary tables. Each kind is one run of pages. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/kernels/quantised.h"
#include "model/llama.h"
#include "model/storage.h"

/* ---- names and shapes ---- */

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

/* Hugging Face's LlamaForSequenceClassification has a matrix with a row for each label, `score`. */
static int describe_head(Llama *model) {
    const LlamaShape *shape = &model->shape;
    if (shape->n_scores == 0) {
        TRY(describe_one(model, &model->head, shape->vocab_size, shape->dim, "lm_head", -1));
        if (shape->tied) model->head.tied = &model->embedding;
        return OK;
    }
    TRY(describe_one(model, &model->head, shape->n_scores, shape->dim, "score", -1));
    model->head.n_dims = 2;
    model->head.decay = true;
    return OK;
}

static int describe_all(Llama *model) {
    const LlamaShape *shape = &model->shape;
    ARENA_TRY(model->layers, &model->arena, shape->n_layers);
    ARENA_TRY(model->weights, &model->arena, 6 * shape->n_layers + 3);
    TRY(describe_one(model, &model->embedding, shape->vocab_size, shape->dim, "model.embed_tokens", -1));
    for (int layer = 0; layer < shape->n_layers; layer++) TRY(describe_layer(model, layer));
    TRY(describe_one(model, &model->norm, 1, shape->dim, "model.norm", -1));
    TRY(describe_head(model));
    return OK;
}

/* ---- storage ---- */

static const char *const frozen_names[FROZEN_KINDS] = {"none", "16bit", "int8", "nf4"};

const char *frozen_name(Frozen frozen) {
    return frozen_names[frozen];
}

static bool is_score_head(const Llama *model, const Weight *weight) {
    return model->shape.n_scores > 0 && weight == &model->head;
}

static bool is_vocabulary(const Llama *model, const Weight *weight) {
    return weight == &model->embedding || (weight == &model->head && !is_score_head(model, weight));
}

/* Trained though the rest may be frozen. */
static bool is_beside(const Llama *model, const Weight *weight, LlamaOptions options) {
    return (options.train_head && is_score_head(model, weight)) ||
           (options.train_vocabulary && is_vocabulary(model, weight));
}

static bool is_frozen(const Llama *model, const Weight *weight, LlamaOptions options) {
    return options.frozen != FROZEN_NONE && weight->n_dims == 2 && !is_score_head(model, weight) &&
           !is_beside(model, weight, options);
}

static bool is_read_by_head(const Llama *model, const Weight *weight) {
    return weight == &model->head || (weight == &model->embedding && model->head.tied);
}

/* Kept in fewer than 32 bits. fp32 heads read fp32 values, and a tied embedding's are the head's. */
static bool is_narrow(const Llama *model, const Weight *weight, LlamaOptions options) {
    bool wide_head = options.precision == DTYPE_F32 && !options.quantised_head;
    return is_frozen(model, weight, options) && !(wide_head && is_read_by_head(model, weight));
}

static bool is_quantised(const Llama *model, const Weight *weight, LlamaOptions options) {
    bool whole = weight == &model->embedding || weight == &model->head; /* in 16 bits */
    if (options.quantised_head) whole = whole && !is_read_by_head(model, weight);
    return is_narrow(model, weight, options) && options.frozen != FROZEN_16BIT && !whole;
}

static QuantisedKind quantised_kind(LlamaOptions options) {
    return options.frozen == FROZEN_INT8 ? QUANTISED_INT8 : QUANTISED_NF4;
}

static size_t view_elements(const Weight *weight, int v) {
    return (size_t)weight->views[v].rows * (size_t)weight->cols;
}

static size_t frozen_bytes(const Llama *model, const Weight *weight, LlamaOptions options) {
    size_t bytes = 0;
    if (!is_quantised(model, weight, options)) return arena_round_up(weight_elements(weight) * sizeof(bf16));
    for (int v = 0; v < weight->n_views; v++)
        bytes += quantised_bytes(quantised_kind(options), view_elements(weight, v));
    return bytes;
}

/* Matrices that take part in products: all but the embedding, and a head that op_score reads. */
static bool is_packed(const Llama *model, const Weight *weight, LlamaOptions options) {
    bool wanted = options.precision == DTYPE_BF16 && !options.unpacked;
    return wanted && !is_frozen(model, weight, options) && weight->n_dims == 2 && weight != &model->embedding &&
           !is_score_head(model, weight);
}

static bool has_backward(const Weight *weight, LlamaOptions options) {
    return options.training || weight->trainable;
}

/* How much storage the model takes. */
static void measure(Llama *model, LlamaOptions options) {
    for (int i = 0; i < model->n_weights; i++) {
        Weight *weight = model->weights[i];
        weight->trainable =
            (options.training && !is_frozen(model, weight, options)) || is_beside(model, weight, options);
        weight->narrow = is_narrow(model, weight, options);
        if (!weight->tied && weight->narrow) model->frozen_bytes += frozen_bytes(model, weight, options);
        if (!weight->tied && !weight->narrow) model->value_bytes += weight_value_bytes(weight);
        if (weight->trainable)
            model->grad_bytes += weight_value_bytes(weight); /* a tied head's is for the rows looked up */
        if (weight->trainable && weight->tied)
            model->grad_bytes += arena_round_up((size_t)weight->rows * sizeof *weight->row_slot);
        if (is_packed(model, weight, options))
            model->packing_bytes +=
                weight_forward_bytes(weight) + (has_backward(weight, options) ? weight_backward_bytes(weight) : 0);
    }
}

/* Where a weight's values lie, as products read them. */
RowMajor weight_row_major(const Weight *weight, const void *rows, Dtype dtype) {
    return (RowMajor){
        .dtype = dtype, .n_views = 1, .cols = weight->cols, .view = {rows}, .first_row = {0, weight->rows}};
}

static void place_packings(Llama *model, LlamaOptions options) {
    bf16 *next = model->packings;
    for (int i = 0; i < model->n_weights; i++) {
        Weight *weight = model->weights[i];
        if (!is_packed(model, weight, options)) continue;
        weight->forward = next;
        next += weight_forward_bytes(weight) / sizeof *next;
        if (has_backward(weight, options)) weight->backward = next;
        if (has_backward(weight, options)) next += weight_backward_bytes(weight) / sizeof *next;
        if (weight->tied) weight->tied->forward = weight->forward; /* the optimizer's pass over the values finds them */
        if (weight->tied) weight->tied->backward = weight->backward;
    }
}

/* A matrix of its own for each view. */
static int place_quantised(Llama *model, Weight *weight, char *storage, LlamaOptions options) {
    Quantised *parts;
    ARENA_TRY(parts, &model->arena, weight->n_views);
    weight->stored = (RowMajor){.n_views = weight->n_views, .cols = weight->cols, .quantised = parts};
    for (int v = 0; v < weight->n_views; v++) {
        parts[v] = quantised_place(quantised_kind(options), view_elements(weight, v), storage);
        storage += quantised_bytes(quantised_kind(options), view_elements(weight, v));
        weight->stored.first_row[v] = weight->views[v].first_row;
        weight->stored.first_row[v + 1] = weight->views[v].first_row + weight->views[v].rows;
    }
    return OK;
}

static int place_values(Llama *model, LlamaOptions options) {
    size_t value = 0, grad = 0, frozen = 0;
    for (int i = 0; i < model->n_weights; i++) {
        Weight *weight = model->weights[i];
        float *gradient = weight->trainable ? model->grads + grad / sizeof(float) : NULL;
        if (weight->trainable) grad += weight_value_bytes(weight);
        weight->grad = weight->tied ? weight->tied->grad : gradient;
        if (weight->tied) {
            weight->value = weight->tied->value;
            weight->stored = weight->tied->stored;
            if (gradient) { /* the last in order: the slots lie behind it */
                weight->tied->row_grad = gradient;
                weight->tied->row_slot = (int32_t *)(void *)(model->grads + grad / sizeof(float));
            }
        } else if (weight->narrow) {
            if (is_quantised(model, weight, options))
                TRY(place_quantised(model, weight, model->frozen + frozen, options));
            else
                weight->stored = weight_row_major(weight, model->frozen + frozen, DTYPE_BF16);
            frozen += frozen_bytes(model, weight, options);
        } else {
            weight->value = model->values + value / sizeof(float);
            weight->stored = weight_row_major(weight, weight->value, DTYPE_F32);
            value += weight_value_bytes(weight);
        }
    }
    return OK;
}

/* Pages, or NULL and no error where nothing is wanted. */
int weight_pages(void *pages, size_t bytes, const char *what) {
    void *got = bytes ? pages_alloc(bytes) : NULL;
    memcpy(pages, &got, sizeof got);
    if (bytes && !got) FAIL(ERR_FAILED, "out of memory: the model needs %zu bytes for %s", bytes, what);
    return OK;
}

static int allocate(Llama *model, LlamaOptions options) {
    TRY(weight_pages(&model->values, model->value_bytes, "parameters"));
    TRY(weight_pages(&model->grads, model->grad_bytes, "gradients"));
    TRY(weight_pages(&model->packings, model->packing_bytes, "packed parameters"));
    TRY(weight_pages(&model->frozen, model->frozen_bytes, "frozen parameters"));
    pages_large(model->packings, model->packing_bytes);
    TRY(place_values(model, options));
    place_packings(model, options);
    return OK;
}

/* ---- packings ---- */

typedef struct {
    bf16 *to;
    Panels panels;
} Packing;

static void pack_range(void *context, size_t begin, size_t end, int thread) {
    const Packing *packing = context;
    size_t stride = panels_elements(PANEL_LANES, packing->panels.depth);
    (void)thread;
    kernels()->bf16.pack(packing->to + begin / PANEL_LANES * stride, stride, &packing->panels, (int)begin, (int)end, 0,
                         packing->panels.depth);
}

static void pack(bf16 *to, Panels panels) {
    Packing packing = {to, panels};
    packing.panels.packed = NULL;
    if (to) parallel_for((size_t)panels.lanes, PANEL_LANES, pack_range, &packing);
}

void weight_pack(const Weight *weight) {
    pack(weight->forward, weight_forward(weight));
    pack(weight->backward, weight_backward(weight));
}

void llama_pack(Llama *model) {
    for (int i = 0; i < model->n_weights; i++)
        if (model->weights[i] != &model->embedding) /* what it has is its tied head's */
            weight_pack(model->weights[i]);
}

/* ---- the model ---- */

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
    model->packed_only = options.packed_only;
    TRY_TO(failed, llama_shape_check(&model->shape));
    TRY_TO(failed, describe_all(model));
    measure(model, options);
    bool narrow = options.precision == DTYPE_BF16 && model->head.narrow;
    model->inference = narrow || model->packing_bytes > 0 ? DTYPE_BF16 : DTYPE_F32;
    if (!options.names_only) TRY_TO(failed, allocate(model, options));
    TRY_TO(failed, make_rotary(model, options));
    *out = model;
    return OK;
failed:
    llama_free(model);
    return rc;
}

/* The weight's values wherever `from` has them. */
static void borrow(Weight *weight, const Weight *from) {
    weight->value = from->value;
    weight->stored = from->stored;
    weight->forward = from->forward;
    weight->backward = from->backward;
    weight->narrow = from->narrow;
}

int llama_new_on_body(Llama **out, const Llama *body, LlamaOptions options) {
    int rc = OK;
    Llama *model = calloc(1, sizeof *model);
    *out = NULL;
    if (!model) FAIL(ERR_FAILED, "out of memory");
    model->shape = body->shape;
    model->shape.n_scores = 1;
    model->shape.tied = false;
    model->rotary = body->rotary;
    TRY_TO(failed, describe_all(model));
    Weight *head = &model->head;
    for (int i = 0; model->weights[i] != head; i++) borrow(model->weights[i], body->weights[i]);
    model->value_bytes = weight_value_bytes(head);
    model->grad_bytes = options.training ? model->value_bytes : 0;
    head->trainable = options.training;
    if (!options.names_only) {
        TRY_TO(failed, weight_pages(&model->values, model->value_bytes, "a score head"));
        TRY_TO(failed, weight_pages(&model->grads, model->grad_bytes, "a score head's gradients"));
        head->value = model->values;
        head->grad = model->grads;
        head->stored = weight_row_major(head, head->value, DTYPE_F32);
    }
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
    pages_free(model->packings, model->packing_bytes);
    pages_free(model->frozen, model->frozen_bytes);
    arena_free(&model->arena);
    free(model);
}

Dtype llama_inference_dtype(const Llama *model) {
    return model->inference;
}

size_t llama_bytes(const Llama *model) {
    return model->value_bytes + model->grad_bytes + model->packing_bytes + model->frozen_bytes + model->arena.total;
}

static void merge_rows(void *context, size_t begin, size_t end, int thread) {
    Weight *weight = context;
    size_t width = (size_t)weight->cols;
    (void)thread;
    for (size_t row = begin; row < end; row++) {
        if (weight->row_slot[row] == 0) continue;
        float *from = weight->row_grad + (size_t)(weight->row_slot[row] - 1) * width;
        float *to = weight->grad + row * width;
        for (size_t i = 0; i < width; i++) to[i] += from[i];
        memset(from, 0, width * sizeof *from);
        weight->row_slot[row] = 0;
    }
}

void llama_merge_tied_gradients(Llama *model) {
    enum { GRAIN = 64 };
    if (!model->embedding.row_grad) return;
    parallel_for((size_t)model->embedding.rows, GRAIN, merge_rows, &model->embedding);
    model->embedding.n_row_grads = 0;
}

size_t llama_touched_gradient_bytes(const Llama *model, size_t tokens) {
    const Weight *head = &model->head;
    size_t rows = (size_t)head->rows;
    if (!head->tied || !head->trainable || tokens >= rows) return model->grad_bytes;
    return model->grad_bytes - (rows - tokens) * (size_t)head->cols * sizeof(float);
}

void llama_gradients(const Llama *model, float **gradients, size_t *n) {
    *gradients = model->grads;
    *n = (model->embedding.row_grad ? (size_t)(model->embedding.row_grad - model->grads)
                                    : model->grad_bytes / sizeof(float));
}
