/* Initialisation: normal matrices, unit norms, each parameter from its own Philox stream (see llama.h). */
#include <math.h>

#include "model/core/error.h"
#include "model/core/philox.h"
#include "model/core/threads.h"
#include "model/llama.h"
#include "model/quantise.h"
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

/* Elements [first, first + n) of a view that is to be quantised. */
typedef struct {
    const Fill *fill;
    size_t first;
    float *out;
} Slice;

static void slice_range(void *context, size_t begin, size_t end, int thread) {
    const Slice *slice = context;
    (void)thread;
    philox_fill_normal(slice->out + begin, slice->first + begin, end - begin, slice->fill->key, 0.0f, slice->fill->std);
}

static int fill_slice(void *context, size_t first, size_t n, float *out) {
    Slice slice = {context, first, out};
    parallel_for(n, GRAIN, slice_range, &slice);
    return OK;
}

static int fill_view(const Weight *weight, int v, Fill *fill) {
    const WeightView *view = &weight->views[v];
    size_t at = (size_t)view->first_row * (size_t)weight->cols;
    if (weight->stored.quantised) return quantise_fill(&weight->stored.quantised[v], view->name, fill_slice, fill);
    fill->values = weight->value ? weight->value + at : NULL;
    fill->frozen = weight->value ? NULL : (bf16 *)(uintptr_t)weight->stored.view[0] + at;
    parallel_for((size_t)view->rows * (size_t)weight->cols, GRAIN, fill_range, fill);
    return OK;
}

static PhiloxKey parameter_key(uint64_t seed, const char *name) {
    uint64_t hash = hash_bytes(name, strlen(name), HASH_START);
    return philox_key(seed, PHILOX_INIT, (uint32_t)hash, (uint32_t)(hash >> 32));
}

static int init_matrix(const Weight *weight, uint64_t seed, float std) {
    for (int v = 0; v < weight->n_views; v++) {
        Fill fill = {.key = parameter_key(seed, weight->views[v].name), .std = std};
        TRY(fill_view(weight, v, &fill));
    }
    return OK;
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
        TRY(init_matrix(weight, init.seed, on_residual && init.residual == INIT_SCALED ? residual : init.std));
    }
    llama_pack(model);
    return OK;
}

int llama_init_head(Llama *model, LlamaInit init) {
    TRY(check_init(init));
    TRY(init_matrix(&model->head, init.seed, init.std));
    weight_pack(&model->head);
    return OK;
}
