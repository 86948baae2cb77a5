/* adapter_config.json to PeftConfig and back. */
#include "model/formats/peft.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/formats/json_read.h"
#include "model/formats/safetensors.h"

enum { MAX_CONFIG = 16 << 20, MAX_RANK = 1 << 16 };

/* ---- reading ---- */

/* null, false, 0, "", [] or {}: a feature that is not used. */
static bool is_unused(const json_t *value) {
    return !value || json_is_null(value) || json_is_false(value) ||
           (json_is_string(value) && *json_string_value(value) == '\0') ||
           (json_is_number(value) && fpclassify(json_number_value(value)) == FP_ZERO) ||
           ((json_is_array(value) || json_is_object(value)) && json_array_size(value) + json_object_size(value) == 0);
}

static int refuse_features(const json_t *root, const char *name) {
    static const struct {
        const char *key, *what;
    } features[] = {
        {"rank_pattern", "one rank for all matrices is implemented"},
        {"alpha_pattern", "one alpha for all matrices is implemented"},
        {"trainable_token_indices", "only adapted matrices are read"},
        {"target_parameters", "only adapted matrices are read"},
        {"fan_in_fan_out", "a Llama's matrices are [out, in]"},
        {"lora_bias", "adapters with biases are not implemented"},
        {"layer_replication", "a model with repeated layers is not implemented"},
        {"use_qalora", "QA-LoRA is not implemented"},
        {"use_bdlora", "BD-LoRA is not implemented"},
        {"alora_invocation_tokens", "activated LoRA is not implemented"},
        {"arrow_config", "Arrow is not implemented"},
        {"kasa_config", "KaSA is not implemented"},
        {"velora_config", "VeLoRA is not implemented"},
        {"monteclora_config", "MonteCLoRA is not implemented"},
        {"megatron_config", "Megatron's layers are not implemented"},
    };
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
        if (!is_unused(json_object_get(root, features[i].key)))
            FAIL(ERR_REFUSED, "%s: '%s' is set; %s", name, features[i].key, features[i].what);
    return OK;
}

/* Ways to begin that leave the base as it is; the others (pissa, olora, corda, loftq, lora_ga) change it, and are made
 * into plain LoRA by PEFT when it is asked to (save_pretrained's path_initial_model_for_weight_conversion). */
static int check_start(const json_t *root, const char *name) {
    const json_t *start = json_object_get(root, "init_lora_weights");
    static const char *const plain[] = {"gaussian", "eva", "orthogonal"};
    const char *text = json_string_value(start);
    for (size_t i = 0; text && i < sizeof plain / sizeof *plain; i++)
        if (strcmp(text, plain[i]) == 0) return OK;
    if (!text) return OK;
    FAIL(ERR_REFUSED, "%s: 'init_lora_weights' is '%s', which changes the base; save it converted to plain LoRA", name,
         text);
}

/* Matrices that are saved whole. PEFT names a score head `classifier` too, which a Llama has not; and a tied embedding
 * `model.embed_tokens` beside what it was called. */
static int read_saved(PeftSaved *saved, const json_t *root, const char *name) {
    const json_t *list = json_object_get(root, "modules_to_save"), *each;
    size_t i;
    TRY(json_read_bool(&saved->tied, root, "ensure_weight_tying", name));
    if (is_unused(list)) return OK;
    if (!json_is_array(list)) FAIL(ERR_REFUSED, "%s: 'modules_to_save' is no list of names", name);
    json_array_foreach(list, i, each) {
        const char *module = json_is_string(each) ? json_string_value(each) : "";
        const char *last = strrchr(module, '.') ? strrchr(module, '.') + 1 : module;
        bool score = strcmp(module, "score") == 0 || strcmp(module, "classifier") == 0;
        bool embedding = strcmp(last, "embed_tokens") == 0, head = strcmp(module, "lm_head") == 0;
        if (!(saved->score ? score || embedding : embedding || head))
            FAIL(ERR_REFUSED,
                 "%s: 'modules_to_save' has '%s'; embed_tokens and lm_head are implemented, and the score head of a "
                 "reward model",
                 name, module);
        saved->embedding = saved->embedding || embedding;
        saved->head = saved->head || head;
    }
    return OK;
}

static int check_kind(const json_t *root, bool *score, const char *name) {
    const char *type = "", *task = "CAUSAL_LM", *bias = "none";
    TRY(json_read_text(&type, root, "peft_type", name));
    TRY(json_read_text(&task, root, "task_type", name));
    TRY(json_read_text(&bias, root, "bias", name));
    if (strcmp(type, "LORA") != 0) FAIL(ERR_REFUSED, "%s: 'peft_type' is '%s'; only LORA is implemented", name, type);
    *score = strcmp(task, "SEQ_CLS") == 0;
    if (!*score && strcmp(task, "CAUSAL_LM") != 0)
        FAIL(ERR_REFUSED, "%s: 'task_type' is '%s'; CAUSAL_LM and SEQ_CLS are implemented", name, task);
    if (strcmp(bias, "none") != 0)
        FAIL(ERR_REFUSED, "%s: 'bias' is '%s'; a Llama has none, so 'none' is expected", name, bias);
    return OK;
}

static int read_numbers(PeftConfig *config, const json_t *root, const char *name) {
    TRY(json_read_int32(&config->rank, root, "r", 1, MAX_RANK, name));
    TRY(json_read_number(&config->alpha, root, "lora_alpha", name));
    TRY(json_read_number(&config->dropout, root, "lora_dropout", name));
    TRY(json_read_bool(&config->rslora, root, "use_rslora", name));
    TRY(json_read_bool(&config->dora, root, "use_dora", name));
    if (!(config->alpha > 0) || !isfinite(config->alpha))
        FAIL(ERR_REFUSED, "%s: 'lora_alpha' is %g; a number above 0 is expected", name, config->alpha);
    if (!(config->dropout >= 0 && config->dropout < 1))
        FAIL(ERR_REFUSED, "%s: 'lora_dropout' is %g; 0 to below 1 is expected", name, config->dropout);
    return OK;
}

