#!/usr/bin/env bash
# make bench: training steps of four small Llamas, and forward and backward through a frozen one of 1.2 billion, in cria
# and in PyTorch where PYTHON names a Python that has it (tests/peers/README.md says how to make one). Then what context
# costs, and where the time goes. The tables go to stdout and to bench.md.
#
# A machine's speed drifts within seconds, so the programs take turns of a few steps, one at a time: A B C, A B C, …, the
# machine's own peaks measured after each round. A ratio is taken within each round; the median of the ratios counts.
# Nothing else should be running. The programs that wait must not spin: the processor time they take is watched.
#
#   PARTS="steps frozen context profile sampling"   SIZES="260K 15M 42M 110M"   PRECISIONS="fp32 bf16 bf16-lean"
#   PEERS="eager-fp32 compile-fp32 compile-bf16 compile-purebf16"   also eager-bf16, eager-purebf16
#   SAMPLING_SIZES="15M 110M"   SAMPLING_BATCHES="1 32"      sampling beside transformers' generate, in bf16 and from int8 weights
#   ROUNDS=7   STEPS=2   TURN=1      a turn is STEPS steps and TURN seconds, at least
#   CONTEXTS="256 … 8192" CONTEXT_SIZE=42m CONTEXT_TOKENS=8192   FROZEN=llama3.2-1b   OUTPUT=bench.md   CRIA_THREADS=N
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
cria=${CRIA:-${BUILD:-build}/cria} python=${PYTHON:-}
parts=${PARTS-steps frozen context profile sampling} sizes=${SIZES-260K 15M 42M 110M} precisions=${PRECISIONS-fp32 bf16 bf16-lean}
peers=${PEERS-eager-fp32 compile-fp32 compile-bf16 compile-purebf16}
rounds=${ROUNDS:-7} steps=${STEPS:-2} turn=${TURN:-1}
contexts=${CONTEXTS-256 512 1024 2048 4096 8192} context_size=${CONTEXT_SIZE:-42m} context_tokens=${CONTEXT_TOKENS:-8192}
sampling_sizes=${SAMPLING_SIZES-15M 110M} sampling_batches=${SAMPLING_BATCHES-1 32}
frozen=${FROZEN:-llama3.2-1b} output=${OUTPUT:-bench.md}
limit=3600 # seconds for a program to get ready (compiling included) or to take its turn
results=$(mktemp -d)
declare -A pid write_end read_end
running=() works=() notes=()
clean_up() {
    stop_all
    rm -rf "$results"
}
trap clean_up EXIT

say() { echo "$*" >&2; }
note() { say "$*" && notes+=("$*"); }
has() { [[ " $1 " == *" $2 "* ]]; }
number() { sed -nE "s/.*\"$1\": *(-?[0-9.eE+-]+).*/\1/p" "$2" 2>/dev/null | head -n 1; }
median() { sort -g "$@" 2>/dev/null | awk '{ x[NR] = $1 } END { if (NR) printf "%.9g", NR % 2 ? x[(NR + 1) / 2] : (x[NR / 2] + x[NR / 2 + 1]) / 2 }'; }
calculate() { awk "BEGIN { $1 }"; }

# ---- programs that run steps on request ----

