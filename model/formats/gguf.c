/* Opening a GGUF file as a set of named arrays; gguf.h has the layout. */
#include "model/formats/gguf.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/text.h"
#include "model/formats/gguf_file.h"
#include "model/formats/gguf_names.h"
#include "model/formats/named_file.h"

enum { MAX_FIELD = 1 << 24 };

bool gguf_recognises(const char *path) {
    char magic[4] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    bool found = read(fd, magic, sizeof magic) == sizeof magic && memcmp(magic, "GGUF", sizeof magic) == 0;
    close(fd);
    return found;
}

const HfConfig *gguf_config(const NamedFile *file) {
    return &((const GgufFile *)file->state)->config;
}

static void state_close(void *state) {
    GgufFile *file = state;
    gguf_head_free(&file->head);
    file_unmap(&file->map);
    free(file->places);
    free(file);
}

/* ---- the shape ---- */

typedef struct {
    const char *key;
    int *value;
} SizeKey;

static int read_size(const GgufHead *head, SizeKey size) {
    int64_t value = 0;
    TRY(gguf_get_int(&value, head, size.key, 1, MAX_FIELD));
    if (value) *size.value = (int)value;
    return OK;
}

/* Things that GGUF's llama can be and this program does not compute. */
static int refuse_other_models(const GgufHead *head) {
    GgufText text = {"", 0};
    int64_t experts = 0, window = 0;
    bool causal = true;
    double softcap = 0;
    TRY(gguf_get_text(&text, head, "general.architecture"));
    if (text.length != 5 || memcmp(text.bytes, "llama", 5) != 0)
        FAIL(ERR_REFUSED, "'general.architecture' is '%.*s'; only 'llama' is implemented", (int)text.length,
             text.bytes);
    TRY(gguf_get_int(&experts, head, "llama.expert_count", 0, INT_MAX));
    if (experts > 0)
        FAIL(ERR_REFUSED, "'llama.expert_count' is %d; mixtures of experts are not implemented", (int)experts);
    text = (GgufText){"none", 4};
    TRY(gguf_get_text(&text, head, "llama.rope.scaling.type"));
    if (text.length != 4 || memcmp(text.bytes, "none", 4) != 0)
        FAIL(ERR_REFUSED,
             "'llama.rope.scaling.type' is '%.*s'; only Llama 3.1's scaling ('" GGUF_ROPE_FREQS "') is implemented",
             (int)text.length, text.bytes);
    TRY(gguf_get_bool(&causal, head, "llama.attention.causal"));
    if (!causal) FAIL(ERR_REFUSED, "'llama.attention.causal' is false; only causal attention is implemented");
    TRY(gguf_get_int(&window, head, "llama.attention.sliding_window", 0, INT_MAX));
    if (window > 0) FAIL(ERR_REFUSED, "'llama.attention.sliding_window' is %d; it is not implemented", (int)window);
    TRY(gguf_get_double(&softcap, head, "llama.attn_logit_softcapping"));
    if (softcap != 0) FAIL(ERR_REFUSED, "'llama.attn_logit_softcapping' is %g; it is not implemented", softcap);
    return OK;
}

static int read_ids(HfConfig *config, const GgufHead *head) {
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    int64_t bos = -1;
    TRY(gguf_get_int(&bos, head, "tokenizer.ggml.bos_token_id", 0, INT32_MAX));
    config->bos_token_id = (int32_t)bos;
    config->n_eos = 0;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        int64_t id = -1;
        TRY(gguf_get_int(&id, head, ends[i], 0, INT32_MAX));
        bool there = id < 0;
        for (int k = 0; k < config->n_eos; k++) there = there || config->eos_token_ids[k] == id;
        if (!there) config->eos_token_ids[config->n_eos++] = (int32_t)id;
    }
    return OK;
}

static const GgufTensor *find_tensor(const GgufHead *head, const char *name) {
    for (size_t i = 0; i < head->n_tensors; i++)
        if (strcmp(head->tensors[i].name, name) == 0) return &head->tensors[i];
    return NULL;
}

static int read_vocab_size(HfConfig *config, const GgufHead *head) {
    const GgufTensor *embedding = find_tensor(head, "token_embd.weight");
    const GgufValue *tokens = gguf_find(head, "tokenizer.ggml.tokens");
    config->vocab_size = 0;
    TRY(read_size(head, (SizeKey){"llama.vocab_size", &config->vocab_size}));
    int64_t rows = embedding && embedding->n_dims == 2 ? embedding->dims[0] : tokens ? (int64_t)tokens->n : 0;
    if (!config->vocab_size && rows <= MAX_FIELD) config->vocab_size = (int)rows;
    return OK;
}

