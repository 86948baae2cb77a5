# The preference task's prompts, methods and measure: for tests/preference_task.sh and tests/e2e_preference.sh, which
# set $cria, $stories and $out. Each learn_METHOD adds lines to $out/points: METHOD STEP REWARD ± KL ±.

samples=${samples:-8} # answers to each held-out prompt
answer_tokens=48

# Beginnings of stories: 250 to learn from, of fifty children, and 50 held out, of ten others.
make_prompts() { # DIRECTORY
    awk -v folder="$1" 'BEGIN {
        n = split("Tim Lily Ben Mia Sam Tom Anna Max Lucy Jack Sue Bob Amy Jim Sara Leo Jane Mark Kim Dan " \
                  "John Sarah Bobby Sally Timmy Jenny Mike Kate Peter Mary David Lisa Jimmy Susie Alex Molly Freddy Rosie Harry Ellie " \
                  "Charlie Polly Robert Alice Danny Nora Oscar Ruby Simon Clara " \
                  "Joe Emma Nick Ella Billy Grace Fred Rose Pete Daisy", name, " ")
        for (i = 1; i <= n; i++) {
            held = i > 50; first = held ? 50 : 0; size = held ? 10 : 50
            other = name[first + (i - first - 1 + 6) % size + 1]; child = i % 2 ? "boy" : "girl"
            file = folder (held ? "/held.txt" : "/train.txt")
            print "Once upon a time, there was a " child " named " name[i] "." >file
            print "One day, " name[i] " went to" >file
            print name[i] " was a " child " who liked to play" >file
            print name[i] " and " other " were" >file
            print "Once there was a " child " called " name[i] ". " name[i] >file
        }
    }'
}

prepare() {
    make_prompts "$out"
    rm -rf "${out:?}/base"
    "$cria" import "$stories/stories260K.bin" "$out/base" --tokenizer "$stories/tok512.bin" 2>"$out/base.log"
}

# ---- the measure ----

card() { # MODEL: JSON; answers are texts that go on, whatever template a model has
    "$cria" eval policy "$1" "$out/held.txt" --reference "$out/base" --reward contains --word cat --samples "$samples" --max-batch 64 \
        rejection.chat=no generate.max_new_tokens=$answer_tokens --json 2>"$out/card.log" || { tail -n 5 "$out/card.log" >&2; return 1; }
}
figure_of() { sed -nE "s|.*\"$1\": ([-0-9.e+]+)[,}].*|\1|p"; } # NAME
reward_of() { card "$out/$1" | figure_of reward; } # RUN
measure() { # METHOD STEP MODEL
    local json
    json=$(card "$3")
    echo "$1 $2 $(figure_of reward <<<"$json") $(figure_of reward_error <<<"$json") $(figure_of objective/kl <<<"$json") $(figure_of objective/kl_error <<<"$json")" >>"$out/points"
}
measure_run() { # METHOD RUN NAME: every checkpoint, in order; NAME before its step
    local step
    for step in $(find "$out/$2/checkpoints" -maxdepth 1 -name 'step-*' | sed 's/.*step-//' | sort -n); do
        measure "$1" "$3$step" "$out/$2/checkpoints/step-$step"
    done
}
reached() { # METHOD REWARD KL
    awk -v method="$1" -v reward="$2" -v kl="$3" '$1 == method && $3 >= reward && $5 <= kl { good = 1 } END { exit !good }' "$out/points"
}

# ---- the methods ----

train() { # COMMAND RUN ARGUMENTS …
    local command=$1 run=$2
    shift 2
    rm -rf "${out:?}/$run"
    "$cria" "$command" output="$out/$run" precision=fp32 train.context=128 train.tokens_per_microbatch=1024 train.keep_last=1000 \
        train.checkpoint_minutes=0 optim.schedule=constant optim.warmup=0 optim.weight_decay=0 "$@" 2>"$out/$run.log" ||
        { tail -n 5 "$out/$run.log"; return 1; }
}

sample() { # RUN MODEL SAMPLES ARGUMENTS …: cria rejection's records of the answers that have the word
    local run=$1 model=$2 k=$3
    shift 3
    rm -rf "${out:?}/$run"
    "$cria" rejection output="$out/$run" model.base="$model" rejection.prompts="$out/train.txt" rejection.samples="$k" rejection.max_batch=64 \
        rejection.chat=no rejection.reward=contains rejection.word=cat rejection.least_score=1 generate.max_new_tokens=$answer_tokens \
        generate.temperature=1 generate.top_p=1 "$@" 2>"$out/$run.log" || { tail -n 5 "$out/$run.log"; return 1; }
}

# Pairs of the base's own answers, the rule deciding between them (Rafailov et al. 2023).
learn_dpo() {
    sample dpo-pairs "$out/base" 32
    train dpo dpo model.base="$out/base" template.name=plain data.train="$out/dpo-pairs/pairs.jsonl" data.validation=0 \
        preferences.per_batch=64 preferences.mask_stop=true dpo.beta=0.1 optim.lr=3e-4 train.steps=40 train.checkpoint_every=5
    measure_run dpo dpo ""
}

# Rounds of Llama 2's section 3.2.3: the best of K answers of the newest model, and of earlier rounds, teach the base.
learn_rejection() {
    local round model=$out/base earlier="" k=32
    for round in 1 2 3; do
        sample "best-$round" "$model" $k generate.seed="$round" rejection.earlier="[$earlier]"
        train sft "rejection-$round" model.base="$out/base" template.name=plain data.train="$out/best-$round/sft.jsonl" data.validation=0 \
            train.tokens_per_batch=4096 optim.lr=1e-3 train.steps=20 train.checkpoint_every=5
        measure_run rejection "rejection-$round" "$round."
        model=$out/rejection-$round earlier=${earlier:+$earlier, }$out/best-$round k=8
    done
}

reinforce() { # METHOD ARGUMENTS …
    local method=$1
    shift
    train ppo "$method" model.base="$out/base" data.train="$out/train.txt" data.validation=0 ppo.algorithm="$method" ppo.reward=contains ppo.word=cat \
        ppo.prompts=32 generate.max_new_tokens=$answer_tokens train.steps=40 train.checkpoint_every=5 "$@"
    measure_run "$method" "$method" ""
}
learn_rloo() { reinforce rloo ppo.samples=8 optim.lr=3e-4 ppo.beta=0.05; }
learn_grpo() { reinforce grpo ppo.samples=8 optim.lr=3e-4 ppo.beta=0.12; }
learn_ppo() { reinforce ppo ppo.samples=8 optim.lr=3e-4 ppo.beta=0.05 ppo.value_lr=1e-3 ppo.epochs=2 train.steps=60; }
