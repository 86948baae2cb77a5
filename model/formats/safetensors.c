/* Reading safetensors. Nothing in the header is believed before it is checked against the file's size. */
#include "model/formats/safetensors.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/text.h"
#include "model/formats/named_file.h"

enum {
    LENGTH_BYTES = 8,
    MAX_HEADER = 100000000, /* the format's own limit */
    MAX_INDEX = 256 << 20,  /* of an index.json; the largest known models need less than 1 MiB */
    MAX_SHARDS = 10000,
};

static const struct {
    const char *name;
    size_t bits;
    Dtype dtype; /* DTYPE_COUNT: known, so that its size is checked, but not readable here */
} dtypes[] = {
    {"F32", 32, DTYPE_F32},      {"BF16", 16, DTYPE_BF16}, {"F16", 16, DTYPE_F16},      {"F64", 64, DTYPE_F64},
    {"I32", 32, DTYPE_I32},      {"I64", 64, DTYPE_I64},   {"U8", 8, DTYPE_U8},         {"BOOL", 8, DTYPE_COUNT},
    {"I8", 8, DTYPE_COUNT},      {"I16", 16, DTYPE_COUNT}, {"U16", 16, DTYPE_COUNT},    {"U32", 32, DTYPE_COUNT},
    {"U64", 64, DTYPE_COUNT},    {"C64", 64, DTYPE_COUNT}, {"F8_E4M3", 8, DTYPE_COUNT}, {"F8_E5M2", 8, DTYPE_COUNT},
    {"F8_E8M0", 8, DTYPE_COUNT}, {"F4", 4, DTYPE_COUNT},   {"F6_E2M3", 6, DTYPE_COUNT}, {"F6_E3M2", 6, DTYPE_COUNT},
};
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };

const char *safetensors_dtype_name(Dtype dtype) {
    for (int i = 0; i < N_DTYPES; i++)
        if (dtypes[i].dtype == dtype) return dtypes[i].name;
    return "?";
}

/* One open shard. */
typedef struct {
    FileMap map;
} Shard;
typedef struct {
    Shard *shards;
    size_t n;
} Shards;

static void shards_close(void *state) {
    Shards *shards = state;
    for (size_t i = 0; i < shards->n; i++) file_unmap(&shards->shards[i].map);
    free(shards->shards);
    free(shards);
}

/* ---- the header ---- */

typedef struct {
    uint64_t begin, end;
    const char *name;
} Extent;

