#!/usr/bin/env bash
# The preference task (preference_task.sh) in little: the same prompts, methods and measure, half of the way. From 5 % or
# less of the base's answers every method has the wanted word in half of them or more, near the base.
. tests/e2e.bash
stories=$PWD/../shared/data/stories260K
if [ ! -e "$stories/stories260K.bin" ]; then
    skip "the preference task: stories260K is not there"
    finish
fi
out=$scratch/out samples=4
mkdir "$out"
. tests/preference_methods.bash
cp tests/reward_kl.awk "$scratch"

prepare
share=$(reward_of base)
awk "BEGIN { exit !($share > 0 && $share <= 0.05) }"
tell "the base meets the preference in at most 5 % of its answers ($share)" $?
: >"$out/points"
learn_dpo 64 15
reached dpo 0.5 6
tell "DPO meets it in half of them: $(tail -n 1 "$out/points")" $?
learn_rejection 1 64
reached rejection 0.3 6
tell "one round of rejection sampling, in three of ten: $(tail -n 1 "$out/points")" $?
for method in rloo grpo; do
    "learn_$method" 10
    reached $method 0.5 9
    tell "$method meets it in half of them: $(tail -n 1 "$out/points")" $?
done
awk -v base="$share" -v table=1 -f tests/reward_kl.awk "$out/points" >"$scratch/table" && grep -q '^  GRPO  *[0-9]' "$scratch/table" && grep -q 'D: DPO' "$scratch/table" &&
    awk -v base="$share" -v answers=200 -f tests/reward_kl.awk "$out/points" >"$scratch/figure.svg" && [ "$(grep -c '</text>' "$scratch/figure.svg")" -ge 20 ] && tail -n 1 "$scratch/figure.svg" | grep -q '</svg>'
tell "a table, and a figure of reward against KL" $?
finish
