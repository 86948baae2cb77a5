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
    Dtype dtype;      /* of the stored elements; DTYPE_COUNT where this program cannot read them (fp8, int8, …) */
    int n_dims;
    int64_t dims[NAMED_MAX_DIMS]; /* slowest first */
    const void *data;             /* row-major, contiguous, little-endian, of any alignment. When reading: in the mapped
                                     file where the format allows, else NULL and named_read serves */
} NamedArray;

size_t named_elements(const NamedArray *array);
/* elements × element size; 0 for a dtype that cannot be read. */
size_t named_bytes(const NamedArray *array);
/* Refuses, naming the array, dims that are negative or whose product does not fit in memory's address range. */
int named_check(const NamedArray *array);
/* "[32000, 4096]" into a buffer of the caller's; returns it. */
enum { NAMED_SHAPE_TEXT = 96 };
char *named_shape(char out[NAMED_SHAPE_TEXT], const NamedArray *array);

/* ---- reading ---- */

/* A file (or set of files) open for reading. Arrays and their names live until closed. */
typedef struct NamedFile NamedFile;

/* Opens a .safetensors, .gguf, .h5 or llama2.c .bin file, or a directory that holds a model: a Hugging Face directory,
 * a checkpoint's folder, a run's folder (its newest checkpoint). HDF5 is opened only where a manifest vouches for it.
 */
int named_open(NamedFile **file, const char *path);
void named_close(NamedFile *file);

const NamedArray *named_find(const NamedFile *file, const char *name); /* NULL when absent */
/* The same, where absent is an error that names the file and the nearest name there is. */
int named_get(const NamedArray **array, const NamedFile *file, const char *name);
size_t named_count(const NamedFile *file);
const NamedArray *named_at(const NamedFile *file, size_t index);
const char *named_format(const NamedFile *file); /* "safetensors", "gguf", "hdf5", "llama2.c" */
const char *named_path(const NamedFile *file);

/* Reads elements as fp32 (converting bf16, fp16, fp64): `first` and `n` in elements. */
int named_read_f32(const NamedFile *file, const NamedArray *array, size_t first, size_t n, float *out);
/* The first bytes of a mapped array (all: SIZE_MAX) will be read soon. */
void named_expect(const NamedArray *array, size_t bytes);
enum { NAMED_AHEAD = 32 << 20 }; /* enough to keep a disk busy */
/* What was read of a mapped array leaves this process's memory; it can be read again. */
void named_forget(const NamedArray *array);
/* Reads elements as they are stored. */
int named_read(const NamedFile *file, const NamedArray *array, size_t first, size_t n, void *out);

/* Short texts stored beside the arrays (safetensors' __metadata__, HDF5's root attributes). */
typedef struct {
    const char *key, *value;
} NamedText;
const char *named_text(const NamedFile *file, const char *key); /* NULL when absent */
size_t named_text_count(const NamedFile *file);
NamedText named_text_at(const NamedFile *file, size_t index);

/* ---- writing ---- */

/* Gives elements [first, first + n) in fp32. Called with first ascending, from the thread that writes. */
typedef int (*NamedFill)(void *context, size_t first, size_t n, float *out);

/* An array to be written. Exactly one of array.data, f32 and fill is set. */
typedef struct {
    NamedArray array; /* name, dtype to store, dims; data: elements that are already of that dtype */
    const float *f32; /* elements in fp32, converted on the way */
    NamedFill fill;   /* gives the elements slice by slice, converted on the way */
    void *context;    /* of fill */
} NamedSource;

/* Checks `n` sources: names present, unlike each other; shapes; one kind of data each. */
int named_check_sources(const NamedSource *sources, size_t n);

/* Calls `sink` with consecutive slices of the source in the dtype to store. */
typedef int (*NamedSink)(void *context, const void *bytes, size_t size);
int named_stream(const NamedSource *source, NamedSink sink, void *context);

#endif
