#!/usr/bin/env bash
# A vocabulary trained beside an adapter (lora.vocabulary=train): a template's new tokens, what a checkpoint holds, that
# it serves, merges, goes to PEFT and back, and resumes to the same bits.
. tests/e2e.bash
. tests/e2e_adapter.bash

make_folder vocabulary
root=$PWD
cd "$scratch/vocabulary" || exit 1
make_bases
say_records
cat >lora.yaml <<'END'
output: tuned
precision: fp32
model: {base: untied}
template: {name: chatml}
lora: {rank: 8, alpha: 16, vocabulary: train}
data: {train: [{path: records.jsonl}], validation: 0.1}
sft: {sample_prompts: ["say b"]}
optim: {lr: 5.0e-3, schedule: constant, warmup: 0}
train: {steps: 100, tokens_per_batch: 512, tokens_per_microbatch: 256, context: 64, validate_every: 50, sample_every: 100, checkpoint_every: 20, checkpoint_minutes: 0}
generate: {max_new_tokens: 20, temperature: 0}
END

run 2 sft lora.yaml output=no lora.vocabulary=frozen && one_error && says 'lora.vocabulary' && says 'needs 2 tokens that untied lacks'
tell "new tokens are refused where the vocabulary is frozen, with the way out" $?

for base in untied tied; do
    run 0 sft lora.yaml output="$base-tuned" model.base=$base && says 'the model is frozen but for embedding and head' && says 'vocabulary 260' && says '->  *bb$'
    tell "$base: an adapter learns ChatML's new tokens, to answer and to stop" $?
    run 0 inspect "$base-tuned" --json && has base_model.model.model.embed_tokens.weight && has m.base_model.model.model.embed_tokens.weight && ! grep -q '"name": "model\.[el]' "$scratch/out" &&
        { [ $base = tied ] || has base_model.model.lm_head.weight; } && { [ $base = untied ] || ! has base_model.model.lm_head.weight; }
    tell "$base: its checkpoint has the vocabulary, as one matrix where it is one" $?
    answers "$base-tuned" && run 0 merge "$base-tuned" "$base-merged" --json && near "$(json_number loss "$scratch/out")" "$(json_number merged_loss "$scratch/out")" && answers "$base-merged"
    tell "$base: it serves, and merged it is what it was" $?
    answers "$base-tuned" --weights int8 && answers "$base-tuned" --weights 16bit
    tell "$base: so it does from weights in fewer bits" $?
    own=$(loss "$base-tuned") && near "$(loss "$base-merged")" "$own" && run 0 export "$base-tuned" "$base.gguf" --format gguf && near "$(loss "$base.gguf")" "$own"
    tell "$base: merged, as GGUF and as it is it has one loss" $?
    run 0 export "$base-tuned" "$base-peft" --format peft && near "$(loss "$base-peft")" "$own" &&
        run 0 import "$base-peft" "$base-imported" && run 0 export "$base-imported" "$base-again" --format peft && cmp "$base-peft/adapter_model.safetensors" "$base-again/adapter_model.safetensors"
    tell "$base: PEFT's folder and back are the same bits" $?
    grep -q '"embed_tokens"' "$base-peft/adapter_config.json" && { [ $base = untied ] || grep -q '"ensure_weight_tying": true' "$base-peft/adapter_config.json"; }
    tell "$base: PEFT is told what is saved" $?
    for kind in precision=fp32 precision=bf16 lora.base=nf4; do
        run 0 sft lora.yaml output="$base-whole" model.base=$base $kind train.steps=12 train.checkpoint_every=5 &&
            run 0 sft lora.yaml output="$base-parts" model.base=$base $kind train.steps=7 train.checkpoint_every=5 train.keep_last=9 && rm -r "$base-parts/checkpoints/step-7" &&
            run 0 sft lora.yaml output="$base-parts" model.base=$base $kind train.steps=12 train.checkpoint_every=5 && says 'resuming at step 5' &&
            run 0 export "$base-whole" a --format peft && run 0 export "$base-parts" b --format peft && cmp a/adapter_model.safetensors b/adapter_model.safetensors &&
            cmp <(grep optimizer.h5 "$base-whole/checkpoints/step-12/manifest.json") <(grep optimizer.h5 "$base-parts/checkpoints/step-12/manifest.json")
        tell "$base: resumed with $kind, the same bits" $?
        rm -rf a b "$base-whole" "$base-parts"
    done
