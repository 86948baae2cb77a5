"""Speed of a PyTorch training step (forward, backward, clip, fused AdamW) of the small published Llama shapes.

python torch_llama.py --size 260K|15M|42M|110M [--dtype fp32|bf16|purebf16] [--compile] [--hf] [--steps N] [--threads N]
                      [--batch N] [--context N] [--serve]
bf16 is autocast over fp32 weights, purebf16 has weights, gradients and moments in bf16. One JSON line: tokens per second
(median and best of the steps after the warm-up), parameters, peak memory. With --serve steps are run on request
(llama_module.serve).
"""

import argparse
import json
import statistics

import torch

from llama_module import Llama, adamw, peak_memory_bytes, run_steps, serve, set_learning_rate

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


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="15M")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "purebf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--hf", action="store_true", help="transformers' LlamaForCausalLM instead of the plain module")
    parser.add_argument("--serve", action="store_true", help="steps on request")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=0, help="sequences of a step; default: by size")
    parser.add_argument("--context", type=int, default=0, help="tokens of a sequence; default: by size")
    return parser.parse_args()


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    *shape, context, batch = SIZES[options.size]
    batch, context = options.batch or batch, options.context or context
    if options.hf:
        model, forward = transformers_model(*shape, context)
    else:
        model = forward = Llama(*shape, context)
    if options.dtype == "purebf16":
        model.to(torch.bfloat16)
    if options.compile:
        forward = torch.compile(forward)
    optimizer = adamw(model, 0.1, (0.9, 0.95))
    set_learning_rate(optimizer, 3e-4)
    tokens = torch.randint(0, shape[-1], (batch, context + 1))
    losses = [0.0]

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.dtype == "bf16"):
            loss = forward(tokens[:, :-1], tokens[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses[0] = loss.item()

    warmup = run_steps(step, options.warmup, 0)
    parameters = sum(p.numel() for p in model.parameters())
    if options.serve:
        serve(step, batch * context, trained_parameters=parameters, frozen_parameters=0)
        return
    measured = run_steps(step, options.steps, 0)
    print(json.dumps(dict(
        size=options.size, model="transformers" if options.hf else "plain", dtype=options.dtype,
        compiled=options.compile, threads=options.threads, torch=torch.__version__, sequences=batch, context=context,
        parameters=parameters, tokens_per_second_median=round(batch * context / statistics.median(measured)),
        tokens_per_second_best=round(batch * context / min(measured)), peak_memory_bytes=peak_memory_bytes(),
        first_step_seconds=round(warmup[0], 3), loss=round(losses[0], 4))))


if __name__ == "__main__":
    main()
