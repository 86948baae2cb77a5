/* See loss.h. Several windows are segments of one flat batch. */
#include "eval/loss.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

enum { BATCH_TOKENS = 2048 };

/* Inputs and what is scored of them, window by window. */
typedef struct {
    const int32_t *ids; /* the text's tokens, BOS first where there is one */
    size_t n;
    int window;
    ScoreMode mode;
    int32_t bos;
    size_t next; /* the next window begins here */
} Windows;

typedef struct {
    Tape *tape;
    Tensor *mask;
    HeadOutputs out;
    int32_t *tokens, *targets, *positions, *segment_start;
    float *weights;
    int capacity, n_tokens, n_segments;
} Batch;

static int batch_new(Batch *batch, Llama *model, int window) {
    *batch = (Batch){.capacity = window > BATCH_TOKENS ? window : BATCH_TOKENS};
    size_t n = (size_t)batch->capacity + 1;
    batch->tokens = calloc(4 * n, sizeof *batch->tokens);
    batch->weights = calloc(n, sizeof *batch->weights);
    batch->tape = tape_new(&(TapeOptions){.capacity = batch->capacity});
    if (!batch->tokens || !batch->weights || !batch->tape) FAIL(ERR_FAILED, "out of memory");
    batch->targets = batch->tokens + n;
    batch->positions = batch->targets + n;
    batch->segment_start = batch->positions + n;
    batch->mask = tape_input(batch->tape, ROWS_TOKENS, 1, DTYPE_F32, false);
    batch->out = llama_record(batch->tape, model, (LlamaRecord){0}, (HeadOptions){.mask = batch->mask, .top1 = true});
    tape_keep(batch->out.logprob);
    tape_keep(batch->out.top1);
    return tape_plan(batch->tape);
}

static void batch_free(Batch *batch) {
    tape_free(batch->tape);
    free(batch->tokens);
    free(batch->weights);
}

/* Adds the next window to the batch; false when there is none left or no room. */
static bool add_window(Batch *batch, Windows *w) {
    size_t left = w->n > w->next + 1 ? w->n - w->next - 1 : 0; /* targets that are left */
    int length = left < (size_t)w->window ? (int)left : w->window;
    bool halves = w->mode == SCORE_LAST_HALF;
    if (halves && w->n - w->next < (size_t)w->window) return false;
    if (length == 0 || batch->n_tokens + length > batch->capacity) return false;
    if (halves) length = w->window - 1; /* the last token of a chunk has no target in it */
    batch->segment_start[batch->n_segments++] = batch->n_tokens;
    for (int i = 0; i < length; i++) {
        int row = batch->n_tokens++;
        batch->tokens[row] = halves && i == 0 && w->bos >= 0 ? w->bos : w->ids[w->next + (size_t)i];
        batch->targets[row] = w->ids[w->next + (size_t)i + 1];
        batch->positions[row] = i;
        batch->weights[row] = halves && i < w->window / 2 ? 0.0f : 1.0f;
    }
    batch->segment_start[batch->n_segments] = batch->n_tokens;
    w->next += (size_t)(halves ? w->window : length);
    return true;
}

static int score(Batch *batch, const Tokenizer *tokenizer, double *nll, uint64_t *correct, LossResult *result) {
    TapeBatch bound = {.n_tokens = batch->n_tokens,
                       .n_segments = batch->n_segments,
                       .tokens = batch->tokens,
                       .positions = batch->positions,
                       .targets = batch->targets,
                       .segment_start = batch->segment_start};
    TRY(tape_bind(batch->tape, 0, &bound));
    tape_bind_input(0, batch->mask, batch->weights);
    TRY(tape_forward(batch->tape, 0));
    const float *logprob = tape_value(batch->tape, 0, batch->out.logprob);
    const int32_t *top1 = tape_value(batch->tape, 0, batch->out.top1);
    for (int row = 0; row < batch->n_tokens; row++) {
        if (batch->weights[row] == 0) continue;
        size_t size;
        tokenizer_piece(tokenizer, batch->tokens[row], batch->targets[row], &size);
        *nll -= (double)logprob[row];
        *correct += top1[row] == batch->targets[row];
        result->tokens++;
        result->bytes += size;
    }
    return OK;
}

int eval_loss(Llama *model, const Tokenizer *tokenizer, const char *text, size_t size, int window, ScoreMode mode,
              void (*progress)(void *context, uint64_t done, uint64_t total), void *context, LossResult *result) {
    int rc = OK;
    TokenList ids = {0};
    Batch batch = {0};
    double nll = 0;
    uint64_t correct = 0;
    *result = (LossResult){0};
    if (window < 2 || window > model->rotary.n_positions)
        FAIL(ERR_USAGE, "a window of %d tokens; the model has positions for 2 to %d", window,
             model->rotary.n_positions);
    TRY_TO(done, tokenizer_encode(tokenizer, text, size, TOKENIZE_BOS, &ids));
    TRY_TO(done, batch_new(&batch, model, window));
    Windows windows = {.ids = ids.ids, .n = ids.n, .window = window, .mode = mode, .bos = tokenizer_bos(tokenizer)};
    for (;;) {
        batch.n_tokens = batch.n_segments = 0;
        while (add_window(&batch, &windows)) {}
        if (batch.n_segments == 0) break;
        TRY_TO(done, score(&batch, tokenizer, &nll, &correct, result));
        if (progress) progress(context, windows.next, ids.n);
    }
    if (result->tokens == 0)
        FAIL_TO(done, ERR_REFUSED, "the text has %zu tokens: too few to score anything with a window of %d", ids.n,
                window);
    result->loss = nll / (double)result->tokens;
    if (!isfinite(result->loss))
        FAIL_TO(done, ERR_REFUSED, "the loss is %g: the model's weights, or what it computes, are broken",
                result->loss);
    result->perplexity = exp(result->loss);
    result->bits_per_byte = result->bytes ? nll / log(2) / (double)result->bytes : 0;
    result->accuracy = (double)correct / (double)result->tokens;
done:
    batch_free(&batch);
    token_list_free(&ids);
    return rc;
}
