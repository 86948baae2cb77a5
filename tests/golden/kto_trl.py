"""Golden values of KTO: TRL's KTOTrainer on the policy and reference of dpo_trl.py and eight labelled answers, once as one
batch and once as two accumulated ones, over each of which TRL takes its KL estimate.

The directory kto_trl/ beside this file: records.jsonl, expected.json (of both runs and every step the loss, the gradient's
norm and what TRL logs, unrounded), and whole.safetensors with "gradient.…" of the first run's step 0, before clipping, and
the parameters after its last step.

Made with TRL 1.16, torch 2.13.0 and transformers 5.24.0. Run: python tests/golden/kto_trl.py, after dpo_trl.py.
"""

import json

import torch
import transformers
import trl
from datasets import Dataset
from dpo_trl import BETAS, DECAY, HERE, RATE, STEPS, make_model, message, parameters
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast
from trl import KTOConfig, KTOTrainer

OUT = HERE / "kto_trl"


def record(prompt, completion, label):
    return dict(prompt=[message("user", prompt)], completion=[message("assistant", completion)], label=label)


RECORDS = [
    record("What is two and two?", "Four.", True),
    record("Name a colour, please.", "Blue is one of them, and so is green.", False),
    record("three", "four", True),
    record("Say [INST].", "I would rather not say that.", True),
    record("a longer question, with several words in it, so that lengths differ", "ok", False),
    record("count", "1 2 3 4 5 6 7 8 9 10 11 12", True),
    record("Hi", "Go away.", False),
    record("Write\ntwo lines", "the first\nthe second", True),
]


class Recorder(KTOTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = super().compute_loss(model, inputs, return_outputs=return_outputs,
                                      num_items_in_batch=num_items_in_batch)
        self.losses.append(float((result[0] if return_outputs else result).detach()))
        return result

    def training_step(self, *args, **kwargs):
        result = super().training_step(*args, **kwargs)
        if self.gradient is None:
            self.gradient = {"gradient." + name: p.grad.detach().clone().contiguous()
                             for name, p in self.model.named_parameters()}
        return result

    def log(self, logs, start_time=None):
        if "grad_norm" in logs:
            row = {key: sum(values) / len(values) for key, values in self._metrics["train"].items()}
            self.rows.append(dict(row, grad_norm=float(logs["grad_norm"])))
        super().log(logs, start_time)


def run(tokenizer, parts):
    model, reference = make_model(len(tokenizer), 17), make_model(len(tokenizer), 18)
    args = KTOConfig(
        output_dir="/tmp/kto_trl", max_steps=STEPS, per_device_train_batch_size=len(RECORDS) // parts,
        gradient_accumulation_steps=parts, learning_rate=RATE, lr_scheduler_type="constant", warmup_steps=0,
        weight_decay=DECAY, adam_beta1=BETAS[0], adam_beta2=BETAS[1], adam_epsilon=1e-8, max_grad_norm=1.0,
        optim="adamw_torch", logging_steps=1, max_length=128, report_to=[], save_strategy="no", use_cpu=True, bf16=False,
        fp16=False, gradient_checkpointing=False, seed=1, beta=0.1, desirable_weight=1.0, undesirable_weight=1.5)
    trainer = Recorder(model=model, ref_model=reference, args=args, train_dataset=Dataset.from_list(RECORDS),
                       processing_class=tokenizer)
    trainer.losses, trainer.rows, trainer.gradient = [], [], None
    trainer.train()
    losses = [sum(trainer.losses[i:i + parts]) / parts for i in range(0, parts * STEPS, parts)]
    return model, trainer, [dict(row, loss=loss) for row, loss in zip(trainer.rows, losses, strict=True)]


def main():
    OUT.mkdir(exist_ok=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "tokenizer_chat.json"),
                                        bos_token="<|begin_of_text|>", eos_token="<|eot_id|>",
                                        pad_token="<|end_of_text|>")
    tokenizer.chat_template = (HERE / "sft_trl" / "chat_template.jinja").read_text()
    (OUT / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    model, trainer, whole = run(tokenizer, 1)
    save_file(dict(trainer.gradient, **parameters(model)), OUT / "whole.safetensors")
    _, _, halves = run(tokenizer, 2)
    versions = dict(trl=trl.__version__, torch=torch.__version__, transformers=transformers.__version__)
    (OUT / "expected.json").write_text(
        json.dumps(dict(versions=versions, runs=dict(whole=whole, halves=halves)), indent=1) + "\n")


if __name__ == "__main__":
    main()
