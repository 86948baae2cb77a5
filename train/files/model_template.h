/* Which chat template a model speaks: the one the config names or writes, else the model's own. */
#ifndef CRIA_TRAIN_MODEL_TEMPLATE_H
#define CRIA_TRAIN_MODEL_TEMPLATE_H

#include "configs/config.h"
#include "data/chat/saved.h"

typedef struct {
    ChatTemplateSpec spec;
    ChatTemplateOptions options;
    SavedTemplate saved; /* what the spec points into where it is the model's own */
    ChatTemplate *chat;  /* NULL until opened */
} ModelTemplate;         /* {0} is empty; model_template_free */
void model_template_free(ModelTemplate *model_template);

/* Chooses by template.*; `jinja` is the model's own text, or NULL, and `model` names the model in messages. The config
 * must outlive the template. */
int model_template_choose(ModelTemplate *model_template, const Config *config, const char *jinja, const char *model,
                          const Tokenizer *tokenizer);

/* The tokenizer with the tokens that the template needs and it lacks; *extended is NULL where it lacks none. */
int model_template_extend(const ModelTemplate *model_template, const Config *config, const Tokenizer *tokenizer,
                          Tokenizer **extended);
/* Logs which those are. */
void model_template_tell_growth(const ModelTemplate *model_template, const Tokenizer *tokenizer,
                                const Tokenizer *extended);

/* Compiles it for the tokenizer, which must outlive it. */
int model_template_open(ModelTemplate *model_template, const Tokenizer *tokenizer);

#endif
