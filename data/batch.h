/* From the sequences of a step to this rank's micro-batches. */
#ifndef CRIA_DATA_BATCH_H
#define CRIA_DATA_BATCH_H

#include <stddef.h>
#include <stdint.h>

#include "data/cache.h"
#include "data/loader.h"
#include "data/packing.h"

/* A sequence: one sample, whose runs are a range of a RunList. */
typedef struct {
    const TokenCache *cache;
    int source;
    uint64_t id;
    int64_t first_sample; /* Corpus's */
    size_t first_run, end_run;
    int n_tokens;
} Sequence;

typedef struct {
    Sequence *sequences;
    size_t n, capacity;
    RunList runs; /* of all of them */
} SequenceList;   /* {0} is empty */

int sequence_list_add(SequenceList *list, Sequence sequence);
void sequence_list_clear(SequenceList *list); /* keeps the memory */
void sequence_list_free(SequenceList *list);

/* The arrays of the micro-batches of one step, in one block that only grows. */
typedef struct {
    unsigned char *block;
    size_t size;
} BatchMemory; /* {0} is empty */
void batch_memory_free(BatchMemory *memory);
/* What batch_fill allocates for so much. */
size_t batch_memory_bytes(size_t n_tokens, size_t n_segments, size_t n_samples, size_t n_micro);

/* Fills batch->micro and n_micro with the sequences in their order, each micro-batch as many as fit
 * tokens_per_microbatch (no sequence is longer). Valid until the next call. */
int batch_fill(StepBatch *batch, BatchMemory *memory, const SequenceList *list, int tokens_per_microbatch);

#endif
