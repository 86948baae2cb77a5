#!/usr/bin/env bash
# The program as its user meets it: help, versions, wrong commands, exit statuses, what goes to stdout and what to stderr.
set -uo pipefail
cd "$(dirname "$0")/.."
cria=${CRIA:-$PWD/build/cria}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0 failed=0

# expect STATUS ARGUMENTS…: runs cria, keeps $out and $err
run() {
    local wanted=$1 status
    shift
    timeout 60 "$cria" "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
    status=$?
    out=$(<"$scratch/out") err=$(<"$scratch/err")
    [ "$status" -eq "$wanted" ] && return 0
    echo "cria $*: status $status, expected $wanted"
    return 1
}
check() { # check "promise" command…
    local promise=$1
    shift
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $promise"; echo "  stdout: $out"; echo "  stderr: $err"; fi
}
one_error() { [ "$(grep -c '^error: ' <<<"$err")" -eq 1 ] && [ -z "$out" ]; }

help_lists() { run 0 help && [ -z "$err" ] && for name in "${commands[@]}"; do grep -q "^  $name " <<<"$out" || return 1; done; }
version() { run 0 --version && [[ $out =~ ^cria\ [0-9]+\.[0-9]+\.[0-9]+$ ]] && [ -z "$err" ]; }
no_command() { run 2 && one_error && grep -q "usage: cria" <<<"$err"; }
unknown() { run 2 hlep && one_error && grep -q "did you mean 'help'?" <<<"$err"; }
help_unknown() { run 2 help hlep && one_error; }
full_disk() { timeout 60 "$cria" help >/dev/full 2>"$scratch/err"; [ $? -eq 1 ] && grep -q "No space left" "$scratch/err"; }
no_trace() { run 2 hlep && ! grep -q '\.c:' <<<"$err"; }
trace() { err=$(CRIA_DEBUG=1 timeout 60 "$cria" hlep 2>&1); grep -q 'train/main.c:' <<<"$err"; }
options() { run 0 help options && grep -q '^  optim.lr: a number > 0; default 3.0e-4$' <<<"$out" && grep -q '^  data.train: ' <<<"$out"; }
explains() { run 0 help "$1" && [ -z "$err" ] && [ -n "$out" ] && local by_help=$out && run 0 "$1" --help && [ "$out" = "$by_help" ]; }
refuses_flag() { run 2 "$1" --no-such-flag-anywhere && [ "$(grep -c '^error: ' <<<"$err")" -eq 1 ]; }

bad_config() { printf 'optim:\n  lr: fast\n' >"$scratch/bad.yaml" && run 2 pretrain "$scratch/bad.yaml" && one_error && grep -q "bad.yaml:2:7: optim.lr: found 'fast', expected a number > 0" <<<"$err"; }
bad_argument() { run 2 pretrain configs/quickstart.yaml optim.lrr=1 && one_error && grep -q "argument 3 (optim.lrr=1): .*did you mean 'optim.lr'?" <<<"$err"; }
bad_rule() { run 2 pretrain configs/quickstart.yaml train.context=8192 train.tokens_per_microbatch=4096 output="$scratch/run" && one_error && grep -q "a micro-batch must hold one sequence" <<<"$err" && [ ! -e "$scratch/run" ]; }
no_config() { run 2 pretrain "$scratch/absent.yaml" && one_error && grep -q "absent.yaml" <<<"$err"; }

mapfile -t commands < <(sed -nE 's/^COMMAND\("([^"]+)".*/\1/p' train/commands.def)
check "there are commands" test ${#commands[@]} -ge 1
check "help lists every command on stdout" help_lists
check "--version prints one line" version
check "no command: help and one error on stderr, status 2" no_command
check "an unknown command is refused with the nearest" unknown
check "help for an unknown command is refused" help_unknown
check "results that cannot be written are a failure" full_disk
check "an error has no trace unless asked" no_trace
check "CRIA_DEBUG=1 shows where an error arose" trace
check "help options prints the option table" options
if [[ " ${commands[*]} " == *" pretrain "* ]]; then
    check "a wrong value is reported with file, line, column, key and what was expected" bad_config
    check "a wrong argument is reported with its position and the nearest key" bad_argument
    check "a config that cannot be trained is refused before anything is made" bad_rule
    check "an absent config is a usage error" no_config
fi
for name in "${commands[@]}"; do
    [ "$name" = help ] && continue
    check "help $name and $name --help say the same" explains "$name"
    check "$name refuses an unknown flag with one error" refuses_flag "$name"
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
