#!/usr/bin/env bash
# A preference with a known optimum: from stories260K, stories that have a cat in them. The base's have one in at most
# 5 % of its samples; RLOO, GRPO and PPO are to reach 90 % on prompts that they have not learned from, at a KL divergence of
# at most 10 nats an answer. Minutes on two cores; not a part of `make test`. Prints a table of held-out reward and KL
# by step, and a figure of reward against KL.
# usage: [CRIA=build/cria] [STORIES=../shared/data/stories260K] [OUT=DIRECTORY] tests/preference_task.sh
set -euo pipefail
cd "$(dirname "$0")/.."
cria=${CRIA:-$PWD/build/cria}
stories=${STORIES:-../shared/data/stories260K}
[ -e "$stories/stories260K.bin" ] || { echo "no stories260K in $stories"; exit 1; }
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
export OMP_WAIT_POLICY=passive

# 150 beginnings of stories: names in sentences.
awk 'BEGIN {
    n = split("Tim Lily Ben Mia Sam Tom Anna Max Lucy Jack Sue Bob Amy Jim Sara Leo Jane Mark Kim Dan Joe Emma Nick Ella Billy Molly Fred Rose Pete Daisy", name, " ")
    for (i = 1; i <= n; i++) {
        other = name[(i + 6) % n + 1]; child = i % 2 ? "boy" : "girl"
        print "Once upon a time, there was a " child " named " name[i] "."
        print "One day, " name[i] " went to"
        print name[i] " was a " child " who liked to play"
        print name[i] " and " other " were"
        print "Once there was a " child " called " name[i] ". " name[i]
    }
}' >"$out/prompts.txt"
cat >"$out/ppo.yaml" <<END
precision: fp32
model: {base: $stories/stories260K.bin}
tokenizer: {path: $stories/tok512.bin}
data: {train: [{path: $out/prompts.txt}], validation: 0.33}
ppo: {reward: contains, word: cat, prompts: 32, samples: 8}
optim: {schedule: constant, warmup: 0, weight_decay: 0}
generate: {max_new_tokens: 48}
train: {context: 128, tokens_per_microbatch: 1024, steps: 40, validate_every: 5}
END

declare -A recipe=([rloo]="optim.lr=3e-4 ppo.beta=0.05" [grpo]="optim.lr=3e-4 ppo.beta=0.12"
    [ppo]="optim.lr=3e-4 ppo.beta=0.05 ppo.value_lr=1e-3 ppo.epochs=2 train.steps=60 train.validate_every=10")
status=0
for algorithm in rloo grpo ppo; do
    rm -rf "${out:?}/$algorithm"
    # shellcheck disable=SC2086
    "$cria" ppo "$out/ppo.yaml" output="$out/$algorithm" ppo.algorithm=$algorithm ${recipe[$algorithm]} ${MORE:-} 2>"$out/$algorithm.log" ||
        { tail -n 5 "$out/$algorithm.log"; exit 1; }
    sed -n "s/^{\"step\": \([0-9]*\), .*\"eval_reward\": \([0-9.e-]*\), .*\"eval_objective\/kl\": \([0-9.e-]*\),.*/$algorithm \1 \2 \3/p" \
        "$out/$algorithm/metrics.jsonl" >"$out/$algorithm.points"
    echo "$algorithm: the base meets the preference in $(sed -n 's/^{"step": 1, .*"reward": \([0-9.e-]*\),.*/\1/p' "$out/$algorithm/metrics.jsonl" | awk '{ printf "%.1f %%", 100 * $1 }') of its samples"
    awk '{ printf "  step %3d: held-out reward %5.1f %%, KL %5.2f nats\n", $2, 100 * $3, $4 }' "$out/$algorithm.points"
    awk '$3 >= 0.9 && $4 <= 10 { good = 1 } END { exit !good }' "$out/$algorithm.points" || { echo "  the optimum was not reached"; status=1; }
done
cat "$out"/*.points | awk '
    { x = int($4 * 4 + 0.5); y = int($3 * 20 + 0.5); if (x > 60) x = 60
      mark = substr($1, 1, 1); cell[y, x] = cell[y, x] == "" || cell[y, x] == mark ? mark : "*" }
    END { print "reward of held-out prompts against KL (nats; r: RLOO, g: GRPO, p: PPO, *: several)"
          for (y = 20; y >= 0; y--) { line = ""; for (x = 0; x <= 60; x++) line = line (cell[y, x] == "" ? " " : cell[y, x])
              printf "%4d %% |%s\n", 5 * y, line }
          print "       +-------------------------------------------------------------\n        0         2.5       5         7.5       10        12.5      15" }'
exit $status
