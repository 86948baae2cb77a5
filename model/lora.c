/* See lora.h. An adapter's parameters are Weights like the model's, so files, optimizer and packings treat them alike.
 */
#include "model/lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/philox.h"
#include "model/kernels/kernels.h"
#include "model/storage.h"

static const char *const target_names[LORA_TARGETS] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                       "gate_proj", "up_proj", "down_proj"};

const char *lora_target_name(LoraTarget target) {
    return target_names[target];
}

/* ---- names and shapes ---- */

/* "base_model.model." + "model.layers.0.self_attn.q_proj" + suffix */
static int adapter_name(char **name, Lora *lora, const char *of, const char *suffix) {
    static const char prefix[] = "base_model.model.", ending[] = ".weight";
    size_t stem = strlen(of) - strlen(ending), size = sizeof prefix + stem + strlen(suffix);
    ARENA_TRY(*name, &lora->arena, size);
    snprintf(*name, size, "%s%.*s%s", prefix, (int)stem, of, suffix);
    return OK;
}

static bool wanted(const Lora *lora, const WeightView *view) {
    for (int t = 0; t < LORA_TARGETS; t++)
        if (lora->options.targets & 1u << t && strstr(view->name, target_names[t])) return true;
    return false;
}

static void describe(Weight *weight, int rows, int cols, Lora *lora) {
    weight->rows = rows;
    weight->cols = cols;
    weight->n_dims = 2;
    weight->decay = true;
    lora->weights[lora->n_weights++] = weight;
}

/* Gives `base` its adapter where one of its views is a target. */
static int attach(Lora *lora, Weight *base, Adapter *adapter) {
    const LoraOptions *options = &lora->options;
    char *name;
    adapter->rank = options->rank;
    adapter->scale = (float)(options->alpha / (options->rank_stabilised ? sqrt(options->rank) : options->rank));
    for (int v = 0; v < base->n_views; v++) {
        if (!wanted(lora, &base->views[v])) continue;
        TRY(adapter_name(&name, lora, base->views[v].name, ".lora_A.weight"));
        adapter->a.views[adapter->n] = (WeightView){name, adapter->n * options->rank, options->rank};
        adapter->views[adapter->n++].first_row = base->views[v].first_row;
    }
    if (adapter->n == 0) return OK;
    adapter->a.n_views = adapter->n;
    describe(&adapter->a, adapter->n * options->rank, base->cols, lora);
    for (int v = 0, n = 0; v < base->n_views; v++) {
        if (!wanted(lora, &base->views[v])) continue;
        Weight *b = &adapter->views[n++].b;
        TRY(adapter_name(&name, lora, base->views[v].name, ".lora_B.weight"));
        b->n_views = 1;
        b->views[0] = (WeightView){name, 0, base->views[v].rows};
        describe(b, base->views[v].rows, options->rank, lora);
    }
    base->adapter = adapter;
    return OK;
}

static int attach_all(Lora *lora) {
    enum { PER_LAYER = 4, MOST_WEIGHTS = PER_LAYER + LORA_TARGETS };
    const Llama *model = lora->model;
    ARENA_TRY(lora->adapters, &lora->arena, PER_LAYER * model->shape.n_layers);
    ARENA_TRY(lora->weights, &lora->arena, MOST_WEIGHTS * model->shape.n_layers);
    Adapter *next = lora->adapters;
    for (int l = 0; l < model->shape.n_layers; l++) {
        LlamaLayer *layer = &model->layers[l];
        TRY(attach(lora, &layer->qkv, next++));
        TRY(attach(lora, &layer->attention_out, next++));
        TRY(attach(lora, &layer->gate_up, next++));
        TRY(attach(lora, &layer->down, next++));
    }
    return OK;
}

/* ---- storage ---- */

static void measure(Lora *lora, LlamaOptions how) {
    for (int i = 0; i < lora->n_weights; i++) {
        Weight *weight = lora->weights[i];
        weight->trainable = how.training;
        lora->value_bytes += weight_value_bytes(weight);
        if (how.training) lora->grad_bytes += weight_value_bytes(weight);
        if (how.precision != DTYPE_BF16) continue;
        lora->packing_bytes += weight_forward_bytes(weight) + (how.training ? weight_backward_bytes(weight) : 0);
    }
}

static int allocate(Lora *lora, LlamaOptions how) {
    TRY(weight_pages(&lora->values, lora->value_bytes, "adapters"));
    TRY(weight_pages(&lora->grads, lora->grad_bytes, "the adapters' gradients"));
    TRY(weight_pages(&lora->packings, lora->packing_bytes, "packed adapters"));
    size_t value = 0, packing = 0;
    for (int i = 0; i < lora->n_weights; i++) {
        Weight *weight = lora->weights[i];
        weight->value = lora->values + value / sizeof(float);
        if (how.training) weight->grad = lora->grads + value / sizeof(float);
        weight->stored = weight_row_major(weight, weight->value, DTYPE_F32);
        value += weight_value_bytes(weight);
        if (how.precision != DTYPE_BF16) continue;
        weight->forward = lora->packings + packing / sizeof(bf16);
        packing += weight_forward_bytes(weight);
        if (!how.training) continue;
        weight->backward = lora->packings + packing / sizeof(bf16);
        packing += weight_backward_bytes(weight);
    }
    return OK;
}

