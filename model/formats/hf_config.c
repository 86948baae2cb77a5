/* config.json to HfConfig and back. */
#include "model/formats/hf_config.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/formats/json_read.h"

enum {
    MAX_FIELD = 1 << 24,   /* of dimensions and counts; the largest Llama has dim 16384 and a vocabulary of 128256 */
    MAX_CONFIG = 16 << 20, /* bytes of a config.json */
};

HfConfig hf_config_default(void) {
    return (HfConfig){
        .dim = 4096,
        .n_layers = 32,
        .n_heads = 32,
        .n_kv_heads = 32,
        .head_dim = 128,
        .ffn_dim = 11008,
        .vocab_size = 32000,
        .max_position_embeddings = 2048,
        .rms_norm_eps = 1e-6,
        .rope_theta = 10000.0,
        .bos_token_id = 1,
        .eos_token_ids = {2},
        .n_eos = 1,
        .dtype = DTYPE_F32,
        .initializer_range = 0.02,
        .pad_token_id = -1,
    };
}

int hf_config_check(const HfConfig *c) {
    const struct {
        const char *name;
        int value;
    } sizes[] = {
        {"hidden_size", c->dim},
        {"num_hidden_layers", c->n_layers},
        {"num_attention_heads", c->n_heads},
        {"num_key_value_heads", c->n_kv_heads},
        {"head_dim", c->head_dim},
        {"intermediate_size", c->ffn_dim},
        {"vocab_size", c->vocab_size},
        {"max_position_embeddings", c->max_position_embeddings},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].value < 1 || sizes[i].value > MAX_FIELD)
            FAIL(ERR_REFUSED, "'%s' is %d; 1 to %d is expected", sizes[i].name, sizes[i].value, MAX_FIELD);
    if (c->n_heads % c->n_kv_heads)
        FAIL(ERR_REFUSED, "'num_key_value_heads' is %d, which does not divide 'num_attention_heads' = %d",
             c->n_kv_heads, c->n_heads);
    if (c->head_dim % 2) FAIL(ERR_REFUSED, "'head_dim' is %d; rotary embeddings want an even number", c->head_dim);
    if ((int64_t)c->n_heads * c->head_dim > MAX_FIELD)
        FAIL(ERR_REFUSED, "'num_attention_heads' × 'head_dim' is above %d", MAX_FIELD);
    if (!(c->rms_norm_eps > 0) || !isfinite(c->rms_norm_eps))
        FAIL(ERR_REFUSED, "'rms_norm_eps' is %g; a number above 0 is expected", c->rms_norm_eps);
    if (!(c->rope_theta > 0) || !isfinite(c->rope_theta))
        FAIL(ERR_REFUSED, "'rope_theta' is %g; a number above 0 is expected", c->rope_theta);
    if (c->rope_scaling.llama3 && (!(c->rope_scaling.factor >= 1) || !(c->rope_scaling.low_freq_factor > 0) ||
                                   !(c->rope_scaling.high_freq_factor > c->rope_scaling.low_freq_factor) ||
                                   c->rope_scaling.original_max_position_embeddings < 1))
        FAIL(ERR_REFUSED,
             "'rope_scaling' has factor %g, low_freq_factor %g, high_freq_factor %g, "
             "original_max_position_embeddings %d; expected factor ≥ 1, 0 < low < high, original ≥ 1",
             c->rope_scaling.factor, c->rope_scaling.low_freq_factor, c->rope_scaling.high_freq_factor,
             c->rope_scaling.original_max_position_embeddings);
    return OK;
}

/* ---- reading ---- */

