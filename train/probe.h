/* Measured, not computed: what this process holds once its libraries have what they keep, and what this machine can do
 * at best. */
#ifndef CRIA_TRAIN_PROBE_H
#define CRIA_TRAIN_PROBE_H

#include <stdint.h>

#include "model/shape.h"

/* Anonymous and shared resident bytes after products of the shapes that a training step of this model has: OpenBLAS
 * keeps packing buffers whose touched part depends on them, threads keep stacks. */
uint64_t probe_baseline(const LlamaShape *shape, int n_tokens);

/* Floating-point operations a second of a large fp32 product with all threads, the best of a few; and bytes a second
 * read and written by a copy beyond the caches. 0 where memory is out. */
double probe_gemm_flops(void);
double probe_copy_bytes(void);

#endif
