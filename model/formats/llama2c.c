/* Reading llama2.c's version 0 files; the layout is in llama2c.h. */
#include "model/formats/llama2c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/formats/named_file.h"

enum { HEADER_INTS = 7, HEADER_BYTES = HEADER_INTS * 4, MAX_FIELD = 1 << 24 };
static const uint32_t MAGIC_LATER_VERSIONS = 0x616b3432; /* "ak42" */
static const double RUN_C_EPSILON = 1e-5, RUN_C_THETA = 10000.0;

typedef struct {
    FileMap map;
    HfConfig config;
    /* Per array, where its elements lie; for q_proj and k_proj the rows are still in llama2.c's order. */
    const char **places;
    size_t n;
} Llama2c;

static void state_close(void *state) {
    Llama2c *file = state;
    file_unmap(&file->map);
    free(file->places);
    free(file);
}

/* q_proj and k_proj. Within a head of head_dim rows, transformers' row i < head_dim/2 is llama2.c's row 2i, and row
 * head_dim/2 + i is row 2i + 1. */
static int read_rotary(const NamedFile *file, const NamedArray *array, size_t first, size_t n, void *out) {
    const Llama2c *state = file->state;
    const char *place = state->places[array - file->arrays];
    size_t width = (size_t)array->dims[1], head_dim = (size_t)state->config.head_dim, half = head_dim / 2;
    for (size_t done = 0; done < n;) {
        size_t row = (first + done) / width, column = (first + done) % width;
        size_t in_head = row % head_dim;
        size_t source = row - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
        size_t count = width - column < n - done ? width - column : n - done;
        memcpy((float *)out + done, place + (source * width + column) * sizeof(float), count * sizeof(float));
        done += count;
    }
    return OK;
}

/* ---- layout ---- */

/* A walk over the file's parts: the first time with no file, to learn the size; then to add the arrays. */
typedef struct {
    NamedFile *file; /* NULL: only count */
    uint64_t offset; /* of the next part, in bytes */
    uint64_t limit;  /* the file's size, where the walk ends early; so a hostile header costs no time, and since a part
                        has at most 2^50 bytes, no sum overflows */
} Walk;

/* One array at the walk's place, which moves past it. */
static int part(Walk *walk, const char *name, int rows, int columns, bool rotary) {
    NamedArray array = {.name = name, .dtype = DTYPE_F32, .n_dims = columns ? 2 : 1, .dims = {rows, columns}};
    uint64_t place = walk->offset;
    walk->offset += named_bytes(&array);
    if (walk->offset > walk->limit)
        FAIL(ERR_REFUSED, "its header asks for more than the file's %llu bytes: truncated, or not a llama2.c model",
             (unsigned long long)walk->limit);
    if (!walk->file) return OK;
    Llama2c *state = walk->file->state;
    const char *bytes = (const char *)state->map.bytes + place;
    array.data = rotary ? NULL : bytes;
    TRY(named_file_add(walk->file, &array));
    state->places[state->n++] = bytes;
    return OK;
}

/* One kind of weight in every layer. */
static int layers(Walk *walk, const HfConfig *config, const char *suffix, int rows, int columns, bool rotary) {
    char name[96];
    for (int layer = 0; layer < config->n_layers; layer++) {
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, suffix);
        TRY(part(walk, name, rows, columns, rotary));
    }
    return OK;
}

static int walk_file(Walk *walk, const HfConfig *c) {
    int q_dim = c->n_heads * c->head_dim, kv_dim = c->n_kv_heads * c->head_dim;
    walk->offset = HEADER_BYTES;
    TRY(part(walk, "model.embed_tokens.weight", c->vocab_size, c->dim, false));
    TRY(layers(walk, c, "input_layernorm", c->dim, 0, false));
    TRY(layers(walk, c, "self_attn.q_proj", q_dim, c->dim, true));
    TRY(layers(walk, c, "self_attn.k_proj", kv_dim, c->dim, true));
    TRY(layers(walk, c, "self_attn.v_proj", kv_dim, c->dim, false));
    TRY(layers(walk, c, "self_attn.o_proj", c->dim, q_dim, false));
    TRY(layers(walk, c, "post_attention_layernorm", c->dim, 0, false));
    TRY(layers(walk, c, "mlp.gate_proj", c->ffn_dim, c->dim, false));
    TRY(layers(walk, c, "mlp.down_proj", c->dim, c->ffn_dim, false));
    TRY(layers(walk, c, "mlp.up_proj", c->ffn_dim, c->dim, false));
    TRY(part(walk, "model.norm.weight", c->dim, 0, false));
    walk->offset += (uint64_t)c->max_position_embeddings * (uint64_t)(c->head_dim / 2) * 2 * sizeof(float);
    if (!c->tie_word_embeddings) TRY(part(walk, "lm_head.weight", c->vocab_size, c->dim, false));
    return OK;
}

