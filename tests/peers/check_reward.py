"""A reward model trained by cria and by TRL: the same base, pairs, order and settings; then every held-out pair's rewards.

python tests/peers/check_reward.py CRIA BASE TRAIN.jsonl HELD_OUT.jsonl [--pairs N] [--context N] [--work DIR]
  CRIA      the program; BASE  a small language model of cria's (its tokenizer must know Llama 3's special tokens)
  TRAIN     preferences in hh-rlhf's text form (chosen, rejected), HELD_OUT likewise

The base gets a score head here (normal, 0.02) and becomes a LlamaForSequenceClassification that both programs open. Both
read the text themselves: here dialogues are cut into messages, rendered with the chat template that cria exports and
tokenised by TRL; the ids must be cria's ('cria data show'). What is too long, or has roles out of turn, is left out by
both. The order of the pairs follows from cria's seed and is computed here again. One epoch; AdamW, cosine to a tenth.

Prints a JSON line and ends with status 1 where a reward differs by more than 1e-3. Made for TRL 1.16.
"""

import argparse
import json
import math
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer

BOUND, PER_STEP, PER_PASS, SEED = 1e-3, 32, 8, 1
RATE, WARMUP, FINAL, DECAY, CENTER = 5e-4, 0.1, 0.1, 0.1, 0.01
MASK32, MASK64 = (1 << 32) - 1, (1 << 64) - 1


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


# ---- cria's order of the pairs: model/core/philox.c and data/order.c once more ----


def key(purpose, layer, module):
    value = 0
    for part in (SEED & MASK32, SEED >> 32, purpose, layer, module):
        for byte in part.to_bytes(4, "little"):
            value = ((0xCBF29CE484222325 ^ value) ^ byte) * 0x100000001B3 & MASK64
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & MASK64
    value ^= value >> 33
    return value & MASK32, value >> 32


