/* See model_copy.h. Every element passes through fp32, which holds bf16 and fp16 exactly. */
#include "train/files/model_copy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "model/lora_peft.h"
#include "train/console/interrupt.h"
#include "train/console/new_directory.h"
#include "train/console/new_file.h"

enum { MEGABYTE = 1000000 };

typedef struct {
    ModelCopy *copy;
    const NamedFile *file;
    const NamedArray *from;
    const char *name; /* what it will be called */
    Dtype to;
} ArrayCopy;

/* The least magnitude that rounds to infinity in fp16: 65504, the largest, and half a step. */
static const float FP16_OVERFLOW = 65520.0f;

static int check_fp16(const float *values, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (isfinite(values[i]) && fabsf(values[i]) >= FP16_OVERFLOW)
            FAIL(ERR_REFUSED, "it holds %g, and fp16 ends at 65504; use --dtype bf16 or fp32", (double)values[i]);
    return OK;
}

static int reserve(ModelCopy *copy, size_t n) {
    if (n <= copy->room) return OK;
    float *larger = realloc(copy->rows, n * sizeof *larger);
    if (!larger) FAIL(ERR_FAILED, "out of memory");
    copy->rows = larger;
    copy->room = n;
    return OK;
}

static int read_rows(void *context, int first, int n, float *rows) {
    const ArrayCopy *array = context;
    size_t cols = (size_t)array->from->dims[1];
    return named_read_f32(array->file, array->from, (size_t)first * cols, (size_t)n * cols, rows);
}

/* Elements [first, first + n) of a matrix, merged by whole rows, since DoRA needs their lengths. */
static int merge_slice(ModelCopy *copy, const ArrayCopy *array, size_t first, size_t n, float *out) {
    size_t cols = (size_t)array->from->dims[1], row = first / cols, end = (first + n + cols - 1) / cols;
    TRY(reserve(copy, (end - row) * cols));
    TRY(named_read_f32(array->file, array->from, row * cols, (end - row) * cols, copy->rows));
    if (strcmp(array->name, copy->lora->model->embedding.views[0].name) == 0)
        TRY(lora_measure_embedding(copy->lora, read_rows, (void *)(uintptr_t)array));
    lora_merge(copy->lora, array->name, (int)row, (int)(end - row), copy->rows);
    memcpy(out, copy->rows + (first - row * cols), n * sizeof *out);
    return OK;
}

static int fill(void *context, size_t first, size_t n, float *out) {
    const ArrayCopy *array = context;
    ModelCopy *copy = array->copy;
    if (interrupt_requested()) FAIL(ERR_INTERRUPTED, "stopped by %s", interrupt_name());
    bool merged = copy->lora && lora_adapts(copy->lora, array->name);
    if (merged)
        TRY(merge_slice(copy, array, first, n, out));
    else
        TRY(named_read_f32(array->file, array->from, first, n, out));
    if (copy->change) TRY(copy->change(copy->change_context, array->from->name, first, n, out));
    if (array->to == DTYPE_F16 && (merged || copy->change || array->from->dtype != DTYPE_F16)) TRY(check_fp16(out, n));
    copy->done += (int64_t)(n * dtype_size(array->to));
    progress_update(&copy->progress, copy->done / MEGABYTE, "");
    return OK;
}

/* ---- opening ---- */

/* *to: DTYPE_COUNT for as it is. */
static int parse_dtype(Dtype *to, const char *name) {
    *to = DTYPE_COUNT;
    if (!name) return OK;
    if (dtype_parse(to, name) != OK || *to > DTYPE_F16)
        FAIL(ERR_USAGE, "--dtype: found '%s', expected fp32, bf16 or fp16", name);
    return OK;
}

/* `name`: what the array is called in the file, where it may have another name than it will. */
static int add_source(ModelCopy *copy, const NamedFile *file, const char *name, NamedArray wanted, Dtype to) {
    ArrayCopy *context;
    ARENA_TRY(context, &copy->arena, 1);
    *context = (ArrayCopy){.copy = copy, .file = file, .name = wanted.name, .to = to};
    TRY(named_get(&context->from, file, name));
    Dtype stored = context->from->dtype;
    if (stored > DTYPE_F64)
        FAIL(ERR_REFUSED, "%s: %s holds %s; fp32, bf16, fp16 or fp64 is expected", named_path(file), wanted.name,
             stored < DTYPE_COUNT ? dtype_name(stored) : "an element type that cannot be read here");
    if (to == DTYPE_COUNT) context->to = stored == DTYPE_F64 ? DTYPE_F32 : stored;
    wanted.dtype = context->to;
    wanted.data = NULL;
    copy->sources[copy->n++] = (NamedSource){.array = wanted, .fill = fill, .context = context};
    copy->elements += named_elements(&wanted);
    copy->bytes += named_bytes(&wanted);
    return OK;
}

/* A tokenizer with more tokens than the embedding has rows: of another model, or with tokens added to it later. */
static int check_tokenizer(const ModelCopy *copy, bool chosen) {
    const Tokenizer *tokenizer = copy->file.tokenizer;
    int rows = copy->file.config.vocab_size;
    if (!tokenizer || tokenizer_vocab_size(tokenizer) <= rows) return OK;
    if (chosen)
        FAIL(ERR_REFUSED, "--tokenizer: it has %d tokens, and the model's embedding %d rows: it is another model's",
             tokenizer_vocab_size(tokenizer), rows);
    log_warning("%s: its tokenizer has %d tokens, and its embedding %d rows: the last ones cannot be used",
                copy->file.path, tokenizer_vocab_size(tokenizer), rows);
    return OK;
}