static int read_config(HfConfig *config, const GgufHead *head) {
    const char *const required[] = {"llama.block_count", "llama.embedding_length", "llama.feed_forward_length",
                                    "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon"};
    int rotated = 0, value_length = 0;
    *config = hf_config_default();
    TRY(refuse_other_models(head));
    for (size_t i = 0; i < sizeof required / sizeof *required; i++)
        if (!gguf_find(head, required[i])) FAIL(ERR_REFUSED, "'%s' is missing from its metadata", required[i]);
    const SizeKey sizes[] = {{"llama.block_count", &config->n_layers},
                             {"llama.embedding_length", &config->dim},
                             {"llama.feed_forward_length", &config->ffn_dim},
                             {"llama.attention.head_count", &config->n_heads},
                             {"llama.context_length", &config->max_position_embeddings}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) TRY(read_size(head, sizes[i]));
    config->n_kv_heads = config->n_heads;
    config->head_dim = config->dim / config->n_heads;
    TRY(read_size(head, (SizeKey){"llama.attention.head_count_kv", &config->n_kv_heads}));
    TRY(read_size(head, (SizeKey){"llama.attention.key_length", &config->head_dim}));
    rotated = value_length = config->head_dim;
    TRY(read_size(head, (SizeKey){"llama.rope.dimension_count", &rotated}));
    TRY(read_size(head, (SizeKey){"llama.attention.value_length", &value_length}));
    if (rotated != config->head_dim || value_length != config->head_dim)
        FAIL(ERR_REFUSED, "heads have %d channels, of values %d, of which %d are rotated; all three must be equal",
             config->head_dim, value_length, rotated);
    TRY(gguf_get_double(&config->rms_norm_eps, head, "llama.attention.layer_norm_rms_epsilon"));
    TRY(gguf_get_double(&config->rope_theta, head, "llama.rope.freq_base"));
    TRY(read_vocab_size(config, head));
    TRY(read_ids(config, head));
    TRY(hf_config_check(config));
    return OK;
}

/* The shortest decimal that is this float: 1e-5 and not 9.99999974e-6. GGUF has these numbers in fp32. */
static double decimal(double value) {
    char text[32];
    enum { ALWAYS_ENOUGH = 9 };
    for (int digits = 1; digits <= ALWAYS_ENOUGH; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtof(text, NULL) == (float)value) break;
    }
    return strtod(text, NULL);
}

/* ---- reading ---- */

static const GgufPlace *place_of(const NamedFile *file, const NamedArray *array) {
    return &((const GgufFile *)file->state)->places[array - file->arrays];
}

/* Arrays that are not in the file as they are given: other order of rows, or blocks. Row by row. */
static int read_rows(const NamedFile *file, const NamedArray *array, size_t first, size_t n, void *out) {
    const GgufPlace *place = place_of(file, array);
    size_t width = (size_t)array->dims[array->n_dims - 1], size = dtype_size(array->dtype);
    size_t row_bytes = width / place->type->elements * place->type->bytes;
    size_t head_dim = (size_t)gguf_config(file)->head_dim;
    char *to = out;
    for (size_t done = 0; done < n;) {
        size_t row = (first + done) / width, column = (first + done) % width;
        size_t count = width - column < n - done ? width - column : n - done;
        const char *from = place->bytes + (place->rotary ? gguf_row_of_hf(row, head_dim) : row) * row_bytes;
        if (place->type->quantised)
            ggml_decode(place->type, from, column, count, (float *)(void *)(to + done * size));
        else
            memcpy(to + done * size, from + column * size, count * size);
        done += count;
    }
    return OK;
}

/* ---- opening ---- */

static int add_tensor(NamedFile *file, GgufFile *state, const GgufTensor *tensor) {
    char name[GGUF_NAME];
    bool known = gguf_name_to_hf(name, tensor->name);
    const char *bytes = (const char *)state->head.data + tensor->offset;
    NamedArray array = {.name = known ? name : tensor->name, .dtype = tensor->type->dtype, .n_dims = tensor->n_dims};
    memcpy(array.dims, tensor->dims, sizeof array.dims);
    bool rotary = known && gguf_is_rotary(name);
    if (rotary && (tensor->n_dims != 2 || tensor->dims[0] % state->config.head_dim))
        FAIL(ERR_REFUSED, "'%s' is not made of heads of %d rows", tensor->name, state->config.head_dim);
    if (!rotary && !tensor->type->quantised) array.data = bytes;
    state->places[file->n] = (GgufPlace){bytes, tensor->name, tensor->type, rotary};
    return named_file_add(file, &array);
}

