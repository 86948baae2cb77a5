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
        rejection.chat=no rejection.reward=contains rejection.word=cat rejection.least_score=1 rejection.keep=24 generate.max_new_tokens=$answer_tokens \
        generate.temperature=1 generate.top_p=1 "$@" 2>"$out/$run.log" || { tail -n 5 "$out/$run.log"; return 1; }
}

# The base's own answers, of which DPO has pairs and rejection sampling its first round.
sample_base() { # SAMPLES
    [ -e "$out/base-samples-$1/sft.jsonl" ] || sample "base-samples-$1" "$out/base" "$1"
}

# The rule decides between two answers of the base (Rafailov et al. 2023).
learn_dpo() { # SAMPLES STEPS
    local k=${1:-128} steps=${2:-60}
    sample_base "$k"
    train dpo dpo model.base="$out/base" template.name=plain data.train="$out/base-samples-$k/pairs.jsonl" data.validation=0 train.checkpoint_every=5 \
        preferences.per_batch=128 preferences.mask_stop=true dpo.beta=1 optim.lr=1.5e-4 train.steps="$steps"
    measure_run dpo dpo ""
}

# Rounds as in Llama 2's section 3.2.3: the best answers of the newest model teach the base, each time anew. Answers are cut off,
# and do not teach how to end.
learn_rejection() { # ROUNDS SAMPLES
    local rounds=${1:-4} k=${2:-128} round model=$out/base records
    sample_base "$k"
    for round in $(seq 1 "$rounds"); do
        records=$out/base-samples-$k
        [ "$round" -eq 1 ] || { records=$out/best-$round && sample "best-$round" "$model" 24 generate.seed="$round"; }
        train sft "rejection-$round" model.base="$out/base" template.name=plain sft.mask_stop=true data.train="$records/sft.jsonl" data.validation=0 \
            train.epochs=1 train.tokens_per_batch=8192 optim.schedule=cosine optim.lr=1e-3
        measure_run rejection "rejection-$round" "$round."
        model=$out/rejection-$round
    done
}

reinforce() { # METHOD STEPS ARGUMENTS …
    local method=$1 steps=$2
    shift 2
    train ppo "$method" model.base="$out/base" data.train="$out/train.txt" data.validation=0 ppo.algorithm="$method" ppo.reward=contains ppo.word=cat \
        ppo.prompts=32 generate.max_new_tokens=$answer_tokens train.steps="$steps" train.checkpoint_every=5 "$@"
    measure_run "$method" "$method" ""
}
learn_rloo() { reinforce rloo "${1:-40}" ppo.samples=8 optim.lr=3e-4 ppo.beta=0.03; }
learn_grpo() { reinforce grpo "${1:-40}" ppo.samples=8 optim.lr=3e-4 ppo.beta=0.08; }
learn_ppo() { reinforce ppo "${1:-60}" ppo.samples=8 optim.lr=3e-4 ppo.beta=0.05 ppo.value_lr=1e-3 ppo.epochs=2; }
