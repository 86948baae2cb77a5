/* The format-independent part: looking arrays up, reading them with conversion, and streaming sources out. */
#include "model/formats/named_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/philox.h"
#include "model/core/text.h"

enum {
    SLICE_ELEMENTS = 1 << 18, /* 1 MiB of fp32: stays in a core's cache while it is converted and written */
    WIDEST_ELEMENT = 8,
};

size_t named_elements(const NamedArray *array) {
    size_t n = 1;
    for (int d = 0; d < array->n_dims; d++) n *= (size_t)array->dims[d];
    return n;
}

size_t named_bytes(const NamedArray *array) {
    return array->dtype < DTYPE_COUNT ? named_elements(array) * dtype_size(array->dtype) : 0;
}

int named_check(const NamedArray *array) {
    if (!array->name || !array->name[0]) FAIL(ERR_REFUSED, "an array has an empty name");
    if (array->n_dims < 0 || array->n_dims > NAMED_MAX_DIMS)
        FAIL(ERR_REFUSED, "'%s' has %d dimensions; at most %d are expected", array->name, array->n_dims,
             NAMED_MAX_DIMS);
    int64_t elements = WIDEST_ELEMENT; /* counted in bytes of the widest element, so that no later product overflows */
    for (int d = 0; d < array->n_dims; d++) {
        int64_t dim = array->dims[d];
        if (dim < 0) FAIL(ERR_REFUSED, "'%s': dimension %d is %lld", array->name, d, (long long)dim);
        if (__builtin_mul_overflow(elements, dim > 0 ? dim : 1, &elements))
            FAIL(ERR_REFUSED, "'%s': its shape has more elements than any memory", array->name);
    }
    return OK;
}

char *named_shape(char out[NAMED_SHAPE_TEXT], const NamedArray *array) {
    int used = snprintf(out, NAMED_SHAPE_TEXT, "[");
    for (int d = 0; d < array->n_dims && d < NAMED_MAX_DIMS; d++)
        used +=
            snprintf(out + used, (size_t)(NAMED_SHAPE_TEXT - used), "%s%lld", d ? ", " : "", (long long)array->dims[d]);
    snprintf(out + used, (size_t)(NAMED_SHAPE_TEXT - used), "]");
    return out;
}

/* ---- building a NamedFile ---- */

int named_file_new(NamedFile **file, const char *format, const char *path) {
    *file = calloc(1, sizeof **file);
    if (!*file) FAIL(ERR_FAILED, "%s: out of memory", path);
    (*file)->format = format;
    (*file)->path = arena_strdup(&(*file)->arena, path);
    if (!(*file)->path) {
        named_close(*file);
        *file = NULL;
        FAIL(ERR_FAILED, "%s: out of memory", path);
    }
    return OK;
}

/* Makes room for one more element of `size` bytes in a malloc'd array. */
static int reserve(void **items, size_t n, size_t *capacity, size_t size) {
    if (n < *capacity) return OK;
    size_t larger = *capacity ? 2 * *capacity : 64;
    void *grown = reallocarray(*items, larger, size);
    if (!grown) FAIL(ERR_FAILED, "out of memory for %zu array descriptions", larger);
    *items = grown;
    *capacity = larger;
    return OK;
}

int named_file_add(NamedFile *file, const NamedArray *array) {
    TRY(named_check(array));
    void *arrays = file->arrays;
    TRY(reserve(&arrays, file->n, &file->capacity, sizeof *file->arrays));
    file->arrays = arrays;
    NamedArray *added = &file->arrays[file->n];
    *added = *array;
    added->name = arena_strdup(&file->arena, array->name);
    if (!added->name) FAIL(ERR_FAILED, "out of memory");
    file->n++;
    return OK;
}

int named_file_add_text(NamedFile *file, const char *key, const char *value) {
    void *texts = file->texts;
    TRY(reserve(&texts, file->n_texts, &file->texts_capacity, sizeof *file->texts));
    file->texts = texts;
    NamedText text = {arena_strdup(&file->arena, key), arena_strdup(&file->arena, value)};
    if (!text.key || !text.value) FAIL(ERR_FAILED, "out of memory");
    file->texts[file->n_texts++] = text;
    return OK;
}