/* What would cost memory before the arrays are compared with the shape, where the two cannot agree. */
static int check_shape(const GgufHead *head, const HfConfig *config) {
    const GgufTensor *embedding = find_tensor(head, "token_embd.weight");
    if (head->n_tensors == 0) return OK;
    if ((size_t)config->n_layers > head->n_tensors)
        FAIL(ERR_REFUSED, "'llama.block_count' is %d, and the file has only %zu tensors", config->n_layers,
             head->n_tensors);
    if (embedding && (embedding->n_dims != 2 || embedding->dims[1] != config->dim))
        FAIL(ERR_REFUSED, "'%s' has rows of %lld, and 'llama.embedding_length' is %d", embedding->name,
             (long long)embedding->dims[embedding->n_dims > 1 ? 1 : 0], config->dim);
    return OK;
}

static int recover_rope(GgufFile *state) {
    const GgufTensor *tensor = find_tensor(&state->head, GGUF_ROPE_FREQS);
    if (!tensor) return OK;
    if (tensor->type->type != GGML_F32 || tensor->n_dims != 1)
        FAIL(ERR_REFUSED, "'%s' is %s of %d dimensions; F32 of 1 is expected", tensor->name, tensor->type->name,
             tensor->n_dims);
    size_t n = (size_t)tensor->dims[0];
    float *factors = malloc((n + 1) * sizeof *factors);
    if (!factors) FAIL(ERR_FAILED, "out of memory");
    memcpy(factors, state->head.data + tensor->offset, n * sizeof *factors);
    int rc = gguf_rope_recover(&state->config, factors, n);
    free(factors);
    return rc;
}

static int add_values(NamedFile *file, const GgufHead *head) {
    for (size_t i = 0; i < head->n_values; i++) {
        char *text;
        TRY(gguf_value_text(&head->values[i], &text));
        int rc = named_file_add_text(file, head->values[i].key, text);
        free(text);
        TRY(rc);
    }
    return OK;
}

/* "F32 × 11, Q8_0 × 35", as the text gguf.tensor_types. */
static int add_types(NamedFile *file, const GgufHead *head) {
    enum { TYPE_NUMBERS = 64 };
    size_t count[TYPE_NUMBERS] = {0};
    Text text = {0};
    for (size_t i = 0; i < head->n_tensors; i++) count[head->tensors[i].type->type % TYPE_NUMBERS]++;
    for (uint32_t type = 0; type < TYPE_NUMBERS; type++)
        if (count[type])
            text_printf(&text, "%s%s × %zu", text.length ? ", " : "", ggml_type_info(type)->name, count[type]);
    int rc = text_check(&text);
    if (rc == OK && text.length) rc = named_file_add_text(file, "gguf.tensor_types", text.bytes);
    text_free(&text);
    return rc;
}

static int open_map(NamedFile *file, GgufFile *state, const char *path) {
    TRY(file_map(&state->map, path));
    TRY(gguf_head_parse(&state->head, &state->map));
    const GgufHead *head = &state->head;
    TRY(read_config(&state->config, head));
    state->config.rms_norm_eps = decimal(state->config.rms_norm_eps);
    state->config.rope_theta = decimal(state->config.rope_theta);
    state->config.tie_word_embeddings = !find_tensor(head, "output.weight");
    TRY(check_shape(head, &state->config));
    TRY(recover_rope(state));
    state->places = calloc(head->n_tensors + 1, sizeof *state->places);
    if (!state->places) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < head->n_tensors; i++)
        if (strcmp(head->tensors[i].name, GGUF_ROPE_FREQS) != 0) TRY(add_tensor(file, state, &head->tensors[i]));
    TRY(named_file_finish(file));
    const NamedArray *embedding = named_find(file, "model.embed_tokens.weight");
    if (embedding && embedding->dtype <= DTYPE_F16) state->config.dtype = embedding->dtype;
    TRY(add_values(file, head));
    return add_types(file, head);
}

int gguf_open(NamedFile **file, const char *path) {
    TRY(named_file_new(file, "gguf", path));
    int rc = OK;
    GgufFile *state = calloc(1, sizeof *state);
    if (!state) FAIL_TO(done, ERR_FAILED, "out of memory");
    (*file)->state = state;
    (*file)->close = state_close;
    (*file)->read = read_rows;
    TRY_TO(done, open_map(*file, state, path));
done:
    if (rc != OK) {
        if (!strstr(error_text(), path)) error_context(rc, "%s", path);
        named_close(*file);
        *file = NULL;
    }
    return rc;
}

int gguf_check_readable(const NamedFile *file) {
    for (size_t i = 0; i < file->n; i++)
        if (file->arrays[i].dtype == DTYPE_COUNT)
            FAIL(
                ERR_REFUSED,
                "%s: '%s' is of type %s; F32, F16, BF16, Q8_0 and Q4_0 are read: take a file of one of these kinds, or "
                "convert this one (llama-quantize --allow-requantize FROM TO q8_0)",
                file->path, place_of(file, &file->arrays[i])->name, place_of(file, &file->arrays[i])->type->name);
    return OK;
}
