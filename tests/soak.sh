#!/usr/bin/env bash
# make soak: what takes too long for every day. 50 kills at random instants, half of them inside a save; many more
# hostile inputs, also under the sanitizers; every random test from other seeds; end to end twice over; bf16 beside fp32.
#   KILLS=50 HOSTILE=40 ROUND_KILLS=25 tests/soak.sh
. "$(dirname "$0")/e2e.bash"
kills=${KILLS:-50} hostile=${HOSTILE:-40}
root=$PWD
steps=60
echo "seed: ${SOAK_SEED:=$RANDOM} (SOAK_SEED=… repeats it)"
RANDOM=$SOAK_SEED

# ---- kills ----

make_folder whole
make_folder killed
cd "$scratch" || exit 1
for folder in whole killed; do sed -i "s/steps: 40/steps: $steps/; s/checkpoint_every: 10/checkpoint_every: 1/; s/validate_every: 10/validate_every: 7/" $folder/config.yaml; done
(cd whole && run 0 pretrain config.yaml)
tell "a run of $steps steps that saves after each" $?

same_end() {
    [ -n "$(sums whole/run $steps)" ] && [ "$(sums killed/run $steps)" = "$(sums whole/run $steps)" ] && each_step_once killed/run $steps &&
        [ "$(losses killed/run)" = "$(losses whole/run)" ]
}
newest() { ls -t killed/run/checkpoints 2>/dev/null | grep -c 'step-'; }
# A save is going on from the moment its folder is there until its manifest is.
saving() { for folder in killed/run/checkpoints/step-*; do [ -d "$folder" ] && [ ! -e "$folder/manifest.json" ] && return 0; done; return 1; }
random_milliseconds() { printf '0.%03d' $((RANDOM % $1)); }

# Starts the run and kills it: inside a save, or anywhere. $where says what was hit; $done_ends whether it was too late.
kill_once() { # save|anywhere
    (cd killed && exec timeout 120 "$cria" pretrain config.yaml 2>../log) &
    local job=$! pid deadline=$((SECONDS + 60))
    until pid=$(pgrep -P $job); do [ "$SECONDS" -lt "$deadline" ] || break; done
    if [ "$1" = save ]; then
        local skip=$((RANDOM % 4)) # not always the first one
        for ((; skip >= 0; skip--)); do
            until saving || ! kill -0 "$pid" 2>/dev/null; do :; done
            [ $skip -eq 0 ] || until ! saving || ! kill -0 "$pid" 2>/dev/null; do :; done
        done
        [ $((RANDOM % 2)) -eq 0 ] || sleep 0.00$((RANDOM % 10))
    else
        sleep "$(random_milliseconds 900)"
    fi
    kill -STOP "$pid" 2>/dev/null # so that what is looked at is what the death leaves
    where=anywhere
    saving && where=save
    kill -KILL "$pid" 2>/dev/null
    { wait $job; } 2>/dev/null
    status=$?
}
inside=0 begun=0 loaded=0 complete=0 wrong=0
for ((n = 0; n < kills; n++)); do
    kill_once $([ $((n % 2)) -eq 0 ] && echo save || echo anywhere)
    [ "$where" = save ] && inside=$((inside + 1))
    # The next start loads what there is: something as soon as one save was complete.
    if ls killed/run/checkpoints/step-*/manifest.json >/dev/null 2>&1; then
        begun=$((begun + 1))
        "$cria" inspect killed/run >/dev/null 2>err && loaded=$((loaded + 1)) || { echo "after kill $n ($where):"; cat err; }
    fi
    if [ $status -eq 0 ] || [ -e killed/run/checkpoints/step-$steps/manifest.json ]; then # it got to the end: compare, and begin anew
        (cd killed && run 0 pretrain config.yaml) && same_end || { wrong=$((wrong + 1)); sed 's/^/    | /' err | tail; }
        complete=$((complete + 1))
        rm -rf killed/run
    fi
done
echo "$kills kills, $inside of them inside a save; $complete runs got to their end meanwhile"
[ "$loaded" -eq "$begun" ] && [ "$begun" -gt 0 ]
tell "after every kill ($begun with a checkpoint) a checkpoint loads" $?
[ $((inside * 5)) -ge $((kills * 2)) ]
tell "two fifths of the kills and more were inside a save ($inside)" $?
(cd killed && run 0 pretrain config.yaml) && same_end && [ "$wrong" -eq 0 ]
tell "after $kills kills every run ends bit for bit as the uninterrupted one" $?

# ---- more hostile inputs ----

cd "$root" || exit 1
CRIA_HOSTILE=$hostile CRIA_HOSTILE_SEED=$RANDOM bash tests/e2e_hostile.sh >"$scratch/err"
status=$?
tell "hostile inputs, $hostile of a kind ($(grep 'hostile inputs:' "$scratch/err"))" $status
if [ -z "${NO_ASAN:-}" ]; then
    make --no-print-directory BUILD=build-asan OPTIMISE="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined" \
        LDFLAGS="-fsanitize=address,undefined" build-asan/cria >"$scratch/err" 2>&1 &&
        CRIA=$root/build-asan/cria CRIA_HOSTILE_SEED=$RANDOM bash tests/e2e_hostile.sh >"$scratch/err"
    status=$?
    tell "hostile inputs under ASan and UBSan ($(grep 'hostile inputs:' "$scratch/err"))" $status
fi
for name in test_formats_hostile test_tokenizer_damage test_config test_plan; do
    CRIA_FUZZ=${FUZZ:-20} CK_TIMEOUT_MULTIPLIER=20 timeout 3600 "${BUILD:-build}/tests/$name" >"$scratch/err" 2>&1
    tell "$name with ${FUZZ:-20} times the random cases" $?
done
for ((n = 0; n < 3; n++)); do
    bash tests/e2e_resume.sh >"$scratch/err" 2>&1
    tell "tests/e2e_resume.sh again, at other steps" $?
done

CRIA_ROUND_KILLS=${ROUND_KILLS:-25} timeout 7200 bash tests/e2e_rounds.sh >"$scratch/err"
status=$?
tell "rounds killed in every stage, ${ROUND_KILLS:-25} times over ($(grep 'killed inside' "$scratch/err"))" $status

# ---- bf16 ----

bash tests/bf16_trains.sh >"$scratch/err" 2>&1
status=$?
grep -vE '^[0-9]+ passed' "$scratch/err"
tell "bf16 trains as well as fp32" $status
finish
