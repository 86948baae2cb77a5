/* Writing a Llama as GGUF; gguf.h has the layout, and llama.cpp's convert_hf_to_gguf.py is the model for what stands in
 * it. The head is made first, then the tensors are streamed behind it in the order of the sources. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/formats/gguf.h"
#include "model/formats/gguf_names.h"
#include "model/formats/gguf_tokenizer.h"
#include "model/core/output.h"

enum {
    VERSION = 3,
    ALIGNMENT = 32,
    QUANTIZATION_VERSION = 2, /* ggml.h, GGML_QNT_VERSION: of the blocks' layout */
    SLICE_ELEMENTS = 1 << 18, /* 1 MiB of fp32, in whole rows */
};

/* llama.h's enum llama_ftype, for what most tensors are. */
static uint32_t file_type(GgmlType type) {
    switch (type) {
    case GGML_F16:
        return 1;
    case GGML_Q4_0:
        return 2;
    case GGML_Q8_0:
        return 7;
    case GGML_BF16:
        return 32;
    default:
        return 0;
    }
}

/* A tensor on its way into the file. */
typedef struct {
    const NamedSource *source;
    char name[GGUF_NAME];
    const GgmlTypeInfo *type;
    size_t rows, width, group; /* group: rows that are taken at once */
    bool rotary;
    uint64_t size;
} Tensor;

