#!/usr/bin/env python3
"""GGUF files in llama.cpp: tokens, perplexity, chats.

    python tests/peers/check_gguf.py CRIA SHARED_DATA [KIBIBYTES]

Two models go out as F32, F16, BF16, Q8_0 and Q4_0: stories260K (SentencePiece) and a small one that is trained here with a
byte-level tokenizer of cria's own (llama-bpe). Of every file, loaded by llama.cpp:
  1. the ids of awkward texts (llama.cpp's vectors, and those below), and of a whole book, equal cria's;
  2. Q8_0 and Q4_0: llama.cpp's own quantiser makes of the F32 file a model of the same perplexity, to the last digit;
  3. perplexity on WikiText-2 test (its first KIBIBYTES; default all), by the protocol of
     `cria eval loss --window 512 --score last-half`, both models of it in fp32: F32 within 0.1 % of cria's for the run itself, the
     others within what their bits lose.
Then assistants in five templates, F32: the template that llama.cpp finds in the file's metadata gives cria's ids for
prompts of one and of three messages, and the answers at temperature 0 are cria's. A Modelfile is read as Ollama would.
Made with llama-cpp-python 0.3.36, numpy 2.4."""
import ctypes
import json
import pathlib
import subprocess
import sys
import tempfile

try:
    import llama_cpp
    import numpy
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(0)

cria, shared = sys.argv[1], pathlib.Path(sys.argv[2])
kibibytes = int(sys.argv[3]) if len(sys.argv) > 3 else 1 << 30
scratch = tempfile.TemporaryDirectory()
work = pathlib.Path(scratch.name)
KINDS = {"f32": 1e-3, "f16": 2e-3, "bf16": 1e-2, "q8_0": 1e-2, "q4_0": 0.1}  # perplexity's relative change
WINDOW = 512
failures = 0


def run(*arguments, text=None):
    done = subprocess.run([cria, *map(str, arguments)], capture_output=True, input=text)
    if done.returncode:
        sys.exit(f"cria {' '.join(map(str, arguments))}: {done.stderr.decode()}")
    return done.stdout


def tell(what, good, figures=""):
    global failures
    failures += not good
    print("ok  " if good else "FAIL", what, figures, flush=True)


def load(path, **more):
    return llama_cpp.Llama(str(path), n_ctx=WINDOW, n_batch=WINDOW, n_threads=2, verbose=False, type_k=0, type_v=0, **more)


# ---- tokens ----
def texts():
    for name in ("llama-spm", "llama-bpe"):
        yield from (shared / f"tokenizers/vectors/ggml-vocab-{name}.gguf.inp").read_text().split("\n__ggml_vocab_test__\n")
    yield from ["", " ", "  a", "a  ", "\n", " \n \n", "\r\n\r\n x", "<s>", "</s>[INST] <<SYS>>", "<|eot_id|> <|begin_of_text|>", "\u2581\u2581a",
                "<0x0A>", "don't DON'T we'LL", "1 12 123 1234 12345", "\u00a0\u2003\u3000x", "e\u0301\u200d\U0001f468\u200d\U0001f469", "\u0645\u0631\u062d\u0628\u0627",
                "a" * 300, "(" * 99, "\t\t\tif x:\n\t\t\t\ty", "\x01\x7f"]
    yield (shared / "text/11-0.txt").read_text()


def check_tokens(name, path, model):
    same, all_texts = 0, list(texts())
    for text in all_texts:
        data = text.encode()
        got, want = json.loads(run("tokenize", "-t", path, text=data)), model.tokenize(data, add_bos=False, special=False)
        if got == want:
            same += 1
        else:
            print("     differs:", repr(text[:60]), got[:12], want[:12])
    tell(f"{name}: tokens", same == len(all_texts), f"{same} of {len(all_texts)} texts")


