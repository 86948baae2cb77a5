#!/usr/bin/env bash
# Models in and out of cria, as their user does it: whatever form a model is in, it writes the same text.
set -uo pipefail
cd "$(dirname "$0")/.."
cria=${CRIA:-$PWD/build/cria}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0 failed=0 skipped=0
S=../shared/data/stories260K

# status WANTED ARGUMENTS…: keeps $out and $err
status() {
    local wanted=$1 found
    shift
    timeout 120 "$cria" "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
    found=$?
    out=$(tr -d "\0" <"$scratch/out") err=$(<"$scratch/err")
    [ "$found" -eq "$wanted" ] && return 0
    echo "cria $*: status $found, expected $wanted"
    return 1
}
ok() { status 0 "$@"; }
check() { # check "promise" command…
    local promise=$1
    shift
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $promise"; echo "  stdout: $out"; echo "  stderr: $err"; fi
}
text_of() { ok generate "$1" -p "The " -n 40 --temperature 0.8 --seed 3 && cp "$scratch/out" "$2"; }
same_text() { text_of "$1" "$scratch/text" && cmp "$scratch/text" "$scratch/expected"; }
contents() { (cd "$1" && find . -type f -exec sha256sum {} + | sort); }

# A run of a few steps, with a tokenizer of its own.
for i in $(seq 200); do echo "The quick brown llama number $((i * 37 % 101)) ate $i apples and went home."; done >"$scratch/text.txt"
ok tokenizer train --vocab-size 400 -o "$scratch/tokenizer" "$scratch/text.txt" || exit 1
run=(output="$scratch/run" model.dim=32 model.n_layers=2 model.n_heads=4 model.n_kv_heads=2 model.max_context=128
    tokenizer.path="$scratch/tokenizer" data.train="$scratch/text.txt" train.steps=4 train.tokens_per_batch=256
    train.tokens_per_microbatch=256 train.context=64)
trains() { ok pretrain "${run[@]}" && text_of "$scratch/run" "$scratch/expected" && [ -s "$scratch/expected" ]; }
check "a small run" trains

imports_run() { ok import "$scratch/run" "$scratch/imported" && [ -z "$out" ] && grep -q '^import: .* parameters in fp32' <<<"$err" && same_text "$scratch/imported"; }
exports_run() { ok export --format hf "$scratch/run" "$scratch/hf" && [ -z "$out" ] && same_text "$scratch/hf"; }
has_files() { for f in config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json special_tokens_map.json; do [ -s "$scratch/hf/$f" ] || return 1; done; [ "$(ls "$scratch/hf" | wc -l)" -eq 6 ]; }
exports_import() { ok export "$scratch/imported" "$scratch/hf2" && diff <(contents "$scratch/hf") <(contents "$scratch/hf2"); }
imports_hf() { ok import "$scratch/hf" "$scratch/again" && same_text "$scratch/again"; }
imports_step() { ok import "$scratch/run/checkpoints/step-4" "$scratch/step" && same_text "$scratch/step"; }
shards() { ok export "$scratch/run" "$scratch/shards" --shard-size 50kB && [ "$(ls "$scratch"/shards/model-*-of-*.safetensors | wc -l)" -gt 1 ] && same_text "$scratch/shards" && ok import "$scratch/shards" "$scratch/joined" && same_text "$scratch/joined"; }
half() { ok export "$scratch/run" "$scratch/$1" --dtype "$1" && ok import "$scratch/$1" "$scratch/$1-imported" && text_of "$scratch/$1" "$scratch/text" && text_of "$scratch/$1-imported" "$scratch/text2" && cmp "$scratch/text" "$scratch/text2" && grep -q "\"torch_dtype\": \"$2\"" "$scratch/$1/config.json"; }
inspects() { ok inspect "$scratch/imported" && grep -q 'step 0: verified' <<<"$out" && ok inspect --json "$scratch/hf"; }
measures() { ok eval loss "$scratch/imported" "$scratch/text.txt" --json && cp "$scratch/out" "$scratch/loss" && ok eval loss "$scratch/run" "$scratch/text.txt" --json && [ "$(grep -o '"loss": *[0-9.]*' "$scratch/out")" = "$(grep -o '"loss": *[0-9.]*' "$scratch/loss")" ]; }
# the same run from the same parameters, whatever they are stored in
continues() { ok pretrain output="$scratch/$2" model.base="$1" data.train="$scratch/text.txt" train.steps=2 train.tokens_per_batch=256 train.tokens_per_microbatch=256 train.context=64; }
trains_on() { continues "$scratch/imported" next1 && continues "$scratch/hf" next2 && ok import "$scratch/next1" "$scratch/n1" && ok import "$scratch/next2" "$scratch/n2" && text_of "$scratch/n1" "$scratch/t1" && text_of "$scratch/n2" "$scratch/t2" && cmp "$scratch/t1" "$scratch/t2"; }
check "an imported run writes the same text" imports_run
check "an exported run writes the same text" exports_run
check "an export has what transformers wants, and nothing else" has_files
check "exports of a run and of its import are the same bytes" exports_import
check "an imported Hugging Face directory writes the same text" imports_hf
check "a single checkpoint is imported" imports_step
check "shards are written and read" shards
check "bf16: export, import and both write one text" half bf16 bfloat16
check "fp16: export, import and both write one text" half fp16 float16
check "an imported model is inspected" inspects
check "an imported model has the run's loss" measures
keeps() { # what a model brings along stays with what is trained from it
    cp -r "$scratch/hf" "$scratch/chatty" && printf '{{ messages }}' >"$scratch/chatty/chat_template.jinja" &&
        sed -i 's/"eos_token_id": [0-9]*/"eos_token_id": [5, 7]/' "$scratch/chatty/generation_config.json" "$scratch/chatty/config.json" &&
        continues "$scratch/chatty" next3 && ok export "$scratch/next3" "$scratch/next3-hf" &&
        cmp "$scratch/next3-hf/chat_template.jinja" "$scratch/chatty/chat_template.jinja" &&
        diff -w <(tr -d '\n' <"$scratch/next3-hf/generation_config.json") <(tr -d '\n' <"$scratch/chatty/generation_config.json") &&
        tr -d ' \n' <"$scratch/next3-hf/config.json" | grep -q '"eos_token_id":\[5,7\]'
}
check "stop tokens and chat template stay with a model that is trained on" keeps
check "training goes on from an import and from an export alike" trains_on

