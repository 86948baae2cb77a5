#!/usr/bin/env bash
# cria bench on a tiny shape: its JSON has what scripts rely on, the figures are possible, a step allocates nothing.
. "$(dirname "$0")/e2e.bash"
here=$PWD
cd "$scratch" || exit 1

shape=(model.dim=32 model.n_layers=2 model.n_heads=2 model.vocab_size=256 train.context=32 train.tokens_per_batch=128 train.tokens_per_microbatch=64)
LIMIT=200 run 0 bench "${shape[@]}" --steps 4 --seconds 0 --json
tell "a benchmark on random tokens needs no data" $?
positive() { awk -v x="$(json_number "$1" out)" 'BEGIN { exit !(x > 0) }'; }
for field in tokens_per_second flops_per_second peak_flops mfu peak_memory_bytes tokens_per_second_best copy_bytes_per_second \
    step_seconds update_seconds parameters activation_bytes loss; do
    positive $field
    tell "$field is there and positive" $?
done
[ "$(json_number tokens_per_step out)" -eq 128 ] && [ "$(json_number micro_batches out)" -eq 2 ] && [ "$(json_number steps out)" -eq 4 ]
tell "steps are made of the configured micro-batches" $?
[ "$(json_number allocated_bytes out)" -eq 0 ]
tell "a training step allocates nothing after the first" $?
awk -v m="$(json_number mfu out)" -v f="$(json_number flops_per_second out)" -v p="$(json_number peak_flops out)" \
    'BEGIN { d = m / (f / p); exit !(d < 1.000001 && d > 0.999999) }' # above 1 where something else ran beside the peak's measurement
tell "mfu is the share of the measured peak" $?
for field in fp32_product_flops_per_second read_bytes_per_second; do [ "$(grep -c "\"$field\"" out)" -eq 4 ] || break; done
tell "the machine is measured before, between and after the steps" $? # and the median
awk -v p="$(json_number parameters out)" -v t="$(json_number trained_parameters out)" -v m="$(json_number peak_memory_bytes out)" \
    -v e="$(json_number excess_bytes out)" 'BEGIN { exit !(p == t && e == m - 16 * t) }'
tell "memory beyond the parameters is what is over 16 bytes for each" $?
positive bytes_per_parameter && positive bytes_per_second && positive attention_time_share
tell "AdamW's pass and attention's share are told" $?
# attention: 2 layers, 4·32·(32+1)/2 a token; matrices and head as below
awk -v a="$(json_number attention_flops_share out)" -v f="$(json_number flops_per_token out)" 'BEGIN {
    attention = 2 * 4 * 32 * 33 / 2; rest = 2 * (2 * (4 * 32 * 32 + 3 * 32 * 96) + 256 * 32)
    share = attention / (attention + rest); flops = 3 * (attention + rest)
    exit !(a / share > 0.999999 && a / share < 1.000001 && f == flops) }'
tell "operations of attention and of a token are those of the formula" $?
# 3 · 2 · (weights of matrices + attention's products) · tokens, by hand: dim 32, ffn 96, context 32
awk -v f="$(json_number flops_per_second out)" -v s="$(json_number step_seconds out)" 'BEGIN {
    matrices = 2 * (4 * 32 * 32 + 3 * 32 * 96) + 256 * 32
    flops = 3 * 2 * 128 * matrices; ratio = f * s / flops
    exit !(ratio > 1 && ratio < 1.2) }' # attention adds a little
tell "the model's operations are three times those of its forward pass" $?
for op in linear attention head rmsnorm; do grep -q "\"name\": \"$op\"" out || break; done
tell "time is told by operation" $?
LIMIT=200 run 0 bench "${shape[@]}" --steps 2 --seconds 0 && grep -q '^  linear ' out && grep -q 'nothing was allocated' out
tell "the table names operations" $?
run 2 bench "${shape[@]}" --steps 0 && one_error
tell "no steps are a usage error" $?
LIMIT=200 run 0 bench "${shape[@]}" --steps 1 --seconds 0 --warmup 1 -o file.json && grep -q '^speed: ' out && grep -q '"tokens_per_second"' file.json
tell "the figures go to people and to a file" $?
LIMIT=200 run 0 bench --machine --json && grep -q '"fp32_product_flops_per_second"' out && grep -q '"copy_bytes_per_second"' out
tell "the machine is measured without a model" $?
run 2 bench --machine --serve && one_error
tell "to measure the machine and to serve are two things" $?

