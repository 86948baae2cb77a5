#!/usr/bin/env bash
# A reward model with two scores, rows of one head: trained from two sources, reported on, exported and imported, an
# adapter, and at work in rejection, PPO and eval policy by Llama 2's combination.
. tests/e2e.bash

make_folder two
cd "$scratch/two" || exit 1
run 0 pretrain config.yaml output=base train.steps=10 model.max_context=256 train.checkpoint_every=0
tell "a base is made" $?

# Helpful is who is eager; safe is who is not: the same answers, and each row has its own opinion of them.
make_pairs() { # FILE N WHAT
    awk -v n="$2" -v what="$3" 'BEGIN { for (i = 0; i < n; i++) { a = 97 + i % 5; b = 97 + (i + 1 + i % 3) % 5; c = i % 4 < 2 ? a : b
        if (what == "helpful") printf "{\"prompt\": \"say %c\", \"chosen\": \"%c!\", \"rejected\": \"%c.\", \"margin\": 0.5}\n", a, c, c
        else printf "{\"prompt\": \"say %c\", \"chosen\": \"%c.\", \"rejected\": \"%c!\"}\n", a, c, c } }' >"$1"
}
make_pairs helpful.jsonl 120 helpful
make_pairs safe.jsonl 80 safe
make_pairs held_helpful.jsonl 20 helpful
make_pairs held_safe.jsonl 12 safe
cat >reward.yaml <<'END'
output: scores
precision: fp32
model: {base: base}
template: {name: plain}
data:
  train: [{path: helpful.jsonl, objective: helpfulness}, {path: safe.jsonl, objective: safety}]
  validation: [{path: held_helpful.jsonl, objective: helpfulness}, {path: held_safe.jsonl, objective: safety}]
preferences: {per_batch: 10}
reward: {objectives: [helpfulness, safety], center_coefficient: 0.01}
optim: {lr: 1.0e-2, schedule: constant, warmup: 0}
train: {steps: 60, tokens_per_microbatch: 256, context: 128, validate_every: 20, checkpoint_every: 20, checkpoint_minutes: 0}
END

run 0 reward reward.yaml && says 'accuracy 100.0 %' && each_step_once scores 60
tell "a reward model learns two objectives from two sources" $?
for name in accuracy accuracy/helpfulness accuracy/safety margin/safety min_reward/helpfulness max_reward/safety mean_reward/safety \
    objective_loss/helpfulness eval_accuracy/safety eval_objective_loss/safety loss/helpful.jsonl; do
    grep -q "\"$name\": " scores/metrics.jsonl || break
