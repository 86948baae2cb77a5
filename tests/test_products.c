/* The products of precision bf16: the reference against fp64, every faster set against the reference.
 *
 * Most comparisons are exact: the operands are whole numbers of at most 8, so every product is at most 64, every sum of
 * at most 2^13 of them, and of a C of at most 2^8, is a whole number below 2^20 < 2^24, and fp32 holds it exactly in
 * whatever order it is formed. A bf16 C is then the one rounding of an exact sum. So one term too many, too few, or in
 * the wrong place shows. What rounding adds is bounded in its own test, on normal numbers. */
#include "tests/kernel_check.h"

/* ck_assert_msg for every element of an array: Check writes to a file at every assertion it makes. */
#define CHECK_EACH(true_of_it, ...)                   \
    do {                                              \
        if (!(true_of_it)) ck_abort_msg(__VA_ARGS__); \
    } while (0)

enum { AVX2 = 2 }; /* of kernel_sets: what has products of its own begins here */
enum { EDGE = 5 }; /* columns of canaries behind every row, rows of them before and behind a matrix */

static uint64_t next_seed = 1;

static uint32_t random_word(void) {
    next_seed = next_seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(next_seed >> 33);
}

/* rows × cols whole numbers of at most 8 in size, at any stride; what lies between and around the rows is NaN. `shift`
 * elements off alignment. */
static bf16 *whole_numbers(Arena *arena, int rows, int cols, size_t stride, size_t shift) {
    size_t n = ((size_t)rows + 2) * stride + shift + 64;
    bf16 *all = arena_alloc(arena, n * sizeof *all);
    ck_assert_ptr_nonnull(all);
    for (size_t i = 0; i < n; i++) all[i] = f32_to_bf16(NAN);
    bf16 *x = all + shift;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++)
            x[(size_t)r * stride + (size_t)c] = f32_to_bf16((float)(int)(random_word() % 17) - 8);
    return x;
}

static bf16 *noise_bf16(Arena *arena, size_t n, uint64_t seed) {
    float *x = noise(arena, n, seed, 1);
    bf16 *y = arena_alloc(arena, n * sizeof *y);
    ck_assert_ptr_nonnull(y);
    for (size_t i = 0; i < n; i++) y[i] = f32_to_bf16(x[i]);
    return y;
}

/* ---- weights ---- */

/* The same whole numbers W[rows, cols] as a RowMajor of `dtype`, cut into views that lie apart and unaligned. */
static RowMajor row_major(Arena *arena, const bf16 *w, int rows, int cols, Dtype dtype, int n_views) {
    RowMajor m = {.dtype = dtype, .n_views = n_views, .cols = cols};
    for (int v = 0; v <= n_views; v++) m.first_row[v] = v == n_views ? rows : rows * v * v / 9 + (v > 0 && rows > 3);
    for (int v = 0; v < n_views; v++) {
        size_t n = (size_t)(m.first_row[v + 1] - m.first_row[v]) * (size_t)cols, size = dtype_size(dtype);
        char *bytes = arena_alloc(arena, n * size + 64);
        ck_assert_ptr_nonnull(bytes);
        bytes += 2 * v + 1;
        for (size_t i = 0; i < n; i++) {
            float x = bf16_to_f32(w[(size_t)m.first_row[v] * (size_t)cols + i]);
            dtype_write_f32(bytes + i * size, dtype, &x, 1);
        }
        m.view[v] = bytes;
    }
    return m;
}

/* B's packing by its definition in bf16.h. */
static bf16 *packed_by_definition(Arena *arena, const bf16 *w, int cols, bool transposed, int lanes, int depth) {
    size_t n = panels_elements(lanes, depth), padded = n / (((size_t)lanes + 15) / 16 * 16);
    bf16 *to = arena_alloc(arena, n * sizeof *to);
    ck_assert_ptr_nonnull(to);
    for (size_t lane = 0; lane < (size_t)lanes; lane++)
        for (size_t d = 0; d < (size_t)depth; d++)
            to[lane / 16 * padded * 16 + d / 2 * 32 + lane % 16 * 2 + d % 2] =
                transposed ? w[d * (size_t)cols + lane] : w[lane * (size_t)cols + d];
    return to;
}

