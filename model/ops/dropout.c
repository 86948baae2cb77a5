/* Dropout on what an adapter reads (Hu et al. 2022 use it so; Srivastava et al. 2014): x' = x∘mask/(1-p), each element
 * of the mask 0 with probability p, else 1. The mask of element e of a token is a word of Philox with the adapter's key
 * and the counter (e/4, position, segment, step): nothing is stored, backward and recomputation draw it again, and it
 * does not depend on packing, threads or ranks. One mask serves the matrices that read the same x, as they share A's
 * product. */
#include <math.h>

#include "model/core/threads.h"
#include "model/ops/adapter.h"

enum { SLICE = 256, ROW_GRAIN = 4 };

bool dropout_applies(const OpCall *call) {
    const Adapter *adapter = call->node->weight->adapter;
    return call->training && adapter && adapter->dropout > 0;
}

typedef struct {
    const OpCall *call;
    const void *x;
    void *to;
    bool add;
} Dropout;

/* The segment of row t. */
static int segment_of(const TapeBatch *batch, int t) {
    int low = 0, high = batch->n_segments; /* start[low] <= t < start[high] */
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (batch->segment_start[middle] <= t)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void drop_range(void *context, size_t begin, size_t end, int thread) {
    const Dropout *dropout = context;
    const OpCall *call = dropout->call;
    const TapeBatch *batch = call->batch;
    const Adapter *adapter = call->node->weight->adapter;
    Dtype dtype = call->node->inputs[0]->dtype;
    size_t cols = (size_t)call->node->weight->cols, size = dtype_size(dtype);
    uint32_t threshold = (uint32_t)ldexp((double)adapter->dropout, 32), words[SLICE];
    float keep = 1 / (1 - adapter->dropout), slice[SLICE], old[SLICE];
    (void)thread;
    for (size_t row = begin; row < end; row++) {
        uint32_t counter[4] = {0, (uint32_t)batch->positions[row], batch->segment_ids[segment_of(batch, (int)row)],
                               batch->step};
        for (size_t first = 0; first < cols; first += SLICE) {
            size_t n = cols - first < SLICE ? cols - first : SLICE, at = (row * cols + first) * size;
            counter[0] = (uint32_t)(first / 4);
            philox_blocks(words, counter, (n + 3) / 4, adapter->key);
            dtype_read_f32(slice, (const char *)dropout->x + at, dtype, n);
            for (size_t i = 0; i < n; i++) slice[i] = words[i] >= threshold ? slice[i] * keep : 0;
            if (dropout->add) {
                dtype_read_f32(old, (const char *)dropout->to + at, dtype, n);
                for (size_t i = 0; i < n; i++) slice[i] += old[i];
            }
            dtype_write_f32((char *)dropout->to + at, dtype, slice, n);
        }
    }
}

void dropout_rows(const OpCall *call, void *to, const void *x, bool add, int rows) {
    Dropout dropout = {call, x, to, add};
    parallel_for((size_t)rows, ROW_GRAIN, drop_range, &dropout);
}
