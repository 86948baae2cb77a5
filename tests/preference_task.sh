#!/usr/bin/env bash
# A preference with a known optimum: from stories260K, stories that have a cat in them. The base's have one in at most
# 5 % of its samples. Every method is to reach 90 % on prompts about children that it has not learned from, at a KL
# divergence from the base of at most 10 nats an answer. All are measured alike, at several points of their training, by
# `cria eval policy`: answers to the held-out prompts are sampled, and their log-probabilities compared with the base's.
# Minutes on two cores; not a part of `make test`, which has a shorter one (e2e_preference.sh). Prints a table, and a
# chart of reward against KL; FIGURE is where that is drawn as SVG.
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

prepare
share=$(reward_of base)
echo "the base has a cat in $(awk "BEGIN { printf \"%.2f %%\", 100 * $share }") of its answers to held-out prompts"
status=0
awk "BEGIN { exit !($share <= 0.05) }" || { echo "that is more than 5 %"; status=1; }
: >"$out/points"
for method in "${methods[@]}"; do
    begun=$SECONDS
    learn_"$method" || { echo "$method failed"; exit 1; }
    grep "^$method " "$out/points" | awk '{ printf "%-10s %-8s held-out reward %5.1f ± %.1f %%, KL %5.2f ± %.2f nats\n", $1, $2, 100 * $3, 100 * $4, $5, $6 }'
    echo "$method: $((SECONDS - begun)) s"
    reached "$method" 0.9 10 || { echo "  the goal was not reached"; status=1; }
done
awk -v base="$share" -v table=1 -f tests/reward_kl.awk "$out/points"
[ -z "${FIGURE:-}" ] || awk -v base="$share" -v answers="$((100 * samples / 2))" -f tests/reward_kl.awk "$out/points" >"$FIGURE"
exit $status
