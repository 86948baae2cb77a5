#!/usr/bin/env bash
# bf16 trains as well as fp32: the same runs, the same seeds, on tiny Shakespeare and on a sample of RedPajama's seven
# sources; losses at the end within 1 %, both curves in one plot, which goes to stdout and to bf16_trains.md. Some
# minutes; part of make soak.
#   DATA=../shared/data/text (skipped where it is absent)   WORKS="shakespeare redpajama"   SHARE=1 (of the steps)
. "$(dirname "$0")/e2e.bash"
unset CRIA_THREADS OMP_WAIT_POLICY # nothing else runs
data=${DATA:-../shared/data/text} works=${WORKS:-shakespeare redpajama} share=${SHARE:-1} output=${OUTPUT:-bf16_trains.md}
[ ! -d "$data" ] || data=$(cd "$data" && pwd)
: >"$scratch/report"

shakespeare() { # PRECISION
    local n
    n=$(steps_of 2000)
    LIMIT=1800 run 0 pretrain configs/tiny_shakespeare_bytes.yaml output="$scratch/shakespeare-$1" precision="$1" \
        data.train="$data/tinyshakespeare.txt" train.steps="$n" optim.warmup=0.05 train.validate_every=0
}
redpajama() { # PRECISION
    local n
    n=$(steps_of 300)
    LIMIT=1800 run 0 pretrain output="$scratch/redpajama-$1" precision="$1" model.dim=192 model.n_layers=4 model.n_heads=6 \
        model.n_kv_heads=2 tokenizer.path=bytes "data.train=[{path: $data/redpajama/*/*.jsonl, field: text}]" data.validation=0.01 \
        data.cache="$scratch/redpajama-cache" optim.lr=1e-3 optim.warmup=0.05 train.steps="$n" train.context=256 \
        train.tokens_per_batch=4096 train.tokens_per_microbatch=4096 train.validate_every=0 train.validation_tokens=65536
}
steps_of() { awk -v n="$1" -v share="$share" 'BEGIN { n = int(n * share); print (n > 2) ? n : 2 }'; }

# "step loss" of every step; the last validation loss; the mean loss of the last tenth of the steps
losses() { sed -nE 's/.*"step": *([0-9]+).*"loss": *([0-9.e+-]+).*/\1 \2/p' "$1/metrics.jsonl"; }
validation() { sed -nE 's/.*"eval_loss": *([0-9.e+-]+).*/\1/p' "$1/metrics.jsonl" | tail -n 1; }
last_tenth() { losses "$1" | awk '{ x[NR] = $2 } END { for (i = NR - int((NR + 9) / 10) + 1; i <= NR; i++) { s += x[i]; n++ } if (n) print s / n }'; }
within() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > 0 && b > 0 && b / a < 1.01 && b / a > 0.99) }'; }

# Both curves: a column shows the mean loss of its steps, . for fp32, o for bf16, @ where they meet.
plot() { # TITLE FOLDER FOLDER
    awk -v title="$1" -v width=72 -v height=16 '
        function row(value,   r) { r = int((value - low) / (high - low) * height); return r < 0 ? 0 : r >= height ? height - 1 : r }
        FNR == 1 { curve++ }
        { loss[curve, FNR] = $2; n[curve] = FNR; if ($1 > last) last = $1 }
        END {
            low = 1e9; high = -1e9
            for (c = 1; c <= 2; c++) for (i = 1; i <= n[c]; i++) {
                column = int((i - 1) * width / n[c]); sum[c, column] += loss[c, i]; count[c, column]++
            }
            for (c = 1; c <= 2; c++) for (x = 0; x < width; x++) if (count[c, x]) {
                mean[c, x] = sum[c, x] / count[c, x]
                if (mean[c, x] < low) low = mean[c, x]
                if (mean[c, x] > high) high = mean[c, x]
            }
            if (high <= low) high = low + 1
            for (x = 0; x < width; x++) for (c = 1; c <= 2; c++) if (count[c, x]) {
                r = row(mean[c, x]); mark = c == 1 ? "." : "o"
                cell[r, x] = (cell[r, x] == "" || cell[r, x] == mark) ? mark : "@"
            }
            print title ": . fp32, o bf16, @ both"
            for (r = height - 1; r >= 0; r--) {
                line = ""
                for (x = 0; x < width; x++) line = line (cell[r, x] == "" ? " " : cell[r, x])
                sub(/ +$/, "", line)
                label = r == height - 1 ? sprintf("%7.3f", high) : r == 0 ? sprintf("%7.3f", low) : "       "
                print label " |" line
            }
            line = ""; for (x = 0; x < width; x++) line = line "-"
            printf "        +%s\n         1%*d\n", line, width - 1, last
        }' <(losses "$2") <(losses "$3")
}
compare() { # WORK
    local a=$scratch/$1-fp32 b=$scratch/$1-bf16
    {
        echo
        echo '```'
        plot "$1" "$a" "$b"
        echo '```'
        echo
        printf '| %s | fp32 | bf16 |\n|---|---|---|\n' "$1"
        printf '| validation loss at the end | %.4f | %.4f |\n' "$(validation "$a")" "$(validation "$b")"
        printf '| training loss, mean of the last tenth | %.4f | %.4f |\n' "$(last_tenth "$a")" "$(last_tenth "$b")"
        printf '| seconds of training | %s | %s |\n' "$(seconds "$1-fp32")" "$(seconds "$1-bf16")"
    } | tee -a "$scratch/report"
}
seconds() { cat "$scratch/$1.seconds"; }
train() { # WORK PRECISION
    local start=$SECONDS
    "$1" "$2" || return 1
    echo $((SECONDS - start)) >"$scratch/$1-$2.seconds"
}

for work in $works; do
    case $work in shakespeare) needed=$data/tinyshakespeare.txt ;; *) needed=$data/redpajama ;; esac
    if [ ! -e "$needed" ]; then
        skip "$work: no $needed"
        continue
    fi
    train "$work" fp32 && train "$work" bf16
    tell "$work trains in fp32 and in bf16" $?
    [ -e "$scratch/$work-bf16.seconds" ] || continue
    compare "$work"
    within "$(validation "$scratch/$work-fp32")" "$(validation "$scratch/$work-bf16")"
    tell "$work: the validation loss of bf16 is within 1 % of fp32's" $?
    within "$(last_tenth "$scratch/$work-fp32")" "$(last_tenth "$scratch/$work-bf16")"
    tell "$work: the training loss of bf16 is within 1 % of fp32's at the end" $?
done
[ ! -s "$scratch/report" ] || { echo "# bf16 beside fp32: the same runs, the same seeds" && cat "$scratch/report"; } >"$output"
finish
