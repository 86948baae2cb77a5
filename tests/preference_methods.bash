# The preference task's prompts, methods and measure: for tests/preference_task.sh and tests/e2e_preference.sh, which
# set $cria, $stories and $out. Each learn_METHOD adds lines to $out/points: METHOD STEP REWARD ± KL ±.
#
# Three sets of prompts, about other children each: what is learned from; what the recipes below were tried on, and a run's
# best checkpoint is chosen by (validation); and one that nothing was ever chosen by, which alone is reported (final).

samples=${samples:-4}             # answers to each validation prompt
final_samples=${final_samples:-8} # and to each of the final ones
answer_tokens=48
kl_bound=9 # of the checkpoint that is chosen; the goal is 10

# Beginnings of stories: five to each child.
make_prompts() { # FOLDER
    awk -v folder="$1" 'function write(file, list,   n, i, name, other, child) {
            n = split(list, names, " ")
            for (i = 1; i <= n; i++) {
                name = names[i]; other = names[1 + (i + 5) % n]; child = i % 2 ? "boy" : "girl"
                print "Once upon a time, there was a " child " named " name "." >file
                print "One day, " name " went to" >file
                print name " was a " child " who liked to play" >file
                print name " and " other " were" >file
                print "Once there was a " child " called " name ". " name >file
            }
        }
        BEGIN {
            write(folder "/train.txt", "Tim Lily Ben Mia Sam Tom Anna Max Lucy Jack Sue Bob Amy Jim Sara Leo Jane Mark Kim Dan " \
                "John Sarah Bobby Sally Timmy Jenny Mike Kate Peter Mary David Lisa Jimmy Susie Alex Molly Freddy Rosie Harry Ellie " \
                "Charlie Polly Robert Alice Danny Nora Oscar Ruby Simon Clara")
            write(folder "/validation.txt", "Joe Emma Nick Ella Billy Grace Fred Rose Pete Daisy Luke Zoe Adam Amelia Henry Sophie Will Hannah Jake Eva")
            write(folder "/final.txt", "Andy Beth Carl Dora Eric Fiona George Helen Ian Julia Kevin Laura Martin Nina Owen Paula Ralph Sandra Toby Vera " \
                "Walter Wendy Zach Becky Chris Diana Edward Freya Gavin Holly Isaac Jill Karl Lena Marcus Nelly Otto Penny Roger Stella")
        }'
}

prepare() {
    make_prompts "$out"
    rm -rf "${out:?}/base"
    "$cria" import "$stories/stories260K.bin" "$out/base" --tokenizer "$stories/tok512.bin" 2>"$out/base.log"
    : >"$out/points"
    : >"$out/models"
}

# ---- the measure ----