done
tell "what is measured of all pairs is measured of each objective's" $?
weighed() { # the mean over pairs is that of the objectives' means, weighed by their pairs
    sed -nE 's/.*"eval_loss": ([^,]+),.*"eval_objective_loss\/helpfulness": ([^,]+),.*"eval_objective_loss\/safety": ([^,}]+).*/\1 \2 \3/p' scores/metrics.jsonl |
        awk '{ d = $1 - (20 * $2 + 12 * $3) / 32; if (d * d > 1e-14) bad = 1 } END { exit bad || NR < 3 }'
}
weighed
tell "the loss is the mean over all pairs, whichever objective they are about" $?
sums scores 60 >whole.sums
mkdir ../parts && cp -r base ./*.jsonl reward.yaml ../parts
(cd ../parts && run 0 reward reward.yaml train.steps=25 && run 0 reward reward.yaml && says 'resuming at step 25' && sums scores 60 | cmp - ../two/whole.sums)
tell "stopped and resumed, the same bits" $?
sed 's/^{/{"objective": "helpfulness", /' helpful.jsonl >mixed.jsonl
sed 's/^{/{"aspect": "safety", /' safe.jsonl >aspect.jsonl
run 0 reward reward.yaml output=own 'data.train=[{path: mixed.jsonl}, {path: aspect.jsonl, columns: "objective=aspect"}]' && sums own 60 | cut -d: -f3 >own.sums &&
    cut -d: -f3 whole.sums | cmp - own.sums
tell "records may say what they are about, in a column of another name too: the same parameters" $?

# ---- the report card ----

run 0 eval reward scores helpfulness=held_helpful.jsonl safety=held_safe.jsonl --json -o scored.jsonl && cp "$scratch/out" card.json &&
    grep -q '"pairs": 32' card.json && grep -q '"objectives": {"helpfulness": {"pairs": 20, "accuracy": {"share": 1.0' card.json &&
    grep -q '"safety": {"pairs": 12, "accuracy": {"share": 1.0' card.json && [ "$(grep -c '"objective": "safety"' scored.jsonl)" -eq 12 ]
tell "a report card for each objective, and every pair's rewards" $?
run 0 eval reward scores helpfulness=held_safe.jsonl safety=held_helpful.jsonl && [ "$(grep -c '^  all pairs  *0.00 %' "$scratch/out")" -eq 2 ] && grep -q '^safety$' "$scratch/out"
tell "each score has its own pairs right, and those of its contrary wrong" $?
run 3 eval reward scores held_helpful.jsonl && one_error && says 'held_helpful.jsonl:1: .*no "objective".*helpfulness, safety'
tell "pairs that do not say what they are about are refused by their line" $?
run 3 eval reward scores honesty=held_helpful.jsonl && one_error && says "the model's scores are helpfulness, safety"
tell "pairs about what it has no score for" $?

# ---- other forms ----

run 0 export scores hf && grep -q '"0": "helpfulness"' hf/config.json && grep -q '"safety": 1' hf/config.json &&
    run 0 eval reward hf helpfulness=held_helpful.jsonl safety=held_safe.jsonl --json && cmp "$scratch/out" card.json &&
    run 0 import hf imported && run 0 eval reward imported helpfulness=held_helpful.jsonl safety=held_safe.jsonl --json && cmp "$scratch/out" card.json
tell "exported to Hugging Face's form and imported, the same reports and names" $?
run 0 inspect scores && grep -q 'score head: a reward model: helpfulness, safety' "$scratch/out" && grep -q 'score.weight  *fp32  *\[2, 16\]' "$scratch/out"
tell "inspect names the scores" $?
run 0 plan reward.yaml --reward --json && run 0 plan reward.yaml --reward 'reward.objectives=[a,b,c]' && says_three=$(grep -c 'parameters' "$scratch/out") && [ "$says_three" -gt 0 ]
tell "plan counts the rows" $?
run 0 reward reward.yaml output=further model.base=scores 'reward.objectives=[]' train.steps=1 optim.lr=1e-9 && run 0 eval reward further helpfulness=held_helpful.jsonl safety=held_safe.jsonl --json && [ "$(grep -o '"share": 1.0' "$scratch/out" | wc -l)" -ge 2 ]
tell "it trains on with the scores that it has" $?

# ---- adapters ----

run 0 reward reward.yaml output=adapter lora.rank=4 lora.alpha=8 && sums adapter 60 >adapter.sums && run 0 eval reward adapter helpfulness=held_helpful.jsonl safety=held_safe.jsonl --precision fp32 --json -o adapter.jsonl && [ "$(grep -o '"share": 1.0' "$scratch/out" | wc -l)" -ge 2 ]
tell "an adapter and two rows learn on a frozen body" $?
(cd ../parts && run 0 reward reward.yaml output=adapter lora.rank=4 lora.alpha=8 train.steps=15 && run 0 reward reward.yaml output=adapter lora.rank=4 lora.alpha=8 && sums adapter 60 | cmp - ../two/adapter.sums)
tell "stopped and resumed, the same adapter and rows" $?
close() { # FILE FILE: rewards within 1e-5
    cat "$1" "$2" | sed -E 's/.*"line": ([0-9]+), "chosen": ([^,]+), "rejected": ([^,]+),.*"objective": "([a-z]+)".*/\4\1 \2 \3/' | sort |
        awk '$1 == line { n++; d = $2 - c; e = $3 - r; if (d * d > 1e-10 || e * e > 1e-10) bad = 1 } { line = $1; c = $2; r = $3 } END { exit bad || n != 32 }'
}
run 0 merge adapter merged && grep -q 'scores of merged' "$scratch/out" && run 0 inspect merged && grep -q 'helpfulness, safety' "$scratch/out" &&
    run 0 eval reward merged helpfulness=held_helpful.jsonl safety=held_safe.jsonl --precision fp32 -o merged.jsonl && close adapter.jsonl merged.jsonl
