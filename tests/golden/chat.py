#!/usr/bin/env python3
"""Writes tokenizer_chat.json (tokenizer_llama3.json and chat tokens) and chat_expected.jsonl: conversations with, per template, the ids and the learned ranges that cria must give.

Independent of cria: ids come from transformers (split_special_tokens), tokenizers and sentencepiece, special tokens by their ids, everything else piece by
piece and never searched for special tokens. Run in tests/golden with transformers 4.57.6, tokenizers 0.22.2,
sentencepiece 0.2.1. Each line: {"messages": [...], "llama3": {"ids": [...], "learned": [[begin, end], ...]}, ...}."""
import json, random
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
import sentencepiece

random.seed(11)
t3 = Tokenizer.from_file("tokenizer_llama3.json")
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
           "<|python_tag|>", "<|im_start|>", "<|im_end|>"]
t3.add_special_tokens(SPECIAL)
t3.save("tokenizer_chat.json")
t3.encode_special_tokens = True  # a special token's name in a text is text
sp = sentencepiece.SentencePieceProcessor(model_file="tokenizer_llama.model")
POOL = ["Hello", "what is", " 2+2?", "caf\u00e9", "\u4f60\u597d", "don't", "{\n  1,\n}", "...", "a  b", "\n", "\t", "\u00a0", "1234567", "\u2003", "|>",
        "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>user<|end_header_id|>", "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "### Response:\n", "<|im_end|>"]


def text(least=0):
    while True:
        made = "".join(random.choice(POOL) + random.choice(["", " ", "  ", "\n"]) for _ in range(random.randint(1, 5)))
        if len(made.strip()) >= least:
            return made


def conversation():
    messages = [{"role": "system", "content": text()}] if random.random() < 0.4 else []
    for _ in range(random.randint(1, 2)):
        messages += [{"role": "user", "content": text(1)}, {"role": "assistant", "content": text()}]
    return messages


class Run:
    def __init__(self):
        self.ids, self.learned = [], []

    def special(self, i, learned=False):
        self.add([i], learned)

    def add(self, ids, learned=False):
        if learned and self.learned and self.learned[-1][1] == len(self.ids):
            self.learned[-1][1] += len(ids)
        elif learned and ids:
            self.learned.append([len(self.ids), len(self.ids) + len(ids)])
        self.ids += ids


def encode(s):
    return t3.encode(s, add_special_tokens=False).ids


def llama3(messages, dates):
    run, name = Run(), t3.token_to_id
    turns = [(m["role"], m["content"].strip()) for m in messages]
    if dates:
        system = turns.pop(0)[1] if turns[0][0] == "system" else ""
        turns.insert(0, ("system", "Cutting Knowledge Date: December 2023\nToday Date: 1 May 2025\n\n" + system))
    run.special(name("<|begin_of_text|>"))
    for role, content in turns:
        learned = role == "assistant"
        run.special(name("<|start_header_id|>"))
        run.add(encode(role))
        run.special(name("<|end_header_id|>"))
        run.add(encode("\n\n" + ("" if learned else content)))
        if learned:
            run.add(encode(content), True)
        run.special(name("<|eot_id|>"), learned)
    return {"ids": run.ids, "learned": run.learned}


def llama2(messages):
    run, system = Run(), ""
    if messages[0]["role"] == "system":
        system = f"<<SYS>>\n{messages[0]['content'].strip()}\n<</SYS>>\n\n"
        messages = messages[1:]
    for user, answer in zip(messages[::2], messages[1::2]):
        prompt = f"[INST] {system}{user['content'].strip()} [/INST]"
        both = sp.encode(f"{prompt} {answer['content'].strip()} ")
        head = sp.encode(prompt)
        assert both[: len(head)] == head
        run.special(sp.bos_id())
        run.add(head)
        run.add(both[len(head) :], True)
        run.special(sp.eos_id(), True)
        system = ""
    return {"ids": run.ids, "learned": run.learned}


class Pieces:
    """Text collects up to a seam (a special token, an end of an answer, a change of the mask) and is encoded there."""

    def __init__(self, encode):
        self.run, self.encode, self.text, self.mask = Run(), encode, "", False

    def seam(self):
        self.run.add(self.encode(self.text), self.mask)
        self.text = ""

    def put(self, text, learned=False):
        if text and learned != self.mask:
            self.seam()
        if text:
            self.mask = learned
        self.text += text

    def special(self, name, learned=False):
        self.seam()
        self.run.special(fast.convert_tokens_to_ids(name), learned)

    def done(self):
        self.seam()
        return {"ids": self.run.ids, "learned": self.run.learned}


def split(s):
    return fast(s, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def system_of(messages, default):
    has = messages[0]["role"] == "system"
    return (messages[0]["content"] if has else default), messages[has:]


def alpaca(messages):
    p = Pieces(split)
    system, turns = system_of(messages, "Below is an instruction that describes a task. Write a response that appropriately completes the request.")
    p.special("<|begin_of_text|>")
    p.put(system.strip() + "\n\n")
    for m in turns:
        if m["role"] == "user":
            p.put("### Instruction:\n" + m["content"].strip() + "\n\n")
            continue
        p.put("### Response:\n")
        p.seam()
        p.put(m["content"].strip(), True)
        p.special("<|end_of_text|>", True)
    return p.done()


def chatml(messages):
    p = Pieces(split)
    for m in messages:
        learned = m["role"] == "assistant"
        p.special("<|im_start|>")
        p.put(m["role"] + "\n")
        p.put(m["content"].strip(), learned)
        p.special("<|im_end|>", learned)
        p.put("\n")
    return p.done()


def plain(messages):
    p = Pieces(split)
    p.special("<|begin_of_text|>")
    for m in messages:
        learned = m["role"] == "assistant"
        p.put(m["content"], learned)
        if learned:
            p.special("<|end_of_text|>", True)
    return p.done()


def own(messages):
    """The template that tests/test_chat.c writes: "Q: …\\n", "A:  … .<|eot_id|>\\n"; the spaces after A: are the answer's."""
    p = Pieces(split)
    system, turns = system_of(messages, "quiet")
    p.special("<|begin_of_text|>")
    p.put("# " + system + " #\n")
    for m in turns:
        if m["role"] == "user":
            p.put("Q: " + m["content"] + "\n")
            continue
        p.put("A:")
        p.put("  " + m["content"] + " .", True)
        p.special("<|eot_id|>", True)
        p.put("\n")
    return p.done()


fast = PreTrainedTokenizerFast(tokenizer_file="tokenizer_chat.json")
with open("chat_expected.jsonl", "w") as out:
    for i in range(100):
        m = conversation()
        row = {"messages": m, "llama3": llama3(m, False), "llama3.1": llama3(m, True), "llama2": llama2(m)}
        if i < 25:
            row |= {"llama3.2": llama3(m, True), "alpaca": alpaca(m), "chatml": chatml(m), "plain": plain(m), "own": own(m)}
        out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
