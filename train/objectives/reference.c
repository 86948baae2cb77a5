/* See reference.h. The file: "logps" [n_samples, 2] in fp32; the texts `key` (hexadecimal), of all that the numbers
 * depend on, `crc32c`, of the numbers, and `model`, for the reader. */
#include "train/objectives/reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/philox.h"
#include "model/core/text.h"
#include "model/formats/safetensors.h"
#include "train/objectives/answer_logps.h"
#include "train/console/progress.h"

static const char file_name[] = "reference.safetensors";

void reference_free(Reference *reference) {
    free(reference->logps);
    *reference = (Reference){0};
}

/* ---- the key ------------------------------------------------------------------------------------------------------
 */

/* Of a view's values, wherever and in however many bits they are. `row`: room for one. */
static uint32_t view_crc(const Weight *weight, const WeightView *view, float *row) {
    const size_t width = (size_t)weight->cols, rows = (size_t)view->rows;
    if (weight->value)
        return crc32c(0, weight->value + (size_t)view->first_row * width, rows * width * sizeof *weight->value);
    uint32_t crc = 0;
    for (int r = view->first_row; r < view->first_row + view->rows; r++) {
        row_major_read(&weight->stored, r, 0, width, row);
        crc = crc32c(crc, row, width * sizeof *row);
    }
    return crc;
}

static uint64_t hash_weight(const Weight *weight, float *row, uint64_t hash) {
    for (int v = 0; v < weight->n_views; v++) {
        const WeightView *view = &weight->views[v];
        uint32_t crc = view_crc(weight, view, row);
        hash = hash_bytes(view->name, strlen(view->name) + 1, hash);
        hash = hash_bytes(&crc, sizeof crc, hash);
    }
    return hash;
}

static int make_key(uint64_t *key, const ReferenceOptions *options) {
    enum { VERSION = 1 };
    const Llama *model = options->model;
    size_t widest = 1;
    for (int i = 0; i < model->n_weights; i++)
        if ((size_t)model->weights[i]->cols > widest) widest = (size_t)model->weights[i]->cols;
    float *row = malloc(widest * sizeof *row);
    if (!row) FAIL(ERR_FAILED, "out of memory");
    uint64_t numbers[] = {VERSION, loader_fingerprint(options->loader), (uint64_t)options->precision};
    *key = hash_bytes(numbers, sizeof numbers, HASH_START);
    for (int i = 0; i < model->n_weights; i++)
        if (!model->weights[i]->tied) *key = hash_weight(model->weights[i], row, *key);
    free(row);
    return OK;
}

/* ---- the file -----------------------------------------------------------------------------------------------------
 */

typedef enum { FILE_ABSENT, FILE_OTHER, FILE_DAMAGED, FILE_GOOD } FileState;

static bool text_is(const NamedFile *file, const char *key, const char *expected) {
    const char *text = named_text(file, key);
    return text && strcmp(text, expected) == 0;
}

static FileState read_file(Reference *reference, const char *path, const char *key) {
    NamedFile *file;
    const NamedArray *array;
    FileState state = FILE_DAMAGED;
    size_t n = 2 * (size_t)reference->n_samples;
    if (!file_exists(path)) return FILE_ABSENT;
    if (safetensors_open(&file, path) != OK) {
        error_clear();
        return FILE_DAMAGED;
    }
    array = named_find(file, "logps");
    if (!text_is(file, "key", key)) {
        state = FILE_OTHER;
    } else if (array && named_elements(array) == n && named_read_f32(file, array, 0, n, reference->logps) == OK) {
        char crc[16];
        snprintf(crc, sizeof crc, "%08x", crc32c(0, reference->logps, n * sizeof *reference->logps));
        if (text_is(file, "crc32c", crc)) state = FILE_GOOD;
    }
    error_clear();
    named_close(file);
    return state;
}

static int write_file(const Reference *reference, const char *path, const char *key, const char *model) {
    char crc[16];
    size_t bytes = 2 * (size_t)reference->n_samples * sizeof *reference->logps;
    snprintf(crc, sizeof crc, "%08x", crc32c(0, reference->logps, bytes));
    NamedSource source = {.array = {.name = "logps",
                                    .dtype = DTYPE_F32,
                                    .n_dims = 2,
                                    .dims = {reference->n_samples, 2},
                                    .data = reference->logps}};
    NamedText texts[] = {{"key", key}, {"crc32c", crc}, {"model", model}};
    return safetensors_write(path, &source, 1, texts, sizeof texts / sizeof *texts);
}

/* ---- computing ----------------------------------------------------------------------------------------------------
 */

static void store(Reference *reference, const MicroBatch *micro, const float *logps) {
    int segments = micro->n_segments / micro->n_samples; /* of each sample */
    for (int s = 0; s < micro->n_samples; s++)
        for (int i = 0; i < segments; i++) reference->logps[2 * micro->sample[s] + i] = logps[segments * s + i];
}

typedef struct {
    Tape *tape;
    AnswerLogps recorded;
    MicroBuffers buffers;
} Pass;

