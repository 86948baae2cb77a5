#!/usr/bin/env bash
# make bench: training steps of four small Llamas in cria, and in PyTorch where CRIA_PYTHON names a Python that has it
# (tests/peers/README.md says how to make one). A machine's speed drifts, so the programs take turns, CRIA_ROUNDS times
# (3), and medians are compared; nothing else should be running. The table goes to stdout and to bench.md.
# CRIA_SIZES="260K 15M" takes some; CRIA_PEERS="eager" leaves torch.compile out; CRIA_THREADS=N sets both programs'.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
cria=${BUILD:-build}/cria
python=${CRIA_PYTHON:-}
rounds=${CRIA_ROUNDS:-3} sizes=${CRIA_SIZES:-260K 15M 42M 110M} peers=${CRIA_PEERS:-eager compiled}
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

if [ -n "$python" ] && ! "$python" -c 'import torch' 2>/dev/null; then
    echo "$python has no PyTorch: cria is measured alone" >&2
    python=
fi
[ -n "$python" ] || peers=

# sequence length and sequences of a step, as in tests/peers/torch_llama.py
context() { case $1 in 260K | 15M) echo 256 ;; *) echo 512 ;; esac; }
sequences() { case $1 in 260K) echo 16 ;; 15M) echo 8 ;; *) echo 4 ;; esac; }
number() { sed -nE "s/.*\"$1\": *([0-9.eE+-]+).*/\1/p" "$2" | head -n 1; }
median() { sort -g | awk '{ x[NR] = $1 } END { if (NR) print NR % 2 ? x[(NR + 1) / 2] : (x[NR / 2] + x[NR / 2 + 1]) / 2 }'; }

run_cria() { # SIZE: appends tokens/s, peak memory, mfu
    local tokens=$(($(context "$1") * $(sequences "$1")))
    "$cria" bench model.preset="${1,,}" train.context="$(context "$1")" train.tokens_per_batch=$tokens \
        train.tokens_per_microbatch=$tokens --json >"$results/last" || exit 1
    for field in tokens_per_second peak_memory_bytes mfu; do number $field "$results/last" >>"$results/cria.$1.$field"; done
    cp "$results/last" "$results/cria.$1.json"
}
run_peer() { # SIZE eager|compiled
    local options=(--size "$1" --threads "$threads")
    [ "$2" = eager ] || options+=(--compile)
    if ! "$python" tests/peers/torch_llama.py "${options[@]}" >"$results/last" 2>"$results/errors"; then
        echo "PyTorch, $2, $1: $(tail -n 1 "$results/errors")" >&2
        return
    fi
    number tokens_per_second_median "$results/last" >>"$results/$2.$1.tokens_per_second"
    number peak_memory_bytes "$results/last" >>"$results/$2.$1.peak_memory_bytes"
}
value() { [ -e "$results/$1" ] && median <"$results/$1"; }
row() { # SIZE
    local speed peer peer_speed
    speed=$(value "cria.$1.tokens_per_second")
    awk -v size="$1" -v s="$speed" -v m="$(value "cria.$1.peak_memory_bytes")" -v u="$(value "cria.$1.mfu")" \
        'BEGIN { printf "| %s | %.0f | %.0f %% | %.0f", size, s, 100 * u, m / 1048576 }'
    for peer in $peers; do
        peer_speed=$(value "$peer.$1.tokens_per_second")
        awk -v s="$speed" -v p="$peer_speed" -v m="$(value "$peer.$1.peak_memory_bytes")" \
            'BEGIN { if (p > 0) printf " | %.0f | %.2f | %.0f", p, s / p, m / 1048576; else printf " | - | - | -" }'
    done
    echo ' |'
}
report() {
    local peer
    echo "# Training steps, fp32, $threads threads"
    echo
    echo "$(sed -nE 's/^model name[^:]*: (.*)/\1/p' /proc/cpuinfo | head -n 1); medians of $rounds turns, $(date -u +%F)."
    [ -z "$peers" ] || echo "PyTorch $("$python" -c 'import torch; print(torch.__version__)'). Ratios are cria's speed over PyTorch's; memory is the peak of resident memory in MiB."
    echo
    printf '| size | cria tokens/s | of peak | MiB'
    for peer in $peers; do printf ' | %s tokens/s | ratio | MiB' "$peer"; done
    printf ' |\n|---|---|---|---'
    for peer in $peers; do printf '|---|---|---'; done
    echo '|'
    for size in $sizes; do row "$size"; done
    echo
    echo "Where the time goes in cria, seconds of a step (forward, backward):"
    echo
    for size in $sizes; do
        printf -- '- %s: ' "$size"
        tr -d '\n' <"$results/cria.$size.json" | grep -oE '"name": "[a-z_]+", *"forward_seconds": [0-9.e-]+, *"backward_seconds": [0-9.e-]+' |
            sed -E 's/"name": "([a-z_]+)", *"forward_seconds": ([0-9.e-]+), *"backward_seconds": ([0-9.e-]+)/\1 \2 \3/' |
            awk '{ printf "%s%s %.4f %.4f", (NR > 1 ? "; " : ""), $1, $2, $3 } END { print "" }'
    done
}

# One short run says how many threads cria takes by itself; PyTorch gets as many.
threads=$("$cria" bench model.dim=32 model.n_layers=1 model.n_heads=1 model.vocab_size=64 train.context=16 \
    train.tokens_per_batch=16 train.tokens_per_microbatch=16 --steps 1 --seconds 0 --warmup 1 --json | sed -nE 's/^ *"threads": ([0-9]+).*/\1/p')
[ -n "$threads" ] || exit 1
for size in $sizes; do
    for ((round = 1; round <= rounds; round++)); do
        echo "$size: turn $round of $rounds" >&2
        run_cria "$size"
        for peer in $peers; do run_peer "$size" "$peer"; done
    done
done
report | tee bench.md
