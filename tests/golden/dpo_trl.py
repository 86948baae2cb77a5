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

from datasets import Dataset
from safetensors.torch import save_file
from transformers import LlamaForCausalLM
from trl import DPOConfig, DPOTrainer
from trl_recipe import (HERE, arguments, llama3_tokenizer, message, parameters, recorder, save_base, small_llama,
                        write_expected, write_records)

OUT = HERE / "dpo_trl"

RUNS = {
    "sigmoid": dict(loss_type=["sigmoid"]),
    "sigmoid_nll": dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2]),
    "ipo": dict(loss_type=["ipo"]),
    "hinge": dict(loss_type=["hinge"]),
    "robust": dict(loss_type=["robust"], label_smoothing=0.1),
    "sigmoid_norm": dict(loss_type=["sigmoid_norm"]),
}


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
    return small_llama(LlamaForCausalLM, vocab, seed, tied=True)


def run(name, options, tokenizer):
    model, reference = make_model(len(tokenizer), 17), make_model(len(tokenizer), 17 if name == "sigmoid" else 18)
    trainer = recorder(DPOTrainer)(
        model=model, ref_model=reference, args=arguments(DPOConfig, "dpo_trl", len(RECORDS), beta=0.1, **options),
        train_dataset=Dataset.from_list(RECORDS), processing_class=tokenizer)
    trainer.train()
    save_file(dict(trainer.gradient, **parameters(model)), OUT / f"{name}.safetensors")
    return trainer.steps()


def main():
    OUT.mkdir(exist_ok=True)
    tokenizer = llama3_tokenizer()
    write_records(OUT / "records.jsonl", RECORDS)
    save_base(make_model(len(tokenizer), 17), OUT)
    save_file(parameters(make_model(len(tokenizer), 18)), OUT / "reference.safetensors")
    write_expected(OUT / "expected.json", runs={name: run(name, options, tokenizer) for name, options in RUNS.items()})


if __name__ == "__main__":
    main()
