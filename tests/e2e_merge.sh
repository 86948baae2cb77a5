#!/usr/bin/env bash
# Adapters folded into their base by the program: what it says, what it writes, what it refuses.
set -uo pipefail
cd "$(dirname "$0")/.."
cria=${CRIA:-$PWD/build/cria}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0 failed=0
G=tests/golden

# status WANTED ARGUMENTS…: keeps $out and $err
status() {
    local wanted=$1 found
    shift
    timeout 120 "$cria" "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
    found=$?
    out=$(<"$scratch/out") err=$(<"$scratch/err")
    [ "$found" -eq "$wanted" ] && return 0
    echo "cria $*: status $found, expected $wanted"
    return 1
}
check() { # check "promise" command…
    local promise=$1
    shift
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $promise"; echo "  stdout: $out"; echo "  stderr: $err"; fi
}
field() { sed -nE "s/.*\"$1\": ([-0-9.e+]+).*/\1/p" <<<"$out"; }
below() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a < b) }'; }
same_model() { cmp "$1/model.safetensors" "$2/model.safetensors"; }

# merged within 1e-5 of unmerged, and not the base itself
folds() { status 0 merge "$G/llama_$2" "$G/lora_$1" "$scratch/$1" --json && below "$(field logits_difference)" "$(awk -v g="$(field logits_greatest)" 'BEGIN { print 1e-5 * g }')" && [ "$(field same_best)" = "$(field tokens)" ] && ! same_model "$scratch/$1" "$G/llama_$2" >/dev/null; }
fresh() { status 0 merge "$G/llama_gqa" "$G/lora_plain" "$scratch/fresh" && status 0 export "$G/llama_gqa" "$scratch/base" && same_model "$scratch/fresh" "$scratch/base"; }
narrow() { status 0 merge "$G/llama_odd_heads" "$G/lora_dora" "$scratch/$1" --dtype "$1" --json && below "$(field logits_difference)" "$(awk -v g="$(field logits_greatest)" -v b="$2" 'BEGIN { print b * g }')" && below 0 "$(field logits_difference)" && status 0 inspect "$scratch/$1"; }
# the same adapter twice with weights that sum to 1 is that adapter, but for the order of sums
averages() { status 0 merge "$G/llama_packed" "$G/lora_subset" "$scratch/whole" --json && local loss && loss=$(field merged_loss) && as_whole average "$loss" && as_whole 0.75,0.25 "$loss" && ! as_whole 0.75,0.75 "$loss"; }
as_whole() { status 0 merge "$G/llama_packed" "$G/lora_subset" "$G/lora_subset" "$scratch/w$1" -w "$1" --json && below "$(field logits_difference)" 1e-5 && below "$(awk -v a="$2" -v b="$(field merged_loss)" 'BEGIN { print (a - b) ^ 2 }')" 1e-12; }
takes_off() { status 0 merge "$scratch/whole" "$G/lora_subset" "$scratch/off" --weights -1 && status 0 merge "$scratch/off" "$G/lora_subset" "$scratch/on" --json && ! same_model "$scratch/off" "$scratch/whole" >/dev/null; }
exports() { status 0 export --format peft "$G/lora_dora" "$scratch/peft" && status 0 merge "$G/llama_odd_heads" "$scratch/peft" "$scratch/again" && same_model "$scratch/again" "$scratch/dora"; }

refuses() { # refuses STATUS TEXT ARGUMENTS…: one error, TO is not there
    local wanted=$1 text=$2
    shift 2
    status "$wanted" merge "$@" "$scratch/no" && grep -q -- "$text" <<<"$err" && [ "$(grep -c '^error: ' <<<"$err")" -eq 1 ] && [ ! -e "$scratch/no" ]
}
averages_itself() { status 0 merge "$G/llama_gqa" "$scratch/base" "$G/llama_gqa" "$scratch/mean" --weights 0.25,0.5,0.25 && same_model "$scratch/mean" "$scratch/base"; }
not_empty() { status 3 merge "$G/llama_gqa" "$G/lora_plain" "$scratch/fresh"; }
no_adapter() { status 3 export --format peft "$G/llama_gqa" "$scratch/no" && grep -q adapter_config.json <<<"$err" && [ ! -e "$scratch/no" ]; }

check "LoRA is folded in" folds subset packed
check "rsLoRA is folded in, under a tied head" folds rslora tied
check "DoRA is folded in" folds dora odd_heads
check "a fresh adapter leaves every element as it is" fresh
check "into bf16, within its rounding" narrow bf16 0.03
check "into fp16, within its rounding" narrow fp16 0.004
check "adapters are averaged and weighted" averages
check "an adapter can be taken off" takes_off
check "an exported adapter is the same" exports
check "an adapter of another model is refused by its array" refuses 3 'this model.s shape wants' "$G/llama_tied" "$G/lora_plain"
check "DoRA is not averaged" refuses 3 'magnitudes' "$G/llama_gqa" "$G/lora_plain" "$G/lora_dora_fresh"
check "a wrong number of weights is refused" refuses 2 '1 numbers for 2 adapters' "$G/llama_gqa" "$G/lora_plain" "$G/lora_plain" --weights 1
check "what is no adapter is refused among adapters" refuses 3 adapter_config.json "$G/llama_gqa" "$G/llama_gqa" "$G/lora_plain"
check "a model averaged with itself is that model" averages_itself
check "a folder with something in it is refused" not_empty
check "a model is no adapter to export" no_adapter
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
