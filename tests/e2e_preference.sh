#!/usr/bin/env bash
# The preference task (preference_task.sh) in little: the same prompts, methods and measure, the first part of the way.
# From 5 % or less of the base's answers every method has the wanted word in a quarter or more, near the base.
. tests/e2e.bash
stories=$PWD/../shared/data/stories260K
if [ ! -e "$stories/stories260K.bin" ]; then
    skip "the preference task: stories260K is not there"
    finish
fi
out=$scratch/out samples=2
mkdir "$out"
. tests/preference_methods.bash

prepare
share=$(figures_of "$out/base" validation 4) && share=${share%% *}
awk "BEGIN { exit !($share > 0 && $share <= 0.05) }"
tell "the base meets the preference in at most 5 % of its answers ($share)" $?
[ "$(cat "$out"/{train,validation,final}.txt | sort -u | wc -l)" -eq 550 ]
tell "three sets of prompts have none in common" $?
# METHOD REWARD KL ARGUMENTS …: that reward at that distance, while it learns
learns() {
    local method=$1 reward=$2 kl=$3 status
    shift 3
    "learn_$method" "$@" && reached "$method" "$reward" "$kl"
    status=$?
    [ $status -eq 0 ] || grep "^$method " "$out/points"
    tell "$method: $reward of the answers within $kl nats" $status
}
learns dpo 0.4 6 28 3 10 10
learns rejection 0.3 5 1 28
learns rloo 0.25 6 8
learns grpo 0.25 6 8
learns ppo 0.25 6 16
final_samples=2
report dpo >"$out/final" && [ "$(cut -d ' ' -f 2 "$out/final")" = "$(chosen dpo)" ] && awk '{ exit !($3 > 0.3 && $4 > 0 && $5 > 0 && $6 > 0) }' "$out/final"
tell "the checkpoint that is best by validation prompts is measured with others" $?
figures() {
    sed 's/$/ final/' "$out/final" | cat "$out/points" - >"$out/all"
    awk -v base="$share" -v table=1 -f tests/reward_kl.awk "$out/all" >"$scratch/table" && grep -q '^  GRPO  *' "$scratch/table" && grep -q 'D: DPO' "$scratch/table" &&
        grep -q '^  DPO .* ± .* % at .* ± ' "$scratch/table" && awk -v base="$share" -v answers=200 -v final_answers=400 -f tests/reward_kl.awk "$out/all" >"$scratch/figure.svg" && [ "$(grep -c '</text>' "$scratch/figure.svg")" -ge 20 ] &&
        tail -n 1 "$scratch/figure.svg" | grep -q '</svg>'
}
figures
tell "a table, and a figure of reward against KL" $?
finish
