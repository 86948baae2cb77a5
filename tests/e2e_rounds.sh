#!/usr/bin/env bash
# cria rounds: two rounds from SFT to an average; the same run killed in every stage ends with the same files; a config
# that cannot come to its end does not begin.
. "$(dirname "$0")/e2e.bash"
cd "$scratch" || exit 1

mkdir whole
cd whole || exit 1
make_text text.txt 300
cat >base.yaml <<'END'
output: base
precision: fp32
model: {dim: 16, n_layers: 2, n_heads: 2, n_kv_heads: 1, ffn_dim: 32, max_context: 128}
tokenizer: {path: bytes}
data: {train: [{path: text.txt, separator: "\n"}], validation: 0.1}
optim: {lr: 1.0e-2}
train: {steps: 30, tokens_per_batch: 512, tokens_per_microbatch: 512, context: 64}
END
# Twice the letter that was asked for is right, another letter is wrong.
awk 'BEGIN { for (i = 0; i < 60; i++) { c = 97 + i % 5; w = 97 + (i + 1 + i % 3) % 5
    printf "{\"prompt\": \"say %c\", \"chosen\": \"%c%c\", \"rejected\": \"%c%c%c\"}\n", c, c, c, w, w, c } }' >pairs-1.jsonl
tac pairs-1.jsonl >pairs-2.jsonl
awk 'BEGIN { for (i = 0; i < 60; i++) { c = 97 + i % 5; printf "{\"prompt\": \"say %c\", \"completion\": \"%c%c\"}\n", c, c, c } }' >chats.jsonl
printf 'say %s\n' a b c d e f g >prompts.txt
cat >rounds.yaml <<'END'
output: run
precision: fp32
model: {base: base}
template: {name: plain}
rounds: {count: 2}
optim: {lr: 3.0e-3, schedule: constant, warmup: 0}
train: {steps: 16, tokens_per_microbatch: 256, context: 64, validate_every: 8, checkpoint_every: 4, checkpoint_minutes: 0}
preferences: {per_batch: 8}
generate: {max_new_tokens: 8}
stages:
  - {stage: sft, run: sft, last_round: 1, data: {train: chats.jsonl, validation: 0.1}, train: {tokens_per_batch: 256}}
  - {stage: judge, run: reward, data: {train: "pairs-{round}.jsonl", validation: 0.1}}
  - stage: best
    run: rejection
    rejection: {prompts: prompts.txt, samples: 4, chunk: 2, reward: model, model: "{judge}", earlier: ["{best@earlier}"]}
    generate: {temperature: 1, top_p: 1}
  - {stage: tune, run: sft, data: {train: ["{best}/sft.jsonl"], validation: 0}, train: {tokens_per_batch: 64}}
  - {stage: dpo, run: dpo, data: {train: ["{best@all}/pairs.jsonl", "pairs-1.jsonl"], validation: 0.1}}
  - stage: ppo
    run: ppo
    first_round: 2
    data: {train: prompts.txt, validation: 0}
    ppo: {algorithm: ppo, reward: model, model: "{judge}", value_model: "{judge}", prompts: 4, samples: 2}
  - {stage: average, run: merge, models: ["{tune}", "{policy}"], weights: [0.5, 0.5]}
END
run 0 pretrain base.yaml
tell "a base to begin from" $?

rounds() { run "$1" rounds rounds.yaml "${@:2}"; }
# What must be the same: every record, report, config and text, and the arrays of every checkpoint that is kept.
facts() { # RUN
    (cd "$1" && find . -name '*.json' ! -name manifest.json ! -name state.json -o -name '*.jsonl' ! -name metrics.jsonl -o -name '*.yaml' -o -name report.md | sort | xargs cksum
        find . -name manifest.json | sort | xargs grep -H -E '"name": "[a-z_]+.h5"'
        find . -name metrics.jsonl | sort | while read -r file; do echo "$file"; losses "$(dirname "$file")"; done)
}

# ---- what is wrong is told before anything starts ----

