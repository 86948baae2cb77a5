/* From the data's micro-batch to the tape's, for objectives. */
#ifndef CRIA_TRAIN_MICRO_BATCH_H
#define CRIA_TRAIN_MICRO_BATCH_H

#include "data/loader.h"
#include "model/autodiff/tape.h"

/* Points into `micro`. segment_ids [n_segments at least] is filled in: with the step they are what dropout depends on,
 * so that it depends neither on packing nor on micro-batches or ranks. */
TapeBatch micro_batch_tape(const MicroBatch *micro, uint32_t *segment_ids);

#endif
