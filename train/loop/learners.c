/* See learners.h. */
#include "train/loop/learners.h"

#include "model/core/error.h"

void learners_zero_gradients(const LoopParts *parts) {
    optimizer_zero_grad(parts->optimizer);
    if (parts->companion) optimizer_zero_grad(parts->companion->optimizer);
}

void learners_merge_tied(const LoopParts *parts) {
    llama_merge_tied_gradients(parts->model);
    if (parts->companion) llama_merge_tied_gradients(parts->companion->trained.model);
}

static int sum_gradients(Mesh *mesh, const Llama *model, const Lora *lora) {
    float *gradients;
    size_t n;
    llama_gradients(model, &gradients, &n);
    TRY(mesh_sum_f32(mesh, gradients, n));
    return lora ? mesh_sum_f32(mesh, lora->grads, lora->grad_bytes / sizeof(float)) : OK;
}

int learners_sum_gradients(const LoopParts *parts) {
    const Companion *companion = parts->companion;
    TRY(sum_gradients(parts->mesh, parts->model, parts->lora));
    return companion ? sum_gradients(parts->mesh, companion->trained.model, companion->trained.lora) : OK;
}

LearnerNorms learners_norms(const LoopParts *parts) {
    const Companion *companion = parts->companion;
    return (LearnerNorms){.model = optimizer_grad_norm(parts->optimizer),
                          .companion = companion ? optimizer_grad_norm(companion->optimizer) : 0};
}

void learners_update(const LoopParts *parts, double learning_rate, const LearnerNorms *norms) {
    const Companion *companion = parts->companion;
    optimizer_step(parts->optimizer, learning_rate, norms->model);
    if (companion) optimizer_step(companion->optimizer, companion->rate * learning_rate, norms->companion);
}
