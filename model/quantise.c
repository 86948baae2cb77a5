/* See quantise.h. */
#include "model/quantise.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"

enum { SLICE = 1 << 20, PIECE = 1024 }; /* elements, whole blocks */

typedef struct {
    const Quantised *q;
    size_t first; /* element of data[0] */
    const char *data;
    Dtype dtype;
    size_t n;
    float *absmax; /* of all blocks */
    atomic_bool infinite;
} Quantising;

/* Blocks [begin, end) of the data. */
static void quantise_range(void *context, size_t begin, size_t end, int thread) {
    Quantising *work = context;
    float piece[PIECE];
    size_t stop = end * QUANTISED_BLOCK < work->n ? end * QUANTISED_BLOCK : work->n;
    (void)thread;
    for (size_t at = begin * QUANTISED_BLOCK, n; at < stop; at += n) {
        n = stop - at < PIECE ? stop - at : PIECE;
        /* a floating dtype */
        (void)dtype_read_f32(piece, work->data + at * dtype_size(work->dtype), work->dtype, n);
        if (!kernels()->quantise(work->q, work->first + at, n, piece,
                                 work->absmax + (work->first + at) / QUANTISED_BLOCK))
            work->infinite = true;
    }
}

static void quantise_slice(Quantising *work) {
    enum { GRAIN = 64 };
    parallel_for(quantised_blocks(work->n), GRAIN, quantise_range, work);
}

static void scale_range(void *context, size_t begin, size_t end, int thread) {
    const Quantising *work = context;
    (void)thread;
    quantised_encode_scales(work->q, begin, end, work->absmax, work->q->offset);
}

/* Scales, where all elements were finite. */
static int finish(Quantised *q, const char *name, Quantising *work) {
    if (work->infinite) FAIL(ERR_REFUSED, "%s has an infinite number or a NaN: it cannot be quantised", name);
    if (q->kind != QUANTISED_NF4) return OK;
    q->offset = quantised_mean(work->absmax, quantised_blocks(q->elements));
    parallel_for(quantised_groups(q->elements), 1, scale_range, work);
    return OK;
}

static int absmax_new(float **absmax, const Quantised *q) {
    *absmax = malloc((quantised_blocks(q->elements) + 1) * sizeof **absmax);
    if (!*absmax) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

int quantise_memory(Quantised *q, const char *name, const void *data, Dtype dtype) {
    enum { MEMORY_SLICE = 8 << 20 };
    Quantising work = {.q = q, .dtype = dtype};
    TRY(absmax_new(&work.absmax, q));
    for (; work.first < q->elements; work.first += work.n) {
        size_t left = q->elements - work.first, size = dtype_size(dtype);
        work.data = (const char *)data + work.first * size;
        work.n = left < MEMORY_SLICE ? left : MEMORY_SLICE;
        left -= work.n;
        file_expect(work.data + work.n * size, (left < MEMORY_SLICE ? left : MEMORY_SLICE) * size);
        quantise_slice(&work);
    }
    int rc = finish(q, name, &work);
    free(work.absmax);
    return rc;
}

int quantise_fill(Quantised *q, const char *name, NamedFill fill, void *context) {
    int rc = OK;
    Quantising work = {.q = q, .dtype = DTYPE_F32};
    float *slice = malloc(SLICE * sizeof *slice);
    if (!slice) FAIL(ERR_FAILED, "out of memory");
    TRY_TO(done, absmax_new(&work.absmax, q));
    work.data = (const char *)slice;
    for (; work.first < q->elements; work.first += work.n) {
        work.n = q->elements - work.first < SLICE ? q->elements - work.first : SLICE;
        TRY_TO(done, fill(context, work.first, work.n, slice));
        quantise_slice(&work);
    }
    TRY_TO(done, finish(q, name, &work));
done:
    free(slice);
    free(work.absmax);
    return rc;
}
