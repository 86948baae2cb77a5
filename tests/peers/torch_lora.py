"""Speed of LoRA by transformers + PEFT on the shape of Llama 3.2 1B with random weights, all in bf16: the work that
`cria bench --frozen` measures the ground of (forward and backward through frozen matrices).

python torch_lora.py [--layers N] [--context N] [--batch N] [--steps N] [--threads N] [--serve]
"""

import argparse
import json
import statistics

import torch

from llama_module import peak_memory_bytes, run_steps, serve


def make_model(layers):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=2048, num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        intermediate_size=8192, vocab_size=128256, max_position_embeddings=2048, tie_word_embeddings=True,
        rms_norm_eps=1e-5, attn_implementation="sdpa", use_cache=False, rope_theta=500000.0))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets))
    model.enable_input_require_grads()
    return model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1, help="sequences of a step")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--serve", action="store_true", help="steps on request")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = make_model(options.layers)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    tokens = torch.randint(0, 128256, (options.batch, options.context))

    def step():
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    run_steps(step, 1, 0)
    n_trained = sum(p.numel() for p in trained)
    frozen = sum(p.numel() for p in model.parameters()) - n_trained
    if options.serve:
        serve(step, options.batch * options.context, trained_parameters=n_trained, frozen_parameters=frozen)
        return
    measured = run_steps(step, options.steps, 0)
    print(json.dumps(dict(
        layers=options.layers, threads=options.threads, torch=torch.__version__,
        tokens_per_second_median=round(options.batch * options.context / statistics.median(measured), 1),
        trained_parameters=n_trained, frozen_parameters=frozen, peak_memory_bytes=peak_memory_bytes())))


if __name__ == "__main__":
    main()
