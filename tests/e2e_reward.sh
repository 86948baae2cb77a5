#!/usr/bin/env bash
# Preferences to a reward model: cria reward and cria eval reward, the files they leave, and the known ways of going wrong.
. tests/e2e.bash

make_folder reward
cd "$scratch/reward" || exit 1
run 0 pretrain config.yaml output=base train.steps=10 model.max_context=256 train.checkpoint_every=0
tell "a base is made" $?

# The answer that repeats the question's letter is preferred: strongly by half of the records.
make_pairs() { # FILE N
    awk -v n="$2" 'BEGIN { for (i = 0; i < n; i++) { a = 97 + i % 5; b = 97 + (i + 1 + i % 3) % 5
        printf "{\"prompt\": \"say %c\", \"chosen\": \"%c%c\", \"rejected\": \"%c%c!\", \"strength\": \"%s\"}\n", a, a, a, b, b, i % 2 ? "significantly" : "slightly" } }' >"$1"
}
make_pairs pairs.jsonl 120
make_pairs held_out.jsonl 20
cat >reward.yaml <<'END'
output: helpful
precision: fp32
model: {base: base}
template: {name: chatml}
data: {train: [{path: pairs.jsonl}], validation: [{path: held_out.jsonl}]}
preferences: {per_batch: 8}
reward: {margin: llama2-small, center_coefficient: 0.01}
optim: {lr: 1.0e-2, schedule: constant, warmup: 0}
train: {steps: 60, tokens_per_microbatch: 256, context: 128, validate_every: 20, checkpoint_every: 20, checkpoint_minutes: 0}
END

run 0 reward reward.yaml && says 'validation loss' && says 'accuracy 100.0 %' && each_step_once helpful 60
tell "a reward model learns which answer is preferred" $?
for name in accuracy margin min_reward mean_reward max_reward eval_accuracy eval_max_reward eval_samples; do
    grep -q "\"$name\": " helpful/metrics.jsonl || break
done && ! grep -q 'token_accuracy\|entropy' helpful/metrics.jsonl && says 'best validation loss' && ! says 'perplexity'
tell "what TRL logs is measured, and nothing of tokens" $?

sums helpful 60 >whole.sums
mkdir ../parts && cp -r base pairs.jsonl held_out.jsonl reward.yaml ../parts
(cd ../parts && run 0 reward reward.yaml train.steps=25 && run 0 reward reward.yaml && says 'resuming at step 25' && sums helpful 60 | cmp - ../reward/whole.sums)
tell "stopped and resumed, the same bits" $?

figures() { sed -nE 's/^\{"step": ([0-9]+), .*"loss": ([^,}]+).*"mean_reward": ([^,}]+), "min_reward": ([^,}]+), "max_reward": ([^,}]+).*/\2 \3 \4 \5/p' "$1/metrics.jsonl"; }
mpi 2 "$cria" reward reward.yaml output=ranks train.steps=5 train.validate_every=0 2>"$scratch/err" && figures ranks | head -n 5 >two &&
    figures helpful | head -n 5 | paste - two | awk '{ for (i = 1; i <= 4; i++) { d = $i - $(i + 4); if (d < 0) d = -d; if (d > 1e-4) bad = 1 } } END { exit bad || NR != 5 }'
tell "two ranks measure what one does, least and greatest rewards included" $?

# ---- the report card ----

run 0 eval reward helpful held_out.jsonl --json -o scores.jsonl && cp "$scratch/out" card.json &&
    grep -q '"accuracy": {"share": 1.0, "low": 0.8' card.json && grep -q '"significantly": {' card.json &&
    [ "$(wc -l <scores.jsonl)" -eq 20 ] && grep -q '"line": 20, "chosen": ' scores.jsonl
tell "a report card, and every pair's rewards" $?
[ "$(json_number accuracy helpful/metrics.jsonl)" != "" ] && tail -n 1 helpful/metrics.jsonl >last && [ "$(json_number eval_margin last | cut -c 1-6)" = "$(json_number margin card.json | cut -c 1-6)" ]
tell "it agrees with the last validation" $?
awk '{ sub(/"chosen"/, "\"other\""); sub(/"rejected"/, "\"chosen\""); sub(/"other"/, "\"rejected\""); print }' held_out.jsonl >swapped.jsonl
run 0 eval reward helpful swapped.jsonl -n 2 && grep -q '^  all pairs  *0.00 %' "$scratch/out" && grep -q 'significantly  *0.00 %' "$scratch/out" && [ "$(grep -c '    prompt ' "$scratch/out")" -eq 2 ]
tell "pairs the other way round are all wrong, and the worst are shown" $?
run 3 eval reward helpful held_out.jsonl -o scores.jsonl && one_error && says 'scores.jsonl'
tell "a file that is there is not overwritten" $?

