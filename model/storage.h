/* What llama.h's and lora.h's storage share. */
#ifndef CRIA_MODEL_STORAGE_H
#define CRIA_MODEL_STORAGE_H

#include "model/autodiff/weight.h"
#include "model/core/arena.h"
#include "model/formats/named.h"

/* Bytes of each kind of storage; every array starts on a cache line. */
static inline size_t weight_value_bytes(const Weight *weight) {
    return arena_round_up(weight_elements(weight) * sizeof(float));
}
static inline size_t weight_forward_bytes(const Weight *weight) {
    return arena_round_up(panels_elements(weight->rows, weight->cols) * sizeof(bf16));
}
static inline size_t weight_backward_bytes(const Weight *weight) {
    return arena_round_up(panels_elements(weight->cols, weight->rows) * sizeof(bf16));
}

/* Values of one dtype in one piece, as products read them. */
RowMajor weight_row_major(const Weight *weight, const void *rows, Dtype dtype);
/* Writes the packings a weight has from its values. */
void weight_pack(const Weight *weight);
/* *pages = zeroed pages; NULL, and no error, where none are wanted. */
int weight_pages(void *pages, size_t bytes, const char *what);

/* Parameters of some weights as named arrays: see llama_arrays. Tied ones are left out. */
int weights_arrays(Weight *const *weights, int n_weights, WeightStorage storage, Arena *arena, NamedArray **arrays,
                   size_t *n);
/* Reads arrays so named into such storage, whatever dtype the file has, and checks their shapes. */
int weights_load(Weight *const *weights, int n_weights, WeightStorage storage, const NamedFile *file);

#endif
