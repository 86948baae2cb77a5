/* What the reader and the writer of GGUF agree on: names, the order of rows, rotary factors. */
#ifndef CRIA_FORMATS_GGUF_NAMES_H
#define CRIA_FORMATS_GGUF_NAMES_H

#include <stdbool.h>
#include <stddef.h>

#include "model/formats/hf_config.h"

enum { GGUF_NAME = 128 };
#define GGUF_ROPE_FREQS "rope_freqs.weight"

/* Between "blk.3.attn_q.weight" and "model.layers.3.self_attn.q_proj.weight". False where the name is not known. */
bool gguf_name_to_hf(char out[GGUF_NAME], const char *name);
bool gguf_name_from_hf(char out[GGUF_NAME], const char *name);
/* Of q_proj and k_proj, under Hugging Face's name: the rows are in another order. */
bool gguf_is_rotary(const char *hf_name);
/* Where GGUF has transformers' row of such a matrix, and back. */
size_t gguf_row_of_hf(size_t row, size_t head_dim);
size_t gguf_row_to_hf(size_t row, size_t head_dim);

/* By what each of the head_dim/2 rotary frequencies is divided. */
void gguf_rope_factors(const HfConfig *config, float *factors);
/* Finds a scaling that gives these factors and sets config->rope_scaling, whose context may then be another multiple of
 * the same thing: only the ratios count. Refuses factors that no scaling of Llama 3.1's kind gives. */
int gguf_rope_recover(HfConfig *config, const float *factors, size_t n);

#endif
