/* A model's parameters as named arrays, and back. Names and shapes are Hugging Face's, whatever is fused in storage. */
#include <stdio.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/text.h"
#include "model/llama.h"
#include "model/storage.h"

int llama_untied_weights(const Llama *model) {
    return model->n_weights - (model->head.tied ? 1 : 0);
}

static size_t count_views(Weight *const *weights, int n_weights) {
    size_t n = 0;
    for (int i = 0; i < n_weights; i++)
        if (!weights[i]->tied) n += (size_t)weights[i]->n_views;
    return n;
}

int weights_arrays(Weight *const *weights, int n_weights, float *const *storage, const char *prefix, Arena *arena,
                   NamedArray **arrays, size_t *n) {
    size_t next = 0;
    ARENA_TRY(*arrays, arena, count_views(weights, n_weights));
    for (int i = 0, stored = 0; i < n_weights; i++) {
        const Weight *weight = weights[i];
        if (weight->tied) continue;
        const float *base = storage ? storage[stored++] : weight->value;
        for (int v = 0; v < weight->n_views; v++) {
            const WeightView *view = &weight->views[v];
            NamedArray *array = &(*arrays)[next++];
            size_t size = strlen(prefix) + strlen(view->name) + 1;
            char *name;
            ARENA_TRY(name, arena, size);
            snprintf(name, size, "%s%s", prefix, view->name);
            *array = (NamedArray){.name = name,
                                  .dtype = DTYPE_F32,
                                  .n_dims = weight->n_dims,
                                  .data = base ? base + (size_t)view->first_row * (size_t)weight->cols : NULL};
            if (weight->n_dims == 2) {
                array->dims[0] = view->rows;
                array->dims[1] = weight->cols;
            } else {
                array->dims[0] = weight->cols;
            }
        }
    }
    *n = next;
    return OK;
}