static int parse_header(HfConfig *config, const FileMap *map) {
    static const char *const names[HEADER_INTS] = {"dim",        "hidden_dim", "n_layers", "n_heads",
                                                   "n_kv_heads", "vocab_size", "seq_len"};
    int32_t fields[HEADER_INTS];
    if (map->size < HEADER_BYTES) FAIL(ERR_REFUSED, "%zu bytes are too few for a llama2.c model", map->size);
    for (int i = 0; i < HEADER_INTS; i++) {
        const unsigned char *p = map->bytes + 4 * (size_t)i;
        uint32_t word = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        if (i == 0 && word == MAGIC_LATER_VERSIONS)
            FAIL(ERR_REFUSED,
                 "a llama2.c export of version 1 or later; only version 0 (export.py --version 0) is read");
        fields[i] = (int32_t)word;
    }
    *config = hf_config_default();
    config->tie_word_embeddings = fields[5] > 0;
    if (fields[5] < 0 && fields[5] > -MAX_FIELD) fields[5] = -fields[5];
    for (int i = 0; i < HEADER_INTS; i++)
        if (fields[i] < 1 || fields[i] > MAX_FIELD)
            FAIL(ERR_REFUSED, "its header says %s = %d: not a llama2.c model", names[i], fields[i]);
    config->dim = fields[0];
    config->ffn_dim = fields[1];
    config->n_layers = fields[2];
    config->n_heads = fields[3];
    config->n_kv_heads = fields[4];
    config->vocab_size = fields[5];
    config->max_position_embeddings = fields[6];
    config->head_dim = config->dim / config->n_heads;
    config->rms_norm_eps = RUN_C_EPSILON;
    config->rope_theta = RUN_C_THETA;
    if (config->dim % config->n_heads)
        FAIL(ERR_REFUSED, "its header says dim = %d and n_heads = %d, which does not divide it: not a llama2.c model",
             config->dim, config->n_heads);
    TRY(hf_config_check(config));
    return OK;
}

static int open_map(NamedFile *file, Llama2c *state, const char *path) {
    TRY(file_map(&state->map, path));
    TRY(parse_header(&state->config, &state->map));
    const HfConfig *config = &state->config;
    Walk size = {NULL, 0, state->map.size};
    TRY(walk_file(&size, config));
    if (size.offset != state->map.size)
        FAIL(ERR_REFUSED, "its header asks for %llu bytes and the file has %zu: truncated, or not a llama2.c model",
             (unsigned long long)size.offset, state->map.size);
    enum { ARRAYS_PER_LAYER = 9, OTHER_ARRAYS = 3 };
    state->places = calloc((size_t)config->n_layers * ARRAYS_PER_LAYER + OTHER_ARRAYS, sizeof *state->places);
    if (!state->places) FAIL(ERR_FAILED, "out of memory");
    Walk add = {file, 0, state->map.size};
    TRY(walk_file(&add, config));
    TRY(named_file_finish(file));
    return OK;
}

int llama2c_open(NamedFile **file, HfConfig *config, const char *path) {
    TRY(named_file_new(file, "llama2.c", path));
    int rc = OK;
    Llama2c *state = calloc(1, sizeof *state);
    if (!state) FAIL_TO(done, ERR_FAILED, "out of memory");
    (*file)->state = state;
    (*file)->close = state_close;
    (*file)->read = read_rotary;
    TRY_TO(done, open_map(*file, state, path));
    if (config) *config = state->config;
done:
    if (rc != OK) {
        if (!strstr(error_text(), path)) error_context(rc, "%s", path);
        named_close(*file);
        *file = NULL;
    }
    return rc;
}
