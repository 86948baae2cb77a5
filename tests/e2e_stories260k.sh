#!/usr/bin/env bash
# A real trained Llama through the program: stories260K, read from llama2.c's own files and (where this build has import
# and export) from what cria makes of it, writes the text that llama2.c's run.c writes, byte for byte.
set -uo pipefail
cd "$(dirname "$0")/.."
cria=${CRIA:-$PWD/build/cria}
stories=../shared/data/stories260K
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0 failed=0 skipped=0

if [ ! -e "$stories/stories260K.bin" ]; then
    echo "skipped: $stories is absent"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi

has() { "$cria" help | grep -q "^  $1 "; }
tell() { # tell "promise" STATUS
    if [ "$2" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $1"; cat "$scratch/err"; fi
}
# MODEL [flags]: 200 greedy tokens from BOS are the expected bytes
greedy() {
    timeout 60 "$cria" generate "$@" -p "" -n 200 --temperature 0 >"$scratch/out" 2>"$scratch/err" </dev/null &&
        cmp "$scratch/out" "$stories/expected_greedy.txt"
}
bin=("$stories/stories260K.bin" --tokenizer "$stories/tok512.bin")

for kernels in reference openblas avx2 avx512; do
    if CRIA_KERNELS=$kernels "$cria" generate "${bin[@]}" -p "" -n 1 >"$scratch/out" 2>"$scratch/err" || [ $? -ne 3 ]; then
        CRIA_KERNELS=$kernels greedy "${bin[@]}"
        tell "greedy text with the $kernels kernels" $?
    else
        echo "skipped: $kernels kernels: $(tail -n 1 "$scratch/err")"
        skipped=$((skipped + 1))
    fi
done
CRIA_THREADS=1 greedy "${bin[@]}"
tell "greedy text on one thread" $?
greedy "$stories/stories260K.bin" --tokenizer "$stories/tok512.model"
tell "greedy text with the SentencePiece form of the tokenizer" $?
greedy "${bin[@]}" --seed 7
tell "greedy text does not depend on the seed" $?
! greedy "${bin[@]}" --repetition-penalty 1.5 >"$scratch/differs" && grep -q differ "$scratch/differs"
tell "with a repetition penalty the text is another: the comparison can fail" $?

if has import; then
    "$cria" import "$stories/stories260K.bin" "$scratch/imported" --tokenizer "$stories/tok512.bin" >"$scratch/out" 2>"$scratch/err" &&
        greedy "$scratch/imported"
    tell "greedy text after import" $?
    if has export; then
        "$cria" export --format hf "$scratch/imported" "$scratch/exported" >"$scratch/out" 2>"$scratch/err" &&
            greedy "$scratch/exported"
        tell "greedy text after import and export" $?
    fi
else
    echo "skipped: this build has no import"
    skipped=$((skipped + 1))
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
