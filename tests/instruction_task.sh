#!/usr/bin/env bash
# Instructions that ask for an answer in an exact form: stories260K, which was never given one, learns six forms through
# a LoRA adapter and the vocabulary beside it (its </s> is a token that no story has, so a frozen head could not stop).
# The targets, written before it ran: of the held-out prompts at least 95 % answered in the exact form asked for; of 200
# samples at least 99 % not empty and ended by themselves; all of it in less than two minutes. How many answers also have
# the word asked for is told beside them. Not a part of `make test`, which has a smaller one (e2e_instruction.sh).
# usage: [CRIA=build/cria] [STORIES=../shared/data/stories260K] [OUT=DIRECTORY] [INVENTED=3000] tests/instruction_task.sh
#        [key=value of cria sft …]
set -euo pipefail
cd "$(dirname "$0")/.."
least_form=95 least_ended=99 most_seconds=${MOST_SECONDS:-120}
cria=${CRIA:-$PWD/build/cria}
stories=${STORIES:-../shared/data/stories260K}
[ -e "$stories/stories260K.bin" ] || { echo "no stories260K in $stories"; exit 1; }
made=
[ -n "${OUT:-}" ] || made=$(mktemp -d)
trap '[ -z "$made" ] || rm -rf "$made"' EXIT
out=${OUT:-$made}
mkdir -p "$out"
export OMP_WAIT_POLICY=passive
begun=$SECONDS

for part in train test answers; do
    awk -v part=$part -v invented="${INVENTED:-3000}" -f tests/instruction_records.awk >"$out/$part.jsonl"
done
cat >"$out/sft.yaml" <<END
output: $out/tuned
precision: fp32
model: {base: $stories/stories260K.bin}
tokenizer: {path: $stories/tok512.model}
template: {name: ask, begin: "{bos}", user: {before: "", after: "\n"}, assistant: {before: "", after: "{eos}", stop: "{eos}"}}
lora: {rank: 16, alpha: 32, vocabulary: train}
data: {train: [{path: $out/train.jsonl}], validation: 0}
optim: {lr: 5.0e-3, schedule: cosine, warmup: 0.03, weight_decay: 0, final_lr_ratio: 0.1}
train: {epochs: 8, tokens_per_batch: 2048, tokens_per_microbatch: 2048, context: 128, checkpoint_every: 0}
END

# answer NAME MODEL ARGUMENTS…: an answer to each held-out prompt, as the model finds it likeliest
answer() {
    local name=$1
    shift
    "$cria" generate "$@" --chat -f "$out/test.jsonl" --jsonl --temperature 0 -n 40 >"$out/$name.jsonl" 2>"$out/$name.log" ||
        { tail -n 3 "$out/$name.log"; exit 1; }
    sed -E 's/.*"text":"(([^"\\]|\\.)*)".*/\1/' "$out/$name.jsonl" >"$out/$name.txt"
}
# "form right n": answers in the form asked for, and those that have the word too
count() {
    paste "$out/answers.jsonl" "$out/$1.txt" | awk -F '\t' '
        function fits(asked, got,   half) {
            if (asked == "Put it in brackets") return got ~ /^\[[a-z]+\]$/
            if (asked == "Ask where it is") return got ~ /^Where is the [a-z]+\?$/
            if (asked == "Say that it is big") return got ~ /^The [a-z]+ is big\.$/
            if (asked == "Say hello to it") return got ~ /^Hello, [a-z]+!$/
            if (asked == "Make a list of it") return got ~ /^- [a-z]+$/
            return split(got, half, " and ") == 2 && half[1] == half[2] && half[1] ~ /^[a-z]+$/
        }
        { form += fits($1, $3); right += $2 == $3; n++ }
        END { printf "%d %d %d\n", form, right, n }'
}

answer before "$stories/stories260K.bin" --tokenizer "$stories/tok512.model" template.name=ask 'template.begin={bos}' \
    $'template.user.after=\n' 'template.assistant.after={eos}' 'template.assistant.stop={eos}'
rm -rf "${out:?}/tuned"
"$cria" sft "$out/sft.yaml" "$@" 2>"$out/sft.log" || { tail -n 3 "$out/sft.log"; exit 1; }
answer after "$out/tuned"
head -n 50 "$out/test.jsonl" >"$out/some.jsonl"
"$cria" generate "$out/tuned" --chat -f "$out/some.jsonl" --samples 4 --temperature 1 -n 60 --seed 1 --jsonl >"$out/samples.jsonl" 2>"$out/samples.log" ||
    { tail -n 3 "$out/samples.log"; exit 1; }
ended=$(grep -c '"finish_reason":"stop-token"' "$out/samples.jsonl" || true)
empty=$(grep -c '"text":"",' "$out/samples.jsonl" || true)
samples=$(wc -l <"$out/samples.jsonl")
seconds=$((SECONDS - begun))

status=0
for when in before after; do
    read -r form right n < <(count $when)
    awk -v w="$when" -v f="$form" -v r="$right" -v n="$n" 'BEGIN { printf "%s: %5.1f %% of %d held-out prompts answered in the exact form, %5.1f %% with the word asked for\n", w, 100 * f / n, n, 100 * r / n }'
done
echo "of $samples samples at temperature 1 $ended ended by themselves, $empty are empty; $seconds s in all"
[ $((100 * form)) -ge $((least_form * n)) ] || { echo "  less than $least_form % are in the form"; status=1; }
[ "$samples" -eq 200 ] && [ $((100 * (ended - empty))) -ge $((least_ended * samples)) ] || { echo "  less than $least_ended % end by themselves with an answer"; status=1; }
[ "$seconds" -lt "$most_seconds" ] || { echo "  more than $most_seconds s"; status=1; }
exit $status
