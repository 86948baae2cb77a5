/* See probe.h. */
#include "train/probe.h"

#include <stdbool.h>
#include <string.h>

#include "model/core/arena.h"
#include "model/core/clock.h"
#include "model/core/memory.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"

/* ---- memory ---- */

/* One product C[m,n] of depth k, from pages that are never written, so that reading them takes no memory; C itself is
 * kept small. Sizes beyond a library's blocking change nothing in what it keeps. */
static void product(bool trans_a, bool trans_b, int m, int n, int k) {
    enum { DEEPEST = 512, LONGEST = 32768, LARGEST = 4 << 20 /* elements of C */ };
    if (k > DEEPEST) k = DEEPEST;
    if (m > LONGEST) m = LONGEST;
    if (n > LONGEST) n = LONGEST;
    if ((int64_t)m * n > LARGEST) {
        int bounded = LARGEST / (m > n ? m : n);
        if (m > n)
            n = bounded;
        else
            m = bounded;
    }
    size_t a_bytes = (size_t)m * (size_t)k * sizeof(float), b_bytes = (size_t)n * (size_t)k * sizeof(float);
    size_t c_bytes = (size_t)m * (size_t)n * sizeof(float);
    float *a = pages_alloc(a_bytes), *b = pages_alloc(b_bytes), *c = pages_alloc(c_bytes);
    if (a && b && c)
        kernels()->gemm(trans_a, trans_b, m, n, k, 1, a, (size_t)(trans_a ? m : k), b, (size_t)(trans_b ? k : n), 0, c,
                        (size_t)n);
    pages_free(a, a_bytes);
    pages_free(b, b_bytes);
    pages_free(c, c_bytes);
}

/* Forward, backward towards the input, backward towards the weight [rows, cols]. */
static void products_of(int n_tokens, int rows, int cols) {
    product(false, true, n_tokens, rows, cols);
    product(false, false, n_tokens, cols, rows);
    product(true, false, rows, cols, n_tokens);
}

uint64_t probe_baseline(const LlamaShape *shape, int n_tokens) {
    int query = shape->n_heads * shape->head_dim, key = shape->n_kv_heads * shape->head_dim;
    int head_tokens = (int)(head_scratch(n_tokens, shape->dim, shape->vocab_size) /
                            ((size_t)shape->vocab_size + 2 * (size_t)shape->dim)); /* of a block, as the head cuts it */
    products_of(n_tokens, query + 2 * key, shape->dim);
    products_of(n_tokens, shape->dim, query);
    products_of(n_tokens, 2 * shape->ffn_dim, shape->dim);
    products_of(n_tokens, shape->dim, shape->ffn_dim);
    products_of(head_tokens > 0 ? head_tokens : 1, shape->vocab_size, shape->dim);
    MemoryUse use = memory_use();
    return use.anonymous + use.shared;
}

/* ---- speed ---- */

static void fill(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = (float)(i % 17) * 0.0625f - 0.5f;
}

double probe_gemm_flops(void) {
    enum { SIDE = 1536, REPEATS = 12 }; /* short ones: the best is one that nothing else disturbed */
    const size_t n = (size_t)SIDE * SIDE, bytes = 3 * n * sizeof(float);
    float *a = pages_alloc(bytes);
    double best = 0;
    if (!a) return 0;
    fill(a, 3 * n);
    for (int repeat = 0; repeat < REPEATS; repeat++) { /* the first also wakes the threads */
        double start = clock_seconds();
        kernels()->gemm(false, true, SIDE, SIDE, SIDE, 1, a, SIDE, a + n, SIDE, 0, a + 2 * n, SIDE);
        double rate = 2.0 * SIDE * SIDE * SIDE / (clock_seconds() - start);
        if (rate > best) best = rate;
    }
    pages_free(a, bytes);
    return best;
}

typedef struct {
    char *from, *to;
} Copy;

static void copy_range(void *context, size_t begin, size_t end, int thread) {
    (void)thread;
    const Copy *copy = context;
    memcpy(copy->to + begin, copy->from + begin, end - begin);
}

double probe_copy_bytes(void) {
    enum { SIZE = 128 << 20, GRAIN = 1 << 16, REPEATS = 4 };
    Copy copy = {pages_alloc(SIZE), pages_alloc(SIZE)};
    double best = 0;
    if (copy.from && copy.to) memset(copy.from, 1, SIZE);
    for (int repeat = 0; repeat < REPEATS && copy.from && copy.to; repeat++) { /* the first also maps the pages */
        double start = clock_seconds();
        parallel_for(SIZE, GRAIN, copy_range, &copy);
        double rate = 2.0 * SIZE / (clock_seconds() - start);
        if (rate > best) best = rate;
    }
    pages_free(copy.from, SIZE);
    pages_free(copy.to, SIZE);
    return best;
}
