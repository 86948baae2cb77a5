/* The table of kernels: the reference fills every row, then each faster set this CPU can run replaces the rows it has.
 * The choice rests on feature bits only (the operating system's support of the registers included, which
 * __builtin_cpu_supports checks), never on the CPU's name. */
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "model/core/error.h"
#include "model/core/threads.h"
#include "model/kernels/fast/fast.h"
#include "model/kernels/kernels.h"
#include "model/kernels/products/choice.h"
#include "model/kernels/products/products.h"
#include "model/kernels/quantised.h"
#include "model/kernels/reference/reference.h"

#define REFERENCE_ROWS                                                                                                \
    {                                                                                                                 \
        .name = "reference", .gemm = reference_gemm, .row_major_product = reference_row_major_product,                \
        .rmsnorm_forward = reference_rmsnorm_forward, .rotary = reference_rotary,                                     \
        .attention_forward = reference_attention_forward, .attention_backward = reference_attention_backward,         \
        .cache_store = reference_cache_store, .attention_cached = reference_attention_cached,                         \
        .swiglu_forward = reference_swiglu_forward, .swiglu_backward = reference_swiglu_backward,                     \
        .head_forward = reference_head_forward, .head_backward = reference_head_backward,                             \
        .head_forward_backward = reference_head_forward_backward, .softmax_weights = reference_softmax_weights,       \
        .adamw = reference_adamw, .sum_of_squares = reference_sum_of_squares, .add = reference_add,                   \
        .add_rmsnorm_forward = reference_add_rmsnorm_forward, .add_rmsnorm_backward = reference_add_rmsnorm_backward, \
        .quantise = quantised_encode,                                                                                 \
    }

static const Kernels reference_table = REFERENCE_ROWS;
static Kernels table; /* no name: nothing is selected yet */

typedef enum { SET_REFERENCE, SET_OPENBLAS, SET_AVX2, SET_AVX512, SET_AVX512BF16, SET_AMX, SET_COUNT } KernelSet;
static const char *const set_names[SET_COUNT] = {"reference", "openblas", "avx2", "avx512", "avx512bf16", "amx"};

/* Tiles need the CPU's feature bits (CPUID leaf 7: EDX bits 22 and 24), a palette 1 of the size that the products use
 * (leaf 29), an operating system that saves the registers (XCR0 bits 17 and 18; a hypervisor or an old kernel may not),
 * and its leave to use their 8 KiB of state (Linux: Documentation/arch/x86/xstate.rst), which holds for this process
 * and its later threads. */
static bool amx_permitted(void) {
#if defined(__x86_64__) && defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, AMX_BF16 = 22, AMX_TILE = 24, OSXSAVE = 27 };
    enum { TILES = 8, TILE_ROWS = 16, ROW_BYTES = 64, XCR0_TILES = 3 << 17 };
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!(d >> AMX_BF16 & 1) || !(d >> AMX_TILE & 1)) return false;
    if (!__get_cpuid_count(29, 1, &a, &b, &c, &d)) return false;
    if (b >> 16 < TILES || (b & 0xffff) < ROW_BYTES || (c & 0xffff) < TILE_ROWS) return false;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> OSXSAVE & 1)) return false;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & XCR0_TILES) != XCR0_TILES) return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

