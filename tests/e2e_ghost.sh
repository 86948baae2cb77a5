#!/usr/bin/env bash
# Ghost Attention data: the instruction on every question when asked, on the first only when written; stopped and gone
# on with; what of it is learned; what is refused.
. tests/e2e.bash

make_folder ghost
cd "$scratch/ghost" || exit 1
run 0 pretrain config.yaml output=base train.steps=5 model.max_context=256 train.checkpoint_every=0
awk 'BEGIN { for (i = 0; i < 200; i++) { c = 97 + i % 5; printf "{\"prompt\": \"%s\\nsay %c\", \"completion\": \"%s\"}\n", i % 2 ? "twice" : "once", c, i % 2 ? sprintf("%c%c", c, c) : sprintf("%c", c) } }' >records.jsonl
cat >sft.yaml <<'END'
output: tuned
precision: fp32
model: {base: base}
template: {name: chatml}
data: {train: [{path: records.jsonl}], validation: 0}
optim: {lr: 1.0e-2, schedule: constant, warmup: 0}
train: {steps: 120, tokens_per_batch: 512, tokens_per_microbatch: 256, context: 128}
END
run 0 sft sft.yaml
tell "an assistant is made" $?

awk 'BEGIN { for (i = 0; i < 150; i++) printf "{\"messages\": [{\"role\": \"user\", \"content\": \"say %c\"}, {\"role\": \"assistant\", \"content\": \"not this\"}, {\"role\": \"user\", \"content\": \"say %c%d\"}]}\n", 97 + i % 5, 97 + (i + 1) % 5, i }' >talks.jsonl
printf 'once\n\ntwice\r\n' >instructions.txt
ghost() { # OUT [FLAGS…]
    local out=$1
    shift
    run 0 ghost tuned talks.jsonl instructions.txt "$out" -n 12 "$@"
}
ghost all.jsonl --json && [ "$(json_number written "$scratch/out")" -eq "$(wc -l <all.jsonl)" ] && [ "$(wc -l <all.jsonl)" -ge 20 ] &&
    [ $(($(json_number written "$scratch/out") + $(json_number unfinished "$scratch/out") + $(json_number empty "$scratch/out"))) -eq 150 ]
tell "records are written, and what is not is counted" $?
! grep -v '^{"ghost": "[0-9a-f]\{16\}", "messages": \[{"role": "user", "content": "\(once\|twice\)\\nsay [a-e]"}, {"role": "assistant", "content": "[^"]*", "train": false}, {"role": "user", "content": "say [a-e][0-9]*"}, {"role": "assistant", "content": "[^"]*"}\]}$' all.jsonl
tell "with the instruction on the first question only, and none of the file's own answers" $?
grep -q '"once\\n' all.jsonl && grep -q '"twice\\n' all.jsonl && [ "$(cut -c 12-27 all.jsonl | sort -u | wc -l)" -eq "$(wc -l <all.jsonl)" ]
tell "both instructions are drawn, and no record is there twice" $?

# The model was asked with the instruction on the second question too: the same prompt, answered greedily, is the same.
ghost greedy.jsonl --temperature 0
head -n 3 greedy.jsonl | sed -E 's/"ghost": "[^"]*", //; s/, "train": false//; s/"content": "(once|twice)\\n(.*)"role": "user", "content": "say/"content": "\1\\n\2"role": "user", "content": "\1\\nsay/' >asked.jsonl
run 0 generate tuned --chat -f asked.jsonl -n 12 --temperature 0 --jsonl && [ "$(grep -c '"text":' "$scratch/out")" -eq 3 ] && cmp <(sed -E 's/.*"text": ?"([^"]*)".*/\1/' "$scratch/out") <(head -n 3 greedy.jsonl | sed -E 's/.*"content": "([^"]*)"\}\]\}$/\1/')
tell "the answers are those to questions that all have the instruction" $?

