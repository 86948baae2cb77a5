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

static const char *const target_names[LORA_TARGETS] = {"q_proj",  "k_proj",    "v_proj",  "o_proj",      "gate_proj",
                                                       "up_proj", "down_proj", "lm_head", "embed_tokens"};

const char *lora_target_name(LoraTarget target) {
    return target_names[target];
}

/* ---- names and shapes ---- */

typedef enum { PART_A, PART_B, PART_MAGNITUDE, PARTS } Part;

/* What PEFT calls the parts of a linear layer, and of an embedding. */
static const char *const suffixes[2][PARTS] = {
    {".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"},
    {LORA_OF_EMBEDDING "A", LORA_OF_EMBEDDING "B", ".lora_magnitude_vector"}};

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
    int all = adapter->of_tokens ? base->cols : base->rows;
    ARENA_TRY(adapter->norms, &lora->arena, all);
    ARENA_TRY(adapter->gains, &lora->arena, all);
    for (int r = 0; r < all; r++) adapter->norms[r] = adapter->gains[r] = 1;
    for (int v = 0, n = 0; v < base->n_views; v++) {
        if (!wanted(lora, &base->views[v])) continue;
        Weight *m = &adapter->views[n++].magnitude;
        TRY(adapter_name(&name, lora, base->views[v].name, suffixes[adapter->of_tokens][PART_MAGNITUDE]));
        m->n_views = 1;
        m->views[0] = (WeightView){name, 0, 1};
        describe(m, 1, adapter->of_tokens ? base->cols : base->views[v].rows, lora);
        m->n_dims = 1;
    }
    return OK;
}

/* Gives `base` its adapter where one of its views is a target. */
static int attach(Lora *lora, Weight *base, Adapter *adapter, int layer, int module) {
    const LoraOptions *options = &lora->options;
    char *name;
    adapter->rank = options->rank;
    adapter->of_tokens = base == &lora->model->embedding;
    adapter->scale = (float)(options->alpha / (options->rank_stabilised ? sqrt(options->rank) : options->rank));
    adapter->dropout = adapter->of_tokens ? 0 : (float)options->dropout;
    adapter->key = philox_key(options->seed, PHILOX_DROPOUT, (uint32_t)layer, (uint32_t)module);
    for (int v = 0; v < base->n_views; v++) {
        if (!wanted(lora, &base->views[v])) continue;
        TRY(adapter_name(&name, lora, base->views[v].name, suffixes[adapter->of_tokens][PART_A]));
        adapter->a.views[adapter->n] = (WeightView){name, adapter->n * options->rank, options->rank};
        adapter->views[adapter->n++].first_row = base->views[v].first_row;
    }
    if (adapter->n == 0) return OK;
    adapter->a.n_views = adapter->n;
    describe(&adapter->a, adapter->n * options->rank, adapter->of_tokens ? base->rows : base->cols, lora);
    for (int v = 0, n = 0; v < base->n_views; v++) {
        if (!wanted(lora, &base->views[v])) continue;
        Weight *b = &adapter->views[n++].b;
        int rows = adapter->of_tokens ? base->cols : base->views[v].rows;
        TRY(adapter_name(&name, lora, base->views[v].name, suffixes[adapter->of_tokens][PART_B]));
        b->n_views = 1;
        b->views[0] = (WeightView){name, 0, rows};
        describe(b, rows, options->rank, lora);
    }
    if (options->magnitudes) TRY(attach_magnitudes(lora, base, adapter));
    base->adapter = adapter;
    return OK;
}

enum { PER_LAYER = 4 };

static int count_bases(const Llama *model) {
    return 1 + PER_LAYER * model->shape.n_layers + 1;
}

/* The matrices that may have one, in canonical order. */
static Weight *base_at(Llama *model, int i) {
    if (i == 0) return &model->embedding;
    if (i + 1 == count_bases(model)) return &model->head;
    LlamaLayer *layer = &model->layers[(i - 1) / PER_LAYER];
    Weight *const bases[PER_LAYER] = {&layer->qkv, &layer->attention_out, &layer->gate_up, &layer->down};
    return bases[(i - 1) % PER_LAYER];
}

static int attach_all(Lora *lora) {
    enum { LAYER_TARGETS = LORA_DOWN + 1, MOST_WEIGHTS = PER_LAYER + 2 * LAYER_TARGETS, OF_ONE = 3 };
    Llama *model = lora->model;
    ARENA_TRY(lora->adapters, &lora->arena, count_bases(model));
    ARENA_TRY(lora->weights, &lora->arena, MOST_WEIGHTS * model->shape.n_layers + 2 * OF_ONE);
    for (int i = 0; i < count_bases(model); i++) { /* the dropout's key: embedding and head are beside the layers */
        bool outside = i == 0 || i + 1 == count_bases(model);
        int layer = outside ? model->shape.n_layers : (i - 1) / PER_LAYER,
            module = outside ? i > 0 : (i - 1) % PER_LAYER;
        TRY(attach(lora, base_at(model, i), &lora->adapters[i], layer, module));
    }
    return OK;
}

/* ---- storage ---- */

static bool is_of_embedding(const Weight *weight) {
    return strstr(weight->views[0].name, LORA_OF_EMBEDDING) != NULL;
}

