#!/usr/bin/env bash
# cria ppo by the program: what holds before the first update, a preference that is learned, rewards by a program,
# resumption bit for bit, and wrong input.
. "$(dirname "$0")/e2e.bash"

work=$scratch/work
mkdir "$work"
cd "$work" || exit 1
make_text text.txt 400
cat >base.yaml <<'END'
output: base
precision: fp32
model: {dim: 32, n_layers: 2, n_heads: 2, n_kv_heads: 1, ffn_dim: 64, max_context: 64}
tokenizer: {path: bytes}
data: {train: [{path: text.txt, separator: "\n"}], validation: 0.1}
optim: {lr: 1.0e-2}
train: {steps: 60, tokens_per_batch: 1024, tokens_per_microbatch: 1024, context: 64}
END
for word in the llama walks over green hills and eats soft grass while small birds; do
    printf '%s \nwhile %s \n' $word $word
done >prompts.txt
cat >ppo.yaml <<'END'
output: run
precision: fp32
model: {base: base}
data: {train: [{path: prompts.txt}], validation: 0.25}
ppo: {algorithm: rloo, reward: regex, pattern: s, prompts: 8, samples: 4, epochs: 2, minibatches: 2}
optim: {lr: 3.0e-3, schedule: constant, warmup: 0, weight_decay: 0}
generate: {max_new_tokens: 8}
train: {steps: 24, context: 48, tokens_per_microbatch: 256, validate_every: 12, checkpoint_every: 4, checkpoint_minutes: 0}
END
run 0 pretrain base.yaml
tell "a base to begin from" $?

metric() { # RUN STEP NAME
    sed -n "s|^{\"step\": $2, .*\"$3\": \([-0-9.e+]*\)[,}].*|\1|p" "$1/metrics.jsonl" | head -n 1
}
holds() { awk "BEGIN { exit !($1) }"; }

run 0 ppo ppo.yaml
tell "24 steps of RLOO" $?
at_start() {
    holds "$(metric run 1 val/ratio) > 0.999999 && $(metric run 1 val/ratio) < 1.000001" &&
        holds "$(metric run 1 objective/kl) == 0" && [ -z "$(metric run 2 objective/kl)" ] &&
        holds "$(metric run 5 objective/kl) != 0"
}
at_start
tell "before the first update the ratio is 1 and the KL 0; rollouts are told at their first update" $?
! says "recorded when sampling"
tell "log-probabilities recorded when sampling are the training graph's" $?
holds "$(metric run 21 reward) > $(metric run 1 reward)"
tell "the reward rises" $?
grep -q '"eval_reward"' run/metrics.jsonl && says 'held-out prompts: reward' && [ -e run/checkpoints/best ]
tell "held-out prompts are measured, the best is kept" $?

for algorithm in "grpo ppo.loss=grpo ppo.epsilon_high=0.28" "grpo ppo.scale_rewards=none" "rloo ppo.normalize_advantages=true"; do
    run 0 ppo ppo.yaml output=other ppo.algorithm=$algorithm train.steps=8 && holds "$(metric other 1 objective/kl) == 0"
    tell "$algorithm runs" $?
    rm -rf other
done
run 0 ppo ppo.yaml output=adapted train.steps=8 lora.rank=4 && holds "$(metric adapted 1 objective/kl) == 0" &&
    holds "$(metric adapted 5 objective/kl) != 0"
tell "with an adapter the base beneath it is the reference" $?

for base in 16bit int8 nf4; do
    for precision in fp32 bf16; do
        run 0 ppo ppo.yaml output=kept precision=$precision train.steps=8 lora.rank=4 lora.base=$base &&
            ! says 'recorded when sampling' && holds "$(metric kept 1 objective/kl) == 0" &&
            holds "$(metric kept 5 objective/kl) != 0"
        tell "what an adapter on a base in $base samples in $precision is the training graph's" $?
        rm -rf kept
    done
done

