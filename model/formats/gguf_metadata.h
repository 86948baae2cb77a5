/* The head of a GGUF file, parsed and checked: metadata and the list of tensors (gguf.h has the layout). */
#ifndef CRIA_FORMATS_GGUF_METADATA_H
#define CRIA_FORMATS_GGUF_METADATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/core/arena.h"
#include "model/core/file.h"
#include "model/formats/ggml_blocks.h"
#include "model/formats/named.h"

/* The numbers of ggml's gguf.h. */
typedef enum {
    GGUF_U8 = 0,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPES,
} GgufType;

typedef struct {
    const char *key;            /* NUL-terminated UTF-8 */
    GgufType type, item_type;   /* item_type: of an array's items */
    uint64_t n;                 /* an array's items; else 1 */
    const unsigned char *bytes; /* the value, or the first item; inside the file, any alignment */
    size_t size;
} GgufValue;

typedef struct {
    const char *name;
    const GgmlTypeInfo *type;
    int n_dims;
    int64_t dims[NAMED_MAX_DIMS]; /* slowest first: the reverse of the file's */
    uint64_t offset, size;        /* in the file's data */
} GgufTensor;

typedef struct {
    const char *bytes; /* not NUL-terminated */
    size_t length;
} GgufText;

typedef struct {
    uint32_t version;
    uint64_t alignment;
    GgufValue *values; /* sorted by key */
    size_t n_values;
    GgufTensor *tensors; /* in the file's order */
    size_t n_tensors;
    const unsigned char *data; /* where offsets count from */
    Arena arena;
} GgufHead; /* points into the mapped file */

/* Reads and checks everything: lengths and counts against the file, keys and names, types, alignment, and that tensors
 * lie inside the file without overlapping. On an error there is nothing to free. */
int gguf_head_parse(GgufHead *head, const FileMap *map);
void gguf_head_free(GgufHead *head);

/* NULL where there is none. */
const GgufValue *gguf_find(const GgufHead *head, const char *key);

/* Values by key; where the key is absent *out stays as it is. Another type is an error that names the key. Whole
 * numbers are read from any integer type that holds them, and must lie between low and high. */
int gguf_get_int(int64_t *out, const GgufHead *head, const char *key, int64_t low, int64_t high);
int gguf_get_double(double *out, const GgufHead *head, const char *key);
int gguf_get_bool(bool *out, const GgufHead *head, const char *key);
int gguf_get_text(GgufText *out, const GgufHead *head, const char *key);

/* Arrays: *n items; absent: n = 0 and *out NULL. malloc'd. */
int gguf_get_texts(GgufText **out, size_t *n, const GgufHead *head, const char *key);
int gguf_get_floats(float **out, size_t *n, const GgufHead *head, const char *key);
int gguf_get_ints(int32_t **out, size_t *n, const GgufHead *head, const char *key);

/* A value as people read it: "32", "llama", "[32000 texts]"; appended. */
int gguf_value_text(const GgufValue *value, char **out);

#endif