full() { mkdir -p "$scratch/full" && echo keep >"$scratch/full/mine" && status 3 export "$scratch/run" "$scratch/full" && grep -q "is not empty" <<<"$err" && [ "$(ls "$scratch/full")" = mine ]; }
imports_onto_run() { contents "$scratch/run" >"$scratch/before"; status 3 import "$scratch/hf" "$scratch/run" && diff <(contents "$scratch/run") "$scratch/before"; }
format() { status 2 export --format gguff "$scratch/run" "$scratch/no" && grep -q "there is: hf" <<<"$err" && [ ! -e "$scratch/no" ]; }
no_tokenizer() { mkdir "$scratch/bare" && cp "$scratch"/hf/{config.json,model.safetensors} "$scratch/bare" && status 2 import "$scratch/bare" "$scratch/no" && grep -q -- "--tokenizer FILE" <<<"$err" && [ ! -e "$scratch/no" ] && ok import "$scratch/bare" "$scratch/bare-imported" --tokenizer "$scratch/tokenizer" && same_text "$scratch/bare-imported"; }
bare_export() { ok export "$scratch/bare" "$scratch/bare-out" && grep -q "no tokenizer" <<<"$err" && [ "$(ls "$scratch/bare-out" | wc -l)" -eq 3 ]; }
truncated() { cp -r "$scratch/shards" "$scratch/cut" && f=$(ls "$scratch"/cut/model-00002-*) && truncate -s -1 "$f" && status 3 import "$scratch/cut" "$scratch/no" && grep -q "$(basename "$f")" <<<"$err" && [ ! -e "$scratch/no" ]; }
damaged() { cp -r "$scratch/imported" "$scratch/bent" && printf x | dd of="$scratch/bent/checkpoints/step-0/model.h5" bs=1 seek=20000 conv=notrunc 2>/dev/null && status 3 export "$scratch/bent" "$scratch/no" && grep -q "damaged" <<<"$err" && [ ! -e "$scratch/no" ]; }
shape() { cp -r "$scratch/hf" "$scratch/wrong" && sed -i 's/"intermediate_size": [0-9]*/"intermediate_size": 7/' "$scratch/wrong/config.json" && status 3 import "$scratch/wrong" "$scratch/no" && grep -q "model.layers.0.mlp.gate_proj.weight is " <<<"$err" && [ ! -e "$scratch/no" ]; }
unwritable() { # root may write anywhere, so the way is a file
    status 1 export "$scratch/run" "$scratch/text.txt/to" && grep -q "text.txt" <<<"$err"
}
killed() { # a kill at any instant leaves no TO, or a whole one
    local i
    for i in $(seq 20); do
        rm -rf "$scratch/k" "$scratch"/k.incomplete-*
        "$cria" export "$scratch/run" "$scratch/k" --shard-size 5kB >"$scratch/out" 2>"$scratch/err" &
        sleep "0.0$((i * 3 / 10))$((i * 3 % 10))"
        kill -9 $! 2>/dev/null
        wait $! 2>/dev/null
        [ -e "$scratch/k" ] || continue
        diff <(cd "$scratch/k" && ls) <(cd "$scratch/whole" && ls) || return 1
    done
    rm -rf "$scratch"/k.incomplete-*
}
check "a folder with something in it is left alone" full
check "a run is not imported onto" imports_onto_run
check "an unknown format lists what there is" format
check "no tokenizer: import says what to give, and takes it" no_tokenizer
check "no tokenizer: export says so" bare_export
check "a truncated shard is refused by name" truncated
check "a damaged checkpoint is not exported" damaged
check "a tensor of another shape is refused by name" shape
check "a folder that cannot be made is an error" unwritable
ok export "$scratch/run" "$scratch/whole" --shard-size 5kB
check "killed at any instant, an export is whole or absent" killed
left=$(ls "$scratch" | grep -c incomplete)
check "no unfinished folder stays behind" test "$left" -eq 0

if [ -e "$S/stories260K.bin" ]; then
    greedy() { ok generate "$1" -p "" -n 200 --temperature 0 && cmp "$scratch/out" "$S/expected_greedy.txt"; }
    story() { ok import "$S/stories260K.bin" "$scratch/story-$1" --tokenizer "$S/tok512.$1" && greedy "$scratch/story-$1" && ok export "$scratch/story-$1" "$scratch/story-$1-hf" && greedy "$scratch/story-$1-hf" && ok import "$scratch/story-$1-hf" "$scratch/story-$1-2" && greedy "$scratch/story-$1-2"; }
    check "stories260K through import, export, import: the expected text" story bin
    check "stories260K with the SentencePiece tokenizer: the expected text" story model
else
    echo "skipped: $S is absent"
    skipped=$((skipped + 2))
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
