#!/usr/bin/env bash
# cria data lint and cria data show: every kind of finding with its file and line, exit statuses, what is shown.
set -uo pipefail
. "$(dirname "$0")/e2e.bash"
tokenizer=$PWD/tests/golden/tokenizer_chat.json
cd "$scratch" || exit 1

say() { printf '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "%s"}]}\n' "$1" "$2"; }
{ say one "The first answer." && say two "The second answer." && echo && say three "The third."; } >good.jsonl
{
    say one "The first answer."                                                                    # 1
    echo '{"messages": ['                                                                          # 2 malformed
    say one "The first answer."                                                                    # 3 duplicate
    say three ""                                                                                   # 4 empty answer
    echo '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}'      # 5 role order
    echo '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": false}]}' # 6 all masked
    say four "[INST] looks [/INST]"                                                                # 7 looks like template
    echo '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}' # 8 missing stop
    say five "$(printf 'long %.0s' {1..200})"                                                      # 9 overlong
    echo '{"tools": [{"name": "f"}], "prompt": "p", "completion": "c"}'                            # 10 tools
    echo '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "tool", "content": "c"}]}' # 11 no such role
    echo '{"prompt": "five", "completion": "The fifth.", "label": "maybe"}'                          # 12 odd label
} >bad.jsonl
printf '[\n  {"instruction": "a",\n   "output": "b"},\n  {"instruction": "]",\n   "output": "}\\"{"},\n  3\n]\n' >array.json
printf '[{"instruction": "a", "output": "b"}, {"instruction": "c", ' >cut.json