static uint64_t padded(uint64_t size) {
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static int plan_tensor(Tensor *tensor, const NamedSource *source, const GgufModel *model) {
    const NamedArray *array = &source->array;
    bool matrix = array->n_dims == 2;
    size_t head_dim = (size_t)model->config->head_dim;
    *tensor = (Tensor){.source = source, .rows = matrix ? (size_t)array->dims[0] : 1};
    tensor->width = named_elements(array) / (tensor->rows ? tensor->rows : 1);
    if (!gguf_name_from_hf(tensor->name, array->name))
        FAIL(ERR_REFUSED, "'%s' has no name in GGUF: not a Llama's parameter", array->name);
    if (array->n_dims < 1 || array->n_dims > 2 || !tensor->rows || !tensor->width)
        FAIL(ERR_FAILED, "'%s': a matrix or a vector is expected", array->name);
    tensor->type = ggml_type_info(matrix ? model->type : GGML_F32);
    if (tensor->width % tensor->type->elements) tensor->type = ggml_type_info(GGML_F16);
    tensor->size = named_elements(array) / tensor->type->elements * tensor->type->bytes;
    tensor->rotary = gguf_is_rotary(array->name);
    if (tensor->rotary && tensor->rows % head_dim)
        FAIL(ERR_FAILED, "'%s' is not made of heads of %zu rows", array->name, head_dim);
    tensor->group = tensor->rotary ? head_dim : SLICE_ELEMENTS / tensor->width;
    if (tensor->group == 0) tensor->group = 1;
    return OK;
}

/* ---- the head ---- */

static void put_shape(GgufOutput *out, const HfConfig *c) {
    const struct {
        const char *key;
        int value;
    } sizes[] = {
        {"llama.block_count", c->n_layers},          {"llama.context_length", c->max_position_embeddings},
        {"llama.embedding_length", c->dim},          {"llama.feed_forward_length", c->ffn_dim},
        {"llama.attention.head_count", c->n_heads},  {"llama.attention.head_count_kv", c->n_kv_heads},
        {"llama.attention.key_length", c->head_dim}, {"llama.attention.value_length", c->head_dim},
        {"llama.rope.dimension_count", c->head_dim}, {"llama.vocab_size", c->vocab_size},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        gguf_put_value_u32(out, sizes[i].key, (uint32_t)sizes[i].value);
    gguf_put_value_f32(out, "llama.attention.layer_norm_rms_epsilon", (float)c->rms_norm_eps);
    gguf_put_value_f32(out, "llama.rope.freq_base", (float)c->rope_theta);
}

/* What ends a text: the tokenizer's own EOS first where it is among them; llama.cpp knows three kinds. */
static void put_ends(GgufOutput *out, const GgufModel *model) {
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    enum { N_KEYS = sizeof keys / sizeof *keys };
    const HfGeneration *generation = model->generation;
    int32_t own = tokenizer_eos(model->tokenizer), ids[HF_MAX_EOS + 1];
    int n = 0;
    for (int i = 0; i < generation->n_eos; i++)
        if (generation->eos_token_ids[i] == own) ids[n++] = own;
    if (generation->n_eos == 0 && own >= 0) ids[n++] = own;
    for (int i = 0; i < generation->n_eos; i++)
        if (generation->eos_token_ids[i] != own) ids[n++] = generation->eos_token_ids[i];
    for (int i = 0, used = 0; i < n && used < N_KEYS; i++)
        if (ids[i] >= 0 && ids[i] < model->config->vocab_size) gguf_put_value_u32(out, keys[used++], (uint32_t)ids[i]);
}

/* llama.cpp and Ollama put BOS in front of a chat too where the file says so; a model whose template has none was
 * trained without it. */
static bool begins_with_bos(const GgufModel *model) {
    const char *name = tokenizer_name(model->tokenizer, tokenizer_bos(model->tokenizer));
    return !model->chat_template || strstr(model->chat_template, "bos_token") ||
           (name && strstr(model->chat_template, name));
}

static int put_values(GgufOutput *out, const GgufModel *model) {
    gguf_put_value_text(out, "general.architecture", "llama");
    gguf_put_value_text(out, "general.type", "model");
    gguf_put_value_text(out, "general.name", model->name);
    gguf_put_value_u32(out, "general.alignment", ALIGNMENT);
    gguf_put_value_u32(out, "general.file_type", file_type(model->type));
    gguf_put_value_u32(out, "general.quantization_version", QUANTIZATION_VERSION);
    put_shape(out, model->config);
    if (model->tokenizer) {
        TRY(gguf_put_tokenizer(out, model->tokenizer, model->config->vocab_size, begins_with_bos(model)));
        put_ends(out, model);
    } else {
        gguf_put_value_text(out, "tokenizer.ggml.model", "none");
    }
    if (model->chat_template) gguf_put_value_text(out, GGUF_TEMPLATE, model->chat_template);
    return text_check(&out->values);
}

static void put_info(Text *out, const char *name, const int64_t *dims, int n_dims, uint32_t type, uint64_t *offset,
                     uint64_t size) {
    gguf_put_string(out, name, strlen(name));
    gguf_put_u32(out, (uint32_t)n_dims);
    for (int d = n_dims; d-- > 0;) gguf_put_u64(out, (uint64_t)dims[d]);
    gguf_put_u32(out, type);
    gguf_put_u64(out, *offset);
    *offset += padded(size);
}

/* Everything before the tensors' data. */
static int make_head(Text *head, const Tensor *tensors, size_t n, const GgufModel *model) {
    GgufOutput values = {0};
    uint64_t offset = 0;
    bool scaled = model->config->rope_scaling.llama3;
    int64_t n_factors = model->config->head_dim / 2;
    int rc = put_values(&values, model);
    if (rc == OK) {
        text_puts(head, "GGUF");
        gguf_put_u32(head, VERSION);
        gguf_put_u64(head, n + scaled);
        gguf_put_u64(head, values.n_values);
        text_append(head, values.values.bytes, values.values.length);
        if (scaled) put_info(head, GGUF_ROPE_FREQS, &n_factors, 1, GGML_F32, &offset, (uint64_t)n_factors * 4);
        for (size_t i = 0; i < n; i++)
            put_info(head, tensors[i].name, tensors[i].source->array.dims, tensors[i].source->array.n_dims,
                     tensors[i].type->type, &offset, tensors[i].size);
        rc = text_check(head);
    }
    text_free(&values.values);
    return rc;
}

/* ---- the data ---- */

static int pad_output(Output *output) {
    static const char zeros[ALIGNMENT] = {0};
    return output_write(output, zeros, (size_t)(padded(output->offset) - output->offset));
}

static int write_factors(Output *output, const HfConfig *config) {
    size_t n = (size_t)config->head_dim / 2;
    float *factors = malloc((n + 1) * sizeof *factors);
    if (!factors) FAIL(ERR_FAILED, "out of memory");
    gguf_rope_factors(config, factors);
    int rc = output_write(output, factors, n * sizeof *factors);
    free(factors);
    TRY(rc);
    return pad_output(output);
}

/* `rows` rows from `first` on in fp32; those of one head in llama.cpp's order. */
static int take_rows(const Tensor *tensor, size_t first, size_t rows, float *values, float *ordered) {
    const NamedSource *source = tensor->source;
    size_t width = tensor->width;
    if (source->fill)
        TRY(source->fill(source->context, first * width, rows * width, values));
    else
        memcpy(values, source->f32 + first * width, rows * width * sizeof *values);
    for (size_t row = 0; tensor->rotary && row < rows; row++)
        memcpy(ordered + row * width, values + gguf_row_to_hf(row, rows) * width, width * sizeof *values);
    return OK;
}

static int write_tensor(Output *output, const Tensor *tensor) {
    int rc = OK;
    size_t elements = tensor->group * tensor->width;
    float *values = malloc(elements * sizeof *values), *ordered = malloc(elements * sizeof *ordered);
    void *bytes = malloc(elements * sizeof *values); /* no type is wider than fp32 */
    if (!values || !ordered || !bytes) FAIL_TO(done, ERR_FAILED, "out of memory");
    for (size_t first = 0; first < tensor->rows; first += tensor->group) {
        size_t rows = tensor->rows - first < tensor->group ? tensor->rows - first : tensor->group;
        size_t n = rows * tensor->width;
        TRY_TO(done, take_rows(tensor, first, rows, values, ordered));
        TRY_TO(done, ggml_encode((GgmlType)tensor->type->type, tensor->rotary ? ordered : values, n, bytes));
        TRY_TO(done, output_write(output, bytes, n / tensor->type->elements * tensor->type->bytes));
    }
    TRY_TO(done, pad_output(output));
done:
    if (rc != OK) error_context(rc, "'%s'", tensor->source->array.name);
    free(values);
    free(ordered);
    free(bytes);
    return rc;
}

int gguf_write(const char *path, const NamedSource *sources, size_t n, const GgufModel *model) {
    int rc = OK;
    Output output = {.fd = -1};
    Text head = {0};
    TRY(hf_config_check(model->config));
    TRY(named_check_sources(sources, n));
    Tensor *tensors = calloc(n + 1, sizeof *tensors);
    if (!tensors) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < n; i++) TRY_TO(done, plan_tensor(&tensors[i], &sources[i], model));
    TRY_TO(done, make_head(&head, tensors, n, model));
    TRY_TO(done, output_begin(&output, path));
    TRY_TO(done, output_write(&output, head.bytes, head.length));
    TRY_TO(done, pad_output(&output));
    if (model->config->rope_scaling.llama3) TRY_TO(done, write_factors(&output, model->config));
    for (size_t i = 0; i < n; i++) TRY_TO(done, write_tensor(&output, &tensors[i]));
    TRY_TO(done, output_commit(&output));
done:
    if (rc != OK && !strstr(error_text(), path)) error_context(rc, "%s", path);
    output_abandon(&output);
    text_free(&head);
    free(tensors);
    return rc;
}
