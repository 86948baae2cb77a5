#!/usr/bin/env bash
# Tokenizers on the command line: learn one, show it, text to ids and back.
set -uo pipefail
cd "$(dirname "$0")/.."
cria=${CRIA:-$PWD/build/cria}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0 failed=0

check() { # check "promise" command…
    local promise=$1
    shift
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $promise"; fi
}
status() { # status WANTED command…
    local wanted=$1
    shift
    timeout 60 "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
    [ $? -eq "$wanted" ]
}

for i in $(seq 300); do echo "{\"text\": \"line $i: the quick brown llama, number $((i * 37 % 101)), ate $i apples\"}"; done >"$scratch/a.jsonl"
seq -f "plain text %g of the other file" 200 >"$scratch/b.txt"

learns() { status 0 "$cria" tokenizer train --vocab-size 400 -o "$scratch/t" "$scratch/*.jsonl" "$scratch/b.txt" && [ ! -s "$scratch/out" ]; }
writes_all() { for f in tokenizer.json tokenizer_config.json special_tokens_map.json; do [ -s "$scratch/t/$f" ] || return 1; done; }
shows() { status 0 "$cria" tokenizer show "$scratch/t" && grep -q '^tokens  *400$' "$scratch/out" && grep -q '393  <|eot_id|>' "$scratch/out"; }
json_array() { [ "$(printf 'a\n\xff' | "$cria" tokenize -t bytes --bos --eos)" = "[256, 97, 10, 255, 257]" ]; }
empty_array() { [ "$(printf '' | "$cria" tokenize -t "$scratch/t")" = "[]" ]; }
comes_back() { "$cria" tokenize -t "$scratch/t" <README.md | "$cria" tokenize -t "$scratch/t" --decode | cmp - README.md; }
is_shorter() { [ "$(printf ' the quick brown llama' | "$cria" tokenize -t "$scratch/t" | tr -cd , | wc -c)" -lt 8 ]; }
special() { # one id where asked for, several where not
    [ "$(printf '<|eot_id|>' | "$cria" tokenize -t "$scratch/t" --special)" = "[393]" ] &&
        [ "$(printf '<|eot_id|>' | "$cria" tokenize -t "$scratch/t" | tr -cd , | wc -c)" -ge 3 ]
}
wrong_ids() { printf '[1, x]' | "$cria" tokenize -t bytes --decode 2>"$scratch/err"; [ $? -eq 3 ] && grep -q "expected a token id" "$scratch/err"; }
beyond() { printf '[999]' | "$cria" tokenize -t bytes --decode 2>"$scratch/err"; [ $? -eq 3 ] && grep -q 999 "$scratch/err"; }
no_tokenizer() { status 2 "$cria" tokenize; }
absent() { status 1 "$cria" tokenize -t /nonexistent || status 3 "$cria" tokenize -t /nonexistent; }
no_output() { status 2 "$cria" tokenizer train --vocab-size 400 "$scratch/b.txt"; }
no_verb() { status 2 "$cria" tokenizer; }

check "a tokenizer is learned from JSONL and text" learns
check "what transformers wants is written" writes_all
check "its size and special tokens are shown" shows
check "ids are a JSON array" json_array
check "no text is no ids" empty_array
check "a text comes back from its ids" comes_back
check "what was learned is used" is_shorter
check "special tokens are matched only with --special" special
check "what is no id is refused" wrong_ids
check "an id outside the vocabulary is refused" beyond
check "no tokenizer: wrong usage" no_tokenizer
check "an absent tokenizer: an error" absent
check "nowhere to write to: wrong usage" no_output
check "neither train nor show: wrong usage" no_verb

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
