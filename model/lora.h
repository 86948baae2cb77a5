/* LoRA (Hu et al. 2022): low-rank additions to the matrices of a Llama's layers. Names are PEFT's, so that files need
 * no translation: "base_model.model." + the matrix's name with ".lora_A.weight" [rank, in] and ".lora_B.weight" [out,
 * rank]. */
#ifndef CRIA_MODEL_LORA_H
#define CRIA_MODEL_LORA_H

#include "model/llama.h"

typedef enum { LORA_Q, LORA_K, LORA_V, LORA_O, LORA_GATE, LORA_UP, LORA_DOWN, LORA_TARGETS } LoraTarget;
/* "q_proj", … */
const char *lora_target_name(LoraTarget target);

typedef struct {
    int rank;
    double alpha;
    bool rank_stabilised; /* scale alpha/sqrt(rank) instead of alpha/rank (Kalajdzievski 2023) */
    unsigned targets;     /* bits 1 << LoraTarget */
} LoraOptions;
static const unsigned LORA_ALL = (1u << LORA_TARGETS) - 1;

typedef struct {
    LoraOptions options;
    Llama *model;
    Weight **weights; /* every A and B, in canonical order: the layers', and in each those of qkv, o, gate|up, down, its
                         A before its Bs */
    int n_weights;
    Adapter *adapters;
    float *values, *grads;
    bf16 *packings;
    size_t value_bytes, grad_bytes, packing_bytes;
    Arena arena;
} Lora;

/* Attaches adapters to the model's weights; tapes recorded from then on use them. All zero: nothing is added. `how`: as
 * llama_new's (training, precision, names_only). The model is neither owned nor otherwise changed. */
int lora_new(Lora **lora, Llama *model, LoraOptions options, LlamaOptions how);
/* Detaches them. */
void lora_free(Lora *lora);

/* A ~ U(-1/sqrt(in), 1/sqrt(in)) as PEFT draws it, B = 0: the model computes what it did. Element e of the parameter
 * named N is a function of (seed, N, e) alone. */
void lora_init(Lora *lora, uint64_t seed);
/* Whether one of lora->weights is an A: LoRA+ gives the others a higher learning rate. */
bool lora_is_a(const Weight *weight);
/* After the values were changed by anyone but the optimizer. */
void lora_pack(Lora *lora);

/* The adapters as named fp32 arrays, as llama_arrays (`storage`: one array for each of lora->weights). */
int lora_arrays(const Lora *lora, float *const *storage, const char *prefix, Arena *arena, NamedArray **arrays,
                size_t *n);
int lora_load(Lora *lora, const NamedFile *file);
int lora_load_storage(const Lora *lora, float *const *storage, const char *prefix, const NamedFile *file);

/* rows [first, first + n) of the view's scale·B·A, [n, in], to be added to the matrix of that name; false where that
 * matrix has no adapter. */
bool lora_delta(const Lora *lora, const char *name, int first, int n, float *out);

#endif