grep -q 'avx512_bf16\|amx_bf16' /proc/cpuinfo && {
    run 0 ppo ppo.yaml output=narrow precision=bf16 train.steps=8 && ! says 'recorded when sampling' &&
        holds "$(metric narrow 1 objective/kl) == 0" && holds "$(metric narrow 5 objective/kl) != 0"
    tell "in bf16" $?
}

# Conversations, with GSM8K's answers.
cat >sums.jsonl <<'END'
{"question": "1 and 1?", "answer": "That is 1 + 1 = 2.\n#### 2"}
{"question": "2 and 1?", "answer": "#### 3"}
{"question": "2 and 2?", "answer": "#### 4"}
{"question": "3 and 2?", "answer": "#### 5"}
END
run 0 ppo ppo.yaml output=sums data.train=sums.jsonl data.columns=prompt=question,completion=answer template.name=plain \
    ppo.reward=number ppo.prompts=2 train.steps=4 && [ -n "$(metric sums 1 reward)" ]
tell "conversations with a number as their answer" $?
run 3 ppo ppo.yaml output=unnumbered ppo.reward=number train.steps=4 && one_error && says 'has no answer with a number'
tell "prompts without an answer, where one is wanted" $?

if command -v mpirun >/dev/null; then
    mpi 2 "$cria" ppo ppo.yaml output=ranks train.steps=8 2>"$scratch/err" >"$scratch/out"
    tell "two ranks" $?
    same_as_one() { # to rounding
        for step in 1 2 3 4; do
            for name in reward completions/mean_length entropy grad_norm objective/kl; do
                a=$(metric run $step $name) b=$(metric ranks $step $name)
                [ "$a" = "$b" ] || holds "($a - $b) ^ 2 <= (1e-4 * $a) ^ 2" || { echo "step $step, $name: $a, $b"; return 1; }
            done
        done
    }
    same_as_one
    tell "two ranks sample and learn what one does" $?
else
    skip "two ranks: there is no mpirun"
fi

# ---- PPO ----

ppo_is_whole() { # RUN STEPS: what holds before the first update, what is told of the value model, what is kept
    for name in objective/kl policy/clipfrac_avg val/clipfrac_avg; do holds "$(metric "$1" 1 $name) == 0" || return 1; done
    holds "$(metric "$1" 1 policy/approxkl_avg) < 1e-11" || return 1
    for name in objective/entropy objective/scores objective/rlhf_reward objective/non_score_reward loss/policy_avg loss/value_avg \
        policy/entropy_avg val/num_eos_tokens val/var_explained value_grad_norm; do
        [ -n "$(metric "$1" 1 $name)" ] || { echo "no $name"; return 1; }
    done
    holds "$(metric "$1" 1 val/ratio) > 0.999999 && $(metric "$1" 1 val/ratio) < 1.000001 && $(metric "$1" 5 objective/kl) != 0" &&
        [ -z "$(metric "$1" 1 val/ratio_var)" ] && holds "$(metric "$1" 4 val/ratio_var) > 0" &&
        [ -e "$1/checkpoints/step-$2/value.h5" ] && [ -e "$1/checkpoints/step-$2/value_optimizer.h5" ]
}
run 0 ppo ppo.yaml output=valued ppo.algorithm=ppo && ppo_is_whole valued 24
tell "24 steps of PPO: KL 0 and ratio 1 at first; TRL's metrics; policy, value model and both optimizers are kept" $?
holds "$(metric valued 21 reward) > $(metric valued 1 reward) && $(metric valued 21 val/var_explained) > $(metric valued 1 val/var_explained)"
tell "the reward rises, and the values explain more of the returns than at first" $?
run 0 ppo ppo.yaml output=penalised ppo.algorithm=ppo ppo.missing_eos_penalty=1 train.steps=4 &&
    holds "$(metric penalised 1 reward) == $(metric valued 1 reward) - $(metric valued 1 completions/clipped_ratio)"
tell "a penalty for what was cut off" $?
run 0 ppo ppo.yaml output=one_each ppo.algorithm=ppo ppo.samples=0 ppo.kl_estimator=k3 ppo.whiten_rewards=true ppo.value_lr=1e-2 train.steps=8 &&
    holds "$(metric one_each 5 objective/kl) > 0" && [ "$(grep -c 'samples: 1' one_each/config.yaml)" -eq 1 ]
