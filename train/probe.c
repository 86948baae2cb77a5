/* See probe.h. */
#include "train/probe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/arena.h"
#include "model/core/clock.h"
#include "model/core/memory.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/kernels/peak.h"
#include "model/kernels/products/workspace.h"

/* ---- memory ---- */

/* What a product's buffers depend on is bounded, so C and the operands stay small: sizes beyond a library's blocking
 * change nothing in what it keeps. */
typedef struct {
    int m, n, k;
} Sizes;

static Sizes bounded(int m, int n, int k) {
    enum { DEEPEST = 512, LONGEST = 32768, LARGEST = 4 << 20 /* elements of C */ };
    Sizes s = {m < LONGEST ? m : LONGEST, n < LONGEST ? n : LONGEST, k < DEEPEST ? k : DEEPEST};
    if ((int64_t)s.m * s.n <= LARGEST) return s;
    int *larger = s.m > s.n ? &s.m : &s.n;
    *larger = LARGEST / *larger;
    return s;
}

/* One product C[m,n] of depth k, from pages that are never written, so that reading them takes no memory. */
static void product(bool trans_a, bool trans_b, int m, int n, int k) {
    Sizes s = bounded(m, n, k);
    size_t a_bytes = (size_t)s.m * (size_t)s.k * sizeof(float), b_bytes = (size_t)s.n * (size_t)s.k * sizeof(float);
    size_t c_bytes = (size_t)s.m * (size_t)s.n * sizeof(float);
    float *a = pages_alloc(a_bytes), *b = pages_alloc(b_bytes), *c = pages_alloc(c_bytes);
    if (a && b && c)
        kernels()->gemm(trans_a, trans_b, s.m, s.n, s.k, 1, a, (size_t)(trans_a ? s.m : s.k), b,
                        (size_t)(trans_b ? s.k : s.n), 0, c, (size_t)s.n);
    pages_free(a, a_bytes);
    pages_free(b, b_bytes);
    pages_free(c, c_bytes);
}

/* x·Wᵀ of W[rows, cols] packed, and dW. (dy·W is the first again, the other way round.) */
static void products_bf16(int n_tokens, int rows, int cols) {
    Sizes s = bounded(n_tokens, rows, cols);
    size_t x_bytes = (size_t)s.m * (size_t)s.k * sizeof(bf16), y_bytes = (size_t)s.m * (size_t)s.n * sizeof(bf16);
    size_t w_bytes = panels_elements(s.n, s.k) * sizeof(bf16), dw_bytes = (size_t)s.n * (size_t)s.k * sizeof(float);
    bf16 *x = pages_alloc(x_bytes), *y = pages_alloc(y_bytes), *w = pages_alloc(w_bytes);
    float *dw = pages_alloc(dw_bytes);
    if (x && y && w && dw) {
        Panels panels = {.lanes = s.n, .depth = s.k, .packed = w};
        kernels()->bf16.product(&(Product){.m = s.m,
                                           .a = x,
                                           .a_stride = (size_t)s.k,
                                           .b = panels,
                                           .c = y,
                                           .c_stride = (size_t)s.n,
                                           .c_dtype = DTYPE_BF16});
        kernels()->bf16.product_weight(dw, (size_t)s.k, y, (size_t)s.n, x, (size_t)s.k, s.m, s.n, s.k);
    }
    pages_free(x, x_bytes);
    pages_free(y, y_bytes);
    pages_free(w, w_bytes);
    pages_free(dw, dw_bytes);
}

/* Forward, backward towards the input, backward towards the weight [rows, cols]. */
static void products_of(int n_tokens, int rows, int cols, Dtype precision) {
    if (precision == DTYPE_BF16) {
        products_bf16(n_tokens, rows, cols);
        products_bf16(n_tokens, cols, rows);
        return;
    }
    product(false, true, n_tokens, rows, cols);
    product(false, false, n_tokens, cols, rows);
    product(true, false, rows, cols, n_tokens);
}