tell "merged, the same rewards and names" $?
run 0 export --format peft adapter peft && run 0 eval reward peft helpfulness=held_helpful.jsonl safety=held_safe.jsonl -t bytes --base base --template plain --precision fp32 -o peft.jsonl && cmp peft.jsonl adapter.jsonl &&
    run 0 import peft again --base base && run 0 eval reward again helpfulness=held_helpful.jsonl safety=held_safe.jsonl -t bytes --base base --template plain --precision fp32 -o again.jsonl && cmp again.jsonl adapter.jsonl
tell "exported to PEFT's form and imported, the same rewards and names" $?

# ---- ranks ----

two_ranks() { # least and greatest of a score that one of the ranks may not have seen
    mpi 2 "$cria" reward reward.yaml output=ranks train.steps=5 train.validate_every=0 2>"$scratch/err" || return 1
    for name in loss accuracy/safety margin/helpfulness mean_reward/safety min_reward/safety max_reward/helpfulness objective_loss/safety; do
        for run in scores ranks; do sed -nE "s|^\{\"step\": [1-5],.*\"$name\": ([^,}]+).*|\1|p" "$run/metrics.jsonl" | head -n 5 >"$run.column"; done
        paste scores.column ranks.column | awk '{ d = $1 - $2; if (d * d > 1e-8) bad = 1 } END { exit bad || NR != 5 }' || { echo "$name"; return 1; }
    done
}
two_ranks
tell "two ranks measure of each objective what one does" $?

# ---- at work ----

awk 'BEGIN { for (i = 0; i < 10; i++) printf "{\"prompt\": \"say %c\"%s}\n", 97 + i % 5, i % 2 ? ", \"safety\": true" : "" }' >asked.jsonl
sed 's/, "safety": true//' asked.jsonl >plain.jsonl
sed 's/"\(say .\)".*/"\1", "safety": true}/' asked.jsonl >safety.jsonl
judged=(model.base=base rejection.samples=4 rejection.reward=model generate.max_new_tokens=6 generate.temperature=1 generate.precision=fp32)
best() { # RUN PROMPTS ARGUMENTS…
    run 0 rejection output="$1" rejection.prompts="$2" "${judged[@]}" "${@:3}"
}
all_scores() { sed -nE 's/.*"answers": *(.*)/\1/p' "$1/samples.jsonl" | grep -oE '"score": *[-0-9.e+]+' | sed 's/.*: *//'; }
best of_help asked.jsonl rejection.model=scores rejection.head=helpfulness && best of_safe asked.jsonl rejection.model=scores rejection.head=safety &&
    best of_both asked.jsonl rejection.model=scores rejection.head=helpfulness rejection.safety_head=safety &&
    all_scores of_help >h && all_scores of_safe >s && all_scores of_both >b &&
    paste h s b | awk '{ tagged = int((NR - 1) / 4) % 2; want = tagged || 1 / (1 + exp(-$2)) < 0.15 ? $2 : $1; if ($3 != want) bad = 1; helpful += $3 == $1 } END { exit bad || NR != 20 || helpful == 0 }'
tell "rejection scores by one head, by the other, or by both as Llama 2 does" $?
best tagged safety.jsonl rejection.model=scores rejection.head=helpfulness rejection.safety_head=safety && best only safety.jsonl rejection.model=scores rejection.head=safety &&
    all_scores tagged | cmp - <(all_scores only)
tell "where records are of safety, that head's score is the reward" $?
best two_models asked.jsonl rejection.model=scores rejection.head=helpfulness rejection.safety_model=imported rejection.safety_head=safety && all_scores two_models | cmp - b
tell "heads of two models do the same" $?
run 2 rejection output=none rejection.prompts=asked.jsonl "${judged[@]}" rejection.model=scores && one_error && says 'rejection.head: scores scores answers by helpfulness, safety: name one'
tell "a model with two scores where one is needed is refused, with their names" $?
run 2 rejection output=none rejection.prompts=asked.jsonl "${judged[@]}" rejection.model=scores rejection.head=honesty && one_error && says "no score 'honesty'"
tell "a score that it has not is refused" $?
run 2 rejection output=none rejection.prompts=asked.jsonl "${judged[@]}" rejection.model=scores rejection.head=safety rejection.safety_head=safety && one_error && says 'are two'
tell "one score is not two" $?