# ---- other forms ----

run 0 export helpful hf && grep -q 'LlamaForSequenceClassification' hf/config.json && grep -q '"0": "LABEL_0"' hf/config.json && grep -q '"pad_token_id"' hf/config.json &&
    run 0 eval reward hf held_out.jsonl --json && cmp "$scratch/out" card.json && run 0 import hf imported && run 0 eval reward imported held_out.jsonl --json && cmp "$scratch/out" card.json
tell "exported to Hugging Face's form and imported, the same report" $?
run 0 inspect helpful && grep -q 'score head: a reward model' "$scratch/out" && grep -q 'score.weight  *fp32  *\[1, 16\]' "$scratch/out"
tell "inspect tells a reward model" $?
run 0 reward reward.yaml output=safe model.base=helpful data.train=swapped.jsonl train.steps=1 optim.lr=1e-9 train.validate_every=0 && run 0 eval reward safe held_out.jsonl --json && grep -q '"share": 1.0' "$scratch/out"
tell "a reward model trains on with the head it has" $?
run 0 reward reward.yaml output=narrow precision=bf16 train.steps=40 && run 0 eval reward narrow held_out.jsonl --json && grep -q '"share": 1.0' "$scratch/out" && run 0 eval reward narrow held_out.jsonl --precision fp32 --json && grep -q '"share": 1.0' "$scratch/out"
tell "in bf16 too" $?
run 0 plan reward.yaml --reward --json
tell "plan counts a score head" $?

# ---- adapters ----

cat >lora.yaml <<'END'
output: adapter
precision: fp32
model: {base: base}
template: {name: plain}
data: {train: [{path: pairs.jsonl}], validation: 0}
preferences: {per_batch: 8}
lora: {rank: 4, alpha: 8}
optim: {lr: 1.0e-2, schedule: constant, warmup: 0}
train: {steps: 60, tokens_per_microbatch: 256, context: 128, checkpoint_every: 20, checkpoint_minutes: 0}
END
run 0 reward lora.yaml && says 'adapter: LoRA of rank 4' && sums adapter 60 >adapter.sums && run 0 eval reward adapter held_out.jsonl --precision fp32 --json -o adapter.jsonl && grep -q '"share": 1.0' "$scratch/out"
tell "an adapter and a score head learn on a frozen body" $?
cp lora.yaml ../parts
(cd ../parts && run 0 reward lora.yaml train.steps=15 && run 0 reward lora.yaml && says 'resuming at step 15' && sums adapter 60 | cmp - ../reward/adapter.sums)
tell "stopped and resumed, the same adapter and head" $?
run 0 merge adapter merged && grep -q 'scores of merged' "$scratch/out" && run 0 eval reward merged held_out.jsonl --precision fp32 -o merged.jsonl &&
    cat adapter.jsonl merged.jsonl | sed -E 's/.*"line": ([0-9]+), "chosen": ([^,]+), "rejected": ([^,]+),.*/\1 \2 \3/' | sort -n | awk '$1 == line { n++; d = $2 - c; e = $3 - r; if (d * d > 1e-10 || e * e > 1e-10) bad = 1 } { line = $1; c = $2; r = $3 } END { exit bad || n != 20 }'
tell "merged, the same rewards" $?
run 0 export --format peft adapter peft && grep -q 'SEQ_CLS' peft/adapter_config.json && grep -q '"score"' peft/adapter_config.json &&
    run 0 eval reward peft held_out.jsonl -t bytes --base base --template plain --precision fp32 -o peft.jsonl && cmp peft.jsonl adapter.jsonl
tell "exported to PEFT's form, the same rewards" $?
run 3 generate adapter -p a && one_error && says 'gives scores, not texts' && run 3 merge base adapter adapter both && one_error && says 'merged alone'
tell "it writes nothing, and is not added to another" $?
awk 'BEGIN { for (i = 0; i < 40; i++) printf "{\"prompt\": \"say a\", \"completion\": \"aa\"}\n" }' >records.jsonl
run 0 sft output=tuned model.base=base template.name=plain data.train=records.jsonl data.validation=0 lora.rank=2 train.steps=3 train.tokens_per_batch=256 train.tokens_per_microbatch=256 train.context=128 &&
    run 0 reward lora.yaml output=on-adapter model.base=tuned lora.rank=0 train.steps=3 && run 0 eval reward on-adapter held_out.jsonl
