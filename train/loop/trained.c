/* See trained.h. */
#include "train/loop/trained.h"

#include <stdio.h>
#include <string.h>

#include "model/core/error.h"
#include "model/lora_peft.h"
#include "model/storage.h"

static void add_all(Trained *trained, Weight *const *weights, int n) {
    for (int i = 0; i < n; i++)
        if (!weights[i]->tied && weights[i]->trainable) trained->weights[trained->n_weights++] = weights[i];
}

/* Beside an adapter what is trained of the model is stored by PEFT's names: another view of the same values and
 * gradients. */
static int rename_all(Trained *trained, Arena *arena) {
    for (int i = 0; i < trained->n_weights; i++) {
        const Weight *weight = trained->weights[i];
        Weight *renamed;
        char *name;
        size_t size = sizeof LORA_PREFIX + strlen(weight->views[0].name);
        ARENA_TRY(renamed, arena, 1);
        ARENA_TRY(name, arena, size);
        snprintf(name, size, LORA_PREFIX "%s", weight->views[0].name);
        *renamed = *weight;
        renamed->views[0].name = name;
        trained->weights[i] = renamed;
    }
    return OK;
}

int trained_list(Trained *trained, Llama *model, Lora *lora, Arena *arena) {
    *trained = (Trained){.model = model, .lora = lora};
    ARENA_TRY(trained->weights, arena, model->n_weights + (lora ? lora->n_weights : 0));
    add_all(trained, model->weights, model->n_weights);
    if (!lora) return OK;
    TRY(rename_all(trained, arena));
    add_all(trained, lora->weights, lora->n_weights);
    return OK;
}

uint64_t trained_elements(const Trained *trained) {
    uint64_t sum = 0;
    for (int i = 0; i < trained->n_weights; i++) sum += weight_elements(trained->weights[i]);
    return sum;
}

size_t trained_bytes(const Trained *trained, const Optimizer *optimizer) {
    return llama_bytes(trained->model) + (trained->lora ? lora_bytes(trained->lora) : 0) + optimizer_bytes(optimizer);
}

double trained_rate(const Trained *trained, int i) {
    const Lora *lora = trained->lora;
    bool of_adapter = lora && i >= trained->n_weights - lora->n_weights;
    return of_adapter ? lora_rate(lora, trained->weights[i]) : 1;
}

int trained_arrays(const Trained *trained, WeightStorage storage, Arena *arena, NamedArray **arrays, size_t *n) {
    return weights_arrays(trained->weights, trained->n_weights, storage, arena, arrays, n);
}

int trained_load(const Trained *trained, WeightStorage storage, const NamedFile *file) {
    TRY(weights_load(trained->weights, trained->n_weights, storage, file));
    if (storage.arrays) return OK;
    llama_pack(trained->model);
    if (trained->lora) lora_pack(trained->lora);
    return OK;
}

PeftSaved trained_saved(const Trained *trained) {
    const Llama *model = trained->model;
    PeftSaved saved = {.score = model->shape.n_scores > 0, .embedding = model->embedding.trainable};
    saved.head = saved.embedding && !saved.score;
    saved.tied = saved.head && model->head.tied;
    return saved;
}
