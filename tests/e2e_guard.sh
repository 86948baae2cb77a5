#!/usr/bin/env bash
# What a run does when its numbers or its disk fail: bad steps are not applied and reported, three in a row go back to
# the checkpoint and skip the window, then it stops; a full disk is an error, and the older checkpoint still loads.
. "$(dirname "$0")/e2e.bash"

make_folder guard
cd "$scratch/guard" || exit 1
run 0 pretrain config.yaml train.steps=20 optim.schedule=constant optim.warmup=0
tell "20 steps and a checkpoint" $?
cp -r run good
sums good 20 >was

# ---- a learning rate that ruins the weights in one step ----

blow_up() { rm -rf run && cp -r good run && run 1 pretrain config.yaml train.steps=1000 optim.schedule=constant optim.warmup=0 optim.lr=1e30 "$@"; }
blow_up && one_error && says 'error: the loss stays NaN or infinite after 3 roll-backs to the same checkpoint; lower optim.lr'
tell "a run whose loss stays NaN stops with a clear text" $?
# Step 21 is applied and ruins the weights, 22 to 24 are bad; then 25 is the first that is not skipped.
[ "$(grep -cE '^warning: step [0-9]+: loss [a-z0-9.-]+, gradient norm -?(nan|inf); the step was not applied' "$scratch/err")" -eq 12 ]
tell "every bad step is reported as not applied" $?
[ "$(grep -c '^warning: loss .*, gradient norm .* in the micro-batch with samples (source:number) 0:[0-9]' "$scratch/err")" -eq 12 ]
tell "with the ids of its samples" $?
for window in 24 28 32; do says "^warning: 3 bad steps in a row: back to the checkpoint of step 20; steps to $window are skipped"; done
tell "three in a row go back to the checkpoint and skip the whole window" $?
[ "$(sums run 20)" = "$(cat was)" ] && [ "$(ls run/checkpoints | grep -c step)" -le 3 ] && run 0 inspect run
tell "and the checkpoint loads, unharmed" $?
run 0 pretrain config.yaml optim.schedule=constant optim.warmup=0 && each_step_once run 40 && ! says 'not applied' && run 0 inspect run/checkpoints/step-40
tell "the run goes on from there with a lower learning rate" $?

blow_up train.checkpoint_every=1 && says 'the loss stays NaN' && run 0 inspect run && ! [ -e run/checkpoints/step-22 ]
tell "checkpoints are not replaced in the middle of bad steps" $?

# ---- bad numbers before the first checkpoint ----

rm -rf run
run 1 pretrain config.yaml optim.lr=1e30 optim.warmup=0 train.steps=1000 train.checkpoint_every=0 train.validate_every=0 && one_error &&
    says 'back to the checkpoint of step 0; steps to 4 are skipped' && says 'the loss stays NaN'
tell "without a checkpoint a roll-back starts anew" $?
run 1 pretrain config.yaml output=short optim.lr=1e30 optim.warmup=0 train.steps=4 train.validate_every=0 && one_error && says 'every step up to the last, 4, is being skipped'
tell "a short run says that nothing is left" $?

# A base with NaN in it: its file is made by hand, as llama2.c writes it (7 int32: dim, hidden, layers, heads, KV heads,
# vocabulary, context; then fp32).
word() { printf "\\x$(printf %02x $(($1 & 255)))\\x$(printf %02x $(($1 >> 8 & 255)))\\x00\\x00"; }
{
    for n in 8 16 1 1 1 258 64; do word $n; done
    floats=$((258 * 8 + 8 + 4 * 8 * 8 + 8 + 3 * 8 * 16 + 8 + 64 * 8))
    head -c $((floats * 4)) /dev/zero | tr '\0' '\377'
} >nan.bin
rm -rf base
run 1 pretrain config.yaml output=base model.dim=0 model.n_layers=0 model.n_heads=0 model.n_kv_heads=0 model.ffn_dim=0 model.max_context=0 \
    model.base=nan.bin tokenizer.path=bytes train.steps=1000 train.validate_every=0 && one_error && says 'the loss stays NaN' && [ ! -e base/checkpoints ]
tell "a base with NaN weights is reported, and nothing is saved" $?
run 1 pretrain config.yaml output=base model.dim=0 model.n_layers=0 model.n_heads=0 model.n_kv_heads=0 model.ffn_dim=0 model.max_context=0 \
    model.base=nan.bin tokenizer.path=bytes train.steps=2 && one_error && says 'step 2: loss' && says 'in every step, and nothing was learned; is the model broken' && [ ! -e base/checkpoints ]
tell "in a run of two steps too" $?
run 3 chat nan.bin -t bytes --template plain -p hi && one_error && says 'logit of token 0 is' && ! says 'context is full'
tell "and by chat" $?
printf '{"prompt": "a", "chosen": "b", "rejected": "c"}\n' >pairs.jsonl
printf 'output: dpo\nmodel: {base: nan.bin}\ntokenizer: {path: bytes}\ntemplate: {name: plain}\ndata: {train: pairs.jsonl, validation: 0}\ntrain: {context: 32, steps: 2}\n' >dpo.yaml
run 3 dpo dpo.yaml && one_error && says "nan.bin: an answer's log-probability is" && ! says 'reference.safetensors'
tell "and by dpo, of its reference" $?

# ---- disks that end ----

disk_full() { # FOLDER "what the error says"
    [ "$(grep -c '^error: ' "$scratch/err")" -eq 1 ] && says "$2" && run 0 inspect "$1" && [ "$(sums "$1" 20)" = "$(cat was)" ]
}
# A limit on a file's size stands for a disk that is full: write(2) fails alike. 64 KiB: a little less than optimizer.h5.
rm -rf run && cp -r good run
(ulimit -f 64 && run 1 pretrain config.yaml train.checkpoint_every=5) && disk_full run 'error: .*step-25.*: File too large'
tell "a checkpoint that cannot be written is a clear error, and the older one loads" $?
run 0 pretrain config.yaml optim.schedule=constant optim.warmup=0 && each_step_once run 40
tell "with room again the run goes on" $?
rm -rf fresh && (ulimit -f 1 && run 1 pretrain config.yaml output=fresh) && one_error && says 'File too large'
tell "a token cache that cannot be written is a clear error" $?
run 0 pretrain config.yaml output=fresh
tell "and the next start makes it whole" $?

# Room for what is there, and for half a checkpoint.
size=$(($(du -sk good | cut -f 1) + 100))
if [ "$(id -u)" -eq 0 ] && mkdir -p disk && mount -t tmpfs -o size=${size}k none disk 2>/dev/null; then
    cp -r good disk/run
    run 1 pretrain config.yaml output=disk/run train.checkpoint_every=5 && disk_full disk/run 'error: .*step-25.*: No space left on device'
    tell "a full disk is a clear error, and the older checkpoint loads" $?
    mount -o remount,size=4m disk
    run 0 pretrain config.yaml output=disk/run optim.schedule=constant optim.warmup=0 && each_step_once disk/run 40
    tell "with room again the run goes on from it" $?
    mount -o remount,ro disk
    run 1 pretrain config.yaml output=disk/new && one_error && says 'disk/new: mkdir: Read-only file system'
    tell "a disk that cannot be written is named as what it is" $?
    umount disk
else
    skip "no right to mount a small disk to be filled"
fi
finish