static int extent_order(const void *a, const void *b) {
    const Extent *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static int get_offset(uint64_t *value, const json_t *item, const char *name) {
    if (!json_is_integer(item) || json_integer_value(item) < 0)
        FAIL(ERR_REFUSED, "'%s': data_offsets must be two whole numbers", name);
    *value = (uint64_t)json_integer_value(item);
    return OK;
}

/* One entry of the header: its dtype, shape and place, checked against `data_size`. */
static int parse_entry(NamedArray *array, Extent *extent, const char *name, const json_t *entry, uint64_t data_size) {
    const json_t *dtype = json_object_get(entry, "dtype"), *shape = json_object_get(entry, "shape"),
                 *offsets = json_object_get(entry, "data_offsets");
    if (!json_is_string(dtype) || !json_is_array(shape) || !json_is_array(offsets) || json_array_size(offsets) != 2)
        FAIL(ERR_REFUSED, "'%s': expected {\"dtype\": …, \"shape\": […], \"data_offsets\": [begin, end]}", name);
    int kind = 0;
    while (kind < N_DTYPES && strcmp(dtypes[kind].name, json_string_value(dtype)) != 0) kind++;
    if (kind == N_DTYPES)
        FAIL(ERR_REFUSED, "'%s': unknown dtype '%.32s'; expected F32, BF16, F16, …", name, json_string_value(dtype));
    if (json_array_size(shape) > NAMED_MAX_DIMS)
        FAIL(ERR_REFUSED, "'%s' has %zu dimensions; at most %d are expected", name, json_array_size(shape),
             NAMED_MAX_DIMS);
    *array = (NamedArray){.name = name, .dtype = dtypes[kind].dtype, .n_dims = (int)json_array_size(shape)};
    for (int d = 0; d < array->n_dims; d++) {
        const json_t *dim = json_array_get(shape, (size_t)d);
        if (!json_is_integer(dim)) FAIL(ERR_REFUSED, "'%s': dimension %d is not a whole number", name, d);
        array->dims[d] = json_integer_value(dim);
    }
    TRY(named_check(array)); /* the product in bits fits as well: it left room for 64 bits per element … */
    TRY(get_offset(&extent->begin, json_array_get(offsets, 0), name));
    TRY(get_offset(&extent->end, json_array_get(offsets, 1), name));
    extent->name = name;
    if (extent->begin > extent->end || extent->end > data_size)
        FAIL(ERR_REFUSED,
             "'%s': data_offsets [%llu, %llu] are outside the file's %llu bytes of data (is it truncated?)", name,
             (unsigned long long)extent->begin, (unsigned long long)extent->end, (unsigned long long)data_size);
    unsigned __int128 bits = (unsigned __int128)named_elements(array) * dtypes[kind].bits; /* … but not times 8 */
    if (bits != (unsigned __int128)(extent->end - extent->begin) * 8) {
        char text[NAMED_SHAPE_TEXT];
        FAIL(ERR_REFUSED, "'%s': %s of shape %s does not fill data_offsets [%llu, %llu]", name, dtypes[kind].name,
             named_shape(text, array), (unsigned long long)extent->begin, (unsigned long long)extent->end);
    }
    return OK;
}

static int add_metadata(NamedFile *file, const json_t *metadata) {
    const char *key;
    json_t *value;
    if (!json_is_object(metadata)) FAIL(ERR_REFUSED, "__metadata__ is not an object");
    json_object_foreach((json_t *)(uintptr_t)metadata, key, value) {
        if (!json_is_string(value)) FAIL(ERR_REFUSED, "__metadata__: '%s' is not a text", key);
        if (!named_text(file, key)) TRY(named_file_add_text(file, key, json_string_value(value)));
    }
    return OK;
}

/* Sorted by place, each array must begin where the one before it ends, and the last end with the file. */
static int check_extents(Extent *extents, size_t n, uint64_t data_size) {
    uint64_t expected = 0;
    if (n) qsort(extents, n, sizeof *extents, extent_order);
    for (size_t i = 0; i < n; i++) {
        if (extents[i].begin != expected)
            FAIL(ERR_REFUSED, "'%s' begins at %llu where %llu is expected: arrays overlap or leave a hole",
                 extents[i].name, (unsigned long long)extents[i].begin, (unsigned long long)expected);
        expected = extents[i].end;
    }
    if (expected != data_size)
        FAIL(ERR_REFUSED, "its arrays end at byte %llu of the data, and %llu bytes are there",
             (unsigned long long)expected, (unsigned long long)data_size);
    return OK;
}

static int parse_header(NamedFile *file, const FileMap *map, json_t **header) {
    int rc = OK;
    Extent *extents = NULL;
    size_t n = 0;
    if (map->size < LENGTH_BYTES)
        FAIL(ERR_REFUSED, "%zu bytes are too few for a safetensors file (is it truncated?)", map->size);
    uint64_t length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) length = length << 8 | map->bytes[i];
    if (length > MAX_HEADER || length > map->size - LENGTH_BYTES)
        FAIL(ERR_REFUSED,
             "its first 8 bytes ask for a header of %llu bytes; the file has %zu (truncated, or not "
             "safetensors)",
             (unsigned long long)length, map->size);
    json_error_t where;
    *header = json_loadb((const char *)map->bytes + LENGTH_BYTES, (size_t)length, JSON_REJECT_DUPLICATES, &where);
    if (!*header) FAIL(ERR_REFUSED, "its header is not JSON: %s at byte %d", where.text, where.position);
    if (!json_is_object(*header)) FAIL(ERR_REFUSED, "its header is not a JSON object");
    const unsigned char *data = map->bytes + LENGTH_BYTES + length;
    uint64_t data_size = map->size - LENGTH_BYTES - length;
    extents = calloc(json_object_size(*header) + 1, sizeof *extents);
    if (!extents) FAIL(ERR_FAILED, "out of memory");
    const char *name;
    json_t *entry;
    json_object_foreach(*header, name, entry) {
        NamedArray array;
        if (strcmp(name, "__metadata__") == 0) {
            TRY_TO(done, add_metadata(file, entry));
            continue;
        }
        TRY_TO(done, parse_entry(&array, &extents[n], name, entry, data_size));
        array.data = data + extents[n].begin;
        TRY_TO(done, named_file_add(file, &array));
        n++;
    }
    TRY_TO(done, check_extents(extents, n, data_size));
done:
    free(extents);
    return rc;
}

static int add_shard(NamedFile *file, Shards *shards, const char *path) {
    json_t *header = NULL;
    Shard *shard = &shards->shards[shards->n];
    TRY(file_map(&shard->map, path));
    shards->n++;
    int rc = parse_header(file, &shard->map, &header);
    json_decref(header);
    return rc == OK ? OK : error_context(rc, "%s", path);
}

/* ---- an index and its shards ---- */

/* The distinct file names in the index's weight_map, in order of first use. */
static int shard_names(const char ***names, size_t *n, json_t *weight_map) {
    const char *array;
    json_t *value;
    *n = 0;
    *names = calloc(MAX_SHARDS, sizeof **names);
    if (!*names) FAIL(ERR_FAILED, "out of memory");
    json_object_foreach(weight_map, array, value) {
        const char *name = json_string_value(value);
        if (!name || !name[0] || strchr(name, '/'))
            FAIL(ERR_REFUSED, "weight_map: '%s' must name a file in the same directory", array);
        size_t i = *n; /* shards come in runs, so the last one is the likely one */
        while (i > 0 && strcmp((*names)[i - 1], name) != 0) i--;
        if (i > 0) continue;
        if (*n == MAX_SHARDS) FAIL(ERR_REFUSED, "weight_map names more than %d files", MAX_SHARDS);
        (*names)[(*n)++] = name;
    }
    return OK;
}

