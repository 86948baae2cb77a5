/* make tune: times who could compute the products of the models' shapes on this CPU, and prints choice.def's rows:
 * where another implementation than the set's own is faster by a margin. The timings go to stderr.
 *
 * One thread and its CPU time, medians of short runs in turns, so that other work on the machine matters little. All
 * operands are written before they are read. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/core/arena.h"
#include "model/core/dtype.h"
#include "model/core/error.h"
#include "model/core/philox.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/kernels/products/choice.h"
#include "model/kernels/products/onednn.h"

static const char *const by_names[BY_COUNT] = {"AVX512BF16", "AMX", "ONEDNN"};
static const char *const kind_names[KIND_COUNT] = {"PACKED", "FROZEN", "WEIGHT", "BLOCK", "BLOCK_T"};

/* A shape to time, and the range of m its result speaks for. lanes and depth: this one, or any (a small m: what counts
 * is how well rows fill registers). */
typedef struct {
    ProductKind kind;
    int m, lanes, depth, m_least, m_most;
    bool any;
} Shape;

#define ALL_OF(n, k, least, most)                                                                   \
    {KIND_PACKED, 2048, n, k, least, most, false}, {KIND_PACKED, 2048, k, n, least, most, false}, { \
        KIND_WEIGHT, n, k, 2048, n, n, false                                                        \
    }
#define FROZEN(m, n, k, least, most)              \
    {KIND_FROZEN, m, n, k, least, most, false}, { \
        KIND_FROZEN, m, k, n, least, most, false  \
    }