# ---- frozen matrices: 2 layers of 2 norms and the last norm, width 32, are trained ----

LIMIT=200
if run 0 bench "${shape[@]}" precision=bf16 --frozen --steps 1 --seconds 0 --warmup 1 --json; then
    [ "$(json_number trained_parameters out)" -eq 160 ] && [ "$(json_number allocated_bytes out)" -eq 0 ] &&
        [ "$(json_number frozen_parameters out)" -eq $(($(json_number parameters out) - 160)) ]
    tell "with --frozen only the norms' gains are trained" $?
    awk -v p="$(json_number frozen_parameters out)" -v m="$(json_number peak_memory_bytes out)" -v e="$(json_number excess_bytes out)" \
        'BEGIN { exit !(e == m - 16 * 160 - 2 * p) }'
    tell "a frozen parameter counts two bytes" $?
    awk -v f="$(json_number flops_per_token out)" 'BEGIN {
        attention = 2 * 4 * 32 * 33 / 2; rest = 2 * (2 * (4 * 32 * 32 + 3 * 32 * 96) + 256 * 32)
        exit !(f == 3 * attention + 2 * rest) }'
    tell "no operations are counted for gradients of frozen matrices" $?
else
    skip "frozen matrices are not in this version"
fi
LIMIT=60

# ---- turns ----

serve() { printf '%b' "$1" | timeout 60 "$cria" bench "${shape[@]}" --serve >out 2>err; }
serve '1 0\n3 0\n' && [ "$(wc -l <out)" -eq 3 ] && sed -n 1p out | grep -q '"ready": true' && sed -n 2p out | grep -q '"steps": 1,' &&
    sed -n 3p out | grep -q '"steps": 3,' && [ "$(sed -n 3p out | grep -c '"tokens_per_second": [1-9]')" -eq 1 ]
tell "steps are run on request, as many as are asked for" $?
serve 'nonsense\n'
[ $? -eq 2 ] && one_error
tell "what is no request is a usage error" $?

# ---- make bench, with a stand-in for PyTorch that says it makes 1,000 tokens a second ----

cat >peer <<'END'
#!/usr/bin/env bash
[ "$1" != -c ] || exit 0
[[ $* != *purebf16* ]] || { echo "no such type" >&2; exit 1; }
echo '{"ready": true, "tokens_per_step": 64, "torch": "0", "trained_parameters": 260032, "frozen_parameters": 0}'
while read -r steps _; do echo "{\"tokens_per_second\": 1000, \"steps\": $steps, \"step_seconds\": 0.1, \"peak_memory_bytes\": 1073741824}"; done
END
chmod +x peer
turns() { CRIA="$cria" PYTHON="$PWD/peer" ROUNDS=1 STEPS=1 TURN=0 SIZES=260K OUTPUT="$PWD/bench.md" timeout 200 bash "$here/tests/bench.sh" >out 2>err; }
PARTS="steps context" PRECISIONS=fp32 PEERS="eager-fp32 compile-purebf16" CONTEXTS="16 32" CONTEXT_SIZE=260k CONTEXT_TOKENS=64 turns && cmp -s out bench.md
tell "make bench writes what it prints" $?
awk -F '|' '/^\| 260K, fp32 / { ratio = ($3 / 1000) / ($7 + 0); found = $5 ~ /eager-fp32/ && $6 + 0 == 1000 && ratio < 1.01 && ratio > 0.99; exit } END { exit !found }' out
tell "the ratio is that of the speeds" $?
grep -q '^- 260K: compile-purebf16 did not start: no such type' out && ! grep -q '^compile-purebf16' out
tell "a peer that does not start is named and left out" $?
[ "$(grep -cE '^\| (16|32) \| [1-9]' out)" -eq 2 ]
tell "context has a row for each length" $?
# ---- sampling ----

for sequences in 1 3; do
    run 0 bench "${shape[@]}" precision=fp32 --sampling $sequences --steps 1 --seconds 0 && positive tokens_per_second && [ "$(json_number sequences out)" -eq $sequences ]
    tell "$sequences sequences are sampled together, and their tokens a second told" $?
done
finish
