/* cria export --format gguf: one file for llama.cpp, Ollama and LM Studio, and a Modelfile beside it. */
#ifndef CRIA_TRAIN_EXPORT_GGUF_H
#define CRIA_TRAIN_EXPORT_GGUF_H

#include "train/files/model_copy.h"

/* Writes MODEL into the new file TO. `dtype`: f32, f16, bf16, q8_0, q4_0 (fp32 and fp16 are understood), or NULL: as it
 * is stored. `options`: how MODEL is opened; its dtype is not used. */
int export_gguf(const char *model, const char *to, const char *dtype, ModelCopyOptions options);

#endif