# start WORK NAME COMMAND…: begun, compiled and warm; or a note of why not.
start() {
    local work=$1 name=$2 to=$results/to from=$results/from writer reader line
    shift 2
    say "$work: $name gets ready"
    rm -f "$to" "$from" && mkfifo "$to" "$from" || exit 1
    "$@" <"$to" >"$from" 2>"$results/errors" &
    pid[$name]=$!
    exec {writer}>"$to" {reader}<"$from"
    write_end[$name]=$writer read_end[$name]=$reader
    running+=("$name")
    if read -r -t $limit line <&"$reader" && [[ $line == *'"ready"'* ]]; then
        echo "$line" >"$results/$work.$name.ready"
    else
        note "$work: $name did not start: $(grep -v '^ *$' "$results/errors" | tail -n 1)"
        stop "$name"
    fi
}
stop() { # NAME: at the end of its input it ends; if not, it is ended
    local name=$1 rest=() other
    exec {write_end[$name]}>&- {read_end[$name]}<&-
    kill "${pid[$name]}" 2>/dev/null
    wait "${pid[$name]}" 2>/dev/null
    for other in "${running[@]}"; do [ "$other" = "$name" ] || rest+=("$other"); done
    running=(${rest[@]+"${rest[@]}"})
}
stop_all() { while [ ${#running[@]} -gt 0 ]; do stop "${running[0]}"; done; }

cpu_ticks() { # of a process with all its threads (proc(5): utime and stime)
    local fields
    read -r fields <"/proc/$1/stat" 2>/dev/null || { echo 0 && return; }
    # shellcheck disable=SC2086
    set -- ${fields##*) }
    echo $((${12} + ${13}))
}
waiting_ticks() { # of all but NAME
    local name sum=0
    for name in "${running[@]}"; do [ "$name" = "$1" ] || sum=$((sum + $(cpu_ticks "${pid[$name]}"))); done
    echo $sum
}
take_turn() { # WORK NAME
    local work=$1 name=$2 before line
    before=$(waiting_ticks "$name")
    if ! { echo "$steps $turn" >&"${write_end[$name]}" && read -r -t $limit line <&"${read_end[$name]}"; } 2>/dev/null; then
        note "$work: $name ended in the middle"
        rm -f "$results/$work.$name.ready"
        stop "$name"
        return
    fi
    echo "$line" >"$results/last"
    number tokens_per_second "$results/last" >>"$results/$work.$name.speed"
    number peak_memory_bytes "$results/last" >"$results/$work.$name.memory"
    echo "$(($(waiting_ticks "$name") - before)) $(number step_seconds "$results/last") $(number steps "$results/last")" >>"$results/waiting"
}
measure_machine() { # WORK
    local rate
    "$cria" bench --machine --json >"$results/last" || exit 1
    for rate in fp32_product_flops fp32_loop_flops bf16_product_flops bf16_loop_flops bf16_registers_flops read_bytes copy_bytes; do
        number ${rate}_per_second "$results/last" | tee -a "$results/machine.$rate" >>"$results/$1.machine.$rate"
    done
}
take_turns() { # WORK: all that have been started
    local work=$1 round name
    works+=("$work")
    for ((round = 1; round <= rounds; round++)); do
        say "$work: round $round of $rounds"
        for name in "${running[@]}"; do take_turn "$work" "$name"; done
        measure_machine "$work"
    done
    stop_all
}

# ---- the work ----

# sequence length and sequences of a step, as in tests/peers/torch_llama.py
context() { case $1 in 260K | 15M) echo 256 ;; *) echo 512 ;; esac; }
sequences() { case $1 in 260K) echo 16 ;; 15M) echo 8 ;; *) echo 4 ;; esac; }
shape() { # SIZE: the options of cria bench
    local tokens=$(($(context "$1") * $(sequences "$1")))
    echo "model.preset=${1,,} train.context=$(context "$1") train.tokens_per_batch=$tokens train.tokens_per_microbatch=$tokens"
}
# The options of a precision; lean: for memory, at some cost in speed.
precision_of() {
    echo "precision=${1%-lean}"
    [[ $1 != *-lean ]] || echo "train.packed_weights=false train.recompute=norms"
}
steps_of() { # SIZE
    local precision peer options
    for precision in $precisions; do
        # shellcheck disable=SC2046
        start "$1" "cria-$precision" "$cria" bench $(shape "$1") $(precision_of "$precision") --serve
    done
    for peer in $peers; do
        options=(--size "$1" --threads "$threads" --dtype "${peer#*-}" --serve)
        [[ $peer == eager-* ]] || options+=(--compile)
        start "$1" "$peer" "$python" tests/peers/torch_llama.py "${options[@]}"
    done
    take_turns "$1"
}
frozen_steps() {
    start frozen cria-frozen "$cria" bench model.preset="$frozen" train.context=512 train.tokens_per_batch=512 \
        train.tokens_per_microbatch=512 precision=bf16 --frozen --warmup 1 --serve
    if [ -z "$python" ] || ! "$python" -c 'import torch, transformers, peft' 2>/dev/null; then
        note "frozen: no PyTorch with transformers and peft"
    else
        start frozen peft-bf16 "$python" tests/peers/torch_lora.py --threads "$threads" --serve
    fi
    take_turns frozen
}
sampling_steps() { # a step: so many sequences of 16 tokens, each continued by 128
    local size batch work
    for size in $sampling_sizes; do
        for batch in $sampling_batches; do
            work="sampling-$size-batch-$batch"
            start "$work" cria-bf16 "$cria" bench model.preset="${size,,}" precision=bf16 --sampling "$batch" --serve
            start "$work" cria-int8 "$cria" bench model.preset="${size,,}" precision=bf16 generate.weights=int8 --sampling "$batch" --serve
            if [ -z "$python" ] || ! "$python" -c 'import torch, transformers' 2>/dev/null; then
                note "$work: no PyTorch with transformers"
            else
                start "$work" generate-bf16 "$python" tests/peers/torch_generate.py --size "$size" --batch "$batch" --threads "$threads" --serve
            fi
            take_turns "$work"
        done
    done
}
context_steps() {
    local length
    for length in $contexts; do
        say "context: $length"
        "$cria" bench model.preset="$context_size" train.context="$length" train.tokens_per_batch="$context_tokens" \
            train.tokens_per_microbatch="$context_tokens" precision=bf16 --warmup 1 --steps 3 --seconds 0 \
            -o "$results/context.$length" >/dev/null || note "context: $length failed"
    done
}
profiles() {
    local size precision
    for size in $sizes; do
        for precision in $precisions; do
            say "$size, $precision: where the time goes"
            # shellcheck disable=SC2046
            "$cria" bench $(shape "$size") $(precision_of "$precision") --steps "$steps" --seconds "$turn" >"$results/$size.$precision.profile" 2>"$results/errors" ||
                note "$size, $precision: $(tail -n 1 "$results/errors")"
        done
    done
}

