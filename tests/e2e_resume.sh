#!/usr/bin/env bash
# A run that was stopped, killed or told to go on ends as if nothing had happened; a folder that is not a run's is left
# alone. "The same" means: model.h5 and optimizer.h5 have the same bytes by their manifests, metrics.jsonl has every
# step once with the same losses.
. "$(dirname "$0")/e2e.bash"

make_folder whole
(cd "$scratch/whole" && run 0 pretrain config.yaml)
tell "a run of 40 steps" $?
reference=$scratch/whole/run

same_end() { # RUN
    [ -n "$(sums "$reference" 40)" ] && [ "$(sums "$1" 40)" = "$(sums "$reference" 40)" ] && each_step_once "$1" 40 &&
        [ "$(losses "$1")" = "$(losses "$reference")" ]
}
# Starts a run and sends it SIGNAL when it has done STEPS steps; its status is in $status. Checkpoints every step make
# it slow enough to be hit; where it ended before all the same (a busy machine), it is tried again.
stop_by() { # SIGNAL NAME STEPS
    for _ in 1 2 3 4 5; do
        rm -rf "${scratch:?}/$2"
        start_and_stop "$@"
        [ "$status" -eq 0 ] || return
    done
}
start_and_stop() { # SIGNAL NAME STEPS
    make_folder "$2"
    cd "$scratch/$2" || return 1
    timeout 60 "$cria" pretrain config.yaml train.checkpoint_every="${EVERY:-1}" 2>"$scratch/err" &
    local job=$! deadline=$((SECONDS + 30))
    until [ -e run/metrics.jsonl ] && [ "$(grep -c '"loss"' run/metrics.jsonl)" -ge "$3" ]; do
        kill -0 "$job" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ] || break
    done
    kill -"$1" "$(pgrep -P "$job")"
    { wait "$job"; } 2>/dev/null
    status=$?
    cd "$OLDPWD" || return 1
}
resumes() { # NAME: goes on from where it was, to the same end
    (cd "$scratch/$1" && run 0 pretrain config.yaml) && says 'resuming at step' && same_end "$scratch/$1/run"
}

for signal in TERM INT; do
    steps=$((3 + RANDOM % 20))
    stop_by $signal "$signal" $steps
    [ "$status" -eq 130 ] && says 'interrupted at step .*; a checkpoint was saved, the same command resumes'
    tell "SIG$signal at step $steps saves and ends with status 130" $?
    resumes "$signal"
    tell "a run stopped by SIG$signal after $steps steps ends as the uninterrupted one" $?
done

killed_and_resumed() { # NAME STEPS
    stop_by KILL "$1" "$2"
    [ "$status" -eq 137 ] && resumes "$1"
}
for n in 1 2 3 4 5; do
    steps=$((4 + RANDOM % 22)) # there is a checkpoint
    EVERY=$((1 + RANDOM % 3)) killed_and_resumed "KILL$n" $steps
    tell "a run killed after $steps steps ends as the uninterrupted one" $?
done

# From here on in one folder whose run is finished.
cd "$scratch/whole" || exit 1

finished() { run 0 pretrain config.yaml && says 'run is finished: 40 steps' && same_end run; }
finished
tell "a finished run says so and stays as it is" $?

forbidden() {
    run 2 pretrain config.yaml optim.beta2=0.99 train.context=16 && one_error &&
        says 'optim.beta2: 0.95 before, 0.99 now' && says 'train.context: 32 before, 16 now' && same_end run && run 0 pretrain config.yaml
}
forbidden
tell "a resume with another context and beta2 is refused, with both differences" $?

allowed() { # more steps at another learning rate, and larger micro-batches
    cp -r run before && run 0 pretrain config.yaml train.steps=50 optim.lr=0.005 train.tokens_per_microbatch=128 &&
        says 'train.steps: 40 before, 50 now' && says 'optim.lr: 0.01 before, 0.005 now' && each_step_once run 50 &&
        [ -e run/checkpoints/step-50/manifest.json ] && [ "$(losses run | grep -v eval | head -n 40)" = "$(losses before | grep -v eval)" ]
}
allowed
tell "a resume with more steps and another learning rate goes on" $?

other_data() {
    rm -rf run && cp -r before run && cp ../text.txt mine.txt && sed 's|../text.txt|mine.txt|' config.yaml >mine.yaml &&
        run 0 pretrain mine.yaml output=mine && echo "another line" >>mine.txt &&
        run 3 pretrain mine.yaml output=mine train.steps=45 && one_error && says 'was made from other data'
}
other_data
tell "a resume on changed data is refused" $?

