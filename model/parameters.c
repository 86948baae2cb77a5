/* A model's parameters as named arrays, and back. Names and shapes are Hugging Face's, whatever is fused in storage. */
#include <stdio.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/memory.h"
#include "model/core/threads.h"
#include "model/core/text.h"
#include "model/llama.h"
#include "model/quantise.h"
#include "model/storage.h"

int llama_untied_weights(const Llama *model) {
    return model->n_weights - (model->head.tied ? 1 : 0);
}

static size_t count_views(Weight *const *weights, int n_weights) {
    size_t n = 0;
    for (int i = 0; i < n_weights; i++)
        if (!weights[i]->tied) n += (size_t)weights[i]->n_views;
    return n;
}

int weights_arrays(Weight *const *weights, int n_weights, WeightStorage storage, Arena *arena, NamedArray **arrays,
                   size_t *n) {
    const char *prefix = storage.prefix ? storage.prefix : "";
    Dtype dtype = storage.arrays ? storage.dtype : DTYPE_F32;
    size_t next = 0;
    ARENA_TRY(*arrays, arena, count_views(weights, n_weights));
    for (int i = 0, stored = 0; i < n_weights; i++) {
        const Weight *weight = weights[i];
        if (weight->tied) continue;
        const char *base = storage.arrays ? storage.arrays[stored++] : (const void *)weight->value;
        for (int v = 0; v < weight->n_views; v++) {
            const WeightView *view = &weight->views[v];
            NamedArray *array = &(*arrays)[next++];
            size_t size = strlen(prefix) + strlen(view->name) + 1;
            char *name;
            ARENA_TRY(name, arena, size);
            snprintf(name, size, "%s%s", prefix, view->name);
            *array = (NamedArray){
                .name = name,
                .dtype = dtype,
                .n_dims = weight->n_dims,
                .data = base ? base + (size_t)view->first_row * (size_t)weight->cols * dtype_size(dtype) : NULL};
            if (weight->n_dims == 2) {
                array->dims[0] = view->rows;
                array->dims[1] = weight->cols;
            } else {
                array->dims[0] = weight->cols;
            }
        }
    }
    *n = next;
    return OK;
}

static void describe_dims(Text *text, int n_dims, const int64_t *dims) {
    for (int d = 0; d < n_dims; d++) text_printf(text, "%s%lld", d ? "×" : "", (long long)dims[d]);
}

static int check_dims(const NamedArray *wanted, const NamedArray *found) {
    bool same = wanted->n_dims == found->n_dims;
    for (int d = 0; same && d < wanted->n_dims; d++) same = wanted->dims[d] == found->dims[d];
    if (same) return OK;
    Text text = {0};
    text_printf(&text, "%s is ", wanted->name);
    describe_dims(&text, found->n_dims, found->dims);
    text_puts(&text, " in the file; this model's shape wants ");
    describe_dims(&text, wanted->n_dims, wanted->dims);
    int rc = error_set(ERR_REFUSED, __FILE__, __LINE__, "%s", text.bytes ? text.bytes : "a tensor's shape differs");
    text_free(&text);
    return rc;
}

static bool is_floating(Dtype dtype) {
    return dtype == DTYPE_F32 || dtype == DTYPE_BF16 || dtype == DTYPE_F16 || dtype == DTYPE_F64;
}

static int find_array(const NamedArray **found, const NamedArray *wanted, const NamedFile *file) {
    *found = named_find(file, wanted->name);
    if (!*found) FAIL(ERR_REFUSED, "%s is missing from the file", wanted->name);
    TRY(check_dims(wanted, *found));
    if (!is_floating((*found)->dtype))
        FAIL(ERR_REFUSED, "%s holds %s; fp32, bf16, fp16 or fp64 is expected", wanted->name,
             (*found)->dtype < DTYPE_COUNT ? dtype_name((*found)->dtype) : "an element type that cannot be read here");
    return OK;
}

enum { SLICE = 4096 }; /* elements */

typedef struct {
    const NamedArray *from;
    float *f32;
    bf16 *bf16; /* one of the two */
} Conversion;

