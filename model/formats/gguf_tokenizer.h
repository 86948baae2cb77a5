/* A tokenizer in GGUF's metadata (llama.cpp's llama-vocab.cpp):
 *
 *   tokenizer.ggml.model         "llama": SentencePiece BPE by scores; "gpt2": byte-level BPE by merges
 *   tokenizer.ggml.pre           of gpt2: which pattern splits texts before merging
 *   tokenizer.ggml.tokens, token_type, scores | merges
 *   tokenizer.ggml.bos_token_id, eos_token_id, unknown_token_id, add_bos_token, add_space_prefix, … */
#ifndef CRIA_FORMATS_GGUF_TOKENIZER_H
#define CRIA_FORMATS_GGUF_TOKENIZER_H

#include "data/tokenizer/arrays.h"
#include "model/formats/gguf_output.h"

/* Appends a tokenizer's metadata. llama.cpp wants as many tokens as the embedding has rows: further rows are called
 * [PADn], which reading leaves out again; tokens beyond the rows, which no model can use, are left out. `add_bos`:
 * texts begin with BOS, where there is one. */
int gguf_put_tokenizer(GgufOutput *out, const Tokenizer *tokenizer, int n_rows, bool add_bos);

#endif
