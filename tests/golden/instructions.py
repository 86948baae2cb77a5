#!/usr/bin/env python3
"""Writes instructions_expected.json: for every file of instructions and every template of Meta's, how many records and tokens
it has and a hash of all ids and masks.

    python instructions.py SHARED_DATA > instructions_expected.json

Ids: apply_chat_template with Meta's published 3.1 and 3.2 templates (the date fixed), Llama 3's as its model card's, and for
Llama 2 its reference code's texts in SentencePiece. Mask: an answer is what the conversation up to it has more than the
prompt for it. Made with transformers 4.57.6, tokenizers 0.22.2, sentencepiece 0.2.1."""
import json, sys
import sentencepiece
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

shared = sys.argv[1]
special = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>",
           "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
special += [f"<|reserved_special_token_{i}|>" for i in range(3, 256 - 8)]
pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
           r"\s*[\r\n]+|\s+(?!\S)|\s+")
converted = TikTokenConverter(f"{shared}/tokenizers/llama3/tokenizer.model", pattern=pattern, additional_special_tokens=special).converted()
t3 = PreTrainedTokenizerFast(tokenizer_object=converted, bos_token=special[0], eos_token=special[1], additional_special_tokens=special)
sp = sentencepiece.SentencePieceProcessor(model_file=f"{shared}/tokenizers/llama2/tokenizer.model")
HEADER = "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
META = {
    "llama3": "{{ bos_token }}{% for message in messages %}{{ " + HEADER + " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "llama3.1": open(f"{shared}/templates/meta-llama-Llama-3.1-8B-Instruct.jinja").read(),
    "llama3.2": open(f"{shared}/templates/meta-llama-Llama-3.2-3B-Instruct.jinja").read(),
}


def meta(template, messages, prompt=False):
    return t3.apply_chat_template(messages, chat_template=META[template], date_string="26 Jul 2024", add_generation_prompt=prompt)


def rendered(template, messages):
    """ids, learned"""
    ids = meta(template, messages)
    learned = [0] * len(ids)
    for k, m in enumerate(messages):
        if m["role"] != "assistant":
            continue
        prompt, until = meta(template, messages[:k], True), meta(template, messages[: k + 1])
        assert until[: len(prompt)] == prompt and ids[: len(until)] == until
        learned[len(prompt) : len(until)] = [1] * (len(until) - len(prompt))
    return ids, learned


def llama2(messages):
    system = ""
    if messages[0]["role"] == "system":
        system, messages = f"<<SYS>>\n{messages[0]['content'].strip()}\n<</SYS>>\n\n", messages[1:]
    ids, learned = [], []
    for user, answer in zip(messages[::2], messages[1::2], strict=True):
        prompt = f"[INST] {system}{user['content'].strip()} [/INST]"
        head, both = sp.encode(prompt), sp.encode(f"{prompt} {answer['content'].strip()} ")
        assert both[: len(head)] == head
        ids += [1] + both + [2]
        learned += [0] * (1 + len(head)) + [1] * (len(both) - len(head) + 1)
        system = ""
    return ids, learned


ROLES = {"human": "user", "gpt": "assistant", "system": "system", "observation": "tool"}


def messages_of(r):
    if "conversations" in r:
        call = lambda v: {"role": "assistant", "tool_calls": [{"type": "function", "function": json.loads(v)}]}
        return [call(m["value"]) if m["from"] == "function_call" else {"role": ROLES[m["from"]], "content": m["value"]} for m in r["conversations"]]
    if "question" in r:
        return [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]
    output = r["output"] if "output" in r else r["response"]
    user = r["instruction"].strip() + "\n" + r["input"].strip() if r.get("input") else r["instruction"]
    return [{"role": "user", "content": user}, {"role": "assistant", "content": output}]


COLUMNS = {"gsm8k_train.jsonl": "prompt=question,completion=answer", "instruct_tiny.json": "output=response"}
rows = []
for name in ("alpaca_en_demo.json", "alpaca_tiny.json", "chat_tiny.json", "glaive_toolcall_en_demo.json", "gsm8k_train.jsonl", "identity.json", "instruct_tiny.json"):
    with open(f"{shared}/instructions/{name}") as file:
        records = [json.loads(line) for line in file] if name.endswith("l") else json.load(file)
    lists = [messages_of(r) for r in records]
    has_tools = any(m["role"] == "tool" for messages in lists for m in messages)
    for template in ("llama2", "llama3", "llama3.1", "llama3.2"):
        if has_tools and template in ("llama2", "llama3"):
            continue
        tokens, live, digest = 0, 0, 0
        for messages in lists:
            ids, learned = llama2(messages) if template == "llama2" else rendered(template, messages)
            tokens, live = tokens + len(ids), live + sum(learned)
            for i, l in zip(ids, learned, strict=True):
                digest = ((digest ^ (2 * i + l)) * 0x100000001B3) % 2**64
        rows.append({"file": name, "columns": COLUMNS.get(name, ""), "template": template, "records": len(lists), "tokens": tokens, "learned": live, "hash": f"{digest:016x}"})
        print(rows[-1], file=sys.stderr, flush=True)
print("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]")