/* Of an array that is mapped, of a floating dtype. */
static void convert_range(void *context, size_t begin, size_t end, int thread) {
    const Conversion *c = context;
    float slice[SLICE];
    (void)thread;
    for (size_t first = begin; first < end; first += SLICE) {
        size_t n = end - first < SLICE ? end - first : SLICE;
        const char *from = (const char *)c->from->data + first * dtype_size(c->from->dtype);
        /* cppcheck-suppress legacyUninitvar ; it is where they go */
        float *to = c->f32 ? c->f32 + first : slice;
        (void)dtype_read_f32(to, from, c->from->dtype, n);
        for (size_t i = 0; c->bf16 && i < n; i++) c->bf16[first + i] = f32_to_bf16(to[i]);
    }
}

static bool is_convertible(const NamedArray *array) {
    return array->data && is_floating(array->dtype);
}

/* All of an array's elements, rounded to bf16. */
static int named_read_bf16(const NamedFile *file, const NamedArray *array, bf16 *out) {
    float slice[SLICE];
    size_t elements = named_elements(array);
    if (is_convertible(array)) {
        parallel_for(elements, SLICE, convert_range, &(Conversion){.from = array, .bf16 = out});
        return OK;
    }
    for (size_t first = 0; first < elements; first += SLICE) {
        size_t n = elements - first < SLICE ? elements - first : SLICE;
        TRY(named_read_f32(file, array, first, n, slice));
        for (size_t i = 0; i < n; i++) out[first + i] = f32_to_bf16(slice[i]);
    }
    return OK;
}

static int read_array(const NamedArray *wanted, const NamedFile *file) {
    const NamedArray *found;
    TRY(find_array(&found, wanted, file));
    void *to = (void *)(uintptr_t)wanted->data; /* the arrays of llama_arrays point into storage that is the caller's */
    if (wanted->dtype == DTYPE_F32 && is_convertible(found)) {
        parallel_for(named_elements(found), SLICE, convert_range, &(Conversion){.from = found, .f32 = to});
        return OK;
    }
    if (wanted->dtype == DTYPE_F32) return named_read_f32(file, found, 0, named_elements(found), to);
    if (found->dtype == wanted->dtype) return named_read(file, found, 0, named_elements(found), to);
    return named_read_bf16(file, found, to);
}

int llama_arrays(const Llama *model, WeightStorage storage, Arena *arena, NamedArray **arrays, size_t *n) {
    return weights_arrays(model->weights, model->n_weights, storage, arena, arrays, n);
}

int weights_load(Weight *const *weights, int n_weights, WeightStorage storage, const NamedFile *file) {
    int rc = OK;
    Arena arena = {0};
    NamedArray *arrays;
    size_t n;
    TRY_TO(done, weights_arrays(weights, n_weights, storage, &arena, &arrays, &n));
    for (size_t i = 0; i < n; i++) TRY_TO(done, read_array(&arrays[i], file));
done:
    arena_free(&arena);
    return rc;
}

/* Names that a file may hold though the model has no such parameter, or does not want it. */
static bool may_be_ignored(const Llama *model, LlamaPart part, const char *name) {
    bool is_lm_head = strcmp(name, "lm_head.weight") == 0, is_head = is_lm_head || strcmp(name, "score.weight") == 0;
    return text_starts_with(name, "cria.") || text_ends_with(name, ".rotary_emb.inv_freq") ||
           (is_head && part.no_head) || (is_lm_head && (model->head.tied || part.tied)) ||
           (part.no_embedding && strcmp(name, model->embedding.views[0].name) == 0);
}

/* Every array of the file is a parameter, or known not to matter. */
static int check_names(const Llama *model, LlamaPart part, const NamedArray *arrays, size_t n, const NamedFile *file) {
    for (size_t f = 0; f < named_count(file); f++) {
        const char *name = named_at(file, f)->name;
        size_t i = 0;
        while (i < n && (!arrays[i].name || strcmp(arrays[i].name, name) != 0)) i++;
        if (i == n && !may_be_ignored(model, part, name))
            FAIL(ERR_REFUSED, "%s is in the file, but a Llama of this shape has no such parameter", name);
    }
    return OK;
}

