/* See reward_scorer.h. One inference tape, recorded anew where a text does not fit it. */
#include "eval/reward_scorer.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

struct RewardScorer {
    Llama *model;
    Dtype dtype;
    int wanted, capacity; /* tokens of a batch; of the tape */
    Tape *tape;
    Tensor *last, *rewards;
    int32_t *tokens, *positions, *starts, *ends; /* [capacity], the third one more */
};

int reward_scorer_new(RewardScorer **out, Llama *model, int tokens, Dtype dtype) {
    *out = NULL;
    if (model->shape.n_scores == 0) FAIL(ERR_REFUSED, "a language model gives no rewards; a reward model is expected");
    RewardScorer *scorer = calloc(1, sizeof *scorer);
    if (!scorer) FAIL(ERR_FAILED, "out of memory");
    *scorer = (RewardScorer){.model = model, .dtype = dtype, .wanted = tokens};
    *out = scorer;
    return OK;
}

static void clear(RewardScorer *scorer) {
    tape_free(scorer->tape);
    free(scorer->tokens);
    scorer->tape = NULL;
    scorer->tokens = NULL;
    scorer->capacity = 0;
}

void reward_scorer_free(RewardScorer *scorer) {
    if (!scorer) return;
    clear(scorer);
    free(scorer);
}

/* A tape for so many tokens. */
static int prepare(RewardScorer *scorer, int capacity) {
    int rc = OK;
    if (capacity < scorer->wanted) capacity = scorer->wanted;
    if (capacity <= scorer->capacity) return OK;
    clear(scorer);
    scorer->tokens = calloc(4 * (size_t)capacity + 1, sizeof *scorer->tokens);
    scorer->tape = tape_new(&(TapeOptions){.capacity = capacity, .dtype = scorer->dtype});
    if (!scorer->tokens || !scorer->tape) FAIL_TO(failed, ERR_FAILED, "out of memory");
    scorer->positions = scorer->tokens + capacity;
    scorer->ends = scorer->positions + capacity;
    scorer->starts = scorer->ends + capacity;
    scorer->last = tape_input(scorer->tape, ROWS_SEGMENTS, 1, DTYPE_I32, false);
    scorer->rewards = llama_score(scorer->tape, scorer->model, (LlamaRecord){0}, scorer->last);
    tape_keep(scorer->rewards);
    TRY_TO(failed, tape_plan(scorer->tape));
    scorer->capacity = capacity;
    return OK;
failed:
    clear(scorer);
    return rc;
}

static int check(const RewardScorer *scorer, const RewardText *texts, size_t n, size_t *longest) {
    size_t limit = (size_t)scorer->model->rotary.n_positions;
    *longest = 0;
    for (size_t i = 0; i < n; i++) {
        if (texts[i].n == 0) FAIL(ERR_REFUSED, "text %zu to be scored is empty", i + 1);
        if (texts[i].n > limit)
            FAIL(ERR_REFUSED, "text %zu to be scored has %zu tokens; the reward model was made for at most %zu", i + 1,
                 texts[i].n, limit);
        if (texts[i].n > *longest) *longest = texts[i].n;
    }
    return OK;
}

/* As many of the texts as fit, from the first on; their number in *n. */
static TapeBatch fill(RewardScorer *scorer, const RewardText *texts, size_t *n) {
    size_t used = 0, s = 0;
    for (; s < *n && used + texts[s].n <= (size_t)scorer->capacity; s++) {
        scorer->starts[s] = (int32_t)used;
        memcpy(scorer->tokens + used, texts[s].ids, texts[s].n * sizeof *texts[s].ids);
        for (size_t i = 0; i < texts[s].n; i++) scorer->positions[used + i] = (int32_t)i;
        used += texts[s].n;
        scorer->ends[s] = (int32_t)used - 1;
    }
    scorer->starts[s] = (int32_t)used;
    *n = s;
    return (TapeBatch){.n_tokens = (int)used,
                       .n_segments = (int)s,
                       .tokens = scorer->tokens,
                       .positions = scorer->positions,
                       .segment_start = scorer->starts};
}

int reward_scorer_score(RewardScorer *scorer, const RewardText *texts, size_t n, float *rewards,
                        void (*progress)(void *context, size_t done), void *context) {
    size_t longest, taken, rows = (size_t)scorer->model->shape.n_scores;
    TRY(check(scorer, texts, n, &longest));
    TRY(prepare(scorer, (int)longest));
    for (size_t i = 0; i < n; i += taken) {
        taken = n - i;
        TapeBatch batch = fill(scorer, texts + i, &taken);
        TRY(tape_bind(scorer->tape, 0, &batch));
        tape_bind_input(0, scorer->last, scorer->ends);
        TRY(tape_forward(scorer->tape, 0));
        memcpy(rewards + i * rows, tape_value(scorer->tape, 0, scorer->rewards), taken * rows * sizeof *rewards);
        if (progress) progress(context, i + taken);
    }
    return OK;
}

int reward_scorer_bytes(RewardScorer *scorer, uint64_t *bytes) {
    TRY(prepare(scorer, scorer->wanted));
    *bytes = tape_bytes(scorer->tape) + (4 * (size_t)scorer->capacity + 1) * sizeof *scorer->tokens;
    return OK;
}