/* Things Llama variants have and this program does not compute. */
static int refuse_other_models(const json_t *root, const char *name) {
    const char *text = "llama";
    TRY(json_read_text(&text, root, "model_type", name));
    if (strcmp(text, "llama") != 0)
        FAIL(ERR_REFUSED, "%s: 'model_type' is '%s'; only 'llama' is implemented", name, text);
    text = "silu";
    TRY(json_read_text(&text, root, "hidden_act", name));
    if (strcmp(text, "silu") != 0 && strcmp(text, "swish") != 0)
        FAIL(ERR_REFUSED, "%s: 'hidden_act' is '%s'; only 'silu' is implemented", name, text);
    static const char *const biases[] = {"attention_bias", "mlp_bias"};
    for (int i = 0; i < 2; i++) {
        bool bias = false;
        TRY(json_read_bool(&bias, root, biases[i], name));
        if (bias) FAIL(ERR_REFUSED, "%s: '%s' is true; Llama layers with a bias are not implemented", name, biases[i]);
    }
    const json_t *quantised = json_object_get(root, "quantization_config");
    if (quantised && !json_is_null(quantised))
        FAIL(ERR_REFUSED, "%s: 'quantization_config' is there; only plain fp32, bf16 and fp16 weights are read", name);
    double dropout = 0;
    TRY(json_read_number(&dropout, root, "attention_dropout", name));
    if (dropout != 0) log_warning("%s: 'attention_dropout' is %g; this program trains without dropout", name, dropout);
    return OK;
}

/* The name of label `i`; transformers writes the ids as keys, which are texts in JSON. */
static const char *label_name(const json_t *id2label, int i) {
    char id[16];
    snprintf(id, sizeof id, "%d", i);
    return json_string_value(json_object_get(id2label, id));
}

/* What the model is for: its head. A config without architectures is a language model's. */
static int read_labels(HfLabels *labels, const json_t *root, const char *name) {
    static const char scores[] = "LlamaForSequenceClassification";
    const json_t *first = json_array_get(json_object_get(root, "architectures"), 0);
    const char *architecture = json_string_value(first);
    if (!architecture || strcmp(architecture, scores) != 0) return OK;
    const json_t *id2label = json_object_get(root, "id2label"); /* absent: transformers takes two */
    int n = json_is_object(id2label) ? (int)json_object_size(id2label) : 2;
    TRY(json_read_int32(&n, root, "num_labels", 1, INT_MAX, name));
    if (n < 1 || n > HF_MAX_LABELS)
        FAIL(ERR_REFUSED, "%s: a %s with %d labels; 1 to %d are possible ('id2label')", name, scores, n, HF_MAX_LABELS);
    if (!json_is_object(id2label)) {
        *labels = hf_labels_unnamed(n);
        return OK;
    }
    for (int i = 0; i < n; i++) {
        const char *label = label_name(id2label, i);
        if (!label) FAIL(ERR_REFUSED, "%s: 'id2label' names no label %d of %d", name, i, n);
        if (hf_labels_add(labels, label) != OK) return error_context(ERR_REFUSED, "%s: 'id2label'", name);
    }
    return OK;
}

/* rope_scaling, or transformers 5's rope_parameters. */
static int read_rope(HfConfig *config, const json_t *root, const char *name) {
    double partial = 1;
    TRY(json_read_number(&partial, root, "partial_rotary_factor", name));
    TRY(json_read_number(&config->rope_theta, root, "rope_theta", name));
    const char *key = "rope_parameters";
    const json_t *rope = json_object_get(root, key);
    if (!rope || json_is_null(rope)) rope = json_object_get(root, key = "rope_scaling");
    if (rope && !json_is_null(rope)) {
        if (!json_is_object(rope)) FAIL(ERR_REFUSED, "%s: '%s' is not an object", name, key);
        const char *type = "default";
        TRY(json_read_text(&type, rope, "type", name)); /* the older spelling */
        TRY(json_read_text(&type, rope, "rope_type", name));
        TRY(json_read_number(&partial, rope, "partial_rotary_factor", name));
        TRY(json_read_number(&config->rope_theta, rope, "rope_theta", name));
        config->rope_scaling.llama3 = strcmp(type, "llama3") == 0;
        if (!config->rope_scaling.llama3 && strcmp(type, "default") != 0)
            FAIL(ERR_REFUSED, "%s: '%s' has the type '%s'; only 'llama3' and 'default' are implemented", name, key,
                 type);
        if (config->rope_scaling.llama3) {
            TRY(json_read_number(&config->rope_scaling.factor, rope, "factor", name));
            TRY(json_read_number(&config->rope_scaling.low_freq_factor, rope, "low_freq_factor", name));
            TRY(json_read_number(&config->rope_scaling.high_freq_factor, rope, "high_freq_factor", name));
            TRY(json_read_int32(&config->rope_scaling.original_max_position_embeddings, rope,
                                "original_max_position_embeddings", 1, INT_MAX, name));
        }
    }
    if (partial != 1)
        FAIL(ERR_REFUSED, "%s: 'partial_rotary_factor' is %g; partial rotary embeddings are not implemented", name,
             partial);
    return OK;
}

