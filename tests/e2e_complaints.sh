#!/usr/bin/env bash
# What people complain of most in tools that fine-tune, as far as a whole run shows it; one test each, named after the
# complaint, and here none of it can happen. Those about ids and masks are in test_complaints.c.
. tests/e2e.bash

make_folder sft
cd "$scratch/sft" || exit 1
run 0 pretrain config.yaml output=base train.steps=10 model.max_context=256 train.checkpoint_every=0
awk 'BEGIN { for (i = 0; i < 200; i++) printf "{\"prompt\": \"say %c\", \"completion\": \"%s\"}\n", 97 + i % 5, substr("aaaaaaaaaaaaaaaaaa", 1, 1 + i % 17) }' >records.jsonl
cat >sft.yaml <<'END'
output: tuned
precision: fp32
model: {base: base}
template: {name: chatml}
data: {train: [{path: records.jsonl}], validation: 0}
optim: {lr: 1.0e-2, schedule: constant, warmup: 0}
train: {steps: 60, tokens_per_batch: 512, tokens_per_microbatch: 512, context: 128, checkpoint_every: 0}
generate: {max_new_tokens: 40, temperature: 0}
END
run 0 sft sft.yaml
tell "an assistant is made" $?

# ---- "it never stops" ----
run 0 generate tuned --chat -p 'say b' --samples 50 -n 60 --temperature 1 --json && [ "$(grep -o '"finish_reason": "stop-token"' "$scratch/out" | wc -l)" -ge 49 ]
tell "it never stops: 49 of 50 answers end by themselves" $?
run 0 export tuned hf && grep -A3 eos_token_id hf/generation_config.json | grep -q 259 && run 0 export tuned m.gguf --format gguf && grep -q '^PARAMETER stop "<|im_end|>"' Modelfile
tell "it never stops elsewhere: exports name the stop" $?

# ---- "everything was masked, the loss was 0, and it said done" ----
echo '{"messages": [{"role": "user", "content": "a"}]}' >masked.jsonl
run 3 sft sft.yaml output=no data.train=masked.jsonl && one_error && says 'masked.jsonl:1: left out: no token of it is learned' && says 'nothing to learn from'
tell "everything masked: refused, and not a loss of 0" $?
{ cat masked.jsonl; head -n 5 records.jsonl; } >some.jsonl
run 0 sft sft.yaml output=some data.train=some.jsonl train.steps=2 && says 'some.jsonl:1: left out: no token of it is learned' && losses some | awk '!($2 > 0) { bad = 1 } END { exit bad || NR != 2 }'
tell "some masked: told with the line, and every step has a loss" $?

# ---- "it cut my data without a word" ----
{ cat records.jsonl; printf '{"prompt": "%0300d", "completion": "a"}\n' 7; } >long.jsonl
run 3 sft sft.yaml output=no data.train=long.jsonl && one_error && says 'long.jsonl:201: .* tokens, and the context is 128'
tell "silent truncation: a record that is too long is refused" $?
for policy in drop truncate-left; do
    run 0 sft sft.yaml output=cut data.train=long.jsonl sft.overlong=$policy train.steps=1 && says 'long.jsonl:201: ' && says 'left out for being longer' &&
        run 0 sft sft.yaml output=cut data.train=long.jsonl sft.overlong=$policy train.steps=2 && says 'left out for being longer'
    tell "silent truncation: with $policy it is told, again at the next start" $?
    rm -rf cut
done

# ---- "accumulating gradients is another training" ----
for size in 128 256; do
    run 0 sft sft.yaml output=micro$size train.tokens_per_microbatch=$size train.steps=10 && losses micro$size >first &&
        losses tuned | head -n 10 | paste - first | awk '{ d = $2 - $4; if (d < 0) d = -d; if (d > 1e-5) bad = 1 } END { exit bad || NR != 10 }'
    tell "accumulation weights wrongly: answers of unlike lengths in micro-batches of $size, the same losses" $?
done

# ---- "the merged model is another one" ----
run 0 sft sft.yaml output=adapter model.base=tuned template.name= lora.rank=4 lora.alpha=8 train.steps=20 && run 0 merge adapter merged --json && mv "$scratch/out" merged.json &&
    awk -v d="$(json_number logits_difference merged.json)" -v g="$(json_number logits_greatest merged.json)" 'BEGIN { exit !(g > 0 && d < 1e-5 * g) }'
tell "merged is not unmerged: the logits agree" $?
answers() { run 0 generate "$1" --chat -p 'say c' -n 40 --temperature 0 && cat "$scratch/out"; }
[ "$(answers adapter)" = "$(answers merged)" ] && [ -n "$(answers merged)" ]
tell "merged is not unmerged: it answers the same" $?

# ---- "gibberish after the export" ----
grep -q '^{#- cria {"name":"chatml"' hf/chat_template.jinja && grep -q '"chat_template": "{#- cria ' hf/tokenizer_config.json && grep -q '<|im_end|>' hf/tokenizer.json && LC_ALL=C grep -qa 'cria {"name":"chatml"' m.gguf && grep -q '^TEMPLATE """' Modelfile
tell "the template was lost: it is in every export" $?
grep -q '"name":"chatml"' merged/chat_template.jinja && [ "$(answers hf)" = "$(answers tuned)" ] && [ "$(answers m.gguf)" = "$(answers tuned)" ] && [ -n "$(answers hf)" ]
tell "the template was lost: exports and the merged model answer by it" $?
sed -i 's/im_start/im_begin/2' hf/chat_template.jinja
run 3 sft sft.yaml output=no model.base=hf template.name= && one_error && says 'none that cria knows' && says 'template.name='
tell "the template was lost: one that is not known is refused, with the way to give one" $?
finish
