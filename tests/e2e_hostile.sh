#!/usr/bin/env bash
# Damaged and lying files through the program: every one ends in success or in one clear error (status 1 to 3), none in a
# crash (128 and more), a sanitizer's report or a hang. CRIA_HOSTILE=N asks for N mutations of each file (default 6);
# CRIA_HOSTILE_SEED=S for others than usual.
. "$(dirname "$0")/e2e.bash"
n_each=${CRIA_HOSTILE:-6} RANDOM=${CRIA_HOSTILE_SEED:-20231}
golden=$PWD/tests/golden
cd "$scratch" || exit 1
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}allocator_may_return_null=1

inputs=0 refused=0 unharmed=0 bad=0
# survives "what" ARGUMENTS…: stdin is $scratch/stdin; in the folder $in
in=.
survives() {
    local what=$1 status
    shift
    inputs=$((inputs + 1))
    (cd "$in" && exec timeout --kill-after=5 60 "$cria" "$@") <stdin >out 2>err
    status=$?
    if [ $status -eq 0 ]; then
        unharmed=$((unharmed + 1))
        grep -q 'Sanitizer\|runtime error' err || return
    elif [ $status -le 3 ] && one_error && ! grep -q 'Sanitizer\|runtime error\|please report' err; then
        refused=$((refused + 1))
        return
    fi
    bad=$((bad + 1))
    echo "status $status: $what: cria $*" | cut -c 1-200
    tail -n 5 err | cut -c 1-300 | sed 's/^/    | /'
}
random() { echo $(((RANDOM << 15 | RANDOM) % $1)); }
byte() { printf "\\x$(printf %02x "$1")"; }

# mutate FROM TO: one of: cut short, a byte changed, a bit flipped, 8 bytes of 0xff, zeroes, a stretch repeated, grown
mutate() {
    local size at
    size=$(wc -c <"$1")
    at=$(random "$size")
    [ $((RANDOM % 2)) -eq 0 ] || at=$(random $((size < 400 ? size : 400))) # headers are where lengths are
    cp "$1" "$2"
    chmod u+w "$2"
    change=$((RANDOM % 7))
    case $change in
    0) truncate -s "$at" "$2" ;;
    1) byte $((RANDOM % 256)) | dd of="$2" bs=1 seek="$at" conv=notrunc status=none ;;
    2) byte $(($(od -An -tu1 -j "$at" -N 1 "$1") ^ (1 << RANDOM % 8))) | dd of="$2" bs=1 seek="$at" conv=notrunc status=none ;;
    3) printf '\377\377\377\377\377\377\377\177' | dd of="$2" bs=1 seek="$at" conv=notrunc status=none ;;
    4) head -c 64 /dev/zero | dd of="$2" bs=1 seek="$at" conv=notrunc status=none ;;
    5) { head -c "$at" "$1"; tail -c +$((at / 2 + 1)) "$1"; } >"$2" ;;
    6) head -c 100000 /dev/urandom >>"$2" ;;
    esac
    change="change $change at $at of $size"
}
# each FILE "name of the mutated file" ARGUMENTS…: the arguments name the mutated file
each() {
    local from=$1 to=$2
    shift 2
    for ((i = 0; i < n_each; i++)); do
        mutate "$from" "$to"
        survives "$from: $change" "$@"
    done
}
group() { # "what": counts one test for what came since the last
    [ "$bad" -eq 0 ]
    tell "$1: no crash, no hang, one clear error each" $?
    bad=0
}

make_folder own
(cd own && run 0 pretrain config.yaml train.steps=4)
tell "a run to be damaged" $?
: >stdin

# ---- checkpoints ----

cp -r own/run good
step=good/checkpoints/step-4
for file in model.h5 optimizer.h5 config.yaml state.json manifest.json; do
    for ((i = 0; i < n_each; i++)); do
        rm -rf own/run && cp -r good own/run
        mutate $step/$file own/run/checkpoints/step-4/$file
        in=own survives "$file: $change" pretrain config.yaml train.steps=4
    done
    group "checkpoints with a damaged $file"
