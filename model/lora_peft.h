/* Adapters to and from PEFT's files, and several made into one. */
#ifndef CRIA_MODEL_LORA_PEFT_H
#define CRIA_MODEL_LORA_PEFT_H

#include "model/formats/peft.h"
#include "model/lora.h"

/* What PEFT calls an array of the model that is saved beside an adapter: this before its own name. */
#define LORA_PREFIX "base_model.model."
#define LORA_SCORE LORA_PREFIX "score.weight"
#define LORA_EMBEDDING LORA_PREFIX "model.embed_tokens.weight"
#define LORA_HEAD LORA_PREFIX "lm_head.weight"
/* The same beside an adapter of their own: PEFT's name for what a low-rank part is added to. It saves them with such
 * adapters, as the base has them or with more rows. */
#define LORA_EMBEDDING_BASE LORA_PREFIX "model.embed_tokens.base_layer.weight"
#define LORA_HEAD_BASE LORA_PREFIX "lm_head.base_layer.weight"
/* Before A and B of an embedding. */
#define LORA_OF_EMBEDDING ".lora_embedding_"
/* The text beside an adapter's arrays, in a checkpoint and in PEFT's form, that is the adapted model's config.json: of
 * a reward model's scores it knows the names. */
#define LORA_MODEL_CONFIG "config.json"

#define LORA_TARGET_WORDS "q, k, v, o, gate, up, down, head, embedding"
/* "all-linear", or names like "q,v,head" or "q_proj, v_proj, lm_head"; the embedding is "embedding" or "embed_tokens".
 * ERR_USAGE for others. */
int lora_parse_targets(unsigned *targets, const char *text);

/* What an adapter's config and the names of its arrays say; dropout is PEFT's, for training on. Arrays that are no
 * layer's matrix are refused by name. */
int lora_options_from_peft(LoraOptions *options, const PeftAdapter *adapter);

/* The vocabulary that was trained beside an adapter. */
typedef struct {
    const NamedArray *embedding, *head; /* in the adapter's file; NULL: the base's */
    bool tied;                          /* it leaves a tied base tied: the embedding is the head; else it unties it */
    int rows;                           /* tokens; 0 where it has neither */
} LoraVocabulary;
int lora_vocabulary(LoraVocabulary *vocabulary, const PeftAdapter *adapter);

/* A new adapter with the values of this one. */
int lora_from_peft(Lora **lora, Llama *model, const PeftAdapter *adapter, LlamaOptions how);

/* adapter_config.json of such an adapter; `targets` is room for the list in it. */
PeftConfig lora_peft_config(const LoraOptions *options, PeftSaved saved, const char *base,
                            const char *targets[LORA_TARGETS]);

/* Writes both files into an existing folder; values are stored as fp32. `base`: what the adapter belongs to. */
int lora_write_peft(const Lora *lora, const char *directory, const char *base);

/* The same of an opened adapter, of any model: its arrays as they are stored; "cria.…" are left out. A vocabulary that
 * is one matrix is written as embedding and as head, since PEFT asks for both. Of a reward model the text
 * LORA_MODEL_CONFIG comes along. */
int lora_copy_peft(const PeftAdapter *adapter, const char *directory);

/* One adapter that adds weights[i] times what each of `n` adds: their ranks one below the other. All must be without
 * magnitudes and vocabularies of their own, but for a single one of weight 1. */
int lora_combine(Lora **lora, Llama *model, const PeftAdapter *adapters, const double *weights, int n,
                 LlamaOptions how);

#endif
