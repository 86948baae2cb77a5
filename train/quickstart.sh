#!/usr/bin/env bash
# make quickstart: from text to a Llama that writes, and prefers, in minutes. The text is WordNet's glosses and examples (Debian's
# wordnet-base), one entry a line: "dog (noun): a member of the genus Canis …; "the dog barked all night"".
set -euo pipefail
cd "$(dirname "$0")/.."
cria=${CRIA:-./cria}
wordnet=${WORDNET:-/usr/share/wordnet}
data=runs/quickstart-data
run=runs/quickstart

say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
show() { printf '  $ %s\n' "$*" >&2; }

mkdir -p "$data"
if [ ! -s "$data/wordnet.txt" ]; then
    say "1. Text: the glosses of WordNet"
    # A synset's line: offset, file, kind, number of words (hexadecimal), word, id, … | gloss. Licence lines begin with spaces.
    awk -F' \\| ' '
        BEGIN { kind["n"] = "noun"; kind["v"] = "verb"; kind["a"] = kind["s"] = "adjective"; kind["r"] = "adverb" }
        /^ / { next }
        { split($1, field, " "); word = field[5]; gsub("_", " ", word); sub(/\([a-z]+\)$/, "", word)
          gloss = $2; sub(/ +$/, "", gloss)
          print word " (" kind[field[3]] "): " gloss }
    ' "$wordnet"/data.noun "$wordnet"/data.verb "$wordnet"/data.adj "$wordnet"/data.adv >"$data/wordnet.txt.tmp"
    mv "$data/wordnet.txt.tmp" "$data/wordnet.txt"
fi
printf '  %s entries, %s bytes\n' "$(wc -l <"$data/wordnet.txt")" "$(wc -c <"$data/wordnet.txt")" >&2

if [ ! -s "$data/tokenizer.json" ]; then
    say "2. Tokenizer: byte-level BPE, learned from it"
    show cria tokenizer train --vocab-size 2048 -o "$data" "$data/wordnet.txt"
    "$cria" tokenizer train --vocab-size 2048 -o "$data" "$data/wordnet.txt" >&2
fi

say "3. Training (Ctrl-C saves; the same command goes on)"
show cria pretrain configs/quickstart.yaml
"$cria" pretrain configs/quickstart.yaml

say "4. It writes"
for prompt in "dog (noun):" "music (noun):" "to"; do
    printf '\n' >&2
    "$cria" generate "$run" -p "$prompt" -n 60 --temperature 0.7 --seed 7 | sed -n '1,2p'
    printf '\n'
done

if [ ! -s "$data/questions.jsonl" ]; then
    say "5. Questions and answers about words, of WordNet too"
    # Each entry asks for one thing: its definition, a sentence that uses it, or another word for it.
    awk -F' \\| ' '
        function text(s) { gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); return s }
        function put(question, answer) { printf "{\"prompt\": \"%s\", \"completion\": \"%s\"}\n", text(question), text(answer) }
        BEGIN { kind["n"] = "noun"; kind["v"] = "verb"; kind["a"] = kind["s"] = "adjective"; kind["r"] = "adverb"; digits = "0123456789abcdef" }
        /^ / { next }
        { split($1, field, " "); word = field[5]; other = field[7]
          words = 16 * (index(digits, substr(field[4], 1, 1)) - 1) + index(digits, substr(field[4], 2, 1)) - 1
          gsub("_", " ", word); gsub("_", " ", other); sub(/\([a-z]+\)$/, "", word); sub(/\([a-z]+\)$/, "", other)
          gloss = $2; sub(/ +$/, "", gloss); example = ""
          if (match(gloss, /"[^"]+"/)) example = substr(gloss, RSTART + 1, RLENGTH - 2)
          sub(/; ".*/, "", gloss)
          if (NR % 3 == 0 && example != "") put("Use " word " in a sentence.", example)
          else if (NR % 3 == 1 && words > 1) put("Give a synonym of " word ".", other)
          else put("Define the " kind[field[3]] " " word ".", gloss) }
    ' "$wordnet"/data.noun "$wordnet"/data.verb "$wordnet"/data.adj "$wordnet"/data.adv >"$data/questions.jsonl.tmp"
    mv "$data/questions.jsonl.tmp" "$data/questions.jsonl"
fi

# Answered by MODEL in the form that the adapter learns.
ask() { # MODEL [flags]
    for question in "Define the noun dog." "Use walk in a sentence." "Give a synonym of happy."; do
        printf '  %s\n  -> ' "$question"
        printf 'Question: %s\nAnswer:' "$question" | "$cria" generate "$1" -p "$(cat)" -n 40 --temperature 0 2>/dev/null | tail -n +2 | head -n 1
        printf '\n'
    done
}

say "6. Three questions, before it has learned to answer"
ask "$run"

say "7. LoRA: an adapter of a sixth of its size learns to answer (the Llama itself stays as it is)"
show cria sft configs/quickstart_sft.yaml
"$cria" sft configs/quickstart_sft.yaml

say "8. The same questions, after"
ask "$run-sft"

# Pairs of a word's first definition and that of another word of the same kind. Every 20th word is held out: with HELD=1
# both words are of these, else neither.
make_pairs() { # HELD N
    awk -v held="$1" -v n="$2" '
        function quote(s) { gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); return s }
        function random(n) { seed = (seed * 16807) % 2147483647; return seed % n }
        { if ((NR % 20 == 0) != held) next
          cut = index($0, "): "); words++; word[words] = substr($0, 1, cut + 1); kind[words] = word[words]
          sub(/.*\(/, "", kind[words]); meaning[words] = substr($0, cut + 3); sub(/;.*/, "", meaning[words]) }
        END { for (seed = 7; made < n;) {
                a = 1 + random(words); b = 1 + random(words)
                if (kind[a] != kind[b] || meaning[a] == meaning[b]) continue
                made++
                printf "{\"prompt\": \"%s\", \"chosen\": \" %s\", \"rejected\": \" %s\"}\n", quote(word[a]), quote(meaning[a]), quote(meaning[b])
        } }' "$data/wordnet.txt"
}
if [ ! -s "$data/pairs.jsonl" ]; then
    make_pairs 1 500 >"$data/pairs-held-out.jsonl"
    make_pairs 0 12000 >"$data/pairs.jsonl.tmp"
    mv "$data/pairs.jsonl.tmp" "$data/pairs.jsonl"
fi

say "9. Preferences: a word's own definition rather than another word's (DPO)"
show cria eval pairs $run $data/pairs-held-out.jsonl --template plain
"$cria" eval pairs "$run" "$data/pairs-held-out.jsonl" --template plain
show cria dpo configs/quickstart_dpo.yaml
"$cria" dpo configs/quickstart_dpo.yaml
show cria eval pairs $run-dpo $data/pairs-held-out.jsonl
"$cria" eval pairs "$run-dpo" "$data/pairs-held-out.jsonl"
printf '  and by its reward, against the model it began as:\n' >&2
show cria eval pairs $run-dpo $data/pairs-held-out.jsonl --reference $run
"$cria" eval pairs "$run-dpo" "$data/pairs-held-out.jsonl" --reference "$run"

say "What next"
cat >&2 <<END
  cria generate $run -p "river (noun):" -n 80      another word
  cria chat $run-sft                               ask it yourself
  cria merge $run-sft my-assistant                 Llama and adapter made one model
  cria eval loss $run README.md --window 128      its loss on other text
  cria inspect $run                                what is in the checkpoint
  cria pretrain configs/quickstart.yaml train.steps=3000   train on
  cria export --format hf $run my-model            for transformers
  cria help                                        everything else
END
