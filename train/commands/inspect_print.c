/* A report (train/files/inspect.h) as lines for people. */
#include <stdio.h>
#include <string.h>

#include "model/core/text.h"
#include "train/files/inspect.h"

enum { SHOWN_TEXT = 100 };

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static long long int_of(const json_t *object, const char *key) {
    return json_integer_value(json_object_get(object, key));
}

static void shape_text(char *out, size_t size, const json_t *shape) {
    size_t used = (size_t)snprintf(out, size, "[");
    for (size_t d = 0; d < json_array_size(shape) && used < size; d++)
        used += (size_t)snprintf(out + used, size - used, "%s%lld", d ? ", " : "",
                                 (long long)json_integer_value(json_array_get(shape, d)));
    if (used < size) snprintf(out + used, size - used, "]");
}

static void print_arrays(const json_t *report, bool brief) {
    const json_t *arrays = json_object_get(report, "arrays");
    size_t i;
    json_t *array;
    char bytes[32], count[32], shape[128];
    int width = 0;
    if (!arrays) return;
    json_array_foreach(arrays, i, array) {
        int length = (int)strlen(text_of(array, "name"));
        if (length > width) width = length;
    }
    if (!brief) json_array_foreach(arrays, i, array) {
            shape_text(shape, sizeof shape, json_object_get(array, "shape"));
            printf("  %-*s  %-5s  %-18s  %s\n", width, text_of(array, "name"), text_of(array, "dtype"), shape,
                   text_bytes(bytes, (uint64_t)int_of(array, "bytes")));
        }
    printf("  %lld arrays, %s numbers, %s (%s)\n", int_of(report, "n_arrays"),
           text_thousands(count, (uint64_t)int_of(report, "elements")),
           text_bytes(bytes, (uint64_t)int_of(report, "bytes")), text_of(report, "format"));
    const char *key;
    json_t *value;
    json_object_foreach(json_object_get(report, "texts"), key, value) {
        const char *text = json_string_value(value);
        if (strchr(text, '\n') || strlen(text) > SHOWN_TEXT)
            printf("  %s: a text of %zu bytes\n", key, strlen(text));
        else
            printf("  %s: %s\n", key, text);
    }
}

/* The scores' names, where they have any. */
static void print_labels(const json_t *config) {
    const char *id;
    json_t *label;
    const char *separator = ": ";
    json_object_foreach(json_object_get(config, "id2label"), id, label) {
        if (strncmp(json_string_value(label), "LABEL_", strlen("LABEL_")) == 0) return;
        printf("%s%s", separator, json_string_value(label));
        separator = ", ";
    }
}

static const char *head_of(const json_t *config) {
    const char *architecture = json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
    if (architecture && strcmp(architecture, "LlamaForSequenceClassification") == 0)
        return "score head: a reward model";
    return json_is_true(json_object_get(config, "tie_word_embeddings")) ? "head tied to the embedding"
                                                                        : "head of its own";
}

static void print_config(const json_t *config) {
    if (!config) return;
    printf(
        "config: dim %lld, %lld layers, %lld heads of %lld, %lld KV heads, FFN %lld, vocabulary %lld, context %lld\n",
        int_of(config, "hidden_size"), int_of(config, "num_hidden_layers"), int_of(config, "num_attention_heads"),
        int_of(config, "head_dim"), int_of(config, "num_key_value_heads"), int_of(config, "intermediate_size"),
        int_of(config, "vocab_size"), int_of(config, "max_position_embeddings"));
    const json_t *scaling = json_object_get(config, "rope_scaling");
    printf("        rope theta %g%s", json_number_value(json_object_get(config, "rope_theta")),
           json_is_object(scaling) ? ", scaled by" : "");
    if (json_is_object(scaling)) printf(" %g", json_number_value(json_object_get(scaling, "factor")));
    printf(", norm epsilon %g, %s", json_number_value(json_object_get(config, "rms_norm_eps")), head_of(config));
    print_labels(config);
    printf(", %s\n", text_of(config, "torch_dtype"));
}

static void print_adapter(const json_t *adapter) {
    size_t i;
    json_t *target;
    char count[32];
    const json_t *targets = json_object_get(adapter, "targets");
    if (!adapter) return;
    printf("adapter: %s%s, rank %lld, alpha %g, on",
           json_is_true(json_object_get(adapter, "rslora")) ? "rsLoRA" : "LoRA",
           json_is_true(json_object_get(adapter, "dora")) ? " with DoRA" : "", int_of(adapter, "rank"),
           json_number_value(json_object_get(adapter, "alpha")));
    if (json_is_string(targets)) printf(" %s", json_string_value(targets));
    json_array_foreach(targets, i, target) printf("%s %s", i > 0 ? "," : "", json_string_value(target));
    printf("; %s numbers trained\n         base %s", text_thousands(count, (uint64_t)int_of(adapter, "trained")),
           text_of(adapter, "base"));
    if (*text_of(adapter, "base_fingerprint")) printf(", fingerprint %s", text_of(adapter, "base_fingerprint"));
    printf("\n");
}

static void print_tokenizer(const json_t *tokenizer) {
    if (!tokenizer) return;
    printf("tokenizer: %s, vocabulary %lld, BOS %lld, EOS %lld (%s)\n", text_of(tokenizer, "kind"),
           int_of(tokenizer, "vocab_size"), int_of(tokenizer, "bos"), int_of(tokenizer, "eos"),
           text_of(tokenizer, "source"));
}

static void print_files(const json_t *report, bool brief) {
    size_t i;
    json_t *file;
    char bytes[32];
    json_array_foreach(json_object_get(report, "files"), i, file) {
        const char *problem = text_of(file, "problem");
        printf("%s: %s, CRC32C %s %s\n", text_of(file, "name"), text_bytes(bytes, (uint64_t)int_of(file, "size")),
               text_of(file, "crc32c"), *problem ? "DOES NOT MATCH" : "verified");
        if (*problem) printf("  %s\n", problem);
        print_arrays(file, brief);
    }
}

static void print_steps(const json_t *report) {
    size_t i;
    json_t *step;
    json_array_foreach(json_object_get(report, "checkpoints"), i, step) {
        const char *problem = text_of(step, "problem");
        printf("  step %lld%s: %s\n", int_of(step, "step"),
               json_is_true(json_object_get(step, "best")) ? " (best)" : "", *problem ? problem : "verified");
    }
    if (i == 0) printf("  no checkpoints yet\n");
}

void inspect_print(const json_t *report, bool brief) {
    printf("%s: ", text_of(report, "path"));
    if (json_object_get(report, "step"))
        printf("checkpoint of step %lld\n", int_of(report, "step"));
    else
        printf("%s\n", text_of(report, "kind"));
    if (json_object_get(report, "checkpoints")) print_steps(report);
    print_config(json_object_get(report, "config"));
    print_adapter(json_object_get(report, "adapter"));
    print_tokenizer(json_object_get(report, "tokenizer"));
    print_files(report, brief);
    print_arrays(report, brief);
    const json_t *newest = json_object_get(report, "newest");
    if (newest) inspect_print(newest, brief);
}
