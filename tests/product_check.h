/* Helpers of the tests of products of bf16: operands that end at a page without access, sums of magnitudes for the
 * bounds, comparison with the reference. */
#ifndef CRIA_TESTS_PRODUCT_CHECK_H
#define CRIA_TESTS_PRODUCT_CHECK_H

#include <sys/mman.h>
#include <unistd.h>

#include "model/core/dtype.h"
#include "tests/kernel_check.h"

/* ---- memory whose last byte (or first) is followed (preceded) by a page without access ---- */

enum { MOST_GUARDED = 16 };
static struct {
    char *pages;
    size_t bytes;
} guarded[MOST_GUARDED];
static int n_guarded;

static inline void *guard(size_t bytes, bool at_end) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    char *pages = mmap(NULL, room + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(pages != MAP_FAILED && n_guarded < MOST_GUARDED);
    ck_assert(mprotect(pages, page, PROT_NONE) == 0 && mprotect(pages + page + room, page, PROT_NONE) == 0);
    guarded[n_guarded].pages = pages;
    guarded[n_guarded++].bytes = room + 2 * page;
    return pages + page + (at_end ? room - bytes : 0);
}

static inline void guards_free(void) {
    for (; n_guarded > 0; n_guarded--) munmap(guarded[n_guarded - 1].pages, guarded[n_guarded - 1].bytes);
}

enum { BF16_NAN = 0x7fc1 };

/* rows × cols normal numbers at a stride, NaN between them; nothing behind the last one. */
static inline bf16 *matrix(int rows, int cols, size_t stride, uint64_t seed, bool at_end) {
    size_t n = (size_t)(rows - 1) * stride + (size_t)cols;
    bf16 *x = guard(n * sizeof *x, at_end);
    for (size_t i = 0; i < n; i++) x[i] = BF16_NAN;
    float *row = malloc((size_t)cols * sizeof *row);
    ck_assert_ptr_nonnull(row);
    for (int r = 0; r < rows; r++) {
        philox_fill_normal(row, 0, (size_t)cols, philox_key(seed, PHILOX_TEST, (uint32_t)r, 0), 0, 1);
        for (int i = 0; i < cols; i++) x[(size_t)r * stride + (size_t)i] = f32_to_bf16(row[i]);
    }
    free(row);
    return x;
}

/* |x| of matrix(), at the same stride */
static inline bf16 *magnitudes(const bf16 *x, int rows, int cols, size_t stride) {
    size_t n = (size_t)(rows - 1) * stride + (size_t)cols;
    bf16 *y = guard(n * sizeof *y, true);
    for (size_t i = 0; i < n; i++) y[i] = x[i] & 0x7fff;
    return y;
}

typedef struct {
    int m, lanes, depth;
    Dtype c_dtype;
    bool accumulate, packed, transposed, at_end;
} Case;

static inline float element(const void *c, Dtype dtype, size_t at) {
    return dtype == DTYPE_BF16 ? bf16_to_f32(((const bf16 *)c)[at]) : ((const float *)c)[at];
}

static inline void *c_filled(const Case *k, size_t stride, uint64_t seed) {
    bf16 *x = matrix(k->m, k->lanes, stride, seed, k->at_end);
    if (k->c_dtype == DTYPE_BF16) return x;
    size_t n = (size_t)(k->m - 1) * stride + (size_t)k->lanes;
    float *c = guard(n * sizeof *c, k->at_end);
    for (size_t i = 0; i < n; i++) c[i] = bf16_to_f32(x[i]);
    return c;
}

/* C within rounding·(Σ|a·b| + |c|) of `expected`, and a bf16 C within two roundings more (2^-8 each); what lies between
 * its rows is untouched. */
static inline void check_c(const char *what, const Case *k, const void *c, const void *expected, const float *magnitude,
                           size_t stride, double rounding) {
    for (int r = 0; r < k->m; r++)
        for (int i = 0; i < (r + 1 < k->m ? (int)stride : k->lanes); i++) {
            size_t at = (size_t)r * stride + (size_t)i;
            double got = (double)element(c, k->c_dtype, at), want = (double)element(expected, k->c_dtype, at);
            if (i >= k->lanes) {
                ck_assert_msg(isnan(got), "%s: column %d of row %d was written", what, i, r);
                continue;
            }
            double bound = rounding * (double)magnitude[(size_t)r * (size_t)k->lanes + (size_t)i];
            if (k->c_dtype == DTYPE_BF16) bound += 0x1p-7 * (fabs(want) + bound);
            ck_assert_msg(fabs(got - want) <= bound, "%s: row %d lane %d: %.9g, expected %.9g ± %.3g", what, r, i, got,
                          want, bound);
        }
}

static inline bf16 *packed_guarded(const Bf16Kernels *reference, const RowMajor *rows, const Panels *b) {
    bf16 *to = guard(panels_elements(b->lanes, b->depth) * sizeof *to, true);
    Panels source = *b;
    source.rows = rows;
    size_t depth = ((size_t)b->depth + PANEL_DEPTH - 1) / PANEL_DEPTH * PANEL_DEPTH;
    reference->pack(to, depth * PANEL_LANES, &source, 0, b->lanes, 0, b->depth);
    return to;
}

static inline RowMajor weight_rows(const bf16 *w, int rows, int cols) {
    return (RowMajor){DTYPE_BF16, 1, cols, {w}, {0, rows}, NULL};
}

/* Σ|a·b| + |c| */
static inline float *product_magnitude(const Bf16Kernels *reference, const Product *p, const bf16 *w, int rows,
                                       int cols, size_t n) {
    float *sums = guard(n * sizeof *sums, true);
    for (int r = 0; r < p->m; r++)
        for (int i = 0; i < p->b.lanes; i++)
            sums[(size_t)r * (size_t)p->b.lanes + (size_t)i] =
                p->accumulate ? fabsf(element(p->c, p->c_dtype, (size_t)r * p->c_stride + (size_t)i)) : 0;
    RowMajor whole_rows = weight_rows(magnitudes(w, rows, cols, (size_t)cols), rows, cols);
    Product size = *p;
    size.a = magnitudes(p->a, p->m, p->b.depth, p->a_stride);
    size.b.packed = NULL;
    size.b.rows = &whole_rows;
    size.c = sums;
    size.c_stride = (size_t)p->b.lanes;
    size.c_dtype = DTYPE_F32;
    size.accumulate = true;
    reference->product(&size);
    return sums;
}

#define COUNT(list) (sizeof(list) / sizeof *(list))

#endif
