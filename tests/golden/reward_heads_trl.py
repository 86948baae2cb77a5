"""Golden values of reward models with two scores: TRL's RewardTrainer on a small random Llama whose score head has a row
for helpfulness and one for safety (transformers' LlamaForSequenceClassification with two labels), eight pairs of which
each is about one of them. TRL's loss and figures are those of every pair's own column of the logits.

The directory reward_heads_trl/ beside this file: config.json and model.safetensors (the base, fp32, with score.weight),
records.jsonl (pairs with a margin and an objective), held_out.jsonl (pairs in hh-rlhf's text form, each once about either),
expected.json (of every run and step the loss, the gradient's norm, what TRL logs, and the same of each objective's pairs,
unrounded; and the rewards of the held-out pairs by the model after the last step), and for each run NAME.safetensors with
"gradient.…" of step 0, before clipping, and the parameters after the last step.

Made with TRL 1.16, torch 2.13.0 and transformers 5.24.0. Run: python tests/golden/reward_heads_trl.py
"""

import torch
from datasets import Dataset
from reward_trl import HELD_OUT, RECORDS, hh_text
from safetensors.torch import save_file
from transformers import LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl_recipe import (HERE, arguments, llama3_tokenizer, parameters, recorder, save_base, small_llama, write_expected,
                        write_records)

OUT = HERE / "reward_heads_trl"
NAMES = ("helpfulness", "safety")
ABOUT = (0, 1, 0, 1, 1, 0, 0, 0)  # of each record

# whether the records keep their margin, and the coefficient of centring
RUNS = {"plain": (False, None), "both": (True, 0.05)}


class OwnColumn(LlamaForSequenceClassification):
    """Of every row's logits the one that its pair is about, where that is given."""

    def forward(self, *args, about=None, **kwargs):
        outputs = super().forward(*args, **kwargs)
        if about is not None:
            outputs.logits = outputs.logits.gather(1, about[:, None])
        return outputs


class Collator(DataCollatorForPreference):
    def torch_call(self, examples):
        about = torch.tensor([example["about"] for example in examples])
        return dict(super().torch_call(examples), about=torch.cat([about, about]))


class HeadsTrainer(RewardTrainer):
    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["chosen_ids", "rejected_ids", "margin", "about"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        chosen, rejected = outputs.logits.detach().squeeze(-1).chunk(2)
        margin, center = inputs.get("margin", torch.zeros_like(chosen)), self.args.center_rewards_coefficient or 0.0
        losses = -torch.nn.functional.logsigmoid(chosen - rejected - margin) + center * (chosen + rejected) ** 2
        for i, name in enumerate(NAMES):
            own = inputs["about"][: len(chosen)] == i
            rewards = torch.cat([chosen[own], rejected[own]])
            figures = dict(accuracy=(chosen > rejected)[own].float().mean(), margin=(chosen - rejected)[own].mean(),
                           mean_reward=rewards.mean(), min_reward=rewards.min(), max_reward=rewards.max(),
                           objective_loss=losses[own].mean())
            for figure, value in figures.items():
                self._metrics["train"][f"{figure}/{name}"].append(float(value))
        return (loss, outputs) if return_outputs else loss


def make_model(vocab, kind=OwnColumn):
    return small_llama(kind, vocab, 11, tied=False, num_labels=2, id2label=dict(enumerate(NAMES)),
                       label2id={name: i for i, name in enumerate(NAMES)})


def rewards(model, tokenizer):
    def of(messages):
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")["input_ids"]
        return model(ids).logits[0].tolist()

    model.eval()
    with torch.no_grad():
        pairs = [[of(chosen), of(rejected)] for chosen, rejected in HELD_OUT]
    return [[side[i] for side in pair] for i in range(len(NAMES)) for pair in pairs]


def run(name, tokenizer):
    with_margin, center = RUNS[name]
    columns = ("prompt", "chosen", "rejected") + (("margin",) if with_margin else ())
    model = make_model(len(tokenizer))
    model.config.num_labels = 1  # as many as TRL sees of them
    args = arguments(RewardConfig, "reward_heads_trl", len(RECORDS), center_rewards_coefficient=center)
    data = Dataset.from_list([dict({key: record[key] for key in columns}, about=about)
                              for record, about in zip(RECORDS, ABOUT)])
    trainer = recorder(HeadsTrainer)(model=model, args=args, train_dataset=data, processing_class=tokenizer,
                                     data_collator=Collator(tokenizer.pad_token_id))
    trainer.train()
    save_file(dict(trainer.gradient, **parameters(model)), OUT / f"{name}.safetensors")
    return trainer.steps(), rewards(model, tokenizer)


def main():
    OUT.mkdir(exist_ok=True)
    tokenizer = llama3_tokenizer()
    write_records(OUT / "records.jsonl",
                  [dict(record, objective=NAMES[about]) for record, about in zip(RECORDS, ABOUT)])
    save_base(make_model(len(tokenizer), LlamaForSequenceClassification), OUT)
    write_records(OUT / "held_out.jsonl",
                  [dict(chosen=hh_text(chosen), rejected=hh_text(rejected), objective=name)
                   for name in NAMES for chosen, rejected in HELD_OUT])
    results = {name: run(name, tokenizer) for name in RUNS}
    write_expected(OUT / "expected.json", runs={name: steps for name, (steps, _) in results.items()},
                   held_out={name: found for name, (_, found) in results.items()})


if __name__ == "__main__":
    main()
