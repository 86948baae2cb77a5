"""Golden values of KTO: TRL's KTOTrainer on the policy and reference of dpo_trl.py and eight labelled answers, once as one
batch and once as two accumulated ones, over each of which TRL takes its KL estimate.

The directory kto_trl/ beside this file: records.jsonl, expected.json (of both runs and every step the loss, the gradient's
norm and what TRL logs, unrounded), and whole.safetensors with "gradient.…" of the first run's step 0, before clipping, and
the parameters after its last step.

Made with TRL 1.16, torch 2.13.0 and transformers 5.24.0. Run: python tests/golden/kto_trl.py, after dpo_trl.py.
"""

from datasets import Dataset
from dpo_trl import make_model
from safetensors.torch import save_file
from trl import KTOConfig, KTOTrainer
from trl_recipe import HERE, arguments, llama3_tokenizer, message, parameters, recorder, write_expected, write_records

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


def run(tokenizer, parts):
    model, reference = make_model(len(tokenizer), 17), make_model(len(tokenizer), 18)
    args = arguments(KTOConfig, "kto_trl", len(RECORDS) // parts, gradient_accumulation_steps=parts, beta=0.1,
                     desirable_weight=1.0, undesirable_weight=1.5)
    trainer = recorder(KTOTrainer)(model=model, ref_model=reference, args=args, train_dataset=Dataset.from_list(RECORDS),
                                   processing_class=tokenizer)
    trainer.train()
    return model, trainer


def main():
    OUT.mkdir(exist_ok=True)
    tokenizer = llama3_tokenizer()
    write_records(OUT / "records.jsonl", RECORDS)
    model, whole = run(tokenizer, 1)
    save_file(dict(whole.gradient, **parameters(model)), OUT / "whole.safetensors")
    _, halves = run(tokenizer, 2)
    write_expected(OUT / "expected.json", runs=dict(whole=whole.steps(), halves=halves.steps(parts=2)))


if __name__ == "__main__":
    main()
