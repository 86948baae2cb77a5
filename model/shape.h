/* The shape of a Llama: what decides its parameters and its mathematics. */
#ifndef CRIA_MODEL_SHAPE_H
#define CRIA_MODEL_SHAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/kernels/kernels.h"

typedef struct {
    int dim, n_layers, n_heads, n_kv_heads, head_dim, ffn_dim, vocab_size;
    int max_context; /* positions the model is meant for */
    float norm_eps, rope_theta;
    RotaryScaling rope_scaling; /* factor 0: none */
    bool tied;                  /* the head is the embedding */
    int n_scores; /* above 0: the head gives so many numbers, rewards or a value, and no distribution over tokens; then
                     it is never tied */
} LlamaShape;

/* A published shape by name, e.g. "llama2-7b", "llama3.2-1b", "15m" (shape.c lists them with their sources); ERR_USAGE
 * with the nearest name for an unknown one. */
int llama_preset(LlamaShape *shape, const char *name);
size_t llama_preset_count(void);
const char *llama_preset_name(size_t index);

/* Refuses what cannot be a Llama: naming the number, what it must be. head_dim 0 means dim / n_heads, n_kv_heads 0
 * means n_heads, ffn_dim 0 means Llama 1's 2/3·4·dim rounded up to a multiple of 256 (of 32 below a width of 1,024);
 * they are filled in. */
int llama_shape_check(LlamaShape *shape);

uint64_t llama_parameters(const LlamaShape *shape); /* trained numbers; a tied head counts once */

#endif
