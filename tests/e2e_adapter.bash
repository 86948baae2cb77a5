# What the tests of adapters have in common. Sourced after e2e.bash, within a folder of make_folder.

say_records() { # two letters to be said for each of five prompts
    awk 'BEGIN { for (i = 0; i < 200; i++) printf "{\"prompt\": \"say %c\", \"completion\": \"%c%c\"}\n", 97 + i % 5, 97 + i % 5, 97 + i % 5 }' >records.jsonl
}

make_bases() { # untied and tied, and base.sums of all they consist of
    local shape="model.dim=48 model.n_heads=4 model.n_kv_heads=2 model.ffn_dim=96 model.max_context=256"
    run 0 pretrain config.yaml output=untied train.steps=100 $shape train.checkpoint_every=0 &&
        run 0 pretrain config.yaml output=tied train.steps=100 $shape model.tie_embeddings=true train.checkpoint_every=0
    tell "bases are made" $?
    find untied tied -type f -exec md5sum {} + | sort >base.sums
}

loss() { run 0 eval loss "$1" records.jsonl --window 64 --json && json_number loss "$scratch/out"; }
near() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && b != "" && a - b < 1e-5 && b - a < 1e-5) }'; }
answers() { run 0 generate "$@" --chat -p "say c" --temperature 0 -n 20 && [ "$(tr -d ' \n' <"$scratch/out")" = cc ]; }
has() { grep -q "\"name\": \"$1\"" "$scratch/out"; }
