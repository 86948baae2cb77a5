/* See gguf_names.h. */
#include "model/formats/gguf_names.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *gguf, *hf;
} whole[] =
    {
        {"token_embd.weight", "model.embed_tokens.weight"},
        {"output_norm.weight", "model.norm.weight"},
        {"output.weight", "lm_head.weight"},
},
  in_layer[] = {
      {"attn_norm.weight", "input_layernorm.weight"},    {"attn_q.weight", "self_attn.q_proj.weight"},
      {"attn_k.weight", "self_attn.k_proj.weight"},      {"attn_v.weight", "self_attn.v_proj.weight"},
      {"attn_output.weight", "self_attn.o_proj.weight"}, {"ffn_norm.weight", "post_attention_layernorm.weight"},
      {"ffn_gate.weight", "mlp.gate_proj.weight"},       {"ffn_up.weight", "mlp.up_proj.weight"},
      {"ffn_down.weight", "mlp.down_proj.weight"},
};
enum { N_WHOLE = sizeof whole / sizeof *whole, N_IN_LAYER = sizeof in_layer / sizeof *in_layer };

/* "blk." or "model.layers.", a number without leading zeros, a dot: *rest is what follows. */
static bool layer_name(const char *name, const char *prefix, int *layer, const char **rest) {
    char again[GGUF_NAME];
    int used = 0;
    size_t length = strlen(prefix);
    if (strncmp(name, prefix, length) != 0 || sscanf(name + length, "%7d.%n", layer, &used) != 1 || used == 0)
        return false;
    snprintf(again, sizeof again, "%d.", *layer);
    *rest = name + length + used;
    return *layer >= 0 && strlen(again) == (size_t)used && strncmp(name + length, again, (size_t)used) == 0;
}

bool gguf_name_to_hf(char out[GGUF_NAME], const char *name) {
    int layer;
    const char *rest;
    for (size_t i = 0; i < N_WHOLE; i++)
        if (strcmp(whole[i].gguf, name) == 0) return snprintf(out, GGUF_NAME, "%s", whole[i].hf) > 0;
    if (!layer_name(name, "blk.", &layer, &rest)) return false;
    for (size_t i = 0; i < N_IN_LAYER; i++)
        if (strcmp(in_layer[i].gguf, rest) == 0)
            return snprintf(out, GGUF_NAME, "model.layers.%d.%s", layer, in_layer[i].hf) > 0;
    return false;
}

bool gguf_name_from_hf(char out[GGUF_NAME], const char *name) {
    int layer;
    const char *rest;
    for (size_t i = 0; i < N_WHOLE; i++)
        if (strcmp(whole[i].hf, name) == 0) return snprintf(out, GGUF_NAME, "%s", whole[i].gguf) > 0;
    if (!layer_name(name, "model.layers.", &layer, &rest)) return false;
    for (size_t i = 0; i < N_IN_LAYER; i++)
        if (strcmp(in_layer[i].hf, rest) == 0)
            return snprintf(out, GGUF_NAME, "blk.%d.%s", layer, in_layer[i].gguf) > 0;
    return false;
}

bool gguf_is_rotary(const char *hf_name) {
    int layer;
    const char *rest;
    return layer_name(hf_name, "model.layers.", &layer, &rest) &&
           (strcmp(rest, "self_attn.q_proj.weight") == 0 || strcmp(rest, "self_attn.k_proj.weight") == 0);
}

size_t gguf_row_of_hf(size_t row, size_t head_dim) {
    size_t in_head = row % head_dim, half = head_dim / 2;
    return row - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
}

size_t gguf_row_to_hf(size_t row, size_t head_dim) {
    size_t in_head = row % head_dim;
    return row - in_head + in_head / 2 + in_head % 2 * (head_dim / 2);
}
