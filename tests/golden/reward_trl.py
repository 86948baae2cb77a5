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

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer
from trl_recipe import (HERE, arguments, llama3_tokenizer, message, parameters, recorder, save_base, small_llama,
                        write_expected, write_records)

OUT = HERE / "reward_trl"

# whether the records keep their margin, and the coefficient of centring
RUNS = {"plain": (False, None), "margin": (True, None), "centred": (False, 0.05), "both": (True, 0.05)}
SMALL = {"significantly": 1, "better": 2 / 3, "slightly": 1 / 3, "negligibly": 0}  # Llama 2, table 27


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
    return small_llama(LlamaForSequenceClassification, vocab, 7, tied=False, num_labels=1)


def run(name, tokenizer):
    with_margin, center = RUNS[name]
    columns = ("prompt", "chosen", "rejected") + (("margin",) if with_margin else ())
    model = make_model(len(tokenizer))
    args = arguments(RewardConfig, "reward_trl", len(RECORDS), center_rewards_coefficient=center)
    data = Dataset.from_list([{key: record[key] for key in columns} for record in RECORDS])
    trainer = recorder(RewardTrainer)(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    save_file(dict(trainer.gradient, **parameters(model)), OUT / f"{name}.safetensors")
    return trainer.steps(), rewards(model, tokenizer)


def main():
    OUT.mkdir(exist_ok=True)
    tokenizer = llama3_tokenizer()
    write_records(OUT / "records.jsonl", RECORDS)
    save_base(make_model(len(tokenizer)), OUT)
    write_records(OUT / "held_out.jsonl",
                  [dict(chosen=hh_text(chosen), rejected=hh_text(rejected)) for chosen, rejected in HELD_OUT])
    results = {name: run(name, tokenizer) for name in RUNS}
    write_expected(OUT / "expected.json", runs={name: steps for name, (steps, _) in results.items()},
                   held_out={name: found for name, (_, found) in results.items()})


if __name__ == "__main__":
    main()