damaged_newest() { # one flipped byte: the older checkpoint is taken, with a warning, and the end is the same
    rm -rf run && cp -r before run
    printf '\377' | dd of=run/checkpoints/step-40/optimizer.h5 bs=1 seek=5000 conv=notrunc status=none
    run 0 pretrain config.yaml && says 'warning: passing over a checkpoint: .*optimizer.h5' && says 'resuming at step 30 of 40' && same_end run
}
damaged_newest
tell "a damaged checkpoint is passed over, and the run ends the same" $?

all_damaged() {
    for file in run/checkpoints/*/model.h5; do printf '\377' | dd of="$file" bs=1 seek=5000 conv=notrunc status=none; done
    find run -type f -exec md5sum {} + | sort >was && run 3 pretrain config.yaml && one_error && says 'damaged' &&
        find run -type f -exec md5sum {} + | sort | cmp - was
}
all_damaged
tell "a run all of whose checkpoints are damaged is refused and left untouched" $?

foreign() { # FILE
    rm -rf theirs && mkdir -p "theirs/$(dirname "$1")" && echo "precious" >"theirs/$1" &&
        run 3 pretrain config.yaml output=theirs && one_error && says "${1%%/*}" && [ "$(find theirs -type f)" = "theirs/$1" ] &&
        [ "$(cat "theirs/$1")" = precious ]
}
for file in thesis.tex metrics.jsonl notes.txt tokenizer.json cache/file checkpoints/step-3/manifest.json; do
    foreign $file
    tell "an output folder that holds $file is refused and left untouched" $?
done
not_a_folder() { echo precious >file && run 3 pretrain config.yaml output=file && one_error && [ "$(cat file)" = precious ]; }
not_a_folder
tell "an output that is a file is refused" $?
not_a_run() { rm -rf theirs && mkdir theirs && echo 'hello: world' >theirs/config.yaml && run 3 pretrain config.yaml output=theirs && one_error && [ "$(cat theirs/config.yaml)" = 'hello: world' ]; }
not_a_run
tell "a folder with another program's config.yaml is refused and left untouched" $?

one_at_a_time() {
    rm -rf run
    timeout 60 "$cria" pretrain config.yaml train.steps=100000 2>/dev/null &
    local job=$! deadline=$((SECONDS + 30))
    until [ -e run/metrics.jsonl ] || [ "$SECONDS" -ge "$deadline" ]; do sleep 0.05; done
    run 3 pretrain config.yaml train.steps=100000 && one_error && says 'another process is training into run'
    local result=$?
    kill -KILL "$(pgrep -P $job)"
    { wait $job; } 2>/dev/null
    return $result
}
one_at_a_time
tell "two processes do not train into one folder" $?

early() { # a learning rate that makes it worse at once
    run 0 pretrain config.yaml output=early optim.lr=3 optim.schedule=constant train.early_stopping=2 train.validate_every=2 train.checkpoint_every=2 &&
        says 'stopping early' && cp early/metrics.jsonl was &&
        run 0 pretrain config.yaml output=early optim.lr=3 optim.schedule=constant train.early_stopping=2 train.validate_every=2 train.checkpoint_every=2 &&
        says 'early is finished: .*stopped early' && cmp early/metrics.jsonl was
}
early
tell "a run that stopped early stays finished" $?

rm -rf run && cp -r before run
continues() { # MODEL: the loss begins where the base ended
    rm -rf next && cat >next.yaml <<END && run 0 pretrain next.yaml && [ "$(losses next | grep -c -v eval)" -eq 10 ]
output: next
model: {base: $1}
data: {train: [{path: ../text.txt, separator: "\n"}], validation: 0.1}
train: {steps: 10, tokens_per_batch: 128, tokens_per_microbatch: 64, context: 32}
END
}
for base in run run/best run/checkpoints/step-40; do
    continues $base && awk -v first="$(losses next | awk 'NR == 1 { print $2 }')" 'BEGIN { exit !(first < 3.5) }'
    tell "model.base=$base continues from its weights" $?
done
best_is_best() {
    local step
    step=$(sed 's/step-//' run/checkpoints/best) && [ -e "run/checkpoints/step-$step/manifest.json" ] &&
        [ "$step" = "$(losses run | awk '$1 == "eval" && (!n++ || $3 < low) { low = $3; step = $2 } END { print step }')" ] &&
        run 0 inspect run/best --json && cp "$scratch/out" best.json && run 0 inspect "run/checkpoints/step-$step" --json && grep -q '"step": '"$step" best.json
}
best_is_best
tell "RUN/best is the checkpoint of the lowest validation loss" $?
finish
