#!/usr/bin/env python3
"""Writes tokenizer_chat.json (tokenizer_llama3.json and chat tokens) and chat_expected.jsonl: conversations with, per template, the ids and the learned ranges that cria must give.

Independent of cria: ids come from tokenizers and sentencepiece, special tokens by their ids, everything else piece by
piece and never searched for special tokens. Run in tests/golden with transformers 4.57.6, tokenizers 0.22.2,
sentencepiece 0.2.1. Each line: {"messages": [...], "llama3": {"ids": [...], "learned": [[begin, end], ...]}, ...}."""
import json, random
from tokenizers import Tokenizer
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


with open("chat_expected.jsonl", "w") as out:
    for _ in range(100):
        m = conversation()
        row = {"messages": m, "llama3": llama3(m, False), "llama3.1": llama3(m, True), "llama2": llama2(m)}
        out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
