#!/usr/bin/env bash
# Instructions to an assistant: cria sft from a base, the files it leaves, and what it refuses.
. tests/e2e.bash

make_folder sft
cd "$scratch/sft" || exit 1
run 0 pretrain config.yaml output=base train.steps=10 model.max_context=256 train.checkpoint_every=0
tell "a base is made" $?

# Questions with one right answer each; the model is tiny, so they are short.
make_records() { # FILE N
    awk -v n="$2" 'BEGIN { for (i = 0; i < n; i++) printf "{\"prompt\": \"say %c\", \"completion\": \"%c%c\"}\n", 97 + i % 5, 97 + i % 5, 97 + i % 5 }' >"$1"
}
make_records records.jsonl 200
cat >sft.yaml <<'END'
output: tuned
precision: fp32
model: {base: base}
template: {name: chatml}
data: {train: [{path: records.jsonl}], validation: 0.1}
sft: {sample_prompts: ["say b"]}
optim: {lr: 1.0e-2, schedule: constant, warmup: 0}
train: {steps: 150, tokens_per_batch: 512, tokens_per_microbatch: 256, context: 128, validate_every: 50, sample_every: 150, checkpoint_every: 20, checkpoint_minutes: 0}
generate: {max_new_tokens: 20, temperature: 0}
END

run 0 sft sft.yaml && says 'the vocabulary grows from 258 to 260' && says 'validation loss' && each_step_once tuned 150
tell "sft trains, and new tokens grow the embedding" $?
says 'step 150: say b' && ! says 'no stop' && says '-> bb'
tell "the assistant has learned to answer, and to stop" $?
grep -q '"entropy": ' tuned/metrics.jsonl && grep -q '"mean_token_accuracy": ' tuned/metrics.jsonl && grep -q '"eval_entropy": ' tuned/metrics.jsonl
tell "entropy and token accuracy are measured" $?

losses tuned >whole
sums tuned 150 >whole.sums
mkdir ../parts && cp -r base records.jsonl sft.yaml ../parts
(cd ../parts && run 0 sft sft.yaml train.steps=40 && run 0 sft sft.yaml && says 'resuming at step 40' && sums tuned 150 | cmp - ../sft/whole.sums)
tell "stopped and resumed, the same bits" $?

# ---- what a model is, besides its parameters ----
run 0 export tuned hf && grep -q '^{#- cria {"name":"chatml"' hf/chat_template.jinja && grep -q '<|im_end|>' hf/tokenizer.json && grep -q '"vocab_size": 260' hf/config.json && grep -q '"chat_template": "{#- cria ' hf/tokenizer_config.json
tell "the export has the template, the new tokens and their rows" $?
grep -A3 eos_token_id hf/generation_config.json | grep -q 259
tell "the stop token ends generation" $?
run 0 sft sft.yaml output=again model.base=hf template.name= train.steps=2 && ! says 'vocabulary grows'
tell "the exported template is recognised, and used without being named" $?
run 0 data lint tuned records.jsonl --json && mv "$scratch/out" own.json && run 0 data lint base records.jsonl --template chatml --json && says 'needs tokens that the tokenizer lacks' && cmp own.json "$scratch/out"
tell "so it is by cria data lint, which sees a base as training will" $?
run 0 export tuned m.gguf --format gguf && run 0 sft sft.yaml output=gguf model.base=m.gguf template.name= train.steps=2
tell "from a GGUF file too" $?
grep -q '^TEMPLATE """.*{{ range .Messages }}' Modelfile && grep -q '^PARAMETER stop "<|im_end|>"' Modelfile
tell "the Modelfile has the template and the stop" $?
LC_ALL=C grep -qaP 'add_bos_token\x07\x00\x00\x00\x00' m.gguf
tell "a template without BOS gets none from llama.cpp" $?

