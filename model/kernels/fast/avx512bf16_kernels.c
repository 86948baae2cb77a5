/* What AVX512-BF16 adds to the avx512 rows: the bf16 kernels that use its products. The Makefile gives this file its
 * instruction set; on another architecture it is empty. */
#include "model/kernels/fast/fast.h"

#if defined(__AVX512BF16__)
#include "model/kernels/fast/bf16_head.h"
#include "model/kernels/fast/bf16_rows.h"
#include "model/kernels/fast/pair_attention_backward.h"
#include "model/kernels/fast/pair_attention_cached.h"

bool avx512bf16_kernels(Kernels *table) {
    fast_bf16_rows(&table->bf16); /* again, with one instruction that narrows */
    fast_bf16_head(&table->bf16);
    table->bf16.attention_forward = pair_attention_forward;
    table->bf16.attention_backward = pair_attention_backward;
    table->bf16.cache_store = pair_cache_store;
    table->bf16.attention_cached = pair_attention_cached;
    table->name = "avx512bf16";
    return true;
}
#else
bool avx512bf16_kernels(Kernels *table) {
    (void)table;
    return false;
}
#endif