/* An id, a list of ids, or null. */
static int read_eos(int32_t ids[HF_MAX_EOS], int *n, const json_t *root, const char *name) {
    const json_t *eos = json_object_get(root, "eos_token_id");
    if (!eos) return OK;
    *n = 0;
    if (json_is_null(eos)) return OK;
    size_t count = json_is_array(eos) ? json_array_size(eos) : 1;
    if (count > HF_MAX_EOS)
        FAIL(ERR_REFUSED, "%s: 'eos_token_id' lists %zu ids; at most %d are expected", name, count, HF_MAX_EOS);
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_is_array(eos) ? json_array_get(eos, i) : eos;
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
            FAIL(ERR_REFUSED, "%s: 'eos_token_id' must be a token id or a list of them", name);
        ids[(*n)++] = (int32_t)json_integer_value(id);
    }
    return OK;
}

/* An id, at least `least`, or null. */
static int read_token(int32_t *id, const json_t *root, const char *key, int least, const char *name) {
    if (json_is_null(json_object_get(root, key))) *id = -1;
    TRY(json_read_int32(id, root, key, least, INT32_MAX, name));
    return OK;
}

static const struct {
    const char *name;
    Dtype dtype;
} torch_dtypes[] = {{"float32", DTYPE_F32}, {"bfloat16", DTYPE_BF16}, {"float16", DTYPE_F16}, {"float64", DTYPE_F64}};

static int read_dtype(Dtype *dtype, const json_t *root, const char *name) {
    const char *text = NULL;
    TRY(json_read_text(&text, root, "torch_dtype", name));
    TRY(json_read_text(&text, root, "dtype", name)); /* transformers 5 */
    for (size_t i = 0; text && i < sizeof torch_dtypes / sizeof *torch_dtypes; i++)
        if (strcmp(torch_dtypes[i].name, text) == 0) {
            *dtype = torch_dtypes[i].dtype;
            return OK;
        }
    if (text)
        FAIL(ERR_REFUSED, "%s: 'torch_dtype' is '%s'; float32, bfloat16, float16 or float64 is expected", name, text);
    return OK;
}

