/* Measuring training steps on random tokens, between two measurements of the machine. */
#ifndef CRIA_TRAIN_BENCH_H
#define CRIA_TRAIN_BENCH_H

#include <stdint.h>

#include "configs/config.h"

typedef struct {
    int64_t warmup, steps; /* steps: at least */
    double seconds;        /* at least */
} BenchOptions;

typedef struct {
    double gemm_flops, copy_bytes; /* a second */
} MachineSpeed;

typedef struct {
    const char *name;
    double forward_seconds, backward_seconds; /* of one step; recomputation counts as forward */
} BenchOp;

typedef struct {
    uint64_t parameters;
    int64_t tokens_per_step;
    int micro_batches, steps; /* steps: measured */
    MachineSpeed before, after;
    double median_seconds, best_seconds, update_seconds; /* of a step; update: norm, clipping, AdamW (median) */
    double tokens_per_second, best_tokens_per_second;
    double flops_per_second;    /* the model's, forward and backward: 3 times forward; recomputation is not counted */
    double peak_flops, mfu;     /* the better of the two measurements */
    uint64_t peak_memory_bytes; /* resident, as VmHWM */
    uint64_t activation_bytes;
    int64_t allocated_bytes; /* by all steps after the first: heap in use and mapped memory, after less before */
    double loss;
    BenchOp *ops; /* [n_ops], those that took longest first: a separate, profiled step */
    int n_ops;
    double profiled_seconds, profiled_update_seconds;
} BenchResult; /* {0} may be freed */

int bench_run(BenchResult *result, Config *config, const BenchOptions *options);
void bench_free(BenchResult *result);

#endif