refused() { # STATUS FROM TO: the config, changed, is refused, and nothing is made
    sed "s|$2|$3|" rounds.yaml >changed.yaml
    run "$1" rounds changed.yaml && one_error && [ ! -e run ]
}
refused 2 'stage: average, run: merge' 'stage: average, run: merger' && says 'changed.yaml:24' && says 'a stage runs one of sft, reward'
tell "a command that is none, in the last stage" $?
refused 2 '{judge}", prompts' '{jugde}", prompts' && says "did you mean 'judge'"
tell "a stage that is none, with the one that was meant" $?
refused 2 'model: "{judge}", earlier' 'model: "{sft}", earlier' && says 'makes a language model; needed here: a reward model'
tell "a stage of another kind" $?
refused 2 'earlier: \["{best@earlier}"\]' 'earlier: [best]' && says 'rejection.earlier: best is not there'
tell "a folder that is not there" $?
refused 2 'models: \["{tune}"' 'models: ["{average}"' && says 'in round 1 that stage has not run before'
tell "a stage that comes later" $?
refused 2 'pairs-{round}' 'pears-{round}' && says 'pears-1.jsonl' && says 'pears-2.jsonl'
tell "files that are not there, of all rounds" $?
refused 2 'algorithm: ppo' 'algorithm: rlo' && says "did you mean 'rloo'"
tell "an option of the last round" $?
refused 2 'prompts: 4, samples: 2' 'prompts: 4, minibatches: 3' && says 'ppo.minibatches'
tell "what a stage's command says of its options" $?
refused 2 'stage: tune, run: sft' 'stage: tune, run: sft, reward: {margin: none}' && says "stage 'tune': cria sft does not read reward.margin"
tell "an option that its command does not read" $?
refused 2 'stage: tune, run: sft' 'stage: sft, run: sft' && says 'an earlier stage has this name'
tell "two stages of one name" $?
refused 2 'preferences: {per_batch: 8}' 'preferences: {per_batch: 8}\nlora: {rank: 2}' && says 'trains an adapter, and so does' && says 'run: merge, models'
tell "an adapter on an adapter" $?
run 3 rounds rounds.yaml train.memory_limit=1000000 && says "stage 'sft'" && says 'of memory' && [ ! -e run ]
tell "a stage that does not fit" $?
printf 'output: run\nmodel: {base: base}\ntemplate: {name: chatml}\nstages:\n  - {stage: best, run: rejection, rejection: {prompts: prompts.txt, word: a}}\n' >changed.yaml
run 2 rounds changed.yaml && one_error && says 'changed.yaml:5.*base cannot answer: template chatml needs the special token <|im_start|>' && says 'run: sft' && [ ! -e run ]
tell "a template whose tokens the base lacks, where it is to answer untrained" $?
mkdir run && echo mine >run/thesis.txt
rounds 3 && one_error && says 'thesis.txt' && [ "$(ls run)" = thesis.txt ] && rm -r run
tell "a folder that is not the run's" $?
rounds 3 output=base && one_error && says 'it is not a run' && [ ! -e base/rounds.yaml ]
tell "nor one of another run" $?
rounds 0 --plan && [ ! -e run ] && grep -q '3  best  *rejection  to do  *4 answers to each prompt of prompts.txt' "$scratch/out" && grep -q 'run/round-1/best/pairs.jsonl, run/round-2/best/pairs.jsonl, pairs-1.jsonl; 16 steps' "$scratch/out" && grep -q "most memory: stage '" "$scratch/out"
tell "--plan lists what would run, and writes nothing" $?
head -n 20 pairs-2.jsonl >keep && mv pairs-2.jsonl whole-2.jsonl && mv keep pairs-2.jsonl
[ "$(run 0 rounds rounds.yaml --plan; grep -o 'pairs-[12].jsonl; 16 steps, [0-9,]* tokens' "$scratch/out" | grep -o '[0-9,]* tokens' | sort -u | wc -l)" -eq 2 ]
tell "with the tokens of every round's own data" $?
mv whole-2.jsonl pairs-2.jsonl
rounds 0 --plan rounds.count=1 && grep -q 'not in these rounds: ppo (cria ppo), from round 2 on' "$scratch/out"
tell "and what begins in a later round than the last" $?

# ---- two rounds ----