/* llama_arrays as the file has them; without a name where it is not asked for one. The embedding is the first, and the
 * head the last, unless it is tied. */
static int arrays_of_file(const Llama *model, LlamaPart part, Arena *arena, NamedArray **arrays, size_t *n) {
    TRY(llama_arrays(model, (WeightStorage){0}, arena, arrays, n));
    NamedArray *embedding = &(*arrays)[0], *head = model->head.tied ? NULL : &(*arrays)[*n - 1];
    if (part.rows > 0) embedding->dims[0] = part.rows;
    if (part.rows > 0 && head && model->shape.n_scores == 0) head->dims[0] = part.rows;
    if (part.tied && head && !part.no_head) head->name = embedding->name;
    if (part.no_embedding) embedding->name = NULL;
    if (part.no_head && head) head->name = NULL;
    return OK;
}

int llama_check_part(const Llama *model, LlamaPart part, const NamedFile *file) {
    int rc = OK;
    Arena arena = {0};
    NamedArray *arrays;
    const NamedArray *found;
    size_t n;
    TRY_TO(done, arrays_of_file(model, part, &arena, &arrays, &n));
    TRY_TO(done, check_names(model, part, arrays, n, file));
    for (size_t i = 0; i < n; i++)
        if (arrays[i].name) TRY_TO(done, find_array(&found, &arrays[i], file));
done:
    arena_free(&arena);
    return rc;
}

int llama_check_file(const Llama *model, const NamedFile *file) {
    return llama_check_part(model, (LlamaPart){0}, file);
}

/* A frozen matrix: its views are read where the file is mapped, if they are there in 16 bits and all of one dtype; else
 * they are converted into the model's own storage. `wanted` has an array for each view. `ahead`: all of it will be
 * read, and there is room for it: the file is read from end to end now, faster than page by page when it is first used.
 */
static int load_frozen(Weight *weight, bf16 *storage, const NamedArray *wanted, const NamedFile *file, bool ahead) {
    const NamedArray *found[WEIGHT_MAX_VIEWS] = {NULL};
    bool mapped = true;
    for (int v = 0; v < weight->n_views; v++) {
        TRY(find_array(&found[v], &wanted[v], file));
        bool narrow = found[v]->dtype == DTYPE_BF16 || found[v]->dtype == DTYPE_F16;
        mapped = mapped && found[v]->data && narrow && (v == 0 || found[v]->dtype == found[v - 1]->dtype);
    }
    RowMajor stored = {.dtype = DTYPE_BF16, .n_views = mapped ? weight->n_views : 1, .cols = weight->cols};
    for (int v = 0; v < weight->n_views; v++) {
        size_t at = (size_t)weight->views[v].first_row * (size_t)weight->cols;
        if (mapped) {
            stored.dtype = found[v]->dtype;
            stored.view[v] = found[v]->data;
            stored.first_row[v] = weight->views[v].first_row;
            stored.first_row[v + 1] = weight->views[v].first_row + weight->views[v].rows;
            if (ahead) named_expect(found[v], SIZE_MAX);
        } else {
            TRY(named_read_bf16(file, found[v], storage + at));
        }
    }
    if (!mapped) {
        stored.view[0] = storage;
        stored.first_row[1] = weight->rows;
    }
    weight->stored = stored;
    return OK;
}

typedef struct {
    const NamedFile *file;
    const NamedArray *array;
} Source;

static int read_source(void *context, size_t first, size_t n, float *out) {
    const Source *source = context;
    return named_read_f32(source->file, source->array, first, n, out);
}

/* View by view, so that no more than one of them is in memory before it is quantised. */
static int load_quantised(Weight *weight, const NamedArray *wanted, const NamedFile *file) {
    for (int v = 0; v < weight->n_views; v++) {
        Quantised *q = &weight->stored.quantised[v];
        Source source = {.file = file};
        TRY(find_array(&source.array, &wanted[v], file));
        if (is_convertible(source.array))
            TRY(quantise_memory(q, wanted[v].name, source.array->data, source.array->dtype));
        else
            TRY(quantise_fill(q, wanted[v].name, read_source, &source));
        named_forget(source.array);
    }
    return OK;
}