static int read_fields(HfConfig *config, const json_t *root, const char *name) {
    const struct {
        const char *key;
        int *value;
    } sizes[] = {
        {"hidden_size", &config->dim},
        {"num_hidden_layers", &config->n_layers},
        {"num_attention_heads", &config->n_heads},
        {"intermediate_size", &config->ffn_dim},
        {"vocab_size", &config->vocab_size},
        {"max_position_embeddings", &config->max_position_embeddings},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        TRY(json_read_int32(sizes[i].value, root, sizes[i].key, 1, MAX_FIELD, name));
    config->n_kv_heads = config->n_heads;
    TRY(json_read_int32(&config->n_kv_heads, root, "num_key_value_heads", 1, MAX_FIELD, name));
    int head_dim = 0;
    TRY(json_read_int32(&head_dim, root, "head_dim", 1, MAX_FIELD, name));
    config->head_dim = head_dim ? head_dim : config->dim / config->n_heads;
    TRY(json_read_number(&config->rms_norm_eps, root, "rms_norm_eps", name));
    TRY(json_read_number(&config->initializer_range, root, "initializer_range", name));
    TRY(json_read_bool(&config->tie_word_embeddings, root, "tie_word_embeddings", name));
    TRY(read_labels(&config->labels, root, name));
    TRY(read_token(&config->bos_token_id, root, "bos_token_id", 0, name));
    TRY(read_token(&config->pad_token_id, root, "pad_token_id", -1, name)); /* older directories have -1 for none */
    TRY(read_eos(config->eos_token_ids, &config->n_eos, root, name));
    TRY(read_dtype(&config->dtype, root, name));
    TRY(read_rope(config, root, name));
    return OK;
}

int hf_config_parse(HfConfig *config, const char *json, size_t size, const char *name) {
    int rc = OK;
    json_t *root;
    *config = hf_config_default();
    TRY(json_read_object(&root, json, size, name));
    TRY_TO(done, refuse_other_models(root, name));
    TRY_TO(done, read_fields(config, root, name));
    rc = hf_config_check(config);
    if (rc != OK) error_context(rc, "%s", name);
done:
    json_decref(root);
    return rc;
}

/* The file to read for a path that may be a directory; malloc'd. */
static int file_in(char **file, const char *path, const char *name) {
    *file = directory_exists(path) ? path_join(path, name) : strdup(path);
    if (!*file) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

int hf_config_read(HfConfig *config, const char *path) {
    char *file, *bytes = NULL;
    size_t size;
    TRY(file_in(&file, path, "config.json"));
    int rc = file_read(&bytes, &size, file, MAX_CONFIG);
    if (rc == OK) rc = hf_config_parse(config, bytes, size, file);
    free(bytes);
    free(file);
    return rc;
}

/* ---- writing ---- */

static json_t *eos_json(const int32_t *ids, int n) {
    if (n == 0) return json_null();
    if (n == 1) return json_integer(ids[0]);
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, json_integer(ids[i]));
    return list;
}

static json_t *token_json(int32_t id) {
    return id < 0 ? json_null() : json_integer(id);
}

/* What only a model with a score head has; false when memory is out. */
static bool add_score_head(json_t *root, const HfConfig *c) {
    json_t *names = json_object(), *ids = json_object();
    bool whole = true;
    for (int i = 0; i < c->labels.n; i++) {
        char id[16];
        snprintf(id, sizeof id, "%d", i);
        whole = whole && json_object_set_new(names, id, json_string(c->labels.names[i])) == 0 &&
                json_object_set_new(ids, c->labels.names[i], json_integer(i)) == 0;
    }
    whole = json_object_set_new(root, "id2label", names) == 0 && whole;
    whole = json_object_set_new(root, "label2id", ids) == 0 && whole;
    return whole && json_object_set_new(root, "pad_token_id", token_json(c->pad_token_id)) == 0;
}

static json_t *rope_json(const HfConfig *c) {
    if (!c->rope_scaling.llama3) return json_null();
    return json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor", c->rope_scaling.factor,
                     "low_freq_factor", c->rope_scaling.low_freq_factor, "high_freq_factor",
                     c->rope_scaling.high_freq_factor, "original_max_position_embeddings",
                     c->rope_scaling.original_max_position_embeddings);
}

int hf_config_format(const HfConfig *c, char **json) {
    *json = NULL;
    TRY(hf_config_check(c));
    const char *dtype = "float32";
    for (size_t i = 0; i < sizeof torch_dtypes / sizeof *torch_dtypes; i++)
        if (torch_dtypes[i].dtype == c->dtype) dtype = torch_dtypes[i].name;
    json_t *root = json_pack(
        "{s:[s], s:s, s:s, s:b, s:f, s:b, s:b, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:b, s:i, s:s}",
        "architectures", c->labels.n > 0 ? "LlamaForSequenceClassification" : "LlamaForCausalLM", "model_type", "llama",
        "hidden_act", "silu", "attention_bias", 0, "attention_dropout", 0.0, "mlp_bias", 0, "use_cache", 1,
        "hidden_size", c->dim, "num_hidden_layers", c->n_layers, "num_attention_heads", c->n_heads,
        "num_key_value_heads", c->n_kv_heads, "head_dim", c->head_dim, "intermediate_size", c->ffn_dim, "vocab_size",
        c->vocab_size, "max_position_embeddings", c->max_position_embeddings, "rms_norm_eps", c->rms_norm_eps,
        "rope_theta", c->rope_theta, "initializer_range", c->initializer_range, "tie_word_embeddings",
        (int)c->tie_word_embeddings, "pretraining_tp", 1, "torch_dtype", dtype);
    int rc = OK;
    if (!root || json_object_set_new(root, "rope_scaling", rope_json(c)) != 0 ||
        json_object_set_new(root, "bos_token_id", token_json(c->bos_token_id)) != 0 ||
        json_object_set_new(root, "eos_token_id", eos_json(c->eos_token_ids, c->n_eos)) != 0 ||
        (c->labels.n > 0 && !add_score_head(root, c)))
        FAIL_TO(done, ERR_FAILED, "out of memory");
    TRY_TO(done, json_write_text(json, root));
done:
    json_decref(root);
    return rc;
}