uint64_t probe_baseline(const LlamaShape *shape, int n_tokens, Dtype precision, bool frozen) {
    int query = shape->n_heads * shape->head_dim, key = shape->n_kv_heads * shape->head_dim;
    int head_tokens = (int)(head_scratch(n_tokens, shape->dim, 0, shape->vocab_size) /
                            ((size_t)shape->vocab_size + 2 * (size_t)shape->dim)); /* of a block, as the head cuts it */
    if (!kernels()->bf16.product || !kernels()->bf16.product_weight) precision = DTYPE_F32;
    products_of(n_tokens, query + 2 * key, shape->dim, precision);
    products_of(n_tokens, shape->dim, query, precision);
    products_of(n_tokens, 2 * shape->ffn_dim, shape->dim, precision);
    products_of(n_tokens, shape->dim, shape->ffn_dim, precision);
    if (shape->n_scores == 0) products_of(head_tokens > 0 ? head_tokens : 1, shape->vocab_size, shape->dim, precision);
    if (frozen) workspace_touch();
    MemoryUse use = memory_use();
    return use.anonymous + use.shared;
}

/* ---- medians ---- */

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median_of(double *values, int n) {
    if (n <= 0) return 0;
    qsort(values, (size_t)n, sizeof *values, compare_doubles);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

enum { SAMPLES = 5, MOST_SPEEDS = 64 };

MachineSpeed machine_median(const MachineSpeed *speeds, int n) {
    MachineSpeed result = {{0}};
    double values[MOST_SPEEDS] = {0};
    if (n > MOST_SPEEDS) n = MOST_SPEEDS;
    for (int rate = 0; rate < MACHINE_RATES; rate++) {
        for (int i = 0; i < n; i++) values[i] = speeds[i].rate[rate];
        result.rate[rate] = median_of(values, n);
    }
    return result;
}

/* ---- speed ---- */

static const char *const rate_keys[MACHINE_RATES] = {
    [MACHINE_F32_PRODUCT] = "fp32_product",
    [MACHINE_F32_CACHE] = "fp32_loop",
    [MACHINE_F32_REGISTERS] = "fp32_registers",
    [MACHINE_BF16_PRODUCT] = "bf16_product",
    [MACHINE_BF16_CACHE] = "bf16_loop",
    [MACHINE_BF16_REGISTERS] = "bf16_registers",
    [MACHINE_READ] = "read",
    [MACHINE_COPY] = "copy",
};
static const char *const rate_names[MACHINE_RATES] = {
    [MACHINE_F32_PRODUCT] = "fp32, a large product",
    [MACHINE_F32_CACHE] = "fp32, operands from L2",
    [MACHINE_F32_REGISTERS] = "fp32, registers alone",
    [MACHINE_BF16_PRODUCT] = "bf16, a large product",
    [MACHINE_BF16_CACHE] = "bf16, operands from L2",
    [MACHINE_BF16_REGISTERS] = "bf16, registers alone",
    [MACHINE_READ] = "memory, read",
    [MACHINE_COPY] = "memory, copied",
};

const char *machine_rate_key(MachineRate rate) {
    return rate_keys[rate];
}
const char *machine_rate_name(MachineRate rate) {
    return rate_names[rate];
}

static void fill(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = (float)(i % 17) * 0.0625f - 0.5f;
}

/* A square product that takes a moment: the reference would need minutes for what OpenBLAS does in one. `side`³ · 2
 * operations on `memory`, 3·side² floats. */
typedef void (*SquareProduct)(float *memory, int side);

static void square_f32(float *memory, int side) {
    size_t n = (size_t)side * (size_t)side, stride = (size_t)side;
    kernels()->gemm(false, true, side, side, side, 1, memory, stride, memory + n, stride, 0, memory + 2 * n, stride);
}

/* Numbers of bf16 are half as wide: any bits but those of infinities and NaN will do, and fill's have none. */
static void square_bf16(float *memory, int side) {
    size_t n = (size_t)side * (size_t)side, stride = (size_t)side;
    Panels panels = {.lanes = side, .depth = side, .packed = (const bf16 *)(const void *)(memory + n)};
    kernels()->bf16.product(&(Product){.m = side,
                                       .a = (const bf16 *)(const void *)memory,
                                       .a_stride = stride,
                                       .b = panels,
                                       .c = memory + 2 * n,
                                       .c_stride = stride,
                                       .c_dtype = DTYPE_F32});
}

static double timed_product(SquareProduct square, float *memory, int side) {
    double start = clock_seconds();
    square(memory, side);
    return clock_seconds() - start;
}

static double undisturbed_product(SquareProduct square, float *memory, int side) {
    enum { TRIES = 3 };
    double best = timed_product(square, memory, side);
    for (int i = 1; i < TRIES; i++) best = fmin(best, timed_product(square, memory, side));
    return best;
}

static double product_flops(SquareProduct square) {
    enum { SMALLEST = 192, LARGEST = 1536 };
    const double LONG_ENOUGH = 0.02;
    const size_t bytes = 3 * (size_t)LARGEST * LARGEST * sizeof(float);
    float *memory = pages_alloc(bytes);
    double rates[SAMPLES], seconds;
    int side = SMALLEST;
    if (!memory) return 0;
    fill(memory, bytes / sizeof(float));
    timed_product(square, memory, side); /* wakes the threads */
    while ((seconds = undisturbed_product(square, memory, side)) < LONG_ENOUGH / 8 && side < LARGEST) side *= 2;
    if (seconds < LONG_ENOUGH && side < LARGEST) side *= 2;
    for (int i = 0; i < SAMPLES; i++) rates[i] = 2.0 * side * side * side / timed_product(square, memory, side);
    pages_free(memory, bytes);
    return median_of(rates, SAMPLES);
}

static double loop_flops(Dtype dtype, PeakKind kind) {
    double rates[SAMPLES];
    for (int i = 0; i < SAMPLES; i++) rates[i] = peak_flops(dtype, kind);
    return median_of(rates, SAMPLES);
}

/* Two arrays far beyond the caches. */
enum { STREAM_BYTES = 128 << 20, STREAM_GRAIN = 1 << 16 };
typedef struct {
    char *from, *to;
} Streams;

static void copy_range(void *context, size_t begin, size_t end, int thread) {
    (void)thread;
    const Streams *streams = context;
    memcpy(streams->to + begin, streams->from + begin, end - begin);
}

static void read_range(void *context, size_t begin, size_t end, int thread) {
    (void)thread;
    const Streams *streams = context;
    uint64_t sums[8] = {0};
    for (size_t i = begin; i < end; i += sizeof sums) {
        uint64_t words[8];
        memcpy(words, streams->from + i, sizeof words);
        for (int w = 0; w < 8; w++) sums[w] += words[w];
    }
    volatile uint64_t kept = 0; /* or the compiler would leave the reading out */
    for (int w = 0; w < 8; w++) kept += sums[w];
}

static double stream_bytes(ParallelBody body, Streams *streams, double passes) {
    double rates[SAMPLES];
    parallel_for(STREAM_BYTES, STREAM_GRAIN, body, streams); /* maps the pages */
    for (int i = 0; i < SAMPLES; i++) {
        double start = clock_seconds();
        parallel_for(STREAM_BYTES, STREAM_GRAIN, body, streams);
        rates[i] = passes * STREAM_BYTES / (clock_seconds() - start);
    }
    return median_of(rates, SAMPLES);
}

MachineSpeed probe_machine(bool bf16_too) {
    MachineSpeed speed = {{0}};
    Streams streams = {pages_alloc(STREAM_BYTES), pages_alloc(STREAM_BYTES)};
    speed.rate[MACHINE_F32_PRODUCT] = product_flops(square_f32);
    speed.rate[MACHINE_F32_CACHE] = loop_flops(DTYPE_F32, PEAK_FROM_CACHE);
    speed.rate[MACHINE_F32_REGISTERS] = loop_flops(DTYPE_F32, PEAK_REGISTERS);
    if (bf16_too) {
        if (kernels()->bf16.product) speed.rate[MACHINE_BF16_PRODUCT] = product_flops(square_bf16);
        speed.rate[MACHINE_BF16_CACHE] = loop_flops(DTYPE_BF16, PEAK_FROM_CACHE);
        speed.rate[MACHINE_BF16_REGISTERS] = loop_flops(DTYPE_BF16, PEAK_REGISTERS);
    }
    if (streams.from && streams.to) {
        memset(streams.from, 1, STREAM_BYTES);
        speed.rate[MACHINE_COPY] = stream_bytes(copy_range, &streams, 2);
        speed.rate[MACHINE_READ] = stream_bytes(read_range, &streams, 1);
    }
    pages_free(streams.from, STREAM_BYTES);
    pages_free(streams.to, STREAM_BYTES);
    return speed;
}