def philox(counter, key):
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def below(key, index, bound):
    words = philox((index // 2 & MASK32, index // 2 >> 32, 0, 0), key)
    return (words[2 * (index % 2)] << 32 | words[2 * (index % 2) + 1]) * bound >> 64


def permutation(key, n):
    order = list(range(n))
    for i in range(n, 1, -1):
        j = below(key, i, i)
        order[i - 1], order[j] = order[j], order[i - 1]
    return order


def permute(key, n, index):
    bits = 1
    while 1 << 2 * bits < n:
        bits += 1
    while True:
        left, right = index >> bits, index & (1 << bits) - 1
        for turn in range(4):
            left, right = right, (left ^ philox((right, turn, bits, 0), key)[0]) & (1 << bits) - 1
        index = left << bits | right
        if index < n:
            return index


def order_of(n):
    shuffle = 1  # PHILOX_SHUFFLE; layer 0: documents of source 0, 1: its sequences
    documents, sequences = permutation(key(shuffle, 0, 0), n), key(shuffle, 1, 0)
    return [documents[permute(sequences, n, k)] for k in range(n)]


# ---- the data ----


def messages(text):
    found = []
    marks = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}
    while text:
        mark = next(m for m in marks if text.startswith(m))
        rest = text[len(mark):]
        end = min((i for i in (rest.find(m) for m in marks) if i >= 0), default=len(rest))
        content = rest[:end]
        found.append({"role": marks[mark], "content": content[1:] if content.startswith(" ") else content})
        text = rest[end:]
    return found


def read(path, tokenizer, context, shown):
    """The pairs that are kept, as messages; their ids must be those that cria has shown."""
    kept, ids = [], []
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(records) == len(shown)
    for record, row in zip(records, shown):
        sides = [messages(record[side]) for side in ("chosen", "rejected")]
        in_turn = all(m["role"] == ("user", "assistant")[i % 2] for side in sides for i, m in enumerate(side))
        assert in_turn != ("error" in row), row
        if not in_turn or record["chosen"] == record["rejected"]:
            continue
        tokens = [tokenizer.apply_chat_template(side, tokenize=True, return_dict=True)["input_ids"] for side in sides]
        assert tokens == [answer["ids"] for answer in row["answers"]], row["line"]
        if max(map(len, tokens)) <= context:
            kept.append(dict(chosen=sides[0], rejected=sides[1]))
            ids.append((row["line"], tokens))
    return kept, ids


# ---- TRL ----


class InOrder(RewardTrainer):
    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


def schedule(steps):
    warmup = math.floor(WARMUP * steps + 0.5)

    def at(step):
        if step < warmup:
            return (step + 1) / warmup
        return FINAL + (1 - FINAL) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2

    return at


def train(model, tokenizer, pairs, steps, context, work):
    args = RewardConfig(
        output_dir=str(work / "trl"), max_steps=steps, per_device_train_batch_size=PER_PASS,
        gradient_accumulation_steps=PER_STEP // PER_PASS, max_grad_norm=1.0, logging_steps=10, max_length=context,
        report_to=[], save_strategy="no", use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False, seed=1,
        center_rewards_coefficient=CENTER, disable_tqdm=True)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([dict(params=decayed, weight_decay=DECAY), dict(params=others, weight_decay=0.0)],
                                  lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(steps))
    InOrder(model=model, args=args, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer,
            optimizers=(optimizer, rates)).train()


def rewards(model, ids):
    model.eval()
    with torch.no_grad():
        return [[float(model(torch.tensor([side])).logits) for side in tokens] for _, tokens in ids]


# ---- both ----


def make_base(cria, base, work):
    run(cria, "export", base, work / "language")
    torch.manual_seed(3)
    body = LlamaForCausalLM.from_pretrained(work / "language", dtype=torch.float32)
    body.config.num_labels, body.config.tie_word_embeddings = 1, False
    model = LlamaForSequenceClassification(body.config).float()
    model.model.load_state_dict(body.model.state_dict())
    torch.nn.init.normal_(model.score.weight, 0, 0.02)
    shutil.copytree(work / "language", work / "base", ignore=shutil.ignore_patterns("*.safetensors*", "generation*"))
    model.save_pretrained(work / "base")


def wilson(right, n, z=1.959964):
    """A share and its 95 % interval, as 'cria eval reward' has it (Wilson 1927)."""
    share, spread = right / n, z * math.sqrt(right * (n - right) / n**3 + z * z / (4 * n * n))
    centre, scale = share + z * z / (2 * n), 1 + z * z / n
    return share, (centre - spread) / scale, (centre + spread) / scale


def main():
    parser = argparse.ArgumentParser()
    for name in ("cria", "base", "train", "held_out"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=10**9, help="of TRAIN, at most")
    parser.add_argument("--context", type=int, default=768)
    parser.add_argument("--work", type=pathlib.Path)
    options = parser.parse_args()
    work = options.work or pathlib.Path(tempfile.mkdtemp())
    make_base(options.cria, options.base, work)
    head = work / "train.jsonl"
    head.write_text("".join(line + "\n" for line in options.train.read_text().splitlines()[:options.pairs]))
    common = ("data.validation=0", "data.on_error=skip", "template.name=llama3", "preferences.overlong=drop",
              f"preferences.per_batch={PER_STEP}", f"train.context={options.context}")

    def show(path):
        return [json.loads(line) for line in
                run(options.cria, "data", "show", work / "base", path, "--template", "llama3", "-n", 0, "--json")
                .splitlines()]

    tokenizer = AutoTokenizer.from_pretrained(work / "base")
    tokenizer.chat_template = run(options.cria, "data", "show", work / "base", "--template", "llama3", "--jinja")
    tokenizer.pad_token = tokenizer.bos_token  # never a text's last
    pairs, _ = read(head, tokenizer, options.context, show(head))
    _, held_out = read(options.held_out, tokenizer, options.context, show(options.held_out))
    steps = len(pairs) // PER_STEP
    run(options.cria, "reward", f"output={work / 'cria'}", f"model.base={work / 'base'}", f"data.train={head}",
        f"train.steps={steps}", "precision=fp32", "train.tokens_per_microbatch=4096", f"seed={SEED}",
        f"reward.center_coefficient={CENTER}", f"optim.lr={RATE}", "optim.schedule=cosine", f"optim.warmup={WARMUP}",
        f"optim.final_lr_ratio={FINAL}", f"optim.weight_decay={DECAY}", "optim.beta2=0.95", *common)
    run(options.cria, "eval", "reward", work / "cria", options.held_out, "--skip-errors", "--overlong", "drop", "-c",
        options.context, "-o", work / "scores.jsonl")
    scored = [json.loads(line) for line in (work / "scores.jsonl").read_text().splitlines()]

    model = LlamaForSequenceClassification.from_pretrained(work / "base", dtype=torch.float32)
    train(model, tokenizer, [pairs[i] for i in order_of(len(pairs))], steps, options.context, work)
    expected = rewards(model, held_out)
    assert [row["line"] for row in scored] == [line for line, _ in held_out]
    off = max(abs(row[side] - value) for row, pair in zip(scored, expected)
              for side, value in zip(("chosen", "rejected"), pair))
    right = [sum(c > r for c, r in expected), sum(row["chosen"] > row["rejected"] for row in scored)]
    share, low, high = wilson(right[1], len(expected))
    print(json.dumps(dict(train=len(pairs), steps=steps, held_out=len(expected), right_trl=right[0],
                          right_cria=right[1], accuracy=share,
                          interval=[low, high], largest_difference=off,
                          largest_reward=max(abs(v) for pair in expected for v in pair))))
    if not options.work:
        shutil.rmtree(work)
    sys.exit(off > BOUND)


if __name__ == "__main__":
    main()
