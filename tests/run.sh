#!/usr/bin/env bash
# Runs every test: each Check program tests/test_*.c, then each tests/e2e_*.sh (which prints "N passed, N failed" last).
# usage: BUILD=build tests/run.sh [name …]
set -uo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # ranks and tests share the cores: waiting threads must not spin
passed=0 failed=0 skipped=0
names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    for file in tests/test_*.c tests/e2e_*.sh; do [ -e "$file" ] && names+=("$(basename "${file%.*}")"); done
fi
mkdir -p "$build/test-output"

run_one() { # name: prints its output, adds its counts
    local name=$1 output="$build/test-output/$1.log" status command counts="" start=$SECONDS
    if [ -e "tests/$name.sh" ]; then command=(bash "tests/$name.sh"); else command=("$build/tests/$name"); fi
    CRIA="$PWD/$build/cria" timeout --kill-after=10 900 "${command[@]}" >"$output" 2>&1 </dev/null
    status=$?
    counts=$(sed -nE 's/^[0-9]+%: Checks: ([0-9]+), Failures: ([0-9]+), Errors: ([0-9]+).*/\1 \2 \3 0/p;
                      s/^([0-9]+) passed, ([0-9]+) failed(, ([0-9]+) skipped)?$/\1 \2 X \4/p' "$output" |
        awk '$3 == "X" {p += $1; f += $2; s += $4; n++; next} {p += $1 - $2 - $3; f += $2 + $3; n++} END {if (n) print p + 0, f + 0, s + 0}')
    [ -n "$counts" ] || { counts="0 1 0"; echo "$name: ended with status $status and no closing line" >>"$output"; }
    read -r p f s <<<"$counts"
    if [ ! -e "tests/$name.sh" ]; then # a Check test that skips says so and has not passed; one that runs in part says "without …"
        s=$(grep -c '^skipped: ' "$output") || true
        p=$((p - s))
    fi
    [ "$status" -eq 0 ] || [ "$f" -gt 0 ] || f=1
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    printf '%-28s %4d s %4d passed %3d failed' "$name" $((SECONDS - start)) "$p" "$f"
    [ "$s" -eq 0 ] || printf ' %3d skipped' "$s"
    printf '\n'
    grep -E '^(skipped:|without) ' "$output" | sort -u | sed 's/^/    /'
    [ "$f" -eq 0 ] || tail -n 40 "$output" | sed 's/^/    | /'
}

tests/check_layers.sh >"$build/test-output/check_layers.log" 2>&1 && passed=$((passed + 1)) || { failed=$((failed + 1)); cat "$build/test-output/check_layers.log"; }
for name in "${names[@]}"; do run_one "$name"; done
if [ "$skipped" -gt 0 ]; then echo "$passed passed, $failed failed, $skipped skipped"; else echo "$passed passed, $failed failed"; fi
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
