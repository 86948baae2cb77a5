/* Hugging Face's config.json and generation_config.json for Llama (transformers 4.57 configuration_llama.py; the
 * `rope_parameters` form of transformers 5 is read too). A field that is absent has LlamaConfig's default; a field that
 * would change the mathematics in a way this program does not implement is refused by its name. */
#ifndef CRIA_FORMATS_HF_CONFIG_H
#define CRIA_FORMATS_HF_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/core/dtype.h"

enum { HF_MAX_EOS = 8, HF_MAX_LABELS = 8, HF_LABEL_SIZE = 64 };

/* What the rows of a LlamaForSequenceClassification's head are called (id2label), in their order. */
typedef struct {
    int n; /* 0: there is no such head: the model is a LlamaForCausalLM */
    char names[HF_MAX_LABELS][HF_LABEL_SIZE];
} HfLabels;

/* As transformers has them where nobody gave names: LABEL_0, LABEL_1, … */
HfLabels hf_labels_unnamed(int n);
bool hf_labels_are_unnamed(const HfLabels *labels);
bool hf_labels_equal(const HfLabels *a, const HfLabels *b);
/* The row of that name; -1: there is none. */
int hf_label_find(const HfLabels *labels, const char *name);
/* "helpfulness, safety", for messages, in `out`. */
enum { HF_LABELS_TEXT = HF_MAX_LABELS * (HF_LABEL_SIZE + 2) };
const char *hf_labels_text(const HfLabels *labels, char out[HF_LABELS_TEXT]);
/* One name more. ERR_USAGE for one that is empty, too long, no UTF-8, with control characters or given twice, and for
 * one too many. */
int hf_labels_add(HfLabels *labels, const char *name);

typedef struct {
    int dim;        /* hidden_size */
    int n_layers;   /* num_hidden_layers */
    int n_heads;    /* num_attention_heads */
    int n_kv_heads; /* num_key_value_heads */
    int head_dim;
    int ffn_dim; /* intermediate_size */
    int vocab_size;
    int max_position_embeddings;
    double rms_norm_eps;
    double rope_theta;
    struct {
        bool llama3; /* false: no scaling, the rest is 0 */
        double factor, low_freq_factor, high_freq_factor;
        int original_max_position_embeddings;
    } rope_scaling;
    bool tie_word_embeddings;
    int32_t bos_token_id; /* -1: none */
    int32_t eos_token_ids[HF_MAX_EOS];
    int n_eos;
    Dtype dtype; /* torch_dtype; fp32 where absent */
    double initializer_range;
    HfLabels labels;      /* of a LlamaForSequenceClassification; none: LlamaForCausalLM */
    int32_t pad_token_id; /* -1: none. What transformers looks for to find a padded text's last token */
} HfConfig;

/* LlamaConfig(): Llama 1's 7B. */
HfConfig hf_config_default(void);

/* `name` is for messages. */
int hf_config_parse(HfConfig *config, const char *json, size_t size, const char *name);
/* Reads PATH, or PATH/config.json where PATH is a directory. */
int hf_config_read(HfConfig *config, const char *path);
/* malloc'd JSON text as transformers 4.57 writes it. */
int hf_config_format(const HfConfig *config, char **json);
/* Writes DIRECTORY/config.json. */
int hf_config_write(const HfConfig *config, const char *directory);
/* Refuses impossible shapes (heads that do not divide, odd head_dim, anything below 1). */
int hf_config_check(const HfConfig *config);

typedef struct {
    int32_t bos_token_id; /* -1: none */
    int32_t eos_token_ids[HF_MAX_EOS];
    int n_eos;
    bool do_sample;
    double temperature, top_p;
    int top_k; /* 0: off */
} HfGeneration;

/* Greedy, as transformers' GenerationConfig(): temperature 1, top_p 1, top_k 50, no ids. */
HfGeneration hf_generation_default(void);
int hf_generation_parse(HfGeneration *generation, const char *json, size_t size, const char *name);
/* Reads PATH, or PATH/generation_config.json where PATH is a directory; absent there: the defaults. */
int hf_generation_read(HfGeneration *generation, const char *path);
/* malloc'd JSON text as transformers 4.57 writes it. */
int hf_generation_format(const HfGeneration *generation, char **json);
/* Writes DIRECTORY/generation_config.json. */
int hf_generation_write(const HfGeneration *generation, const char *directory);

#endif
