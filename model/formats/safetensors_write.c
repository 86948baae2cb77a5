/* Writing safetensors: the header is computed from the shapes, then the arrays are streamed behind it in the order
 * given, except that wider elements come first, so that every array is aligned to its element. */
#include "model/formats/safetensors.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/text.h"
#include "model/formats/json_read.h"
#include "model/core/output.h"

enum { DATA_ALIGNMENT = 64 }; /* of the first array in the file: one cache line, one vector */
static const uint64_t DEFAULT_SHARD_BYTES = 5000000000u;

static int sink_output(void *context, const void *bytes, size_t size) {
    TRY(output_write(context, bytes, size));
    return OK;
}

static int add_texts(json_t *header, const NamedText *texts, size_t n_texts) {
    json_t *metadata = json_object();
    bool failed = json_object_set_new(header, "__metadata__", metadata) != 0;
    failed = failed || json_object_set_new(metadata, "format", json_string("pt")) != 0;
    for (size_t i = 0; i < n_texts && !failed; i++)
        failed = json_object_set_new(metadata, texts[i].key, json_string(texts[i].value)) != 0;
    if (failed) FAIL(ERR_FAILED, "its metadata cannot be written as JSON (out of memory, or not UTF-8)");
    return OK;
}

/* Appends the array's header entry; *offset is where its data begins and moves past it. */
static int add_entry(json_t *header, const NamedArray *array, uint64_t *offset) {
    json_t *shape = json_array(), *entry;
    for (int d = 0; d < array->n_dims; d++) json_array_append_new(shape, json_integer(array->dims[d]));
    uint64_t end = *offset + named_bytes(array);
    entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", safetensors_dtype_name(array->dtype), "shape", shape,
                      "data_offsets", (json_int_t)*offset, (json_int_t)end);
    if (!entry || json_array_size(shape) != (size_t)array->n_dims ||
        json_object_set_new(header, array->name, entry) != 0)
        FAIL(ERR_FAILED, "'%s' cannot be written as JSON (out of memory, or not UTF-8)", array->name);
    *offset = end;
    return OK;
}

/* Length, JSON and padding. */
static int write_header(Output *output, const json_t *header) {
    Text text = {0};
    char *json = json_dumps(header, JSON_COMPACT);
    if (!json) FAIL(ERR_FAILED, "out of memory");
    for (int i = 0; i < 8; i++) text_append(&text, "", 1);
    text_puts(&text, json);
    free(json);
    while (text.length % DATA_ALIGNMENT && !text.failed) text_append(&text, " ", 1);
    int rc = text_check(&text);
    if (rc == OK) {
        uint64_t length = text.length - 8;
        for (int i = 0; i < 8; i++) text.bytes[i] = (char)(length >> 8 * i & 0xff);
        rc = output_write(output, text.bytes, text.length);
    }
    text_free(&text);
    TRY(rc);
    return OK;
}

/* The order in the file: pointers into `sources`, wider elements first, else as given. */
static const NamedSource **file_order(const NamedSource *sources, size_t n) {
    const NamedSource **order = malloc((n + 1) * sizeof *order);
    if (!order) return NULL;
    size_t placed = 0;
    for (size_t width = 8; width >= 1; width /= 2)
        for (size_t i = 0; i < n; i++)
            if (dtype_size(sources[i].array.dtype) == width) order[placed++] = &sources[i];
    return order;
}

int safetensors_write(const char *path, const NamedSource *sources, size_t n, const NamedText *texts, size_t n_texts) {
    int rc = OK;
    Output output = {.fd = -1};
    TRY(named_check_sources(sources, n));
    uint64_t offset = 0;
    json_t *header = json_object();
    const NamedSource **order = file_order(sources, n);
    if (!order || !header) FAIL_TO(done, ERR_FAILED, "out of memory");
    TRY_TO(done, add_texts(header, texts, n_texts));
    for (size_t i = 0; i < n; i++) TRY_TO(done, add_entry(header, &order[i]->array, &offset));
    TRY_TO(done, output_begin(&output, path));
    TRY_TO(done, write_header(&output, header));
    for (size_t i = 0; i < n; i++) TRY_TO(done, named_stream(order[i], sink_output, &output));
    TRY_TO(done, output_commit(&output));
done:
    if (rc != OK && !strstr(error_text(), path)) error_context(rc, "%s", path);
    output_abandon(&output);
    free(order);
    json_decref(header);
    return rc;
}

