#!/usr/bin/env bash
# cria rejection: the best of K is kept, whoever scores; a run that is killed ends with the same files; programs that
# misbehave are told of and ended.
. "$(dirname "$0")/e2e.bash"
cd "$scratch" || exit 1

make_folder own
(cd own && run 0 pretrain config.yaml train.steps=80)
tell "a model is trained" $?
printf '%s\n' "the llama" "small birds" "the llama" "green hills" "old stone" "bright" >prompts.txt # one occurs twice
cat >config.yaml <<'END'
output: best
model: {base: own/run}
generate: {max_new_tokens: 24, temperature: 1, top_p: 1, precision: bf16}
rejection: {prompts: prompts.txt, samples: 6, chunk: 2, reward: regex, pattern: "[bcdfg][aeiou]"}
END
reject() { run "$1" rejection config.yaml "${@:2}"; }
files() { (cd "$1" && cksum samples.jsonl sft.jsonl pairs.jsonl statistics.json); }
lines() { wc -l <"$1"; }
numbers() { sed -nE "s/.*\"$1\":(-?[0-9.e+-]+).*/\1/p" "$2"; } # the last on each line

reject 0 --json && [ "$(json_number prompts out)" -eq 5 ] && [ "$(json_number answers out)" -eq 30 ] && [ "$(lines best/samples.jsonl)" -eq 6 ]
tell "every prompt is answered six times, and once" $?
files best >was
run 3 sft config.yaml output=best data.train=best/sft.jsonl template.name=plain && one_error && says 'best is a folder of cria rejection, and this is cria sft' && files best | cmp - was && grep -q 'of cria rejection$' best/config.yaml
tell "another command does not write into its folder" $?
mean_of_scores() { # of all answers, as statistics.json has it for k = 1, and the mean of the best for k = 6
    grep -oE '"score":[0-9.]+|"index":[0-9]+' "best/samples.jsonl" | awk -F: '
        $1 ~ /index/ { if (n) best += top; top = 0; next }
        { sum += $2; n++; if ($2 > top) top = $2 }
        END { best += top; printf "%.6f %.6f\n", sum / n, best / 5 }'
}
read -r mean top <<<"$(mean_of_scores)"
[ "$(json_number mean_score best/statistics.json | awk '{ printf "%.6f", $1 }')" = "$mean" ] && [ "$(json_number mean_best best/statistics.json | awk '{ printf "%.6f", $1 }')" = "$top" ] &&
    [ "$(grep -o '"maximum": *[0-9.]*' best/statistics.json | sed -n '1s/.*: *//p;6s/.*: *//p' | awk '{ printf "%.6f ", $1 }')" = "$mean $top " ]
tell "the statistics are the scores': one answer's mean, and the best of all six" $?
paste -d' ' <(numbers score_chosen best/pairs.jsonl) <(numbers score_rejected best/pairs.jsonl) >scores && [ -s scores ] && awk '$1 <= $2 { exit 1 }' scores
tell "the chosen answer is better than the rejected one" $?

reject 0 && [ "$(lines best/sft.jsonl)" -eq 5 ] && reject 0 rejection.keep=3 && says 'rejection.keep' && [ "$(lines best/sft.jsonl)" -gt 5 ] && [ "$(lines best/sft.jsonl)" -le 15 ] && [ -z "$(sort best/sft.jsonl | uniq -d)" ] &&
    numbers score best/sft.jsonl | sort >kept && grep -oE '"text":"|"score":[0-9.]+|"index"' best/samples.jsonl | awk -F: '/index/ { n = 0 } /score/ { print $2 }' | sort -u >all && [ -z "$(comm -23 <(sort -u kept) all)" ] &&
    paste -d' ' <(numbers score_chosen best/pairs.jsonl) <(numbers score_rejected best/pairs.jsonl) | awk '$1 <= $2 { exit 1 }' && [ "$(lines best/pairs.jsonl)" -ge 5 ]
tell "of each prompt the three best are kept, none twice; the k-th best and the k-th worst are pairs" $?
reject 0

# ---- killed and gone on with ----

