/* What AMX adds to the avx512 rows: the bf16 kernels that use its products. The Makefile gives this file its
 * instruction set; on another architecture it is empty. */
#include "model/kernels/fast/fast.h"

#if defined(__AMX_BF16__)
bool amx_kernels(Kernels *table) {
    table->name = "amx";
    return true;
}
#else
bool amx_kernels(Kernels *table) {
    (void)table;
    return false;
}
#endif
