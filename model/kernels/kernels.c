/* The table of kernels: the reference fills every row, then each faster set this CPU can run replaces the rows it has.
 * The choice rests on feature bits only (the operating system's support of the registers included, which
 * __builtin_cpu_supports checks), never on the CPU's name. */
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/kernels/reference.h"

#define REFERENCE_ROWS                                                                                                \
    {                                                                                                                 \
        .name = "reference", .gemm = reference_gemm, .rmsnorm_forward = reference_rmsnorm_forward,                    \
        .rmsnorm_backward = reference_rmsnorm_backward, .rmsnorm_backward_weight = reference_rmsnorm_backward_weight, \
        .rotary = reference_rotary, .attention_forward = reference_attention_forward,                                 \
        .attention_backward = reference_attention_backward, .attention_cached = reference_attention_cached,           \
        .swiglu_forward = reference_swiglu_forward, .swiglu_backward = reference_swiglu_backward,                     \
        .head_forward = reference_head_forward, .head_backward = reference_head_backward,                             \
        .head_forward_backward = reference_head_forward_backward, .adamw = reference_adamw,                           \
        .sum_of_squares = reference_sum_of_squares, .add = reference_add,                                             \
    }

static const Kernels reference_table = REFERENCE_ROWS;
static Kernels table = REFERENCE_ROWS;

const Kernels *kernels(void) {
    return &table;
}

int kernels_select(const char *which) {
    const char *environment = getenv("CRIA_KERNELS");
    if (strcmp(which, "auto") == 0 && environment && *environment) which = environment;
    if (strcmp(which, "auto") != 0 && strcmp(which, "reference") != 0)
        FAIL(ERR_USAGE, "unknown kernels '%s'; expected auto, reference, avx2 or avx512", which);
    table = reference_table;
    return OK;
}

size_t attention_backward_scratch(int n_tokens, int n_heads, int head_dim) {
    (void)head_dim;
    return (size_t)n_tokens * (size_t)n_heads;
}

size_t head_scratch(int n_tokens, int width, int vocab) {
    (void)n_tokens;
    (void)width;
    return (size_t)threads_count() * (size_t)vocab;
}
