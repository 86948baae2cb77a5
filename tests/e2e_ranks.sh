#!/usr/bin/env bash
# Several ranks train what one trains, resume each other's checkpoints, and end together when one of them cannot go on.
. "$(dirname "$0")/e2e.bash"
command -v mpirun >/dev/null || { skip "mpirun is absent"; finish; }

make_folder one
cd "$scratch/one" || exit 1
sed -i 's/steps: 40/steps: 50/' config.yaml
echo 'precision: fp32' >>config.yaml # the bound of 1e-5 is fp32's; that of bf16 comes below
run 0 pretrain config.yaml
tell "50 steps on one rank" $?
reference=$scratch/one/run

ranks() { # STATUS N ARGUMENTS…; any failure where STATUS is "fails"
    local wanted=$1 status
    shift
    mpi "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
    status=$?
    [ "$status" -eq "$wanted" ] 2>/dev/null || { [ "$wanted" = fails ] && [ "$status" -ne 0 ] && [ "$status" -lt 124 ]; } ||
        { echo "mpi $*: status $status, expected $wanted"; return 1; }
}
# RUN [BOUND]: every loss within 1e-5, or the bound, of the reference's, relative
close_losses() {
    [ "$(losses "$1" | wc -l)" -eq "$(losses "$reference" | wc -l)" ] &&
        paste <(losses "$reference") <(losses "$1") | awk -v bound="${2:-1e-5}" '
            { n = NF / 2; if ($(n - 1) != $(NF - 1)) bad = 1
              d = $n - $NF; if (d < 0) d = -d; if (d > bound * $n) { print "step", $(n - 1), $n, $NF; bad = 1 } } END { exit bad || NR < 50 }'
}
tokens_seen() { sed -nE 's/.*"num_tokens": ([0-9]+).*/\1/p' "$1/metrics.jsonl"; }

for n in 2 4; do
    ranks 0 $n "$cria" pretrain config.yaml output=run$n && each_step_once run$n 50 && close_losses run$n
    tell "50 steps on $n ranks have the losses of one rank, validation included" $?
    [ -n "$(tokens_seen run$n)" ] && [ "$(tokens_seen run$n)" = "$(tokens_seen "$reference")" ]
    tell "$n ranks see as many tokens in every step as one" $?
done
again() { ranks 0 2 "$cria" pretrain config.yaml output=again && [ "$(losses again)" = "$(losses run2)" ]; }
again
tell "two ranks twice: the same bits" $?

# Sums cut differently tip roundings to bf16 (2^-8 relative), and fifty steps carry them on: about 1e-3 was seen.
in_bf16() {
    local reference=$scratch/one/narrow
    run 0 pretrain config.yaml precision=bf16 output=narrow && ranks 0 2 "$cria" pretrain config.yaml precision=bf16 output=narrow2 && close_losses narrow2 4e-3
}
in_bf16
tell "in bf16 two ranks have the losses of one to its rounding" $?

from_two_to_one() {
    ranks 0 2 "$cria" pretrain config.yaml output=mixed train.steps=20 optim.schedule=constant &&
        run 0 pretrain config.yaml output=mixed optim.schedule=constant && says 'resuming at step 20 of 50' && says 'warning: the checkpoint was computed by 2 ranks, this run has 1' && each_step_once mixed 50
}
from_one_to_two() {
    run 0 pretrain config.yaml output=back train.steps=20 optim.schedule=constant &&
        ranks 0 2 "$cria" pretrain config.yaml output=back optim.schedule=constant && says 'resuming at step 20 of 50' && each_step_once back 50
}
constant() { run 0 pretrain config.yaml output=constant optim.schedule=constant && reference=constant && close_losses mixed && close_losses back; }
from_two_to_one
tell "a run begun on two ranks goes on with one" $?
from_one_to_two
tell "a run begun on one rank goes on with two" $?
constant
tell "both have the losses of the run on one rank" $?

