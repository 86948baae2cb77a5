"""Golden values of adapters trained by TRL's SFTTrainer: the base, the conversations and the recipe of sft_trl.py.

Each kind becomes a directory sft_trl/KIND/ (lora, rslora, dora) beside this file:

  adapter_config.json, adapter_model.safetensors   the adapter that training begins from, as PEFT writes it; its B is
                                                   not zero, so that every parameter has a gradient
  expected.json                                    loss and gradient norm of every step, what made them
  expected.safetensors                             grad.NAME: the first step's gradients, clipped; theta.NAME: the
                                                   parameters after the last step; PEFT's names

Made with TRL 1.16, PEFT 0.21.2, torch 2.13.0 and transformers 5.24.0. Run: python tests/golden/sft_lora_trl.py, after
sft_trl.py.
"""

import json
import shutil

import peft
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, TrainerCallback
from trl import SFTConfig

from sft_trl import OUT, RECORDS, Recorder
from trl_recipe import STEPS, arguments, llama3_tokenizer

KINDS = {
    "lora": dict(r=4, lora_alpha=8),
    "rslora": dict(r=3, lora_alpha=5, use_rslora=True),
    "dora": dict(r=4, lora_alpha=6, use_dora=True, target_modules=["q_proj", "v_proj", "o_proj", "up_proj"]),
}


def name_in_files(name):
    name = name.replace(".default", "")
    return name.removesuffix(".weight") if "magnitude_vector" in name else name


def trained(model):
    return {name_in_files(n): p for n, p in model.named_parameters() if p.requires_grad}


class FirstGradients(TrainerCallback):
    """Kept before the first update, after clipping."""

    def __init__(self):
        self.gradients = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.gradients is None:
            self.gradients = {n: p.grad.detach().clone() for n, p in trained(model).items()}


def make(kind, tokenizer):
    directory = OUT / kind
    shutil.rmtree(directory, ignore_errors=True)
    torch.manual_seed(29)
    base = LlamaForCausalLM.from_pretrained(OUT, dtype=torch.float32, attn_implementation="eager")
    base.config.use_cache = False
    settings = dict(target_modules="all-linear") | KINDS[kind]
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for n, p in trained(model).items():
            if "lora_B" in n:
                p.normal_(0, 0.1)
    model.peft_config["default"].base_model_name_or_path = "tests/golden/sft_trl"
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    start = load_file(directory / "adapter_model.safetensors")
    assert start.keys() == trained(model).keys()
    args = arguments(SFTConfig, "sft_trl", 4, gradient_accumulation_steps=2, completion_only_loss=True, packing=False)
    Recorder.losses, first = [], FirstGradients()
    trainer = Recorder(model=model, args=args, train_dataset=Dataset.from_list(RECORDS), processing_class=tokenizer,
                       callbacks=[first])
    trainer.train()
    losses = [sum(Recorder.losses[i:i + 2]) for i in range(0, 2 * STEPS, 2)]
    logs = [row for row in trainer.state.log_history if "grad_norm" in row]
    values = {f"grad.{n}": g for n, g in first.gradients.items()}
    values |= {f"theta.{n}": p.detach() for n, p in trained(model).items()}
    save_file({n: v.contiguous() for n, v in values.items()}, directory / "expected.safetensors")
    (directory / "expected.json").write_text(json.dumps(dict(
        versions=dict(trl=trl.__version__, peft=peft.__version__, torch=torch.__version__,
                      transformers=transformers.__version__),
        losses=losses, grad_norms=[row["grad_norm"] for row in logs]), indent=1) + "\n")


def main():
    tokenizer = llama3_tokenizer()
    for kind in KINDS:
        make(kind, tokenizer)


if __name__ == "__main__":
    main()
