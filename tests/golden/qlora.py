"""Golden values of QLoRA: a base quantised by bitsandbytes to NF4 with double quantisation, adapters run and trained on
it by PEFT, all on a CPU. In tests/golden/qlora/, beside the base (config.json, model.safetensors in bf16):

  adapter/               the adapter, as PEFT's save_pretrained writes it (apart: transformers would load it with the base)
  expected.safetensors   batchK.*, loss, loss_fp64, grad.NAME, losses, losses_fp64, grad_norms, learning_rates,
                         theta.NAME as in lora.py; and weight.NAME [rows, cols] fp32 as bitsandbytes dequantises it, of
                         layer 0's o_proj and down_proj
  expected.json          hyperparameters, versions, how exact the values are

Everything but the quantised matrices is fp32: bnb_4bit_compute_dtype float32. Checked before anything is written, as in
lora.py: the run agrees with the fp64 Llama of llama.py on the dequantised matrices. The first seed that is well
conditioned is taken. Widths are multiples of 64, as bitsandbytes' AVX-512 path wants them.

Made with torch 2.13.0, transformers 5.24.0, peft 0.21.2, bitsandbytes 0.50.2. Run: python tests/golden/qlora.py
"""

import json

import bitsandbytes
import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, LlamaForCausalLM

import lora
from llama import BATCHES, HERE, STEPS, make_batch, make_model, relative
from lora import ExactLora, adapters_of, change, gradients_of, train

HYPER = dict(lora.HYPER, peak=5e-3, clip=1.5, plus_ratio=1)
CONFIG = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
              vocab_size=61)
LENGTHS = [(23, 14), (9, 31), (17, 17)]
DIRECTORY = HERE / "qlora"
ADAPTER = DIRECTORY / "adapter"


def quantised_base():
    quantisation = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=torch.float32)
    return LlamaForCausalLM.from_pretrained(DIRECTORY, dtype=torch.float32, attn_implementation="eager",
                                            device_map="cpu", quantization_config=quantisation)


def dequantised_base(quantised):
    model = LlamaForCausalLM.from_pretrained(DIRECTORY, dtype=torch.float32, attn_implementation="eager")
    n = 0
    with torch.no_grad():
        for name, module in quantised.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                assert module.weight.quant_state.nested and module.weight.quant_state.blocksize == 64
                value = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                model.get_submodule(name).weight.copy_(value)
                n += 1
    assert n == 7 * CONFIG["num_hidden_layers"]
    return model


class Exact(ExactLora):
    """transformers 5 keeps the rotary base in another place."""

    def frequencies(self):
        n = self.config.head_dim
        return self.config.rope_parameters["rope_theta"] ** -(torch.arange(0, n, 2, dtype=torch.float64) / n)


def make(seed):
    model = make_model(CONFIG, 0.08, seed).bfloat16()
    model.save_pretrained(DIRECTORY)
    (DIRECTORY / "generation_config.json").unlink(missing_ok=True)
    generator = torch.Generator().manual_seed(1000 + seed)
    batches = [make_batch(lengths, CONFIG["vocab_size"], generator) for lengths in LENGTHS]
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules="all-linear")
    base = quantised_base()
    exact_base = dequantised_base(base)
    model = get_peft_model(base, config).train()  # bitsandbytes repacks for bf16 kernels when it is evaluated
    with torch.no_grad():
        for name, p in adapters_of(model).items():
            p.data = p.data.float()
            if "lora_B" in name:
                p.normal_(0.0, 0.1)
    model.peft_config["default"].base_model_name_or_path = "tests/golden/qlora"
    model.save_pretrained(ADAPTER)
    (ADAPTER / "README.md").unlink(missing_ok=True)
    before = {n: p.detach().clone() for n, p in adapters_of(model).items()}

    report = {}
    exact = Exact(exact_base, load_file(ADAPTER / "adapter_model.safetensors"), config)
    loss, grads = gradients_of(model, batches[0], False)
    loss64, grads64 = gradients_of(exact, batches[0], False)
    report["loss_against_fp64"] = abs(loss - loss64)
    report["gradient_against_fp64"], report["gradient_worst"] = relative(grads, grads64)
    values = {"loss": torch.tensor([loss]).double(), "loss_fp64": torch.tensor([loss64]).double()}
    values.update({f"grad.{n}": g for n, g in grads.items()})
    losses, grad_norms, rates = train(model, batches, False, HYPER, 1)
    losses64, _, _ = train(exact, batches, False, HYPER, 1)
    report["change_against_fp64"], report["change_worst"] = relative(change(model, before), change(exact, before))
    report["losses_against_fp64"] = max(abs(a - b) for a, b in zip(losses, losses64))
    report["clipped_steps"] = sum(norm > HYPER["clip"] for norm in grad_norms)
    report["grad_norms"] = [round(norm, 4) for norm in sorted(grad_norms)]
    if (report["gradient_against_fp64"] > lora.GRADIENT_BOUND or report["change_against_fp64"] > lora.CHANGE_BOUND
            or report["losses_against_fp64"] > lora.LOSS_BOUND or report["loss_against_fp64"] > lora.LOSS_BOUND):
        return f"{report}"
    assert STEPS // 5 <= report["clipped_steps"] <= 4 * STEPS // 5, report
    values.update({f"theta.{n}": p.detach() for n, p in adapters_of(model).items()})
    for key, list_ in (("losses", losses), ("losses_fp64", losses64), ("grad_norms", grad_norms),
                       ("learning_rates", rates)):
        values[key] = torch.tensor(list_, dtype=torch.float64)
    for k in range(BATCHES):
        for key, value in batches[k].items():
            values[f"batch{k}.{key}"] = value if value.is_floating_point() else value.to(torch.int32)
    for at in ("self_attn.o_proj", "mlp.down_proj"):
        name = f"model.layers.0.{at}"
        values[f"weight.{name}.weight"] = exact_base.get_submodule(name).weight.detach()
    made_by = (f"tests/golden/qlora.py, torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, "
               f"peft {peft.__version__}, bitsandbytes {bitsandbytes.__version__}, fp32, eager attention")
    save_file({k: v.contiguous() for k, v in values.items()}, DIRECTORY / "expected.safetensors",
              metadata={"made_by": made_by, "hyperparameters": json.dumps(HYPER)})
    (DIRECTORY / "expected.json").write_text(
        json.dumps(dict(made_by=made_by, seed=seed, hyperparameters=HYPER, report=report), indent=2) + "\n")
    print(f"seed {seed}: {report}")
    return ""


if __name__ == "__main__":
    DIRECTORY.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    for seed in range(300, 360):
        wrong = make(seed)
        if not wrong:
            break
        print(f"seed {seed}: {wrong}")
