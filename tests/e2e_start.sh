#!/usr/bin/env bash
# How a run begins: what it takes over from its folder and its base model, what it refuses, and what its metrics are
# called.
set -uo pipefail
. "$(dirname "$0")/e2e.bash"
cd "$scratch" || exit 1
make_text text.txt 300
mkdir -p work/a work/b
cd work || exit 1
make_config config.yaml
cp ../text.txt a/some.txt
make_text b/some.txt 200 11

run 3 pretrain config.yaml "data.train=[typing_error.txt]" train.steps=2 && [ -e run/config.yaml ] &&
    run 0 pretrain config.yaml train.steps=2 && says 'holds no checkpoint yet'
tell "a mistake in a run's first config can be corrected in place, as nothing was saved" $?
run 2 pretrain config.yaml train.steps=4 optim.beta2=0.5 && says 'optim.beta2: 0.95 before, 0.5 now'
tell "after the first checkpoint it is a change of the run, and refused" $?

mkdir mine && sed 's/^output: run/output: mine/' config.yaml >mine/config.yaml && cp mine/config.yaml kept.yaml
run 3 pretrain mine/config.yaml && one_error && says 'was not written by a run' && cmp -s mine/config.yaml kept.yaml
tell "a config.yaml that someone wrote is not overwritten by a run's own" $?

names() { grep -o "\"$1/[^\"]*\"" names/metrics.jsonl | sort -u | tr '\n' ' '; }
run 0 pretrain config.yaml output=names train.steps=2 \
    'data.train=[{path: a/some.txt, separator: "\n"}, {path: b/some.txt, separator: "\n"}]' &&
    [ "$(names loss)" = '"loss/some.txt" "loss/some.txt#2" ' ] && [ "$(names eval_loss)" = '"eval_loss/some.txt" "eval_loss/some.txt#2" ' ]
tell "sources of one name have a metric each" $?

many='data.train=['
for i in {1..66}; do
    sed -n "$((4 * i - 3)),$((4 * i))p" ../text.txt >a/$i.txt
    many+="{path: a/$i.txt, separator: \"\\n\"},"
done
run 0 pretrain config.yaml output=many train.steps=1 train.tokens_per_batch=4096 data.validation=0 "${many%,}]" &&
    grep -q '"loss/63.txt": [0-9].*"loss/others": [0-9]' many/metrics.jsonl && ! grep -q '"loss/6[456].txt"' many/metrics.jsonl
tell "beyond 63 sources the losses of the rest are one metric, others" $?

zero="model.dim=0 model.n_layers=0 model.n_heads=0 model.n_kv_heads=0 model.ffn_dim=0 model.max_context=0"
base="$zero model.base=run tokenizer.path=from-model"
# shellcheck disable=SC2086 # words
run 2 pretrain config.yaml output=wide $base model.dim=32 && one_error && says 'model.dim: model.base .* already gives the shape' && [ ! -e wide ]
tell "a shape beside model.base is refused, not passed over" $?
# shellcheck disable=SC2086
run 2 pretrain config.yaml output=far $base train.context=65 train.tokens_per_microbatch=65 && one_error && says 'train.context: run was made for at most 64 tokens'
tell "a context longer than the base model's is refused before anything is trained" $?
run 2 pretrain config.yaml output=short model.rope_scaling.factor=0.5 && one_error && says 'model.rope_scaling.factor' && [ ! -e short ]
tell "a rotary factor that no other program would load is refused" $?

run 0 pretrain config.yaml output=sampled train.steps=4 train.sample_every=2 "train.sample_prompt=$(printf 'x%.0s' {1..40})" && says 'no sample text: .*no room'
tell "a sample text that cannot be made does not end the run" $?
finish