static bool cpu_runs(KernelSet set) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (set == SET_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (set == SET_AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && cpu_runs(SET_AVX2);
    if (set == SET_AVX512BF16) return __builtin_cpu_supports("avx512bf16") && cpu_runs(SET_AVX512);
    if (set == SET_AMX) return amx_permitted() && cpu_runs(SET_AVX512BF16);
#endif
    return set == SET_REFERENCE || set == SET_OPENBLAS;
}

static KernelSet best_set(void) {
    for (int set = SET_COUNT - 1; set > 0; set--)
        if (cpu_runs((KernelSet)set)) return (KernelSet)set;
    return SET_REFERENCE;
}

static void fill(KernelSet set) {
    table = reference_table;
    reference_bf16_products(&table.bf16);
    reference_bf16_rows(&table.bf16);
    reference_bf16_attention(&table.bf16);
    reference_bf16_head(&table.bf16);
    reference_bf16_adamw(&table.bf16);
    if (set == SET_REFERENCE) return;
    openblas_start();
    table.gemm = openblas_gemm;
    table.name = set_names[SET_OPENBLAS];
    if (set == SET_AVX2) {
        avx2_kernels(&table);
        avx2_products(&table.bf16);
    }
    if (set >= SET_AVX512) {
        avx512_kernels(&table);
        avx512_products(&table.bf16);
    }
    if (set >= SET_AVX512BF16) {
        avx512bf16_kernels(&table);
        avx512bf16_products(&table.bf16);
        product_choices(&table.bf16, BY_AVX512BF16);
    }
    if (set >= SET_AMX) {
        amx_kernels(&table);
        amx_products(&table.bf16);
        product_choices(&table.bf16, BY_AMX);
    }
}

/* The reference, where nobody has selected. */
const Kernels *kernels(void) {
    if (!table.name) fill(SET_REFERENCE);
    return &table;
}

int kernels_select(const char *which) {
    const char *environment = getenv("CRIA_KERNELS");
    if (strcmp(which, "auto") == 0 && environment && *environment) which = environment;
    if (strcmp(which, "auto") == 0) {
        fill(best_set());
        return OK;
    }
    for (int set = 0; set < SET_COUNT; set++) {
        if (strcmp(which, set_names[set]) != 0) continue;
        if (!cpu_runs((KernelSet)set))
            FAIL(ERR_REFUSED, "this CPU cannot run the %s kernels; the best it can run is %s", which,
                 set_names[best_set()]);
        fill((KernelSet)set);
        return OK;
    }
    FAIL(ERR_USAGE, "unknown kernels '%s'; expected auto, reference, openblas, avx2, avx512, avx512bf16 or amx", which);
}

bool kernels_have_bf16(void) {
    return strcmp(table.name, set_names[SET_AVX512BF16]) == 0 || strcmp(table.name, set_names[SET_AMX]) == 0;
}

size_t attention_slot(int n_tokens, int head_dim) {
    enum { TILE = 64, LANES = 16, HALVES = 7 };
    size_t tiles = ((size_t)n_tokens + TILE - 1) / TILE + 1, width = ((size_t)head_dim + LANES - 1) / LANES * LANES;
    return tiles * TILE * width * HALVES / 2;
}

size_t attention_backward_scratch(int n_tokens, int n_heads, int head_dim) {
    (void)n_heads;
    return (size_t)threads_count() * attention_slot(n_tokens, head_dim);
}

/* Two measured facts set the block: products with fewer than about 256 rows spend their time packing the vocabulary's
 * matrix (with 32,000 words 82 of 100 GFLOP/s a core at 128 rows, 92 at 256, no more at 512), and logits that spill
 * from the last-level cache cost little beside them. */
int head_block_tokens(int n_tokens, int vocab) {
    enum { LOGITS = 8 << 20, LEAST = 128, STEP = 64 };
    int tokens = LOGITS / vocab / STEP * STEP;
    if (tokens > HEAD_BLOCK_MAX) tokens = HEAD_BLOCK_MAX;
    if (tokens < LEAST) tokens = LEAST;
    return tokens < n_tokens ? tokens : n_tokens;
}

/* Both operands, as pairs of tokens (and whole tiles of them). */
size_t product_block_scratch(int n_tokens, int rows, int cols) {
    size_t tokens = ((size_t)n_tokens + PANEL_DEPTH - 1) / PANEL_DEPTH * PANEL_DEPTH;
    return tokens * ((size_t)rows + (size_t)cols + 2 * PANEL_DEPTH) / 2;
}

/* A partial dw for every chunk of tokens. */
size_t norm_scratch(int n_tokens, int width) {
    return ((size_t)n_tokens + NORM_CHUNK - 1) / NORM_CHUNK * (size_t)width;
}

size_t head_scratch(int n_tokens, int width, int rank, int vocab) {
    size_t block = (size_t)head_block_tokens(n_tokens, vocab), reference = (size_t)threads_count() * (size_t)vocab;
    size_t fast = block * ((size_t)vocab + 2 * (size_t)width + 2 * (size_t)rank);
    return fast > reference ? fast : reference;
}