typedef struct {
    int lanes, depth;
} WeightShape;
static const WeightShape weight_shapes[] = {{1, 1}, {3, 2}, {16, 32}, {17, 33}, {40, 31}, {64, 100}, {100, 65}};

START_TEST(every_set_packs_weights_as_the_layout_says) {
    const Dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    for (int set = 0; set < N_SETS; set++) {
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        for (size_t s = 0; s < sizeof weight_shapes / sizeof *weight_shapes; s++)
            for (int variant = 0; variant < 3 * 2 * 3; variant++) {
                Arena arena = {0};
                bool transposed = variant % 2;
                int lanes = weight_shapes[s].lanes, depth = weight_shapes[s].depth, n_views = 1 + variant / 6;
                int rows = transposed ? depth : lanes, cols = transposed ? lanes : depth;
                bf16 *w = whole_numbers(&arena, rows, cols, (size_t)cols, 0);
                RowMajor m = row_major(&arena, w, rows, cols, dtypes[variant / 2 % 3], n_views);
                Panels b = {lanes, depth, NULL, &m, transposed};
                size_t n = panels_elements(lanes, depth);
                bf16 *want = packed_by_definition(&arena, w, cols, transposed, lanes, depth);
                bf16 *got = arena_alloc(&arena, (n + 64) * sizeof *got);
                memset(got, 0x7f, (n + 64) * sizeof *got);
                k.bf16.pack(got, (size_t)(depth + 31) / 32 * 32 * 16, &b, 0, lanes, 0, depth);
                ck_assert_msg(memcmp(got, want, n * sizeof *got) == 0, "%s: %d lanes of %d, variant %d", k.name, lanes,
                              depth, variant);
                for (size_t i = n; i < n + 64; i++) CHECK_EACH(got[i] == 0x7f7f, "%s: written behind", k.name);
                arena_free(&arena);
            }
    }
}
END_TEST

START_TEST(a_rectangle_of_panels_is_packed_where_it_belongs) {
    enum { LANES = 75, DEPTH = 130, PADDED = 160, LANE = 32, END = 64, FIRST = 32, LAST = 96, STRIDE = 64 * 16 + 48 };
    for (int set = 0; set < N_SETS; set++)
        for (int transposed = 0; transposed < 2; transposed++) {
            Arena arena = {0};
            Kernels k;
            if (!kernel_table(&k, kernel_sets[set])) continue;
            int rows = transposed ? DEPTH : LANES, cols = transposed ? LANES : DEPTH;
            bf16 *w = whole_numbers(&arena, rows, cols, (size_t)cols, 0), got[2 * STRIDE];
            RowMajor m = row_major(&arena, w, rows, cols, DTYPE_BF16, 2);
            Panels b = {LANES, DEPTH, NULL, &m, transposed};
            bf16 *want = packed_by_definition(&arena, w, cols, transposed, LANES, DEPTH);
            memset(got, 0x7f, sizeof got);
            k.bf16.pack(got, STRIDE, &b, LANE, END, FIRST, LAST);
            for (size_t p = 0; p < 2; p++)
                for (size_t i = 0; i < STRIDE; i++)
                    CHECK_EACH(got[p * STRIDE + i] ==
                                   (i < 64 * 16 ? want[(LANE / 16 + p) * PADDED * 16 + FIRST * 16 + i] : 0x7f7f),
                               "%s: panel %zu, %zu", k.name, p, i);
            arena_free(&arena);
        }
}
END_TEST

