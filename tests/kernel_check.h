/* Helpers of the kernel tests: noise, comparison, the tables of this CPU, and fp64 finite differences. */
#ifndef CRIA_TESTS_KERNEL_CHECK_H
#define CRIA_TESTS_KERNEL_CHECK_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "model/core/arena.h"
#include "model/core/philox.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "tests/check_main.h"

enum { N_SETS = 6 };
static const char *const kernel_sets[N_SETS] = {"reference", "openblas", "avx2", "avx512", "avx512bf16", "amx"};

/* A copy of the named table; false, with a printed line, where this CPU cannot run it. */
static inline bool kernel_table(Kernels *table, const char *name) {
    int rc = kernels_select(name);
    if (rc == ERR_REFUSED) {
        printf("without the %s kernels: %s\n", name, error_text());
        return false;
    }
    ck_assert_int_eq(rc, OK);
    *table = *kernels();
    ck_assert_str_eq(table->name, name);
    return true;
}

static inline Kernels kernel_reference(void) {
    CHECK_OK(kernels_select("reference"));
    return *kernels();
}

static inline double largest(const float *x, size_t n) {
    double top = 0;
    for (size_t i = 0; i < n; i++) top = fmax(top, fabs((double)x[i]));
    return top;
}

static inline float *numbers(Arena *arena, size_t n) {
    float *x = arena_alloc(arena, (n + 1) * sizeof *x);
    ck_assert_ptr_nonnull(x);
    return x;
}

/* n standard normal numbers times `scale` */
static inline float *noise(Arena *arena, size_t n, uint64_t seed, float scale) {
    float *x = numbers(arena, n);
    philox_fill_normal(x, 0, n, philox_key(seed, PHILOX_TEST, 0, 0), 0, scale);
    return x;
}

static inline float *copy(Arena *arena, const float *from, size_t n) {
    float *x = numbers(arena, n);
    memcpy(x, from, n * sizeof *x);
    return x;
}

/* max |a − b| / max(|b|, floor); infinite where either has a NaN */
static inline double worst(const float *a, const float *b, size_t n, double floor) {
    double error = 0, top = floor;
    for (size_t i = 0; i < n; i++) {
        double e = fabs((double)a[i] - (double)b[i]);
        if (isnan(e)) return INFINITY;
        error = fmax(error, e);
        top = fmax(top, fabs((double)b[i]));
    }
    return error / top;
}

#define CHECK_CLOSE(a, b, n, bound, ...) CHECK_CLOSE_TO((double)FLT_MIN, a, b, n, bound, __VA_ARGS__)
/* The same for arrays whose largest element may have cancelled: relative to `floor` at least. */
#define CHECK_CLOSE_TO(floor, a, b, n, bound, ...)                         \
    do {                                                                   \
        double worst_ = worst((a), (b), (n), (floor));                     \
        if (!(worst_ <= (bound))) {                                        \
            char what_[200];                                               \
            snprintf(what_, sizeof what_, __VA_ARGS__);                    \
            ck_abort_msg("%s: error %.3g > %.3g", what_, worst_, (bound)); \
        }                                                                  \
    } while (0)

/* Every element of `gradient` (NULL: none) is the slope of loss(context) in the fp64 array `x`, by central differences
 * (error about 1e-9), within `bound` of the largest slope. */
static inline void check_slopes(const char *name, const float *gradient, double *x, size_t n,
                                double (*loss)(const void *context), const void *context, double bound) {
    const double step = 1e-5;
    double top = 0, error = 0;
    for (size_t i = 0; i < n; i++) {
        double at = x[i];
        x[i] = at + step;
        double above = loss(context);
        x[i] = at - step;
        double below = loss(context);
        x[i] = at;
        double slope = (above - below) / (2 * step);
        top = fmax(top, fabs(slope));
        error = fmax(error, isnan((double)gradient[i]) ? INFINITY : fabs(slope - (double)gradient[i]));
    }
    ck_assert_msg(top > 1e-3, "%s: the slopes vanish, so the check would prove nothing", name);
    ck_assert_msg(error <= bound * top, "%s: error %.3g of %.3g", name, error, top);
}

static inline double *widen(Arena *arena, const float *x, size_t n) {
    double *y = arena_alloc(arena, n * sizeof *y);
    ck_assert_ptr_nonnull(y);
    for (size_t i = 0; i < n; i++) y[i] = (double)x[i];
    return y;
}

#endif
