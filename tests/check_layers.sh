#!/usr/bin/env bash
# Proves that includes point downward only. Floors as in README: a file may include its own room and rooms on a lower
# floor (a room's options.def is open to configs alone).
set -euo pipefail
cd "$(dirname "$0")/.."
find . \( -name '.?*' -o -name 'build*' -o -name tests -o -name runs \) -prune -o -type f -name '*.[ch]' -print -o -type f -name '*.def' -print | sed 's,^\./,,' | xargs awk '
function room(path,   dir) {
    dir = path
    if (!sub("/[^/]*$", "", dir)) return ""
    return dir
}
BEGIN {
    floor["model/core"] = 0
    floor["model/kernels"] = 1; floor["model/kernels/fast"] = 1; floor["model/kernels/products"] = 1; floor["model/kernels/reference"] = 1; floor["dist"] = 1; floor["data"] = 1; floor["data/tokenizer"] = 1; floor["data/chat"] = 1
    floor["model/autodiff"] = 2; floor["model/ops"] = 2
    floor["model"] = 3; floor["model/formats"] = 3; floor["optim"] = 3
    floor["eval"] = 4; floor["configs"] = 5
    floor["train/console"] = 6; floor["train/files"] = 7; floor["train/objectives"] = 7; floor["train/answers"] = 8; floor["train/loop"] = 8
    floor["train"] = 9; floor["train/ppo"] = 10; floor["train/sampling"] = 10; floor["train/rounds"] = 11; floor["train/commands"] = 12
    same["model/autodiff", "model/ops"] = same["model/ops", "model/autodiff"] = 1
    same["model/kernels", "model/kernels/reference"] = same["model/kernels/reference", "model/kernels"] = 1
    same["model/kernels", "model/kernels/fast"] = same["model/kernels/fast", "model/kernels"] = 1
    same["model/kernels", "model/kernels/products"] = same["model/kernels/products", "model/kernels"] = 1
    same["model/kernels/fast", "model/kernels/reference"] = same["model/kernels/fast", "model/kernels/products"] = 1
    same["model/kernels/products", "model/kernels/fast"] = 1 # the references know no fast kernel
    same["model", "model/formats"] = 1
    same["data", "data/tokenizer"] = same["data/tokenizer", "data"] = 1
    same["data/chat", "data"] = same["data/chat", "data/tokenizer"] = 1
}
/^[ \t]*#[ \t]*include[ \t]*"/ {
    split($0, part, "\"")
    from = room(FILENAME); to = room(part[2])
    if (!(from in floor)) { print FILENAME ": not in a room of the house"; bad++; next }
    if (!(to in floor)) { print FILENAME ":" FNR ": includes \"" part[2] "\", which is in no room"; bad++; next }
    checked++
    if (from == to || floor[to] < floor[from] || (from, to) in same) next
    if (from == "configs" && part[2] ~ /options\.def$/) next
    print FILENAME ":" FNR ": " from " (floor " floor[from] ") includes " part[2] " (floor " floor[to] ")"
    bad++
}
END {
    printf "check-layers: %d includes, %d wrong\n", checked, bad
    exit bad > 0 || checked == 0
}'
