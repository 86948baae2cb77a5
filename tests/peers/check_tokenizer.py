"""Compares `cria tokenize` with the library that made the kind of tokenizer: the same ids, and decoding gives the text.

python check_tokenizer.py TOKENIZER TEXT [TEXT ...] [--cria ./cria] [--train TEXT [TEXT ...]]
  TOKENIZER  tokenizer.json (Rust tokenizers), a SentencePiece .model, a tiktoken .model (Llama 3's split pattern), or a
             directory with a tokenizer.json, which transformers must load too
  --train    also trains a byte-level BPE of the same size on these texts with the Rust library, and compares how many
             tokens both need for TEXT ... (tokenizer.json only)
Special tokens are not matched in the texts. One JSON line for each text; exit status 1 where anything differs.
"""

import argparse
import json
import pathlib
import subprocess
import sys

# Llama 3's pattern, as its tokenizer.json has it
LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                r"|\s+(?!\S)|\s+")


def library(path):
    """(name, encode: str -> ids without special tokens, vocabulary size without special tokens)"""
    if path.suffix == ".json":
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        tokenizer.encode_special_tokens = True  # a special token's name in a text is text
        return ("tokenizers " + tokenizers.__version__,
                lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
                tokenizer.get_vocab_size() - len(tokenizer.get_added_tokens_decoder()))
    if path.read_bytes()[:1] == b"\n":  # a protocol buffer's first field
        import sentencepiece

        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
        return "sentencepiece " + sentencepiece.__version__, tokenizer.encode, tokenizer.get_piece_size()
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(str(path))
    tokenizer = tiktoken.Encoding("llama3", pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens={})
    return "tiktoken " + tiktoken.__version__, tokenizer.encode_ordinary, len(ranks)


def train(texts, size):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train([str(text) for text in texts], trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def run(cria, *arguments, stdin):
    done = subprocess.run([cria, "tokenize", *arguments], input=stdin, capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(f"cria tokenize {' '.join(arguments)}: {done.stderr.decode()}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer", type=pathlib.Path)
    parser.add_argument("texts", type=pathlib.Path, nargs="+")
    parser.add_argument("--cria", default="./cria")
    parser.add_argument("--train", type=pathlib.Path, nargs="+")
    options = parser.parse_args()
    path = options.tokenizer
    transformers_encode = None
    if path.is_dir():
        from transformers import AutoTokenizer

        fast = AutoTokenizer.from_pretrained(path)
        transformers_encode = lambda text: fast.encode(text, add_special_tokens=False, split_special_tokens=True)
        path = path / "tokenizer.json"
    name, encode, size = library(path)
    trained = train(options.train, size) if options.train else None

    failed = False
    for text in options.texts:
        raw = text.read_bytes()
        decoded = raw.decode()  # bytes, so that line ends stay as they are
        found = run(options.cria, "-t", str(options.tokenizer), stdin=raw)
        ids, expected = json.loads(found), encode(decoded)
        back = run(options.cria, "-t", str(options.tokenizer), "--decode", stdin=found)
        result = dict(text=text.name, library=name, tokens=len(ids), same_ids=ids == expected, round_trip=back == raw)
        if not result["same_ids"]:
            at = next((i for i, (a, b) in enumerate(zip(ids, expected)) if a != b), min(len(ids), len(expected)))
            result["first_difference"] = dict(at=at, cria=ids[at:at + 4], library=expected[at:at + 4])
        if transformers_encode:
            result["same_in_transformers"] = ids == transformers_encode(decoded)
        failed |= not all(value for key, value in result.items() if key.startswith(("same", "round")))
        if trained:
            result["tokens_of_library_trained"] = n = len(trained(decoded))
            result["excess"] = round(len(ids) / n - 1, 5)
            failed |= result["excess"] > 0.005
        print(json.dumps(result), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