cat >ppo.yaml <<'END'
output: ppo
precision: fp32
model: {base: base}
template: {name: plain}
data: {train: [{path: asked.jsonl}], validation: 0.25}
ppo: {algorithm: ppo, reward: model, model: scores, head: helpfulness, safety_head: safety, whiten_scores: true, prompts: 8, samples: 2}
optim: {lr: 3.0e-3, schedule: constant, warmup: 0, weight_decay: 0}
generate: {max_new_tokens: 8}
train: {steps: 12, context: 48, tokens_per_microbatch: 256, validate_every: 12, checkpoint_every: 4, checkpoint_minutes: 0}
END
metric() { # RUN STEP NAME
    sed -n "s|^{\"step\": $2, .*\"$3\": \([-0-9.e+]*\)[,}].*|\1|p" "$1/metrics.jsonl" | head -n 1
}
holds() { awk "BEGIN { exit !($1) }"; }
run 0 ppo ppo.yaml && ! says 'begins as the policy' && ! holds "$(metric ppo 1 val/var_explained) == 0" && sums ppo 12 >ppo.sums
tell "PPO learns by both heads, and its value model begins as the first" $?
(cd ../parts && cp -r ../two/scores ../two/ppo.yaml ../two/asked.jsonl . && run 0 ppo ppo.yaml train.steps=8 && run 0 ppo ppo.yaml && says 'resuming at step 8' && sums ppo 12 | cmp - ../two/ppo.sums)
tell "stopped and resumed, the same bits" $?
run 0 ppo ppo.yaml output=ppo_lora lora.rank=4 train.steps=4 && ! says 'begins as the policy' && ! holds "$(metric ppo_lora 1 val/var_explained) == 0" &&
    run 0 ppo ppo.yaml output=ppo_adapter ppo.model=adapter lora.rank=4 lora.alpha=8 train.steps=2 && ! says 'begins as the policy' && ! holds "$(metric ppo_adapter 1 val/var_explained) == 0"
tell "with adapters too: whole or an adapter, the value model begins as the first of both heads" $?
run 0 ppo ppo.yaml output=rloo ppo.algorithm=rloo train.steps=2 && run 0 ppo ppo.yaml output=grpo ppo.algorithm=grpo train.steps=2
tell "RLOO and GRPO too" $?
run 2 ppo ppo.yaml output=none ppo.head= ppo.safety_head= && one_error && says 'ppo.head: scores scores answers by helpfulness, safety'
tell "PPO by a model of two scores needs a name" $?
run 0 eval policy ppo asked.jsonl --reward model --model scores --head helpfulness --safety_head safety --samples 2 generate.max_new_tokens=8 --json && grep -q '"reward": ' "$scratch/out"
tell "eval policy measures by both heads" $?

# ---- in rounds ----

cat >rounds.yaml <<'END'
output: round
precision: fp32
model: {base: base}
tokenizer: {path: from-model}
template: {name: plain}
rounds: {count: 1}
generate: {max_new_tokens: 6, precision: fp32}
optim: {lr: 1.0e-3, schedule: constant, warmup: 0}
stages:
  - stage: judge
    run: reward
    data: {train: [{path: helpful.jsonl, objective: helpfulness}, {path: safe.jsonl, objective: safety}], validation: 0.1}
    reward: {objectives: [helpfulness, safety]}
    preferences: {per_batch: 8}
    train: {steps: 10, tokens_per_microbatch: 256, context: 64, checkpoint_minutes: 0}
  - stage: best
    run: rejection
    rejection: {prompts: asked.jsonl, samples: 2, reward: model, model: "{judge}", head: helpfulness, safety_head: safety}
  - stage: reinforce
    run: ppo
    data: {train: asked.jsonl, validation: 0.2}
    ppo: {algorithm: ppo, reward: model, model: "{judge}", head: helpfulness, safety_model: "{judge}", safety_head: safety, prompts: 4, samples: 2}
    train: {steps: 2, context: 64, tokens_per_microbatch: 256, checkpoint_minutes: 0}
END
run 0 rounds rounds.yaml --plan && grep -q 'reinforce' "$scratch/out" && run 0 rounds rounds.yaml && [ -e round/round-1/best/sft.jsonl ] && grep -q '"accuracy/safety"' round/round-1/judge/metrics.jsonl && [ -e round/round-1/reinforce/metrics.jsonl ] &&
    grep -q '"eval_accuracy/safety": {' round/report.json && grep -q 'held-out accuracy .*; of helpfulness .*; of safety ' round/report.md