# ---- bad input (the known ways of going wrong are in e2e_complaints.sh) ----
run 2 sft sft.yaml output=no template.name= && one_error && says 'base has no chat template'
tell "a base without a template asks for one" $?
{ cat records.jsonl; echo '{"prompt": "only"}'; echo '{"messages": [{"role": "assistant", "content": "a"}]}'; } >bad.jsonl
run 3 sft sft.yaml output=no data.train=bad.jsonl && one_error && says 'bad.jsonl:201: ' && says 'bad.jsonl:202: role order' && says '2 of its records'
tell "malformed records are named with their lines, all at once" $?
run 0 sft sft.yaml output=skip data.train=bad.jsonl data.on_error=skip train.steps=1 && says 'bad.jsonl:201: left out' && says '2 malformed records were skipped'
tell "or left out where the config says so, and told" $?
run 2 pretrain sft.yaml output=no && one_error && says 'template.name' && says 'cria sft'
tell "pretrain does not take conversations for text" $?
run 2 sft sft.yaml output=no model.base= && one_error && says 'model.base'
tell "sft asks for its base" $?

run 0 sft sft.yaml output=plainly train.steps=2 train.validate_every=2 && run 0 sft sft.yaml output=shared train.steps=2 train.validate_every=2 preferences.per_batch=3 ppo.samples=2 && losses shared >shared.losses && losses plainly | cmp - shared.losses
tell "other commands' options in a config that serves them too change nothing" $?
run 2 sft sft.yaml output=no lora.base=nf4 && one_error && says 'lora.base: an adapter has a rank: give lora.rank'
tell "an adapter without a rank is no silent training of the whole model" $?

# ---- a template of one's own ----
cat >own.yaml <<'END'
output: own
model: {base: base}
template:
  name: mine
  begin: "{bos}"
  user: {before: "Q: ", after: "\n"}
  assistant: {before: "A: ", after: "<end>\n", stop: "<end>"}
  tokens: ["<end>"]
data: {train: [{path: renamed.jsonl, columns: "prompt=question,completion=answer"}], validation: 0}
optim: {lr: 1.0e-2, schedule: constant, warmup: 0}
train: {steps: 2, tokens_per_batch: 512, tokens_per_microbatch: 256, context: 128}
END
sed 's/"prompt"/"question"/; s/"completion"/"answer"/' records.jsonl >renamed.jsonl
run 0 sft own.yaml && says 'the vocabulary grows from 258 to 259' && [ "$(grep -c 'the vocabulary grows' "$scratch/err")" -eq 1 ] && run 0 export own own-hf && grep -q '"name":"mine"' own-hf/chat_template.jinja
tell "a template written in the config trains and is exported; columns may have other names" $?
run 0 data lint base renamed.jsonl --config own.yaml --columns prompt=question,completion=answer &&
    run 0 data show base renamed.jsonl --config own.yaml --columns prompt=question,completion=answer -n 1 && grep -q 'Q: say a$' "$scratch/out" && grep -q '^A:« aa<end>»' "$scratch/out"
tell "cria data lint and show take it from the config" $?
run 2 data lint base renamed.jsonl --config own.yaml --template chatml && one_error
tell "and another name beside its texts is refused" $?
printf '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' >system.jsonl
run 3 sft own.yaml output=no template.name= data.train=system.jsonl && one_error && says "system.jsonl:1: message 1 is the system's, a role that template custom does not have"
tell "a role that it lacks is named, and whose template it is" $?
printf '{"prompt": "a", "completion": null}\n' >null.jsonl
run 3 sft own.yaml output=no data.train=null.jsonl && one_error && says 'null.jsonl:1: .* its keys are prompt, completion (null)'
tell "a key without a value is told from one that is absent" $?
run 2 sft own.yaml output=no tokenizer.path=hf && one_error && says "hf has 260 tokens, and base knows 258: it is another model's tokenizer"
tell "another model's tokenizer is refused" $?
run 3 sft own.yaml output=no template.assistant.stop= && one_error && says 'stop'
tell "a template whose answers would never end is refused" $?

finish