tell "a fine-tuned adapter with its base is a base" $?
run 0 reward lora.yaml output=further lora.init=adapter train.steps=1 optim.lr=1e-9 && run 0 eval reward further held_out.jsonl --precision fp32 --json && grep -q '"share": 1.0' "$scratch/out"
tell "an adapter begins with another one's values, its head's too" $?
run 0 plan lora.yaml --reward --json && cp "$scratch/out" with && run 0 plan lora.yaml --reward lora.rank=0 --json && [ "$(json_number gradients with)" -lt "$(json_number gradients "$scratch/out")" ]
tell "plan knows that the body is frozen" $?

# ---- the best of several answers ----

printf 'say %s\n' a b c d >prompts.txt
run 0 rejection output=best model.base=base rejection.prompts=prompts.txt rejection.samples=6 rejection.reward=model rejection.model=helpful generate.max_new_tokens=8 generate.temperature=1 generate.precision=fp32 &&
    run 0 eval reward helpful best/pairs.jsonl -o best.jsonl &&
    sed -E 's/.*"score_chosen":([^,}]+).*"score_rejected":([^,}]+).*/\1 \2/' best/pairs.jsonl | paste -d' ' - <(sed -E 's/.*"chosen": ([^,]+), "rejected": ([^,]+),.*/\1 \2/' best.jsonl) |
    awk '{ d = $1 - $3; e = $2 - $4; if (d * d > 1e-10 || e * e > 1e-10 || $1 <= $2) bad = 1 } END { exit bad || NR == 0 }'
tell "answers are ranked by the reward model as its report has them" $?
run 2 rejection output=none model.base=base rejection.prompts=prompts.txt rejection.reward=model && one_error && says 'rejection.model' &&
    run 3 rejection output=none model.base=base rejection.prompts=prompts.txt rejection.reward=model rejection.model=base && one_error && says 'no score head'
tell "a reward model is needed for that" $?

# ---- what a reward model is not, and what it does not take ----

run 3 generate helpful -p a && one_error && says 'gives scores, not texts'
tell "it writes nothing" $?
run 3 eval loss helpful ../text.txt && one_error && says 'gives scores, not texts'
tell "it has no perplexity" $?
run 3 export --format gguf helpful model.gguf && one_error && says 'reward model' && [ ! -e model.gguf ]
tell "it is no GGUF file" $?
run 3 dpo reward.yaml output=no model.base=helpful && one_error && says 'gives scores, not texts'
tell "it is no policy" $?
run 3 eval reward base held_out.jsonl && one_error && says 'no score head'
tell "a language model has no report card" $?
run 2 reward reward.yaml output=no train.sample_every=5 && one_error && says 'train.sample_every'
tell "sample texts are refused" $?
run 2 reward reward.yaml output=no reward.margin=large && one_error && says 'llama2-large'
tell "an unknown table of margins is refused" $?
run 2 reward reward.yaml output=no reward.center_coefficient=-1 && one_error && says 'reward.center_coefficient'
tell "a negative coefficient is refused" $?
run 2 reward output=no data.train=pairs.jsonl && one_error && says 'model.base'
tell "a base is needed" $?
echo '{"prompt": "a", "chosen": "b"}' >half.jsonl
run 3 reward reward.yaml output=no data.train=half.jsonl && one_error && says 'half.jsonl:1' && run 3 eval reward helpful half.jsonl && one_error && says 'half.jsonl:1: '
tell "half a pair is refused by its line" $?
cat half.jsonl held_out.jsonl >mixed.jsonl
run 0 eval reward helpful mixed.jsonl --skip-errors --json && grep -q '"pairs": 20, "dropped": 0, "malformed": 1' "$scratch/out"
tell "malformed records are skipped where that is asked for" $?
run 3 eval reward helpful held_out.jsonl -c 8 && one_error && says 'held_out.jsonl:1: ' && run 3 eval reward helpful held_out.jsonl -c 8 --overlong drop && one_error && says 'too long'
tell "answers that do not fit are refused, or dropped" $?
: >none.jsonl
run 3 eval reward helpful none.jsonl && one_error && says 'no pair'
tell "nothing to score is an error" $?
sed 's/, "strength": "[a-z]*"//' pairs.jsonl >plain.jsonl
run 0 reward reward.yaml output=plain data.train=plain.jsonl train.steps=2 && [ "$(grep -c 'reward.margin is by strength' "$scratch/err")" -eq 1 ]
tell "a table of margins that no record uses is told, once" $?
finish
