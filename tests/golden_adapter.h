/* An adapter on a golden Llama, beside PEFT's of the same values: gradients, and the twenty updates of a recipe. */
#ifndef CRIA_TESTS_GOLDEN_ADAPTER_H
#define CRIA_TESTS_GOLDEN_ADAPTER_H

#include "model/lora_peft.h"
#include "tests/golden_recipe.h"
#include "train/loop/trained.h"

typedef struct {
    Golden golden; /* the base, its batches; `expected` is the adapter's */
    Lora *lora;
    Trained trained;    /* the adapter, and what of the base is trainable */
    NamedArray *arrays; /* of both, by PEFT's names */
    size_t n;
} Adapted;

/* The adapter in DIRECTORY/adapter_model.safetensors, on the golden that is open. */
static inline void adapted_attach(Adapted *adapted, const char *directory, LoraOptions options) {
    char path[512];
    NamedFile *file = NULL;
    Golden *golden = &adapted->golden;
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", directory);
    CHECK_OK(named_open(&file, path));
    CHECK_OK(lora_new(&adapted->lora, golden->model, options, (LlamaOptions){.training = true}));
    CHECK_OK(lora_load(adapted->lora, file));
    CHECK_OK(trained_list(&adapted->trained, golden->model, adapted->lora, &golden->arena));
    CHECK_OK(trained_load(&adapted->trained, (WeightStorage){0}, file));
    CHECK_OK(trained_arrays(&adapted->trained, (WeightStorage){0}, &golden->arena, &adapted->arrays, &adapted->n));
    bool twice = golden->model->head.tied && named_find(file, LORA_HEAD);
    bool embedding = named_find(file, LORA_EMBEDDING_BASE), head = named_find(file, LORA_HEAD_BASE);
    ck_assert_uint_eq(adapted->n + twice + embedding + head, named_count(file));
    named_close(file);
}

static inline void adapted_close(Adapted *adapted) {
    lora_free(adapted->lora);
    golden_close(&adapted->golden);
}

static inline void adapted_gradients(Adapted *adapted, const char *table, const char *name, Worst *worst) {
    Golden *golden = &adapted->golden;
    const Trained *trained = &adapted->trained;
    NamedArray *gradients;
    llama_merge_tied_gradients(golden->model);
    size_t n, elements = 0;
    void **storage = arena_alloc(&golden->arena, (size_t)trained->n_weights * sizeof *storage);
    for (int i = 0; i < trained->n_weights; i++) storage[i] = trained->weights[i]->grad;
    CHECK_OK(trained_arrays(trained, (WeightStorage){storage, DTYPE_F32, NULL}, &golden->arena, &gradients, &n));
    for (size_t i = 0; i < n; i++) {
        char key[160];
        snprintf(key, sizeof key, "grad.%s", gradients[i].name);
        const float *expected = golden_array(golden, key, DTYPE_F32, &elements);
        ck_assert_uint_eq(elements, named_elements(&gradients[i]));
        worst_of(worst, relative_distance(gradients[i].data, expected, NULL, elements), table, name, key);
    }
}

/* ---- training ---- */

typedef struct {
    Worst loss, gradient, norm, change; /* gradient: of the first update */
} AdaptedDistance;

static inline Optimizer *adapted_optimizer(Adapted *adapted, const Recipe *recipe) {
    const Trained *trained = &adapted->trained;
    Optimizer *optimizer = NULL;
    OptimParameter *parameters = arena_alloc(&adapted->golden.arena, (size_t)trained->n_weights * sizeof *parameters);
    for (int i = 0; i < trained->n_weights; i++) {
        Weight *w = trained->weights[i];
        parameters[i] = (OptimParameter){.value = w->value,
                                         .grad = w->grad,
                                         .n = weight_elements(w),
                                         .decay = w->decay,
                                         .rate = trained_rate(trained, i)};
    }
    CHECK_OK(optimizer_new(&optimizer, parameters, (size_t)trained->n_weights, recipe->optimizer));
    return optimizer;
}

static inline float **adapted_copy(Adapted *adapted) {
    float **copy = arena_alloc(&adapted->golden.arena, adapted->n * sizeof *copy);
    for (size_t i = 0; i < adapted->n; i++) {
        size_t bytes = named_bytes(&adapted->arrays[i]);
        copy[i] = memcpy(arena_alloc(&adapted->golden.arena, bytes), adapted->arrays[i].data, bytes);
    }
    return copy;
}

static inline void adapted_change(Adapted *adapted, float *const *before, const char *table, const char *name,
                                  Worst *worst) {
    for (size_t i = 0; i < adapted->n; i++) {
        const NamedArray *after = &adapted->arrays[i];
        char key[160];
        size_t elements;
        snprintf(key, sizeof key, "theta.%s", after->name);
        const float *expected = golden_array(&adapted->golden, key, DTYPE_F32, &elements);
        worst_of(worst, relative_distance(after->data, expected, before[i], elements), table, name, key);
    }
}

/* 20 updates. */
static inline void adapted_train(Adapted *adapted, const Recipe *recipe, const char *table, const char *name,
                                 AdaptedDistance *distance) {
    Engine engine;
    size_t m;
    Golden *golden = &adapted->golden;
    float **before = adapted_copy(adapted);
    const double *losses = golden_array(golden, "losses", DTYPE_F64, &m);
    ck_assert_uint_eq(m, GOLDEN_STEPS);
    const double *norms = golden_array(golden, "grad_norms", DTYPE_F64, &m);
    Optimizer *optimizer = adapted_optimizer(adapted, recipe);
    engine_open(&engine, golden->model, 128, (EngineOptions){0});
    for (int step = 0; step < GOLDEN_STEPS; step++) {
        const Run *batch = &golden->batches[step % GOLDEN_BATCHES];
        double loss = engine_run(&engine, batch, run_weight(batch));
        llama_merge_tied_gradients(golden->model);
        double norm = optimizer_grad_norm(optimizer);
        if (step == 0) adapted_gradients(adapted, table, name, &distance->gradient);
        optimizer_step(optimizer, schedule_at(&recipe->schedule, step), norm);
        optimizer_zero_grad(optimizer);
        worst_of(&distance->loss, fabs(loss - losses[step]), table, name, "");
        worst_of(&distance->norm, fabs(norm / norms[step] - 1), table, name, "");
    }
    adapted_change(adapted, before, table, name, &distance->change);
    engine_close(&engine);
    optimizer_free(optimizer);
}

#endif