rounds 0 && says 'round 2 of 2, stage 6 of 6: average (cria merge) begins' && [ -s run/report.md ] && run 0 inspect run/round-2/average
tell "two rounds" $?
facts run >../whole.facts
[ "$(grep -c optimizer.h5 ../whole.facts)" -ge 16 ] && grep -q 'average.*model.h5' ../whole.facts
tell "leave a checkpoint of every stage that trains" $?
json() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1])))' "$1" >/dev/null 2>&1 || ! command -v python3 >/dev/null; }
json run/report.json && grep -q '^| 2 | .* | .* | .* |' run/report.md && grep -q '"run": "ppo"' run/report.json && grep -q '^| average | merge | of round-1/' run/report.md && ! grep -q '{output}' run/report.md
tell "the report has both" $?
grep -q '^12 of 12 stages of 2 rounds are finished\.$' run/report.md && grep -q '^- Round 2: The best of 4 answers to a prompt earned' run/report.md && grep -q '^## What to look at$' run/report.md
tell "and begins with what came of it in words" $?
[ "$(json_number mean_score run/round-2/best/statistics.json)" != "" ] && awk -v m="$(json_number mean_score run/round-2/best/statistics.json)" -v b="$(json_number mean_best run/round-2/best/statistics.json)" -F'|' '
    function near(a, b) { return a - b < 1e-3 * (b < 0 ? -b : b) && b - a < 1e-3 * (b < 0 ? -b : b) }
    /^\| 2 \| [-0-9]/ { exit !(near($5, m) && near($6, b)) } ' run/report.md
tell "and its figures are those of the stages" $?
grep -q '"{output}/round-1/average"' run/round-2/best.json && grep -q 'base: "run/round-1/average"' run/round-2/best.yaml
tell "a round begins from what the last one made" $?
grep -q '"from":"run/round-1/best"' run/round-2/best/samples.jsonl
tell "the best answers of earlier rounds compete" $?
grep -q 'seed: 2' run/round-2/tune.yaml && ! grep -q 'seed:' run/round-1/tune.yaml
tell "seeds are another round's" $?
cp run/report.md ../report.md
rounds 0 && [ "$(grep -c 'was finished before' "$scratch/err")" -eq 12 ] && ! says 'begins' && facts run | cmp - ../whole.facts
tell "what is finished is not done again" $?
rounds 3 optim.lr=1e-3 && one_error && says 'round-1/sft is finished' && says 'optim.lr: 0.003 then, 0.001 now'
tell "another option for a finished stage is refused, by its name" $?
rounds 0 train.log_every=2 train.keep_last=3
tell "but not one without effect" $?
cp pairs-2.jsonl keep && head -n 50 keep >pairs-2.jsonl
rounds 3 && one_error && says 'round-2/judge is finished' && says 'pairs-2.jsonl has changed since' && mv keep pairs-2.jsonl
tell "nor are other data" $?
mv run/round-1/tune gone && rounds 3 && one_error && says 'round-1/tune is recorded as finished' && mv gone run/round-1/tune
tell "a stage's folder that is gone is missed" $?
cp pairs-1.jsonl pairs-3.jsonl
rounds 0 rounds.count=3 && says 'round 3 of 3, stage 6 of 6: average (cria merge) begins' && says 'round 2 of 3, stage 6 of 6: average (cria merge) was finished before' && rm -r run/round-3 pairs-3.jsonl
tell "a third round may follow" $?

# ---- killed in every stage ----