static int load_weight(Weight *weight, const NamedArray *wanted, const NamedFile *file, bool ahead) {
    if (weight->stored.quantised) return load_quantised(weight, wanted, file);
    if (!weight->value) return load_frozen(weight, (bf16 *)(uintptr_t)weight->stored.view[0], wanted, file, ahead);
    for (int v = 0; v < weight->n_views; v++) TRY(read_array(&wanted[v], file));
    return OK;
}

int llama_load_weight(Llama *model, Weight *weight, const char *name, const NamedFile *file) {
    NamedArray wanted = {.name = name, .n_dims = 2, .dims = {weight->rows, weight->cols}, .data = weight->value};
    if (!weight->value && !weight->stored.quantised && !weight->stored.view[0]) return OK;
    TRY(load_weight(weight, &wanted, file, false));
    if (model->head.tied) model->head.stored = model->head.tied->stored;
    return OK;
}

/* Its packing is all that is wanted. */
static void keep_packing(Weight *weight) {
    if (!weight->forward || !weight->value || weight->tied) return;
    weight_pack(weight);
    pages_discard(weight->value, weight_value_bytes(weight));
    weight->value = NULL;
    weight->stored = (RowMajor){0};
}

/* The file's bytes of the arrays that are wanted of it. */
static int wanted_bytes(uint64_t *bytes, const NamedArray *arrays, size_t n, const NamedFile *file) {
    const NamedArray *found;
    *bytes = 0;
    for (size_t i = 0; i < n; i++) {
        if (!arrays[i].name) continue;
        TRY(find_array(&found, &arrays[i], file));
        *bytes += named_bytes(found);
    }
    return OK;
}

/* The first of the arrays from here on that is wanted is begun to be read: the file is, while this one is made of. */
static void expect_next(const NamedArray *arrays, size_t n, const NamedFile *file) {
    size_t i = 0;
    while (i < n && !arrays[i].name) i++;
    const NamedArray *found = i < n ? named_find(file, arrays[i].name) : NULL;
    if (found) named_expect(found, NAMED_AHEAD);
}

int llama_load_part(Llama *model, LlamaPart part, const NamedFile *file, LoadWatch watch) {
    int rc = OK;
    Arena arena = {0};
    NamedArray *arrays;
    size_t n, next = 0;
    uint64_t total, done = 0, bytes;
    TRY_TO(done, arrays_of_file(model, part, &arena, &arrays, &n));
    TRY_TO(done, check_names(model, part, arrays, n, file));
    TRY_TO(done, wanted_bytes(&total, arrays, n, file));
    bool fits = total < memory_available();
    for (int i = 0; i < model->n_weights; i++) {
        Weight *weight = model->weights[i];
        if (weight->tied) continue;
        const NamedArray *wanted = &arrays[next];
        next += (size_t)weight->n_views;
        if (!wanted->name) continue;
        expect_next(&arrays[next], n - next, file);
        bool looked_up = weight == &model->embedding && !model->head.tied; /* in a few rows only */
        TRY_TO(done, load_weight(weight, wanted, file, fits && !looked_up));
        if (model->packed_only && weight != &model->embedding) keep_packing(weight);
        TRY_TO(done, wanted_bytes(&bytes, wanted, (size_t)weight->n_views, file));
        done += bytes;
        if (watch.told) watch.told(watch.context, done, total);
    }
    if (model->head.tied) model->head.stored = model->head.tied->stored;
    if (!model->packed_only)
        llama_pack(model);
    else if (model->head.tied)
        weight_pack(&model->head);
done:
    arena_free(&arena);
    return rc;
}

int llama_load(Llama *model, const NamedFile *file) {
    return llama_load_part(model, (LlamaPart){0}, file, (LoadWatch){NULL, NULL});
}