static int check_options(const LoraOptions *options) {
    if (options->rank <= 0) FAIL(ERR_USAGE, "lora.rank is %d; it must be positive", options->rank);
    if (!(options->alpha > 0)) FAIL(ERR_USAGE, "lora.alpha is %g; it must be positive", options->alpha);
    if (!(options->targets & LORA_ALL)) FAIL(ERR_USAGE, "lora.targets names no matrix");
    return OK;
}

int lora_new(Lora **out, Llama *model, LoraOptions options, LlamaOptions how) {
    int rc = OK;
    *out = NULL;
    TRY(check_options(&options));
    Lora *lora = calloc(1, sizeof *lora);
    if (!lora) FAIL(ERR_FAILED, "out of memory");
    lora->options = options;
    lora->model = model;
    TRY_TO(failed, attach_all(lora));
    measure(lora, how);
    if (!how.names_only) TRY_TO(failed, allocate(lora, how));
    *out = lora;
    return OK;
failed:
    lora_free(lora);
    return rc;
}

void lora_free(Lora *lora) {
    if (!lora) return;
    for (int i = 0; i < lora->model->n_weights; i++) lora->model->weights[i]->adapter = NULL;
    pages_free(lora->values, lora->value_bytes);
    pages_free(lora->grads, lora->grad_bytes);
    pages_free(lora->packings, lora->packing_bytes);
    arena_free(&lora->arena);
    free(lora);
}

void lora_pack(Lora *lora) {
    for (int i = 0; i < lora->n_weights; i++) weight_pack(lora->weights[i]);
}

/* ---- values ---- */

bool lora_is_a(const Weight *weight) {
    return strstr(weight->views[0].name, ".lora_A.") != NULL;
}

void lora_init(Lora *lora, uint64_t seed) {
    for (int i = 0; i < lora->n_weights; i++) {
        const Weight *weight = lora->weights[i];
        memset(weight->value, 0, weight_elements(weight) * sizeof(float));
        if (!lora_is_a(weight)) continue;
        float bound = 1 / sqrtf((float)weight->cols);
        for (int v = 0; v < weight->n_views; v++) {
            const WeightView *view = &weight->views[v];
            float *value = weight->value + (size_t)view->first_row * (size_t)weight->cols;
            uint64_t hash = hash_bytes(view->name, strlen(view->name), HASH_START);
            PhiloxKey key = philox_key(seed, PHILOX_INIT, (uint32_t)hash, (uint32_t)(hash >> 32));
            for (size_t e = 0; e < (size_t)view->rows * (size_t)weight->cols; e++)
                value[e] = bound * (2 * philox_uniform(key, e) - 1);
        }
    }
    lora_pack(lora);
}

int lora_arrays(const Lora *lora, float *const *storage, const char *prefix, Arena *arena, NamedArray **arrays,
                size_t *n) {
    return weights_arrays(lora->weights, lora->n_weights, storage, prefix, arena, arrays, n);
}

int lora_load_storage(const Lora *lora, float *const *storage, const char *prefix, const NamedFile *file) {
    int rc = OK;
    Arena arena = {0};
    NamedArray *arrays;
    size_t n;
    TRY_TO(done, lora_arrays(lora, storage, prefix, &arena, &arrays, &n));
    TRY_TO(done, weights_load_arrays(arrays, n, file));
done:
    arena_free(&arena);
    return rc;
}

int lora_load(Lora *lora, const NamedFile *file) {
    TRY(lora_load_storage(lora, NULL, "", file));
    lora_pack(lora);
    return OK;
}

/* ---- merging ---- */

bool lora_delta(const Lora *lora, const char *name, int first, int n, float *out) {
    for (int i = 0; i < lora->model->n_weights; i++) {
        const Weight *base = lora->model->weights[i];
        const Adapter *adapter = base->adapter;
        for (int v = 0, next = 0; adapter && v < base->n_views; v++) {
            if (!wanted(lora, &base->views[v])) continue;
            const Weight *b = &adapter->views[next].b;
            size_t rank = (size_t)adapter->rank, cols = (size_t)base->cols;
            const float *a = adapter->a.value + (size_t)next++ * rank * cols;
            if (strcmp(base->views[v].name, name) != 0) continue;
            kernels()->gemm(false, false, n, base->cols, adapter->rank, adapter->scale, b->value + (size_t)first * rank,
                            rank, a, cols, 0, out, cols);
            return true;
        }
    }
    return false;
}