/* The slot that holds `name`, or the empty one where it would go. */
static size_t slot_of(const NamedFile *file, const char *name) {
    size_t slot = (size_t)hash_bytes(name, strlen(name), HASH_START) & (file->n_slots - 1);
    while (file->slots[slot] && strcmp(file->arrays[file->slots[slot] - 1].name, name) != 0)
        slot = (slot + 1) & (file->n_slots - 1);
    return slot;
}

int named_file_finish(NamedFile *file) {
    file->n_slots = 16;
    while (file->n_slots < 2 * file->n) file->n_slots *= 2;
    file->slots = calloc(file->n_slots, sizeof *file->slots);
    if (!file->slots) FAIL(ERR_FAILED, "out of memory for %zu names", file->n);
    for (size_t i = 0; i < file->n; i++) {
        size_t slot = slot_of(file, file->arrays[i].name);
        if (file->slots[slot]) FAIL(ERR_REFUSED, "the array '%s' is there twice", file->arrays[i].name);
        file->slots[slot] = i + 1;
    }
    return OK;
}

void named_close(NamedFile *file) {
    if (!file) return;
    if (file->close) file->close(file->state);
    free(file->arrays);
    free(file->slots);
    free(file->texts);
    arena_free(&file->arena);
    free(file);
}

/* ---- reading ---- */

void named_expect(const NamedArray *array, size_t bytes) {
    size_t all = named_bytes(array);
    if (array->data) file_expect(array->data, bytes < all ? bytes : all);
}

void named_forget(const NamedArray *array) {
    if (array->data) file_forget(array->data, named_bytes(array));
}

const NamedArray *named_find(const NamedFile *file, const char *name) {
    if (!file->slots) return NULL;
    size_t index = file->slots[slot_of(file, name)];
    return index ? &file->arrays[index - 1] : NULL;
}

int named_get(const NamedArray **array, const NamedFile *file, const char *name) {
    *array = named_find(file, name);
    if (*array) return OK;
    size_t n = file->arrays ? file->n : 0;
    const char **names = malloc((n + 1) * sizeof *names);
    if (!names) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < n; i++) names[i] = file->arrays[i].name;
    const char *nearest = text_nearest(name, names, n);
    free(names);
    if (nearest) FAIL(ERR_REFUSED, "%s: has no array '%s'; the nearest is '%s'", file->path, name, nearest);
    FAIL(ERR_REFUSED, "%s: has no array '%s' among its %zu", file->path, name, file->n);
}

size_t named_count(const NamedFile *file) {
    return file->n;
}
const NamedArray *named_at(const NamedFile *file, size_t index) {
    return index < file->n ? &file->arrays[index] : NULL;
}
const char *named_format(const NamedFile *file) {
    return file->format;
}
const char *named_path(const NamedFile *file) {
    return file->path;
}

const char *named_text(const NamedFile *file, const char *key) {
    for (size_t i = 0; i < file->n_texts; i++)
        if (strcmp(file->texts[i].key, key) == 0) return file->texts[i].value;
    return NULL;
}
size_t named_text_count(const NamedFile *file) {
    return file->n_texts;
}
NamedText named_text_at(const NamedFile *file, size_t index) {
    return index < file->n_texts ? file->texts[index] : (NamedText){NULL, NULL};
}

int named_read(const NamedFile *file, const NamedArray *array, size_t first, size_t n, void *out) {
    if (array->dtype >= DTYPE_COUNT)
        FAIL(ERR_REFUSED,
             "%s: '%s' has an element type that cannot be read here; fp32, bf16, fp16, fp64, int32, int64 "
             "and uint8 can",
             file->path, array->name);
    size_t elements = named_elements(array);
    if (first > elements || n > elements - first)
        FAIL(ERR_FAILED, "%s: '%s': elements %zu to %zu were asked for, it has %zu", file->path, array->name, first,
             first + n, elements);
    if (n == 0) return OK;
    if (array->data) {
        size_t size = dtype_size(array->dtype);
        memcpy(out, (const char *)array->data + first * size, n * size);
        return OK;
    }
    if (!file->read) FAIL(ERR_FAILED, "%s: '%s' has no data", file->path, array->name);
    TRY(file->read(file, array, first, n, out));
    return OK;
}

