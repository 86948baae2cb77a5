/* Initialisation: normal matrices, unit norms, each parameter from its own Philox stream (see llama.h). */
#include <math.h>

#include "model/core/error.h"
#include "model/core/philox.h"
#include "model/core/threads.h"
#include "model/llama.h"
#include "model/storage.h"

#include <string.h>

typedef struct {
    float *values;
    bf16 *frozen; /* where there are no fp32 values */
    PhiloxKey key;
    float std;
} Fill;

enum { GRAIN = 4096 }; /* a multiple of Philox's four numbers a block */

static void fill_range(void *context, size_t begin, size_t end, int thread) {
    const Fill *fill = context;
    (void)thread;
    if (fill->values) {
        philox_fill_normal(fill->values + begin, begin, end - begin, fill->key, 0.0f, fill->std);
        return;
    }
    for (size_t at = begin; at < end; at += GRAIN) {
        float numbers[GRAIN];
        size_t n = end - at < GRAIN ? end - at : GRAIN;
        philox_fill_normal(numbers, at, n, fill->key, 0.0f, fill->std);
        for (size_t i = 0; i < n; i++) fill->frozen[at + i] = f32_to_bf16(numbers[i]);
    }
}

static PhiloxKey parameter_key(uint64_t seed, const char *name) {
    uint64_t hash = hash_bytes(name, strlen(name), HASH_START);
    return philox_key(seed, PHILOX_INIT, (uint32_t)hash, (uint32_t)(hash >> 32));
}

static void init_matrix(const Weight *weight, uint64_t seed, float std) {
    for (int v = 0; v < weight->n_views; v++) {
        const WeightView *view = &weight->views[v];
        size_t at = (size_t)view->first_row * (size_t)weight->cols;
        Fill fill = {.values = weight->value ? weight->value + at : NULL,
                     .frozen = weight->value ? NULL : (bf16 *)(uintptr_t)weight->stored.view[0] + at,
                     .key = parameter_key(seed, view->name),
                     .std = std};
        parallel_for((size_t)view->rows * (size_t)weight->cols, GRAIN, fill_range, &fill);
    }
}

static int check_init(LlamaInit init) {
    if (!(init.std >= 0)) FAIL(ERR_USAGE, "model.init_std is %g; it must not be negative", (double)init.std);
    return OK;
}

int llama_init(Llama *model, LlamaInit init) {
    float residual = init.std / sqrtf(2.0f * (float)model->shape.n_layers);
    TRY(check_init(init));
    for (int i = 0; i < model->n_weights; i++) {
        Weight *weight = model->weights[i];
        if (weight->tied) continue;
        if (weight->n_dims == 1) {
            for (int j = 0; j < weight->cols; j++) weight->value[j] = 1.0f;
            continue;
        }
        bool on_residual = strstr(weight->views[0].name, "o_proj") || strstr(weight->views[0].name, "down_proj");
        init_matrix(weight, init.seed, on_residual && init.residual == INIT_SCALED ? residual : init.std);
    }
    llama_pack(model);
    return OK;
}

int llama_init_head(Llama *model, LlamaInit init) {
    TRY(check_init(init));
    init_matrix(&model->head, init.seed, init.std);
    weight_pack(&model->head);
    return OK;
}