/* ---- shards ---- */

enum { SHARD_NAME = 48 };
static const char single_name[] = "model.safetensors", index_name[] = "model.safetensors.index.json";

static void shard_name(char out[SHARD_NAME], size_t i, size_t n) {
    snprintf(out, SHARD_NAME, "model-%05zu-of-%05zu.safetensors", i + 1, n);
}

/* One past the last source of the shard that begins at `first`. */
static size_t shard_end(const NamedSource *sources, size_t n, size_t first, uint64_t shard_bytes) {
    uint64_t bytes = named_bytes(&sources[first].array);
    size_t end = first + 1;
    while (end < n && bytes + named_bytes(&sources[end].array) <= shard_bytes) {
        bytes += named_bytes(&sources[end].array);
        end++;
    }
    return end;
}

/* Removes DIRECTORY/name where it is there. */
static int remove_stale(const char *directory, const char *name) {
    int rc = OK;
    char *path = path_join(directory, name);
    if (!path) FAIL(ERR_FAILED, "out of memory");
    if (unlink(path) != 0 && errno != ENOENT) FAIL_TO(done, ERR_FAILED, "%s: remove: %s", path, strerror(errno));
done:
    free(path);
    return rc;
}

static int write_index(const char *directory, json_t *weight_map, uint64_t total) {
    int rc = OK;
    char *text = NULL, *path = path_join(directory, index_name);
    json_t *index = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", weight_map);
    if (!path || !index) FAIL_TO(done, ERR_FAILED, "out of memory");
    TRY_TO(done, json_write_text(&text, index));
    TRY_TO(done, file_write_atomic(path, text, strlen(text)));
done:
    json_decref(index);
    free(text);
    free(path);
    return rc;
}

static int write_shard(const char *directory, const char *name, const NamedSource *sources, size_t n) {
    char *path = path_join(directory, name);
    if (!path) FAIL(ERR_FAILED, "out of memory");
    int rc = safetensors_write(path, sources, n, NULL, 0);
    free(path);
    return rc;
}

int safetensors_write_directory(const char *directory, const NamedSource *sources, size_t n, uint64_t shard_bytes) {
    int rc = OK;
    if (shard_bytes == 0) shard_bytes = DEFAULT_SHARD_BYTES;
    TRY(named_check_sources(sources, n));
    size_t n_shards = 0;
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++) total += named_bytes(&sources[i].array);
    for (size_t first = 0; first < n; first = shard_end(sources, n, first, shard_bytes)) n_shards++;
    if (n_shards <= 1) {
        TRY(write_shard(directory, single_name, sources, n));
        TRY(remove_stale(directory, index_name));
        return OK;
    }
    json_t *weight_map = json_object();
    if (!weight_map) FAIL(ERR_FAILED, "out of memory");
    for (size_t first = 0, shard = 0; first < n; shard++) {
        char name[SHARD_NAME];
        size_t end = shard_end(sources, n, first, shard_bytes);
        shard_name(name, shard, n_shards);
        TRY_TO(done, write_shard(directory, name, sources + first, end - first));
        for (; first < end; first++)
            if (json_object_set_new(weight_map, sources[first].array.name, json_string(name)) != 0)
                FAIL_TO(done, ERR_FAILED, "out of memory");
    }
    TRY_TO(done, write_index(directory, weight_map, total));
    TRY_TO(done, remove_stale(directory, single_name));
done:
    json_decref(weight_map);
    return rc;
}
