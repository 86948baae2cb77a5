/* Adapters to and from PEFT's files, and several made into one. */
#ifndef CRIA_MODEL_LORA_PEFT_H
#define CRIA_MODEL_LORA_PEFT_H

#include "model/formats/peft.h"
#include "model/lora.h"

/* What PEFT calls a score head that was trained beside an adapter. */
#define LORA_SCORE "base_model.model.score.weight"

/* "all-linear", or names like "q,v" or "q_proj, v_proj". ERR_USAGE for others. */
int lora_parse_targets(unsigned *targets, const char *text);

/* What an adapter's config and the names of its arrays say; dropout is PEFT's, for training on. Arrays that are no
 * layer's matrix are refused by name. */
int lora_options_from_peft(LoraOptions *options, const PeftAdapter *adapter);

/* A new adapter with the values of this one. */
int lora_from_peft(Lora **lora, Llama *model, const PeftAdapter *adapter, LlamaOptions how);

/* adapter_config.json of such an adapter, with a score head or without; `targets` is room for the list in it. */
PeftConfig lora_peft_config(const LoraOptions *options, bool score, const char *base,
                            const char *targets[LORA_TARGETS]);

/* Writes both files into an existing folder; values are stored as fp32. `base`: what the adapter belongs to. */
int lora_write_peft(const Lora *lora, const char *directory, const char *base);

/* The same of an opened adapter, of any model: its arrays as they are stored; "cria.…" are left out. */
int lora_copy_peft(const PeftAdapter *adapter, const char *directory);

/* One adapter that adds weights[i] times what each of `n` adds: their ranks one below the other. All must be without
 * magnitudes, but for a single one of weight 1. */
int lora_combine(Lora **lora, Llama *model, const PeftAdapter *adapters, const double *weights, int n,
                 LlamaOptions how);

#endif
