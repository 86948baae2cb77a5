"""Adapters exchanged with PEFT, on the random Llamas of tests/golden.

python tests/peers/check_peft.py CRIA LOGITS       (from the repository's root)
  CRIA    the program; LOGITS  build/tests/peers/logits

For the adapters of tests/golden/lora_* and for new ones that PEFT makes here (a pattern as target_modules, bf16 values,
DoRA with rsLoRA, one layer's worth of dropout in its config): the logits of base and adapter
  - by PEFT and by cria (cria loads PEFT's),
  - by PEFT from what cria wrote of it (PEFT loads cria's), and from `cria export --format peft`,
  - by transformers from `cria merge`, fp32,
agree within 1e-5 of the greatest logit. One JSON line each; ends with status 1 where something differs.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

GOLDEN, BOUND = pathlib.Path("tests/golden"), 1e-5
NEW = {
    "pattern": ("tied", dict(r=5, lora_alpha=3, target_modules=r".*\.(k_proj|down_proj)", lora_dropout=0.1), None),
    "bf16": ("gqa", dict(r=4, lora_alpha=16, target_modules="all-linear"), torch.bfloat16),
    "dora_rslora": ("llama31", dict(r=3, lora_alpha=4, target_modules="all-linear", use_dora=True, use_rslora=True),
                    None),
    "gaussian": ("large_init", dict(r=1, lora_alpha=1.5, target_modules=["gate_proj"], init_lora_weights="gaussian"),
                 None),
}


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)


def load_base(directory):
    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")


@torch.no_grad()
def logits_by_peft(base, adapter, ids):
    model = PeftModel.from_pretrained(load_base(base), adapter, autocast_adapter_dtype=True).eval()
    return model(input_ids=torch.tensor([ids])).logits[0]


def make(directory, base, settings, dtype):
    torch.manual_seed(5)
    model = get_peft_model(load_base(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1)
            elif "magnitude" in name:
                p.mul_(1 + 0.1 * torch.randn_like(p))
            if p.requires_grad and dtype:
                p.data = p.data.to(dtype)
    model.save_pretrained(directory)


def check(name, base, adapter, scratch, cria, logits):
    torch.manual_seed(1)
    ids = torch.randint(0, load_base(base).config.vocab_size, (24,)).tolist()
    expected = logits_by_peft(base, adapter, ids)
    plain = load_base(base)(input_ids=torch.tensor([ids])).logits[0].detach()
    run(logits, base, scratch / "logits", "--adapter", adapter, "--save", scratch / "written", *ids)
    run(cria, "export", "--format", "peft", adapter, scratch / "exported")
    run(cria, "merge", base, adapter, scratch / "merged", "--dtype", "fp32")
    found = {"cria": load_file(scratch / "logits")["logits"],
             "PEFT from cria's": logits_by_peft(base, scratch / "written", ids),
             "PEFT from the export": logits_by_peft(base, scratch / "exported", ids),
             "merged": load_base(scratch / "merged")(input_ids=torch.tensor([ids])).logits[0].detach()}
    greatest = expected.abs().max().item()
    result = {what: (values - expected).abs().max().item() / greatest for what, values in found.items()}
    result["adapter's own part"] = (plain - expected).abs().max().item() / greatest
    print(json.dumps({"adapter": name, **{k: float(f"{v:.3g}") for k, v in result.items()}}))
    return all(result[what] <= BOUND for what in found)


def main():
    cria, logits = sys.argv[1:]
    good = True
    cases = [(d.name, None) for d in sorted(GOLDEN.glob("lora_*"))] + list(NEW.items())
    for name, new in cases:
        with tempfile.TemporaryDirectory() as scratch:
            scratch = pathlib.Path(scratch)
            if new:
                base, adapter = GOLDEN / f"llama_{new[0]}", scratch / "adapter"
                make(adapter, base, new[1], new[2])
            else:
                adapter = GOLDEN / name
                base = GOLDEN / json.loads((adapter / "expected.json").read_text())["base"]
            good = check(name, base, adapter, scratch, cria, logits) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
