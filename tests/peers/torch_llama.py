"""Speed of a PyTorch training step (forward, backward, clip, fused AdamW) of the small published Llama shapes, fp32.

python torch_llama.py --size 260K|15M|42M|110M [--compile] [--hf] [--steps N] [--threads N] [--batch N]
One JSON line: tokens per second (median and best of the steps after the warm-up), parameters, peak memory.
"""

import argparse
import json
import statistics
import time

import torch

from llama_module import Llama, adamw, peak_memory_bytes, set_learning_rate

# llama2.c's table (README, "models"): dim, layers, heads, kv_heads, ffn, vocab; tokens of a sequence, sequences
SIZES = {"260K": (64, 5, 8, 4, 172, 512, 256, 16), "15M": (288, 6, 6, 6, 768, 32000, 256, 8),
         "42M": (512, 8, 8, 8, 1376, 32000, 512, 4), "110M": (768, 12, 12, 12, 2048, 32000, 512, 4)}


def transformers_model(dim, layers, heads, kv_heads, ffn, vocab, context):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=ffn, vocab_size=vocab, max_position_embeddings=context, tie_word_embeddings=True,
        rms_norm_eps=1e-5, attn_implementation="sdpa", use_cache=False))
    return model, lambda tokens, targets: model(input_ids=tokens, labels=targets).loss


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="15M")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--hf", action="store_true", help="transformers' LlamaForCausalLM instead of the plain module")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=0, help="sequences of a step; default: by size")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    *shape, context, batch = SIZES[options.size]
    batch = options.batch or batch
    if options.hf:
        model, forward = transformers_model(*shape, context)
    else:
        model = forward = Llama(*shape, context)
    if options.compile:
        forward = torch.compile(forward)
    optimizer = adamw(model, 0.1, (0.9, 0.95))
    set_learning_rate(optimizer, 3e-4)
    tokens = torch.randint(0, shape[-1], (batch, context + 1))
    seconds = []
    for _ in range(options.warmup + options.steps):
        start = time.perf_counter()
        loss = forward(tokens[:, :-1], tokens[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    measured = seconds[options.warmup:]
    print(json.dumps(dict(
        size=options.size, model="transformers" if options.hf else "plain", compiled=options.compile,
        threads=options.threads, torch=torch.__version__, sequences=batch, context=context,
        parameters=sum(p.numel() for p in model.parameters()),
        tokens_per_second_median=round(batch * context / statistics.median(measured)),
        tokens_per_second_best=round(batch * context / min(measured)),
        peak_memory_bytes=peak_memory_bytes(), first_step_seconds=round(seconds[0], 3), loss=round(loss.item(), 4))))


if __name__ == "__main__":
    main()
