"""The losses that `cria eval loss` must find on stories260K, by Hugging Face transformers and sentencepiece.

usage: python tests/golden/eval_loss.py stories260K.bin tok512.model TEXT WINDOW

Prints mean negative log-likelihoods (nats per token), tokens scored and bits per byte for the two protocols:

  all        BOS and the text in windows of WINDOW inputs, one after the other, none overlapping; every token is scored
             once, the first of a window given nothing but the last of the window before
  last-half  chunks of WINDOW tokens, the first of each replaced by BOS; scored are those after position WINDOW/2, as
             llama.cpp's perplexity does; a chunk that is not full is left out

Made with torch 2.13.0, transformers 4.57.6, sentencepiece 0.2; tests/e2e_generate.sh holds the results.
"""

import math
import struct
import sys

import numpy as np
import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def load(path):
    """llama2.c, version 0: seven int32, then fp32 arrays, layer after layer of one kind."""
    raw = open(path, "rb").read()
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("7i", raw[:28])
    data, at = np.frombuffer(raw, dtype="<f4", offset=28), 0

    def take(*shape):
        nonlocal at
        n = math.prod(shape)
        at += n
        return torch.tensor(data[at - n : at].reshape(shape).copy())

    head = dim // heads
    embedding = take(vocab, dim)
    parts = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, heads * head, dim),
        "self_attn.k_proj": take(layers, kv_heads * head, dim),
        "self_attn.v_proj": take(layers, kv_heads * head, dim),
        "self_attn.o_proj": take(layers, dim, heads * head),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    norm = take(dim)

    def halves(w, n):  # llama2.c rotates neighbours, transformers halves
        return w.view(n, head // 2, 2, dim).transpose(1, 2).reshape(n * head, dim)

    state = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding, "model.norm.weight": norm}
    for name, stacked in parts.items():
        for layer in range(layers):
            w = stacked[layer]
            if name == "self_attn.q_proj":
                w = halves(w, heads)
            if name == "self_attn.k_proj":
                w = halves(w, kv_heads)
            state[f"model.layers.{layer}.{name}.weight"] = w
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv_heads, vocab_size=vocab, max_position_embeddings=context, rms_norm_eps=1e-5,
            tie_word_embeddings=True, attn_implementation="eager",
        )
    )
    model.load_state_dict(state)
    return model.eval()


def nll(model, inputs, targets):
    with torch.no_grad():
        logits = model(torch.tensor([inputs])).logits[0].double()
    return -torch.log_softmax(logits, -1)[torch.arange(len(targets)), torch.tensor(targets)]


def main():
    model, pieces = load(sys.argv[1]), sentencepiece.SentencePieceProcessor(sys.argv[2])
    text, window = open(sys.argv[3]).read(), int(sys.argv[4])
    ids, bos = [pieces.bos_id()] + pieces.encode(text), pieces.bos_id()
    total, n = 0.0, 0
    for start in range(0, len(ids) - 1, window):
        targets = ids[start + 1 : start + window + 1]
        total += nll(model, ids[start : start + len(targets)], targets).sum().item()
        n += len(targets)
    print(f"all        loss {total / n:.9f} tokens {n} bits_per_byte {total / math.log(2) / len(text.encode()):.9f}")
    total, n = 0.0, 0
    for start in range(0, len(ids) - window + 1, window):
        chunk = [bos] + ids[start + 1 : start + window]
        total += nll(model, chunk[:-1], chunk[1:])[window // 2 :].sum().item()
        n += window - 1 - window // 2
    print(f"last-half  loss {total / n:.9f} tokens {n}")


main()
