#!/usr/bin/env bash
# Adapters trained by cria sft: what they learn, what a checkpoint of one is, and that it serves as a model.
. tests/e2e.bash
. tests/e2e_adapter.bash

make_folder lora
root=$PWD
cd "$scratch/lora" || exit 1
shape="model.dim=48 model.n_heads=4 model.n_kv_heads=2 model.ffn_dim=96 model.max_context=256"
run 0 pretrain config.yaml output=base train.steps=300 $shape train.checkpoint_every=0 &&
    run 0 pretrain config.yaml output=other seed=2 train.steps=1 $shape
tell "a base is made" $?
find base -type f -exec md5sum {} + | sort >base.sums

say_records
cat >lora.yaml <<'END'
output: tuned
precision: fp32
model: {base: base}
template: {name: mine, begin: "{bos}", user: {before: "Q: ", after: "\n"}, assistant: {before: "A: ", after: "{eos}", stop: "{eos}"}}
lora: {rank: 8, alpha: 16, dropout: 0.1}
data: {train: [{path: records.jsonl}], validation: 0.1}
sft: {sample_prompts: ["say b"]}
optim: {lr: 1.0e-2, schedule: constant, warmup: 0, weight_decay: 0}
train: {steps: 150, tokens_per_batch: 512, tokens_per_microbatch: 256, context: 64, validate_every: 50, sample_every: 150, checkpoint_every: 20, checkpoint_minutes: 0}
generate: {max_new_tokens: 20, temperature: 0}
END

run 0 sft lora.yaml && says 'adapter: LoRA of rank 8, ' && says 'step 150: say b' && says '->  *bb$'
tell "an adapter learns to answer, and to stop" $?
find base -type f -exec md5sum {} + | sort | cmp -s - base.sums && [ -s base.sums ]
tell "the base's files are as they were" $?
for kind in lora.rslora=true lora.dora=true lora.plus_ratio=4 lora.base=int8 lora.base=nf4 precision=bf16; do
    run 0 sft lora.yaml output="$kind" $kind && says '->  *bb$'
    tell "so it does with $kind" $?
done
says 'the model is frozen, its matrices in 16 bits'
tell "in bf16 the base stays in 16 bits" $?
run 0 sft lora.yaml output=qlora lora.base=nf4 lora.dora=true precision=bf16 && says 'the model is frozen, its matrices in NF4, embedding and head in 16 bits' && says '->  *bb$'
tell "or goes into NF4, quantised as it is loaded" $?
run 0 plan lora.yaml lora.base=nf4 && grep -q 'the model in NF4, embedding and head in 16 bits, and the adapter' "$scratch/out"
tell "and the plan says so" $?

sed 's/lora: {rank: 8, /lora: {rank: 8, targets: [q, v], /' lora.yaml >listed.yaml
run 0 sft listed.yaml output=listed train.steps=2 && run 0 sft lora.yaml output=named train.steps=2 lora.targets=q,v && losses listed >listed.losses && losses named | cmp - listed.losses && ! losses tuned | head -n 2 | cmp -s - listed.losses
tell "targets are a list, or words with commas" $?

# ---- the checkpoint ----
run 0 inspect tuned --json && ! grep -q '"name": "model\.layers' "$scratch/out" && grep -q '"name": "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"' "$scratch/out" && grep -q '"name": "v.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"' "$scratch/out"
tell "a checkpoint holds the adapter and its moments, and nothing of the base" $?
run 0 inspect tuned && grep -qE '^adapter: .*LoRA.*, rank [0-9]+, alpha [0-9]+, on q_proj, .* numbers trained$' "$scratch/out" && grep -qE '^ +base .*, fingerprint [0-9a-f]{16}$' "$scratch/out"
tell "and its rank, alpha and targets, how much was trained, and on which base" $?
mkdir ../parts && cp -r base records.jsonl lora.yaml ../parts
stopped() { # KIND…: killed after some steps, and resumed
    rm -rf tuned
    timeout 60 "$cria" sft lora.yaml "$@" train.checkpoint_every=3 2>"$scratch/err" &
    local job=$! deadline=$((SECONDS + 30))
    until [ -e tuned/metrics.jsonl ] && [ "$(grep -c '"loss"' tuned/metrics.jsonl)" -ge 17 ]; do
        kill -0 "$job" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ] || break
    done
    kill -KILL "$(pgrep -P "$job")"
    { wait "$job"; } 2>/dev/null
    run 0 sft lora.yaml "$@" train.steps=40 && says 'resuming at step'
}
for kind in lora.rslora=false lora.dora=true lora.base=nf4 precision=bf16; do
    (rm -rf whole && run 0 sft lora.yaml output=whole $kind train.steps=40 && cd ../parts && stopped $kind && run 0 merge tuned merged --no-check &&
        cd ../lora && run 0 merge whole merged --no-check && cmp merged/model.safetensors ../parts/merged/model.safetensors &&
        grep optimizer.h5 whole/checkpoints/step-40/manifest.json | cmp - <(grep optimizer.h5 ../parts/tuned/checkpoints/step-40/manifest.json))
    tell "killed and resumed with $kind, the same bits" $?
    rm -rf merged ../parts/merged
