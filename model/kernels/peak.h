/* What the arithmetic of this machine can do at best: the innermost loop of a product by itself, on all threads, with
 * the instructions of the selected table. Beside a product's speed it says how much blocking and packing lose.
 *
 * Two kinds: on registers alone; and with the operands read from the second-level cache, as the best blocked product
 * reads them, which no product on matrices can pass. */
#ifndef CRIA_KERNELS_PEAK_H
#define CRIA_KERNELS_PEAK_H

#include <stddef.h>

#include "model/core/dtype.h"

/* Operands of one thread: beyond every first-level cache (32 or 48 KiB), within every second-level one (256 KiB and
 * more), and a multiple of what one round of any loop reads. */
enum { PEAK_OPERAND_BYTES = 144 << 10 };

/* The loops of one set. They run in the calling thread, for so many rounds, and return the floating-point operations
 * done. `operands` are PEAK_OPERAND_BYTES of numbers, 64-byte aligned, of the type multiplied; a round of `from_cache`
 * reads all of them once, a round of `registers` does about as many operations. NULL: no such instruction. */
typedef struct {
    double (*registers)(long rounds);
    double (*from_cache)(const void *operands, long rounds);
} PeakLoops;

/* For fp32 and bf16 by instruction set. */
extern const PeakLoops avx2_peak_f32, avx512_peak_f32, avx512bf16_peak, amx_peak;

typedef enum { PEAK_REGISTERS, PEAK_FROM_CACHE } PeakKind;

/* Operations a second of all threads together, of products of DTYPE_F32 or DTYPE_BF16: one sample of some 10 ms. 0
 * where the table has no such loop (a set without bf16 instructions computes bf16 products in fp32). */
double peak_flops(Dtype dtype, PeakKind kind);

#endif
