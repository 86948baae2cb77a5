#!/usr/bin/env bash
# The instruction task (instruction_task.sh) with fewer words to learn from: its targets are met, and missed by an
# adapter that has learned one step.
. tests/e2e.bash

stories=$PWD/../shared/data/stories260K
if [ ! -e "$stories/stories260K.bin" ]; then
    skip "$stories is absent"
    finish
fi
export MOST_SECONDS=600
OUT=$scratch/task INVENTED=1000 bash tests/instruction_task.sh train.epochs=10 >"$scratch/err" 2>&1
tell "stories260K learns to answer held-out prompts in the form asked for, and to stop" $?
cat "$scratch/err"
grep -q '^before:   0.0 %' "$scratch/err"
tell "which it could not before" $?
run 0 inspect "$scratch/task/tuned" --json && grep -q '"name": "base_model.model.model.embed_tokens.weight"' "$scratch/out" && ! grep -q '"name": "base_model.model.lm_head.weight"' "$scratch/out"
tell "its tied vocabulary stays one matrix" $?
OUT=$scratch/none INVENTED=0 bash tests/instruction_task.sh train.steps=1 train.epochs=0 >"$scratch/err" 2>&1
[ $? -eq 1 ] && says 'less than 95 % are in the form' && says 'less than 99 % end by themselves'
tell "one step is not enough" $?
OUT=$scratch/frozen INVENTED=0 bash tests/instruction_task.sh lora.vocabulary=frozen >"$scratch/err" 2>&1
[ $? -eq 1 ] && says 'never learned the stop token </s>' && says 'lora.vocabulary train'
tell "and a frozen head is refused, with the way out" $?
finish