files best >whole
cp -r best cut
head -c $(($(wc -c <cut/samples.jsonl) * 3 / 5)) best/samples.jsonl >cut/samples.jsonl && rm cut/sft.jsonl cut/pairs.jsonl cut/statistics.json
reject 0 output=cut && files cut | cmp - whole
tell "a file that ends in the middle of a line is gone on with behind its last chunk" $?
printf '{"cria":"rej' >cut/samples.jsonl && reject 0 output=cut && files cut | cmp - whole
tell "and one that ends in its first line is begun again" $?
killed() { # a program that takes its time, and SIGKILL at whatever moment: the kills must come before the end
    local kills=0 try
    for try in 1 2 3 4 5 6 7 8; do
        timeout -s KILL "0.$((3 + try))" "$cria" rejection config.yaml output=slow rejection.chunk=1 rejection.reward=program \
            rejection.program='sleep 0.15; awk "{ print length(\$0) % 7 }"' >/dev/null 2>&1 </dev/null && break
        kills=$((kills + 1))
    done
    run 0 rejection config.yaml output=slow rejection.chunk=1 rejection.reward=program rejection.program='sleep 0.15; awk "{ print length(\$0) % 7 }"' &&
        run 0 rejection config.yaml output=calm rejection.chunk=1 rejection.reward=program rejection.program='sleep 0.15; awk "{ print length(\$0) % 7 }"' &&
        files calm >calm.sums && files slow | cmp - calm.sums && [ $kills -ge 1 ]
}
killed 2>/dev/null
tell "a run that is killed again and again ends with the files of one that is not" $?
interrupted() {
    local pid status
    "$cria" rejection config.yaml output=stopped rejection.reward=program rejection.program='sleep 30' rejection.timeout=60 >"$scratch/out.txt" 2>"$scratch/err" </dev/null &
    pid=$!
    for _ in $(seq 100); do [ -s stopped/samples.jsonl ] && break || sleep 0.05; done
    sleep 0.3
    kill -TERM $pid
    wait $pid
    status=$?
    [ $status -eq 130 ] && says 'of 5 prompts are done; the same command goes on'
}
interrupted
tell "a signal ends it with status 130, the scoring program with it" $?
sleep 0.2
! pgrep -g 0 -f 'sleep 30' >/dev/null
tell "and nothing of it is left running" $?

# ---- what a run depends on ----

reject 3 generate.seed=2 && one_error && says 'generate.seed' && files best | cmp - whole
tell "another seed in the same folder is refused, by its name" $?
reject 2 rejection.samples=7 && one_error && says 'rejection.samples'
tell "another number of answers too" $?
cp prompts.txt other.txt && echo "more" >>other.txt
reject 2 rejection.prompts=other.txt && one_error && says 'rejection.prompts'
tell "and other prompts" $?
echo "more" >>prompts.txt && reject 3 && one_error && says 'number of prompts' && sed -i '$d' prompts.txt
tell "even under the same name" $?
reject 0 rejection.max_batch=1 output=single && cmp single/sft.jsonl best/sft.jsonl && cmp single/samples.jsonl best/samples.jsonl
tell "how many are computed at once changes nothing" $?
mkdir foreign && echo mine >foreign/thesis.txt
reject 3 output=foreign && one_error && says 'thesis.txt' && [ "$(cat foreign/thesis.txt)" = mine ] && [ "$(ls foreign)" = thesis.txt ]
tell "a folder that is not a run's is refused and left alone" $?

# ---- rules ----

reject 0 output=short rejection.reward=length generate.stop='[" "]' && paste -d' ' <(numbers score_chosen short/pairs.jsonl) <(numbers score_rejected short/pairs.jsonl) >scores && [ -s scores ] && awk '$1 > 0 || $1 <= $2 { exit 1 }' scores
tell "the rule of length prefers the shorter" $?
reject 0 output=word rejection.reward=contains rejection.word=a && grep -q '"score":0' word/samples.jsonl && reject 0 output=regex rejection.pattern='[aeiou]s' && grep -q '"score":1' regex/samples.jsonl && grep -q '"score":0' regex/samples.jsonl
tell "the rules of a word and of an expression" $?
reject 0 output=flat rejection.pattern=QQQQ && says 'warning: all answers to a prompt score the same' && reject 0 output=one rejection.pattern=QQQQ rejection.samples=1 && ! says 'score the same'
tell "answers that all score the same are told of" $?
reject 2 output=bad rejection.reward=regex rejection.pattern='s(' && one_error && says 'rejection.pattern' && [ ! -e bad ]
tell "an expression that is none is a usage error" $?
printf '%s\n' '{"question": "6 + 6?", "answer": "6 + 6 = <<6+6=12>>12\n#### 12"}' '{"question": "7?", "answer": "no idea"}' >sums.jsonl
reject 3 output=sums rejection.prompts=sums.jsonl rejection.columns='prompt=question,completion=answer' rejection.reward=number && one_error && says 'sums.jsonl:2 has no answer with a number'
tell "the rule of numbers wants a number in the record's answer" $?
sed -i '2d' sums.jsonl
reject 0 output=sums2 rejection.prompts=sums.jsonl rejection.columns='prompt=question,completion=answer' rejection.reward=number && [ "$(lines sums2/sft.jsonl)" -eq 1 ]
tell "GSM8K's records are understood" $?
reject 0 output=strict rejection.reward=length rejection.least_score=0 && [ "$(lines strict/sft.jsonl)" -eq 0 ]
tell "an answer below the least score is not written" $?
reject 2 output=none rejection.reward=contains && one_error && says 'rejection.word'
tell "a rule without its word is a usage error" $?
printf '%s\n' '{"messages": [{"role": "user", "content": "say the"}, {"role": "assistant", "content": "no"}]}' >chat.jsonl
reject 0 output=chat rejection.prompts=chat.jsonl template.name=plain && grep -q '^{"messages":\[{"role":"user","content":"say the"},{"role":"assistant","content":' chat/sft.jsonl && ! grep -q '"content":"no"' chat/sft.jsonl
tell "a conversation is answered by the template, without its own answer" $?
reject 3 output=plain rejection.prompts=chat.jsonl && one_error && says 'chat.jsonl:1: ' && says 'template'
tell "without a template it is refused with file and line" $?

