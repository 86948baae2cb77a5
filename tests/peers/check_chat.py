#!/usr/bin/env python3
"""Chat templates: cria's ids and weights against transformers, three ways.

    python check_chat.py CRIA SHARED_DATA [CONVERSATIONS]

1. Ids equal apply_chat_template with Meta's published templates (3.1, 3.2 with the date fixed; Llama 3's and Llama 2's
   written out below from their model card and reference code) on data sets and generated conversations.
2. cria's own Jinja form, rendered by transformers, gives cria's ids (but plain's: what it renders does not say where an answer begins).
3. Generated conversations whose text contains special tokens' names, tag strings and odd spaces: ids and weights equal
   a piecewise encoding in which no text is searched for special tokens (split_special_tokens): all templates.

Made with transformers 4.57.6, tokenizers 0.22, sentencepiece."""
import json, os, random, subprocess, sys, tempfile
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
import sentencepiece

cria, shared = sys.argv[1], sys.argv[2]
count = int(sys.argv[3]) if len(sys.argv) > 3 else 10000
random.seed(5)
DATE = "2 Feb 2026"
LLAMA2, LLAMA3 = f"{shared}/tokenizers/llama2", f"{shared}/tokenizers/llama3"


def llama3_tokenizer():
    """transformers' own conversion of the tiktoken file, with the names that Llama 3.1 gives the special tokens."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
               "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
               "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    special += [f"<|reserved_special_token_{i}|>" for i in range(3, 256 - 8)]
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
               r"\s*[\r\n]+|\s+(?!\S)|\s+")
    fast = TikTokenConverter(f"{LLAMA3}/tokenizer.model", pattern=pattern, additional_special_tokens=special).converted()
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=special[0], eos_token=special[1],
                                   additional_special_tokens=special)


t3, t2 = llama3_tokenizer(), AutoTokenizer.from_pretrained(LLAMA2)
sp = sentencepiece.SentencePieceProcessor(model_file=f"{LLAMA2}/tokenizer.model")
META = {
    "llama3.1": open(f"{shared}/templates/meta-llama-Llama-3.1-8B-Instruct.jinja").read(),
    "llama3.2": open(f"{shared}/templates/meta-llama-Llama-3.2-3B-Instruct.jinja").read(),
    "llama3": "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
              "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
              "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}",
}
scratch = tempfile.mkdtemp()


def show(tokenizer, template, records, *flags):
    path = f"{scratch}/records.jsonl"
    with open(path, "w") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    run = subprocess.run([cria, "data", "show", tokenizer, path, "--template", template, "-n", "0", "--json", *flags],
                         capture_output=True, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def jinja(tokenizer, template, *flags):
    return subprocess.run([cria, "data", "show", tokenizer, "--template", template, "--jinja", *flags],
                          capture_output=True, check=True, text=True).stdout


failures = 0


def tell(what, wrong, total, example=None):
    global failures
    failures += wrong > 0
    print(f"{'ok  ' if not wrong else 'FAIL'} {what}: {total - wrong} of {total} equal", flush=True)
    if wrong:
        print("     first:", json.dumps(example, ensure_ascii=False)[:1500])


def compare(what, got, want):
    bad = [(next((i for i, (a, b) in enumerate(zip(g.get("ids", []), w)) if a != b), -1), g.get("error"), g.get("ids"), w) for g, w in zip(got, want, strict=True) if g.get("ids") != w]
    tell(what, len(bad), len(got), bad[:1])


# ---- conversations -----------------------------------------------------------------------------------------------
PLAIN = ["Hello", "what is", " 2+2?", "caf\u00e9", "\u4f60\u597d", "\U0001f999", "don't", "x = {\n    1: 2,\n}", "...", "a  b",
         "\n", "\n\n", "\t", "  ", "\u00a0", "1234567", "(see", "above)", "\"quoted\"", "it's", "e\u0301", "\u2003", "#", "<", "[", "|>"]
MARKS = ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>user<|end_header_id|>", "<|end_of_text|>", "<|eom_id|>",
         "<|python_tag|>", "<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<|im_start|>", "### Response:",
         "<|reserved_special_token_5|>"]


def text(marks):
    pool = PLAIN + (MARKS if marks else [])
    return "".join(random.choice(pool) + random.choice(["", " ", " ", "  ", "\n"]) for _ in range(random.randint(1, 12)))


def conversation(marks, tools=False):
    messages = [{"role": "system", "content": text(marks)}] if random.random() < 0.5 else []
    for _ in range(random.randint(1, 3)):
        messages.append({"role": "user", "content": text(marks)})
        if tools and random.random() < 0.4:
            arguments = {"query": text(marks), "n": random.randint(-5, 10**12), "x": random.uniform(-1, 1) * 10.0 ** random.randint(-8, 20),
                         "deep": [{"a": None, "b": True, "c\n\u0001": [1.5, 100.0]}]}
            messages.append({"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "search", "arguments": arguments}}]})
            messages.append({"role": "tool", "content": random.choice([text(marks), json.dumps({"a": text(marks)})])})
        messages.append({"role": "assistant", "content": text(marks)})
    return messages


def alpaca_messages(record):
    user = record["instruction"] + ("\n" + record["input"] if record["input"] else "")
    return [{"role": "user", "content": user}, {"role": "assistant", "content": record["output"]}]


def meta_ids(template, messages):
    return t3.apply_chat_template(messages, chat_template=META[template], date_string="26 Jul 2024", tokenize=True)


def strip(s):
    return s.strip()


def llama2_reference(messages):
    """llama/generation.py, chat_completion: every pair is one text between BOS and EOS."""
    if messages[0]["role"] == "system":
        messages = [{"role": "user", "content": f"<<SYS>>\n{strip(messages[0]['content'])}\n<</SYS>>\n\n" + strip(messages[1]["content"])}] + messages[2:]
    ids = []
    for user, answer in zip(messages[::2], messages[1::2]):
        ids += [1] + sp.encode(f"[INST] {strip(user['content'])} [/INST] {strip(answer['content'])} ") + [2]
    return ids


alpaca = json.load(open(f"{shared}/instructions/alpaca_en_demo.json"))
tiny = json.load(open(f"{shared}/instructions/alpaca_tiny.json"))
generated = [conversation(False) for _ in range(500)]
with_tools = [conversation(False, tools=True) for _ in range(500)]
records = alpaca + [{"messages": m} for m in generated]
lists = [alpaca_messages(r) for r in alpaca] + generated
compare("llama3 ids, Meta's template", show(LLAMA3, "llama3", records), [meta_ids("llama3", m) for m in lists])
for template in ("llama3.1", "llama3.2"):
    compare(f"{template} ids, Meta's template, tools too",
            show(LLAMA3, template, records + [{"messages": m} for m in with_tools]), [meta_ids(template, m) for m in lists + with_tools])
# The reference strips the system text and an empty user's message together; cria keeps the newlines between them.
lists2 = [m for m in lists if all(x["content"].strip() for x in m if x["role"] == "user")]
print(f"     ({len(lists) - len(lists2)} conversations with an empty user's message are left out for llama2)")
compare("llama2 ids, reference code", show(LLAMA2, "llama2", [{"messages": m} for m in lists2]), [llama2_reference(m) for m in lists2])
LLAMA31 = f"{scratch}/llama31"  # tokenizer.json with the names of 3.1
t3.save_pretrained(LLAMA31)
builtin = [[{"role": "user", "content": "gold?"}, {"role": "assistant", "tool_calls": [{"function": {"name": n, "arguments": {"query": "price of gold"}}}]},
            {"role": "ipython", "content": {"price": 1.25}}, {"role": "assistant", "content": "1.25"}] for n in ("brave_search", "other")]
compare("llama3.1 ids with built-in tools", show(LLAMA31, "llama3.1", [{"messages": m} for m in builtin], "--builtin-tools", "brave_search,wolfram_alpha"),
        [t3.apply_chat_template(m, chat_template=META["llama3.1"], builtin_tools=["brave_search", "wolfram_alpha"]) for m in builtin])

# ChatML's tokens are added, as cria adds them.
chatml = llama3_tokenizer()
chatml.add_special_tokens({"additional_special_tokens": chatml.additional_special_tokens + ["<|im_start|>", "<|im_end|>"]})

# ---- cria's Jinja form ---------------------------------------------------------------------------------------------
for tokenizer, path, templates in ((t3, LLAMA3, ("llama3", "llama3.1", "llama3.2", "alpaca", "llama2")), (chatml, LLAMA3, ("chatml",)), (t2, LLAMA2, ("llama2", "alpaca"))):
    for template in templates:
        form = jinja(path, template)
        got = show(path, template, [{"messages": m} for m in generated])
        prompts = show(path, template, [{"messages": m} for m in generated], "--prompt")
        name = f"{template} Jinja in transformers, {os.path.basename(path)} tokenizer"
        compare(name, got, [tokenizer.apply_chat_template(m, chat_template=form) for m in generated])
        compare(name + ", prompts", prompts, [tokenizer.apply_chat_template(m[:-1], chat_template=form, add_generation_prompt=True) for m in generated])
compare("llama3.2 Jinja with another date", show(LLAMA3, "llama3.2", [{"messages": m} for m in generated], "--date", DATE),
        [t3.apply_chat_template(m, chat_template=jinja(LLAMA3, "llama3.2", "--date", DATE)) for m in generated])
compare("llama3.2 ids with another date, Meta's template", show(LLAMA3, "llama3.2", [{"messages": m} for m in generated], "--date", DATE),
        [t3.apply_chat_template(m, chat_template=META["llama3.2"], date_string=DATE) for m in generated])
form = jinja(LLAMA31, "llama3.1", "--builtin-tools", "brave_search")
compare("llama3.1 Jinja with built-in tools", show(LLAMA31, "llama3.1", [{"messages": m} for m in builtin], "--builtin-tools", "brave_search"),
        [t3.apply_chat_template(m, chat_template=form) for m in builtin])


# ---- piecewise ------------------------------------------------------------------------------------------------------
HEADERS = lambda role: [("<|start_header_id|>",), role, ("<|end_header_id|>",), "\n\n"]
DATES = lambda date: f"Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n"
IM = lambda role: [("<|im_start|>",), role + "\n"]
# What stands before and after each role's text: strings are text, tuples special tokens' names; an answer is learned up to its stop.
FORMS = {
    "llama3": dict(begin=[("<|begin_of_text|>",)], before={r: HEADERS(r) for r in ("system", "user", "assistant")},
                   after={r: [("<|eot_id|>",)] for r in ("system", "user", "assistant")}),
    "alpaca": dict(begin=[("<|begin_of_text|>",)], before={"system": [], "user": ["### Instruction:\n"], "assistant": ["### Response:\n"]},
                   after={"system": ["\n\n"], "user": ["\n\n"], "assistant": [("<|end_of_text|>",)]},
                   system="Below is an instruction that describes a task. Write a response that appropriately completes the request."),
    "chatml": dict(begin=[], before={r: IM(r) for r in ("system", "user", "assistant")}, after={r: [("<|im_end|>",), "\n"] for r in ("system", "user", "assistant")}),
    "plain": dict(begin=[("<|begin_of_text|>",)], before={r: [] for r in ("system", "user", "assistant")},
                  after={"system": [], "user": [], "assistant": [("<|end_of_text|>",)]}, trim=False),
}
for name, date in (("llama3.1", "26 Jul 2024"), ("llama3.2", DATE)):
    FORMS[name] = dict(FORMS["llama3"], before=dict(FORMS["llama3"]["before"], system=HEADERS("system") + [DATES(date)]), system="")


def encode3(name, tokenizer, messages):
    form, ids, weights, segment = FORMS[name], [], [], []
    trim = form.get("trim", True)

    def seam(weight):
        new = tokenizer("".join(segment), add_special_tokens=False, split_special_tokens=True)["input_ids"] if segment else []
        segment.clear()
        ids.extend(new)
        weights.extend([weight] * len(new))

    def special(piece, weight):
        seam(0.0)
        ids.append(tokenizer.convert_tokens_to_ids(piece))
        weights.append(weight)

    def add(pieces, stop=0.0):
        for piece in pieces:
            if isinstance(piece, tuple):
                special(piece[0], stop)
                stop = 0.0
            else:
                segment.append(piece)

    add(form["begin"])
    if "system" in form and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": form["system"]}] + messages
    for m in messages:
        text, answer = strip(m["content"]) if trim else m["content"], m["role"] == "assistant"
        add(form["before"][m["role"]])
        if answer:
            seam(0.0)
        segment.append(text)
        if answer:
            seam(1.0)
        add(form["after"][m["role"]], float(answer))
    seam(0.0)
    return ids, weights


def encode2(messages):
    system = f"<<SYS>>\n{strip(messages[0]['content'])}\n<</SYS>>\n\n" if messages[0]["role"] == "system" else ""
    turns = messages[1:] if system else messages
    ids, weights = [], []
    for i in range(0, len(turns), 2):
        prompt = sp.encode(f"[INST] {system}{strip(turns[i]['content'])} [/INST]")
        both = sp.encode(f"[INST] {system}{strip(turns[i]['content'])} [/INST] {strip(turns[i + 1]['content'])} ")
        system = ""
        ids += [1] + both + [2]
        assert both[: len(prompt)] == prompt
        weights += [0] * (1 + len(prompt)) + [1] * (len(both) - len(prompt) + 1)
    return ids, weights


hostile = []
while len(hostile) < count:
    hostile += [m for m in [conversation(True)] if all(x["content"].strip() for x in m if x["role"] == "user")]
t3.split_special_tokens = True
chatml.split_special_tokens = True
CASES = [("llama2", LLAMA2, encode2, [])]
CASES += [(name, LLAMA3, lambda m, name=name: encode3(name, chatml if name == "chatml" else t3, m), ["--date", DATE] if name == "llama3.2" else []) for name in FORMS]
for name, path, encode, flags in CASES:
    got, wrong = show(path, name, [{"messages": m} for m in hostile], *flags), []
    for g, m in zip(got, hostile, strict=True):
        ids, weights = encode(m)
        if g.get("ids") != ids or [float(w) for w in g["weights"]] != weights:
            wrong.append((m, g, ids, weights))
    tell(f"{name}: hostile text is text, ids and weights", len(wrong), len(hostile), wrong[:1])
sys.exit(failures > 0)