# A long run of two ranks in the background; $job is mpirun's timeout, $pids the ranks.
start_two() { # ARGUMENTS…
    mpi 2 "$cria" pretrain config.yaml train.steps=1000000 train.checkpoint_every=5 "$@" >"$scratch/out" 2>"$scratch/err" </dev/null &
    job=$!
    local deadline=$((SECONDS + 40)) output=${1#output=}
    until [ -e "$output/checkpoints/step-5/manifest.json" ] || [ -e "$output/checkpoints/step-10/manifest.json" ] || [ "$SECONDS" -ge "$deadline" ]; do sleep 0.05; done
    mapfile -t pids < <(pgrep -f "$cria pretrain config.yaml train.steps=1000000 train.checkpoint_every=5 $*" | while read -r pid; do
        [ "$(readlink "/proc/$pid/exe")" = "$(readlink -f "$cria")" ] && echo "$pid"; done)
    [ ${#pids[@]} -eq 2 ] || { echo "found ${#pids[@]} ranks"; kill "$job"; return 1; }
}
ended() { # SECONDS: the job ended by itself with an error
    local deadline=$((SECONDS + $1)) status
    while kill -0 "$job" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.1; done
    if kill -0 "$job" 2>/dev/null; then
        echo "still running after $1 s"
        kill "$job"
        kill -KILL "${pids[@]}"
        return 1
    fi
    { wait "$job"; } 2>/dev/null
    status=$?
    [ $status -ne 0 ] && [ $status -ne 124 ]
}
for victim in 0 1; do
    start_two output=killed$victim && kill -KILL "${pids[$victim]}" && ended 20
    tell "the death of rank $victim ends the job with an error" $?
    run 0 inspect killed$victim && run 0 pretrain config.yaml output=killed$victim train.steps=3 && says 'is finished'
    tell "and leaves a checkpoint that loads" $?
done

start_two output=hung parallel.watchdog=3 && kill -STOP "${pids[1]}" && ended 40 && says 'gave no sign of life for 3 s; last: ' && says 'the main thread'
tell "a rank that hangs ends the job after parallel.watchdog seconds, with stacks" $?

stopped() {
    start_two output=stopped && kill -TERM "${pids[0]}" && ended 20 && says 'interrupted at step .*a checkpoint was saved' && run 0 inspect stopped
}
stopped
tell "SIGTERM to one rank stops all ranks with a checkpoint" $?

# mpirun turns Ctrl-C into SIGTERM for the ranks, and a second later into SIGKILL: a save of this size is done by then.
ctrl_c() {
    start_two output=ctrlc && kill -INT "$(ps -o ppid= -p "${pids[0]}")" && ended 20 && run 0 inspect ctrlc || return 1
    [ -e "ctrlc/checkpoints/step-$(losses ctrlc | awk '$1 != "eval" { n = $1 } END { print n }')/manifest.json" ]
}
ctrl_c
tell "Ctrl-C at mpirun saves a checkpoint of the last step" $?

# ---- errors of one rank only ----

# two_programs STATUS "rank 0's arguments" "rank 1's arguments"
two_programs() {
    local first second
    read -ra first <<<"$2"
    read -ra second <<<"$3"
    ranks "$1" 1 "$cria" pretrain config.yaml "${first[@]}" : -n 1 "$cria" pretrain config.yaml "${second[@]}"
}
two_programs 3 "output=absent" "output=absent data.train=nowhere.txt" && says 'error: rank 1: .*nowhere.txt: no such file'
tell "data that rank 1 cannot read ends all ranks, naming it" $?
echo "other text" >other.txt
two_programs 3 "output=unlike" "output=unlike data.train=other.txt" && says 'the ranks have different data'
tell "ranks with different data are refused" $?
two_programs fails "output=model" "output=model model.dim=18 model.n_heads=4" && says 'error: '
tell "a model that rank 1 cannot make ends all ranks" $?

cp -r run2 full && rm -rf full/checkpoints && run 0 pretrain config.yaml output=full train.steps=2 && rm -rf full/checkpoints && touch full/checkpoints
ranks 1 2 "$cria" pretrain config.yaml output=full && says 'error: rank 0: full/checkpoints: mkdir'
tell "a checkpoint that rank 0 cannot save ends all ranks with the reason" $?

if [ "$(id -u)" -eq 0 ] && mkdir -p disk && mount -t tmpfs -o size=300k none disk 2>/dev/null; then
    ranks 1 2 "$cria" pretrain config.yaml output=disk/run data.cache=cache train.checkpoint_every=5 && says 'error: rank 0: .*No space left on device'
    tell "a full disk on rank 0 ends all ranks with the reason" $?
    run 0 inspect disk/run
    tell "and the older checkpoint loads" $?
    umount disk
else
    skip "no right to mount a small disk to be filled"
fi
finish