tell "one answer a prompt, k3, whitened rewards" $?
run 0 ppo ppo.yaml output=valued_adapter ppo.algorithm=ppo lora.rank=4 train.steps=8 && ppo_is_whole valued_adapter 8
tell "adapters: policy, reference and value model share the base" $?
run 0 inspect valued_adapter && grep -q 'value.h5' "$scratch/out" && run 0 generate valued_adapter -p llama -n 4
tell "such a run is a model that generates" $?

if command -v mpirun >/dev/null; then
    mpi 2 "$cria" ppo ppo.yaml output=valued_ranks ppo.algorithm=ppo train.steps=4 2>"$scratch/err" >"$scratch/out"
    tell "PPO on two ranks" $?
    same_ppo() {
        for step in 1 2 3 4; do
            for name in reward grad_norm value_grad_norm loss/value_avg val/var_explained policy/entropy_avg; do
                a=$(metric valued $step $name) b=$(metric valued_ranks $step $name)
                [ "$a" = "$b" ] || holds "($a - $b) ^ 2 <= (1e-4 * $a) ^ 2" || { echo "step $step, $name: $a, $b"; return 1; }
            done
        done
    }
    same_ppo
    tell "two ranks learn the same values" $?
fi

# Another reference, another beginning of the value model.
run 0 ppo ppo.yaml output=towards ppo.reference=run train.steps=4 && holds "$(metric towards 1 objective/kl) != 0"
tell "a reference that is not what training begins from" $?
run 0 ppo ppo.yaml output=again ppo.algorithm=ppo lora.rank=4 lora.init=valued_adapter ppo.reference=base \
    ppo.value_model=valued_adapter train.steps=4 && holds "$(metric again 1 objective/kl) != 0"
tell "an adapter goes on towards its own reference" $?
run 0 ppo ppo.yaml output=later ppo.algorithm=ppo ppo.value_model=valued train.steps=4 &&
    holds "$(metric later 1 val/var_explained) > 0 && $(metric later 1 val/var_explained) < 1"
tell "a value model goes on as that of another run" $?
for base in int8 nf4; do
    run 0 ppo ppo.yaml output=on_$base ppo.algorithm=ppo lora.rank=4 lora.base=$base train.steps=8 && ppo_is_whole on_$base 8
    tell "on a base in $base" $?
done
grep -q 'avx512_bf16\|amx_bf16' /proc/cpuinfo && for how in "" "lora.rank=4"; do
    run 0 ppo ppo.yaml output=narrow_ppo$how precision=bf16 ppo.algorithm=ppo train.steps=8 $how && ppo_is_whole narrow_ppo$how 8
    tell "in bf16 ${how}" $?
done

# ---- any policy measured as these are ----

# The held-out prompts in a file of their own, answered with the validation's seed: its figures.
split=$(($(wc -l <prompts.txt) * 3 / 4))
head -n $split prompts.txt >learned.txt
tail -n +$((split + 1)) prompts.txt >held.txt
same_figures() {
    local name
    run 0 ppo ppo.yaml output=measured 'data.train=learned.txt' 'data.validation=held.txt' train.steps=4 train.validate_every=4 &&
        run 0 eval policy measured held.txt --reference base --reward regex --pattern s --samples 1 --json generate.max_new_tokens=8 generate.seed=$((1 ^ 0x68656c64)) || return 1
    for name in reward reward_std objective/kl objective/entropy completions/mean_length; do
        a=$(metric measured 4 eval_$name) b=$(sed -nE "s|.*\"$name\": ([-0-9.e+]+).*|\1|p" "$scratch/out")
        { [ "$name" = reward_std ] || holds "$a != 0"; } && holds "($a - $b) ^ 2 <= (2e-4 * $a) ^ 2" || { echo "$name: $a, $b"; return 1; }
    done
}
same_figures
tell "eval policy tells what the run's own validation does" $?
run 0 eval policy base held.txt --reference base --reward length --length 4 --samples 4 generate.max_new_tokens=8 && grep -q '^KL  *0.0000 ± 0.0000 nats' "$scratch/out" && grep -q '^reward  *-' "$scratch/out"
tell "a model is no distance from itself" $?
run 2 eval policy base held.txt --reward regex --pattern s generate.top_p=0.5 && one_error && says 'whole distribution' &&
    run 2 eval policy base held.txt --reward regex --pattern s generate.temperature=0 && one_error && says 'more than 0' &&
    run 2 eval policy base held.txt && one_error && says 'rejection.word'
