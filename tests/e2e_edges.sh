#!/usr/bin/env bash
# What a user meets at the edges: readers that go away, too little data, prompts from elsewhere, texts with control
# characters, numbers out of range.
set -uo pipefail
. "$(dirname "$0")/e2e.bash"
make_folder edges
cd "$scratch/edges" || exit 1

timeout 60 "$cria" pretrain config.yaml 2>&1 >/dev/null | head -n 1 >/dev/null
[ "${PIPESTATUS[0]}" -eq 0 ] && [ -e run/checkpoints/step-40/manifest.json ]
tell "a reader of the log that goes away does not end the run" $?

stopped_by() { # SIGNAL: begins a long run, sends the signal at its first figures
    local pid
    timeout 60 "$cria" pretrain config.yaml output="by-$1" train.steps=1000000 train.checkpoint_every=0 2>"$scratch/err" &
    pid=$!
    for _ in $(seq 200); do
        [ ! -s "by-$1/metrics.jsonl" ] || break
        sleep 0.1
    done
    kill "-$1" "$(ps -o pid= --ppid "$pid" | head -n 1)"
    wait "$pid"
}
stopped_by HUP
[ $? -eq 130 ] && says 'a checkpoint was saved' && compgen -G 'by-HUP/checkpoints/step-*/manifest.json' >"$scratch/out"
tell "a terminal that closes saves and stops" $?
stopped_by INT
[ $? -eq 130 ] && says '^stopping: a checkpoint is saved after this step' && says 'a checkpoint was saved'
tell "Ctrl-C is answered at once" $?

printf a >a.txt
run 0 pretrain config.yaml output=little data.train=a.txt data.validation=0.1 train.steps=2 && ! grep -q nan "$scratch/err" &&
    ! grep -q eval_loss little/metrics.jsonl && says 'data: 2 training tokens in an epoch of 1 step,'
tell "a validation set without a token to foretell is not measured" $?

run 0 pretrain config.yaml output=none data.validation=0 train.early_stopping=2 train.steps=2 &&
    says '^warning: train.early_stopping has no effect'
tell "early stopping without validation is pointed out" $?

# A model on bytes writes anything, before it has learned; it must not command the terminal.
run 0 pretrain config.yaml output=sample train.steps=3 train.sample_every=1 "train.sample_prompt=é" generate.top_p=1 &&
    says 'step 3 writes: é' && ! LC_ALL=C grep -q '[^[:print:][:space:]]' <(tr -d '\200-\377' <"$scratch/err") &&
    iconv -f UTF-8 -t UTF-8 "$scratch/err" >/dev/null
tell "no control character and no half character reaches the terminal" $?

for refused in model.dim=33 model.head_dim=3 model.n_heads=3; do
    run 2 pretrain config.yaml output=shape "$refused" && one_error && says "${refused%=*}\|model.dim"
    tell "an impossible shape is a wrong config: $refused" $?
done
grep -q '^  norm_eps: 1e-05$' run/config.yaml
tell "the saved config says 1e-5 as people write it" $?

: >empty.txt
run 3 tokenizer train -v 300 -o learned empty.txt && one_error && says 'empty.txt: no text in it' && [ ! -e learned ]
tell "a tokenizer is not learned from nothing" $?
run 2 tokenizer train -v 300 --special 300 -o learned a.txt && says "found '300', expected a whole number >= 2 and <= 256"
tell "a flag's range is told in full" $?

printf 'the llama\r\n\r\nold walls\r\n' >prompts.txt
printf 'the llama\nold walls\n' >plain.txt
run 0 generate run -f prompts.txt -n 4 --temperature 0 && mv "$scratch/out" from-windows &&
    run 0 generate run -f plain.txt -n 4 --temperature 0 && cmp -s from-windows "$scratch/out"
tell "prompts with Windows' line ends are the same prompts" $?
run 2 generate run -p 'the llama' -f plain.txt && one_error && says 'give one of them'
tell "a prompt and a file of prompts: one of them" $?

printf '%s\n' '{"prompt": "a\u0000b", "completion": "c", "id": 123456789012345678901234567890}' >nul.jsonl
run 0 data lint bytes nul.jsonl --template plain && run 0 generate run -f nul.jsonl -n 2 --json && grep -q '"a\\u0000b"' "$scratch/out" &&
    run 0 rejection output=nul model.base=run rejection.prompts=nul.jsonl rejection.samples=2 rejection.reward=length rejection.length=4 generate.max_new_tokens=4 && grep -q 'a\\u0000b' nul/sft.jsonl
tell "a prompt with U+0000 or a number of 30 digits is taken by those who lint and those who answer" $?
for damaged in '{"prompt": "a", "prompt": "b"}' '{"prompt": "\ud800"}' '{"prompt": "a"' 7; do
    printf '\n%s\n' "$damaged" >damaged.jsonl
    run 3 generate run -f damaged.jsonl -n 2 && one_error && said=$(sed 's/^error: //' "$scratch/err") && [ -n "$said" ] && run 3 data lint bytes damaged.jsonl --template plain && grep -qF "$said" "$scratch/out"
    tell "a damaged prompt is refused in the words of data lint: $damaged" $?
done

mkdir nothing
run 3 inspect nothing && one_error && says 'nothing: no checkpoint'
tell "a folder without a model is told from a model" $?
finish
