"""Golden values of reward models: TRL's RewardTrainer on a small random Llama with a score head and eight pairs, one run
for each form of the loss.

The directory reward_trl/ beside this file: config.json and model.safetensors (the base, fp32, with score.weight),
records.jsonl (pairs with a margin and a strength), held_out.jsonl (pairs in hh-rlhf's text form), expected.json (of every
run and step the loss, the gradient's norm and what TRL logs, unrounded; and the rewards of the held-out pairs by the
model after the last step), and for each run NAME.safetensors with "gradient.…" of step 0, before clipping, and the
parameters after the last step.

Every step is all eight pairs in one batch, so their order does not matter. TRL renders them with the Llama 3 chat
template as cria writes it (sft_trl/chat_template.jinja) and tokenises with tokenizer_chat.json. AdamW of torch, constant
learning rate, clipping at 1.

Made with TRL 1.16, torch 2.13.0 and transformers 5.24.0. Run: python tests/golden/reward_trl.py
"""

import json
import pathlib

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

HERE = pathlib.Path(__file__).parent
OUT = HERE / "reward_trl"
STEPS, RATE, DECAY, BETAS = 20, 2e-3, 0.1, (0.9, 0.95)

# whether the records keep their margin, and the coefficient of centring
RUNS = {"plain": (False, None), "margin": (True, None), "centred": (False, 0.05), "both": (True, 0.05)}
SMALL = {"significantly": 1, "better": 2 / 3, "slightly": 1 / 3, "negligibly": 0}  # Llama 2, table 27


def message(role, content):
    return {"role": role, "content": content}


def pair(strength, prompt, chosen, rejected):
    prompt = prompt if isinstance(prompt, list) else [message("user", prompt)]
    return dict(prompt=prompt, chosen=[message("assistant", chosen)], rejected=[message("assistant", rejected)],
                strength=strength, margin=SMALL[strength])


RECORDS = [
    pair("significantly", "What is two and two?", "Four.", "Five, or so I have heard."),
    pair("better", [message("system", "Be short."), message("user", "Name a colour, please.")], "Blue.",
         "Blue is one of them, and so is green."),
    pair("slightly", [message("user", "one"), message("assistant", "two"), message("user", "three")], "four", "five"),
    pair("negligibly", "Say [INST].", "I would rather not say that.", "[INST]"),
    pair("better", "a longer question, with several words in it, so that lengths differ", "ok", "no"),
    pair("significantly", "count", "1 2 3 4 5 6 7 8 9 10 11 12", "1 3 2"),
    pair("slightly", "Hi", "Hello there!", "Go away."),
    pair("negligibly", "Write\ntwo lines", "the first\nthe second", "the first"),
]


def dialogue(*texts):
    return [message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


HELD_OUT = [
    (dialogue("Is it late?", "A little."), dialogue("Is it late?", "Ask a clock, not me!")),
    (dialogue("two", "three", "four\n\nfive", "six, then"), dialogue("two", "three", "four\n\nfive", "")),
    (dialogue("Where do llamas live?", "In the Andes: high up, where the air is thin."),
     dialogue("Where do llamas live?", "On the moon.")),
    (dialogue("Tell me [INST] something", " spaces  before, and a line\n"), dialogue("Tell me [INST] something", "no")),
]


def hh_text(messages):
    return "".join(("\n\nHuman: " if m["role"] == "user" else "\n\nAssistant: ") + m["content"] for m in messages)


def rewards(model, tokenizer):
    def of(messages):
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")["input_ids"]
        return float(model(ids).logits)

    model.eval()
    with torch.no_grad():
        return [[of(chosen), of(rejected)] for chosen, rejected in HELD_OUT]


def make_model(vocab):
    torch.manual_seed(7)
    model = LlamaForSequenceClassification(LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
        vocab_size=vocab, rms_norm_eps=1e-5, max_position_embeddings=256, rope_theta=10000.0, tie_word_embeddings=False,
        use_cache=False, attn_implementation="eager", bos_token_id=440, eos_token_id=441, num_labels=1)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter)) if parameter.dim() == 1 else parameter.normal_(0, 0.2)
    return model


def parameters(model):
    return {name: p.detach().clone().contiguous() for name, p in model.named_parameters()}


class Recorder(RewardTrainer):
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


def run(name, tokenizer):
    with_margin, center = RUNS[name]
    columns = ("prompt", "chosen", "rejected") + (("margin",) if with_margin else ())
    model = make_model(len(tokenizer))
    args = RewardConfig(
        output_dir="/tmp/reward_trl", max_steps=STEPS, per_device_train_batch_size=len(RECORDS), learning_rate=RATE,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=DECAY, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        adam_epsilon=1e-8, max_grad_norm=1.0, optim="adamw_torch", logging_steps=1, max_length=128, report_to=[],
        save_strategy="no", use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False, seed=1,
        center_rewards_coefficient=center)
    data = Dataset.from_list([{key: record[key] for key in columns} for record in RECORDS])
    trainer = Recorder(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.losses, trainer.rows, trainer.gradient = [], [], None
    trainer.train()
    save_file(dict(trainer.gradient, **parameters(model)), OUT / f"{name}.safetensors")
    steps = [dict(row, loss=loss) for row, loss in zip(trainer.rows, trainer.losses, strict=True)]
    return steps, rewards(model, tokenizer)


def main():
    OUT.mkdir(exist_ok=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "tokenizer_chat.json"),
                                        bos_token="<|begin_of_text|>", eos_token="<|eot_id|>",
                                        pad_token="<|end_of_text|>")
    tokenizer.chat_template = (HERE / "sft_trl" / "chat_template.jinja").read_text()
    (OUT / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    make_model(len(tokenizer)).save_pretrained(OUT, safe_serialization=True)
    (OUT / "generation_config.json").unlink(missing_ok=True)
    (OUT / "held_out.jsonl").write_text("".join(
        json.dumps(dict(chosen=hh_text(chosen), rejected=hh_text(rejected))) + "\n" for chosen, rejected in HELD_OUT))
    results = {name: run(name, tokenizer) for name in RUNS}
    expected = {name: steps for name, (steps, _) in results.items()}
    held_out = {name: found for name, (_, found) in results.items()}
    versions = dict(trl=trl.__version__, torch=torch.__version__, transformers=transformers.__version__)
    (OUT / "expected.json").write_text(json.dumps(dict(versions=versions, runs=expected, held_out=held_out), indent=1) + "\n")


if __name__ == "__main__":
    main()
