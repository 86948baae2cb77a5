/* See lora_peft.h. What an adapter targets is read from its arrays' names, since target_modules may be a pattern. */
#include "model/lora_peft.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/text.h"

static const char own_prefix[] = "cria."; /* arrays of a checkpoint that are no parameters */

/* ---- targets ---- */

/* Of "q_proj" and the like. */
static int target_of_module(const char *name, size_t length) {
    for (int t = 0; t < LORA_TARGETS; t++) {
        const char *full = lora_target_name((LoraTarget)t);
        if (length == strlen(full) && strncmp(full, name, length) == 0) return t;
    }
    return -1;
}

/* The same, or of "q" and the like. */
static int target_named(const char *name, size_t length) {
    static const char *const words[LORA_TARGETS] = {"q", "k", "v", "o", "gate", "up", "down", "head", "embedding"};
    for (int t = 0; t < LORA_TARGETS; t++)
        if (length == strlen(words[t]) && strncmp(words[t], name, length) == 0) return t;
    return target_of_module(name, length);
}

int lora_parse_targets(unsigned *targets, const char *text) {
    *targets = 0;
    if (strcmp(text, "all-linear") == 0) {
        *targets = LORA_ALL;
        return OK;
    }
    for (const char *at = text; *at;) {
        at += strspn(at, ", ");
        size_t length = strcspn(at, ", ");
        int target = target_named(at, length);
        if (length == 0) break;
        if (target < 0)
            FAIL(ERR_USAGE, "lora.targets: found '%.*s', expected all-linear or a list of " LORA_TARGET_WORDS,
                 (int)length, at);
        *targets |= 1u << target;
        at += length;
    }
    if (!*targets) FAIL(ERR_USAGE, "lora.targets is empty; all-linear, or a list like q,v, is expected");
    return OK;
}

/* The target of "….q_proj.lora_A.weight". */
static int target_of(const char *name) {
    static const char layers[] = LORA_PREFIX "model.layers.", embedding[] = LORA_PREFIX "model.embed_tokens.",
                      head[] = LORA_PREFIX "lm_head.";
    const char *end = strstr(name, ".lora_"), *start = end;
    if (!end) return -1;
    while (start > name && start[-1] != '.') start--;
    int target = target_of_module(start, (size_t)(end - start));
    const char *place = target == LORA_LM_HEAD ? head : target == LORA_EMBED_TOKENS ? embedding : layers;
    return text_starts_with(name, place) ? target : -1;
}

/* "base_model.model.lm_head.weight": saved whole beside the adapter. */
static bool is_saved(const PeftAdapter *adapter, const char *name) {
    if (adapter->config.saved.score && strcmp(name, LORA_SCORE) == 0) return true;
    if (strcmp(name, LORA_EMBEDDING_BASE) == 0 || strcmp(name, LORA_HEAD_BASE) == 0) return true;
    return strcmp(name, LORA_EMBEDDING) == 0 || (!adapter->config.saved.score && strcmp(name, LORA_HEAD) == 0);
}

int lora_options_from_peft(LoraOptions *options, const PeftAdapter *adapter) {
    *options = (LoraOptions){.rank = adapter->config.rank,
                             .alpha = adapter->config.alpha,
                             .rank_stabilised = adapter->config.rslora,
                             .magnitudes = adapter->config.dora,
                             .dropout = adapter->config.dropout};
    for (size_t i = 0; i < named_count(adapter->arrays); i++) {
        const char *name = named_at(adapter->arrays, i)->name;
        if (text_starts_with(name, own_prefix) || is_saved(adapter, name)) continue;
        int target = target_of(name);
        if (target < 0)
            FAIL(ERR_REFUSED, "%s: %s is none of the adapters that are implemented (" LORA_TARGET_WORDS ")",
                 named_path(adapter->arrays), name);
        options->targets |= 1u << target;
    }
    if (!options->targets) FAIL(ERR_REFUSED, "%s: there is no adapter in it", named_path(adapter->arrays));
    return OK;
}

static int find_saved(const NamedArray **array, const PeftAdapter *adapter, const char *name, bool said) {
    enum { MOST_ROWS = 1 << 24 };
    *array = named_find(adapter->arrays, name);
    if (!*array && said)
        FAIL(ERR_REFUSED, "%s: %s is missing from the file, though 'modules_to_save' names it",
             named_path(adapter->arrays), name);
    if (*array && ((*array)->n_dims != 2 || (*array)->dims[0] < 1 || (*array)->dims[0] > MOST_ROWS))
        FAIL(ERR_REFUSED, "%s: %s is no matrix with a row for each token", named_path(adapter->arrays), name);
    return OK;
}

