#!/usr/bin/env bash
# The preference task (preference_task.sh) in little: the same prompts, methods and measure, the first part of the way.
# From 5 % or less of the base's answers every method has the wanted word in a quarter or more, near the base.
. tests/e2e.bash
stories=$PWD/../shared/data/stories260K
if [ ! -e "$stories/stories260K.bin" ]; then
    skip "the preference task: stories260K is not there"
    finish
fi
out=$scratch/out samples=4
mkdir "$out"
. tests/preference_methods.bash

prepare
share=$(reward_of base)
awk "BEGIN { exit !($share > 0 && $share <= 0.05) }"
tell "the base meets the preference in at most 5 % of its answers ($share)" $?
: >"$out/points"
# METHOD REWARD KL ARGUMENTS …: that reward at that distance, while it learns
learns() {
    local method=$1 reward=$2 kl=$3 status
    shift 3
    "learn_$method" "$@" && reached "$method" "$reward" "$kl"
    status=$?
    [ $status -eq 0 ] || grep "^$method " "$out/points"
    tell "$method: $reward of the answers within $kl nats" $status
}
learns dpo 0.45 6 48 15
learns rejection 0.3 5 1 48
learns rloo 0.25 6 5
learns grpo 0.25 6 5
learns ppo 0.25 6 10
figures() {
    awk -v base="$share" -v table=1 -f tests/reward_kl.awk "$out/points" >"$scratch/table" && grep -q '^  GRPO  *' "$scratch/table" && grep -q 'D: DPO' "$scratch/table" &&
        awk -v base="$share" -v answers=200 -f tests/reward_kl.awk "$out/points" >"$scratch/figure.svg" && [ "$(grep -c '</text>' "$scratch/figure.svg")" -ge 20 ] &&
        tail -n 1 "$scratch/figure.svg" | grep -q '</svg>'
}
figures
tell "a table, and a figure of reward against KL" $?
finish