tell "part of a distribution has no KL; a rule needs its word" $?
rm -rf measured

# ---- resumption ----

# Runs in folders of their own have the same paths, and so the same bytes.
beside() { # NAME
    rm -rf "${scratch:?}/$1"
    mkdir "$scratch/$1"
    cp -r base prompts.txt ppo.yaml "$scratch/$1"
    cd "$scratch/$1" || exit 1
}
losses_of() { sed -n 's/.*"step": \([0-9]*\).*"loss": \([^,]*\),.*/\1 \2/p' "$1/metrics.jsonl"; }
same_end() { [ -n "$(sums run 24)" ] && [ "$(sums "$work/run" 24)" = "$(sums run 24)" ] && [ "$(losses_of "$work/run")" = "$(losses_of run)" ]; }
for n in 1 2; do
    beside killed
    timeout 60 "$cria" ppo ppo.yaml 2>/dev/null &
    job=$!
    until [ "$(grep -c '"loss"' run/metrics.jsonl 2>/dev/null)" -ge $((4 * n + 2)) ] 2>/dev/null; do
        kill -0 $job 2>/dev/null || break
    done
    kill -KILL "$(pgrep -P $job)" 2>/dev/null
    { wait $job; } 2>/dev/null
    run 0 ppo ppo.yaml && says 'resuming at step' && same_end
    tell "a run killed within a rollout resumes to the same end ($n)" $?
    cd "$work" || exit 1
done
same_ppo_end() {
    [ -n "$(sums run 24)" ] && [ "$(sums "$scratch/whole/run" 24)" = "$(sums run 24)" ] && [ "$(losses_of "$scratch/whole/run")" = "$(losses_of run)" ]
}
for how in "" "lora.rank=4"; do
    beside whole
    run 0 ppo ppo.yaml ppo.algorithm=ppo $how
    beside killed
    timeout 60 "$cria" ppo ppo.yaml ppo.algorithm=ppo $how 2>/dev/null &
    job=$!
    until [ "$(grep -c '"loss"' run/metrics.jsonl 2>/dev/null)" -ge 10 ] 2>/dev/null; do
        kill -0 $job 2>/dev/null || break
    done
    kill -KILL "$(pgrep -P $job)" 2>/dev/null
    { wait $job; } 2>/dev/null
    run 0 ppo ppo.yaml ppo.algorithm=ppo $how && says 'resuming at step' && same_ppo_end
    tell "PPO killed within a rollout resumes to the same end, value model and all${how:+ ($how)}" $?
    cd "$work" || exit 1
done
beside longer
run 0 ppo ppo.yaml train.steps=10 && [ -e run/checkpoints/step-12/manifest.json ]
tell "a run's length is rounded up to whole rollouts" $?
run 0 ppo ppo.yaml && same_end
tell "a longer run goes on from a shorter one as if it had not ended" $?
cd "$work" || exit 1
run 2 ppo ppo.yaml ppo.samples=6 && one_error && says 'ppo.samples: 4 before, 6 now'
tell "another group size is refused on resumption" $?

# ---- programs ----