START_TEST(packing_rounds_to_nearest_even_and_keeps_nan) {
    const float values[] = {1.00390625f, 1.01171875f, -1.00390626f, 3.4e38f, 1e-40f, -0.0f, INFINITY, NAN, -NAN, 65504};
    enum { N = sizeof values / sizeof *values };
    for (int set = 0; set < N_SETS; set++)
        for (int half = 0; half < 2; half++) {
            Kernels k;
            if (!kernel_table(&k, kernel_sets[set])) continue;
            uint16_t f16[N];
            bf16 got[16 * 32];
            for (int i = 0; i < N; i++) f16[i] = f32_to_f16(values[i]);
            RowMajor m = {half ? DTYPE_F16 : DTYPE_F32, 1, N, {half ? (const void *)f16 : values}, {0, 1}, NULL};
            for (int transposed = 0; transposed < 2; transposed++) {
                Panels b = {transposed ? N : 1, transposed ? 1 : N, NULL, &m, transposed};
                k.bf16.pack(got, 0, &b, 0, b.lanes, 0, b.depth);
                for (int i = 0; i < N; i++)
                    ck_assert_int_eq(got[transposed ? 2 * i : i / 2 * 32 + i % 2],
                                     f32_to_bf16(half ? f16_to_f32(f16[i]) : values[i]));
            }
        }
}
END_TEST

/* ---- product ---- */

/* C with canaries all around: rows `stride` elements apart, EDGE rows before and behind. */
typedef struct {
    Dtype dtype;
    size_t stride, elements, first; /* of the first row's first element */
    char *data;
} Guarded;

static Guarded guarded(Arena *arena, Dtype dtype, int rows, int cols) {
    size_t stride = (size_t)cols + EDGE, n = ((size_t)rows + 2 * EDGE) * stride;
    Guarded g = {dtype, stride, n, EDGE * stride, arena_alloc(arena, n * dtype_size(dtype))};
    ck_assert_ptr_nonnull(g.data);
    for (size_t i = 0; i < n; i++) {
        float x = (float)(int)(i * 7 % 509) - 254; /* whole, and exact in bf16 */
        dtype_write_f32(g.data + i * dtype_size(dtype), dtype, &x, 1);
    }
    return g;
}

static void *guarded_first(Guarded g) {
    return g.data + g.first * dtype_size(g.dtype);
}

static void check_same(Guarded got, Guarded want, const char *what) {
    size_t size = dtype_size(got.dtype);
    for (size_t i = 0; i < got.elements; i++)
        CHECK_EACH(memcmp(got.data + i * size, want.data + i * size, size) == 0, "%s: row %ld, column %zu", what,
                   (long)(i / got.stride) - EDGE, i % got.stride);
}

typedef struct {
    const Product *product;
    Guarded want;
    int *calls; /* per row */
} Finish;

/* Every lane of the rows is already there. */
static void count_finish(void *context, int first_row, int n_rows) {
    Finish *f = context;
    size_t size = dtype_size(f->want.dtype), width = (size_t)f->product->b.lanes * size;
    for (int r = first_row; r < first_row + n_rows; r++) {
        size_t at = (size_t)r * f->want.stride * size;
        f->calls[r] += memcmp((char *)f->product->c + at, (char *)guarded_first(f->want) + at, width) == 0 ? 1 : 1000;
    }
}

typedef struct {
    int m, lanes, depth;
} Shape;

