/* See lora.h. An adapter's parameters are Weights like the model's, so files, optimizer and packings treat them alike.
 */
#include "model/lora.h"

#include "model/lora_peft.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/philox.h"
#include "model/kernels/kernels.h"
#include "model/ops/adapter.h"
#include "model/storage.h"

static const char *const target_names[LORA_TARGETS] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                       "gate_proj", "up_proj", "down_proj"};

const char *lora_target_name(LoraTarget target) {
    return target_names[target];
}

/* ---- names and shapes ---- */

/* "base_model.model." + "model.layers.0.self_attn.q_proj" + suffix */
static int adapter_name(char **name, Lora *lora, const char *of, const char *suffix) {
    static const char prefix[] = LORA_PREFIX, ending[] = ".weight";
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
    weight->decay = true; /* magnitudes too, as transformers' Trainer has it */
    lora->weights[lora->n_weights++] = weight;
}

/* Each adapted row's length, as trained; gains are 1 where rows are not adapted. */
static int attach_magnitudes(Lora *lora, Weight *base, Adapter *adapter) {
    char *name;
    ARENA_TRY(adapter->norms, &lora->arena, base->rows);
    ARENA_TRY(adapter->gains, &lora->arena, base->rows);
    for (int r = 0; r < base->rows; r++) adapter->norms[r] = adapter->gains[r] = 1;
    for (int v = 0, n = 0; v < base->n_views; v++) {
        if (!wanted(lora, &base->views[v])) continue;
        Weight *m = &adapter->views[n++].magnitude;
        TRY(adapter_name(&name, lora, base->views[v].name, ".lora_magnitude_vector"));
        m->n_views = 1;
        m->views[0] = (WeightView){name, 0, 1};
        describe(m, 1, base->views[v].rows, lora);
        m->n_dims = 1;
    }
    return OK;
}

/* Gives `base` its adapter where one of its views is a target. */
static int attach(Lora *lora, Weight *base, Adapter *adapter, int layer, int module) {
    const LoraOptions *options = &lora->options;
    char *name;
    adapter->rank = options->rank;
    adapter->scale = (float)(options->alpha / (options->rank_stabilised ? sqrt(options->rank) : options->rank));
    adapter->dropout = (float)options->dropout;
    adapter->key = philox_key(options->seed, PHILOX_DROPOUT, (uint32_t)layer, (uint32_t)module);
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
    if (options->magnitudes) TRY(attach_magnitudes(lora, base, adapter));
    base->adapter = adapter;
    return OK;
}

enum { PER_LAYER = 4 };

/* The matrices of a layer that may have one, in canonical order. */
static void layer_bases(Weight *bases[PER_LAYER], LlamaLayer *layer) {
    bases[0] = &layer->qkv;
    bases[1] = &layer->attention_out;
    bases[2] = &layer->gate_up;
    bases[3] = &layer->down;
}

static int attach_all(Lora *lora) {
    enum { MOST_WEIGHTS = PER_LAYER + 2 * LORA_TARGETS };
    const Llama *model = lora->model;
    ARENA_TRY(lora->adapters, &lora->arena, PER_LAYER * model->shape.n_layers);
    ARENA_TRY(lora->weights, &lora->arena, MOST_WEIGHTS * model->shape.n_layers);
    Adapter *next = lora->adapters;
    for (int l = 0; l < model->shape.n_layers; l++) {
        Weight *bases[PER_LAYER];
        layer_bases(bases, &model->layers[l]);
        for (int m = 0; m < PER_LAYER; m++) TRY(attach(lora, bases[m], next++, l, m));
    }
    return OK;
}

/* ---- storage ---- */

static bool is_packed(const Weight *weight, LlamaOptions how) {
    return how.precision == DTYPE_BF16 && weight->n_dims == 2;
}