/* The base's own beside an adapter of it, which PEFT saves too. */
static int find_base(const NamedArray **array, const PeftAdapter *adapter, const char *name) {
    return *array || adapter->whole_base ? OK : find_saved(array, adapter, name, false);
}

int lora_vocabulary(LoraVocabulary *v, const PeftAdapter *adapter) {
    PeftSaved saved = adapter->config.saved;
    *v = (LoraVocabulary){0};
    TRY(find_saved(&v->embedding, adapter, LORA_EMBEDDING, saved.embedding));
    if (!saved.score) TRY(find_saved(&v->head, adapter, LORA_HEAD, saved.head && !saved.tied));
    v->tied = saved.tied && v->embedding;
    TRY(find_base(&v->embedding, adapter, LORA_EMBEDDING_BASE));
    if (!saved.score) TRY(find_base(&v->head, adapter, LORA_HEAD_BASE));
    if (v->embedding && v->head && v->embedding->dims[0] != v->head->dims[0])
        FAIL(ERR_REFUSED, "%s: its embedding has %lld rows and its head %lld", named_path(adapter->arrays),
             (long long)v->embedding->dims[0], (long long)v->head->dims[0]);
    if (v->embedding || v->head) v->rows = (int)(v->embedding ? v->embedding : v->head)->dims[0];
    return OK;
}

int lora_from_peft(Lora **lora, Llama *model, const PeftAdapter *adapter, LlamaOptions how) {
    LoraOptions options;
    *lora = NULL;
    TRY(lora_options_from_peft(&options, adapter));
    TRY(lora_new(lora, model, options, how));
    int rc = lora_load(*lora, adapter->arrays);
    if (rc == OK) return OK;
    error_context(rc, "%s", named_path(adapter->arrays));
    lora_free(*lora);
    *lora = NULL;
    return rc;
}

/* ---- writing ---- */

PeftConfig lora_peft_config(const LoraOptions *options, PeftSaved saved, const char *base,
                            const char *targets[LORA_TARGETS]) {
    PeftConfig config = {.rank = options->rank,
                         .alpha = options->alpha,
                         .dropout = options->dropout,
                         .rslora = options->rank_stabilised,
                         .dora = options->magnitudes,
                         .saved = saved,
                         .base = base,
                         .targets = targets};
    for (int t = 0; t < LORA_TARGETS; t++)
        if (options->targets & 1u << t) targets[config.n_targets++] = lora_target_name((LoraTarget)t);
    return config;
}

static int write_sources(const LoraOptions *options, PeftSaved saved, const char *directory, const char *base,
                         const NamedSource *sources, size_t n, const char *model_config) {
    const char *targets[LORA_TARGETS];
    PeftConfig config = lora_peft_config(options, saved, base, targets);
    NamedText text = {LORA_MODEL_CONFIG, model_config};
    return peft_write(directory, &config, sources, n, &text, model_config ? 1 : 0);
}

int lora_write_peft(const Lora *lora, const char *directory, const char *base) {
    int rc = OK;
    Arena arena = {0};
    NamedArray *arrays;
    NamedSource *sources;
    size_t n;
    TRY_TO(done, lora_arrays(lora, (WeightStorage){0}, &arena, &arrays, &n));
    sources = arena_alloc(&arena, n * sizeof *sources);
    if (!sources) FAIL_TO(done, ERR_FAILED, "out of memory");
    for (size_t i = 0; i < n; i++) sources[i] = (NamedSource){.array = arrays[i]};
    TRY_TO(done, write_sources(&lora->options, (PeftSaved){0}, directory, base, sources, n, NULL));
done:
    arena_free(&arena);
    return rc;
}

int lora_copy_peft(const PeftAdapter *adapter, const char *directory) {
    LoraOptions options;
    LoraVocabulary vocabulary;
    size_t n = 0, all = named_count(adapter->arrays);
    TRY(lora_options_from_peft(&options, adapter));
    TRY(lora_vocabulary(&vocabulary, adapter));
    NamedSource *sources = calloc(all + 1, sizeof *sources);
    if (!sources) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < all; i++)
        if (!text_starts_with(named_at(adapter->arrays, i)->name, own_prefix))
            sources[n++].array = *named_at(adapter->arrays, i);
    if (vocabulary.tied && !named_find(adapter->arrays, LORA_HEAD)) {
        sources[n].array = *vocabulary.embedding;
        sources[n++].array.name = LORA_HEAD;
    }
    PeftSaved saved = adapter->config.saved;
    saved.tied = vocabulary.tied;
    const char *model_config = saved.score ? named_text(adapter->arrays, LORA_MODEL_CONFIG) : NULL;
    int rc = write_sources(&options, saved, directory, adapter->config.base, sources, n, model_config);
    free(sources);
    return rc;
}