cat >judge.sh <<'END'
while IFS= read -r line; do case $line in *'"answer":'*'e'*'"record"'* | *'"answer":'*'e'*'}') echo 1 ;; *) echo 0.5 ;; esac; done
END
run 0 ppo ppo.yaml output=judged ppo.reward=program ppo.program="sh judge.sh" train.steps=8 && holds "$(metric judged 1 reward) >= 0.5"
tell "a program judges" $?
program_fails() { # STATUS COMMAND MESSAGE
    rm -rf failed
    run "$1" ppo ppo.yaml output=failed ppo.reward=program ppo.program="$2" && one_error && says "$3"
}
program_fails 1 "exit 3" "ppo.program: it ended with status 3"
tell "a program that fails" $?
program_fails 3 "cat >/dev/null; echo 1; echo 1; echo 1" "gave 3 scores for 32 answers"
tell "a program with too few answers" $?
program_fails 3 "while read -r line; do echo good; done" "ppo.program: its line 1 is 'good'"
tell "a program that writes no number" $?
program_fails 1 "/no/such/program" "ended with status 127"
tell "a program that is not there" $?

# ---- reward models: the answer that repeats the question's letter is preferred ----

awk 'BEGIN { for (i = 0; i < 120; i++) { a = 97 + i % 5; b = 97 + (i + 1 + i % 3) % 5
    printf "{\"prompt\": \"say %c\", \"chosen\": \"%c%c\", \"rejected\": \"%c%c!\"}\n", a, a, a, b, b } }' >pairs.jsonl
awk 'BEGIN { for (i = 0; i < 10; i++) printf "{\"prompt\": \"say %c\"%s}\n", 97 + i % 5, i % 2 ? ", \"safety\": true" : "" }' >asked.jsonl
run 0 reward ppo.yaml output=judge data.train=pairs.jsonl template.name=plain preferences.per_batch=8 train.steps=30 optim.lr=1e-2
tell "a reward model" $?
run 0 ppo ppo.yaml output=modelled data.train=asked.jsonl template.name=plain ppo.reward=model ppo.model=judge train.steps=12 &&
    holds "$(metric modelled 9 reward) > $(metric modelled 1 reward)"
tell "a reward model's reward rises" $?
run 0 ppo ppo.yaml output=both data.train=asked.jsonl template.name=plain ppo.reward=model ppo.model=judge ppo.safety_model=judge \
    ppo.whiten_scores=true train.steps=4 && [ "$(metric both 1 reward)" = "$(metric modelled 1 reward)" ]
tell "helpfulness and safety of the same model are its own" $?

sed 's/"chosen"/"other"/; s/"rejected"/"chosen"/; s/"other"/"rejected"/' pairs.jsonl >reversed.jsonl
sed 's/"prompt": "\([^"]*\)".*/"prompt": "\1", "safety": true}/' asked.jsonl >safe.jsonl
run 0 reward ppo.yaml output=contrary data.train=reversed.jsonl template.name=plain preferences.per_batch=8 train.steps=30 optim.lr=1e-2
for who in "mixed judge contrary" "unsafe contrary contrary" "useful judge judge"; do
    set -- $who
    run 0 ppo ppo.yaml output=$1 data.train=safe.jsonl template.name=plain ppo.reward=model ppo.model=$2 ppo.safety_model=$3 train.steps=4
done
[ "$(metric mixed 1 reward)" = "$(metric unsafe 1 reward)" ] && [ "$(metric mixed 1 reward)" != "$(metric useful 1 reward)" ]
tell "where a record is one of safety, that model's score is the reward" $?
run 0 ppo ppo.yaml output=from_judge data.train=asked.jsonl template.name=plain ppo.algorithm=ppo ppo.reward=model ppo.model=judge \
    train.steps=8 && ! says 'begins as the policy' && ! holds "$(metric from_judge 1 val/var_explained) == 0"
tell "the value model begins as the reward model" $?
judged_adapter() { # RUN MODEL
    run 0 ppo ppo.yaml output=$1 data.train=asked.jsonl template.name=plain ppo.algorithm=ppo ppo.reward=model ppo.model=$2 lora.rank=4 train.steps=4 "${@:3}"
}
on_judge() { # STEPS
    judged_adapter from_whole judge train.steps=$1
}
all_sums() { grep '"name": ".*.h5"' "$1/checkpoints/step-$2/manifest.json"; }
on_judge 8 && ! says 'begins as the policy' && ! holds "$(metric from_whole 1 val/var_explained) == 0" &&
    grep -aq '"base_model_name_or_path": "judge"' from_whole/checkpoints/step-8/value.h5 && all_sums from_whole 8 >whole.sums && [ "$(wc -l <whole.sums)" -eq 4 ]