static const Shape shapes[] = {
    {KIND_PACKED, 1, 768, 768, 1, 1, true},  {KIND_PACKED, 2, 768, 768, 2, 3, true},
    {KIND_PACKED, 6, 768, 768, 4, 8, true},  {KIND_PACKED, 16, 768, 768, 9, 24, true},
    {KIND_FROZEN, 1, 768, 768, 1, 1, true},  {KIND_FROZEN, 4, 768, 768, 2, 8, true},
    {KIND_BLOCK, 1, 64, 64, 1, 2, true},     {KIND_BLOCK, 8, 64, 64, 3, 12, true},
    {KIND_BLOCK, 16, 64, 64, 13, 24, true},  {KIND_BLOCK, 32, 64, 64, 25, 48, true},
    {KIND_BLOCK_T, 64, 64, 32, 1, 96, true}, ALL_OF(288, 288, 1024, INT_MAX),
    ALL_OF(864, 288, 1024, INT_MAX),         ALL_OF(1536, 288, 1024, INT_MAX),
    ALL_OF(288, 768, 1024, INT_MAX),         ALL_OF(768, 768, 1024, INT_MAX),
    ALL_OF(2304, 768, 1024, INT_MAX),        ALL_OF(4096, 768, 1024, INT_MAX),
    ALL_OF(768, 2048, 1024, INT_MAX),        FROZEN(512, 3072, 2048, 256, 1023),
    FROZEN(512, 16384, 2048, 256, 1023),     FROZEN(512, 2048, 8192, 256, 1023),
    FROZEN(2048, 3072, 2048, 1024, INT_MAX), FROZEN(2048, 16384, 2048, 1024, INT_MAX),
    FROZEN(2048, 2048, 8192, 1024, INT_MAX),
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* Operands of one shape. A is [m, depth], or dy[depth, m]; B is W[lanes, depth] and its panels, or x[depth, lanes]. */
typedef struct {
    const Shape *shape;
    bf16 *a, *b, *panels;
    float *c, *scratch;
    RowMajor rows;
} Work;

static bf16 *operand(Arena *arena, size_t n, uint64_t seed) {
    bf16 *x = arena_alloc(arena, (n + PANEL_DEPTH) * sizeof *x);
    if (!x) exit(EXIT_FAILURE);
    PhiloxKey key = philox_key(seed, PHILOX_TEST, 0, 0);
    float part[4096];
    for (size_t i = 0; i < n; i += 4096) {
        size_t count = n - i < 4096 ? n - i : 4096;
        philox_fill_normal(part, i, count, key, 0, 1);
        for (size_t j = 0; j < count; j++) x[i + j] = f32_to_bf16(part[j]);
    }
    return x;
}

static Work work_of(Arena *arena, const Shape *s, const Bf16Kernels *table) {
    const size_t m = (size_t)s->m, lanes = (size_t)s->lanes, depth = (size_t)s->depth;
    Work w = {.shape = s, .a = operand(arena, m * depth, 1), .b = operand(arena, lanes * depth, 2)};
    w.panels = arena_alloc(arena, panels_elements(s->lanes, s->depth) * sizeof *w.panels);
    w.c = arena_alloc(arena, m * lanes * sizeof *w.c);
    w.scratch = arena_alloc(arena, product_block_scratch(s->depth, s->m, s->lanes) * sizeof *w.scratch);
    if (!w.panels || !w.c || !w.scratch) exit(EXIT_FAILURE);
    memset(w.c, 0, m * lanes * sizeof *w.c);
    w.rows = (RowMajor){DTYPE_BF16, 1, s->depth, {w.b}, {0, s->lanes}, NULL};
    const Panels b = {s->lanes, s->depth, NULL, &w.rows, false};
    const size_t stride = (depth + PANEL_DEPTH - 1) / PANEL_DEPTH * PANEL_DEPTH * PANEL_LANES;
    table->pack(w.panels, stride, &b, 0, s->lanes, 0, s->depth);
    return w;
}

/* False where `by` cannot do it. */
static bool compute(const Work *w, ProductBy by) {
    const Shape *s = w->shape;
    const Bf16Kernels *own = by == BY_ONEDNN ? NULL : product_own(by);
    const size_t m = (size_t)s->m, lanes = (size_t)s->lanes, depth = (size_t)s->depth;
    if (by != BY_ONEDNN && !own) return false;
    if (s->kind == KIND_PACKED || s->kind == KIND_FROZEN) {
        Product p = {.m = s->m, .a = w->a, .a_stride = depth, .c = w->c, .c_stride = lanes, .c_dtype = DTYPE_BF16};
        p.b = (Panels){s->lanes, s->depth, s->kind == KIND_PACKED ? w->panels : NULL, &w->rows, false};
        if (!own) return onednn_product(&p);
        own->product(&p);
    } else if (s->kind == KIND_WEIGHT) {
        if (!own) return onednn_product_weight(w->c, lanes, w->a, m, w->b, lanes, s->depth, s->m, s->lanes);
        own->product_weight(w->c, lanes, w->a, m, w->b, lanes, s->depth, s->m, s->lanes);
    } else if (!own) {
        return false;
    } else if (s->kind == KIND_BLOCK) {
        const size_t stride = (depth + PANEL_DEPTH - 1) / PANEL_DEPTH * PANEL_DEPTH * PANEL_LANES;
        own->blocks->multiply(w->c, lanes, true, w->a, depth, s->m, w->panels, stride, s->lanes, s->depth);
    } else {
        own->blocks->multiply_transposed(w->c, lanes, w->a, m, w->b, lanes, s->depth, s->m, s->lanes, w->scratch);
    }
    return true;
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* GFLOP/s of everyone who can, in turns; 0 for the others. */
static void measure(const Work *w, double rate[BY_COUNT]) {
    enum { RUNS = 9 };
    const double flops = 2.0 * w->shape->m * w->shape->lanes * w->shape->depth, shortest = 1e-3;
    double seconds[BY_COUNT][RUNS];
    int times[BY_COUNT] = {0};
    for (int by = 0; by < BY_COUNT; by++) {
        if (!compute(w, (ProductBy)by)) continue;
        double begin = cpu_seconds();
        compute(w, (ProductBy)by);
        double once = cpu_seconds() - begin;
        times[by] = once < shortest ? (int)(shortest / (once + 1e-8)) + 1 : 1;
    }
    for (int run = 0; run < RUNS; run++)
        for (int by = 0; by < BY_COUNT; by++) {
            double begin = cpu_seconds();
            for (int i = 0; i < times[by]; i++) compute(w, (ProductBy)by);
            seconds[by][run] = (cpu_seconds() - begin) / (times[by] > 0 ? times[by] : 1);
        }
    for (int by = 0; by < BY_COUNT; by++) {
        qsort(seconds[by], RUNS, sizeof seconds[by][0], ascending);
        rate[by] = times[by] > 0 ? flops / seconds[by][RUNS / 2] * 1e-9 : 0;
    }
}

static void range(int least, int most) {
    printf(most == INT_MAX ? "%d, MOST, " : "%d, %d, ", least, most);
}

static void row(const Shape *s, ProductBy set, const double rate[BY_COUNT]) {
    const double margin = 1.05;
    int best = (int)set;
    for (int by = 0; by < BY_COUNT; by++)
        if (rate[by] > rate[best] * (best == (int)set ? margin : 1)) best = by;
    if (best == (int)set) return;
    printf("CHOICE(%s, %s, ", by_names[set], kind_names[s->kind]);
    range(s->m_least, s->m_most);
    range(s->any ? 1 : s->lanes, s->any ? INT_MAX : s->lanes);
    if (s->kind == KIND_WEIGHT)
        range(s->depth / 2, INT_MAX);
    else
        range(s->any ? 1 : s->depth, s->any ? INT_MAX : s->depth);
    printf("%s) /* %.0f to %.0f GFLOP/s a core */\n", by_names[best], rate[best], rate[set]);
}

int main(void) {
    threads_init(1);
    if (kernels_select("auto") != OK) return EXIT_FAILURE;
    if (!product_own(BY_AVX512BF16)) {
        fprintf(stderr, "this CPU has no bf16 instructions: there is nothing to choose\n");
        return EXIT_FAILURE;
    }
    fprintf(stderr, "%-8s %6s %6s %6s", "kind", "m", "lanes", "depth");
    for (int by = 0; by < BY_COUNT; by++) fprintf(stderr, " %12s", by_names[by]);
    fprintf(stderr, "   GFLOP/s a core\n");
    for (int i = 0; i < N_SHAPES; i++) {
        Arena arena = {0};
        const Work w = work_of(&arena, &shapes[i], product_own(BY_AVX512BF16));
        double rate[BY_COUNT];
        measure(&w, rate);
        fprintf(stderr, "%-8s %6d %6d %6d", kind_names[shapes[i].kind], shapes[i].m, shapes[i].lanes, shapes[i].depth);
        for (int by = 0; by < BY_COUNT; by++) fprintf(stderr, " %12.1f", rate[by]);
        fprintf(stderr, "\n");
        row(&shapes[i], BY_AVX512BF16, rate);
        if (product_own(BY_AMX)) row(&shapes[i], BY_AMX, rate);
        fflush(stdout);
        arena_free(&arena);
    }
    return EXIT_SUCCESS;
}
