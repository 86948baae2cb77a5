#!/usr/bin/env bash
# Preferences: cria dpo from a base, the files it leaves, and the known ways of going wrong.
. tests/e2e.bash

make_folder dpo
cd "$scratch/dpo" || exit 1
run 0 pretrain config.yaml output=base precision=fp32 train.steps=10 model.max_context=256 train.checkpoint_every=0
tell "a base is made" $?

# Twice the letter that was asked for is right, another letter is wrong.
make_pairs() { # FILE N
    awk -v n="$2" 'BEGIN { for (i = 0; i < n; i++) { c = 97 + i % 5; w = 97 + (i + 1 + i % 3) % 5
        printf "{\"prompt\": \"say %c\", \"chosen\": \"%c%c\", \"rejected\": \"%c%c%c\"}\n", c, c, c, w, w, c } }' >"$1"
}
make_pairs pairs.jsonl 120
cat >dpo.yaml <<'END'
output: tuned
precision: fp32
model: {base: base}
template: {name: chatml}
data: {train: [{path: pairs.jsonl}], validation: 0.2}
preferences: {per_batch: 16}
sft: {sample_prompts: ["say b"]}
optim: {lr: 1.0e-2, schedule: constant, warmup: 0}
train: {steps: 40, tokens_per_microbatch: 512, context: 128, validate_every: 20, checkpoint_every: 10, checkpoint_minutes: 0}
generate: {max_new_tokens: 8}
END
metric() { # RUN NAME STEP
    sed -nE "s|^\{\"step\": $3, .*\"$2\": ([^,}]+).*|\1|p" "$1/metrics.jsonl" | head -n 1
}
near() { awk -v a="$1" -v b="$2" -v e="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(d <= e) }'; }

run 0 dpo dpo.yaml && says 'reference' && says 'validation loss .* rewards/accuracies' && each_step_once tuned 40
tell "dpo trains" $?
near "$(metric tuned loss 1)" 0.6931471805599453 1e-9 && [ "$(metric tuned rewards/chosen 1)" = 0 ] && [ "$(metric tuned rewards/rejected 1)" = 0 ]
tell "it begins with the loss ln 2 and rewards 0" $?
near "$(metric tuned eval_rewards/accuracies 40)" 1 0 && awk -v l="$(metric tuned eval_loss 40)" 'BEGIN { exit !(l < 0.3) }'
tell "held-out pairs are told apart in the end" $?
missing=0
for name in rewards/margins logps/chosen logps/rejected logits/chosen logits/rejected nll_loss entropy mean_token_accuracy eval_rewards/margins eval_nll_loss; do
    [ -n "$(metric tuned $name 20)" ] || missing=1
done
tell "all metrics of TRL's are there, at validation too" $missing

losses tuned >whole
mkdir ../parts && cp -r base pairs.jsonl dpo.yaml ../parts
(cd ../parts && run 0 dpo dpo.yaml train.steps=15 && run 0 dpo dpo.yaml && says 'resuming at step 15' && ! says 'computing the reference' && sums tuned 40) >parts.sums
sums tuned 40 | cmp - parts.sums
tell "stopped and resumed, the same bits, and the reference is not computed again" $?
run 0 dpo dpo.yaml output=micro train.tokens_per_microbatch=256 train.steps=10 && losses micro | grep -v eval >first &&
    grep -v eval whole | head -n 10 | paste - first | awk '{ d = $2 - $4; if (d < 0) d = -d; if (d > 1e-6) bad = 1 } END { exit bad || NR != 10 }'
tell "losses do not depend on micro-batches" $?
if command -v mpirun >/dev/null; then
    mpi 2 "$cria" dpo dpo.yaml output=ranks train.steps=10 >"$scratch/out" 2>"$scratch/err" && losses ranks | grep -v eval >two &&
        paste first two | awk '{ d = $2 - $4; if (d < 0) d = -d; if (d > 1e-6) bad = 1 } END { exit bad || NR != 10 }'
    tell "nor on ranks" $?
else
    skip "mpirun is not here"
fi

# ---- the reference ----
cp -r tuned other && printf 'x' | dd of=other/reference.safetensors bs=1 seek=400 conv=notrunc 2>/dev/null
run 0 dpo dpo.yaml output=other train.steps=41 && says 'reference.safetensors is damaged' && says 'computing the reference'
tell "a damaged reference is made again" $?
rm -rf other && cp -r tuned other && rm other/reference.safetensors
run 0 dpo dpo.yaml output=other train.steps=41 && cmp tuned/reference.safetensors other/reference.safetensors
tell "so is a lost one, from the base, to the same bytes" $?
run 0 pretrain config.yaml output=base2 precision=fp32 train.steps=11 model.max_context=256 && mv base base1 && mv base2 base
run 3 dpo dpo.yaml train.steps=41 && one_error && says 'base has changed since this run began'
tell "a base that has changed under a run is refused" $?
rm -rf base && mv base1 base
run 0 dpo dpo.yaml output=second model.base=tuned dpo.reference=tuned template.name= train.steps=2 && [ "$(metric second rewards/chosen 1)" = 0 ] &&
    run 0 dpo dpo.yaml output=third model.base=tuned dpo.reference=second template.name= train.steps=1 && [ "$(metric third rewards/chosen 1)" != 0 ]
tell "another model may be the reference" $?
run 2 dpo dpo.yaml output=no dpo.reference=base && one_error && says 'dpo.reference' && says 'other tokens than the policy'
tell "but not one of other tokens" $?

# With a learning rate that changes nothing, every reward stays 0: of validation pairs split off, of those of files of
# their own, and of answers to other prompts.
still="optim.lr=1e-30 optim.weight_decay=0 train.steps=8"
make_pairs more.jsonl 37
# shellcheck disable=SC2086 # words
run 0 dpo dpo.yaml output=still1 $still && [ "$(metric still1 eval_rewards/chosen 8)" = 0 ] && [ "$(metric still1 rewards/rejected 8)" = 0 ] &&
    run 0 dpo dpo.yaml output=still2 $still 'data.train=[{path: pairs.jsonl}, {path: more.jsonl}]' 'data.validation=[{path: more.jsonl}, {path: pairs.jsonl}]' &&
    [ "$(metric still2 eval_rewards/chosen 8)" = 0 ] && [ "$(metric still2 rewards/rejected 8)" = 0 ] && [ -n "$(metric still2 eval_loss/more.jsonl 8)" ]
tell "every sample has its own reference, whichever source it is of" $?

# ---- adapters ----
run 0 dpo dpo.yaml output=lora model.base=tuned template.name= data.train=pairs.jsonl lora.rank=4 train.steps=10 optim.lr=1e-3 && [ "$(metric lora rewards/chosen 1)" = 0 ] && near "$(metric lora loss 1)" 0.6931471805599453 1e-9
tell "an adapter's reference is the model under it" $?
for base in 16bit int8 nf4; do
    run 0 dpo dpo.yaml output=lora_$base model.base=tuned template.name= data.train=pairs.jsonl lora.rank=4 lora.base=$base precision=bf16 train.steps=2 &&
        [ "$(metric lora_$base rewards/chosen 1)" = 0 ] && near "$(metric lora_$base loss 1)" 0.6931471805599453 1e-9
    tell "the same of a base in $base, in bf16" $?
done

# ---- judging pairs ----
run 0 eval pairs tuned pairs.jsonl --json && [ "$(json_number pairs "$scratch/out")" = 120 ] && near "$(json_number accuracy "$scratch/out")" 1 0.05
tell "a tuned model finds the better answers likelier" $?
run 0 eval pairs second pairs.jsonl --reference second --json && near "$(json_number margin "$scratch/out")" 0 1e-9 && [ "$(json_number accuracy "$scratch/out")" = 0.0 ]
tell "beside itself a model prefers nothing" $?
run 0 eval pairs tuned pairs.jsonl --reference second --json && first=$(json_number margin "$scratch/out") && head -n 60 pairs.jsonl >a.jsonl && tail -n 60 pairs.jsonl >b.jsonl &&
    run 0 eval pairs tuned a.jsonl b.jsonl --reference second --json && near "$(json_number margin "$scratch/out")" "$first" 1e-6
tell "files may be many" $?
run 3 eval pairs base pairs.jsonl --template chatml && one_error && says 'needs a vocabulary of 260'
tell "a model that was not trained on the template is refused" $?
echo '{"prompt": "a", "chosen": "b"}' >bad.jsonl
run 3 eval pairs tuned bad.jsonl && one_error && says 'bad.jsonl:1: no "rejected"'
tell "bad records are named" $?

# ---- other losses ----
for loss in ipo hinge robust simpo; do
    run 0 dpo dpo.yaml output=$loss dpo.loss=$loss train.steps=40 && near "$(metric $loss eval_rewards/accuracies 40)" 1 0.2
    tell "$loss learns too" $?
done
[ ! -e simpo/reference.safetensors ]
tell "simpo has no reference" $?
run 2 dpo dpo.yaml output=no dpo.loss=simpo dpo.reference=base && one_error && says 'dpo.reference: dpo.loss: simpo compares with no reference'
tell "and takes none" $?
for loss in ipo hinge kto; do
    run 2 dpo dpo.yaml output=no dpo.loss=$loss dpo.label_smoothing=0.1 && one_error && says 'dpo.label_smoothing: this dpo.loss has none'
    tell "label smoothing is refused by $loss, which has none" $?
done
awk 'BEGIN { for (i = 0; i < 120; i++) { c = 97 + i % 5; g = i % 2; printf "{\"prompt\": \"say %c\", \"completion\": \"%c%c\", \"label\": %s}\n", c, g ? c : 122, g ? c : 122, g ? "true" : "false" } }' >labelled.jsonl
run 0 dpo dpo.yaml output=kto dpo.loss=kto data.train=labelled.jsonl && [ "$(metric kto kl 1)" = 0 ] && [ "$(metric kto rewards/chosen 1)" = 0 ] && near "$(metric kto eval_rewards/accuracies 40)" 1 0.1
tell "kto learns from labelled answers" $?
# shellcheck disable=SC2086
run 0 dpo dpo.yaml output=still3 dpo.loss=kto $still data.train=labelled.jsonl 'data.validation=[{path: labelled.jsonl}]' &&
    [ "$(metric still3 eval_rewards/chosen 8)" = 0 ] && [ "$(metric still3 eval_kl 8)" = 0 ] && [ "$(metric still3 kl 8)" = 0 ]
tell "so has every answer to another prompt" $?
run 0 dpo dpo.yaml output=kto2 dpo.loss=kto data.train=labelled.jsonl train.tokens_per_microbatch=256 && losses kto >a && losses kto2 >b && paste a b | awk '{ d = $NF - $(NF / 2); if (d < 0) d = -d; if (d > 1e-6) bad = 1 } END { exit bad }'
tell "and its losses do not depend on micro-batches" $?

if command -v mpirun >/dev/null; then
    mpi 2 "$cria" dpo dpo.yaml output=kto3 dpo.loss=kto data.train=labelled.jsonl >"$scratch/out" 2>"$scratch/err" && losses kto3 >b &&
        paste a b | awk '{ d = $NF - $(NF / 2); if (d < 0) d = -d; if (d > 1e-6) bad = 1 } END { exit bad || NR != 42 }' &&
        near "$(metric kto kl 40)" "$(metric kto3 kl 40)" 1e-4
    tell "nor on ranks, whose answers are one estimate" $?
else
    skip "mpirun is not here"
fi

# ---- what the figures mean, in words ----
awk 'BEGIN { for (i = 0; i < 120; i++) { c = 97 + i % 5; a = ""; for (k = i % 7; k >= 0; k--) a = a " ab"; printf "{\"prompt\": \"say %c\", \"chosen\": \"ab%s\", \"rejected\": \"ab\"}\n", c, a } }' >lengths.jsonl
run 0 dpo dpo.yaml output=lengths data.train=lengths.jsonl optim.lr=2e-3 && says "step [0-9]*: margins follow the answers' lengths: .* What is learned is to be long" && grep -q '"remark": "margins follow' lengths/metrics.jsonl
tell "margins from length alone are told" $?

# ---- the known ways of going wrong ----
run 2 dpo dpo.yaml output=no model.base= && one_error && says 'model.base'
tell "dpo asks for its base" $?
echo '{"prompt": "a", "chosen": "b"}' >bad.jsonl
run 3 dpo dpo.yaml output=no data.train=bad.jsonl && one_error && says 'bad.jsonl:1: no "rejected"'
tell "a record without its rejected answer is named" $?
echo '{"prompt": "a", "chosen": "b", "rejected": "b"}' >bad.jsonl
run 3 dpo dpo.yaml output=no data.train=bad.jsonl && one_error && says 'bad.jsonl:1: left out: the answers are equal' && says 'nothing to learn from'
tell "only equal answers are nothing to learn from" $?
cat bad.jsonl pairs.jsonl >mixed.jsonl
run 0 dpo dpo.yaml output=mixed data.train=mixed.jsonl train.steps=1 && says 'mixed.jsonl:1: left out: the answers are equal'
tell "among others they are left out, and told" $?
printf '{"prompt": "%0300d", "chosen": "b", "rejected": "c"}\n' 7 >long.jsonl
run 3 dpo dpo.yaml output=no data.train=long.jsonl && one_error && says 'long.jsonl:1: .* tokens, and the context is 128'
tell "pairs that are too long are refused" $?
run 3 dpo dpo.yaml output=no data.train=long.jsonl preferences.overlong=drop && one_error && says 'none is kept'
tell "all of them dropped is nothing to learn from" $?
run 3 dpo dpo.yaml output=no data.train=labelled.jsonl && one_error && says 'it is one answer with a label'
tell "labelled answers are not pairs" $?
run 3 dpo dpo.yaml output=no dpo.loss=kto && one_error && says 'it is a pair'
tell "nor pairs labelled answers" $?
run 2 dpo dpo.yaml output=no train.tokens_per_microbatch=128 && one_error && says 'both answers of a pair'
tell "a micro-batch must hold a pair" $?
run 2 dpo dpo.yaml output=no dpo.loss=kto dpo.nll=0.2 && one_error && says 'dpo.nll'
tell "kto has no chosen answer" $?
run 3 sft dpo.yaml output=no preferences.per_batch=0 && one_error && says "chosen and rejected, are for 'cria dpo'"
tell "sft says where pairs belong" $?
run 0 data lint base bad.jsonl --template chatml && grep -q 'equal answers: bad.jsonl:1' "$scratch/out"
tell "lint finds equal answers" $?

finish