card() { # MODEL PROMPTS SAMPLES: JSON; answers are texts that go on, whatever template a model has
    "$cria" eval policy "$1" "$out/$2.txt" --reference "$out/base" --reward contains --word cat --samples "$3" --max-batch 64 \
        rejection.chat=no generate.max_new_tokens=$answer_tokens --json 2>"$out/card.log" || { tail -n 5 "$out/card.log" >&2; return 1; }
}
figure_of() { sed -nE "s|.*\"$1\": ([-0-9.e+]+)[,}].*|\1|p"; } # NAME
figures_of() { # MODEL PROMPTS SAMPLES: reward, its standard error, KL, its standard error
    local json
    json=$(card "$@") || return 1
    echo "$(figure_of reward <<<"$json") $(figure_of reward_error <<<"$json") $(figure_of objective/kl <<<"$json") $(figure_of objective/kl_error <<<"$json")"
}
measure() { # METHOD STEP MODEL
    echo "$1 $2 $(figures_of "$3" validation "$samples")" >>"$out/points"
    echo "$1 $2 $3" >>"$out/models"
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
chosen() { # METHOD: the step with the highest reward of validation prompts within $kl_bound nats
    awk -v method="$1" -v bound="$kl_bound" '$1 == method && $5 <= bound && $3 > most { most = $3; step = $2 } END { print step }' "$out/points"
}
# Of the chosen step, with final prompts: METHOD STEP REWARD ± KL ±
report() { # METHOD
    local step model
    step=$(chosen "$1")
    [ -n "$step" ] || return 1
    model=$(awk -v method="$1" -v step="$step" '$1 == method && $2 == step { print $3 }' "$out/models")
    echo "$1 $step $(figures_of "$model" final "$final_samples")"
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
        rejection.chat=no rejection.reward=contains rejection.word=cat rejection.least_score=1 rejection.keep=40 generate.max_new_tokens=$answer_tokens \
        generate.temperature=1 generate.top_p=1 "$@" 2>"$out/$run.log" || { tail -n 5 "$out/$run.log"; return 1; }
}

# The base's own answers, of which DPO has pairs and rejection sampling its first round.
sample_base() { # SAMPLES
    [ -e "$out/base-samples-$1/sft.jsonl" ] || sample "base-samples-$1" "$out/base" "$1"
}

# The rule decides between two answers of one model (Rafailov et al. 2023): in the first round of the base, then of the newest
# policy (Xu et al. 2023, iterative DPO; the rounds of Grattafiori et al. 2024). The base stays the reference.
learn_dpo() { # SAMPLES LATER-SAMPLES STEPS-OF-EACH-ROUND …
    local k=${1:-256} later=${2:-40} model=$out/base pairs round=0 steps how
    [ $# -gt 2 ] || set -- "$k" "$later" 10 60 20
    shift 2
    sample_base "$k"
    for steps in "$@"; do
        round=$((round + 1)) pairs=$out/base-samples-$k how="optim.lr=1.5e-4 train.checkpoint_every=5"
        [ "$round" -eq 1 ] || { pairs=$out/dpo-samples-$round how="optim.lr=5e-5 train.checkpoint_every=10" && sample "dpo-samples-$round" "$model" "$later" generate.seed="$round"; }
        train dpo "dpo-$round" model.base="$model" dpo.reference="$out/base" template.name=plain data.train="$pairs/pairs.jsonl" data.validation=0 \
            preferences.per_batch=128 preferences.mask_stop=true dpo.beta=0.5 train.steps="$steps" $how
        measure_run dpo "dpo-$round" "$round."
        model=$out/dpo-$round
    done
}

# Rounds as in Llama 2's section 3.2.3: a model's best answers teach it, and what it becomes answers anew. Answers are cut off,
# and do not teach how to end.
learn_rejection() { # ROUNDS SAMPLES LATER-SAMPLES
    local rounds=${1:-6} k=${2:-256} later=${3:-30} round model=$out/base records how
    sample_base "$k"
    for round in $(seq 1 "$rounds"); do
        records=$out/base-samples-$k how="train.epochs=2 optim.lr=5e-4"
        [ "$round" -eq 1 ] || { records=$out/best-$round how="train.epochs=1 optim.lr=2e-4" && sample "best-$round" "$model" "$later" generate.seed="$round"; }
        train sft "rejection-$round" model.base="$model" template.name=plain sft.mask_stop=true data.train="$records/sft.jsonl" data.validation=0 \
            train.tokens_per_batch=8192 optim.schedule=cosine $how
        measure_run rejection "rejection-$round" "$round."
        model=$out/rejection-$round
    done
}

# beta is what the distance from the base follows; the learning rate falls to nothing, so that a run ends where they balance.
reinforce() { # METHOD STEPS ARGUMENTS …
    local method=$1 steps=$2
    shift 2
    train ppo "$method" model.base="$out/base" data.train="$out/train.txt" data.validation=0 ppo.algorithm="$method" ppo.reward=contains ppo.word=cat \
        ppo.prompts=32 ppo.samples=8 generate.max_new_tokens=$answer_tokens train.steps="$steps" train.checkpoint_every=8 \
        optim.lr=3e-4 optim.schedule=cosine "$@"
    measure_run "$method" "$method" ""
}
learn_rloo() { reinforce rloo "${1:-80}" ppo.beta=0.035; }
learn_grpo() { reinforce grpo "${1:-120}" ppo.beta=0.07; }
learn_ppo() { reinforce ppo "${1:-80}" ppo.beta=0.035 ppo.value_lr=1e-3 ppo.epochs=2; }
