/* llama2.c's model.bin, the legacy version 0 that its run.c reads (github.com/karpathy/llama2.c, export.py
 * legacy_export and run.c memory_map_weights):
 *
 *   7 × int32   dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (negative: a classifier of its own), seq_len
 *   fp32        token_embedding [vocab, dim]
 *               per kind, all layers: rms_att [L, dim], wq [L, dim, dim], wk, wv [L, kv_dim, dim], wo [L, dim, dim],
 *               rms_ffn [L, dim], w1 [L, hidden, dim], w2 [L, dim, hidden], w3 [L, hidden, dim]
 *               rms_final [dim], freq_cis_real and _imag [seq_len, head_dim/2] each (unused), classifier [vocab, dim]
 *
 * There is no magic number, so the file's size must be exactly what the header asks for. */
#ifndef CRIA_FORMATS_LLAMA2C_H
#define CRIA_FORMATS_LLAMA2C_H

#include "model/formats/hf_config.h"
#include "model/formats/named.h"

/* Opens the file under Hugging Face's names. llama2.c rotates neighbouring pairs of a head's channels, transformers its
 * two halves: rows of q_proj and k_proj are given in transformers' order, computed while reading (their data is NULL).
 * `config`, unless NULL, is filled from the header. */
int llama2c_open(NamedFile **file, HfConfig *config, const char *path);

#endif
