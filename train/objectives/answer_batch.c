/* See answer_batch.h. */
#include "train/objectives/answer_batch.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

void answer_batch_free(AnswerBatch *memory) {
    free(memory->micro);
    free(memory->block);
    *memory = (AnswerBatch){.micro = NULL};
}

/* Counts what each micro-batch holds. *n_micro may be more than there is room for, when nothing is written. */
static int cut(MicroBatch *micro, int room, int *n_micro, const Answer *answers, const int *chosen, int n,
               int capacity) {
    int used = capacity;
    *n_micro = 0;
    for (int i = 0; i < n; i++) {
        int tokens = answers[chosen[i]].n_tokens;
        if (tokens > capacity) FAIL(ERR_FAILED, "an answer of %d tokens; a micro-batch holds %d", tokens, capacity);
        if (used + tokens > capacity) {
            used = 0;
            if (*n_micro < room) micro[*n_micro] = (MicroBatch){.n_tokens = 0};
            (*n_micro)++;
        }
        used += tokens;
        if (*n_micro > room) continue;
        micro[*n_micro - 1].n_tokens = used;
        micro[*n_micro - 1].n_segments = ++micro[*n_micro - 1].n_samples;
    }
    return OK;
}

static size_t bytes_of(const MicroBatch *micro) {
    size_t tokens = (size_t)micro->n_tokens, segments = (size_t)micro->n_segments;
    return segments * sizeof(uint64_t) + tokens * (3 * sizeof(int32_t) + sizeof(float)) +
           (2 * segments + 2) * sizeof(int32_t); /* one more than needed, so that the next stays aligned */
}

static size_t round_up(size_t bytes) {
    return (bytes + sizeof(uint64_t) - 1) / sizeof(uint64_t) * sizeof(uint64_t);
}

static int make_room(AnswerBatch *memory, int n_micro, size_t bytes) {
    if (n_micro > memory->micro_capacity) {
        MicroBatch *micro = realloc(memory->micro, ((size_t)n_micro + 1) * sizeof *micro);
        if (!micro) FAIL(ERR_FAILED, "out of memory");
        memory->micro = micro;
        memory->micro_capacity = n_micro;
    }
    if (bytes > memory->block_size) {
        free(memory->block);
        memory->block_size = 0;
        memory->block = malloc(bytes);
        if (!memory->block) FAIL(ERR_FAILED, "out of memory");
        memory->block_size = bytes;
    }
    return OK;
}

/* Gives a micro-batch its arrays; returns where the next one's begin. */
static unsigned char *place(MicroBatch *micro, unsigned char *at) {
    unsigned char *next = at + round_up(bytes_of(micro));
    micro->sample_id = micro->segment = (uint64_t *)(void *)at;
    micro->tokens = (int32_t *)(void *)(micro->sample_id + micro->n_segments);
    micro->targets = micro->tokens + micro->n_tokens;
    micro->positions = micro->targets + micro->n_tokens;
    micro->weights = (float *)(void *)(micro->positions + micro->n_tokens);
    micro->segment_start = (int32_t *)(void *)(micro->weights + micro->n_tokens);
    micro->source = micro->segment_start + micro->n_segments + 1;
    return next;
}

static void write_answer(MicroBatch *micro, int segment, int first, const Answer *answer, int number) {
    int n = answer->n_tokens;
    micro->segment_start[segment] = first;
    micro->segment_start[segment + 1] = first + n;
    micro->source[segment] = 0;
    micro->sample_id[segment] = (uint64_t)number;
    memcpy(micro->tokens + first, answer->tokens, (size_t)n * sizeof *answer->tokens);
    for (int t = 0; t < n; t++) {
        bool predicts = t + 1 >= answer->n_prompt && t + 1 < n;
        micro->targets[first + t] = predicts ? answer->tokens[t + 1] : 0;
        micro->weights[first + t] = predicts ? 1 : 0;
        micro->positions[first + t] = t;
    }
}

int answer_batch_fill(StepBatch *batch, AnswerBatch *memory, const Answer *answers, const int *chosen, int n,
                      int capacity) {
    int n_micro;
    size_t bytes = 0;
    TRY(cut(memory->micro, memory->micro_capacity, &n_micro, answers, chosen, n, capacity));
    if (n_micro > memory->micro_capacity) {
        TRY(make_room(memory, n_micro, 0));
        TRY(cut(memory->micro, memory->micro_capacity, &n_micro, answers, chosen, n, capacity));
    }
    for (int m = 0; m < n_micro; m++) bytes += round_up(bytes_of(&memory->micro[m]));
    TRY(make_room(memory, n_micro, bytes));
    unsigned char *at = memory->block;
    int next = 0;
    for (int m = 0; m < n_micro; m++) {
        MicroBatch *micro = &memory->micro[m];
        at = place(micro, at);
        for (int s = 0, first = 0; s < micro->n_segments; s++, next++) {
            write_answer(micro, s, first, &answers[chosen[next]], chosen[next]);
            first += answers[chosen[next]].n_tokens;
        }
    }
    *batch = (StepBatch){.micro = memory->micro, .n_micro = n_micro};
    return OK;
}