# ---- rounds ----

cat >second.yaml <<'END'
output: second
model: {base: own/run}
generate: {max_new_tokens: 24, temperature: 1, top_p: 1, precision: bf16, seed: 9}
rejection: {prompts: prompts.txt, samples: 1, reward: regex, pattern: "[bcdfg][aeiou]", earlier: [best]}
END
run 0 rejection second.yaml --json && awk -v a="$(json_number mean_best second/statistics.json)" -v b="$(json_number mean_best best/statistics.json)" 'BEGIN { exit !(a >= b) }' && [ "$(json_number best_from_earlier out)" -ge 1 ] && [ "$(json_number answers out)" -eq 5 ]
tell "an earlier round's best answers compete: no prompt's best is worse" $?
run 3 rejection second.yaml output=third 'rejection.earlier=[own]' && one_error && says 'own is not the folder of a round'
tell "a folder that is no round's is refused" $?

# ---- programs ----

program() { # STATUS PROGRAM [options]
    rm -rf programs
    reject "$1" output=programs rejection.reward=program rejection.program="$2" rejection.chunk=100 "${@:3}"
}
program 0 'sed "s/.*/0.5/"' && [ "$(json_number mean_score programs/statistics.json | awk '{ print $1 * 2 }')" -eq 1 ]
tell "a program's scores are taken" $?
program 0 'awk "{ print NR } END { printf \"\" }" | sed "s/^/ /; s/$/\r/"' && grep -q '"score":30' programs/samples.jsonl
tell "white space around a number does not matter" $?
program 0 'yes 1 | head -n 30'
tell "a program need not read what it is told" $?
program 1 'cat >/dev/null; echo 1; exit 7' && one_error && says 'status 7 after 1 of 30 scores'
tell "a program's bad end is told with its status" $?
program 1 'kill -SEGV $$' && one_error && says 'signal 11'
tell "or its signal" $?
program 3 'sed "s/.*/1/" | head -n 29' && one_error && says '29 scores for 30 answers'
tell "too few scores are refused" $?
program 3 'sed "s/.*/1/"; echo 1' && one_error && says 'more than a line for each'
tell "too many are refused" $?
program 3 'sed "s/.*/nan/"' && one_error && says "its line 1 is 'nan'"
tell "NaN is no score" $?
program 3 'sed "s/.*/good/"' && one_error && says "its line 1 is 'good'; a score"
tell "a word is no score" $?
program 3 'sed "s/.*//"' && one_error && says "its line 1 is ''"
tell "nothing is no score" $?
program 3 'head -c 100000 /dev/zero | tr "\0" 1' && one_error && says 'longer than 4096 bytes'
tell "a line without an end is refused" $?
program 1 'sleep 20' rejection.timeout=0.5 && one_error && says 'for 0.5 s it has neither taken a line nor given a score'
tell "a program that hangs is ended" $?
program 1 'sed "s/.*/1/"; exec >&-; sleep 20' rejection.timeout=0.5 && one_error
tell "one that does not end too" $?
program 1 'no-such-program-anywhere 2>/dev/null' && one_error && says 'status 127'
tell "a program that is not there is told of" $?
finish
