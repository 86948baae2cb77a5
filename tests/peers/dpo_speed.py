"""Tokens per second of a DPO step: `cria dpo` beside TRL's DPOTrainer, on the same random Llama and the same pairs.

The two take turns (a machine's speed drifts): a turn is STEPS steps of each, its first step not counted; the ratio is
taken within each round, and the median of the ratios counts. Both compute the reference's log-probabilities before the
first step; TRL also without (--no-precompute), which is its default and costs it a forward pass more. TRL runs in fp32,
in autocast to bf16 (--bf16) or with a bf16 model (--pure-bf16); cria in the precision named.

1b is LoRA of rank 16 on the shape of Llama 3.2 1B, in bf16 in both, with the base under the adapters as the reference.

usage: python tests/peers/dpo_speed.py [--size 15m|110m|1b] [--pairs 8] [--length 256] [--rounds 3] [--steps 4]
                                       [--precision fp32|bf16] [--bf16 | --pure-bf16] [--no-precompute] [--cria build/cria]
Nothing else should be running. Needs trl, torch, transformers, datasets (README.md in this folder), and peft for 1b.
"""

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import tempfile
import time

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE.parent / "golden"
SHAPES = {  # as cria's presets of these names
    "15m": dict(hidden_size=288, num_hidden_layers=6, num_attention_heads=6, intermediate_size=768),
    "110m": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=2048),
    "1b": dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
               intermediate_size=8192, vocab_size=128256, rope_theta=500000.0),
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_model(args):
    torch.manual_seed(1)
    shape = dict(vocab_size=32000, max_position_embeddings=1024, tie_word_embeddings=True, use_cache=False,
                 bos_token_id=440, eos_token_id=441) | SHAPES[args.size]
    torch.set_default_dtype(torch.bfloat16 if args.pure_bf16 else torch.float32)
    model = LlamaForCausalLM(LlamaConfig(**shape))
    torch.set_default_dtype(torch.float32)
    return model


def make_records(tokenizer, n, length):
    """Pairs whose answers, with their prompt, have about `length` tokens each."""
    random.seed(2)
    words = "the llama walks over green hills and eats soft grass while small birds sing near old stone walls".split()

    def text(tokens):
        out = []
        while len(tokenizer(" ".join(out))["input_ids"]) < tokens:
            out.append(random.choice(words))
        return " ".join(out)

    prompt = length // 4
    around = 30  # the template's own tokens
    return [dict(prompt=[dict(role="user", content=text(prompt))],
                 chosen=[dict(role="assistant", content=text(length - prompt - around))],
                 rejected=[dict(role="assistant", content=text(length - prompt - around))]) for _ in range(n)]


class Clock(TrainerCallback):
    def __init__(self):
        self.times = []

    def on_step_begin(self, *args, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.times.append(time.perf_counter() - self.start)


def trl_turn(args, tokenizer, records, folder):
    """Seconds of each step."""
    clock = Clock()
    model = make_model(args)
    config = DPOConfig(output_dir=str(folder / "trl"), max_steps=args.steps, per_device_train_batch_size=args.pairs,
                       learning_rate=1e-6, lr_scheduler_type="constant", max_length=args.length * 2, report_to=[],
                       save_strategy="no", use_cpu=True, bf16=args.bf16, gradient_checkpointing=False, seed=1,
                       precompute_ref_log_probs=not args.no_precompute, disable_tqdm=True, logging_strategy="no",
                       dataloader_pin_memory=False)
    how = dict(ref_model=None if args.lora else make_model(args))
    if args.lora:
        from peft import LoraConfig
        how["peft_config"] = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS)
    trainer = DPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(records),
                         processing_class=tokenizer, callbacks=[clock], **how)
    trainer.train()
    return clock.times[1:]


def cria_turn(args, folder, turn):
    output = folder / f"run{turn}"
    subprocess.run(
        [args.cria, "dpo", f"output={output}", f"model.base={folder / 'base'}", f"precision={args.precision}",
         f"tokenizer.path={GOLDEN / 'tokenizer_chat.json'}", "template.name=llama3",
         f"data.train={folder / 'records.jsonl'}", "data.validation=0", f"preferences.per_batch={args.pairs}",
         f"train.context={args.length * 2}", f"train.tokens_per_microbatch={max(4, 2 * args.pairs) * args.length}",
         f"train.steps={args.steps}", "optim.lr=1e-6", "optim.schedule=constant", "train.checkpoint_minutes=0",
         *(["lora.rank=16", "lora.alpha=32"] if args.lora else [])],
        check=True, stderr=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rates = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row][1:]
    return rates, rows[0]["num_tokens"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SHAPES, default="15m")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--pure-bf16", action="store_true")
    parser.add_argument("--no-precompute", action="store_true")
    parser.add_argument("--cria", default="build/cria")
    args = parser.parse_args()
    args.lora = args.size == "1b"
    args.pure_bf16 |= args.lora
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(GOLDEN / "tokenizer_chat.json"), eos_token="<|eot_id|>",
                                        bos_token="<|begin_of_text|>", pad_token="<|end_of_text|>")
    tokenizer.chat_template = (GOLDEN / "sft_trl" / "chat_template.jinja").read_text()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        records = make_records(tokenizer, args.pairs, args.length)
        (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        make_model(args).save_pretrained(folder / "base")
        ratios = []
        for turn in range(args.rounds):
            rates, tokens = cria_turn(args, folder, turn)
            mine, theirs = statistics.median(rates), tokens / statistics.median(trl_turn(args, tokenizer, records, folder))
            ratios.append(mine / theirs)
            print(f"round {turn + 1}: {tokens} tokens a step; cria {mine:,.0f} tokens/s, TRL {theirs:,.0f}; "
                  f"{ratios[-1]:.2f}x", flush=True)
        print(f"median {statistics.median(ratios):.2f}x")


if __name__ == "__main__":
    main()
