/* See merge.h. */
#include "train/files/merge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/philox.h"
#include "model/lora_peft.h"
#include "train/files/adapter_file.h"

enum { MOST_TOKENS = 32 };

/* Logits [n, V] of the model on ids, malloc'd. */
static int logits_of(float **logits, Llama *model, const int32_t *ids, int n) {
    int rc = OK;
    int32_t positions[MOST_TOKENS], starts[2] = {0, n};
    size_t size = (size_t)n * (size_t)model->head.rows * sizeof(float);
    for (int i = 0; i < n; i++) positions[i] = i;
    Tape *tape = tape_new(&(TapeOptions){.capacity = n, .dtype = llama_inference_dtype(model)});
    if (!tape) FAIL(ERR_FAILED, "out of memory");
    Tensor *out = model->shape.n_scores > 0
                      ? llama_score(tape, model, (LlamaRecord){0}, NULL)
                      : op_logits(tape, llama_hidden(tape, model, (LlamaRecord){0}), &model->head);
    TapeBatch batch = {.n_tokens = n, .n_segments = 1, .tokens = ids, .positions = positions, .segment_start = starts};
    tape_keep(out);
    TRY_TO(done, tape_plan(tape));
    TRY_TO(done, tape_bind(tape, 0, &batch));
    TRY_TO(done, tape_forward(tape, 0));
    *logits = malloc(size);
    if (!*logits) FAIL_TO(done, ERR_FAILED, "out of memory");
    memcpy(*logits, tape_value(tape, 0, out), size);
done:
    tape_free(tape);
    return rc;
}

/* Any ids will do: drawn from the vocabulary. */
static int draw_ids(int32_t ids[MOST_TOKENS], const LlamaShape *shape) {
    int n = shape->max_context < MOST_TOKENS ? shape->max_context : MOST_TOKENS;
    PhiloxKey key = philox_key(0, PHILOX_SAMPLE, 0, 0);
    for (int i = 0; i < n; i++) ids[i] = (int32_t)philox_below(key, (uint64_t)i, (uint64_t)shape->vocab_size);
    return n;
}

int merge_attach(ModelFile *file, MergeParts parts) {
    for (int i = 1; i < parts.n; i++) TRY(adapter_check_base(parts.adapters[i].arrays, file->path, file->fingerprint));
    if (parts.n == 1 && fabs(parts.weights[0] - 1) <= 0) return OK;
    lora_free(file->lora);
    file->lora = NULL;
    return lora_combine(&file->lora, file->model, parts.adapters, parts.weights, parts.n, (LlamaOptions){0});
}

/* Of the merged model at `path`, or of base and adapters. */
static int logits_of_model(float **logits, int32_t ids[MOST_TOKENS], int *n, LlamaShape *shape, const char *path,
                           const MergeParts *parts) {
    ModelFile file;
    TRY(model_file_open(
        &file, path,
        (ModelFileOptions){.head = HEAD_ANY, .n_positions = MOST_TOKENS, .base = parts ? parts->base : NULL}));
    *shape = file.model->shape;
    *n = draw_ids(ids, shape);
    int rc = parts ? merge_attach(&file, *parts) : OK;
    if (rc == OK) rc = logits_of(logits, file.model, ids, *n);
    model_file_close(&file);
    return rc;
}

static double log_sum_exp(const float *row, int n) {
    double most = (double)row[0], sum = 0; /* at least 1 in the end */
    for (int i = 1; i < n; i++) most = fmax(most, (double)row[i]);
    for (int i = 0; i < n; i++) sum += exp((double)row[i] - most);
    return most + log(fmax(sum, 1));
}

static int best(const float *row, int n) {
    int at = 0;
    for (int i = 1; i < n; i++)
        if (row[i] > row[at]) at = i;
    return at;
}

static void compare(MergeDifference *d, const float *a, const float *b, const int32_t *ids, int n, int vocabulary) {
    *d = (MergeDifference){.n_tokens = n};
    for (int t = 0; t < n; t++, a += vocabulary, b += vocabulary) {
        for (int i = 0; i < vocabulary; i++) {
            double apart = fabs((double)a[i] - (double)b[i]);
            if (!(apart <= d->difference)) d->difference = apart; /* a NaN is kept */
            d->greatest = fmax(d->greatest, fabs((double)a[i]));
        }
        d->same_best += best(a, vocabulary) == best(b, vocabulary);
        if (t + 1 == n) continue;
        d->loss += (log_sum_exp(a, vocabulary) - (double)a[ids[t + 1]]) / (n - 1);
        d->merged_loss += (log_sum_exp(b, vocabulary) - (double)b[ids[t + 1]]) / (n - 1);
    }
}

static MergeDifference of_scores(MergeDifference d) {
    d.scores = true;
    d.loss = d.merged_loss = 0;
    d.same_best = 0;
    return d;
}

int merge_difference(MergeDifference *difference, MergeParts parts, const char *merged) {
    float *before = NULL, *after = NULL;
    int32_t ids[MOST_TOKENS];
    int n, rc;
    LlamaShape shape;
    rc = logits_of_model(&before, ids, &n, &shape, parts.paths[0], &parts);
    if (rc == OK) rc = logits_of_model(&after, ids, &n, &shape, merged, NULL);
    if (rc == OK) {
        if (shape.n_scores > 0) memset(ids, 0, sizeof ids); /* any row: what follows from it is left out */
        compare(difference, before, after, ids, n, shape.n_scores > 0 ? shape.n_scores : shape.vocab_size);
        if (shape.n_scores > 0) *difference = of_scores(*difference);
    }
    free(before);
    free(after);
    return rc;
}
