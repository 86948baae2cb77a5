/* See micro_batch.h. */
#include "train/objectives/micro_batch.h"

TapeBatch micro_batch_tape(const MicroBatch *micro, uint32_t *segment_ids) {
    for (int s = 0; s < micro->n_segments; s++) segment_ids[s] = tape_segment_id(micro->segment[s], 0);
    return (TapeBatch){.n_tokens = micro->n_tokens,
                       .n_segments = micro->n_segments,
                       .tokens = micro->tokens,
                       .positions = micro->positions,
                       .targets = micro->targets,
                       .segment_start = micro->segment_start,
                       .segment_ids = segment_ids,
                       .step = (uint32_t)micro->step};
}
