/* Measured, not computed: what this process holds once its libraries have what they keep, and what this machine can do
 * at best. */
#ifndef CRIA_TRAIN_PROBE_H
#define CRIA_TRAIN_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "model/core/dtype.h"
#include "model/shape.h"

/* Anonymous and shared resident bytes after products of the shapes that a training step of this model has: OpenBLAS
 * keeps packing buffers whose touched part depends on them, threads keep stacks. `precision`: of the products;
 * `frozen`: some are with matrices that are not packed. */
uint64_t probe_baseline(const LlamaShape *shape, int n_tokens, Dtype precision, bool frozen);

/* What a second holds at most, with all threads: floating-point operations or bytes. */
typedef enum {
    MACHINE_F32_PRODUCT,    /* a large fp32 product, kernels()->gemm */
    MACHINE_F32_CACHE,      /* its innermost loop, operands from the second-level cache (model/kernels/peak.h) */
    MACHINE_F32_REGISTERS,  /* the same on registers alone */
    MACHINE_BF16_PRODUCT,   /* a large bf16 product with a packed matrix, kernels()->bf16.product */
    MACHINE_BF16_CACHE,     /* its innermost loop: with AMX 2 × 2 tiles from the second-level cache */
    MACHINE_BF16_REGISTERS, /* the same on registers alone */
    MACHINE_READ,           /* bytes read beyond the caches */
    MACHINE_COPY,           /* bytes read and written */
    MACHINE_RATES
} MachineRate;

typedef struct {
    double rate[MACHINE_RATES]; /* 0: not measured: memory is out, or there is nothing like it */
} MachineSpeed;

const char *machine_rate_key(MachineRate rate);  /* for JSON: "fp32_product" */
const char *machine_rate_name(MachineRate rate); /* for people */

/* Each rate is the median of a few short samples, since other users of a machine come and go. With `bf16` the bf16
 * rates too. */
MachineSpeed probe_machine(bool bf16);

/* Of every rate the median over several measurements. */
MachineSpeed machine_median(const MachineSpeed *speeds, int n);

/* The n values are put in order; 0 where there are none. */
double median_of(double *values, int n);

#endif
