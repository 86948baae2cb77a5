/* The Llama transformer (Touvron et al. 2023; Grattafiori et al. 2024): parameters, and the recording of its forward
 * pass. llama_layer is written once and serves training, prefill and cached decoding. */
#ifndef CRIA_MODEL_LLAMA_H
#define CRIA_MODEL_LLAMA_H

#include "model/autodiff/tape.h"
#include "model/core/arena.h"
#include "model/formats/named.h"
#include "model/kv_cache.h"
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
    Weight **weights; /* all, in canonical order: embedding, layers 0…, norm, head (lm_head, or score) */
    int n_weights;
    RotaryTable rotary;
    Arena arena; /* names and structs */
    float *values, *grads;
    bf16 *packings;
    char *frozen;                                                /* the matrices of a frozen model */
    size_t value_bytes, grad_bytes, packing_bytes, frozen_bytes; /* 0 where there are none */
    Dtype inference;                                             /* see llama_inference_dtype */
    bool packed_only;
} Llama;

/* How matrices that are not trained are kept: row-major, without fp32 values, gradients or packings. Embedding and head
 * are in 16 bits in each of them, as in QLoRA (what the fp32 head of a model of fp32 precision reads: in fp32), but for
 * `quantised_head`. */
typedef enum {
    FROZEN_NONE,
    FROZEN_16BIT, /* where a file has them mapped in bf16 or fp16, there */
    FROZEN_INT8,  /* these two: model/kernels/quantised.h; norms, activations and products stay as they are */
    FROZEN_NF4,
    FROZEN_KINDS
} Frozen;
/* "none", "16bit", "int8", "nf4" */
const char *frozen_name(Frozen frozen);

typedef struct {
    bool training;         /* allocate gradients */
    Dtype precision;       /* DTYPE_F32, or DTYPE_BF16: the packings of bf16 products too (model/kernels/bf16.h) */
    Frozen frozen;         /* the matrices. Norms and a score head are fp32 and, with `training`, trained */
    bool quantised_head;   /* with FROZEN_INT8 and FROZEN_NF4 the head too, and an embedding tied to it, in either
                              precision: for models that only generate (op_logits; op_head has no fp32 values then) */
    bool train_head;       /* a score head has gradients though the rest has none: beside an adapter */
    bool train_vocabulary; /* so have the embedding and a language model's head, which are not frozen then */
    bool unpacked;         /* no packings: bf16 products pack from the fp32 values as they use them, to the same bits */
    bool packed_only; /* with DTYPE_BF16 and without `training`: matrices that llama_load has packed keep no fp32 values
                       */
    int n_positions;  /* rows of the rotary table; 0: shape.max_context */
    bool names_only; /* no storage and no tables: only what the parameters are called, and their shapes. With `training`
                        tapes can be recorded and planned; value_bytes, grad_bytes say what would be allocated */
} LlamaOptions;

/* A model with zeroed parameters. */
int llama_new(Llama **model, const LlamaShape *shape, LlamaOptions options);
/* A value model (a score head of one row) on the body of another: every weight but the head is `body`'s, values,
 * packings and tables in its own storage, frozen here whatever they are there; adapters are not shared. The score head
 * is this one's, zero. Of `options` training and names_only count. `body` must outlive it. */
int llama_new_on_body(Llama **model, const Llama *body, LlamaOptions options);
void llama_free(Llama *model);
/* What tapes for generation are recorded in: bf16 where the matrices are there for bf16 products (packed, or in fewer
 * bits only), else fp32. */
Dtype llama_inference_dtype(const Llama *model);
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

/* The head alone, for a score head put onto a trained body. */
int llama_init_head(Llama *model, LlamaInit init);

/* Copies every parameter of `from`, a model of the same shape but that its vocabulary may be smaller: the rows beyond
 * it are left alone. */
void llama_copy_rows(Llama *to, const Llama *from);
/* The same, but for the head, which is left alone: the two may have heads of different kinds. */
void llama_copy_body(Llama *to, const Llama *from);
/* Sets the rows first … of embedding and head to the mean of the rows before them, so that a new token begins as an
 * average one (Hewitt 2021, "Initializing new word embeddings for pretrained language models"). */
