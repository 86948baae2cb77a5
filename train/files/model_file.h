/* MODEL, wherever a command asks for one: a checkpoint, a run's folder (its newest, or its best), a Hugging Face
 * directory, a GGUF file, a llama2.c file; or an adapter (adapter_file.h), which is opened with its base. What is
 * opened is everything a model is: parameters, tokenizer, generation settings. */
#ifndef CRIA_TRAIN_MODEL_FILE_H
#define CRIA_TRAIN_MODEL_FILE_H

#include "data/tokenizer/tokenizer.h"
#include "model/formats/peft.h"
#include "model/formats/hf_config.h"
#include "model/formats/named.h"
#include "model/lora_peft.h"

/* The text of a checkpoint's model.h5 that holds its run's resolved config. */
#define MODEL_FILE_YAML "config.yaml"
/* The text that holds its chat template, and the file of a Hugging Face directory that does. */
#define MODEL_FILE_TEMPLATE "chat_template.jinja"

typedef struct {
    Llama *model;
    Tokenizer *tokenizer; /* NULL where the model has none and none was given */
    HfConfig config;
    HfGeneration generation;
    char *chat_template;       /* Jinja; NULL where the model has none */
    char *path;                /* what was opened, for messages */
    NamedFile *arrays;         /* with keep_open: the parameters, to be read one by one; with frozen: where they are */
    int n_rows;                /* of the file's own embedding and head; the model may have more */
    LoraVocabulary vocabulary; /* what the adapter has in place of its base's */
    uint64_t fingerprint;      /* of the parameters, where it was asked for (adapter_file.h) */
    PeftAdapter adapter;       /* where an adapter was opened: `arrays` and `path` are its base's */
    Lora *lora;                /* the adapter, attached to the model; NULL: none, or it was merged into the model */
    int own_scores;            /* rows of the file's own score head; 0: it is a language model's */
    bool new_head;             /* the model's score head is not the file's: it is zero until llama_init_head */
} ModelFile;

/* Help of the flag --base. */
#define MODEL_FILE_BASE_HELP "where MODEL is an adapter: the model it belongs to, instead of the one it names"

/* Which kind of model is opened: one that gives texts, or a reward (or value) model, which gives scores. */
typedef enum {
    HEAD_TOKENS,   /* a language model */
    HEAD_SCORE,    /* a reward model */
    HEAD_TO_SCORE, /* a reward model, or a language model as the body of one: its own head is left out */
    HEAD_NEW,      /* either as the body of a reward model, whose head is not the file's */
    HEAD_ANY,
} ModelHead;

/* What a model that is opened to generate computes in. Auto: bf16 where the model was made in 16 bits (it is stored in
 * them, or its run's `precision` says bf16) and the kernels have instructions for it, or where its matrices are frozen,
 * else fp32. */
typedef enum { INFERENCE_NOT, INFERENCE_AUTO, INFERENCE_F32, INFERENCE_BF16 } InferencePrecision;

typedef struct {
    ModelHead head;
    const HfLabels *labels;       /* of a score head that the file has not; NULL: one, without a name */
    const char *tokenizer;        /* a tokenizer's path, instead of the model's own; NULL: its own */
    bool need_tokenizer;          /* an error where there is none */
    bool training;                /* allocate gradients */
    bool train_head;              /* as LlamaOptions has it */
    bool train_vocabulary;        /* as LlamaOptions has it */
    int vocabulary;               /* rows of embedding and head, where the file has fewer: the last ones are zero */
    Dtype precision;              /* as LlamaOptions has it; for those who train */
    InferencePrecision inference; /* for those who generate, instead of `precision`: a model of which, in bf16, nothing
                                     is kept but what generation reads */
    Frozen frozen;                /* as LlamaOptions has it; the file stays open. With `inference`: the head as well */
    bool unpacked;                /* as LlamaOptions has it */
    int n_positions;              /* rotary table rows; 0: the model's context */
    bool shape_only;              /* do not read parameters (model stays NULL) */
    bool fingerprint;             /* is wanted */
    const char *base;             /* of an adapter: the model it belongs to, instead of the one it names; NULL: that */
    bool whole;                   /* an adapter is refused */
    bool keep_open; /* check the parameters' names and shapes, but read none: the model has names only, and the file
                       stays open, for those who stream a model larger than memory */
} ModelFileOptions;

/* An adapter is merged into its base's values where these are to be trained, else attached to it. */
int model_file_open(ModelFile *file, const char *path, ModelFileOptions options);
void model_file_close(ModelFile *file);

/* Whether a model that is frozen in 16 bits is used where the file is mapped: it has every matrix in 16 bits. */
bool model_file_is_mapped(const NamedFile *file);

/* The tokenizer inside a checkpoint's model.h5; *found tells whether there is one. */
int model_file_tokenizer(Tokenizer **tokenizer, bool *found, const NamedFile *named);

/* A tokenizer from anything that has one: what tokenizer_load opens, or a GGUF file. */
int model_file_load_tokenizer(Tokenizer **tokenizer, const char *path);

/* The texts and arrays that make a checkpoint's model.h5 more than parameters (names in model_file.c), allocated in the
 * arena: for writers of checkpoints. `resolved` is the run's config as YAML, or NULL; so may
 * the chat template be. */
int model_file_describe(const HfConfig *config, const Tokenizer *tokenizer, const HfGeneration *generation,
                        const char *chat_template, const char *resolved, Arena *arena, NamedText **texts,
                        size_t *n_texts, NamedArray *tokenizer_array);

/* A model's config.json: its shape, with the tokenizer's BOS and EOS. */
HfConfig model_file_config(const LlamaShape *shape, const Tokenizer *tokenizer);

#endif
