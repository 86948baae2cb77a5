"""Reward models with two scores in both directions, on the random base of ../golden/reward_heads_trl: what cria trains opens
in transformers (AutoModelForSequenceClassification) and PEFT with its names and its rewards, and what those write opens in
cria.

python tests/peers/check_scores.py CRIA
Prints a JSON line; status 1 where a logit differs by more than 1e-5 of the greatest. Made for transformers 5.24, PEFT 0.21.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
BASE, HELD_OUT = GOLDEN / "reward_heads_trl", GOLDEN / "reward_heads_trl" / "held_out.jsonl"
TOKENIZER, NAMES = GOLDEN / "tokenizer_chat.json", {0: "helpfulness", 1: "safety"}


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def texts(cria):
    """The ids of every held-out pair's answers, and what the pair is about."""
    shown = run(cria, "data", "show", TOKENIZER, HELD_OUT, "--template", "llama3", "-n", 0, "--json").splitlines()
    about = [list(NAMES.values()).index(json.loads(line)["objective"]) for line in HELD_OUT.read_text().splitlines()]
    return [([answer["ids"] for answer in json.loads(row)["answers"]], i) for row, i in zip(shown, about, strict=True)]


def by_transformers(model, pairs):
    model.eval()
    with torch.no_grad():
        return [[float(model(torch.tensor([ids])).logits[0, about]) for ids in sides] for sides, about in pairs]


def by_cria(cria, model, work, *more):
    scores = work / "scores.jsonl"
    scores.unlink(missing_ok=True)
    run(cria, "eval", "reward", model, *more, "-n", 0, "-o", scores, "--precision", "fp32")
    return [[row["chosen"], row["rejected"]] for row in map(json.loads, scores.read_text().splitlines())]


def distance(a, b):
    greatest = max(abs(x) for pair in b for x in pair)
    return max(abs(x - y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)) / greatest


def train(cria, work, name, *more):
    run(cria, "reward", f"output={work / name}", f"model.base={BASE}", f"tokenizer.path={TOKENIZER}", "precision=fp32",
        "template.name=llama3", f"data.train={BASE / 'records.jsonl'}", "data.validation=0", "preferences.per_batch=8",
        "optim.lr=2e-3", "train.steps=10", "train.context=128", "train.tokens_per_microbatch=1024", *more)
    return work / name


def ours(cria, work, pairs):
    """What cria has trained, whole and as an adapter."""
    whole, adapter = train(cria, work, "whole"), train(cria, work, "adapter", "lora.rank=4", "lora.alpha=8")
    run(cria, "export", whole, work / "hf")
    run(cria, "export", "--format", "peft", adapter, work / "peft")
    model = AutoModelForSequenceClassification.from_pretrained(work / "hf", dtype=torch.float32)
    assert model.num_labels == 2 and model.config.id2label == NAMES, model.config
    base = LlamaForSequenceClassification.from_pretrained(BASE, num_labels=2, dtype=torch.float32)
    return {"export": distance(by_cria(cria, whole, work, HELD_OUT), by_transformers(model, pairs)),
            "export to PEFT": distance(by_cria(cria, adapter, work, HELD_OUT),
                                       by_transformers(PeftModel.from_pretrained(base, work / "peft"), pairs))}


def theirs(cria, work, pairs):
    """A model and an adapter that were never cria's; an adapter's file knows no names."""
    torch.manual_seed(5)
    model = LlamaForSequenceClassification.from_pretrained(BASE, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, 0, 0.3)
    model.save_pretrained(work / "random")
    found = {}
    run(cria, "import", work / "random", work / "imported", "--tokenizer", TOKENIZER)
    found["import"] = distance(by_cria(cria, work / "imported", work, HELD_OUT, "--template", "llama3"),
                               by_transformers(model, pairs))
    adapter = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"],
                                               init_lora_weights=False))
    torch.nn.init.normal_(adapter.base_model.model.score.modules_to_save["default"].weight, 0, 0.3)
    adapter.save_pretrained(work / "random-peft")
    about = {i: work / f"about-{i}.jsonl" for i in NAMES}
    for i, path in about.items():
        rows = [json.loads(line) for line in HELD_OUT.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "objective"}) + "\n"
                                for row in rows if row["objective"] == NAMES[i]))
    found["import from PEFT"] = distance(
        by_cria(cria, work / "random-peft", work, *(f"LABEL_{i}={path}" for i, path in about.items()), "--base",
                work / "random", "--template", "llama3", "-t", TOKENIZER), by_transformers(adapter, pairs))
    return found


def main():
    cria, work = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(tempfile.mkdtemp())
    pairs = texts(cria)
    found = ours(cria, work, pairs) | theirs(cria, work, pairs)
    shutil.rmtree(work)
    print(json.dumps({name: f"{value:.1e}" for name, value in found.items()}))
    sys.exit(not all(value <= 1e-5 for value in found.values()))


if __name__ == "__main__":
    main()
