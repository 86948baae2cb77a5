#!/usr/bin/env bash
# cria bench on a tiny shape: its JSON has what scripts rely on, the figures are possible, a step allocates nothing.
. "$(dirname "$0")/e2e.bash"
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
finish
