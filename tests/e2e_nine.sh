#!/usr/bin/env bash
# Low-rank adapters on all nine of a model's matrices, head and embedding among them: what they learn on a base that is
# tied and on one that is not, that such an adapter serves, merges (untied), goes to GGUF and to PEFT and back, resumes
# to the same bits, and what the other trainers make of it.
. tests/e2e.bash
. tests/e2e_adapter.bash

make_folder nine
cd "$scratch/nine" || exit 1
make_bases
say_records
cat >common.yaml <<'END'
output: no
precision: fp32
model: {base: tied}
template: {name: mine, begin: "{bos}", user: {before: "Q: ", after: "\n"}, assistant: {before: "A: ", after: "{eos}", stop: "{eos}"}}
optim: {lr: 5.0e-3, schedule: constant, warmup: 0}
END
cat common.yaml - >lora.yaml <<'END'
lora: {rank: 8, alpha: 16, targets: "q,k,v,o,gate,up,down,head,embedding"}
data: {train: [{path: records.jsonl}], validation: 0.1}
sft: {sample_prompts: ["say b"]}
train: {steps: 120, tokens_per_batch: 512, tokens_per_microbatch: 256, context: 64, validate_every: 50, sample_every: 120, checkpoint_every: 20, checkpoint_minutes: 0}
generate: {max_new_tokens: 20, temperature: 0}
END
two_matrices() { grep -q '"tie_word_embeddings": *false' "$1/config.json"; }

for base in untied tied; do
    run 0 sft lora.yaml output="$base-tuned" model.base=$base && says 'adapter: LoRA of rank 8' && says '->  *bb$'
    tell "$base: an adapter of all nine learns to answer, and to stop" $?
    run 0 inspect "$base-tuned" --json && has base_model.model.model.embed_tokens.lora_embedding_A && has base_model.model.lm_head.lora_B.weight &&
        has v.base_model.model.model.embed_tokens.lora_embedding_B && ! grep -q '"name": "model\.[el]' "$scratch/out" && ! has base_model.model.model.embed_tokens.weight
    tell "$base: its checkpoint has the parts of embedding and head, and nothing of the base" $?
    answers "$base-tuned" && run 0 merge "$base-tuned" "$base-merged" --json && near "$(json_number loss "$scratch/out")" "$(json_number merged_loss "$scratch/out")" && answers "$base-merged" && two_matrices "$base-merged"
    tell "$base: it serves, and merged it is what it was, embedding and head apart" $?
    answers "$base-tuned" --weights int8 && answers "$base-tuned" --weights 16bit
    tell "$base: so it does from weights in fewer bits" $?
    own=$(loss "$base-tuned") && near "$(loss "$base-merged")" "$own" && run 0 export "$base-tuned" "$base.gguf" --format gguf && near "$(loss "$base.gguf")" "$own"
    tell "$base: merged, as GGUF and as it is it has one loss" $?
    run 0 export "$base-tuned" "$base-peft" --format peft && near "$(loss "$base-peft")" "$own" && grep -q '"lm_head"' "$base-peft/adapter_config.json" &&
        run 0 import "$base-peft" "$base-imported" && run 0 export "$base-imported" "$base-again" --format peft && cmp "$base-peft/adapter_model.safetensors" "$base-again/adapter_model.safetensors"
    tell "$base: PEFT's folder and back are the same bits" $?
    run 0 sft lora.yaml output="$base-on" lora.rank=0 model.base="$base-tuned" train.steps=1 optim.lr=1e-9 train.validate_every=0 && near "$(loss "$base-on")" "$own"
    tell "$base: a model trained on from it begins where it ended" $?
    run 0 sft lora.yaml output="$base-cut" model.base=$base train.steps=6 train.tokens_per_microbatch=128 && losses "$base-cut" | grep -v eval >cut &&
        losses "$base-tuned" | grep -v eval | head -6 | paste - cut | awk '{ d = $2 - $4; if (d < 0) d = -d; if (d > 1e-5 * $2) bad = 1 } END { exit bad || NR != 6 }'
    tell "$base: whatever the micro-batches" $?
done
for kind in lora.dora=true lora.rslora=true lora.plus_ratio=4 lora.dropout=0.1 lora.base=int8 lora.base=nf4 precision=bf16 "precision=bf16 lora.dora=true"; do
    run 0 sft lora.yaml output=whole $kind && says '->  *bb$' && answers whole
    tell "so it learns with $kind" $?
    case $kind in
    lora.base=* | precision=*) ;; # a base in fewer bits is another one
    *)
        own=$(loss whole) && run 0 merge whole merged && near "$(loss merged)" "$own"
        tell "merged it has its loss with $kind" $?
        ;;
    esac
    rm -rf whole merged
