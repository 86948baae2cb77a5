/* Matrix products by oneDNN 2: C[m, n] = A[m, k]·B[k, n], bfloat16 operands, fp32 sums. The panels of bf16.h are one of
 * its own layouts: BA16a16b2a is blocks of 16 columns of B, in them blocks of 32 depths, in them 16 pairs × 16 columns
 * × 2. */
#include "model/kernels/products/onednn.h"

#if defined(CRIA_ONEDNN)
#include <dnnl.h>
#include <omp.h>
#include <string.h>

#include "model/core/threads.h"

/* What a primitive is made for. Strides in elements: of a row, of a column. */
typedef struct {
    int64_t m, n, k, a_stride[2], b_stride[2], c_stride[2];
    int32_t packed, c_is_bf16, accumulate, threads;
} Shape;

typedef struct {
    Shape shape;
    dnnl_primitive_t primitive; /* NULL: it could not be made */
    dnnl_memory_t a, b, c;
} Entry;

enum { MOST_SHAPES = 256 };
static struct {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    int n;
    Entry entry[MOST_SHAPES];
} cache;

static bool started(void) {
    if (cache.stream) return true;
    if (!cache.engine && dnnl_engine_create(&cache.engine, dnnl_cpu, 0) != dnnl_success) return false;
    return dnnl_stream_create(&cache.stream, cache.engine, dnnl_stream_default_flags) == dnnl_success;
}

static bool strided(dnnl_memory_desc_t *desc, int64_t rows, int64_t cols, const int64_t stride[2], bool is_bf16) {
    const dnnl_dims_t dims = {rows, cols}, strides = {stride[0], stride[1]};
    return dnnl_memory_desc_init_by_strides(desc, 2, dims, is_bf16 ? dnnl_bf16 : dnnl_f32, strides) == dnnl_success;
}

static bool descriptions(const Shape *s, dnnl_memory_desc_t *a, dnnl_memory_desc_t *b, dnnl_memory_desc_t *c) {
    const dnnl_dims_t b_dims = {s->k, s->n};
    bool b_good = s->packed ? dnnl_memory_desc_init_by_tag(b, 2, b_dims, dnnl_bf16, dnnl_BA16a16b2a) == dnnl_success
                            : strided(b, s->k, s->n, s->b_stride, true);
    return b_good && strided(a, s->m, s->k, s->a_stride, true) && strided(c, s->m, s->n, s->c_stride, s->c_is_bf16);
}

/* A primitive for the described operands; c += needs what oneDNN calls a sum. */
static dnnl_primitive_t primitive(const Shape *s, const dnnl_memory_desc_t *a, const dnnl_memory_desc_t *b,
                                  const dnnl_memory_desc_t *c) {
    dnnl_matmul_desc_t product;
    dnnl_post_ops_t sum = NULL;
    dnnl_primitive_attr_t how = NULL;
    dnnl_primitive_desc_t plan = NULL;
    dnnl_primitive_t made = NULL;
    bool good = dnnl_post_ops_create(&sum) == dnnl_success && dnnl_primitive_attr_create(&how) == dnnl_success;
    if (good && s->accumulate) good = dnnl_post_ops_append_sum(sum, 1) == dnnl_success;
    good = good && dnnl_primitive_attr_set_post_ops(how, sum) == dnnl_success &&
           dnnl_matmul_desc_init(&product, a, b, NULL, c) == dnnl_success &&
           dnnl_primitive_desc_create(&plan, &product, how, cache.engine, NULL) == dnnl_success;
    if (good && dnnl_primitive_create(&made, plan) != dnnl_success) made = NULL;
    if (plan) dnnl_primitive_desc_destroy(plan);
    if (how) dnnl_primitive_attr_destroy(how);
    if (sum) dnnl_post_ops_destroy(sum);
    return made;
}

static void fill(Entry *e, const Shape *s) {
    dnnl_memory_desc_t a, b, c;
    *e = (Entry){.shape = *s};
    if (!started() || !descriptions(s, &a, &b, &c)) return;
    bool good = dnnl_memory_create(&e->a, &a, cache.engine, DNNL_MEMORY_NONE) == dnnl_success &&
                dnnl_memory_create(&e->b, &b, cache.engine, DNNL_MEMORY_NONE) == dnnl_success &&
                dnnl_memory_create(&e->c, &c, cache.engine, DNNL_MEMORY_NONE) == dnnl_success;
    if (good) e->primitive = primitive(s, &a, &b, &c);
}

