#!/usr/bin/env bash
# A preference with a known optimum: from stories260K, stories that have a cat in them. The base's have one in at most
# 5 % of its samples. Every method is to reach 90 % on prompts about children that it has not learned from, at a KL
# divergence from the base of at most 10 nats an answer. All are measured alike, at several points of their training, by
# `cria eval policy`: answers to validation prompts are sampled, and their log-probabilities compared with the base's. By
# them one checkpoint of each method is chosen, and measured with prompts that were not looked at before: the goal is
# reached where the reward's whole 95 % interval is above 90 % and the KL's below 10 nats.
# Minutes on two cores; not a part of `make test`, which has a shorter one (e2e_preference.sh). Prints a table, and a
# chart of reward against KL; FIGURE is where that is drawn as SVG. Methods that OUT has already are not learned again.
# usage: [CRIA=build/cria] [STORIES=../shared/data/stories260K] [OUT=DIRECTORY] [FIGURE=FILE.svg] tests/preference_task.sh [METHOD …]
set -euo pipefail
cd "$(dirname "$0")/.."
cria=${CRIA:-$PWD/build/cria}
stories=${STORIES:-../shared/data/stories260K}
[ -e "$stories/stories260K.bin" ] || { echo "no stories260K in $stories"; exit 1; }
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
export OMP_WAIT_POLICY=passive
. tests/preference_methods.bash
methods=("$@")
[ ${#methods[@]} -gt 0 ] || methods=(dpo rejection rloo grpo ppo)

[ -e "$out/points" ] || prepare
figures=$(figures_of "$out/base" final "$final_samples")
share=${figures%% *}
echo "the base has a cat in $(awk "BEGIN { printf \"%.2f %%\", 100 * $share }") of its answers to the final prompts"
status=0
awk "BEGIN { exit !($share > 0 && $share <= 0.05) }" || { echo "not in 0 to 5 %"; status=1; }
for method in "${methods[@]}"; do
    grep -qsx "$method" "$out/learned" && continue # in this folder, before
    begun=$SECONDS
    sed -i "/^$method /d" "$out/points" "$out/models"
    learn_"$method" || { echo "$method failed"; exit 1; }
    echo "$method" >>"$out/learned"
    grep "^$method " "$out/points" | awk '{ printf "%-10s %-8s validation reward %5.1f ± %.1f %%, KL %5.2f ± %.2f nats\n", $1, $2, 100 * $3, 100 * $4, $5, $6 }'
    echo "$method: $((SECONDS - begun)) s"
done
: >"$out/final"
for method in "${methods[@]}"; do report "$method" >>"$out/final" || { echo "$method: nothing within $kl_bound nats"; exit 1; }; done
awk '{ low = $3 - 1.96 * $4; high = $5 + 1.96 * $6
    printf "%-10s step %-5s final reward %.1f %% (95 %% interval %.1f to %.1f), KL %.2f nats (%.2f to %.2f)\n", $1, $2, 100 * $3, 100 * low, 100 * ($3 + 1.96 * $4), $5, $5 - 1.96 * $6, high
    if (low < 0.9 || high > 10) { print "  the goal is not within that"; bad = 1 } } END { exit bad }' "$out/final" || status=1
{ for method in "${methods[@]}"; do grep "^$method " "$out/points"; done && sed 's/$/ final/' "$out/final"; } >"$out/all"
awk -v base="$share" -v table=1 -f tests/reward_kl.awk "$out/all"
prompts() { wc -l <"$out/$1.txt"; }
[ -z "${FIGURE:-}" ] || awk -v base="$share" -v answers="$(($(prompts validation) * samples))" -v final_answers="$(($(prompts final) * final_samples))" -f tests/reward_kl.awk "$out/all" >"$FIGURE"
exit $status
