#include "model/kernels/kernels.h"
#include "model/kernels/simd.h"

static void fast_bf16_head(Bf16Kernels *table) {
    (void)table;
}