done
find untied tied -type f -exec md5sum {} + | sort | cmp -s - base.sums && [ -s base.sums ]
tell "the bases' files are as they were" $?

# ---- beginning from one, and averaging ----
run 0 sft lora.yaml output=on lora.init=tied-tuned model.base=tied train.steps=1 && losses on | awk '{ exit !($2 < 0.1) }'
tell "another run begins from it" $?
run 2 sft lora.yaml output=no lora.init=tied-tuned model.base=tied lora.vocabulary=frozen template.name=plain && one_error && says 'its vocabulary was trained beside it'
tell "but not where the vocabulary is frozen" $?
run 0 sft lora.yaml output=tied-second seed=5 model.base=tied train.steps=40
for weights in 1,0 0,1; do
    kept=tied-tuned && [ $weights = 1,0 ] || kept=tied-second
    run 0 merge tied-tuned tied-second averaged --weights $weights && near "$(loss averaged)" "$(loss $kept)"
    tell "of two vocabularies weighed $weights $kept's stays" $?
    rm -rf averaged
done
run 0 merge tied-tuned tied-second averaged --weights average && [ "$(loss averaged)" != "$(loss tied-tuned)" ] && [ "$(loss averaged)" != "$(loss tied-second)" ] && run 0 generate averaged -p x -n 2
tell "two vocabularies are averaged" $?
run 0 merge untied-tuned untied-tuned twice --weights average && near "$(loss twice)" "$(loss untied-tuned)"
tell "embedding and head each, where they are two" $?
run 2 merge tied-tuned tied-second added && one_error && says 'they sum to 2'
tell "but not added to each other" $?
run 0 sft lora.yaml output=frozen model.base=tied template.name=plain lora.vocabulary=frozen train.steps=1
run 3 merge tied-tuned frozen mixed --weights average && one_error && says 'another vocabulary trained beside it'
tell "nor is one averaged with none" $?
sed 's/tokens_per_batch: 512, //' lora.yaml >ppo.yaml && run 2 ppo ppo.yaml output=no model.base=tied && one_error && says 'lora.vocabulary'
tell "a policy's reference is the model without its adapter: its vocabulary stays" $?

# ---- a roll-back, ranks ----
# The step after each roll-back is applied, since the vocabulary is the base's again.
run 1 sft lora.yaml output=bad model.base=tied optim.lr=1e30 optim.weight_decay=0 train.steps=1000 train.checkpoint_every=0 train.validate_every=0 && one_error &&
    [ "$(sed -nE 's/^warning: step ([0-9]+): .* was not applied/\1/p; s/.*back to the checkpoint of step 0; steps to ([0-9]+) are.*/to \1/p' "$scratch/err" | tr '\n' ' ')" = "2 3 4 to 4 6 7 8 to 8 10 11 12 to 12 14 15 16 " ]
tell "without a checkpoint a roll-back begins with the base's vocabulary" $?
if command -v mpirun >/dev/null; then
    run 0 sft lora.yaml output=one model.base=tied train.steps=8 train.tokens_per_microbatch=128 train.checkpoint_every=0 &&
        mpi 2 "$cria" sft lora.yaml output=two model.base=tied train.steps=8 train.tokens_per_microbatch=128 train.checkpoint_every=0 2>"$scratch/err" &&
        paste <(losses one | grep -v eval) <(losses two | grep -v eval) | awk '{ d = $2 - $4; if (d < 0) d = -d; if (d > 1e-4 * $2) bad = 1 } END { exit bad || NR != 8 }'
    tell "two ranks learn what one learns" $?
fi
finish