/* One, odd, not multiples of 16, 32 or 64; more rows than a block has; more depths than are summed at a time. */
static const Shape shapes[] = {{1, 1, 1},      {1, 100, 70},  {2, 17, 33},    {7, 16, 2},
                               {13, 48, 31},   {33, 47, 129}, {64, 64, 64},   {65, 130, 96},
                               {100, 9, 64},   {403, 49, 66}, {1100, 33, 40}, {5, 50, 1025},
                               {17, 40, 2051}, {9, 70, 3072}, {31, 333, 7},   {1030, 20, 1090}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* What varies: 0 packed, 1…4 packed on the way (F32, BF16, F16, and BF16 by column); C's type; accumulate. */
typedef struct {
    Panels b;
    RowMajor rows;
} Right;

static Right right_operand(Arena *arena, const bf16 *w, Shape s, int kind) {
    const Dtype dtypes[] = {DTYPE_BF16, DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_BF16, DTYPE_F32};
    bool transposed = kind > 3;
    int rows = transposed ? s.depth : s.lanes, cols = transposed ? s.lanes : s.depth;
    Right r = {.b = {s.lanes, s.depth, NULL, NULL, transposed}};
    if (kind == 0)
        r.b.packed = packed_by_definition(arena, w, cols, false, s.lanes, s.depth);
    else
        r.rows = row_major(arena, w, rows, cols, dtypes[kind], 1 + kind % 3);
    return r;
}

static void check_product(const Kernels *reference, const Kernels *k, Shape s, int kind, Dtype dtype, bool accumulate) {
    Arena arena = {0};
    bool transposed = kind > 3;
    int cols = transposed ? s.lanes : s.depth;
    size_t stride = (size_t)s.depth + (size_t)(kind % 2) * 3;
    bf16 *a = whole_numbers(&arena, s.m, s.depth, stride, (size_t)kind % 3);
    bf16 *w = whole_numbers(&arena, transposed ? s.depth : s.lanes, cols, (size_t)cols, 0);
    Right right = right_operand(&arena, w, s, kind);
    if (!right.b.packed) right.b.rows = &right.rows;
    Guarded want = guarded(&arena, dtype, s.m, s.lanes), got = guarded(&arena, dtype, s.m, s.lanes);
    Product p = {s.m, a, stride, right.b, guarded_first(want), want.stride, dtype, accumulate, NULL, NULL};
    reference->bf16.product(&p);
    int *calls = arena_alloc(&arena, (size_t)s.m * sizeof *calls);
    ck_assert_ptr_nonnull(calls);
    Finish finish = {&p, want, calls};
    p.c = guarded_first(got);
    if (kind != 1) { /* finish is optional */
        p.finish = count_finish;
        p.context = &finish;
    }
    k->bf16.product(&p);
    char what[200];
    snprintf(what, sizeof what, "%s: %d × %d × %d, B %d, C %s%s", k->name, s.m, s.lanes, s.depth, kind,
             dtype_name(dtype), accumulate ? " added to" : "");
    check_same(got, want, what);
    for (int r = 0; r < s.m && kind != 1; r++)
        CHECK_EACH(calls[r] == 1, "%s: finish of row %d came %d times, or early", what, r, calls[r] % 1000);
    arena_free(&arena);
}

START_TEST(every_set_multiplies_whole_numbers_exactly) {
    for (int threads = 1; threads <= 3; threads += 2) {
        threads_init(threads);
        Kernels reference = kernel_reference();
        for (int set = AVX2; set < N_SETS; set++) {
            Kernels k;
            if (!kernel_table(&k, kernel_sets[set])) continue;
            for (int i = 0; i < N_SHAPES; i++)
                for (int variant = 0; variant < 6; variant++) {
                    Dtype dtype = (variant + i) % 2 ? DTYPE_BF16 : DTYPE_F32;
                    check_product(&reference, &k, shapes[i], variant, dtype, false);
                    check_product(&reference, &k, shapes[i], variant, dtype == DTYPE_F32 ? DTYPE_BF16 : DTYPE_F32,
                                  true);
                }
        }
    }
}
END_TEST

/* fp64 from the definitions, on normal numbers. A product of two bfloat16 is exact in fp32 (16 bits), so a sum of n
 * terms and the C it is added to, in any order, errs by at most n·2^-24·Σ|terms| to first order (Higham 2002, section
 * 4.2); 1 % more for the higher orders. Rounding to bf16, of 8 bits, adds at most 2^-8 of the result. */
static double sum_bound(int terms, double magnitude) {
    return 1.01 * terms * 0x1p-24 * magnitude;
}

START_TEST(every_set_multiplies_as_fp64_does_within_the_bound_of_fp32_sums) {
    const Shape some[] = {{9, 20, 70}, {3, 33, 1500}, {200, 50, 257}};
    threads_init(2);
    for (int set = 0; set < N_SETS; set++) {
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        for (int variant = 0; variant < 6; variant++) {
            Arena arena = {0};
            Shape s = some[variant % 3];
            size_t depth = (size_t)s.depth, lanes = (size_t)s.lanes;
            bool half = variant > 2;
            bf16 *a = noise_bf16(&arena, (size_t)s.m * depth, 1), *w = noise_bf16(&arena, lanes * depth, 2);
            RowMajor rows = {DTYPE_BF16, 1, s.depth, {w}, {0, s.lanes}, NULL};
            float *c = noise(&arena, (size_t)s.m * lanes, 3, 1);
            bf16 *c16 = noise_bf16(&arena, (size_t)s.m * lanes, 3);
            double *before = arena_alloc(&arena, (size_t)s.m * lanes * sizeof *before);
            for (size_t i = 0; i < (size_t)s.m * lanes; i++)
                before[i] = half ? (double)bf16_to_f32(c16[i]) : (double)c[i];
            Product p = {s.m,
                         a,
                         depth,
                         {s.lanes, s.depth, NULL, &rows, false},
                         half ? (void *)c16 : c,
                         lanes,
                         half ? DTYPE_BF16 : DTYPE_F32,
                         true,
                         NULL,
                         NULL};
            k.bf16.product(&p);
            for (size_t i = 0; i < (size_t)s.m * lanes; i++) {
                double sum = before[i], magnitude = fabs(sum);
                for (size_t d = 0; d < depth; d++) {
                    double term =
                        (double)bf16_to_f32(a[i / lanes * depth + d]) * (double)bf16_to_f32(w[i % lanes * depth + d]);
                    sum += term;
                    magnitude += fabs(term);
                }
                double got = half ? (double)bf16_to_f32(c16[i]) : (double)c[i], e = sum_bound(s.depth + 1, magnitude);
                if (half) e += 0x1p-8 * (fabs(sum) + e);
                CHECK_EACH(fabs(got - sum) <= e, "%s: %.9g for %.9g, bound %.3g", k.name, got, sum, e);
            }
            arena_free(&arena);
        }
    }
}
END_TEST

START_TEST(a_product_has_the_same_bits_for_any_threads_and_any_way_of_packing) {
    const Shape some[] = {{70, 100, 90}, {12, 130, 2500}, {1200, 40, 1100}, {500, 200, 64}};
    for (int set = AVX2; set < N_SETS; set++)
        for (size_t i = 0; i < sizeof some / sizeof *some; i++)
            for (int half = 0; half < 2; half++) {
                Arena arena = {0};
                Shape s = some[i];
                size_t depth = (size_t)s.depth, lanes = (size_t)s.lanes, n = (size_t)s.m * lanes;
                bf16 *a = noise_bf16(&arena, (size_t)s.m * depth, 4), *w = noise_bf16(&arena, lanes * depth, 5);
                bf16 *packed = packed_by_definition(&arena, w, s.depth, false, s.lanes, s.depth);
                RowMajor rows = {DTYPE_BF16, 1, s.depth, {w}, {0, s.lanes}, NULL};
                float *first = NULL;
                for (int run = 0; run < 6; run++) {
                    Kernels k;
                    threads_init(1 + run / 2);
                    if (!kernel_table(&k, kernel_sets[set])) break;
                    float *c = numbers(&arena, n);
                    Product p = {s.m,
                                 a,
                                 depth,
                                 {s.lanes, s.depth, run % 2 ? NULL : packed, &rows, false},
                                 c,
                                 lanes,
                                 half ? DTYPE_BF16 : DTYPE_F32,
                                 false,
                                 NULL,
                                 NULL};
                    k.bf16.product(&p);
                    if (!first) first = c;
                    ck_assert_msg(memcmp(c, first, n * sizeof *c) == 0, "%s: %d × %d × %d, run %d", k.name, s.m,
                                  s.lanes, s.depth, run);
                }
                arena_free(&arena);
            }
}
END_TEST

/* ---- the gradient of a weight ---- */

/* tokens, rows, columns */
static const int gradients[][3] = {{1, 1, 1},      {2, 3, 17},     {3, 8, 48},     {31, 9, 50},
                                   {33, 100, 33},  {64, 64, 64},   {65, 7, 100},   {130, 200, 31},
                                   {2100, 20, 40}, {4099, 13, 35}, {2048, 3, 2100}};
enum { N_GRADIENTS = sizeof gradients / sizeof *gradients };

static void check_gradient(const Kernels *reference, const Kernels *k, const int shape[3], bool block) {
    Arena arena = {0};
    int tokens = shape[0], rows = shape[1], cols = shape[2];
    size_t dy_stride = (size_t)rows + (block ? 3 : 0), x_stride = (size_t)cols + (block ? 0 : 5);
    bf16 *dy = whole_numbers(&arena, tokens, rows, dy_stride, 1);
    bf16 *x = whole_numbers(&arena, tokens, cols, x_stride, block ? 0 : 3);
    Guarded want = guarded(&arena, DTYPE_F32, rows, cols), got = guarded(&arena, DTYPE_F32, rows, cols);
    reference->bf16.product_weight(guarded_first(want), want.stride, dy, dy_stride, x, x_stride, tokens, rows, cols);
    if (block) {
        size_t n = product_block_scratch(tokens, rows, cols);
        float *scratch = numbers(&arena, n + 16);
        for (size_t i = 0; i < n + 16; i++) scratch[i] = NAN;
        k->bf16.blocks->multiply_transposed(guarded_first(got), got.stride, dy, dy_stride, x, x_stride, tokens, rows,
                                            cols, scratch);
        for (size_t i = n; i < n + 16; i++) CHECK_EACH(isnan(scratch[i]), "%s: written behind the scratch", k->name);
    } else {
        k->bf16.product_weight(guarded_first(got), got.stride, dy, dy_stride, x, x_stride, tokens, rows, cols);
    }
    char what[200];
    snprintf(what, sizeof what, "%s: %s of %d tokens, %d × %d", k->name, block ? "block" : "gradient", tokens, rows,
             cols);
    check_same(got, want, what);
    arena_free(&arena);
}

START_TEST(every_set_adds_gradients_of_whole_numbers_exactly) {
    for (int threads = 1; threads <= 3; threads += 2) {
        threads_init(threads);
        Kernels reference = kernel_reference();
        for (int set = AVX2; set < N_SETS; set++) {
            Kernels k;
            if (!kernel_table(&k, kernel_sets[set])) continue;
            for (int i = 0; i < N_GRADIENTS; i++)
                for (int block = 0; block < 2; block++) check_gradient(&reference, &k, gradients[i], block);
        }
    }
}
END_TEST

START_TEST(every_set_adds_gradients_as_fp64_does_within_the_bound_of_fp32_sums) {
    enum { T = 301, R = 21, C = 37 };
    threads_init(2);
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        bf16 *dy = noise_bf16(&arena, T * R, 1), *x = noise_bf16(&arena, T * C, 2);
        float *dw = noise(&arena, R * C, 3, 1), *before = copy(&arena, dw, R * C);
        k.bf16.product_weight(dw, C, dy, R, x, C, T, R, C);
        for (int i = 0; i < R * C; i++) {
            double sum = (double)before[i], magnitude = fabs(sum);
            for (int t = 0; t < T; t++) {
                double term = (double)bf16_to_f32(dy[t * R + i / C]) * (double)bf16_to_f32(x[t * C + i % C]);
                sum += term;
                magnitude += fabs(term);
            }
            CHECK_EACH(fabs((double)dw[i] - sum) <= sum_bound(T + 1, magnitude), "%s: %.9g for %.9g", k.name,
                       (double)dw[i], sum);
        }
        arena_free(&arena);
    }
}
END_TEST