static int prepare_adapter(ModelCopy *copy, Dtype to) {
    const NamedFile *file = copy->file.adapter.arrays;
    ARENA_TRY(copy->sources, &copy->arena, named_count(file) + 1);
    for (size_t i = 0; i < named_count(file); i++) {
        const char *name = named_at(file, i)->name;
        bool twice = copy->file.model->head.tied && strcmp(name, LORA_HEAD) == 0;
        bool of_base = strcmp(name, LORA_EMBEDDING_BASE) == 0 || strcmp(name, LORA_HEAD_BASE) == 0;
        if (!text_starts_with(name, "cria.") && !twice && !(of_base && copy->file.adapter.whole_base))
            TRY(add_source(copy, file, name, *named_at(file, i), to));
    }
    return OK;
}

/* What the array is called where the adapter has it in place of the base; else NULL. */
static const char *in_adapter(const ModelFile *file, const char *name) {
    if (file->adapter.config.saved.score && strcmp(name, "score.weight") == 0) return LORA_SCORE;
    if (file->vocabulary.embedding && strcmp(name, "model.embed_tokens.weight") == 0)
        return file->vocabulary.embedding->name;
    if (file->vocabulary.head && strcmp(name, "lm_head.weight") == 0) return file->vocabulary.head->name;
    return NULL;
}

/* A head that the adapter has untied is the base's embedding where the adapter has no other. */
static const char *in_base(const NamedFile *base, const char *name) {
    bool tied = strcmp(name, "lm_head.weight") == 0 && !named_find(base, name);
    return tied ? "model.embed_tokens.weight" : name;
}

static int prepare(ModelCopy *copy, Dtype to, bool tokenizer_chosen) {
    const ModelFile *file = &copy->file;
    NamedArray *arrays;
    const NamedArray *matrix;
    size_t n;
    TRY(check_tokenizer(copy, tokenizer_chosen));
    TRY(llama_arrays(file->model, (WeightStorage){0}, &copy->arena, &arrays, &n));
    TRY(named_get(&matrix, file->arrays, file->model->layers[0].qkv.views[0].name));
    ARENA_TRY(copy->sources, &copy->arena, n + 1);
    for (size_t i = 0; i < n; i++) {
        const char *own = in_adapter(file, arrays[i].name);
        bool vocabulary = own && strcmp(own, LORA_SCORE) != 0;
        if (own) /* a vocabulary as its base is stored, whatever it was trained in */
            TRY(add_source(copy, file->adapter.arrays, own, arrays[i],
                           vocabulary && to == DTYPE_COUNT && matrix->dtype <= DTYPE_F16 ? matrix->dtype : to));
        else
            TRY(add_source(copy, file->arrays, in_base(file->arrays, arrays[i].name), arrays[i], to));
    }
    copy->file.config.dtype = copy->sources[0].array.dtype;
    return OK;
}

int model_copy_open(ModelCopy *copy, const char *path, ModelCopyOptions options) {
    Dtype to;
    *copy = (ModelCopy){0};
    TRY(parse_dtype(&to, options.dtype));
    TRY(model_file_open(&copy->file, path,
                        (ModelFileOptions){.head = HEAD_ANY,
                                           .tokenizer = options.tokenizer,
                                           .need_tokenizer = options.need_tokenizer,
                                           .base = options.base,
                                           .keep_open = true}));
    bool apart = options.adapter && copy->file.lora;
    copy->lora = apart ? NULL : copy->file.lora;
    int rc = apart ? prepare_adapter(copy, to) : prepare(copy, to, options.tokenizer != NULL);
    if (rc != OK) model_copy_close(copy);
    return rc;
}

void model_copy_close(ModelCopy *copy) {
    model_file_close(&copy->file);
    free(copy->rows);
    arena_free(&copy->arena);
    *copy = (ModelCopy){0};
}

/* ---- writing ---- */

/* `write` at `path`, which will be TO. */
static int write_at(ModelCopy *copy, const char *path, const char *to, const char *verb, ModelCopyWrite write,
                    const void *context) {
    interrupt_install(NULL);
    copy->done = 0;
    progress_begin(&copy->progress, verb, "MB", 0, (int64_t)(copy->bytes / MEGABYTE));
    int rc = write(copy, path, context);
    progress_end(&copy->progress);
    if (rc == ERR_INTERRUPTED)
        error_set(rc, __FILE__, __LINE__, "%s: stopped by %s; %s was not written", verb, interrupt_name(), to);
    interrupt_restore();
    return rc;
}

int model_copy_write(ModelCopy *copy, const char *to, const char *verb, ModelCopyWrite write, const void *context) {
    char elements[32], bytes[32];
    NewDirectory directory;
    TRY(new_directory_begin(&directory, to));
    int rc = write_at(copy, directory.path, to, verb, write, context);
    if (rc == OK) rc = new_directory_commit(&directory);
    new_directory_abandon(&directory);
    TRY(rc);
    log_info("%s: %s parameters in %s (%s) are now in %s", verb, text_thousands(elements, copy->elements),
             dtype_name(copy->file.config.dtype), text_bytes(bytes, copy->bytes), to);
    return OK;
}

int model_copy_write_file(ModelCopy *copy, const char *to, const char *verb, ModelCopyWrite write,
                          const void *context) {
    char elements[32], bytes[32];
    uint64_t size = 0;
    NewFile file;
    TRY(new_file_begin(&file, to));
    int rc = write_at(copy, file.path, to, verb, write, context);
    if (rc == OK) rc = new_file_commit(&file);
    new_file_abandon(&file);
    TRY(rc);
    TRY(file_size(&size, to));
    log_info("%s: %s parameters are now in %s (%s)", verb, text_thousands(elements, copy->elements), to,
             text_bytes(bytes, size));
    return OK;
}
