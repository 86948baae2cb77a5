/* LoRA (Hu et al. 2022): low-rank additions to a Llama's matrices. Names are PEFT's, so that files need no translation:
 * "base_model.model." + the matrix's name with ".lora_A.weight" [rank, in], ".lora_B.weight" [out, rank] and with DoRA
 * ".lora_magnitude_vector" [out]. The embedding's has the layout of its transpose: ".lora_embedding_A" [rank, tokens],
 * ".lora_embedding_B" [dim, rank] and magnitudes [dim]; no dropout applies to it. Of a tied base, embedding and head
 * have adapters of their own, and what they make of it is two matrices. */
#ifndef CRIA_MODEL_LORA_H
#define CRIA_MODEL_LORA_H

#include "model/llama.h"

typedef enum {
    LORA_Q,
    LORA_K,
    LORA_V,
    LORA_O,
    LORA_GATE,
    LORA_UP,
    LORA_DOWN,
    LORA_LM_HEAD,
    LORA_EMBED_TOKENS,
    LORA_TARGETS
} LoraTarget;
/* "q_proj", …, "lm_head", "embed_tokens" */
const char *lora_target_name(LoraTarget target);

typedef struct {
    int rank;
    double alpha;
    bool rank_stabilised; /* scale alpha/sqrt(rank) instead of alpha/rank (Kalajdzievski 2023) */
    unsigned targets;     /* bits 1 << LoraTarget */
    bool magnitudes;      /* DoRA (Liu et al. 2024): every adapted row has a trained length */
    double dropout;       /* of what the addition reads, in training tapes; PEFT's lora_dropout */
    uint64_t seed;        /* of the dropout */
    double plus_ratio;    /* LoRA+ (Hayou et al. 2024): learning rate of B and magnitudes over that of A; 0 means 1. An
                             embedding's B is not zero at first, and keeps A's rate */
} LoraOptions;
static const unsigned LORA_ALL = (1u << LORA_LM_HEAD) - 1; /* PEFT's all-linear: the layers' */
static const unsigned LORA_VOCABULARY = 1u << LORA_LM_HEAD | 1u << LORA_EMBED_TOKENS;

typedef struct {
    LoraOptions options;
    Llama *model;
    Weight **weights; /* every A and B, in canonical order: the embedding's, the layers', and in each those of qkv, o,
                         gate|up, down, the head's; its A, then its Bs, then their magnitudes */
    int n_weights;
    Adapter *adapters; /* of every matrix that may have one, in that order */
    float *values, *grads;
    bf16 *packings;
    size_t value_bytes, grad_bytes, packing_bytes;
    Arena arena;
} Lora;

/* Attaches adapters to the model's weights; tapes recorded from then on use them. All zero: nothing is added. `how`: as
 * llama_new's (training, precision, names_only). The model is neither owned nor otherwise changed. */
int lora_new(Lora **lora, Llama *model, LoraOptions options, LlamaOptions how);
/* Takes the adapters off the model, or puts them back. A tape is replayed as it was recorded: with them or without. */
void lora_attach(Lora *lora, bool on);
size_t lora_bytes(const Lora *lora); /* values, gradients and packings */
/* Detaches them. */
void lora_free(Lora *lora);

/* A ~ U(-1/sqrt(in), 1/sqrt(in)) as PEFT draws it, B = 0; the embedding's A = 0, B ~ N(0, 1); magnitudes the lengths of
 * the model's rows (which must be loaded): the model computes what it did. Element e of the parameter named N is a
 * function of (seed, N, e) alone. */
int lora_init(Lora *lora, uint64_t seed);
/* Whether one of lora->weights is the A of a linear layer: LoRA+ gives the others a higher learning rate. */
bool lora_is_a(const Weight *weight);
/* The learning rate of one of lora->weights over the schedule's (OptimParameter's rate). */
double lora_rate(const Lora *lora, const Weight *weight);
/* After the values were changed by anyone but the optimizer. */
void lora_pack(Lora *lora);

/* The adapters as named fp32 arrays, as llama_arrays (`storage`: one array for each of lora->weights). */
int lora_arrays(const Lora *lora, WeightStorage storage, Arena *arena, NamedArray **arrays, size_t *n);
int lora_load(Lora *lora, const NamedFile *file);

/* Whether the matrix of that name has an adapter. */
bool lora_adapts(const Lora *lora, const char *name);
/* Whether it adapts embedding or head, so that a tied base is tied no longer. */
static inline bool lora_unties(const LoraOptions *options) {
    return (options->targets & LORA_VOCABULARY) != 0;
}
/* Before lora_merge of an embedding with magnitudes: `read` puts n of the base's rows from `first` on into [n, dim]. */
int lora_measure_embedding(const Lora *lora, int (*read)(void *context, int first, int n, float *rows), void *context);
/* Folds the adapter into rows [first, first + n) of the matrix of that name, [n, in]: rows + scale·B·A, with magnitudes
 * brought to their lengths. False where that matrix has no adapter. */
bool lora_merge(const Lora *lora, const char *name, int first, int n, float *rows);

#endif