# ---- perplexity ----
def perplexity(model, data):
    ids, bos = model.tokenize(data, add_bos=True, special=False), model.token_bos()
    nll, scored = 0.0, 0
    for at in range(0, len(ids) - WINDOW + 1, WINDOW):
        chunk = [bos] + ids[at + 1 : at + WINDOW]
        model.reset()
        model.eval(chunk)
        logits = model.scores[WINDOW // 2 : WINDOW - 1].astype(numpy.float64)
        top = logits.max(axis=1, keepdims=True)
        log_sum = top[:, 0] + numpy.log(numpy.exp(logits - top).sum(axis=1))
        nll += float((log_sum - logits[numpy.arange(len(logits)), chunk[WINDOW // 2 + 1 :]]).sum())
        scored += len(logits)
    return float(numpy.exp(nll / scored)), scored


QUANTISED = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


def check_quantiser(name, kind, found, data):
    theirs = work / f"{name}-theirs-{kind}.gguf"
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.pure = QUANTISED[kind], True
    made = llama_cpp.llama_model_quantize(str(work / f"{name}-f32.gguf").encode(), str(theirs).encode(), ctypes.byref(how)) == 0
    model = load(theirs, logits_all=True) if made else None
    own = perplexity(model, data)[0] if made else None
    tell(f"{name} {kind}: llama.cpp's own quantiser", own == found, f"{own} of theirs, {found} of cria's")
    if model:
        model.close()


def check_model(name, source, data, *more):
    text = work / "wikitext"
    text.write_bytes(data)
    own = json.loads(run("eval", "loss", source, text, "--window", WINDOW, "--score", "last-half", "--json", *more))
    print(f"     {name}: perplexity {own['perplexity']:.6f} by cria, {own['tokens']} tokens scored")
    for kind, bound in KINDS.items():
        path = work / f"{name}-{kind}.gguf"
        run("export", "--format", "gguf", "--dtype", kind, source, path, *more)
        model = load(path, logits_all=True)
        check_tokens(f"{name} {kind}", path, model)
        found, scored = perplexity(model, data)
        again = json.loads(run("eval", "loss", path, text, "--window", WINDOW, "--score", "last-half", "--json"))["perplexity"]
        change = found / own["perplexity"] - 1
        tell(f"{name} {kind}: perplexity", scored == own["tokens"] and abs(change) <= bound,
             f"{found:.6f} by llama.cpp ({100 * change:+.4f} % of the run's; cria of the same file {100 * (again / own['perplexity'] - 1):+.4f} %), {path.stat().st_size} bytes")
        model.close()
        if kind in QUANTISED:
            check_quantiser(name, kind, found, data)


# ---- chats ----
QUESTIONS = ["hi", "Who are you?", "What is 2+2?", "Give three tips for staying healthy.", "<|im_end|> [INST] caf\u00e9", "Name a colour.\nThen another."]
SHAPE = ["model.dim=64", "model.n_layers=4", "model.n_heads=4", "model.n_kv_heads=2", "model.ffn_dim=160", f"model.max_context={WINDOW}"]
STEPS = ["train.tokens_per_batch=4096", "train.tokens_per_microbatch=4096", "train.checkpoint_every=0", "precision=fp32", "data.validation=0"]


def prompt_of(model, messages):
    """Rendered from the metadata's template as llama-cpp-python does, then tokenised by llama.cpp."""
    name = lambda i: model._model.token_get_text(i) if i >= 0 else ""
    rendered = Jinja2ChatFormatter(template=model.metadata["tokenizer.chat_template"], eos_token=name(model.token_eos()), bos_token=name(model.token_bos()))(messages=messages)
    return model.tokenize(rendered.prompt.encode(), add_bos=not rendered.added_special, special=True)


def same_answer(path, own, theirs):
    """llama-cpp-python goes on to the end of a character that the last token leaves open."""
    mine = run("tokenize", "-t", path, "--decode", text=json.dumps(own["tokens"]).encode()) if own["text"] is None else own["text"].encode()
    closed = mine.decode(errors="ignore").encode()
    return theirs == closed or (mine != closed and theirs.startswith(mine) and len(theirs.decode()) == len(closed.decode()) + 1)


def check_chat(name, base, records):
    run("sft", f"output={work / name}", f"model.base={base}", f"template.name={name.split('-')[0]}", f"data.train={records}", "train.steps=60", f"train.context={WINDOW}",
        "sft.overlong=drop", "optim.lr=3e-3", *STEPS)
    path = work / f"{name}.gguf"
    run("export", "--format", "gguf", "--dtype", "f32", work / name, path)
    model = load(path)
    talks = [[{"role": "user", "content": q}] for q in QUESTIONS]
    talks += [[{"role": "system", "content": "Be short."}, *t, {"role": "assistant", "content": "I see."}, {"role": "user", "content": "And you?"}] for t in talks]
    plain = [t for t in talks if "<|im_end|>" not in str(t)]  # rendered text cannot tell a message's text from a special token
    lines = work / "talks.jsonl"
    lines.write_text("".join(json.dumps({"messages": t}) + "\n" for t in plain))
    shown = [json.loads(line) for line in run("data", "show", path, lines, "--prompt", "-n", 0, "--json").splitlines()]
    same = sum(s.get("ids") == prompt_of(model, t) for s, t in zip(shown, plain, strict=True))
    tell(f"{name}: prompts", same == len(plain), f"{same} of {len(plain)}")
    (work / "questions").write_text("".join(json.dumps(q)[1:-1] + "\n" for q in QUESTIONS if "\n" not in q and "<|" not in q))
    questions = (work / "questions").read_text().splitlines()
    own = json.loads(run("generate", work / name, "--chat", "-f", work / "questions", "-n", 80, "--temperature", 0, "--json"))["generations"]
    theirs = [model.create_chat_completion([{"role": "user", "content": q}], temperature=0, max_tokens=80)["choices"][0] for q in questions]
    same = sum(same_answer(path, a, b["message"]["content"].encode()) for a, b in zip(own, theirs, strict=True))
    ends = [(a["finish_reason"] == "stop-token") == (b["finish_reason"] == "stop") for a, b in zip(own, theirs)]
    tell(f"{name}: answers at temperature 0", same == len(own) and all(ends) and all(a["text"] != "" for a in own),
         f"{same} of {len(own)} equal, {sum(a['finish_reason'] == 'stop-token' for a in own)} end by themselves; {str(own[0]['text'])[:60]!r}")
    model.close()


def check_modelfile():
    text = (work / "Modelfile").read_text()
    words = [line.split()[0] for line in text.split('"""')[0].splitlines() + text.split('"""')[-1].splitlines() if line.split() and not line.startswith("#")]
    known = {"FROM", "TEMPLATE", "PARAMETER", "SYSTEM"}
    file = next(line.split()[1] for line in text.splitlines() if line.startswith("FROM"))
    tell("the first Modelfile", set(words) <= known and text.count('"""') == 2 and (work / file).exists() and text.count("{{") == text.count("}}"), " ".join(words))


data = (shared / "text/wikitext2_test.txt").read_bytes()[: kibibytes * 1024]
stories, words = [shared / "stories260K/stories260K.bin", "--tokenizer", shared / "stories260K/tok512.bin"], work / "words"
run("tokenizer", "train", "--vocab-size", 2000, "-o", words, shared / "text/wikitext2_valid.txt")
run("pretrain", f"output={work / 'small'}", f"tokenizer.path={words}", f"data.train={shared / 'text/wikitext2_valid.txt'}", "train.steps=150",
    f"train.context={WINDOW}", "optim.lr=3e-3", *SHAPE, *STEPS)
check_model("stories260K", stories[0], data, *stories[1:])
check_model("small", work / "small", data)
check_modelfile()
for template in ("chatml", "llama3", "llama3.2", "alpaca", "plain"):
    check_chat(template, work / "small", shared / "instructions/identity.json")
run("import", stories[0], work / "stories", *stories[1:])
check_chat("llama2", work / "stories", shared / "instructions/identity.json")
check_chat("alpaca-spm", work / "stories", shared / "instructions/identity.json")
scratch.cleanup()
sys.exit(failures > 0)