# ---- the report ----

speed() { median "$results/$1.$2.speed"; }
programs() { # WORK: that took their turns, in the order of this file
    local name
    for name in cria-fp32 cria-bf16 cria-int8 cria-bf16-lean cria-frozen $peers peft-bf16 generate-bf16; do [ ! -e "$results/$1.$name.ready" ] || [ ! -e "$results/$1.$name.speed" ] || echo "$name"; done
}
ratio() { paste "$results/$1.$2.speed" "$results/$1.$3.speed" | awk 'NF == 2 { print $1 / $2 }' | median; }
excess() { # WORK NAME: MiB beyond 16 bytes a trained and 2 a frozen parameter
    local ready=$results/$1.$2.ready
    calculate "printf \"%.0f\", ($(<"$results/$1.$2.memory") - 16 * $(number trained_parameters "$ready") - 2 * $(number frozen_parameters "$ready")) / 1048576"
}
mebibytes() { calculate "printf \"%.0f\", $(<"$results/$1.$2.memory") / 1048576"; }
peak_of() { # WORK NAME: fp32 beside a large fp32 product; bf16 beside the innermost loop with operands from L2
    local peak
    [[ $2 == *fp32 ]] || peak=$(median "$results/$1.machine.bf16_loop_flops")
    [ -n "${peak:-}" ] || peak=$(median "$results/$1.machine.fp32_product_flops")
    echo "$peak"
}
share() { # WORK NAME, of the peak, in percent; the operations are the model's, as cria counts them
    local flops any=("$results/$1".cria-*.ready)
    flops=$(number flops_per_token "${any[0]}")
    calculate "printf \"%.0f %%\", 100 * $(speed "$1" "$2") * ${flops:-0} / $(peak_of "$1" "$2")"
}
best_peer() { # WORK NAME: the fastest other program; beside fp32 only those in fp32
    local name
    for name in $(programs "$1"); do
        [[ $name != cria-* ]] || continue
        [[ $2 != *fp32 || $name == *fp32 ]] || continue
        echo "$(speed "$1" "$name") $name"
    done | sort -gr | head -n 1 | cut -d ' ' -f 2
}
summary_row() { # WORK NAME
    local peer
    peer=$(best_peer "$1" "$2")
    printf '| %s, %s | %.0f | %s' "$1" "${2#cria-}" "$(speed "$1" "$2")" "$(share "$1" "$2")"
    if [ -n "$peer" ]; then
        printf ' | %s | %.0f | %.2f× | %s, %s | %s, %s | %s |\n' "$peer" "$(speed "$1" "$peer")" "$(ratio "$1" "$2" "$peer")" \
            "$(mebibytes "$1" "$2")" "$(mebibytes "$1" "$peer")" "$(excess "$1" "$2")" "$(excess "$1" "$peer")" \
            "$(calculate "e = $(excess "$1" "$peer"); if (e > 0) printf \"%.2f\", $(excess "$1" "$2") / e; else printf \"-\"")"
    else
        printf ' | - | - | - | %s | %s | - |\n' "$(mebibytes "$1" "$2")" "$(excess "$1" "$2")"
    fi
}
summary() {
    local work name
    echo "| work | cria, tokens/s | of the peak | best of PyTorch | tokens/s | cria is faster | memory, MiB | beyond parameters, MiB | share |"
    echo "|---|---|---|---|---|---|---|---|---|"
    for work in "${works[@]}"; do
        for name in $(programs "$work"); do [[ $name != cria-* ]] || summary_row "$work" "$name"; done
    done
}
bar() { # VALUE OF: 40 at most
    local filled
    filled=$(calculate "printf \"%d\", ($2 > 0) ? 40 * $1 / $2 + 0.5 : 0")
    printf '%*s' "$filled" '' | sed 's/ /█/g'
}
all_programs() { # WORK
    local name most=0
    for name in $(programs "$1"); do most=$(calculate "m = $(speed "$1" "$name"); printf \"%.9g\", (m > $most) ? m : $most"); done
    printf '%s\n%-18s %10s %9s %9s %9s\n' '```' "$1" tokens/s "of peak" MiB beyond
    for name in $(programs "$1"); do
        printf '%-18s %10.0f %9s %9s %9s  %s\n' "$name" "$(speed "$1" "$name")" "$(share "$1" "$name")" "$(mebibytes "$1" "$name")" \
            "$(excess "$1" "$name")" "$(bar "$(speed "$1" "$name")" "$most")"
    done
    echo '```'
}
machine_table() {
    local rate file unit
    echo "| this machine | median | least | most |"
    echo "|---|---|---|---|"
    for rate in fp32_product_flops fp32_loop_flops bf16_product_flops bf16_loop_flops bf16_registers_flops read_bytes copy_bytes; do
        file=$results/machine.$rate
        [ -s "$file" ] || continue
        case $rate in *bytes) unit=GB/s ;; *) unit=GFLOP/s ;; esac
        sort -g "$file" | awk -v name="${rate%_*}" -v unit=$unit -v middle="$(median "$file")" \
            '{ x[NR] = $1 } END { sub(/_/, ", ", name); sub(/loop/, "innermost loop from L2", name); sub(/product/, "large product", name); sub(/registers/, "loop on registers", name)
               printf "| %s | %.1f %s | %.1f | %.1f |\n", name, middle / 1e9, unit, x[1] / 1e9, x[NR] / 1e9 }'
    done
}
context_table() {
    local length file
    echo "| context | tokens/s | memory, MiB | attention's share of the time | of the operations |"
    echo "|---|---|---|---|---|"
    for length in $contexts; do
        file=$results/context.$length
        [ -s "$file" ] || continue
        calculate "printf \"| %d | %.0f | %.0f | %.1f %% | %.1f %% |\n\", $length, $(number tokens_per_second "$file"), $(number peak_memory_bytes "$file") / 1048576, 100 * $(number attention_time_share "$file"), 100 * $(number attention_flops_share "$file")"
    done
}
waste() { awk '{ w += $1 / 100; t += $2 * $3 } END { if (t > 0) printf "%.1f", 100 * w / t }' "$results/waiting"; }
report() {
    local work size precision line
    echo "# Training steps"
    echo
    echo "$(sed -nE 's/^model name[^:]*: (.*)/\1/p' /proc/cpuinfo | head -n 1), $threads threads, $kernels kernels; $(uname -sr); cria $("$cria" --version | awk '{ print $NF }'), $("${CC:-cc}" --version 2>/dev/null | head -n 1); $(date -u +%F)."
    [ -z "$python" ] || "$python" -c 'import importlib.metadata as m, sys
print("Python", sys.version.split()[0] + ",", ", ".join(f"{n} {m.version(n)}" for n in ("torch", "transformers", "peft") if any(d.metadata["Name"] == n for d in m.distributions())) + ".")' 2>/dev/null
    if [ ${#works[@]} -gt 0 ]; then
        echo
        echo "Medians of $rounds rounds in which every program took a turn of at least $steps steps and $turn s; the ratio is the median of the rounds' ratios. Memory is the peak of resident memory during steps; beyond parameters: less 16 bytes a trained and 2 a frozen one. The peak is, for bf16, the innermost loop of a product with operands from the second-level cache, for fp32 a large product, measured in every round. The programs that waited took $(waste) % of a core meanwhile."
        echo
        summary
        for work in "${works[@]}"; do
            echo
            all_programs "$work"
        done
        echo
        machine_table
    fi
    if has "$parts" context; then
        echo
        echo "## Context"
        echo
        echo "$context_size, bf16, $context_tokens tokens a step."
        echo
        context_table
    fi
    if has "$parts" profile; then
        echo
        echo "## Where the time goes"
        for size in $sizes; do
            for precision in $precisions; do
                [ -s "$results/$size.$precision.profile" ] || continue
                printf '\n%s, %s\n\n```\n' "$size" "$precision"
                cat "$results/$size.$precision.profile"
                echo '```'
            done
        done
    fi
    [ ${#notes[@]} -eq 0 ] || printf '\nNot measured:\n\n'
    for line in ${notes[@]+"${notes[@]}"}; do echo "- $line"; done
}

if [ -n "$python" ] && ! "$python" -c 'import torch' 2>/dev/null; then
    note "$python has no PyTorch: cria was measured alone"
    python=
fi
[ -n "$python" ] || peers=
"$cria" bench --machine --json >"$results/last" || exit 1 # as many threads as cria takes by itself are PyTorch's too
threads=$(number threads "$results/last") kernels=$(sed -nE 's/.*"kernels": "([a-z0-9]+)".*/\1/p' "$results/last")
if has "$parts" steps; then for size in $sizes; do steps_of "$size"; done; fi
if has "$parts" frozen; then frozen_steps; fi
if has "$parts" sampling; then sampling_steps; fi
if has "$parts" context; then context_steps; fi
if has "$parts" profile; then profiles; fi
report | tee "$output"