/* ---- several made one ---- */

static double scale_of(const PeftConfig *config) {
    return config->alpha / (config->rslora ? sqrt(config->rank) : config->rank);
}

/* Rows [at, at + rank) of `to`'s A become `from`'s, and those columns of its B, times factor. */
static void copy_part(Weight *a, Weight *b, const float *from_a, const float *from_b, int at, int rank, int a_first,
                      float factor) {
    size_t cols = (size_t)a->cols, whole = (size_t)b->cols;
    memcpy(a->value + (size_t)(a_first + at) * cols, from_a, (size_t)rank * cols * sizeof(float));
    for (size_t r = 0; r < (size_t)b->rows; r++)
        for (size_t k = 0; k < (size_t)rank; k++)
            b->value[r * whole + (size_t)at + k] = factor * from_b[r * (size_t)rank + k];
}

/* Both are of the same weight, and the whole has every view that the part has. */
static void add_part(Adapter *whole, const Adapter *part, int at, float factor) {
    for (int v = 0, w = 0; whole && part && v < part->n; v++) {
        while (whole->views[w].first_row != part->views[v].first_row) w++;
        copy_part(&whole->a, &whole->views[w].b,
                  part->a.value + (size_t)part->a.views[v].first_row * (size_t)part->a.cols, part->views[v].b.value, at,
                  part->rank, whole->a.views[w].first_row, factor);
    }
}

/* The adapters of a model's weights, taken off so that others can be attached. */
static void swap_adapters(Llama *model, Adapter **held) {
    for (int i = 0; i < model->n_weights; i++) {
        Adapter *mine = model->weights[i]->adapter;
        model->weights[i]->adapter = held[i];
        held[i] = mine;
    }
}

static int add_adapter(Lora *lora, const PeftAdapter *adapter, Adapter **held, int at, double weight) {
    Llama *model = lora->model;
    Lora *part;
    swap_adapters(model, held); /* now the model has none, and `held` the combined ones */
    int rc = lora_from_peft(&part, model, adapter, (LlamaOptions){0});
    for (int i = 0; rc == OK && i < model->n_weights; i++)
        add_part(held[i], model->weights[i]->adapter, at, (float)(weight * scale_of(&adapter->config)));
    if (rc == OK) lora_free(part);
    swap_adapters(model, held);
    return rc;
}

int lora_combine(Lora **out, Llama *model, const PeftAdapter *adapters, const double *weights, int n,
                 LlamaOptions how) {
    int rc = OK, rank = 0;
    LoraOptions options, all = {0};
    LoraVocabulary vocabulary;
    *out = NULL;
    if (n == 1 && fabs(weights[0] - 1) <= 0) return lora_from_peft(out, model, &adapters[0], how);
    for (int i = 0; i < n; i++) {
        TRY(lora_options_from_peft(&options, &adapters[i]));
        if (options.magnitudes)
            FAIL(ERR_REFUSED, "%s: it has DoRA's magnitudes, which are merged alone and with weight 1",
                 named_path(adapters[i].arrays));
        TRY(lora_vocabulary(&vocabulary, &adapters[i]));
        if (vocabulary.rows > 0)
            FAIL(ERR_REFUSED,
                 "%s: it has a vocabulary that was trained beside it, and is merged alone and with weight 1",
                 named_path(adapters[i].arrays));
        if (adapters[i].config.saved.score)
            FAIL(ERR_REFUSED, "%s: it has a reward model's score head, and is merged alone and with weight 1",
                 named_path(adapters[i].arrays));
        all.targets |= options.targets;
        all.rank += options.rank;
    }
    all.alpha = all.rank; /* scale 1: each part's is in its B */
    TRY(lora_new(out, model, all, how));
    Adapter **held = calloc((size_t)model->n_weights, sizeof *held);
    if (!held) FAIL_TO(failed, ERR_FAILED, "out of memory");
    for (int i = 0; i < n; i++) {
        TRY_TO(failed, add_adapter(*out, &adapters[i], held, rank, weights[i]));
        rank += adapters[i].config.rank;
    }
    free(held);
    lora_pack(*out);
    return OK;
failed:
    free(held);
    lora_free(*out);
    *out = NULL;
    return rc;
}