learned() { run 0 data show tuned "$1" --train-on "$2" -n 1 && grep -o '«[^»]*»' "$scratch/out" | tr -d '\n'; }
last=$(head -n 1 all.jsonl | sed -E 's/.*"content": "([^"]*)"\}\]\}$/\1/')
[ "$(learned all.jsonl assistant)" = "«$last<|im_end|>»" ]
tell "only the last answer and its stop are learned" $?
sed 's/, "train": false//' all.jsonl >unmarked.jsonl
[ "$(learned unmarked.jsonl last)" = "«$last<|im_end|>»" ] && [ "$(learned unmarked.jsonl assistant)" != "«$last<|im_end|>»" ]
tell "train_on: last is the same mask for records without marks" $?
run 0 data lint tuned all.jsonl && run 0 sft sft.yaml model.base=tuned output=ghosted data.train=all.jsonl sft.overlong=drop train.steps=2
tell "cria trains on them" $?
ghost system.jsonl --system && head -n 1 system.jsonl | grep -q '"messages": \[{"role": "system", "content": "\(once\|twice\)"}, {"role": "user", "content": "say '
tell "the instruction may be the system message" $?

# ---- stopped and gone on with ----
ghost all.jsonl && says '0 records written' && ghost again.jsonl && cmp again.jsonl all.jsonl
tell "nothing is done twice; the same call gives the same records" $?
for cut in 0 1 30 4000 $(($(stat -c %s all.jsonl) - 3)); do head -c "$cut" all.jsonl >part.jsonl && ghost part.jsonl && cmp part.jsonl all.jsonl || break; done
tell "a file cut short anywhere is completed to the same bytes" $?
(exec "$cria" ghost tuned talks.jsonl instructions.txt killed.jsonl -n 12 >/dev/null 2>&1) &
pid=$!
for _ in $(seq 100); do [ -s killed.jsonl ] && break; sleep 0.05; done
kill -9 $pid 2>/dev/null
wait $pid 2>/dev/null
ghost killed.jsonl && cmp killed.jsonl all.jsonl
tell "killed and gone on with, the same bytes" $?
cat talks.jsonl talks.jsonl >twice.jsonl && run 0 ghost tuned twice.jsonl instructions.txt both.jsonl -n 12 -k 2 --json && [ "$(json_number duplicates "$scratch/out")" -eq 300 ] && [ "$(json_number records "$scratch/out")" -eq 300 ]
tell "conversations that are there twice are asked once" $?

# ---- bad input ----
run 3 ghost tuned talks.jsonl instructions.txt all.jsonl -n 13 && one_error && says 'all.jsonl:1: this record is of another run'
tell "other options do not go on with a file" $?
cp records.jsonl mine.jsonl && run 3 ghost tuned talks.jsonl instructions.txt mine.jsonl -n 12 && one_error && says 'mine.jsonl:1: this line was not written by cria ghost' && cmp records.jsonl mine.jsonl &&
    printf 'no newline' >mine.txt && run 3 ghost tuned talks.jsonl instructions.txt mine.txt -n 12 && [ "$(cat mine.txt)" = 'no newline' ]
tell "a file of somebody else's is left as it is" $?
printf '%s\n' '{"prompt": "a"}' '{"prompt": "a\u0000b"}' >nul.jsonl
run 3 ghost tuned nul.jsonl instructions.txt no.jsonl && one_error && says 'nul.jsonl:2) has the character U+0000' && [ ! -e no.jsonl ]
tell "a question with U+0000 is not cut there, but refused" $?
printf '\n \n' >none.txt && run 3 ghost tuned talks.jsonl none.txt no.jsonl && one_error && says 'no instruction' &&
    run 2 ghost tuned talks.jsonl instructions.txt no.jsonl -k 3 && one_error && says '2 instructions' &&
    echo '{"messages": 1}' >bad.jsonl && run 3 ghost tuned bad.jsonl instructions.txt no.jsonl && one_error && says 'bad.jsonl:1: ' &&
    run 2 ghost base talks.jsonl instructions.txt no.jsonl && one_error && says 'no chat template' && [ ! -e no.jsonl ]
tell "bad instructions, conversations and models are refused before anything is written" $?
echo '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "say a"}]}' >own.jsonl
run 3 ghost tuned own.jsonl instructions.txt no.jsonl --system && one_error && says 'conversation 1 has a system message of its own'
tell "two system messages are refused" $?
run 0 ghost tuned own.jsonl instructions.txt own-out.jsonl -n 12 --temperature 0 && grep -q '"messages": \[{"role": "system", "content": "s"}, {"role": "user", "content": "\(once\|twice\)\\nsay a"}' own-out.jsonl
tell "a conversation's own system message stays" $?
finish
