#!/usr/bin/env bash
# GGUF through the program: a model goes out in every kind and serves as a MODEL again; nothing is overwritten; a
# damaged file is refused.
set -uo pipefail
. "$(dirname "$0")/e2e.bash"
S=../shared/data/stories260K

make_folder base
for i in $(seq 60); do echo "The quick brown llama number $((i * 37 % 101)) ate $i apples and went home."; done >"$scratch/some.txt"
run 0 tokenizer train --vocab-size 300 -o "$scratch/tokenizer" "$scratch/some.txt"
trains() {
    run 0 pretrain output="$scratch/run" model.dim=64 model.n_layers=2 model.n_heads=4 model.n_kv_heads=2 \
        model.ffn_dim=80 model.max_context=64 tokenizer.path="$scratch/tokenizer" data.train="$scratch/some.txt" \
        train.steps=3 train.tokens_per_batch=128 train.tokens_per_microbatch=128 train.context=32
}
trains
tell "a small run" $?
text_of() { run 0 generate "$1" -p "The " -n 40 --temperature 0.8 --seed 3 && cp "$scratch/out" "$2" && [ -s "$2" ]; }
loss_of() { run 0 eval loss "$1" "$scratch/some.txt" --json && json_number loss "$scratch/out"; }
text_of "$scratch/run" "$scratch/expected"
loss=$(loss_of "$scratch/run")

near() { awk -v a="$1" -v b="$2" -v bound="$3" 'BEGIN { exit !(a != "" && b != "" && (a - b) ^ 2 <= bound ^ 2) }'; }
exports() { run 0 export --format gguf --dtype "$1" "$scratch/run" "$scratch/out-$1/m.gguf" && [ ! -s "$scratch/out" ] && [ "$(ls "$scratch/out-$1")" = "$(printf 'Modelfile\nm.gguf')" ]; }
for kind in f32:0 f16:1e-3 bf16:1e-2 q8_0:1e-2 q4_0:1e-1; do
    name=${kind%%:*}
    exports "$name" && near "$(loss_of "$scratch/out-$name/m.gguf")" "$loss" "${kind#*:}"
    tell "$name: one file and a Modelfile, and the loss stays within ${kind#*:}" $?
done
smaller() { [ "$(stat -c %s "$scratch/out-q4_0/m.gguf")" -lt "$(stat -c %s "$scratch/out-q8_0/m.gguf")" ] && [ "$(stat -c %s "$scratch/out-q8_0/m.gguf")" -lt "$(stat -c %s "$scratch/out-f16/m.gguf")" ]; }
smaller
tell "fewer bits make a smaller file" $?
gguf=$scratch/out-f32/m.gguf
text_of "$gguf" "$scratch/text" && cmp "$scratch/text" "$scratch/expected"
tell "f32 writes the run's text" $?
grep -q '^FROM ./m.gguf$' "$scratch/out-f32/Modelfile" && grep -q '^PARAMETER num_ctx 64$' "$scratch/out-f32/Modelfile"
tell "the Modelfile names the file and the context" $?
run 0 import "$gguf" "$scratch/imported" && text_of "$scratch/imported" "$scratch/text" && cmp "$scratch/text" "$scratch/expected"
tell "an imported GGUF writes the run's text" $?
run 0 export --format gguf "$scratch/imported" "$scratch/again.gguf" && cmp <(tail -c 20000 "$scratch/again.gguf") <(tail -c 20000 "$gguf")
tell "exported again, the numbers are the same bytes" $?
run 0 export "$gguf" "$scratch/hf" && text_of "$scratch/hf" "$scratch/text" && cmp "$scratch/text" "$scratch/expected"
tell "a GGUF becomes a Hugging Face directory with the run's text" $?
tokenizes() { "$cria" tokenize -t "$1" <"$scratch/some.txt"; }
cmp <(tokenizes "$gguf") <(tokenizes "$scratch/tokenizer")
tell "its tokenizer gives the run's ids" $?
inspects() { run 0 inspect "$gguf" && grep -q 'dim 64, 2 layers' "$scratch/out" && grep -q 'tokenizer: byte-level' "$scratch/out" && run 0 inspect --json "$scratch/out-q8_0/m.gguf" && grep -q 'Q8_0 × ' "$scratch/out"; }
inspects
tell "inspect shows shape, tokenizer and element types" $?
run 0 pretrain output="$scratch/on" model.base="$gguf" data.train="$scratch/some.txt" train.steps=1 train.tokens_per_batch=128 train.tokens_per_microbatch=128 train.context=32
tell "training goes on from a GGUF" $?

kept() { sum=$(sha256sum <"$gguf") && run 3 export --format gguf "$scratch/run" "$gguf" && says "nothing is overwritten" && [ "$sum" = "$(sha256sum <"$gguf")" ] && [ "$(ls "$scratch/out-f32" | wc -l)" -eq 2 ]; }
kept
tell "a file that is there is not overwritten" $?
beside() { run 0 export --format gguf --dtype f16 "$scratch/run" "$scratch/out-f32/n.gguf" && [ -s "$scratch/out-f32/n.Modelfile" ] && grep -q m.gguf "$scratch/out-f32/Modelfile"; }
beside
tell "nor is a Modelfile" $?
run 2 export --format gguf --dtype q5_1 "$scratch/run" "$scratch/no.gguf" && says "q8_0 or q4_0" && [ ! -e "$scratch/no.gguf" ]
tell "an unknown kind is named with those there are" $?
cut() { head -c "$1" "$gguf" >"$scratch/cut.gguf" && run 3 generate "$scratch/cut.gguf" -p x -n 1 && one_error && says cut.gguf; }
cut 10 && cut 1000 && cut $(($(stat -c %s "$gguf") - 100))
tell "a truncated file is refused" $?
bent() { cp "$gguf" "$scratch/bent.gguf" && printf '\377' | dd of="$scratch/bent.gguf" bs=1 seek="$1" conv=notrunc 2>/dev/null && timeout 20 "$cria" inspect "$scratch/bent.gguf" >"$scratch/out" 2>"$scratch/err"; [ $? -le 3 ]; }
bend_all() { for at in 0 5 9 17 25 31 40 60 100 200 400 800 1600 3200; do bent "$at" || return 1; done; }
bend_all
tell "a byte changed anywhere in the head never crashes" $?

if [ -e "$S/stories260K.bin" ]; then
    story() { run 0 export --format gguf "$S/stories260K.bin" "$scratch/$1.gguf" --dtype "$1" --tokenizer "$S/tok512.bin" && run 0 generate "$scratch/$1.gguf" -p "" -n 200 --temperature 0; }
    story f32 && cmp "$scratch/out" "$S/expected_greedy.txt"
    tell "stories260K as f32 writes the published text" $?
    story q8_0 && head -c 40 "$scratch/out" | cmp - <(head -c 40 "$S/expected_greedy.txt")
    tell "stories260K as q8_0 begins like it" $?
else
    skip "stories260K is absent"
fi
finish
