#!/usr/bin/env bash
# Ranks: tests/mpi_mesh.c under mpirun with 1 to 4 ranks, and how a job ends when a rank aborts, dies or hangs.
set -uo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build}
program=$build/tests/mpi_mesh
output=$build/test-output/mpi
mkdir -p "$output"
scratch=$(mktemp -d) # what ranks that are killed leave behind goes with it
trap 'rm -rf "$scratch"' EXIT
ulimit -c 0 # the watchdog's abort is expected here
passed=0 failed=0 skipped=0

# One machine is enough; more ranks than cores are wanted; no process may read another's memory in most containers.
mpi=(mpirun --oversubscribe)
[ "$(id -u)" -ne 0 ] || mpi+=(--allow-run-as-root)
export OMPI_MCA_btl_vader_single_copy_mechanism=none
export OMPI_MCA_orte_tmpdir_base=$scratch OMPI_MCA_btl_vader_backing_directory=$scratch
export CK_FORK=no OMP_NUM_THREADS=1
# MPI leaves memory to the process's end; leaks of cria's own are looked for by the single-process tests.
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0
unset CRIA_THREADS SLURM_NTASKS SLURM_PROCID

check() { # name, condition's status, log: counts one test
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $1"
        sed 's/^/    | /' "$3" | tail -n 60
    fi
}

# run LOG SECONDS COMMAND…: the status in $status. What hangs is ended, the watchdog of the program having printed its
# stacks before; where gdb is present and the program did not, gdb prints them.
run() {
    local log=$1 seconds=$2
    shift 2
    "$@" >"$log" 2>&1 &
    local job=$! waited=0
    while kill -0 "$job" 2>/dev/null && [ "$waited" -lt $((seconds * 5)) ]; do
        sleep 0.2
        waited=$((waited + 1))
    done
    if kill -0 "$job" 2>/dev/null; then
        echo "still running after $seconds s" >>"$log"
        for rank in $(pgrep -P "$job"); do
            command -v gdb >/dev/null && timeout 30 gdb -p "$rank" -batch -ex 'thread apply all backtrace' >>"$log" 2>&1
        done
        kill -TERM "$job"
        sleep 2
        kill -KILL "$job" 2>/dev/null
    fi
    wait "$job"
    status=$?
}

all_cases_passed() { # log, ranks: every rank says so
    [ "$(grep -c '^100%: Checks: [1-9][0-9]*, Failures: 0, Errors: 0' "$1")" -eq "$2" ] && grep -q "of $2\$" "$1"
}

for ranks in 1 2 3 4; do
    log=$output/ranks_$ranks.log
    CRIA_TEST_BINDING=none run "$log" 150 "${mpi[@]}" --bind-to none -n "$ranks" "$program"
    [ "$status" -eq 0 ] && all_cases_passed "$log" "$ranks"
    check "the mesh's promises hold with $ranks ranks" $? "$log"
done

# A rank bound to a core of its own uses that one (mpirun refuses this on a machine of one core).
if "${mpi[@]}" --bind-to core -n 2 true 2>/dev/null; then
    log=$output/bound.log
    CRIA_TEST_BINDING=core run "$log" 150 "${mpi[@]}" --bind-to core -n 2 "$program"
    [ "$status" -eq 0 ] && all_cases_passed "$log" 2
    check "a rank bound to one core runs one thread" $? "$log"
else
    skipped=$((skipped + 1))
    echo "skipped: mpirun cannot bind two ranks to cores of their own here"
fi

log=$output/abort.log
run "$log" 60 "${mpi[@]}" -n 3 "$program" abort
[ "$status" -eq 7 ]
check "mesh_abort ends the job with its status (found $status, expected 7)" $? "$log"

log=$output/die.log
run "$log" 60 "${mpi[@]}" -n 3 "$program" die
[ "$status" -eq 3 ]
check "a rank that leaves with an error ends the job with its status (found $status, expected 3)" $? "$log"

log=$output/hang.log
run "$log" 60 "${mpi[@]}" -n 2 "$program" hang
[ "$status" -ne 0 ] && ! grep -q 'still running' "$log" && grep -q 'gave no sign of life for 2 s; last: the barrier' "$log" &&
    grep -q 'the main thread' "$log" && grep -q 'MPI_Barrier' "$log" && grep -q 'mesh_barrier' "$log"
check "a hang ends the job and prints the stacks" $? "$log"

# Slurm started two tasks, MPI knows of one: refused. mpirun itself is believed.
log=$output/slurm.log
SLURM_NTASKS=2 SLURM_PROCID=1 run "$log" 60 "$program" abort
[ "$status" -eq 1 ] && grep -q 'Slurm has 2 tasks (SLURM_NTASKS) and this is task 1, but MPI knows of one rank' "$log"
check "several Slurm tasks without MPI are refused" $? "$log"
SLURM_NTASKS=2 SLURM_PROCID=1 run "$log" 60 "${mpi[@]}" -n 1 "$program" abort
[ "$status" -eq 7 ]
check "one rank under mpirun is allowed inside a Slurm job" $? "$log"

if [ "$skipped" -gt 0 ]; then echo "$passed passed, $failed failed, $skipped skipped"; else echo "$passed passed, $failed failed"; fi
[ "$failed" -eq 0 ]