begun() { [ -e "$1.json" ] && grep -q '"state": "begun"' "$1.json"; }
kill_in() { # STAGE SIGNAL SECONDS: starts the run, and ends it so long after the stage has begun; $status
    "$cria" rounds rounds.yaml >"$scratch/out" 2>"$scratch/err" </dev/null &
    local pid=$! deadline=$((SECONDS + 60))
    until begun "run/$1" || ! kill -0 $pid 2>/dev/null || [ $SECONDS -ge $deadline ]; do sleep 0.01; done
    sleep "$3"
    kill -"$2" $pid 2>/dev/null
    { wait $pid; } 2>/dev/null
    status=$?
}
mkdir ../killed && cp -r base ./*.yaml ./*.jsonl prompts.txt ../killed && cd ../killed || exit 1
stages="1/sft 1/judge 1/best 1/tune 1/dpo 1/average 2/judge 2/best 2/tune 2/dpo 2/ppo 2/average"
inside=0 late=0 wrong=0 times=${CRIA_ROUND_KILLS:-1}
for ((n = 0; n < times; n++)); do
    rm -rf run
    for stage in $stages; do
        kill_in "round-$stage" KILL "0.0$((RANDOM % 6))"
        if begun "run/round-$stage"; then inside=$((inside + 1)); else late=$((late + 1)); fi
    done
    rounds 0 && facts run | cmp - ../whole.facts && cmp run/report.md ../report.md || wrong=$((wrong + 1))
    [ "$(find run -name '*.incomplete-*' -o -name '*.tmp' | wc -l)" -eq 0 ] || wrong=$((wrong + 1))
done
echo "killed inside $inside stages, $late had ended before"
[ $inside -ge $((6 * times)) ]
tell "a run is killed inside its stages" $?
[ $wrong -eq 0 ]
tell "and ends with the same files, and nothing half-made" $?
rm -r run
for signal in INT TERM; do
    kill_in round-1/dpo $signal 0.02
    [ "$status" -eq 130 ] && says 'interrupted in round-1/dpo; the same command goes on'
    tell "SIG$signal stops with status 130" $?
    rounds 0 && facts run | cmp - ../whole.facts
    tell "and the same command goes on" $?
    rm -r run
done
lose_stage() { # the stage dies, and not the run
    "$cria" rounds rounds.yaml >"$scratch/out" 2>"$scratch/err" </dev/null &
    local pid=$! deadline=$((SECONDS + 60))
    until begun run/round-1/dpo || ! kill -0 $pid 2>/dev/null || [ $SECONDS -ge $deadline ]; do sleep 0.01; done
    until pkill -KILL -P $pid || ! kill -0 $pid 2>/dev/null || [ $SECONDS -ge $deadline ]; do :; done
    { wait $pid; } 2>/dev/null
    status=$?
}
lose_stage
[ "$status" -eq 1 ] && one_error && says 'error: round-1/dpo: cria dpo was ended by signal 9'
tell "a stage that is killed alone is told of" $?
rounds 0 && facts run | cmp - ../whole.facts
tell "and is gone on with" $?
# A stage that is put in later, behind a round that is finished.
cat >>rounds.yaml <<'END'
  - {stage: measure, run: eval, rejection: {prompts: prompts.txt, samples: 2, reward: model, model: "{judge}"}}
END
sed -i 's/last_round: 1/first_round: 1, last_round: 1/' rounds.yaml
rounds 0 && facts run >measured.facts && grep -q '"objective/kl": [0-9.]' run/round-2/measure/policy.json && grep -q 'of the model that it is compared with .* KL divergence from that .* nats an answer' run/report.md
tell "the policy of a round is measured beside what it began as" $?
sed -i s/finished/begun/ run/round-1/measure.json && rm run/round-1/measure/policy.json && rounds 0 && facts run | cmp - measured.facts
tell "and again, after a death in the middle of that" $?
rounds 2 generate.top_p=0.9 output=other && says "stage 'measure'" && says 'whole distribution'
tell "from the whole distribution alone" $?
sed -i '/stage: measure/d' rounds.yaml
sed -i 's|model: "{judge}", earlier|program: "exit 4", earlier|; s|reward: model, program|reward: program, program|' rounds.yaml
run 1 rounds rounds.yaml output=fails && one_error && says 'status 4' && says 'round-1/best did not come to its end; once that is mended, the same command goes on' && [ -s fails/report.md ]
tell "a stage that fails ends the run with its own status and words" $?

# ---- several ranks ----

if command -v mpirun >/dev/null; then
    cd ../whole || exit 1
    mpi 2 "$cria" rounds rounds.yaml output=ranks >"$scratch/out" 2>"$scratch/err"
    [ $? -eq 2 ] && says 'run it without mpirun, and with rounds.launcher' && [ ! -e ranks ]
    tell "rounds under mpirun say how it is done" $?
    root=""
    [ "$(id -u)" -ne 0 ] || root=--allow-run-as-root
    sed '/stage: judge/,$d' rounds.yaml >ranks.yaml
    run 0 rounds ranks.yaml output=ranks rounds.count=1 "rounds.launcher=env ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 OMPI_MCA_btl_vader_single_copy_mechanism=none mpirun --oversubscribe $root -n 2" && says '2 ranks'
    tell "a launcher starts the ranks of a stage" $?
else
    skip "mpirun is not here"
fi
finish