/* DIRECTORY/name. */
static int write_in(const char *directory, const char *name, const char *text) {
    char *path = path_join(directory, name);
    if (!path) FAIL(ERR_FAILED, "out of memory");
    int rc = file_write_atomic(path, text, strlen(text));
    free(path);
    return rc;
}

int hf_config_write(const HfConfig *config, const char *directory) {
    char *json;
    TRY(hf_config_format(config, &json));
    int rc = write_in(directory, "config.json", json);
    free(json);
    return rc;
}

/* ---- generation_config.json ---- */

HfGeneration hf_generation_default(void) {
    return (HfGeneration){.bos_token_id = -1, .temperature = 1.0, .top_p = 1.0, .top_k = 50};
}

int hf_generation_parse(HfGeneration *generation, const char *json, size_t size, const char *name) {
    int rc = OK;
    json_t *root;
    *generation = hf_generation_default();
    TRY(json_read_object(&root, json, size, name));
    TRY_TO(done, read_token(&generation->bos_token_id, root, "bos_token_id", 0, name));
    TRY_TO(done, read_eos(generation->eos_token_ids, &generation->n_eos, root, name));
    TRY_TO(done, json_read_bool(&generation->do_sample, root, "do_sample", name));
    TRY_TO(done, json_read_number(&generation->temperature, root, "temperature", name));
    TRY_TO(done, json_read_number(&generation->top_p, root, "top_p", name));
    TRY_TO(done, json_read_int32(&generation->top_k, root, "top_k", 0, INT_MAX, name));
    if (!(generation->temperature >= 0) || !(generation->top_p >= 0) || generation->top_p > 1)
        FAIL_TO(done, ERR_REFUSED, "%s: temperature %g and top_p %g; at least 0, and 0 to 1, are expected", name,
                generation->temperature, generation->top_p);
done:
    json_decref(root);
    return rc;
}

int hf_generation_read(HfGeneration *generation, const char *path) {
    char *file, *bytes = NULL;
    size_t size;
    *generation = hf_generation_default();
    TRY(file_in(&file, path, "generation_config.json"));
    int rc = OK;
    if (!directory_exists(path) || file_exists(file)) rc = file_read(&bytes, &size, file, MAX_CONFIG);
    if (rc == OK && bytes) rc = hf_generation_parse(generation, bytes, size, file);
    free(bytes);
    free(file);
    return rc;
}

int hf_generation_format(const HfGeneration *generation, char **json) {
    json_t *root =
        json_pack("{s:o, s:o, s:b}", "bos_token_id", token_json(generation->bos_token_id), "eos_token_id",
                  eos_json(generation->eos_token_ids, generation->n_eos), "do_sample", (int)generation->do_sample);
    if (!root) FAIL(ERR_FAILED, "out of memory");
    if (generation->do_sample) { /* transformers warns about these where nothing is sampled */
        json_object_set_new(root, "temperature", json_real(generation->temperature));
        json_object_set_new(root, "top_p", json_real(generation->top_p));
        json_object_set_new(root, "top_k", json_integer(generation->top_k));
    }
    int rc = json_write_text(json, root);
    json_decref(root);
    return rc;
}

int hf_generation_write(const HfGeneration *generation, const char *directory) {
    char *json;
    TRY(hf_generation_format(generation, &json));
    int rc = write_in(directory, "generation_config.json", json);
    free(json);
    return rc;
}