done
# A state.json that lies, with a manifest that is right about its bytes.
crc32c() { # FILE: RFC 3720 appendix B.4, bit by bit
    local crc=$((0xffffffff)) byte bit
    for byte in $(od -An -v -tu1 "$1"); do
        for ((crc ^= byte, bit = 0; bit < 8; bit++)); do ((crc = crc & 1 ? crc >> 1 ^ 0x82f63b78 : crc >> 1)); done
    done
    printf '%08x' $((crc ^ 0xffffffff))
}
sign() { # FOLDER: its manifest as of the state.json there
    sed -E "s/(\"state.json\", \"size\": )[0-9]+(, \"crc32c\": )\"[0-9a-f]+\"/\\1$(wc -c <"$1/state.json")\\2\"$(crc32c "$1/state.json")\"/" "$1/manifest.json" | sed '/^  "crc32c"/,$d' >signed
    printf '  "crc32c": "%s"\n}\n' "$(crc32c signed)" | cat signed - >"$1/manifest.json"
}
lie() { # sed's script
    rm -rf own/run && cp -r good own/run
    sed -E "$1" good/checkpoints/step-4/state.json >own/run/checkpoints/step-4/state.json
    sign own/run/checkpoints/step-4
    in=own survives "state.json: $1" pretrain config.yaml train.steps=6
}
lie 's/ / /'
[ "$unharmed" -ge 1 ] && grep -q 'resuming at step 4 of 6' err
tell "a state.json and manifest written by this test are believed" $?
before=$refused
for key in step updates tokens best_step stale_validations seconds threads ranks; do
    lie "s/(\"$key\": )[0-9.]+/\\1-7/"
    [ $key = threads ] || [ $key = ranks ] || lie "s/(\"$key\": )[0-9.]+/\\1\"7\"/"
done
lie 's/("step": )[0-9]+/\19223372036854775807/'
lie 's/("updates": )[0-9]+/\1999/'
lie 's/("guard": )\[/\1[9,9,9,/'
lie 's/("guard": )\[[^]]*\]/\1[1,0,0,0,0,5,3]/'
lie 's/("guard": )\[/\1["x",/'
lie 's/("guard": )/\1{},"x": /'
lie 's/"data": "./"data": "x/'
lie '1,$d'
[ $((refused - before)) -ge 18 ]
tell "a state.json that contradicts itself is refused" $?
group "state.json that lies"

# Without a manifest nothing but the reader's own checks stands between.
each $step/model.h5 mutated.h5 inspect mutated.h5
each $step/model.h5 mutated.h5 generate mutated.h5 -p a -n 2
group "model.h5 without a manifest"
each good/config.yaml own/run/config.yaml pretrain own/config.yaml output=own/run
each good/metrics.jsonl own/run/metrics.jsonl inspect own/run
group "a run's config.yaml and metrics"

# ---- models of others ----

directory=$golden/llama_gqa
for file in config.json model.safetensors; do
    for ((i = 0; i < n_each; i++)); do
        rm -rf hf && cp -r "$directory" hf && chmod -R u+w hf
        mutate "$directory/$file" hf/$file
        survives "$file: $change" inspect hf
        survives "$file: $change" generate hf --tokenizer bytes -p a -n 2
    done
    group "Hugging Face directories with a damaged $file"
done
each "$golden/formats.safetensors" mutated.safetensors inspect mutated.safetensors
each "$golden/formats.h5" mutated.h5 inspect mutated.h5
header() { # JSON: a safetensors file with this header and 64 bytes of data
    printf "\\x$(printf %02x $((${#1} & 255)))\\x$(printf %02x $((${#1} >> 8)))\0\0\0\0\0\0%s" "$1" >mutated.safetensors
    head -c 64 /dev/zero >>mutated.safetensors
    survives "header $1" inspect mutated.safetensors
}
for offsets in '[0,9223372036854775807]' '[9223372036854775807,0]' '[-1,64]' '[0,18446744073709551616]' '[32,16]' '[0,1e400]' '["0",64]' '[]' '[0]' 'null'; do
    header '{"a":{"dtype":"F32","shape":[16],"data_offsets":'"$offsets"'}}'
done
for shape in '[4294967296,4294967296]' '[-16]' '[9223372036854775807,2]' '[0]' '[1.5]' '[[16]]' '[16,1,1,1,1,1,1,1,1,1,1,1]'; do
    header '{"a":{"dtype":"F32","shape":'"$shape"',"data_offsets":[0,64]}}'
done
group "safetensors whose header lies"
word() { printf "\\x$(printf %02x $(($1 & 255)))\\x$(printf %02x $(($1 >> 8 & 255)))\\x$(printf %02x $(($1 >> 16 & 255)))\\x$(printf %02x $(($1 >> 24 & 255)))"; }
llama2c() { # the seven numbers
    { for n in "$@"; do word "$n"; done; head -c 30000 /dev/zero; } >mutated.bin
    survives "header $*" generate mutated.bin --tokenizer bytes -p a -n 2
}
llama2c 8 16 1 1 1 258 64
llama2c 2147483647 16 1 1 1 258 64
llama2c 8 16 2147483647 1 1 258 64
llama2c 8 16 1 0 0 258 64
llama2c 8 16 1 1 1 -258 64
llama2c 8 16 1 1 1 0 64
llama2c -8 16 1 1 1 258 64
llama2c 8 16 1 3 2 258 64
llama2c 8 16 1 1 1 258 2147483647
llama2c 65536 65536 65536 65536 65536 65536 65536
llama2c 8 -2147483648 1 1 1 258 64
group "llama2.c files whose header lies"

