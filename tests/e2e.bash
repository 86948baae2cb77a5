# For the end-to-end tests: . tests/e2e.bash
# Sets $cria, $scratch (removed at the end), and passed, failed, skipped; each script ends with `finish`.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
cria=${CRIA:-$PWD/build/cria}
scratch=$(mktemp -d)
clean_up() {
    umount "$scratch"/*/disk 2>/dev/null
    rm -rf "$scratch"
}
trap clean_up EXIT
passed=0 failed=0 skipped=0
export OMP_WAIT_POLICY=passive CRIA_THREADS=1 # the same bits everywhere, and room for the tests that run beside this
ulimit -c 0

tell() { # tell "promise" STATUS: counts one test; a failure shows what the program said last
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $1"
        [ ! -e "$scratch/err" ] || grep -v "[┤│└]" "$scratch/err" | tail -n 12 | sed 's/^/    | /'
    fi
}
skip() { # skip "reason"
    skipped=$((skipped + 1))
    echo "skipped: $1"
}
finish() {
    if [ "$skipped" -gt 0 ]; then echo "$passed passed, $failed failed, $skipped skipped"; else echo "$passed passed, $failed failed"; fi
    [ "$failed" -eq 0 ]
    exit
}

# run STATUS ARGUMENTS…: cria ends with this status; stdout in $scratch/out, stderr in $scratch/err
run() {
    local wanted=$1 status
    shift
    timeout --kill-after=5 "${LIMIT:-60}" "$cria" "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
    status=$?
    [ "$status" -eq "$wanted" ] || { echo "cria $*: status $status, expected $wanted" | cut -c 1-300; return 1; }
}
says() { grep -q -- "$1" "$scratch/err"; }
one_error() { [ "$(grep -c '^error: ' "$scratch/err")" -eq 1 ]; }

# A text of LINES short documents, the same on every machine.
make_text() { # FILE LINES [SEED]
    awk -v lines="$2" -v seed="${3:-7}" '
        function random(n) { seed = (seed * 16807) % 2147483647; return seed % n }
        BEGIN { n = split("the llama walks over green hills and eats soft grass while small birds sing near old stone walls in bright morning light", word, " ")
                for (i = 0; i < lines; i++) { line = ""; for (j = 6 + random(9); j > 0; j--) line = line word[1 + random(n)] " "; print line "." } }' >"$1"
}
# A config of a tiny Llama on bytes of text.txt; paths are relative, so that runs in different folders are equal bytes.
make_config() { # FILE
    cat >"$1" <<'END'
output: run
model: {dim: 16, n_layers: 2, n_heads: 2, n_kv_heads: 1, ffn_dim: 32, max_context: 64}
tokenizer: {path: bytes}
data: {train: [{path: ../text.txt, separator: "\n"}], validation: 0.1}
optim: {lr: 1.0e-2}
train: {steps: 40, tokens_per_batch: 128, tokens_per_microbatch: 64, context: 32, validate_every: 10, checkpoint_every: 10, checkpoint_minutes: 0}
END
}
# A folder $scratch/NAME with config.yaml, beside which the text lies.
make_folder() { # NAME
    mkdir -p "$scratch/$1"
    [ -e "$scratch/text.txt" ] || make_text "$scratch/text.txt" 400
    make_config "$scratch/$1/config.yaml"
}

# What a checkpoint's manifest says of its parameters and optimizer state, byte for byte.
sums() { # RUN STEP
    grep -E '"name": "(model|optimizer).h5"' "$1/checkpoints/step-$2/manifest.json"
}
# "step loss" of every training step, then "step eval_loss" of every validation.
losses() { # RUN
    sed -nE 's/^\{"step": ([0-9]+), .*"loss": ([^,}]+).*/\1 \2/p; s/^\{"step": ([0-9]+), .*"eval_loss": ([^,}]+).*/eval \1 \2/p' "$1/metrics.jsonl"
}
each_step_once() { # RUN STEPS: 1, 2, …, STEPS in this order
    losses "$1" | awk -v steps="$2" '$1 != "eval" { if ($1 != ++n) exit bad = 1 } END { exit bad || n != steps }'
}
json_number() { # KEY FILE: the first number of that name
    sed -nE "s/.*\"$1\": *(-?[0-9.eE+-]+).*/\1/p" "$2" | head -n 1
}

# mpi N ARGUMENTS…: mpirun's own; may be more ranks than cores
mpi() {
    local ranks=$1 root=()
    shift
    [ "$(id -u)" -ne 0 ] || root=(--allow-run-as-root)
    OMPI_MCA_btl_vader_single_copy_mechanism=none \
        OMPI_MCA_orte_tmpdir_base=$scratch OMPI_MCA_btl_vader_backing_directory=$scratch \
        ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 \
        timeout --kill-after=5 "${LIMIT:-60}" mpirun --oversubscribe --bind-to none "${root[@]}" -n "$ranks" "$@"
}