static void measure(Lora *lora, LlamaOptions how) {
    for (int i = 0; i < lora->n_weights; i++) {
        Weight *weight = lora->weights[i];
        weight->trainable = how.training;
        lora->value_bytes += weight_value_bytes(weight);
        if (how.training) lora->grad_bytes += weight_value_bytes(weight);
        if (!is_packed(weight, how)) continue;
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
        if (!is_packed(weight, how)) continue;
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
    if (!(options->dropout >= 0 && options->dropout < 1))
        FAIL(ERR_USAGE, "lora.dropout is %g; it must be at least 0 and below 1", options->dropout);
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

void lora_attach(Lora *lora, bool on) {
    Adapter *next = lora->adapters;
    for (int l = 0; l < lora->model->shape.n_layers; l++) {
        Weight *bases[PER_LAYER];
        layer_bases(bases, &lora->model->layers[l]);
        for (int m = 0; m < PER_LAYER; m++, next++) bases[m]->adapter = on && next->n > 0 ? next : NULL;
    }
}

size_t lora_bytes(const Lora *lora) {
    return lora->value_bytes + lora->grad_bytes + lora->packing_bytes + lora->arena.total;
}

void lora_pack(Lora *lora) {
    for (int i = 0; i < lora->n_weights; i++) weight_pack(lora->weights[i]);
    for (int i = 0; i < lora->model->n_weights; i++) adapter_changed(lora->model->weights[i]);
}

/* ---- values ---- */

bool lora_is_a(const Weight *weight) {
    return strstr(weight->views[0].name, ".lora_A.") != NULL;
}

double lora_rate(const Lora *lora, const Weight *weight) {
    return lora->options.plus_ratio > 0 && !lora_is_a(weight) ? lora->options.plus_ratio : 1;
}

/* Every magnitude is its row's length: gains of exactly 1. */
static int init_magnitudes(const Lora *lora) {
    for (int i = 0; i < lora->model->n_weights; i++) {
        Weight *base = lora->model->weights[i];
        if (!has_magnitudes(base)) continue;
        float *scratch = malloc(dora_refresh_scratch(base) * sizeof *scratch);
        if (!scratch) FAIL(ERR_FAILED, "out of memory");
        dora_refresh(base, scratch);
        free(scratch);
        for (int v = 0; v < base->adapter->n; v++) {
            const Weight *m = &base->adapter->views[v].magnitude;
            memcpy(m->value, base->adapter->norms + base->adapter->views[v].first_row, (size_t)m->cols * sizeof(float));
        }
        adapter_changed(base);
    }
    return OK;
}

int lora_init(Lora *lora, uint64_t seed) {
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
    return init_magnitudes(lora);
}

int lora_arrays(const Lora *lora, WeightStorage storage, Arena *arena, NamedArray **arrays, size_t *n) {
    return weights_arrays(lora->weights, lora->n_weights, storage, arena, arrays, n);
}

/* A file of more than this adapter: other matrices, or kinds that are not implemented. */
static int check_names(const Lora *lora, const NamedFile *file) {
    for (size_t f = 0; f < named_count(file); f++) {
        const char *name = named_at(file, f)->name;
        bool known = strncmp(name, "cria.", strlen("cria.")) == 0 || strcmp(name, LORA_EMBEDDING) == 0 ||
                     strcmp(name, lora->model->shape.n_scores > 0 ? LORA_SCORE : LORA_HEAD) == 0;
        for (int i = 0; i < lora->n_weights && !known; i++)
            for (int v = 0; v < lora->weights[i]->n_views && !known; v++)
                known = strcmp(lora->weights[i]->views[v].name, name) == 0;
        if (!known) FAIL(ERR_REFUSED, "%s is in the file, but this adapter of this model has no such array", name);
    }
    return OK;
}

int lora_load(Lora *lora, const NamedFile *file) {
    TRY(check_names(lora, file));
    TRY(weights_load(lora->weights, lora->n_weights, (WeightStorage){0}, file));
    lora_pack(lora);
    return OK;
}

/* ---- merging ---- */

/* Rows to the lengths m. */
static void set_lengths(float *rows, int n, size_t cols, const float *m) {
    for (int r = 0; r < n; r++) {
        float *row = rows + (size_t)r * cols;
        double sum = 0;
        for (size_t i = 0; i < cols; i++) sum += (double)row[i] * (double)row[i];
        float norm = (float)sqrt(sum), gain = norm > 0 ? m[r] / norm : 0;
        for (size_t i = 0; i < cols; i++) row[i] *= gain;
    }
}

bool lora_adapts(const Lora *lora, const char *name) {
    for (int i = 0; i < lora->model->n_weights; i++) {
        const Weight *base = lora->model->weights[i];
        for (int v = 0; base->adapter && v < base->n_views; v++)
            if (strcmp(base->views[v].name, name) == 0) return wanted(lora, &base->views[v]);
    }
    return false;
}

bool lora_merge(const Lora *lora, const char *name, int first, int n, float *rows) {
    for (int i = 0; i < lora->model->n_weights; i++) {
        const Weight *base = lora->model->weights[i];
        const Adapter *adapter = base->adapter;
        for (int v = 0, next = 0; adapter && v < base->n_views; v++) {
            if (!wanted(lora, &base->views[v])) continue;
            const Weight *b = &adapter->views[next].b, *m = &adapter->views[next].magnitude;
            size_t rank = (size_t)adapter->rank, cols = (size_t)base->cols;
            const float *a = adapter->a.value + (size_t)next++ * rank * cols;
            if (strcmp(base->views[v].name, name) != 0) continue;
            kernels()->gemm(false, false, n, base->cols, adapter->rank, adapter->scale, b->value + (size_t)first * rank,
                            rank, a, cols, 1, rows, cols);
            if (adapter->gains) set_lengths(rows, n, cols, m->value + first);
            return true;
        }
    }
    return false;
}
