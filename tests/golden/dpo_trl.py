"""Golden values of preference training: TRL's DPOTrainer on a small random Llama and eight pairs, one run for each loss.

The directory dpo_trl/ beside this file: config.json and model.safetensors (the policy, fp32), reference.safetensors (the
other model that all runs but the first are compared with), records.jsonl, expected.json (of every run and step the loss,
the gradient's norm and what TRL logs, unrounded), and for each run NAME.safetensors with "gradient.…" of step 0, before
clipping, and the parameters after the last step.

Every step is all eight pairs in one batch, so their order does not matter. TRL renders them with the Llama 3 chat
template as cria writes it (sft_trl/chat_template.jinja) and tokenises with tokenizer_chat.json. AdamW of torch, constant
learning rate, clipping at 1.

Made with TRL 1.16, torch 2.13.0 and transformers 5.24.0. Run: python tests/golden/dpo_trl.py
"""

import json
import pathlib

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

HERE = pathlib.Path(__file__).parent
OUT = HERE / "dpo_trl"
STEPS, RATE, DECAY, BETAS = 20, 2e-3, 0.1, (0.9, 0.95)

RUNS = {
    "sigmoid": dict(loss_type=["sigmoid"]),
    "sigmoid_nll": dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2]),
    "ipo": dict(loss_type=["ipo"]),
    "hinge": dict(loss_type=["hinge"]),
    "robust": dict(loss_type=["robust"], label_smoothing=0.1),
    "sigmoid_norm": dict(loss_type=["sigmoid_norm"]),
}


def message(role, content):
    return {"role": role, "content": content}


def pair(prompt, chosen, rejected):
    prompt = prompt if isinstance(prompt, list) else [message("user", prompt)]
    return dict(prompt=prompt, chosen=[message("assistant", chosen)], rejected=[message("assistant", rejected)])


RECORDS = [
    pair("What is two and two?", "Four.", "Five, or so I have heard."),
    pair([message("system", "Be short."), message("user", "Name a colour, please.")], "Blue.",
         "Blue is one of them, and so is green."),
    pair([message("user", "one"), message("assistant", "two"), message("user", "three")], "four", "five"),
    pair("Say [INST].", "I would rather not say that.", "[INST]"),
    pair("a longer question, with several words in it, so that lengths differ", "ok", "no"),
    pair("count", "1 2 3 4 5 6 7 8 9 10 11 12", "1 3 2"),
    pair("Hi", "Hello there!", "Go away."),
    pair("Write\ntwo lines", "the first\nthe second", "the first"),
]


def make_model(vocab, seed):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
        vocab_size=vocab, rms_norm_eps=1e-5, max_position_embeddings=256, rope_theta=10000.0, tie_word_embeddings=True,
        use_cache=False, attn_implementation="eager", bos_token_id=440, eos_token_id=441)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter)) if parameter.dim() == 1 else parameter.normal_(0, 0.2)
    return model


def parameters(model, prefix=""):
    return {prefix + name: p.detach().clone().contiguous() for name, p in model.named_parameters()}


class Recorder(DPOTrainer):
    """Keeps what the log rounds, and the first gradient before it is clipped."""

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


def run(name, options, tokenizer):
    model, reference = make_model(len(tokenizer), 17), make_model(len(tokenizer), 17 if name == "sigmoid" else 18)
    args = DPOConfig(
        output_dir="/tmp/dpo_trl", max_steps=STEPS, per_device_train_batch_size=len(RECORDS), learning_rate=RATE,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=DECAY, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        adam_epsilon=1e-8, max_grad_norm=1.0, optim="adamw_torch", logging_steps=1, max_length=128, report_to=[],
        save_strategy="no", use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False, seed=1, beta=0.1,
        **options)
    trainer = Recorder(model=model, ref_model=reference, args=args, train_dataset=Dataset.from_list(RECORDS),
                       processing_class=tokenizer)
    trainer.losses, trainer.rows, trainer.gradient = [], [], None
    trainer.train()
    save_file(dict(trainer.gradient, **parameters(model)), OUT / f"{name}.safetensors")
    return [dict(row, loss=loss) for row, loss in zip(trainer.rows, trainer.losses, strict=True)]


def main():
    OUT.mkdir(exist_ok=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "tokenizer_chat.json"),
                                        bos_token="<|begin_of_text|>", eos_token="<|eot_id|>",
                                        pad_token="<|end_of_text|>")
    tokenizer.chat_template = (HERE / "sft_trl" / "chat_template.jinja").read_text()
    (OUT / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    make_model(len(tokenizer), 17).save_pretrained(OUT, safe_serialization=True)
    (OUT / "generation_config.json").unlink(missing_ok=True)
    save_file(parameters(make_model(len(tokenizer), 18)), OUT / "reference.safetensors")
    expected = {name: run(name, options, tokenizer) for name, options in RUNS.items()}
    versions = dict(trl=trl.__version__, torch=torch.__version__, transformers=transformers.__version__)
    (OUT / "expected.json").write_text(json.dumps(dict(versions=versions, runs=expected), indent=1) + "\n")


if __name__ == "__main__":
    main()
