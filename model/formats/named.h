/* Named arrays: what every file format here reads and writes. */
#ifndef CRIA_FORMATS_NAMED_H
#define CRIA_FORMATS_NAMED_H

#include <stddef.h>
#include <stdint.h>

#include "model/core/arena.h"
#include "model/core/dtype.h"

enum { NAMED_MAX_DIMS = 4 };

typedef struct {
    const char *name; /* Hugging Face name, e.g. "model.layers.0.self_attn.q_proj.weight" */
    Dtype dtype;      /* of the stored elements */
    int n_dims;
    int64_t dims[NAMED_MAX_DIMS]; /* slowest first */
    const void *data;             /* row-major, contiguous; when reading: in the mapped file where the format allows */
} NamedArray;

size_t named_elements(const NamedArray *array);

/* A file (or set of files) open for reading. Arrays and their names live until closed. */
typedef struct NamedFile NamedFile;
const NamedArray *named_find(const NamedFile *file, const char *name); /* NULL when absent */
size_t named_count(const NamedFile *file);
const NamedArray *named_at(const NamedFile *file, size_t index);
/* Reads elements as fp32 (converting bf16, fp16, fp64): `first` and `n` in elements. */
int named_read_f32(const NamedFile *file, const NamedArray *array, size_t first, size_t n, float *out);
void named_close(NamedFile *file);

#endif