START_TEST(a_gradient_has_the_same_bits_for_any_threads) {
    enum { T = 2500, R = 70, C = 130 };
    for (int set = AVX2; set < N_SETS; set++) {
        Arena arena = {0};
        bf16 *dy = noise_bf16(&arena, T * R, 1), *x = noise_bf16(&arena, T * C, 2);
        float *first = NULL;
        for (int run = 0; run < 6; run++) {
            Kernels k;
            threads_init(1 + run / 2);
            if (!kernel_table(&k, kernel_sets[set])) break;
            float *dw = noise(&arena, R * C, 3, 1);
            k.bf16.product_weight(dw, C, dy, R, x, C, T, R, C);
            if (!first) first = dw;
            ck_assert_msg(memcmp(dw, first, R * C * sizeof *dw) == 0, "%s: run %d", k.name, run);
        }
        arena_free(&arena);
    }
}
END_TEST

/* ---- blocks ---- */

static void check_block(const Kernels *reference, const Kernels *k, Shape s, bool accumulate) {
    Arena arena = {0};
    size_t stride = (size_t)s.depth + 3, panel_stride = (size_t)(s.depth + 31) / 32 * 32 * 16 + 96;
    bf16 *a = whole_numbers(&arena, s.m, s.depth, stride, 1);
    bf16 *w = whole_numbers(&arena, s.lanes, s.depth, (size_t)s.depth, 0);
    RowMajor rows = {DTYPE_BF16, 1, s.depth, {w}, {0, s.lanes}, NULL};
    Panels b = {s.lanes, s.depth, NULL, &rows, false};
    bf16 *packed = whole_numbers(&arena, (s.lanes + 15) / 16, 0, panel_stride, 0); /* NaN between the panels */
    reference->bf16.pack(packed, panel_stride, &b, 0, s.lanes, 0, s.depth);
    Guarded want = guarded(&arena, DTYPE_F32, s.m, s.lanes), got = guarded(&arena, DTYPE_F32, s.m, s.lanes);
    reference->bf16.blocks->multiply(guarded_first(want), want.stride, accumulate, a, stride, s.m, packed, panel_stride,
                                     s.lanes, s.depth);
    k->bf16.blocks->multiply(guarded_first(got), got.stride, accumulate, a, stride, s.m, packed, panel_stride, s.lanes,
                             s.depth);
    char what[200];
    snprintf(what, sizeof what, "%s: block %d × %d × %d%s", k->name, s.m, s.lanes, s.depth,
             accumulate ? " added to" : "");
    check_same(got, want, what);
    arena_free(&arena);
}

START_TEST(every_set_multiplies_blocks_of_whole_numbers_exactly) {
    Kernels reference = kernel_reference();
    for (int set = AVX2; set < N_SETS; set++) {
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        for (int i = 0; i < 2 * N_SHAPES; i++) check_block(&reference, &k, shapes[i / 2], i % 2);
    }
}
END_TEST

CHECK_MAIN("products", every_set_packs_weights_as_the_layout_says, a_rectangle_of_panels_is_packed_where_it_belongs,
           packing_rounds_to_nearest_even_and_keeps_nan, every_set_multiplies_whole_numbers_exactly,
           every_set_multiplies_as_fp64_does_within_the_bound_of_fp32_sums,
           a_product_has_the_same_bits_for_any_threads_and_any_way_of_packing,
           every_set_adds_gradients_of_whole_numbers_exactly,
           every_set_adds_gradients_as_fp64_does_within_the_bound_of_fp32_sums,
           a_gradient_has_the_same_bits_for_any_threads, every_set_multiplies_blocks_of_whole_numbers_exactly)
