#!/usr/bin/env bash
# Talking with a model: its own template and stop, turns, the end of the context, commands, from a pipe.
. tests/e2e.bash

make_folder chat
cd "$scratch/chat" || exit 1
run 0 pretrain config.yaml output=base train.steps=5 model.max_context=256 train.checkpoint_every=0
awk 'BEGIN { for (i = 0; i < 200; i++) printf "{\"prompt\": \"say %c\", \"completion\": \"%c%c\"}\n", 97 + i % 5, 97 + i % 5, 97 + i % 5 }' >records.jsonl
cat >sft.yaml <<'END'
output: tuned
precision: fp32
model: {base: base}
template: {name: chatml}
data: {train: [{path: records.jsonl}], validation: 0}
optim: {lr: 1.0e-2, schedule: constant, warmup: 0}
train: {steps: 150, tokens_per_batch: 512, tokens_per_microbatch: 256, context: 128}
END
run 0 sft sft.yaml
tell "an assistant is made" $?

# talk ARGUMENTS…: chat with what stands in standard input
talk() {
    timeout 60 "$cria" chat "$@" --temperature 0 >"$scratch/out" 2>"$scratch/err"
}
run 0 chat tuned -p 'say b' --temperature 0 && [ "$(cat "$scratch/out")" = bb ]
tell "one message, one answer that ends by itself" $?
for weights in 16bit int8 nf4; do
    run 0 chat tuned -p 'say b' --temperature 0 "generate.weights=$weights" && [ "$(cat "$scratch/out")" = bb ]
    tell "and so it answers from weights in $weights" $?
done
printf 'say c\n' | talk tuned --once && [ "$(cat "$scratch/out")" = cc ]
tell "one message from a pipe" $?
printf 'say a\nsay b\n\nsay d\n' | talk tuned && [ "$(wc -l <"$scratch/out")" -eq 3 ] && [ "$(head -n 1 "$scratch/out")" = aa ]
tell "each line of a pipe is a turn" $?
printf '/system be short\nsay a\n/save talk.jsonl\n/reset\nsay b\n/save talk.jsonl\n' | talk tuned && [ "$(wc -l <talk.jsonl)" -eq 2 ] &&
    grep -q '^{"messages": \[{"role": "system", "content": "be short"}, {"role": "user", "content": "say a"}, {"role": "assistant", "content": "' talk.jsonl
tell "a conversation is saved as a record" $?
printf 'say a\n/save nowhere/talk.jsonl\n' | talk tuned || says 'error: /save: nowhere/talk.jsonl cannot be written: No such file or directory'
tell "and why it cannot be" $?
run 0 data lint tuned talk.jsonl --template chatml
tell "which cria can train on" $?
for i in $(seq 40); do echo "say a"; done >many
talk tuned --context 128 <many
[ $? -eq 3 ] && one_error && says 'the context is full: /drop'
tell "at the end of the context it says so" $?
talk tuned --context 128 --drop-old --max-new-tokens 20 <many && says 'forgot the oldest 1 turn to make room' && [ "$(wc -l <"$scratch/out")" -eq 40 ]
tell "and forgets whole old turns where it is told to" $?
printf '//text\n/nonsense\n/drop\n/drop\n' | talk tuned && [ "$(wc -l <"$scratch/out")" -eq 1 ] && says 'no command /nonsense' && says 'no turn to forget'
tell "commands" $?
run 2 chat base -p x && one_error && says 'has no chat template' && says 'template.name'
tell "a model without a template asks for one" $?
run 0 chat base -p x --template plain --max-new-tokens 5 && says 'cut off'
tell "one can be named; an answer that does not end is said to be cut off" $?
run 0 generate tuned --chat -p 'say d' --temperature 0 && [ "$(cat "$scratch/out")" = dd ]
tell "generate --chat prints the answer alone" $?
printf 'say a\nsay b\nsay e\n' >prompts && run 0 generate tuned --chat -f prompts --samples 20 --temperature 0.5 --json && [ "$(grep -o stop-token "$scratch/out" | wc -l)" -ge 59 ]
tell "many are answered at once by generate --chat, and nearly all answers end by themselves" $?
run 0 export tuned m.gguf --format gguf && run 0 chat m.gguf -p 'say e' --temperature 0 && [ "$(cat "$scratch/out")" = ee ] &&
    run 0 export tuned hf && run 0 chat hf -p 'say e' --temperature 0 && [ "$(cat "$scratch/out")" = ee ]
tell "exported, it answers the same" $?

finish