int named_read_f32(const NamedFile *file, const NamedArray *array, size_t first, size_t n, float *out) {
    if (array->dtype != DTYPE_F32 && array->dtype != DTYPE_BF16 && array->dtype != DTYPE_F16 &&
        array->dtype != DTYPE_F64)
        FAIL(ERR_REFUSED, "%s: '%s' holds %s; fp32, bf16, fp16 or fp64 is expected", file->path, array->name,
             array->dtype < DTYPE_COUNT ? dtype_name(array->dtype) : "an element type that cannot be read here");
    if (array->dtype == DTYPE_F32) {
        TRY(named_read(file, array, first, n, out));
        return OK;
    }
    unsigned char raw[4096 * WIDEST_ELEMENT];
    size_t size = dtype_size(array->dtype), per_slice = sizeof raw / size;
    for (size_t done = 0; done < n;) {
        size_t count = n - done < per_slice ? n - done : per_slice;
        TRY(named_read(file, array, first + done, count, raw));
        TRY(dtype_read_f32(out + done, raw, array->dtype, count));
        done += count;
    }
    return OK;
}

/* ---- writing ---- */

int named_check_sources(const NamedSource *sources, size_t n) {
    int rc = OK;
    NamedFile *names = NULL;
    TRY(named_file_new(&names, "", ""));
    for (size_t i = 0; i < n; i++) {
        const NamedSource *source = &sources[i];
        const NamedArray *array = &source->array;
        TRY_TO(done, named_file_add(names, array));
        int kinds = (array->data != NULL) + (source->f32 != NULL) + (source->fill != NULL);
        if (array->dtype >= DTYPE_COUNT) FAIL_TO(done, ERR_FAILED, "'%s': unknown dtype", array->name);
        if (kinds > 1 || (kinds == 0 && named_elements(array) > 0))
            FAIL_TO(done, ERR_FAILED, "'%s' is given data in %d ways; one is expected", array->name, kinds);
        bool floating = array->dtype <= DTYPE_F64;
        if (!floating && (source->f32 || source->fill))
            FAIL_TO(done, ERR_FAILED, "'%s': fp32 data cannot be stored as %s", array->name, dtype_name(array->dtype));
    }
    TRY_TO(done, named_file_finish(names));
done:
    named_close(names);
    return rc;
}

/* One slice of a source in the dtype to store: *bytes points into the source or into a buffer. */
static int take_slice(const NamedSource *source, size_t first, size_t n, float *values, void *converted,
                      const void **bytes) {
    const NamedArray *array = &source->array;
    if (array->data) {
        *bytes = (const char *)array->data + first * dtype_size(array->dtype);
        return OK;
    }
    if (source->fill) TRY(source->fill(source->context, first, n, values));
    const float *slice = source->fill ? values : source->f32 + first;
    *bytes = slice;
    if (array->dtype == DTYPE_F32) return OK;
    TRY(dtype_write_f32(converted, array->dtype, slice, n));
    *bytes = converted;
    return OK;
}

int named_stream(const NamedSource *source, NamedSink sink, void *context) {
    int rc = OK;
    size_t n = named_elements(&source->array), size = dtype_size(source->array.dtype);
    float *values = malloc(SLICE_ELEMENTS * sizeof *values);
    void *converted = malloc(SLICE_ELEMENTS * size);
    if (!values || !converted) FAIL_TO(done, ERR_FAILED, "out of memory");
    for (size_t first = 0; first < n;) {
        size_t count = n - first < SLICE_ELEMENTS ? n - first : SLICE_ELEMENTS;
        const void *bytes;
        TRY_TO(done, take_slice(source, first, count, values, converted, &bytes));
        TRY_TO(done, sink(context, bytes, count * size));
        first += count;
    }
done:
    if (rc != OK) error_context(rc, "'%s'", source->array.name);
    free(values);
    free(converted);
    return rc;
}
