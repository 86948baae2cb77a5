#!/usr/bin/env bash
# cria generate and cria eval loss: what sampling promises, and losses against transformers' and against known ones.
. "$(dirname "$0")/e2e.bash"
cd "$scratch" || exit 1
root=$OLDPWD

# ---- a small model of our own: noisy enough that seeds matter, trained enough to stop ----

make_folder own
(cd own && run 0 pretrain config.yaml train.steps=120)
tell "a model is trained" $?
model=own/run
text() { run 0 generate "$model" "$@" && cat out; }

[ -n "$(text -p "the llama" -n 60 --seed 5)" ] && [ "$(text -p "the llama" -n 60 --seed 5)" = "$(text -p "the llama" -n 60 --seed 5)" ]
tell "the same seed writes the same text" $?
[ "$(text -p "the llama" -n 60 --seed 5)" != "$(text -p "the llama" -n 60 --seed 6)" ]
tell "another seed writes another text" $?
[ "$(text -p "the llama" -n 60 --temperature 0 --seed 5)" = "$(text -p "the llama" -n 60 --temperature 0 --seed 6)" ]
tell "temperature 0 does not ask the seed" $?
streams_alone() { text -p "the llama" -n 60 >/dev/null && [ ! -s "$scratch/err" ]; }
streams_alone
tell "one text is streamed without progress or other lines" $?
top_one() { [ "$(text -p "the llama" -n 60 --top-k 1)" = "$(text -p "the llama" -n 60 --temperature 0)" ]; }
top_one
tell "top-k 1 is temperature 0" $?

# Prompts of different lengths, more than are computed at once; each must get what it gets alone.
printf '%s\n' "the llama" "a" "small birds sing near old stone walls in bright" "grass" "bright morning" "hills and eats soft" "w" >prompts
batch_is_each() { # FLAGS…
    run 0 generate "$model" -f prompts -n 40 "$@" && awk 'BEGIN { RS = "\n---\n" } { sub(/\n$/, ""); print; print "==" }' out >together
    while read -r prompt; do
        run 0 generate "$model" -p "$prompt" -n 40 "$@" && cat out && printf '\n==\n'
    done <prompts >each
    [ -s each ] && cmp together each
}
for batch in 1 3 16; do
    batch_is_each --temperature 0 --max-batch $batch
    tell "$batch prompts at once have the greedy texts of each alone" $?
done
# generate.weights: quantised when loaded, or 16 bits as the file has them; sampled from in bf16 whatever the CPU.
for weights in 16bit int8 nf4; do
    [ -n "$(text -p "the llama" -n 40 --temperature 0 "generate.weights=$weights")" ] &&
        run 0 generate "$model" -p "the llama" -n 4 --json "generate.weights=$weights" && grep -q '"precision": "bf16"' out
    tell "$weights weights are sampled from" $?
    batch_is_each --temperature 0 --max-batch 3 "generate.weights=$weights"
    tell "three prompts at once from $weights weights have the texts of each alone" $?
done
run 0 generate "$model" -p "the llama" -n 4 --json generate.weights=int8 generate.precision=fp32 && grep -q '"precision": "fp32"' out
tell "int8 weights are sampled from in fp32 too" $?
run 2 generate "$model" -p "the llama" generate.weights=int4 && one_error && says 'one of auto, 16bit, int8, nf4'
tell "weights of a kind there is not are a usage error" $?
copies() { run 0 generate "$model" -p "the" -n 40 --samples 4 --temperature 1 && [ "$(awk 'BEGIN { RS = "\n---\n" } !seen[$0]++' out | grep -c the)" -ge 1 ] && [ "$(awk 'BEGIN { RS = "\n---\n" } { sub(/\n$/, "") } !seen[$0]++ { n++ } END { print n }' out)" -eq 4 ]; }
copies
tell "copies of a prompt are sampled apart" $?

streamed() { # one prompt is streamed, several are not; the bytes are the same
    printf 'the llama\ngrass\n' >two
    text -p "the llama" -n 60 --temperature 0 >streamed && run 0 generate "$model" -f two -n 60 --temperature 0 &&
        awk 'BEGIN { RS = "\n---\n"; ORS = "" } NR == 1 { print }' out | cmp - streamed
}
streamed
tell "streamed bytes are those of the whole text" $?