/* The shards lie beside the index. */
static int open_shards(NamedFile *file, Shards *shards, const char *index_path, const char *const *names, size_t n) {
    int rc = OK;
    char *directory = strndup(index_path, (size_t)(path_base(index_path) - index_path)), *path = NULL;
    if (!directory) FAIL(ERR_FAILED, "out of memory");
    shards->shards = calloc(n + 1, sizeof *shards->shards);
    if (!shards->shards) FAIL_TO(done, ERR_FAILED, "out of memory");
    for (size_t i = 0; i < n; i++) {
        path = path_join(directory[0] ? directory : ".", names[i]);
        if (!path) FAIL_TO(done, ERR_FAILED, "out of memory");
        TRY_TO(done, add_shard(file, shards, path));
        free(path);
        path = NULL;
    }
done:
    free(path);
    free(directory);
    return rc;
}

static int open_index(NamedFile *file, Shards *shards, const char *path, json_t **index, const char ***names) {
    char *bytes;
    size_t size, n;
    TRY(file_read(&bytes, &size, path, MAX_INDEX));
    json_error_t where;
    *index = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &where);
    free(bytes);
    if (!*index) FAIL(ERR_REFUSED, "line %d column %d: %s", where.line, where.column, where.text);
    json_t *weight_map = json_object_get(*index, "weight_map");
    if (!json_is_object(weight_map) || json_object_size(weight_map) == 0)
        FAIL(ERR_REFUSED, "expected {\"weight_map\": {\"array\": \"file\", …}}");
    TRY(shard_names(names, &n, weight_map));
    TRY(open_shards(file, shards, path, *names, n));
    TRY(named_file_finish(file));
    const char *array;
    json_t *value;
    json_object_foreach(weight_map, array, value) if (!named_find(file, array))
        FAIL(ERR_REFUSED, "weight_map has '%s' in %s, and neither that nor another shard has it: copy the model again",
             array, json_string_value(value));
    return OK;
}

/* ---- which file ---- */

/* The file to open for a path that may be a directory. malloc'd. */
static int model_file(char **file, const char *path) {
    if (!directory_exists(path)) {
        *file = strdup(path);
        if (!*file) FAIL(ERR_FAILED, "out of memory");
        return OK;
    }
    static const char *const usual[] = {"model.safetensors.index.json", "model.safetensors"};
    for (int i = 0; i < 2; i++) {
        *file = path_join(path, usual[i]);
        if (!*file) FAIL(ERR_FAILED, "out of memory");
        if (file_exists(*file)) return OK;
        free(*file);
        *file = NULL;
    }
    int rc = OK;
    char **names;
    size_t n, found = 0, chosen = 0;
    TRY(directory_list(&names, &n, path));
    for (size_t i = 0; i < n; i++)
        if (text_ends_with(names[i], ".safetensors")) {
            found++;
            chosen = i;
        }
    if (found != 1)
        FAIL_TO(done, ERR_REFUSED,
                "%s: no checkpoint, model.safetensors or model.safetensors.index.json in this directory, and %zu "
                "other .safetensors files; name one",
                path, found);
    *file = path_join(path, names[chosen]);
    if (!*file) FAIL_TO(done, ERR_FAILED, "out of memory");
done:
    names_free(names, n);
    return rc;
}

int safetensors_open(NamedFile **file, const char *path) {
    int rc = OK;
    json_t *index = NULL;
    const char **names = NULL;
    char *actual = NULL;
    *file = NULL;
    TRY(model_file(&actual, path));
    TRY_TO(done, named_file_new(file, "safetensors", actual));
    Shards *shards = calloc(1, sizeof *shards);
    if (!shards) FAIL_TO(done, ERR_FAILED, "out of memory");
    (*file)->state = shards;
    (*file)->close = shards_close;
    if (text_ends_with(actual, ".json")) {
        rc = open_index(*file, shards, actual, &index, &names);
        if (rc != OK && !strstr(error_text(), actual)) error_context(rc, "%s", actual);
        TRY_TO(done, rc);
    } else {
        shards->shards = calloc(1, sizeof *shards->shards);
        if (!shards->shards) FAIL_TO(done, ERR_FAILED, "out of memory");
        TRY_TO(done, add_shard(*file, shards, actual));
        TRY_TO(done, named_file_finish(*file));
    }
done:
    if (rc != OK) {
        named_close(*file);
        *file = NULL;
    }
    free(names);
    json_decref(index);
    free(actual);
    return rc;
}
