/* Measuring training steps on random tokens, between measurements of the machine. */
#ifndef CRIA_TRAIN_BENCH_H
#define CRIA_TRAIN_BENCH_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "configs/config.h"
#include "train/probe.h"

typedef struct {
    int64_t warmup, steps; /* steps: at least */
    double seconds;        /* at least */
    int64_t sampling;      /* sequences that are continued together, instead of training steps; 0: none */
    bool frozen;           /* the matrices frozen as lora.base says, the norms' gains trained */
} BenchOptions;

/* Before the steps, in the midst of them, and after. */
enum { BENCH_SITTINGS = 3 };

typedef struct {
    const char *name;
    double forward_seconds, backward_seconds; /* of one step; recomputation counts as forward */
} BenchOp;

/* What a training run of this shape keeps for every trained parameter at least: value, gradient and two moments. */
enum { BYTES_PER_TRAINED = 16 };

typedef struct {
    uint64_t trained, frozen; /* parameters; an adapter's are trained */
    uint64_t frozen_bytes;    /* that the frozen ones take */
    int64_t tokens_per_step;
    int micro_batches;
    Dtype precision;
    double flops_per_token; /* the model's, forward and backward: 3 times forward (2 through frozen matrices);
                               recomputation is not counted */
    double attention_flops_share;
} BenchModel;

typedef struct {
    int steps;
    double median_seconds, best_seconds, update_seconds; /* of a step; update: norm, clipping, AdamW (median) */
    uint64_t peak_memory_bytes; /* resident, as VmHWM, so far; the measurements of the machine left out */
    int64_t allocated_bytes;    /* by all these steps: heap in use and mapped memory, after less before */
    double loss;
} BenchTurn;

typedef struct {
    BenchModel model;
    MachineSpeed sittings[BENCH_SITTINGS], machine; /* machine: of every rate the median */
    BenchTurn turn;
    double tokens_per_second, best_tokens_per_second;
    double flops_per_second;
    double peak_flops, mfu; /* peak_flops: of bf16 the innermost loop with operands from the second-level cache; of fp32
                               the large product */
    uint64_t activation_bytes;
    int64_t excess_bytes; /* the peak of memory beyond the parameters' bytes above */
    BenchOp *ops;         /* [n_ops], those that took longest first: a separate, profiled step */
    int n_ops;
    double profiled_seconds, profiled_update_seconds;
    double attention_time_share;       /* of the profiled step */
    double adamw_seconds, adamw_bytes; /* AdamW's pass alone (median), and the bytes it reads and writes */
} BenchResult;                         /* {0} may be freed */

/* Measures all of that. */
int bench_run(BenchResult *result, Config *config, const BenchOptions *options);
void bench_free(BenchResult *result);

/* The same model step by step, for whoever measures several programs in turn: reads lines "STEPS SECONDS" from `in`,
 * runs at least so many steps for at least so long, and answers each line with one of JSON on `out`; the first line on
 * `out` tells of the model. Ends with the input. Between the turns nothing runs. */
int bench_serve(Config *config, const BenchOptions *options, FILE *in, FILE *out);

/* Sampling with bf16 or fp32 by options->sampling sequences of random tokens: a step continues each of 16 tokens by
 * 128. With `in` as bench_serve, else one measurement as a line of JSON. */
int bench_sampling(Config *config, const BenchOptions *options, FILE *in, FILE *out);

/* ---- printing (bench_print.c) ---- */

void bench_print(const BenchResult *result, FILE *out);
int bench_print_json(const BenchResult *result, FILE *out);
void machine_print(const MachineSpeed *machine, FILE *out);
int machine_print_json(const MachineSpeed *machine, FILE *out);

#endif