tell "under adapters, where the reward model is a whole one, it begins as that, on a body of its own" $?
mv from_whole uninterrupted
on_judge 4 && on_judge 8 && says 'resuming at step 4' && all_sums from_whole 8 | cmp - whole.sums
tell "stopped and resumed, the same bits, the value model's too" $?
run 0 ppo ppo.yaml output=from_value data.train=asked.jsonl template.name=plain ppo.algorithm=ppo ppo.reward=contains ppo.word=a ppo.value_model=from_judge lora.rank=4 train.steps=4 &&
    ! holds "$(metric from_value 1 val/var_explained) == 0" && grep -aq '"base_model_name_or_path": "from_judge/.*value.h5"' from_value/checkpoints/step-4/value.h5
tell "under adapters it begins as another run's whole value model too" $?
run 0 pretrain base.yaml output=smaller model.dim=16 train.steps=2 &&
    run 0 ppo ppo.yaml output=other_size ppo.algorithm=ppo ppo.value_model=smaller lora.rank=4 train.steps=2 &&
    holds "$(metric other_size 1 val/var_explained) == 0"
tell "a body of its own may be of another shape, and a language model's head is zero" $?
run 0 reward ppo.yaml output=judge_adapter data.train=pairs.jsonl template.name=plain preferences.per_batch=8 train.steps=30 optim.lr=1e-2 lora.rank=4
judged_adapter from_adapter judge_adapter && ! says 'begins as the policy' && ! holds "$(metric from_adapter 1 val/var_explained) == 0"
tell "under adapters, where the reward model is one on the same base, it begins as that" $?

# ---- wrong usage and data ----

wrong() { # MESSAGE ARGUMENTS…
    local message=$1
    shift
    rm -rf wrong
    run 2 ppo ppo.yaml output=wrong "$@" && one_error && says "$message"
}
wrong "ppo.word is needed" ppo.reward=contains
tell "no word" $?
wrong "ppo.pattern: " ppo.reward=regex 'ppo.pattern=a(b'
tell "a broken pattern" $?
wrong "does not divide ppo.prompts" ppo.minibatches=3
tell "minibatches that do not divide" $?
wrong "at least 2 are needed" ppo.samples=1
tell "a group of one" $?
wrong "a step is ppo.prompts" train.tokens_per_batch=4096
tell "tokens_per_batch" $?
wrong "give train.steps or train.epochs" train.steps=0 train.tokens=100000
tell "a length in tokens" $?
wrong "leaves no room for an answer" train.context=8 train.tokens_per_microbatch=64
tell "prompts that fill the context" $?
wrong "merge .* into its base" lora.rank=4 lora.init=adapted
tell "an adapter to begin from" $?
run 0 pretrain base.yaml output=short train.context=16 train.steps=2 model.max_context=16 train.tokens_per_microbatch=64
run 0 pretrain base.yaml output=wider model.dim=48 train.steps=2
wrong "another shape than the policy" ppo.algorithm=ppo ppo.value_model=wider
tell "a value model of another shape" $?
wrong "made for at most" ppo.algorithm=ppo ppo.value_model=short lora.rank=4
tell "a whole value model under adapters whose context is too short" $?
wrong "its weight must be 1" 'data.train=[{path: prompts.txt, weight: 2}]'
tell "weights of sources" $?
refused() { # MESSAGE FILE
    rm -rf wrong
    run 3 ppo ppo.yaml output=wrong data.train="$2" && one_error && says "$1"
}
printf '{"prompt": "a"}\n{"prompt": 7}\n' >bad.jsonl
refused "bad.jsonl, line 2" bad.jsonl
tell "a damaged record" $?
: >empty.txt
refused "no prompt in it" empty.txt
tell "an empty file" $?
run 0 ppo --help && grep -q 'ppo.epsilon_high' "$scratch/out" && grep -q 'ppo.word' "$scratch/out"
tell "help" $?
finish