# ---- tokenizers ----

printf 'The llama, 1234 \xf0\x9f\xa6\x99 and \xff\xfe.\n' >stdin
for file in tokenizer_llama.model tokenizer_rules.model tokenizer_unused.model tokenizer_ranks.tiktoken tokenizer_llama3.json tokenizer_gpt2.json tokenizer_metaspace.json; do
    name=mutated.${file##*.}
    each "$golden/$file" "$name" tokenize -t "$name"
    each "$golden/$file" "$name" tokenizer show "$name"
    rm -f "$name"
done
group "damaged tokenizers"
for ids in '[1, 2' '[99999999999999999999]' '[-1]' '[1,,2]' 'x' '' '[258]' '[2147483648]' '[[[' $'\x01\x02'; do
    printf '%s' "$ids" >stdin
    survives "ids $ids" tokenize -t bytes --decode
done
printf '[1,2\0003]' >stdin && survives "a NUL among ids" tokenize -t bytes --decode
group "damaged lists of ids"
: >stdin

# ---- text, JSONL, compressed data ----

sed 's/.*/{"text": "&", "id": 1}/' text.txt >good.jsonl
gzip -k good.jsonl 2>/dev/null
zstd -q good.jsonl 2>/dev/null
train_on() { # FILE "what"
    rm -rf run
    survives "$2" pretrain own/config.yaml output=run data.train="$1" train.steps=1 train.validate_every=0
}
for file in good.jsonl good.jsonl.gz good.jsonl.zst; do
    [ -e $file ] || continue
    for ((i = 0; i < n_each; i++)); do
        mutate $file "mutated.${file#good.}"
        train_on "mutated.${file#good.}" "$file: $change"
    done
done
line() {
    { head -n 20 good.jsonl; printf '%b\n' "$1"; } >mutated.jsonl
    train_on mutated.jsonl "line $1"
}
for text in '{"text": 5}' '{"text": null}' '{"text": ["a"]}' '{}' '[]' '5' '"text"' '{"text": "a"' '{"text": "\\ud800"}' '{"text": "\xff\xfe"}' '{"text": "a\\u0000b"}' '\x00' '{"text": "a", "text": "b"}' \
    "$(printf '[%.0s' {1..3000})" '\xef\xbb\xbf{"text": "a"}' '{"text": "a"} {"text": "b"}' 'nonsense' '{"text": ""}' '{"Text": "a"}'; do line "$text"; done
: >mutated.jsonl && train_on mutated.jsonl "an empty file"
mkdir -p folder && train_on folder "an empty folder"
train_on /dev/null "/dev/null"
train_on 'no*thing' "a glob without a match"
head -c 3000 /dev/urandom >noise.txt && train_on noise.txt "noise"
head -c 3000 /dev/zero >zeroes.txt && train_on zeroes.txt "zeroes"
for ((i = 0; i < n_each; i++)); do # the token cache of a finished run
    rm -rf own/run && cp -r good own/run
    cache=$(echo good/cache/*.tokens)
    mutate "$cache" "own/run/cache/${cache##*/}"
    in=own survives "token cache: $change" pretrain config.yaml train.steps=6
done
group "damaged text, JSONL, archives and token caches"

# ---- configs ----

each own/config.yaml mutated.yaml pretrain mutated.yaml output=run train.steps=1 data.train=text.txt
yaml() {
    printf '%b' "$1" >mutated.yaml
    survives "yaml $1" pretrain mutated.yaml
}
for text in '' ':' '- a' '[' '{' 'a: *b' '&a [*a]' 'output: &x {a: *x}' 'output: !!binary x' '%YAML 9.9\n---\n' '\x00' '\xff' 'output: "\\x"' 'train: {steps: 1e400}' 'train: {steps: -1}' 'train: {steps: 9223372036854775808}' \
    'train: {steps: .nan}' 'seed: 1.5' 'output: [a, b]' 'data: {train: [[[]]]}' 'data: {train: [{path: {a: b}}]}' 'train: {steps: 1, steps: 2}' 'optim: {lr: .inf}' 'a: b: c' 'model: {dim: 99999999999}' '? [a]\n: b' \
    'output: run\noutput: run' "$(printf '{a: %.0s' {1..2000})" 'train: steps: 5' '\t- x' 'output: ~' 'model: {dim: 1048576, n_layers: 4096, n_heads: 65536}\noutput: run\ntokenizer: {path: bytes}\ndata: {train: text.txt}\ntrain: {steps: 1}'; do yaml "$text"; done
group "damaged configs"

echo "$inputs hostile inputs: $refused refused, $unharmed unharmed"
[ "$inputs" -ge 200 ] && [ "$refused" -ge 100 ]
tell "at least 200 inputs, most of them refused" $?
finish