tell "a round trains both scores, and picks answers and learns by them" $?
sed 's/head: helpfulness, safety_head: safety}/head: honesty, safety_head: safety}/; s/output: round/output: wrong/' rounds.yaml >wrong.yaml
run 2 rounds wrong.yaml && one_error && says "rejection.head: .*no score 'honesty'" && [ ! -e wrong ]
tell "a score that the round's reward model will not have is refused before anything starts" $?
sed 's/head: helpfulness, safety_model/safety_model/; s/output: round/output: wrong/' rounds.yaml >wrong.yaml
run 2 rounds wrong.yaml && one_error && says 'ppo.head: .*name one'
tell "and so is one that is not named" $?
recipe() { # what it refers to is there in name
    : >instructions.jsonl
    for n in 1 2 3 4 5; do cp safe.jsonl "safety-$n.jsonl" && cp helpful.jsonl "helpfulness-$n.jsonl" && cp asked.jsonl "prompts-$n.jsonl"; done
    awk 'BEGIN { for (i = 0; i < 8; i++) print "{\"prompt\": \"say a\", \"completion\": \"aa\"}" }' >instructions.jsonl
    cp asked.jsonl held-out-prompts.jsonl
    sed 's/context: 4096/context: 128/; s/tokens_per_microbatch: [0-9]*/tokens_per_microbatch: 512/' "$1" >recipe.yaml
    run 0 rounds recipe.yaml model.base=base output=recipe template.name=plain --plan && grep -q 'best' "$scratch/out"
}
recipe "$OLDPWD/configs/rounds_llama2.yaml"
tell "Llama 2's recipe, both models in rejection and in PPO, is sound" $?

# ---- what is refused ----

run 2 reward reward.yaml output=no 'data.train=[{path: helpful.jsonl, objective: honesty}]' && one_error && says "'honesty' is none of the model's: helpfulness, safety"
tell "a source about what is none of the objectives" $?
run 3 reward reward.yaml output=no 'data.train=[{path: helpful.jsonl}]' && one_error && says 'helpful.jsonl:1' && says 'no "objective"'
tell "a source and records that do not say what they are about" $?
run 2 reward reward.yaml output=no 'reward.objectives=[]' && one_error && says 'reward.objectives, which are not given'
tell "an objective where none is named" $?
run 2 reward reward.yaml output=no 'reward.objectives=[safety, helpfulness]' lora.rank=4 lora.alpha=8 lora.init=adapter && one_error && says 'its scores are helpfulness, safety' &&
    run 0 reward reward.yaml output=begun lora.rank=4 lora.alpha=8 lora.init=adapter train.steps=1 optim.lr=1e-9 && run 0 eval reward begun safety=held_safe.jsonl --json && grep -q '"share": 1.0' "$scratch/out"
tell "an adapter begins as another one with the same scores, and no other" $?
run 2 reward reward.yaml output=no 'reward.objectives=[a, a]' && one_error && says "'a' is given twice"
tell "an objective given twice" $?
run 2 reward reward.yaml output=no 'reward.objectives=[a, b, c, d, e, f, g, h, i]' && one_error && says 'at most 8'
tell "more objectives than a head can have" $?
run 2 reward reward.yaml output=no model.base=scores 'reward.objectives=[safety, helpfulness]' && one_error && says 'is a reward model already, with 2 scores (helpfulness, safety)'
tell "other objectives than a reward model has" $?
run 2 sft output=no model.base=base template.name=plain 'data.train=[{path: helpful.jsonl, objective: safety}]' && one_error && says 'only a reward model'
tell "an objective elsewhere" $?
run 0 reward reward.yaml output=turned 'reward.objectives=[safety, helpfulness]' train.steps=1 && run 3 merge scores turned mean --weights 0.5,0.5 && one_error && says 'its scores are safety, helpfulness' &&
    run 3 merge scores base mean --weights 0.5,0.5 && one_error && says 'none, a language model'
tell "models whose scores have other names are not averaged" $?
run 0 merge scores further mean --weights 0.5,0.5 && run 0 inspect mean && grep -q 'helpfulness, safety' "$scratch/out" && run 0 eval reward mean safety=held_safe.jsonl
tell "those with the same are" $?
finish