json() { run 0 generate "$model" --json -n 20 "$@"; }
parses() {
    if command -v jq >/dev/null; then jq -e '.generations | length == 7 and all(.[]; (.tokens | length) <= 20 and .finish_reason != null)' out >/dev/null
    else perl -MJSON::PP -e 'my $r = decode_json(join "", <STDIN>); exit !(@{$r->{generations}} == 7)' <out; fi
}
json -f prompts && [ "$(wc -l <out)" -eq 1 ] && parses
tell "--json is one JSON object with every prompt" $?
json -p 'a "quoted\" \ prompt' && [ "$(wc -l <out)" -eq 1 ] && grep -qF '"prompt": "a \"quoted\\\" \\ prompt"' out
tell "--json escapes what it quotes" $?
reason() { sed -nE 's/.*"finish_reason": "([^"]*)".*/\1/p' out; }
json -p "the" --temperature 0 && [ "$(reason)" = length ]
tell "a continuation of the asked length ends for its length" $?
run 0 generate "$model" --json -p "the" --temperature 0 -n 500 generate.stop='["zzzz"]' && [ "$(reason)" = context ] || [ "$(reason)" = stop-token ]
tell "a longer one ends at the context or at EOS" $?

greedy=$(text -p "the llama" -n 50 --temperature 0)
continuation=${greedy#the llama}
stop=${continuation:12:3}
expected=${continuation%%"$stop"*}
stops() { [ -n "$expected" ] && [ "$(text -p "the llama" -n 50 --temperature 0 --stop "$stop")" = "the llama$expected" ]; }
stops
tell "a stop text ends the continuation and is not shown ('$stop')" $?
json -p "the llama" --temperature 0 -n 50 --stop "$stop" && [ "$(reason)" = stop-text ] && ! grep -qF "$stop\", \"tokens" out
tell "and is the reason given" $?
# A document ends with EOS: sampled long enough, one comes; what follows it is another document's.
json -p "the" -n 60 --samples 40 --temperature 1 && grep -q '"finish_reason": "stop-token"' out && ! grep -oE '"tokens": \[[^]]*\]' out | grep -qw 257
tell "EOS ends a continuation and is no part of it" $?

run 3 generate "$model" -p "the llama walks" -n 5 --max-sequence 10 && one_error && says 'the prompt has 16 tokens; with max_sequence 10 there is no room'
tell "a prompt longer than max_sequence is refused with both lengths" $?
run 3 generate "$model" -p "$(head -c 100 text.txt)" -n 5 && one_error && says 'has 101 tokens'
tell "a prompt longer than the model's context is refused" $?
run 2 generate "$model" -p a --max-sequence 1 && one_error
tell "a max_sequence without room is a usage error" $?
run 2 generate "$model" -p a --temperature -1 && one_error && says 'temperature'
tell "a temperature below 0 is a usage error" $?
timeout 20 "$cria" generate "$model" -p a >/dev/full 2>err; [ $? -eq 1 ] && one_error
tell "a text that cannot be written is an error" $?

# ---- many prompts, many samples ----

printf '%s\n' '{"prompt": "the llama"}' '{"prompt": "grass", "completion": "not asked for"}' '{"text": "hills"}' >prompts.jsonl
jsonl() { run 0 generate "$model" --jsonl -f prompts.jsonl -n 20 --samples 3 --precision bf16 "$@" && cp out "lines.$#"; }
jsonl && [ "$(wc -l <out)" -eq 9 ] && [ "$(grep -c '"prompt":"hills"' out)" -eq 3 ] && [ "$(sed -nE 's/^\{"index":([0-9]+),"sample":([0-9]+),.*/\1\2/p' out | tr '\n' ' ')" = "00 01 02 10 11 12 20 21 22 " ]
tell "records of prompts are sampled three times each, a line for each, in order" $?
jsonl --max-batch 2 && cmp lines.0 lines.2
tell "with the same bits whatever is computed beside them" $?
logprobs() { # a log-probability for each token, and one for the stop token where there is one; their sum is logprob
    perl -ne '/"tokens":\[([^]]*)\]/; my @t = split /,/, $1; /"logprobs":\[([^]]*)\]/; my @l = split /,/, $1; /"logprob":([-0-9.e+]+)/; my ($all, $sum) = ($1, 0); $sum += $_ for @l;
        my $stop = /stop-token/ ? 1 : 0; exit 1 if @l != @t + $stop || abs($sum - $all) > 1e-4 || grep { $_ > 0 } @l' out
}
logprobs
tell "every token has its log-probability, the stop token too" $?
printf '%s\n' '{"messages": [{"role": "user", "content": "hi"}]}' >messages.jsonl
run 3 generate "$model" -f messages.jsonl && one_error && says 'messages.jsonl:1: ' && says 'give --chat'
tell "messages without --chat are refused with file and line" $?
printf '%s\n' '{"prompt": "a"}' '{"prompt": 3}' >bad.jsonl
run 3 generate "$model" -f bad.jsonl && one_error && says 'bad.jsonl:2: '
tell "a record that has no prompt is refused with file and line" $?
run 2 generate "$model" -p a --json --jsonl && one_error
tell "--json and --jsonl are two things" $?
precision() { run 0 generate "$1" -p a -n 3 --json "${@:2}" && sed -nE 's/.*"precision": "([a-z0-9]+)".*/\1/p' out; }
[ "$(precision "$model" --precision fp32)" = fp32 ] && [ "$(precision "$model" --precision bf16)" = bf16 ]
tell "generation computes in the precision that is asked for" $?

# ---- eval loss ----

loss() { run 0 eval loss "$@" --json; }
is() { # KEY VALUE TOLERANCE
    awk -v found="$(json_number "$1" out)" -v wanted="$2" -v bound="$3" 'BEGIN { d = found - wanted; if (d < 0) d = -d; if (found == "" || d > bound) { print "found", found, "expected", wanted; exit 1 } }'
}
# All weights zero: every token has probability 1/V. llama2.c's file: 7 int32 (dim, ffn_dim, layers, heads, KV heads,
# vocabulary, context), then fp32.
{
    printf '\x08\0\0\0\x10\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\0\0\x02\x01\0\0\x40\0\0\0'
    head -c $(((258 * 8 + 8 + 4 * 8 * 8 + 8 + 3 * 8 * 16 + 8 + 64 * 8) * 4)) /dev/zero
} >zero.bin
size=$(wc -c <text.txt)
loss zero.bin text.txt --tokenizer bytes && is loss 5.552959584921617 1e-6 && is perplexity 258 1e-3 && is tokens "$size" 0 && is bits_per_byte 8.011227255423254 1e-6
tell "a uniform model's loss is ln V, over every byte" $?
loss zero.bin text.txt --tokenizer bytes --window 64 --score last-half && is loss 5.552959584921617 1e-6 && is tokens $(((size + 1) / 64 * 31)) 0
tell "and over the last half of every window" $?
head -c 1 text.txt >one.txt && loss zero.bin one.txt --tokenizer bytes && is tokens 1 0
tell "a text of one token is scored" $?
: >empty.txt
run 3 eval loss zero.bin empty.txt --tokenizer bytes && one_error && says 'too few'
tell "an empty text is refused" $?
run 3 eval loss zero.bin one.txt --tokenizer bytes --score last-half && one_error && says 'too few'
tell "a text shorter than a window has no last half" $?
run 2 eval loss zero.bin text.txt --tokenizer bytes --window 65 && one_error && says '2 to 64'
tell "a window beyond the context is a usage error" $?
# The run's own figure: its loss falls below the uniform model's.
loss "$model" text.txt && awk -v l="$(json_number loss out)" 'BEGIN { exit !(l < 3 && l > 0) }'
tell "training has lowered the loss" $?

# stories260K by transformers 4.57.6 (torch 2.13.0) and sentencepiece 0.2.3: tests/golden/eval_loss.py on make_text's
# 30 lines, window 64. Its fp32 logits and cria's differ in rounding: 1e-6.
stories=$root/../shared/data/stories260K
if [ -e "$stories/stories260K.bin" ]; then
    make_text golden.txt 30
    for tokenizer in tok512.bin tok512.model; do
        loss "$stories/stories260K.bin" golden.txt --tokenizer "$stories/$tokenizer" --window 64 && is loss 4.216028789 1e-6 && is tokens 1022 0 && is bits_per_byte 3.506067450 1e-6
        tell "stories260K's loss with $tokenizer is transformers'" $?
    done
    loss "$stories/stories260K.bin" golden.txt --tokenizer "$stories/tok512.bin" --window 64 --score last-half && is loss 4.282654033 1e-6 && is tokens 465 0
    tell "and its loss over last halves" $?
else
    skip "$stories is absent"
fi
finish
