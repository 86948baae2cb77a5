"""Small tokenizers of every kind, and the ids that their own libraries give for awkward texts.

Made with sentencepiece 0.2.3, tokenizers 0.22.2 and tiktoken 0.14.0:

    python tests/golden/tokenizer_files.py        # writes tests/golden/tokenizer_*

The corpus is synthetic (syllables drawn by a fixed seed), so that nothing here needs a licence.
"""
import base64
import io
import json
import os
import random
import tempfile

import sentencepiece as spm
import tiktoken
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

rng = random.Random(7)
SYLLABLES = [c + v for c in "bdgklmnprst" for v in "aeiou"] + ["fi", "sch", "ung", "é", "ß", "лю", "бо", "漢", "字"]
WORDS = ["".join(rng.choice(SYLLABLES) for _ in range(rng.choice([1, 1, 2, 2, 3]))) for _ in range(120)]
SENTENCES = [
    " ".join(rng.choice(WORDS) + rng.choice(["", "", "", ",", ".", "'s", "  "]) for _ in range(12)) for _ in range(400)
]

TEXTS = [
    "", " ", "  ", "   a", "a   ", " a  b   c ", "\n", "\n\n a\r\n\r\n  b\t\tc", SENTENCES[0], SENTENCES[1].upper(),
    "ba'S we'll I'VE he'D 'ſ it's", "1 12 123 1234 12345", "ﬁne ①②③ ＡＢ\u3000Ｃ so\u00adft", "<tool>ba<tool> <tool>", "x <tool>  y",
    "🦙 🦙🦙 漢字漢字", "\u2581ba\u2581\u2581da", "\x00\x01 \x7f", "<s>ba</s><unk><0x0A>", "éßлюбо ÉSS", "a" * 100, "ba" * 60,
    "tools.tool(tool)", "  \n  \n   ba", "ba\u00a0da\u2028go\u0085", "...!?;:--==##", "<pad> <mask> ba<mask>",
]
for n in (5, 20, 80):
    pool = SYLLABLES + list(" \n\t.,'0123456789ABZ") + ["  ", "ﬁ", "①", "<tool>", "🦙", "\u2581", "\u0301", "½"]
    TEXTS += ["".join(rng.choice(pool) for _ in range(n)) for _ in range(8)]


def train_spm(**options):
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, model_type="bpe", minloglevel=2, num_threads=1,
        hard_vocab_limit=False, **options,
    )
    return model.getvalue()


def write(name, data):
    with open(os.path.join(HERE, name), "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())


expected = {}


def add_spm(name, data):
    write(name, data)
    processor = spm.SentencePieceProcessor(model_proto=data)
    expected[name] = [processor.encode(t) for t in TEXTS]


with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf8") as rules:
    # code points in hex: "ﬁ" -> "fi", circled digits, full-width letters, an ideographic space, a soft hyphen, "'s" -> "`"
    for source, target in [("FB01", "66 69"), ("2460", "31"), ("2461", "32"), ("FF21", "41"), ("FF22", "42"), ("3000", "20"),
                           ("AD", ""), ("27 73", "60"), ("A", "20"), ("9", "20"), ("A 20", "20 21")]:
        rules.write(f"{source}\t{target}\n")
    rules.flush()
    add_spm(
        "tokenizer_rules.model",
        train_spm(vocab_size=480, byte_fallback=True, user_defined_symbols=["<tool>", "<mask>"], character_coverage=0.99,
                  normalization_rule_tsv=rules.name, remove_extra_whitespaces=True),
    )
add_spm(
    "tokenizer_llama.model",
    train_spm(vocab_size=500, byte_fallback=True, character_coverage=0.99, normalization_rule_name="identity",
              remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True),
)
plain = train_spm(vocab_size=220, byte_fallback=False, character_coverage=0.98, add_dummy_prefix=False,
                  normalization_rule_name="identity", remove_extra_whitespaces=False, control_symbols=["<pad>"])
model = pb.ModelProto()
model.ParseFromString(plain)
for i, piece in enumerate(model.pieces):
    if piece.type == pb.ModelProto.SentencePiece.NORMAL and i % 5 == 0:
        piece.type = pb.ModelProto.SentencePiece.UNUSED
add_spm("tokenizer_unused.model", model.SerializeToString())


def train_hf(tokenizer, **options):
    trainer = trainers.BpeTrainer(show_progress=False, **options)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def add_hf(name, tokenizer):
    write(name, tokenizer.to_str(pretty=True))
    expected[name] = [tokenizer.encode(t, add_special_tokens=False).ids for t in TEXTS]


t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
t.decoder = decoders.Metaspace(prepend_scheme="first", split=True)
add_hf("tokenizer_metaspace.json", train_hf(t, vocab_size=250, special_tokens=["<unk>", "<s>", "</s>"]))

t = Tokenizer(models.BPE())
t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
t.decoder = decoders.ByteLevel()
t = train_hf(t, vocab_size=420, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
t.add_tokens(["<mask>", "<tool>"])
add_hf("tokenizer_gpt2.json", t)

t = Tokenizer(models.BPE())
t.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
)
t.decoder = decoders.ByteLevel()
t = train_hf(t, vocab_size=440, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
add_hf("tokenizer_llama3.json", t)

# tiktoken's rank file of the same tokens: the rank is the id, the bytes first
spell = {}
n = 0
for b in range(256):
    printable = 0x21 <= b <= 0x7E or 0xA1 <= b <= 0xAC or 0xAE <= b <= 0xFF
    spell[chr(b) if printable else chr(256 + n)] = b
    n += not printable
ranks = {bytes(spell[c] for c in token): rank for token, rank in t.get_vocab().items()}
write("tokenizer_ranks.tiktoken",
      "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in sorted(ranks.items(), key=lambda x: x[1])))
encoding = tiktoken.Encoding(name="golden", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
expected["tokenizer_ranks.tiktoken"] = [encoding.encode(x, disallowed_special=()) for x in TEXTS]

write("tokenizers_expected.json", json.dumps({"texts": TEXTS, "ids": expected}, separators=(",", ":")) + "\n")
