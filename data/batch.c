/* Sequences are cut into micro-batches greedily; then tokens, targets, positions, weights and segments are written from
 * their runs. */
#include "data/batch.h"
#include "model/core/error.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64, SEGMENT_BITS = 40 };

int sequence_list_add(SequenceList *list, Sequence sequence) {
    if (list->n == list->capacity) {
        size_t capacity = 2 * list->n + 64;
        Sequence *grown = realloc(list->sequences, capacity * sizeof *grown);
        if (!grown) FAIL(ERR_FAILED, "out of memory: a step of %zu sequences", list->n);
        list->sequences = grown;
        list->capacity = capacity;
    }
    list->sequences[list->n++] = sequence;
    return OK;
}

void sequence_list_clear(SequenceList *list) {
    list->n = 0;
    list->runs.n = 0;
}

void sequence_list_free(SequenceList *list) {
    free(list->sequences);
    free(list->runs.runs);
    *list = (SequenceList){0};
}

void batch_memory_free(BatchMemory *memory) {
    free(memory->block);
    *memory = (BatchMemory){0};
}

/* The end of the micro-batch that begins with sequence `begin`. */
static size_t micro_end(const SequenceList *list, size_t begin, int tokens_per_microbatch) {
    size_t end = begin;
    for (int64_t used = 0; end < list->n; end++) {
        used += list->sequences[end].n_tokens;
        if (used > tokens_per_microbatch && end > begin) break;
    }
    return end;
}

/* Where each array of the step begins in the block; the arrays of a micro-batch are parts of them. */
typedef struct {
    size_t tokens, targets, positions, weights, segment_start, source, segment, sample_id, sample, marks, micro, total;
} Layout;

static size_t place(size_t *total, size_t n, size_t element) {
    size_t at = *total;
    *total += (n * element + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

static Layout lay_out(size_t n_tokens, size_t n_segments, size_t n_samples, size_t n_micro) {
    Layout layout = {0};
    layout.tokens = place(&layout.total, n_tokens, sizeof(int32_t));
    layout.targets = place(&layout.total, n_tokens, sizeof(int32_t));
    layout.positions = place(&layout.total, n_tokens, sizeof(int32_t));
    layout.weights = place(&layout.total, n_tokens, sizeof(float));
    layout.segment_start = place(&layout.total, n_segments + n_micro, sizeof(int32_t));
    layout.source = place(&layout.total, n_segments, sizeof(int32_t));
    layout.segment = place(&layout.total, n_segments, sizeof(uint64_t));
    layout.sample_id = place(&layout.total, n_samples, sizeof(uint64_t));
    layout.sample = place(&layout.total, n_samples, sizeof(int64_t));
    layout.marks = place(&layout.total, n_samples, sizeof(SampleMark));
    layout.micro = place(&layout.total, n_micro, sizeof(MicroBatch));
    return layout;
}

size_t batch_memory_bytes(size_t n_tokens, size_t n_segments, size_t n_samples, size_t n_micro) {
    return lay_out(n_tokens, n_segments, n_samples, n_micro).total;
}

static void fill_run(MicroBatch *micro, const Run *run, const Sequence *sequence) {
    int t = micro->n_tokens, end = t + run->n, position = 0;
    if (run->begins_segment) {
        micro->segment_start[micro->n_segments] = t;
        micro->segment[micro->n_segments] = (uint64_t)sequence->source << SEGMENT_BITS | (uint64_t)run->first;
        micro->source[micro->n_segments++] = sequence->source;
    } else {
        position = micro->positions[t - 1] + 1;
    }
    token_cache_read(sequence->cache, run->first, run->n, micro->tokens + t);
    memcpy(micro->targets + t, micro->tokens + t + 1, (size_t)(run->n - 1) * sizeof *micro->targets);
    micro->targets[end - 1] = 0;
    if (run->next >= 0) token_cache_read(sequence->cache, run->next, 1, &micro->targets[end - 1]);
    for (int i = t; i < end; i++) micro->positions[i] = position++;
    token_cache_weights(sequence->cache, run->first + 1, run->n - 1, micro->weights + t); /* each of its target */
    micro->weights[end - 1] = 0.0f;
    if (run->next >= 0) token_cache_weights(sequence->cache, run->next, 1, &micro->weights[end - 1]);
    micro->n_tokens = end;
}

static void name_sample(MicroBatch *micro, const Sequence *sequence, int64_t first_token) {
    int s = micro->n_samples++;
    int64_t document = token_cache_document(sequence->cache, first_token);
    micro->sample_id[s] = sequence->id;
    micro->sample[s] = sequence->first_sample + document;
    micro->marks[s] = sequence->cache->marks ? sequence->cache->marks[document] : (SampleMark){.margin = NAN};
}

static void fill_micro(MicroBatch *micro, const SequenceList *list, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) {
        const Sequence *sequence = &list->sequences[i];
        name_sample(micro, sequence, list->runs.runs[sequence->first_run].first);
        for (size_t r = sequence->first_run; r < sequence->end_run; r++) fill_run(micro, &list->runs.runs[r], sequence);
    }
    micro->segment_start[micro->n_segments] = micro->n_tokens;
}

int batch_fill(StepBatch *batch, BatchMemory *memory, const SequenceList *list, int tokens_per_microbatch) {
    size_t n_tokens = 0, n_segments = 0, n_micro = 0;
    for (size_t i = 0; i < list->n; i++) n_tokens += (size_t)list->sequences[i].n_tokens;
    for (size_t r = 0; r < list->runs.n; r++) n_segments += list->runs.runs[r].begins_segment;
    for (size_t i = 0; i < list->n; n_micro++) i = micro_end(list, i, tokens_per_microbatch);
    Layout layout = lay_out(n_tokens, n_segments, list->n, n_micro);
    if (layout.total > memory->size) {
        batch_memory_free(memory);
        memory->block = aligned_alloc(ALIGNMENT, layout.total);
        if (!memory->block) FAIL(ERR_FAILED, "out of memory: a step of %zu tokens on this rank", n_tokens);
        memory->size = layout.total;
    }
    batch->micro = (MicroBatch *)(void *)(memory->block + layout.micro);
    batch->n_micro = (int)n_micro;
    size_t token = 0, segment = 0, sample = 0;
    for (size_t m = 0; m < n_micro; m++) {
        size_t end = micro_end(list, sample, tokens_per_microbatch);
        MicroBatch *micro = &batch->micro[m];
        *micro = (MicroBatch){
            .tokens = (int32_t *)(void *)(memory->block + layout.tokens) + token,
            .targets = (int32_t *)(void *)(memory->block + layout.targets) + token,
            .positions = (int32_t *)(void *)(memory->block + layout.positions) + token,
            .weights = (float *)(void *)(memory->block + layout.weights) + token,
            .segment_start = (int32_t *)(void *)(memory->block + layout.segment_start) + segment + m,
            .source = (int32_t *)(void *)(memory->block + layout.source) + segment,
            .segment = (uint64_t *)(void *)(memory->block + layout.segment) + segment,
            .sample_id = (uint64_t *)(void *)(memory->block + layout.sample_id) + sample,
            .sample = (int64_t *)(void *)(memory->block + layout.sample) + sample,
            .marks = (SampleMark *)(void *)(memory->block + layout.marks) + sample,
        };
        fill_micro(micro, list, sample, end);
        token += (size_t)micro->n_tokens;
        segment += (size_t)micro->n_segments;
        sample = end;
    }
    return OK;
}