done
same_losses() { # RUN: as `tuned`, to rounding
    losses "$1" | grep -v eval >"$1.losses" && losses tuned | grep -v eval | head -n 10 | paste - "$1.losses" | awk '{ d = $2 - $4; if (d < 0) d = -d; if (d > 1e-5) bad = 1 } END { exit bad || NR != 10 }'
}
run 0 sft lora.yaml output=micro train.tokens_per_microbatch=64 train.steps=10 && same_losses micro
tell "dropout does not depend on micro-batches" $?
run 0 sft lora.yaml output=other-seed seed=5 train.steps=10 && ! same_losses other-seed
tell "but on the seed" $?
[ -e tuned/checkpoints/best ] && [ "$(sed 's/step-//' tuned/checkpoints/best)" = "$(losses tuned | awk '$1 == "eval" && (!n++ || $3 < low) { low = $3; step = $2 } END { print step }')" ]
tell "best is the step of the lowest validation loss" $?

# ---- it serves as a model ----
near() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a - b < 1e-6 && b - a < 1e-6) }'; }
answers tuned && answers tuned/best && answers tuned/checkpoints/step-150
tell "generate answers from a run's folder, its best and a checkpoint" $?
(cd / && answers "$scratch/lora/tuned")
tell "from elsewhere too, where the base is found from the run" $?
[ "$("$cria" chat tuned -p "say d" --temperature 0 2>/dev/null | tr -d ' \n')" = dd ]
tell "so does chat" $?
own=$(loss tuned) && before=$(loss base) && ! near "$own" "$before" && [ "$own" != 0 ]
tell "eval measures base and adapter together" $?
run 0 merge tuned merged --json && near "$(json_number loss "$scratch/out")" "$(json_number merged_loss "$scratch/out")" && near "$(loss merged)" "$own" && answers merged
tell "merge finds the base, and merged is unmerged" $?
run 0 export tuned hf && near "$(loss hf)" "$own" && answers hf && run 0 export tuned m.gguf --format gguf && near "$(loss m.gguf)" "$own"
tell "export merges on the way to hf and gguf" $?
run 0 export tuned peft --format peft && near "$(loss peft)" "$own" && grep -q '"base_model_name_or_path": "base"' peft/adapter_config.json
tell "PEFT's folder serves where it names its base" $?
run 0 inspect peft && grep -q '^peft: adapter$' "$scratch/out" && grep -qE '^adapter: .*, rank [0-9]+, alpha .* numbers trained$' "$scratch/out"
tell "and cria inspect shows what it is" $?
run 0 import peft imported && near "$(loss imported)" "$own" && run 0 export imported again --format peft && cmp peft/adapter_model.safetensors again/adapter_model.safetensors
tell "imported it is an adapter's checkpoint, the same bits" $?
run 0 sft lora.yaml output=whole-model model.base=tuned lora.rank=0 template.name= train.steps=1 && losses whole-model | head -n 1 | awk '{ exit !($2 < 1) }'
tell "full fine-tuning goes on from it" $?
run 3 sft lora.yaml output=no model.base=tuned template.name= && one_error && says "cria merge tuned TO"
tell "an adapter on an adapter is refused, with the way out" $?

# ---- the base ----
mv base moved
run 3 generate tuned -p a && one_error && says "'base', which is not there" && says '--base MODEL'
tell "a base that is gone is named" $?
answers tuned --base moved && run 0 export tuned hf2 --base moved && cmp hf/model.safetensors hf2/model.safetensors
tell "and given by --base" $?
run 3 generate tuned -p a --base other && one_error && says 'trained on another model than other'
tell "another model of the same shape is refused" $?
mv other base
run 3 sft lora.yaml train.steps=160 && one_error && says 'trained on another model than base'
tell "also when the run goes on" $?
mv base other && mv moved base
run 0 export base bf16 --dtype bf16 && answers tuned --base bf16
tell "the base's own bf16 form is the base" $?
run 2 sft lora.yaml lora.rank=4 train.steps=160 && one_error && says 'lora.rank: 8 before, 4 now'
tell "a resume with another rank is refused" $?
run 2 sft lora.yaml lora.base=nf4 train.steps=160 && one_error && says 'lora.base: auto before, nf4 now'
tell "or with a base that is kept in another way" $?
run 2 pretrain config.yaml output=no lora.rank=4 && one_error && says 'model.base'
tell "an adapter of nothing is refused" $?

# ---- answers that would never end ----
run 3 sft lora.yaml output=no 'template.assistant.after={bos}' 'template.assistant.stop={bos}' && one_error && says 'is BOS, which is never learned'
tell "a stop that is BOS is refused" $?
stories=$root/../shared/data/stories260K
if [ -e "$stories/stories260K.bin" ]; then # half the rows of its tied head are of tokens that no story has, </s> among them
    run 3 sft lora.yaml output=no model.base="$stories/stories260K.bin" tokenizer.path="$stories/tok512.model" && one_error && says 'never learned the stop token </s>: [1-9][0-9]* other rows'
    tell "a stop that the frozen head cannot tell from other tokens is refused" $?
    run 0 sft lora.yaml output=masked model.base="$stories/stories260K.bin" tokenizer.path="$stories/tok512.model" sft.mask_stop=true train.steps=1
    tell "but not where stops are masked, so that none is learned" $?
else
    skip "$stories is absent"
fi
finish