/* The embedding's products are in fp32 whatever the precision. */
static bool is_packed(const Weight *weight, LlamaOptions how) {
    return how.precision == DTYPE_BF16 && weight->n_dims == 2 && !is_of_embedding(weight);
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

static int check_options(const LoraOptions *options, const Llama *model) {
    if (options->rank <= 0) FAIL(ERR_USAGE, "lora.rank is %d; it must be positive", options->rank);
    if (!(options->alpha > 0)) FAIL(ERR_USAGE, "lora.alpha is %g; it must be positive", options->alpha);
    if (!(options->dropout >= 0 && options->dropout < 1))
        FAIL(ERR_USAGE, "lora.dropout is %g; it must be at least 0 and below 1", options->dropout);
    if (options->targets == 0 || options->targets >> LORA_TARGETS) FAIL(ERR_USAGE, "lora.targets names no matrix");
    if (options->targets & 1u << LORA_LM_HEAD && model->shape.n_scores > 0)
        FAIL(ERR_USAGE, "lora.targets names the head; a reward model's is one row, which is trained whole");
    return OK;
}

int lora_new(Lora **out, Llama *model, LoraOptions options, LlamaOptions how) {
    int rc = OK;
    *out = NULL;
    TRY(check_options(&options, model));
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
    for (int i = 0; i < count_bases(lora->model); i++)
        base_at(lora->model, i)->adapter = on && lora->adapters[i].n > 0 ? &lora->adapters[i] : NULL;
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
    return strstr(weight->views[0].name, suffixes[0][PART_A]) != NULL;
}

double lora_rate(const Lora *lora, const Weight *weight) {
    bool slow = lora_is_a(weight) || is_of_embedding(weight);
    return lora->options.plus_ratio > 0 && !slow ? lora->options.plus_ratio : 1;
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

static void init_view(const Weight *weight, const WeightView *view, uint64_t seed) {
    size_t n = (size_t)view->rows * (size_t)weight->cols;
    float *value = weight->value + (size_t)view->first_row * (size_t)weight->cols;
    float bound = 1 / sqrtf((float)weight->cols);
    uint64_t hash = hash_bytes(view->name, strlen(view->name), HASH_START);
    PhiloxKey key = philox_key(seed, PHILOX_INIT, (uint32_t)hash, (uint32_t)(hash >> 32));
    if (lora_is_a(weight))
        for (size_t e = 0; e < n; e++) value[e] = bound * (2 * philox_uniform(key, e) - 1);
    else
        philox_fill_normal(value, 0, n, key, 0, 1);
}

int lora_init(Lora *lora, uint64_t seed) {
    for (int i = 0; i < lora->n_weights; i++) {
        const Weight *weight = lora->weights[i];
        bool random = is_of_embedding(weight) ? weight != &lora->adapters[0].a : lora_is_a(weight);
        memset(weight->value, 0, weight_elements(weight) * sizeof(float));
        for (int v = 0; random && v < weight->n_views; v++) init_view(weight, &weight->views[v], seed);
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
                     strcmp(name, LORA_EMBEDDING_BASE) == 0 || strcmp(name, LORA_HEAD_BASE) == 0 ||
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

int lora_measure_embedding(const Lora *lora, int (*read)(void *context, int first, int n, float *rows), void *context) {
    Weight *base = &lora->model->embedding;
    if (!has_magnitudes(base) || base->adapter->current) return OK;
    float *scratch = malloc(dora_refresh_scratch(base) * sizeof *scratch);
    if (!scratch) FAIL(ERR_FAILED, "out of memory");
    int rc = dora_columns(base, read, context, scratch);
    free(scratch);
    return rc;
}

/* Rows [first, first + n) of an embedding, a token's each. */
static void merge_tokens(const Adapter *adapter, int first, int n, int cols, float *rows) {
    const Weight *a = &adapter->a, *b = &adapter->views[0].b;
    kernels()->gemm(true, true, n, cols, adapter->rank, adapter->scale, a->value + first, (size_t)a->cols, b->value,
                    (size_t)adapter->rank, 1, rows, (size_t)cols);
    for (int r = 0; adapter->gains && r < n; r++)
        for (int j = 0; j < cols; j++) rows[(size_t)r * (size_t)cols + (size_t)j] *= adapter->gains[j];
}

static void merge_view(const Weight *base, int view, int first, int n, float *rows) {
    const Adapter *adapter = base->adapter;
    const Weight *b = &adapter->views[view].b, *m = &adapter->views[view].magnitude;
    size_t rank = (size_t)adapter->rank, cols = (size_t)base->cols;
    const float *a = adapter->a.value + (size_t)view * rank * cols;
    kernels()->gemm(false, false, n, base->cols, adapter->rank, adapter->scale, b->value + (size_t)first * rank, rank,
                    a, cols, 1, rows, cols);
    if (adapter->gains) set_lengths(rows, n, cols, m->value + first);
}

bool lora_merge(const Lora *lora, const char *name, int first, int n, float *rows) {
    for (int i = 0; i < lora->model->n_weights; i++) {
        const Weight *base = lora->model->weights[i];
        for (int v = 0, next = 0; base->adapter && v < base->n_views; v++) {
            if (!wanted(lora, &base->views[v])) continue;
            if (strcmp(base->views[v].name, name) != 0) {
                next++;
                continue;
            }
            if (base->adapter->of_tokens)
                merge_tokens(base->adapter, first, n, base->cols, rows);
            else
                merge_view(base, next, first, n, rows);
            return true;
        }
    }
    return false;
}