finds() { grep -qF -- "$1" "$scratch/out"; }
passes_good() { run 0 data lint "$tokenizer" good.jsonl --template llama3 && finds "3 records, 0 dropped" && finds "nothing to complain about"; }
refuses_bad() { run 3 data lint "$tokenizer" bad.jsonl --template llama3 --context 200 && one_error; }
names_lines() {
    for finding in "malformed: bad.jsonl:2:" "duplicate: bad.jsonl:3: the same tokens as bad.jsonl:1" "empty answer: bad.jsonl:4:" \
        "role order: bad.jsonl:5:" "all masked: bad.jsonl:6:" "looks like template: bad.jsonl:7:" "missing stop: bad.jsonl:8:" \
        "overlong: bad.jsonl:9:" "tools ignored: bad.jsonl:10:" "not in template: bad.jsonl:11:" "odd label: bad.jsonl:12:"; do
        finds "$finding" || { echo "not found: $finding"; return 1; }
    done
}
counts_json() {
    run 3 data lint "$tokenizer" bad.jsonl --template llama3 --context 200 --json &&
        for kind in malformed role_order unshowable overlong all_masked missing_stop empty_answer duplicate looks_like_template tools_ignored odd_label; do
            [ "$(json_number $kind "$scratch/out")" = 1 ] || { echo "$kind is not 1"; return 1; }
        done
}
drops_long() { sed -n 9p bad.jsonl >long.jsonl && cat good.jsonl >>long.jsonl && run 0 data lint "$tokenizer" long.jsonl --template llama3 --context 200 --overlong drop && finds "1 dropped"; }
cuts_long() { run 0 data lint "$tokenizer" long.jsonl --template llama3 --context 200 --overlong truncate-right && finds "1 truncated" && finds "missing stop: long.jsonl:1:"; }
nothing_learned() { sed -n 6p bad.jsonl >masked.jsonl && run 3 data lint "$tokenizer" masked.jsonl --template llama3 && says "not one token"; }
no_record() { : >empty.jsonl && run 3 data lint "$tokenizer" empty.jsonl --template llama3 && says "no record"; }
reads_array() { run 3 data lint "$tokenizer" array.json --template alpaca && finds "3 records" && finds "malformed: array.json:6: record 3: " && ! finds "array.json:2:"; }
cut_array() { run 3 data lint "$tokenizer" cut.json good.jsonl --template plain && finds "malformed: cut.json:1: the file ends here" && finds "4 records"; }
every_prefix() { # a file cut anywhere is told, and nothing crashes
    for n in $(seq 1 3 90); do
        head -c "$n" array.json >prefix.json
        timeout 20 "$cria" data lint "$tokenizer" prefix.json --template plain >/dev/null 2>&1
        [ $? -eq 3 ] || { echo "cut at $n: not refused"; return 1; }
    done
}
any_threads() { # many batches, with findings in all of them; the order and the text of the report are the same
    for n in $(seq 1 1500); do
        sed "s/answer/answer $((n % 700))/" good.jsonl
        [ $((n % 7)) -ne 0 ] || cat bad.jsonl
    done >many.jsonl
    for threads in 1 2 5; do
        CRIA_THREADS=$threads run 3 data lint "$tokenizer" many.jsonl cut.json array.json --template llama3 --context 200 --overlong drop -n 100000 || return 1
        [ -e one ] || cp "$scratch/out" one
        cmp one "$scratch/out" || return 1
    done
    [ "$(grep -c "^malformed: many.jsonl" one)" -eq 214 ] && grep -q "duplicate: many.jsonl:8[0-9][0-9]*: the same tokens as" one
}
marks() { run 0 data show "$tokenizer" good.jsonl --template llama3 -n 1 && finds "good.jsonl:1  " && finds "«The first answer.<|eot_id|>»" && ! grep -q $'\033' "$scratch/out"; }
in_colour() { script -qec "TERM=xterm '$cria' data show '$tokenizer' good.jsonl --template llama3 -n 1" /dev/null >"$scratch/out" </dev/null && grep -q $'\033\[32m' "$scratch/out"; }
no_colour() { script -qec "NO_COLOR=1 TERM=xterm '$cria' data show '$tokenizer' good.jsonl --template llama3 -n 1" /dev/null >"$scratch/out" </dev/null && ! grep -q $'\033' "$scratch/out" && finds "«The"; }
lists() { run 0 data show "$tokenizer" good.jsonl --template llama3 -n 1 --tokens && grep -Eq '^ *0 +440 +0  <\|begin_of_text\|>$' "$scratch/out"; }
shows_prompt() { run 0 data show "$tokenizer" good.jsonl --template llama3 -n 1 --prompt && ! finds "first answer" && finds "assistant<|end_header_id|>"; }
ids_json() { run 0 data show "$tokenizer" good.jsonl --template llama3 -n 0 --json && [ "$(grep -c '"ids":\[440,' "$scratch/out")" -eq 3 ]; }
tells_date() {
    run 0 data show "$tokenizer" --template llama3 --date "2 Feb 2026" --jinja && says 'warning: template.date has no effect: template llama3 has no date' &&
        run 0 data show "$tokenizer" --template llama3.2 --date "2 Feb 2026" --jinja && ! says 'warning'
}
writes_jinja() { run 0 data show "$tokenizer" --template llama3.2 --date "2 Feb 2026" --jinja && finds "date_string = '2 Feb 2026'" && finds "add_generation_prompt"; }
renames() { echo '{"question": "q", "answer": "a"}' >qa.jsonl && run 3 data lint "$tokenizer" qa.jsonl --template llama3 && finds "keys are question, answer" && run 0 data lint "$tokenizer" qa.jsonl --template llama3 --columns prompt=question,completion=answer; }
no_template() { run 2 data lint "$tokenizer" good.jsonl && says "give --template NAME or --config FILE: .*no chat template"; }
wrong_template() { run 2 data lint "$tokenizer" good.jsonl --template lama3 && says "did you mean 'llama3'"; }
no_tokens() { run 0 data lint bytes good.jsonl --template chatml && says "tokens that the tokenizer lacks: <|im_start|>"; }

passes_good
tell "good data passes" $?
refuses_bad
tell "data with errors is refused" $?
names_lines
tell "every kind of finding has its file and line" $?
for promise in "counts_json:every kind is counted, in JSON" "drops_long:too long a record is dropped when asked, and counted" \
    "cuts_long:a truncated record, and its lost stop, are told" "nothing_learned:data of which nothing is learned is refused" \
    "no_record:data without a record is refused" "reads_array:a JSON array is read, element by element" \
    "cut_array:an array cut short is told, and the next file read" "every_prefix:a file cut short anywhere is told" \
    "any_threads:the report does not depend on the number of threads" "marks:what is learned is marked" "lists:tokens are listed" "shows_prompt:a prompt ends where the answer begins" \
    "ids_json:ids and weights as JSON" "writes_jinja:the template as Jinja, with its date" "tells_date:a date that the template does not have is told of" "renames:columns are renamed" \
    "no_template:without a template: wrong usage" "wrong_template:an unknown template: the nearest is offered" \
    "no_tokens:tokens that a template needs and the tokenizer lacks are told, and counted as training will"; do
    ${promise%%:*}
    tell "${promise#*:}" $?
done
if command -v script >/dev/null; then
    in_colour
    tell "on a terminal what is learned is green" $?
    no_colour
    tell "NO_COLOR is respected" $?
else
    skip "script is not here to stand for a terminal"
fi
finish
