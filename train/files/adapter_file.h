/* An adapter on disk: PEFT's folder, or a checkpoint that a run has made. The checkpoint's model.h5 holds the adapter's
 * arrays by PEFT's names and, besides what every model.h5 has, the texts adapter_config.json (PEFT's) and base.json:
 *
 *   {"fingerprint": "9f0c…", "from_run": "../base"}
 *
 * where the base lies from the run's folder (its path as the run was given it is in adapter_config.json), and the
 * fingerprint of what it was. */
#ifndef CRIA_TRAIN_ADAPTER_FILE_H
#define CRIA_TRAIN_ADAPTER_FILE_H

#include "model/formats/peft.h"
#include "model/lora.h"

/* Of a base: names and shapes of its parameters and some elements of each as bf16 has them, so that it is the same for
 * an fp32 model and its bf16 form. `model` may have names only. */
int base_fingerprint(uint64_t *fingerprint, const Llama *model, const NamedFile *file);

/* Whether the opened model.h5 is an adapter's. */
bool adapter_in_checkpoint(const NamedFile *file);
/* Takes the file, whatever happens. */
int adapter_of_checkpoint(PeftAdapter *adapter, NamedFile *file);
/* Either kind; peft_close closes it. ERR_REFUSED where PATH is a whole model. */
int adapter_open(PeftAdapter *adapter, const char *path);
/* Whether PATH is an adapter. What cannot be opened is none. */
bool adapter_recognises(const char *path);

/* The base's path, malloc'd: `given` where it is not NULL, else what the adapter says. */
int adapter_base_path(char **path, const PeftAdapter *adapter, const char *given);
/* Whether what the adapter saves of its base's embedding and head is what the file BASE has: then it is left aside
 * (adapter->whole_base). */
int adapter_compare_base(PeftAdapter *adapter, const NamedFile *base);
/* The score head and the vocabulary that were trained beside the adapter, where there are any, become the model's. */
int adapter_take_saved(const PeftAdapter *adapter, Llama *model);
/* ERR_REFUSED where the adapter's file knows its base's fingerprint and this is not it. */
int adapter_check_base(const NamedFile *adapter, const char *base, uint64_t fingerprint);

/* The two texts of a checkpoint in RUN, in the arena. `saved`: what is trained beside it. `base`: the path of what
 * the adapter was trained on. */
enum { ADAPTER_TEXTS = 2 };
int adapter_describe(NamedText texts[ADAPTER_TEXTS], const LoraOptions *options, PeftSaved saved, const char *base,
                     const char *run, uint64_t fingerprint, Arena *arena);

#endif