static int run_step(Reference *reference, Pass *pass, Loader *loader, int64_t step) {
    StepBatch batch;
    TRY(loader_pass_step(loader, step, &batch));
    for (int m = 0; m < batch.n_micro; m++) {
        TRY(answer_logps_bind(&pass->recorded, pass->tape, 0, &batch.micro[m], &pass->buffers));
        TRY(tape_forward(pass->tape, 0));
        store(reference, &batch.micro[m], tape_value(pass->tape, 0, pass->recorded.logps));
    }
    return OK;
}

static int record_pass(Pass *pass, Llama *model, int capacity, Dtype precision) {
    pass->tape = tape_new(&(TapeOptions){.capacity = capacity, .dtype = precision});
    if (!pass->tape) FAIL(ERR_FAILED, "out of memory");
    TRY(micro_buffers_new(&pass->buffers, capacity, false));
    pass->recorded = answer_logps_record(pass->tape, model, (LlamaRecord){0}, false);
    return tape_plan(pass->tape);
}

static void free_pass(Pass *pass) {
    tape_free(pass->tape);
    micro_buffers_free(&pass->buffers);
}

int reference_pass_bytes(uint64_t *bytes, Llama *model, int tokens_per_microbatch, Dtype precision) {
    Pass pass = {.tape = NULL};
    int rc = record_pass(&pass, model, tokens_per_microbatch, precision);
    if (rc == OK) *bytes = tape_bytes(pass.tape);
    free_pass(&pass);
    return rc;
}

/* This rank's part. */
static int run_part(Reference *reference, const ReferenceOptions *options) {
    int rc = OK, capacity = options->tokens_per_microbatch;
    Progress progress;
    int64_t steps = loader_pass_steps(options->loader);
    Pass pass = {.tape = NULL};
    progress_begin(&progress, "reference", "steps", 0, steps);
    TRY_TO(done, record_pass(&pass, options->model, capacity, options->precision));
    for (int64_t step = 0; step < steps; step++) {
        TRY_TO(done, run_step(reference, &pass, options->loader, step));
        if (mesh_rank(options->mesh) == 0) progress_update(&progress, step + 1, "");
    }
done:
    progress_end(&progress);
    free_pass(&pass);
    return rc;
}

static int compute(Reference *reference, const ReferenceOptions *options) {
    size_t n = 2 * (size_t)reference->n_samples;
    char samples[32];
    log_info("computing the reference's log-probabilities of %s samples, once: %s",
             text_thousands(samples, (uint64_t)reference->n_samples), options->name);
    memset(reference->logps, 0, n * sizeof *reference->logps);
    TRY(mesh_agree(options->mesh, run_part(reference, options)));
    TRY(mesh_sum_f32(options->mesh, reference->logps, n));
    for (size_t i = 0; i < n; i++)
        if (!isfinite(reference->logps[i]))
            FAIL(ERR_REFUSED, "%s: an answer's log-probability is %g: its weights, or what it computes, are broken",
                 options->name, (double)reference->logps[i]);
    return OK;
}

/* ---- both ---------------------------------------------------------------------------------------------------------
 */

/* On rank 0: what the file says; whether it must be computed. */
static int settle(Reference *reference, const ReferenceOptions *options, const char *path, const char *key,
                  bool *wanted) {
    FileState state = read_file(reference, path, key);
    *wanted = state != FILE_GOOD;
    if (state == FILE_OTHER && options->must_match)
        FAIL(ERR_REFUSED,
             "%s is of another reference or of other data: %s has changed since this run began; put back what it was, "
             "or begin another run with another `output`",
             path, options->name);
    if (state == FILE_OTHER) log_info("%s is of another reference or of other data: it is made again", path);
    if (state == FILE_DAMAGED) log_warning("%s is damaged: it is made again", path);
    return OK;
}

static int make(Reference *reference, const ReferenceOptions *options, const char *path) {
    int rank = mesh_rank(options->mesh);
    uint64_t number = 0;
    char key[24];
    bool wanted = false;
    TRY(mesh_agree(options->mesh, make_key(&number, options)));
    snprintf(key, sizeof key, "%016llx", (unsigned long long)number);
    TRY(mesh_agree(options->mesh, rank == 0 ? settle(reference, options, path, key, &wanted) : OK));
    TRY(mesh_broadcast(options->mesh, &wanted, sizeof wanted, 0));
    if (!wanted)
        return mesh_broadcast(options->mesh, reference->logps,
                              2 * (size_t)reference->n_samples * sizeof *reference->logps, 0);
    TRY(compute(reference, options));
    return mesh_agree(options->mesh, rank == 0 ? write_file(reference, path, key, options->name) : OK);
}

int reference_make(Reference *reference, const ReferenceOptions *options) {
    *reference = (Reference){.n_samples = loader_n_samples(options->loader)};
    reference->logps = calloc(2 * (size_t)reference->n_samples + 1, sizeof *reference->logps);
    char *path = path_join(options->folder, file_name);
    int rc = reference->logps && path ? OK : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    rc = mesh_agree(options->mesh, rc);
    if (rc == OK && reference->logps && path) rc = make(reference, options, path);
    free(path);
    if (rc != OK) reference_free(reference);
    return rc;
}
