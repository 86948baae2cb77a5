#!/usr/bin/env bash
# What runs say in words: each diagnosis by a run that shows it, and silence of one beside it that does not. Every remark is
# in the figures too, from which the report of rounds has it.
. "$(dirname "$0")/e2e.bash"

mkdir "$scratch/work"
cd "$scratch/work" || exit 1
make_text text.txt 400
cat >base.yaml <<'END'
output: base
precision: fp32
model: {dim: 32, n_layers: 2, n_heads: 2, n_kv_heads: 1, ffn_dim: 64, max_context: 128}
tokenizer: {path: bytes}
data: {train: [{path: text.txt, separator: "\n"}], validation: 0}
optim: {lr: 1.0e-2}
train: {steps: 100, tokens_per_batch: 1024, tokens_per_microbatch: 1024, context: 96}
END
run 0 pretrain base.yaml
tell "a base to begin from" $?

everything="runs away|with length only|entropy collapses|no signal|value loss explodes|has learned nothing|become less likely|follow the answers' lengths|not told apart"
shows() { # RUN WORDS REMEDY: said when it happened, with what to change, and kept
    says "step [0-9]*: .*$2.*$3" && grep -q "\"remark\": \".*$2" "$1/metrics.jsonl"
}
silent() { # RUN
    ! grep -Eq "$everything" "$scratch/err" && ! grep -q '"remark"' "$1/metrics.jsonl"
}
metric() { # RUN STEP NAME
    sed -n "s|^{\"step\": $2, .*\"$3\": \([-0-9.e+]*\)[,}].*|\1|p" "$1/metrics.jsonl" | head -n 1
}
holds() { awk "BEGIN { exit !($1) }"; }

# ---- policies ----

printf '%s\n' "the llama walks" "green hills and" "small birds sing" "near old stone" "in bright morning" "soft grass while" "walls in" "over green" >prompts.txt
cat >ppo.yaml <<'END'
output: run
precision: fp32
model: {base: base}
data: {train: [{path: prompts.txt}], validation: 0}
ppo: {algorithm: rloo, reward: regex, pattern: ea, prompts: 8, samples: 8, beta: 0.2}
optim: {lr: 3.0e-4, schedule: constant, warmup: 0, weight_decay: 0}
generate: {max_new_tokens: 32}
train: {steps: 16, context: 80, tokens_per_microbatch: 1024, checkpoint_minutes: 0}
END
policy() { # RUN ARGUMENTS …
    run 0 ppo ppo.yaml output="$@"
}
policy healthy && silent healthy && holds "$(metric healthy 16 reward) > $(metric healthy 1 reward) + 0.1"
tell "a policy that learns within its bounds is left alone" $?
policy away ppo.beta=0 optim.lr=2e-2 && shows away "the KL divergence runs away" "raise ppo.beta"
tell "one that runs away from its reference is told of" $?
most='awk "{ print gsub(/e/, \"\"); fflush() }"' # of one letter
policy narrow ppo.beta=0 optim.lr=3e-3 train.steps=24 ppo.reward=program ppo.program="$most" && shows narrow "the entropy collapses" "raise ppo.beta"
tell "and one whose answers become the same" $?
length='awk "{ print length(\$0); fflush() }"'
policy long ppo.reward=program ppo.program="$length" ppo.scale_rewards=group ppo.algorithm=grpo generate.max_new_tokens=64 && shows long "the reward rises with length only" "Penalise length"
tell "a reward that is the length" $?
policy mute ppo.pattern=xyzzy train.steps=4 && shows mute "no signal" "take others"
tell "a reward that nothing earns" $?

# ---- preferences ----

cat >dpo.yaml <<'END'
output: run
precision: fp32
model: {base: base}
template: {name: plain}
preferences: {per_batch: 16}
optim: {lr: 3.0e-3, schedule: constant, warmup: 0, weight_decay: 0}
train: {steps: 52, tokens_per_microbatch: 2048, context: 96, checkpoint_minutes: 0}
END
# A prompt of two words, and answers that the base may give: KIND says what parts them.
pairs() { # KIND FILE
    awk -v kind="$1" 'function random(n) { seed = (seed * 16807) % 2147483647; return seed % n }
        function words(k,   line) { for (line = ""; k > 0; k--) line = line word[1 + random(n)] " "; return line }
        BEGIN { seed = 11; n = split("the llama walks over green hills and eats soft grass while small birds sing near old stone walls in bright morning light", word, " ")
            for (i = 0; i < 1248; i++) {
                strength = i % 2 ? "significantly" : "slightly"
                chosen = words(4); rejected = words(4)
                if (kind == "last") { chosen = words(8); rejected = chosen "wall"; chosen = chosen "hill" } # the same but for the end
                if (kind == "light") { chosen = "light " chosen }
                if (kind == "one") { chosen = "light light light" }
                if (kind == "clear" && i % 2) { chosen = "light " chosen }
                if (kind == "both") { chosen = "light " chosen }
                printf "{\"prompt\": \"%s\", \"chosen\": \"%s\", \"rejected\": \"%s\", \"strength\": \"%s\"}\n", words(2), chosen, rejected, strength
            } }' >"$2"
}
for kind in last light one clear both; do pairs $kind $kind.jsonl; done
prefer() { # RUN DATA ARGUMENTS …
    local run=$1 data=$2
    shift 2
    run 0 dpo dpo.yaml output="$run" data.train="$data" data.validation=0 "$@"
}
prefer calm both.jsonl dpo.nll=0.2 optim.lr=5e-4 train.steps=78 && silent calm && holds "$(metric calm 78 rewards/accuracies) > 0.8"
tell "preferences that are learned are left alone" $?
prefer falls last.jsonl && shows falls "chosen answers become less likely" "Try dpo.nll=0.2, a larger dpo.beta"
tell "chosen answers that become less likely, with the rejected ones they resemble" $?
prefer held last.jsonl optim.lr=3e-3 dpo.nll=0.4 && ! says "become less likely"
tell "and do not, by the remedy" $?
prefer flat clear.jsonl optim.lr=1e-3 preferences.per_batch=20 && shows flat "slightly and negligibly better answers are not told apart" "dpo.label_smoothing=0.1 with dpo.loss=robust"
tell "slight preferences that are noise" $?
prefer one one.jsonl dpo.nll=1 optim.lr=1e-2 && shows one "entropy collapses" "smaller optim.lr"
tell "answers that become all alike" $?
finish