int peft_config_parse(PeftConfig *config, const char *json, size_t size, const char *name) {
    int rc = OK;
    json_t *root;
    const char *base = "";
    *config = (PeftConfig){.rank = 8, .alpha = 8}; /* LoraConfig() */
    TRY(json_read_object(&root, json, size, name));
    TRY_TO(done, check_kind(root, &config->saved.score, name));
    TRY_TO(done, read_saved(&config->saved, root, name));
    TRY_TO(done, refuse_features(root, name));
    TRY_TO(done, check_start(root, name));
    TRY_TO(done, read_numbers(config, root, name));
    TRY_TO(done, json_read_text(&base, root, "base_model_name_or_path", name));
    config->base = strdup(base);
    if (!config->base) FAIL_TO(done, ERR_FAILED, "out of memory");
done:
    json_decref(root);
    return rc;
}

bool peft_is_adapter(const char *directory) {
    char *path = path_join(directory, PEFT_CONFIG);
    bool found = path && file_exists(path);
    free(path);
    return found;
}

static int open_arrays(PeftAdapter *adapter, const char *directory) {
    char *path = path_join(directory, PEFT_ARRAYS);
    if (!path) FAIL(ERR_FAILED, "out of memory");
    int rc = safetensors_open(&adapter->arrays, path);
    free(path);
    return rc;
}

int peft_open(PeftAdapter *adapter, const char *directory) {
    char *bytes = NULL, *path = path_join(directory, PEFT_CONFIG);
    size_t size;
    *adapter = (PeftAdapter){0};
    if (!path) FAIL(ERR_FAILED, "out of memory");
    int rc = file_read(&bytes, &size, path, MAX_CONFIG);
    if (rc == OK) rc = peft_config_parse(&adapter->config, bytes, size, path);
    adapter->base = (char *)(uintptr_t)adapter->config.base;
    if (rc == OK) rc = open_arrays(adapter, directory);
    free(bytes);
    free(path);
    if (rc != OK) peft_close(adapter);
    return rc;
}

void peft_close(PeftAdapter *adapter) {
    named_close(adapter->arrays);
    free(adapter->base);
    *adapter = (PeftAdapter){0};
}

/* ---- writing ---- */

/* A whole number as one: PEFT declares lora_alpha an int. */
static json_t *number_json(double value) {
    return value == floor(value) && fabs(value) < 1e15 ? json_integer((json_int_t)value) : json_real(value);
}

static json_t *names_json(const char *const *names, int n) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, json_string(names[i]));
    return list;
}

/* modules_to_save; null where there are none. PEFT ties a head that is not named to the embedding. */
static json_t *saved_json(PeftSaved saved) {
    const char *names[3];
    int n = 0;
    if (saved.score) names[n++] = "score";
    if (saved.embedding) names[n++] = "embed_tokens";
    if (saved.head && !saved.tied) names[n++] = "lm_head";
    return n > 0 ? names_json(names, n) : json_null();
}

int peft_config_format(const PeftConfig *config, char **json) {
    *json = NULL;
    json_t *root = json_pack(
        "{s:s, s:s, s:s, s:b, s:b, s:b, s:i, s:o, s:f, s:b, s:b, s:o, s:{}, s:{}, s:{}, s:n, s:n, s:n, s:n}",
        "peft_type", "LORA", "task_type", config->saved.score ? "SEQ_CLS" : "CAUSAL_LM", "bias", "none",
        "fan_in_fan_out", 0, "inference_mode", 1, "init_lora_weights", 1, "r", config->rank, "lora_alpha",
        number_json(config->alpha), "lora_dropout", config->dropout, "use_rslora", (int)config->rslora, "use_dora",
        (int)config->dora, "target_modules", names_json(config->targets, config->n_targets), "rank_pattern",
        "alpha_pattern", "loftq_config", "layers_to_transform", "layers_pattern", "auto_mapping", "revision");
    if (!root) FAIL(ERR_FAILED, "out of memory");
    int rc = OK;
    if (json_object_set_new(root, "modules_to_save", saved_json(config->saved)) != 0 ||
        (config->saved.tied && json_object_set_new(root, "ensure_weight_tying", json_true()) != 0))
        FAIL_TO(done, ERR_FAILED, "out of memory");
    if (json_object_set_new(root, "base_model_name_or_path", json_string(config->base)) != 0)
        FAIL_TO(done, ERR_FAILED, "the base's name '%s' cannot be written as JSON", config->base);
    TRY_TO(done, json_write_text(json, root));
done:
    json_decref(root);
    return rc;
}

int peft_write(const char *directory, const PeftConfig *config, const NamedSource *sources, size_t n,
               const NamedText *texts, size_t n_texts) {
    int rc = OK;
    char *json = NULL, *config_path = path_join(directory, PEFT_CONFIG), *path = path_join(directory, PEFT_ARRAYS);
    if (!config_path || !path) FAIL_TO(done, ERR_FAILED, "out of memory");
    TRY_TO(done, peft_config_format(config, &json));
    TRY_TO(done, safetensors_write(path, sources, n, texts, n_texts));
    TRY_TO(done, file_write_atomic(config_path, json, strlen(json)));
done:
    free(json);
    free(config_path);
    free(path);
    return rc;
}