/* The primitive for a shape; once there is no room for another shape, NULL. */
static Entry *entry(const Shape *s) {
    for (int i = 0; i < cache.n; i++)
        if (memcmp(&cache.entry[i].shape, s, sizeof *s) == 0) return &cache.entry[i];
    if (cache.n == MOST_SHAPES) return NULL;
    fill(&cache.entry[cache.n], s);
    return &cache.entry[cache.n++];
}

static bool multiply(Shape s, const void *a, const void *b, void *c) {
    s.threads = omp_in_parallel() ? 1 : threads_count();
    Entry *e = entry(&s);
    if (!e || !e->primitive) return false;
    /* the library only reads its operands, whatever the type of its handles */
    union {
        const void *from;
        void *handle;
    } left = {a}, right = {b};
    if (dnnl_memory_set_data_handle(e->a, left.handle) != dnnl_success) return false;
    if (dnnl_memory_set_data_handle(e->b, right.handle) != dnnl_success) return false;
    if (dnnl_memory_set_data_handle(e->c, c) != dnnl_success) return false;
    const dnnl_exec_arg_t operands[] = {{DNNL_ARG_SRC, e->a}, {DNNL_ARG_WEIGHTS, e->b}, {DNNL_ARG_DST, e->c}};
    return dnnl_primitive_execute(e->primitive, cache.stream, 3, operands) == dnnl_success &&
           dnnl_stream_wait(cache.stream) == dnnl_success;
}

static void finish(const Product *p) {
    enum { FINISH_ROWS = 32 };
    if (!p->finish) return;
#pragma omp parallel for schedule(static) num_threads(threads_count())
    for (int r = 0; r < p->m; r += FINISH_ROWS)
        p->finish(p->context, r, p->m - r < FINISH_ROWS ? p->m - r : FINISH_ROWS);
}

bool onednn_product(const Product *p) {
    Shape s = {.m = p->m, .n = p->b.lanes, .k = p->b.depth, .a_stride = {(int64_t)p->a_stride, 1}};
    s.c_stride[0] = (int64_t)p->c_stride;
    s.c_stride[1] = 1;
    s.c_is_bf16 = p->c_dtype == DTYPE_BF16;
    s.accumulate = p->accumulate;
    const void *b = p->b.packed;
    if (b) {
        s.packed = 1;
    } else {
        const RowMajor *rows = p->b.rows;
        if (rows->quantised || rows->dtype != DTYPE_BF16 || rows->n_views != 1) return false;
        b = rows->view[0];
        s.b_stride[0] = p->b.transposed ? rows->cols : 1;
        s.b_stride[1] = p->b.transposed ? 1 : rows->cols;
    }
    if (p->m <= 0) return true;
    if (!multiply(s, p->a, b, p->c)) return false;
    finish(p);
    return true;
}

bool onednn_product_weight(float *dw, size_t dw_stride, const bf16 *dy, size_t dy_stride, const bf16 *x,
                           size_t x_stride, int n_tokens, int rows, int cols) {
    Shape s = {.m = rows, .n = cols, .k = n_tokens, .accumulate = 1};
    s.a_stride[0] = 1;
    s.a_stride[1] = (int64_t)dy_stride;
    s.b_stride[0] = (int64_t)x_stride;
    s.b_stride[1] = 1;
    s.c_stride[0] = (int64_t)dw_stride;
    s.c_stride[1] = 1;
    if (n_tokens <= 0) return true;
    return multiply(s, dy, x, dw);
}

#else

bool onednn_product(const Product *p) {
    (void)p;
    return false;
}

bool onednn_product_weight(float *dw, size_t dw_stride, const bf16 *dy, size_t dy_stride, const bf16 *x,
                           size_t x_stride, int n_tokens, int rows, int cols) {
    (void)dw, (void)dw_stride, (void)dy, (void)dy_stride, (void)x, (void)x_stride;
    (void)n_tokens, (void)rows, (void)cols;
    return false;
}
#endif
