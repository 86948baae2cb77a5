/* Adapters as PEFT 0.21 keeps them (peft/config.py, peft/tuners/lora/config.py): a folder with
 *
 *   adapter_config.json         peft_type LORA, r, lora_alpha, use_rslora, use_dora, lora_dropout, target_modules, …
 *   adapter_model.safetensors   "base_model.model." + the matrix's name without ".weight", then ".lora_A.weight" [r,
 * in],
 *                               ".lora_B.weight" [out, r] and with DoRA ".lora_magnitude_vector" [out]
 *
 * What would change the mathematics in a way this program does not implement is refused by its key. */
#ifndef CRIA_FORMATS_PEFT_H
#define CRIA_FORMATS_PEFT_H

#include <stdbool.h>

#include "model/formats/named.h"

#define PEFT_CONFIG "adapter_config.json"
#define PEFT_ARRAYS "adapter_model.safetensors"

/* What is saved whole beside the adapter (modules_to_save). */
typedef struct {
    bool score; /* of a LlamaForSequenceClassification (task_type SEQ_CLS), whose head `score` is among the arrays */
    bool embedding, head; /* embed_tokens, lm_head */
    bool tied;            /* ensure_weight_tying: on a tied base they are one matrix, which files have twice */
} PeftSaved;

typedef struct {
    int rank;     /* r */
    double alpha; /* lora_alpha */
    double dropout;
    bool rslora, dora;
    PeftSaved saved;
    const char *base;           /* base_model_name_or_path; "" where it says none */
    const char *const *targets; /* target_modules, for writing: "q_proj", … (what was read is in the arrays' names) */
    int n_targets;
} PeftConfig;

/* `name` is for messages. base: a malloc'd text. */
int peft_config_parse(PeftConfig *config, const char *json, size_t size, const char *name);
/* malloc'd JSON text. */
int peft_config_format(const PeftConfig *config, char **json);

typedef struct {
    PeftConfig config;
    NamedFile *arrays;
    char *base;      /* config.base */
    bool whole_base; /* what it saves of the base's embedding and head ("….base_layer.weight") is known to be the
                        base's, and is not looked at */
} PeftAdapter;       /* {0} may be closed */

/* Whether the folder has an adapter_config.json. */
bool peft_is_adapter(const char *directory);
int peft_open(PeftAdapter *adapter, const char *directory);
void peft_close(PeftAdapter *adapter);

/* Writes both files into an existing folder; the texts (NULL: none) into the arrays' file, where PEFT passes over them.
 */
int peft_write(const char *directory, const PeftConfig *config, const NamedSource *sources, size_t n,
               const NamedText *texts, size_t n_texts);

#endif
