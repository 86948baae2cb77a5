/* See micro_batch.h. */
#include "train/objectives/micro_batch.h"

#include <stdlib.h>

#include "model/core/error.h"

int micro_buffers_new(MicroBuffers *buffers, int capacity, bool gradient) {
    *buffers = (MicroBuffers){.capacity = capacity};
    buffers->segment_ids = calloc((size_t)capacity + 1, sizeof *buffers->segment_ids);
    if (gradient) buffers->gradient = calloc((size_t)capacity + 1, sizeof *buffers->gradient);
    if (buffers->segment_ids && (buffers->gradient || !gradient)) return OK;
    micro_buffers_free(buffers);
    FAIL(ERR_FAILED, "out of memory");
}

void micro_buffers_free(MicroBuffers *buffers) {
    free(buffers->gradient);
    free(buffers->segment_ids);
    *buffers = (MicroBuffers){0};
}

int micro_batch_bind(Tape *tape, int buffer, const MicroBatch *micro, const MicroBuffers *buffers) {
    if (micro->n_tokens > buffers->capacity || micro->n_segments > buffers->capacity)
        FAIL(ERR_FAILED, "a micro-batch of %d tokens; the plan holds %d", micro->n_tokens, buffers->capacity);
    for (int s = 0; s < micro->n_segments; s++) buffers->segment_ids[s] = tape_segment_id(micro->segment[s], 0);
    return tape_bind(tape, buffer,
                     &(TapeBatch){.n_tokens = micro->n_tokens,
                                  .n_segments = micro->n_segments,
                                  .tokens = micro->tokens,
                                  .positions = micro->positions,
                                  .targets = micro->targets,
                                  .segment_start = micro->segment_start,
                                  .segment_ids = buffers->segment_ids,
                                  .step = (uint32_t)micro->step});
}
