#!/usr/bin/env bash
# cria plan says beforehand what a run will hold: its total against the measured peak of anonymous and shared resident
# memory, within 2 % or 8 MB, with the cache being made, validation and a checkpoint in the run. And what does not fit is
# refused, with what would.
. "$(dirname "$0")/e2e.bash"
if grep -qa __asan_init "$cria"; then # a sanitizer's own memory is many times the program's
    skip "memory under a sanitizer"
    finish
fi

make_text "$scratch/text.txt" 4000
cd "$scratch" || exit 1
data=(tokenizer.path=bytes 'data.train=[{path: text.txt, separator: "\n"}]' train.validation_tokens=2048)

number() { sed -nE "s/^ *\"$1\": ([0-9]+).*/\1/p" "$2" | head -n 1; }

# Runs cria with the arguments and looks at its pages every millisecond; the peak in bytes is in $peak. A look takes
# less time than a run's largest moments last.
measure() {
    local status pid deadline=$((SECONDS + ${LIMIT:-120})) sum
    peak=0
    "$cria" "$@" 2>"$scratch/err" &
    pid=$!
    while mapfile -t status 2>/dev/null <"/proc/$pid/status" && [ ${#status[@]} -gt 0 ]; do
        sum=0
        for line in "${status[@]}"; do
            case $line in
            RssAnon:* | RssShmem:*) line=${line%kB} && sum=$((sum + ${line#*:})) ;;
            State:*Z*) break 2 ;;
            esac
        done
        [ $((sum * 1024)) -le "$peak" ] || peak=$((sum * 1024))
        [ "$SECONDS" -lt "$deadline" ] || kill -KILL "$pid"
        read -r -t 0.001 <>"$scratch/never"
    done
    wait "$pid"
}
mkfifo "$scratch/never"

agrees() { # NAME ARGUMENTS…; ABOVE: by how many per cent the plan may be above what was measured
    local name=$1 total difference allowed
    shift
    run 0 plan "$@" output="$name" --json && total=$(($(number total_bytes "$scratch/out") - $(number program "$scratch/out"))) || return 1
    [ ! -e "$name" ] || { echo "planning has made $name"; return 1; }
    measure "${STAGE:-pretrain}" "$@" output="$name" || return 1
    [ -e "$name/metrics.jsonl" ] && grep -q 'eval_loss\|eval_reward' "$name/metrics.jsonl" && ls "$name"/checkpoints/*/model.h5 >/dev/null || return 1
    difference=$((total > peak ? total - peak : peak - total)) allowed=$((total > peak ? peak * ${ABOVE:-2} / 100 : peak / 50))
    allowed=$((allowed > 8000000 ? allowed : 8000000))
    echo "$name: planned $total, measured $peak bytes: $((difference / 1000)) kB apart, $((allowed / 1000)) allowed"
    [ "$difference" -le "$allowed" ]
}

holds() { # ARGUMENTS…: the peak of all that is resident in a step, code included, is below the plan
    local total peak
    run 0 plan "$@" --json && total=$(number total_bytes "$scratch/out") && run 0 bench "$@" -n 1 --warmup 1 --seconds 0 --json &&
        peak=$(number peak_memory_bytes "$scratch/out") || return 1
    echo "planned $total, measured $peak bytes: $(((total - peak) / 1000)) kB more than needed"
    [ "$peak" -le "$total" ]
}

agrees bytes model.dim=128 model.n_layers=4 model.n_heads=4 model.tie_embeddings=true "${data[@]}" \
    train.steps=3 train.context=64 train.tokens_per_batch=768 train.tokens_per_microbatch=768
tell "a small model on bytes takes the memory that was planned" $?
agrees 260k model.preset=260k "${data[@]}" data.packing=best-fit train.steps=2 train.context=256 \
    train.tokens_per_batch=4096 train.tokens_per_microbatch=2048 train.sample_every=1
tell "260K with samples and best-fit packing takes the memory that was planned" $?
agrees 15m model.preset=15m "${data[@]}" train.validation_tokens=128 train.steps=2 train.context=128 \
    train.tokens_per_batch=128 train.tokens_per_microbatch=4096
tell "15M, in smaller steps than its micro-batch would hold, takes the memory that was planned" $?
agrees layer model.dim=256 model.n_layers=8 model.n_heads=8 model.n_kv_heads=2 "${data[@]}" train.steps=2 \
    train.context=128 train.tokens_per_batch=2048 train.tokens_per_microbatch=2048 train.recompute=layer
tell "recomputed layers take the memory that was planned" $?
if run 0 plan model.preset=260k precision=bf16 train.recompute=norms; then
    agrees bf16 model.preset=260k "${data[@]}" train.steps=2 train.context=256 precision=bf16 train.tokens_per_batch=4096 train.tokens_per_microbatch=4096
    tell "bf16 takes the memory that was planned" $?
    agrees bf16-15m model.preset=15m "${data[@]}" train.validation_tokens=128 train.steps=2 precision=bf16 optim.moments=bf16 \
        train.context=128 train.tokens_per_batch=128 train.tokens_per_microbatch=4096
    tell "15M in bf16 with bf16 moments takes the memory that was planned" $?
    LIMIT=200 holds model.preset=15m precision=bf16 lora.rank=16 lora.base=nf4 train.recompute=layer train.context=128 train.tokens_per_batch=256 train.tokens_per_microbatch=256
    tell "an adapter on a quantised model stays below the plan" $?
    agrees norms model.dim=256 model.n_layers=8 model.n_heads=8 model.n_kv_heads=2 "${data[@]}" train.steps=2 precision=bf16 \
        train.context=128 train.tokens_per_batch=2048 train.tokens_per_microbatch=2048 train.recompute=norms
    tell "recomputed norms in bf16 take the memory that was planned" $?
else
    skip "bf16 is not in this version"
fi

awk 'BEGIN { for (i = 0; i < 300; i++) printf "{\"prompt\": \"say %d\", \"completion\": \"%0107d\"}\n", i, i }' >records.jsonl
run 0 pretrain model.preset=15m "${data[@]}" train.steps=1 train.context=128 train.tokens_per_batch=128 train.validation_tokens=128 output=base && run 0 export base narrow --dtype bf16
tell "a base for adapters is made" $?
adapted=(template.name=alpaca 'data.train=[{path: records.jsonl}]' data.validation=0.1 lora.rank=16 train.steps=2 train.context=256 train.tokens_per_batch=1024
    train.tokens_per_microbatch=1024 train.sample_every=1 'sft.sample_prompts=["say 7"]' generate.max_new_tokens=100)
STAGE=sft agrees lora model.base=base precision=fp32 "${adapted[@]}"
tell "an adapter on an fp32 model takes the memory that was planned" $?
grown=(template.name=chatml train.context=135 train.tokens_per_batch=1080 train.tokens_per_microbatch=1080)
STAGE=sft agrees vocabulary model.base=base precision=fp32 "${adapted[@]}" lora.vocabulary=train "${grown[@]}"
tell "an adapter with new tokens takes the memory that was planned" $?
if run 0 plan model.preset=260k precision=bf16; then
    STAGE=sft agrees vocabulary-bf16 model.base=narrow precision=bf16 "${adapted[@]}" lora.vocabulary=train "${grown[@]}"
    tell "so does one on a mapped bf16 model" $?
    STAGE=sft agrees lora-bf16 model.base=narrow precision=bf16 lora.dora=true lora.dropout=0.1 train.recompute=layer "${adapted[@]}"
    tell "an adapter on a mapped bf16 model takes the memory that was planned" $?
    STAGE=sft agrees lora-converted model.base=base precision=bf16 "${adapted[@]}"
    tell "an adapter on a model that is converted to bf16 takes the memory that was planned" $?
fi
STAGE=sft agrees grown model.base=base precision=fp32 "${adapted[@]}" lora.rank=0 "${grown[@]}"
tell "full fine-tuning with new tokens takes the memory that was planned" $?

head -n 40 text.txt | cut -c 1-40 >prompts.txt # answers fill what is left of the context
rewarded=(model.base=base precision=fp32 'data.train=[{path: prompts.txt}]' data.validation=0.1 ppo.reward=contains ppo.word=llama ppo.prompts=8
    train.steps=2 train.context=96 train.tokens_per_microbatch=512 generate.max_new_tokens=55)
export ABOVE=15 # pages of the sampling cache that short prompts leave untouched
STAGE=ppo agrees rloo "${rewarded[@]}" ppo.algorithm=rloo ppo.samples=4
tell "RLOO with its reference takes what was planned, or less" $?
STAGE=ppo agrees ppo "${rewarded[@]}" ppo.algorithm=ppo ppo.reference=base
tell "PPO with its value model and another reference takes what was planned, or less" $?
STAGE=ppo agrees ppo-lora "${rewarded[@]}" ppo.algorithm=ppo lora.rank=8
tell "PPO with adapters for policy and value model takes what was planned, or less" $?
awk 'BEGIN { for (i = 0; i < 16; i++) printf "{\"prompt\": \"say %d\", \"chosen\": \"%d\", \"rejected\": \"no\"}\n", i, i }' >pairs.jsonl
judging=(model.base=base precision=fp32 data.train=pairs.jsonl data.validation=0 template.name=plain preferences.per_batch=8 train.steps=1 train.context=96
    train.tokens_per_microbatch=512)
run 0 reward "${judging[@]}" output=judge && run 0 reward "${judging[@]}" output=judge-lora lora.rank=16
STAGE=ppo agrees ppo-adapter "${rewarded[@]}" ppo.algorithm=rloo ppo.samples=4 ppo.reward=model ppo.model=judge-lora ppo.safety_model=judge template.name=plain lora.rank=8
tell "RLOO by two reward models, one of them an adapter with its base, their tapes included" $?
STAGE=ppo agrees ppo-body "${rewarded[@]}" ppo.algorithm=ppo ppo.reward=model ppo.model=judge template.name=plain lora.rank=8
tell "PPO with an adapter on a body of its own for a value model" $?
counted() { # the reward model's values, and no less
    run 0 plan "${rewarded[@]}" ppo.algorithm=rloo --json && local without=$(number parameters "$scratch/out") &&
        run 0 plan "${rewarded[@]}" ppo.algorithm=rloo ppo.reward=model ppo.model=$1 --json && [ $(($(number parameters "$scratch/out") - without)) -gt $((4 * $2)) ]
}
parameters=$(run 0 inspect judge && sed -nE 's/.*arrays, ([0-9,]+) numbers.*/\1/p' "$scratch/out" | head -n 1 | tr -d ,)
counted judge "$parameters" && counted judge-lora "$parameters"
tell "a reward model is counted, whole or as an adapter" $?
unset ABOVE

two_ranks() { # the plan of each rank under mpirun, MPI's own memory measured
    mpi 2 "$cria" plan model.preset=260k "${data[@]}" output=two --json >"$scratch/out" 2>"$scratch/err" &&
        [ "$(number ranks "$scratch/out")" -eq 2 ] && [ "$(grep -c '"total_bytes":' "$scratch/out")" -eq 1 ] &&
        [ "$(number exchange "$scratch/out")" -gt 1000000 ] && ! grep -q "MPI's own memory is taken" "$scratch/out"
}
if command -v mpirun >/dev/null; then
    two_ranks
    tell "under mpirun one plan is printed, for as many ranks" $?
fi

grows() { # [config] where $scratch/out is of two plans
    local none norms layer
    run 0 plan "$@" --json && none=$(number none "$scratch/out") norms=$(number norms "$scratch/out") layer=$(number layer "$scratch/out") &&
        [ "$layer" -lt "$norms" ] && [ "$norms" -le "$none" ]
}
grows model.preset=llama2-7b train.context=4096
tell "recomputation takes less" $?
# of a step's 3 forward passes recomputed layers add the layers' part of one: by hand for width 128, ffn 352, 4 layers, bytes
costs() {
    run 0 plan model.dim=128 model.n_layers=4 model.n_heads=4 model.ffn_dim=352 model.vocab_size=257 train.context=64 train.tokens_per_batch=6400 --json &&
        awk -v step="$(json_number step_flops "$scratch/out")" -v more="$(sed -n '/recompute_flops_with/,/}/s/.*"layer": \([0-9.e+]*\).*/\1/p' "$scratch/out")" 'BEGIN {
            layers = 2 * 4 * (4 * 128 * 128 + 3 * 128 * 352) + 4 * 4 * 128 * 65 / 2; head = 2 * 128 * 257
            exit !(step == 3 * 6400 * (layers + head) && more == 6400 * layers) }'
}
costs
tell "what recomputed layers cost is one more forward pass of them" $?
timed() { run 0 plan model.preset=260k train.context=64 --measure --json && grep -q '"step_seconds_with"' "$scratch/out" && run 0 plan model.preset=260k --measure && grep -q '^  a step ' "$scratch/out"; }
LIMIT=200 timed
tell "where the machine is measured, the time of a step is predicted" $?

large() { # within the time of a plan, in little memory
    (ulimit -v 4000000 && run 0 plan model.preset=llama3.1-405b ranks=8) && grep -q 'does not fit' "$scratch/out" &&
        grep -q '^run: *8 ranks' "$scratch/out" && ! ls -d runs 2>/dev/null
}
large
tell "the largest model is planned without being allocated" $?

refused() {
    run 3 pretrain model.preset=15m "${data[@]}" train.steps=2 train.context=128 train.memory_limit=300M output=refused &&
        one_error && says 'it fits with train.' && [ ! -e refused ]
}
refused
tell "a run that does not fit is refused, with what would fit, and nothing was made" $?

advice_holds() { # what was advised fits
    local advice
    advice=$(sed -nE 's/.*it fits with ([a-z0-9_.= ]*): .*/\1/p' "$scratch/err")
    [ -n "$advice" ] || return 1
    # shellcheck disable=SC2086
    run 0 plan model.preset=15m "${data[@]}" train.context=128 train.memory_limit=300M $advice && grep -q '^fits: ' "$scratch/out"
}
advice_holds
tell "with what was advised it fits" $?

names_base() { # of a model in 16 bits that is too large, NF4 or int8 and recomputation are advised, and hold
    local large=(model.preset=llama3.2-1b lora.rank=16 precision=bf16 train.context=512 train.tokens_per_batch=512 train.tokens_per_microbatch=512 train.memory_limit=2000M)
    run 0 plan "${large[@]}" && grep -q 'it fits with lora.base=int8 train.recompute=layer' "$scratch/out" &&
        run 0 plan "${large[@]}" train.memory_limit=1500M && grep -q 'it fits with lora.base=nf4 train.recompute=layer' "$scratch/out" &&
        run 0 plan "${large[@]}" train.memory_limit=1500M lora.base=nf4 train.recompute=layer && grep -q '^fits' "$scratch/out"
}
names_base
tell "an adapter on a model that does not fit is advised a quantised base, and recomputation" $?
never_fits() { run 3 pretrain model.preset=15m "${data[@]}" train.memory_limit=100M output=refused && says 'no micro-batch is small enough'; }
never_fits
tell "a model that is too large for any micro-batch is refused as such" $?

finish