done
for base in untied tied; do
    for kind in lora.dropout=0.1 lora.dora=true lora.base=nf4 precision=bf16; do
        run 0 sft lora.yaml output=whole model.base=$base $kind train.steps=12 train.checkpoint_every=5 &&
            run 0 sft lora.yaml output=parts model.base=$base $kind train.steps=7 train.checkpoint_every=5 train.keep_last=9 && rm -r parts/checkpoints/step-7 &&
            run 0 sft lora.yaml output=parts model.base=$base $kind train.steps=12 train.checkpoint_every=5 && says 'resuming at step 5' &&
            run 0 export whole a --format peft && run 0 export parts b --format peft && cmp a/adapter_model.safetensors b/adapter_model.safetensors &&
            cmp <(grep optimizer.h5 whole/checkpoints/step-12/manifest.json) <(grep optimizer.h5 parts/checkpoints/step-12/manifest.json)
        tell "$base: resumed with $kind, the same bits" $?
        rm -rf a b whole parts
    done
done
find untied tied -type f -exec md5sum {} + | sort | cmp -s - base.sums && [ -s base.sums ]
tell "the bases' files are as they were" $?

# ---- beginning from one, adding several ----
run 0 sft lora.yaml output=on lora.init=tied-tuned train.steps=1 && losses on | awk 'NR == 1 { exit !($2 < 0.2) }'
tell "another run begins from it" $?
run 2 sft lora.yaml output=no lora.init=tied-tuned lora.targets=all-linear && one_error && says 'other matrices'
tell "but not one that adapts other matrices" $?
run 0 merge tied-tuned tied-tuned averaged --weights 0.5,0.5 && near "$(loss averaged)" "$(loss tied-tuned)" && two_matrices averaged
tell "two of them are averaged" $?
run 2 sft lora.yaml output=no lora.vocabulary=train && one_error && says 'lora.targets' && says 'trained whole'
tell "a vocabulary is not adapted and trained whole at once" $?
run 2 sft lora.yaml output=no lora.targets=head,tail && one_error && says "found 'head,tail'" && says 'head, embedding'
tell "another name is refused with those there are" $?
gradients() { run 0 plan lora.yaml "$@" --json && sed -n 's/^ *"gradients": \([0-9]*\),*$/\1/p' "$scratch/out"; }
more=$(($(gradients) - $(gradients lora.targets=all-linear) - 4 * 2 * 8 * (258 + 48)))
[ "$more" -ge 0 ] && [ "$more" -lt $((4 * 64)) ] # four arrays, each on whole cache lines
tell "the plan counts its gradients" $?

# ---- other trainers ----
awk 'BEGIN { for (i = 0; i < 60; i++) printf "{\"prompt\": \"say %c\", \"chosen\": \"%c%c\", \"rejected\": \"x\"}\n", 97 + i % 5, 97 + i % 5, 97 + i % 5 }' >pairs.jsonl
cat common.yaml - >pairs.yaml <<'END'
lora: {rank: 4, alpha: 8, targets: "q,v,head,embedding"}
data: {train: [{path: pairs.jsonl}]}
train: {steps: 20, context: 64, checkpoint_minutes: 0}
preferences: {per_batch: 8}
END
run 0 dpo pairs.yaml output=dpo optim.lr=1e-3 && losses dpo | grep -v eval | awk 'NR == 1 { first = $2 } { last = $2 } END { exit !(first > 0.693 && first < 0.6932 && last < first - 0.02) }'
tell "DPO begins at ln 2, its reference being the base without the adapter, and learns" $?
run 2 reward pairs.yaml && one_error && says 'lora.targets' && says 'head'
tell "a reward model's head is no target" $?
run 0 reward pairs.yaml output=reward lora.targets=q,v,embedding && run 0 merge reward reward-merged
tell "its embedding is" $?
cat common.yaml - >ppo.yaml <<'END'
lora: {rank: 4, alpha: 8, targets: "q,v,head,embedding"}
data: {train: [{path: records.jsonl}], validation: 0.25}
ppo: {algorithm: rloo, reward: regex, pattern: a, prompts: 4, samples: 4, epochs: 2, minibatches: 2}
generate: {max_new_tokens: 8}
train: {steps: 3, context: 48, tokens_per_microbatch: 256, checkpoint_minutes: 0}
END
for algorithm in rloo grpo ppo; do
    run 0 ppo ppo.yaml output=$algorithm ppo.algorithm=$algorithm &&
        sed -n 's|^{"step": 1, .*"objective/kl": \([-0-9.e+]*\)[,}].*|\1|p' $algorithm/metrics.jsonl | head -n 1 | grep -qx 0
    tell "$algorithm begins as its reference, the base without the adapter" $?
done
if command -v mpirun >/dev/null; then
    run 0 sft lora.yaml output=one train.steps=8 train.tokens_per_microbatch=128 train.checkpoint_every=0 &&
        mpi 2 "$cria" sft lora.yaml output=two train.steps=8 train.tokens_per_microbatch=128 train.checkpoint_every=0 2>"$scratch/err" &&
        paste <(losses one | grep -v eval) <(losses two | grep -v eval) | awk '{ d = $2 - $4; if (d < 0) d = -d; if (d > 1e-4 * $2) bad = 1 } END { exit bad || NR != 8 }'
    tell "two ranks learn what one learns" $?
fi
finish
