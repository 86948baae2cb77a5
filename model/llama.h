/* The Llama transformer (Touvron et al. 2023; Grattafiori et al. 2024): parameters, and the recording of its forward
 * pass. llama_layer is written once and serves training, prefill and cached decoding. */
#ifndef CRIA_MODEL_LLAMA_H
#define CRIA_MODEL_LLAMA_H

#include "model/autodiff/tape.h"
#include "model/core/arena.h"
#include "model/formats/named.h"
#include "model/ops/ops.h"
#include "model/shape.h"

typedef struct {
    Weight attention_norm, qkv, attention_out; /* qkv: q_proj | k_proj | v_proj */
    Weight ffn_norm, gate_up, down;            /* gate_up: gate_proj | up_proj */
} LlamaLayer;

typedef struct {
    LlamaShape shape;
    Weight embedding, norm, head;
    LlamaLayer *layers;
    Weight **weights; /* all, in canonical order: embedding, layers 0…, norm, head */
    int n_weights;
    RotaryTable rotary;
    Arena arena; /* names and structs */
    float *values, *grads;
    size_t value_bytes, grad_bytes; /* grads: 0 when not training */
} Llama;

typedef struct {
    bool training;   /* allocate gradients */
    int n_positions; /* rows of the rotary table; 0: shape.max_context */
    bool names_only; /* no storage and no tables: only what the parameters are called, and their shapes. With `training`
                        tapes can be recorded and planned; value_bytes, grad_bytes say what would be allocated */
} LlamaOptions;

/* A model with zeroed parameters. */
int llama_new(Llama **model, const LlamaShape *shape, LlamaOptions options);
void llama_free(Llama *model);
size_t llama_bytes(const Llama *model);                             /* parameters, gradients and tables */
size_t llama_table_bytes(const LlamaShape *shape, int n_positions); /* of that, the rotary tables */

typedef struct {
    uint64_t seed;
    float std; /* of every matrix: N(0, std²), Hugging Face's initializer_range; norms are 1 */
    enum InitResidual {
        INIT_PLAIN,
        INIT_SCALED
    } residual; /* scaled: attention_out and down times 1/sqrt(2·n_layers)
                   (Radford et al. 2019, section 2.3) */
} LlamaInit;
/* Element e of the parameter named N is a function of (seed, N, e) alone: the same for any layout. */
int llama_init(Llama *model, LlamaInit init);

/* Copies every parameter of `from`, a model of the same shape but that its vocabulary may be smaller: the rows beyond
 * it are left alone. */
void llama_copy_rows(Llama *to, const Llama *from);
/* Sets the rows first … of embedding and head to the mean of the rows before them, so that a new token begins as an
 * average one (Hewitt 2021, "Initializing new word embeddings for pretrained language models"). */
void llama_init_new_rows(Llama *model, int first);

/* A head tied to the embedding has its own gradient; this adds it to the embedding's and clears it. Once a step, before
 * the norm. */
void llama_merge_tied_gradients(Llama *model);

/* The gradients of all untied weights as one array (with zeros between weights, for alignment). */
void llama_gradients(const Llama *model, float **gradients, size_t *n);

/* ---- named arrays (parameters.c) ---- */

/* Reads every parameter by its Hugging Face name. A missing one, one of another shape, and one the model does not have
 * (other than the tables that old files carry) are errors that name it. */
int llama_load(Llama *model, const NamedFile *file);
/* The same errors, from names and shapes alone: nothing is read. */
int llama_check_file(const Llama *model, const NamedFile *file);

/* The parameters as named fp32 arrays that point into the model, in canonical order, a tied head left out; the list is
 * allocated in `arena`. With `storage` (one array for each untied weight, shaped like it: gradients, moments) the
 * arrays point there instead, and every name gets `prefix`. Of a model with names only, they have no data. */
int llama_arrays(const Llama *model, float *const *storage, const char *prefix, Arena *arena, NamedArray **arrays,
                 size_t *n);
/* Reads arrays so named into such storage. */
int llama_load_storage(const Llama *model, float *const *storage, const char *prefix, const NamedFile *file);
int llama_untied_weights(const Llama *model); /* how many weights are not tied to another */

/* ---- recording ---- */

typedef struct KvCache KvCache;

typedef struct {
    bool recompute;       /* drop each layer's inner activations and compute them again in backward */
    const KvCache *cache; /* generation: attention reads and extends this cache */
} LlamaRecord;

/* One transformer block on x [T, D]. `cache` may be NULL. */
Tensor *llama_layer(Tape *tape, Tensor *x, Llama *model, int layer, const KvCache *cache);

/* Embedding, every layer, the last norm: the hidden states [T, D] that the head reads. */
Tensor *llama_hidden(Tape *tape, Llama *model, LlamaRecord record);

/* llama_hidden, then the head with these options. */
HeadOutputs llama_record(Tape *tape, Llama *model, LlamaRecord record, HeadOptions head);

/* ---- the cache of keys and values, for generation ---- */

struct KvCache {
    int n_layers, n_slots, max_sequence;
    KvLayer *layers;
    float *storage;
    size_t bytes;
};
int kv_cache_new(KvCache **cache, const LlamaShape *shape, int n_slots, int max_sequence);
void kv_cache_free(KvCache *cache);
size_t kv_cache_bytes(const LlamaShape *shape, int n_slots, int max_sequence);

#endif