void llama_init_new_rows(Llama *model, int first);

/* Writes the packings from the fp32 values, where there are any: after whoever changed the values but the optimizer. */
void llama_pack(Llama *model);

/* Where the head is tied to the embedding, adds what came through the embedding to the gradient and clears it. Once a
 * step, before the norm. */
void llama_merge_tied_gradients(Llama *model);

/* How much of grad_bytes is ever touched by steps of so many tokens: an embedding that is tied sums its gradient in a
 * row for each of them. */
size_t llama_touched_gradient_bytes(const Llama *model, size_t tokens);

/* The gradients as one array (with zeros between weights, for alignment). */
void llama_gradients(const Llama *model, float **gradients, size_t *n);

/* ---- named arrays (parameters.c) ---- */

/* Reads every parameter by its Hugging Face name. A missing one, one of another shape, and one the model does not have
 * (other than the tables that old files carry) are errors that name it. The matrices of a frozen model are used where
 * the file has them mapped in 16 bits: then the file must stay open as long as the model. */
int llama_load(Llama *model, const NamedFile *file);
/* The same errors, from names and shapes alone: nothing is read. */
int llama_check_file(const Llama *model, const NamedFile *file);

/* Where a file has not all of a model, or a smaller vocabulary. {0}: it has all. */
typedef struct {
    bool no_embedding, no_head; /* the model's are left as they are; the file may have another of its own */
    bool tied;                  /* the file's embedding is its head too, and the model's head is a matrix of its own */
    int rows; /* of the file's embedding and head: the first of the model's; 0: as many as the model has */
} LlamaPart;

/* Is told, between one matrix and the next, how many of the file's bytes were read or found mapped. */
typedef struct {
    void (*told)(void *context, uint64_t done, uint64_t total); /* NULL: nobody is told */
    void *context;
} LoadWatch;
int llama_load_part(Llama *model, LlamaPart part, const NamedFile *file, LoadWatch watch);
int llama_check_part(const Llama *model, LlamaPart part, const NamedFile *file);

/* One of the model's weights, of a single view, from the file's array of that name; where it is kept in fewer bits, in
 * those. Nothing for a model of names only. llama_pack follows. */
int llama_load_weight(Llama *model, Weight *weight, const char *name, const NamedFile *file);

/* Named arrays that point into the storage, in canonical order, a tied head left out; the list is allocated in `arena`.
 * Of a model with names only, they have no data. */
int llama_arrays(const Llama *model, WeightStorage storage, Arena *arena, NamedArray **arrays, size_t *n);
int llama_untied_weights(const Llama *model); /* how many weights are not tied to another */

/* ---- recording ---- */

/* What backward computes again instead of reading it from memory (Chen et al. 2016): nothing; the outputs of norms and
 * of SwiGLU (cheap: no products); or everything inside each layer. */
typedef enum { RECOMPUTE_NONE, RECOMPUTE_NORMS, RECOMPUTE_LAYER, RECOMPUTE_KINDS } Recompute;

typedef struct {
    Recompute recompute;
    const KvCache *cache; /* generation: attention reads and extends this cache */
} LlamaRecord;

/* The residual stream: its value is x + delta (a block's output, not yet added; NULL: nothing). */
typedef struct {
    Tensor *x, *delta;
} Stream;

/* One transformer block. */
Stream llama_layer(Tape *tape, Stream stream, Llama *model, int layer, LlamaRecord record);

/* Embedding, every layer, the last norm: the hidden states [T, D] that the head reads. */
Tensor *llama_hidden(Tape *tape, Llama *model, LlamaRecord record);

/* llama_hidden, then the scores of every row that `index` names (an int32 input, as op_gather's), fp32 [rows',
 * n_scores]; NULL: of every token. For models with a score head. */
Tensor *llama_score(Tape *tape, Llama *model, LlamaRecord record, Tensor *index);

/* llama_hidden, then the head with these options. */
HeadOutputs llama_record(Tape *tape, Llama *model, LlamaRecord record, HeadOptions head);

#endif
