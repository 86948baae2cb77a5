/* From the data's micro-batch to the tape's, for objectives. */
#ifndef CRIA_TRAIN_MICRO_BATCH_H
#define CRIA_TRAIN_MICRO_BATCH_H

#include "data/loader.h"
#include "model/autodiff/tape.h"

/* What is kept beside a tape of `capacity` tokens. */
typedef struct {
    uint32_t *segment_ids; /* [capacity] what micro_batch_bind makes */
    float *gradient; /* [capacity] what backward begins with, a number for each token or segment; NULL: no backward */
    int capacity;
} MicroBuffers; /* {0} is empty */
int micro_buffers_new(MicroBuffers *buffers, int capacity, bool gradient);
void micro_buffers_free(MicroBuffers *buffers);

/* Binds the micro-batch to the tape: it must stay until backward is done. More tokens than the capacity are an error.
 * Segments' ids and the step are what dropout depends on, so that it depends neither on packing nor on micro-batches
 * or ranks. */
int micro_batch_bind(Tape *tape, int buffer, const MicroBatch *micro, const MicroBuffers *buffers);

#endif
