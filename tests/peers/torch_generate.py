"""Sampling by transformers' generate on llama2.c's shapes with random weights, in bf16: the work of
`cria bench --sampling B`. A step continues B sequences of 16 random tokens by 128 each, at temperature 1.

python torch_generate.py --size 15M|42M|110M --batch B [--dtype bf16|fp32] [--steps N] [--threads N] [--serve]
"""

import argparse
import json
import statistics

import torch

from llama_module import peak_memory_bytes, run_steps, serve

SHAPES = {"260K": (64, 5, 8, 4, 172, 512), "15M": (288, 6, 6, 6, 768, 32000), "42M": (512, 8, 8, 8, 1376, 32000),
          "110M": (768, 12, 12, 12, 2048, 32000)}  # dim, layers, heads, key/value heads, hidden width, vocabulary
PROMPT, NEW = 16, 128


def make_model(size, dtype):
    from transformers import LlamaConfig, LlamaForCausalLM

    dim, layers, heads, kv_heads, hidden, vocabulary = SHAPES[size]
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=hidden, vocab_size=vocabulary, max_position_embeddings=1024, tie_word_embeddings=True,
        attn_implementation="sdpa", bos_token_id=1, eos_token_id=None, pad_token_id=0))
    return model.to(dtype).eval()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SHAPES, default="15M")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--serve", action="store_true", help="steps on request")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = make_model(options.size, torch.bfloat16 if options.dtype == "bf16" else torch.float32)
    prompts = torch.randint(3, SHAPES[options.size][-1], (options.batch, PROMPT))
    mask = torch.ones_like(prompts)

    def step():
        with torch.inference_mode():
            out = model.generate(input_ids=prompts, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                                 max_new_tokens=NEW, min_new_tokens=NEW)
        assert out.shape[1] == PROMPT + NEW

    run_steps(step, 1, 0)
    parameters = sum(p.numel() for p in model.parameters())
    if options.serve:
        serve(step, options.batch * NEW, trained_parameters=0, frozen_parameters=parameters)
        return
    measured = run_steps(step, options.steps, 0)
    print(json.dumps(dict(size=options.size, batch=options.batch, dtype=options.dtype, threads=options.threads,
                          torch=torch.__version__, parameters=parameters,
                          tokens_per_second=round(options.batch * NEW / statistics.median(measured), 1),
                          peak_memory_bytes=peak_memory_bytes())))


if __name__ == "__main__":
    main()
