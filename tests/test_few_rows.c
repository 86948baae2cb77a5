/* Products of few rows with a weight that lies row-major, as decoding has them: read and multiplied a few depths at a
 * time, they have the bits of the product with the same weight packed beforehand, whose error tests/test_products.c
 * bounds. So a row of a product does not depend on how many there are, whether its weight is packed, in 16 bits or
 * quantised. */
#include "model/kernels/quantised.h"
#include "tests/kernel_check.h"

typedef enum { KEPT_BF16, KEPT_F16, KEPT_F32, KEPT_INT8, KEPT_NF4, KEPT_COUNT } Kept;
static const char *const kept_names[] = {"bf16", "f16", "f32", "int8", "nf4"};

typedef struct {
    RowMajor rows;
    Quantised parts[PANEL_MAX_VIEWS];
} Weights;

static void *bytes_of(Arena *arena, size_t n) {
    void *bytes = arena_alloc(arena, n + 64);
    ck_assert_ptr_nonnull(bytes);
    return bytes;
}

static void quantise_view(Quantised *q, Arena *arena, QuantisedKind kind, const float *values, size_t n) {
    size_t blocks = quantised_blocks(n);
    float *absmax = bytes_of(arena, blocks * sizeof *absmax);
    *q = quantised_place(kind, n, bytes_of(arena, quantised_bytes(kind, n)));
    ck_assert(quantised_encode(q, 0, n, values, absmax));
    q->offset = quantised_mean(absmax, blocks);
    if (kind == QUANTISED_NF4) quantised_encode_scales(q, 0, quantised_groups(n), absmax, q->offset);
}

/* One view of values, kept so; numbers beyond their end are no part of it. */
static void keep_view(Weights *w, Arena *arena, Kept kept, int v, float *values, size_t n) {
    if (kept >= KEPT_INT8) {
        quantise_view(&w->parts[v], arena, kept == KEPT_INT8 ? QUANTISED_INT8 : QUANTISED_NF4, values, n);
        return;
    }
    uint16_t *half = bytes_of(arena, (n + 32) * sizeof *half);
    memset(half, 0x7f, (n + 32) * sizeof *half);
    for (size_t i = 0; i < n; i++) half[i] = kept == KEPT_BF16 ? f32_to_bf16(values[i]) : f32_to_f16(values[i]);
    w->rows.view[v] = kept == KEPT_F32 ? (const void *)values : half;
}

static void make_weights(Weights *w, Arena *arena, Kept kept, int rows, int cols, int n_views) {
    static const Dtype dtypes[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};
    *w = (Weights){.rows = {.n_views = n_views, .cols = cols}};
    if (kept < KEPT_INT8) w->rows.dtype = dtypes[kept];
    for (int v = 0; v < n_views; v++) {
        int first = rows * v / n_views, end = rows * (v + 1) / n_views;
        size_t n = (size_t)(end - first) * (size_t)cols;
        keep_view(w, arena, kept, v, noise(arena, n, (uint64_t)(31 * v + rows), 0.05f), n);
        w->rows.first_row[v] = first;
        w->rows.first_row[v + 1] = end;
    }
    if (kept >= KEPT_INT8) w->rows.quantised = w->parts;
}

/* Widths that are whole blocks, halves of blocks (whose rows begin in the middle of one), and neither; one and two
 * blocks of depths; heights that are whole panels and not, and views that part a panel. */
static const struct {
    int lanes, depth;
} shapes[] = {{3, 5}, {37, 33}, {100, 96}, {96, 288}, {64, 448}, {80, 2080}, {50, 1100}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };
static const int rows_of_a[] = {1, 2, 5, 6, 7, 8, 9, 13, 60, 61, 64, 65};
enum { N_ROWS = sizeof rows_of_a / sizeof *rows_of_a, MOST_ROWS = 65 };

typedef struct {
    Product p;
    void *want, *got;
    size_t bytes;
} Case;

static void run_case(Case *c, const Kernels *k, const bf16 *packed, const RowMajor *rows) {
    c->p.b.packed = packed;
    c->p.c = c->want;
    k->bf16.product(&c->p);
    c->p.b.packed = NULL;
    c->p.b.rows = rows;
    c->p.c = c->got;
    k->bf16.product(&c->p);
}

static void compare_products(const Kernels *k, Arena *arena, Kept kept, int shape, int n_views) {
    Weights w;
    int lanes = shapes[shape].lanes, depth = shapes[shape].depth;
    make_weights(&w, arena, kept, lanes, depth, n_views);
    Panels panels = {lanes, depth, NULL, &w.rows, false};
    size_t stride = panels_elements(PANEL_LANES, depth);
    bf16 *packed = bytes_of(arena, panels_elements(lanes, depth) * sizeof *packed);
    k->bf16.pack(packed, stride, &panels, 0, lanes, 0, depth);
    float *x = noise(arena, (size_t)(MOST_ROWS * depth), 77, 1);
    bf16 *a = bytes_of(arena, (size_t)(MOST_ROWS * depth) * sizeof *a);
    for (int i = 0; i < MOST_ROWS * depth; i++) a[i] = f32_to_bf16(x[i]);
    for (int variant = 0; variant < 4 * N_ROWS; variant++) {
        Dtype dtype = variant % 2 ? DTYPE_BF16 : DTYPE_F32;
        int m = rows_of_a[variant / 4];
        Case c = {.bytes = (size_t)(m * lanes) * dtype_size(dtype)};
        c.p = (Product){.m = m, .a = a, .a_stride = (size_t)depth, .c_stride = (size_t)lanes, .c_dtype = dtype};
        c.p.b = panels;
        c.p.accumulate = variant / 2 % 2;
        c.want = bytes_of(arena, c.bytes);
        c.got = bytes_of(arena, c.bytes);
        memset(c.want, 0x3d, c.bytes); /* finite in either type */
        memset(c.got, 0x3d, c.bytes);
        run_case(&c, k, packed, &w.rows);
        ck_assert_msg(memcmp(c.got, c.want, c.bytes) == 0, "%s, %s: %d rows, %d lanes of %d, %d views, variant %d",
                      k->name, kept_names[kept], m, lanes, depth, n_views, variant % 4);
    }
}

/* The reference's products, which both have, take one number at a time. */
static bool is_slow(int set) {
    return strcmp(kernel_sets[set], "reference") == 0 || strcmp(kernel_sets[set], "openblas") == 0;
}

START_TEST(few_rows_have_the_bits_of_packed_weights) {
    for (int set = 0; set < N_SETS; set++) {
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        for (int kept = 0; kept < KEPT_COUNT; kept++)
            for (int shape = 0; shape < N_SHAPES; shape++)
                for (int n_views = 1; n_views <= PANEL_MAX_VIEWS; n_views += 2) {
                    Arena arena = {0};
                    if (!is_slow(set) || shapes[shape].depth < 100)
                        compare_products(&k, &arena, (Kept)kept, shape, n_views);
                    arena_free(&arena);
                }
    }
}
END_TEST

/* Every count of rows, against the first of many: the promise of eval/generator.h. amx multiplies one row by other
 * instructions than several. */
START_TEST(a_row_does_not_depend_on_how_many_there_are) {
    enum { LANES = 112, DEPTH = 1056, MOST = 80 };
    for (int set = 0; set < N_SETS; set++) {
        Kernels k;
        if (strcmp(kernel_sets[set], "amx") == 0 || !kernel_table(&k, kernel_sets[set])) continue;
        for (int kept = 0; kept < KEPT_COUNT; kept++) {
            Arena arena = {0};
            Weights w;
            make_weights(&w, &arena, (Kept)kept, LANES, DEPTH, 2);
            float *x = noise(&arena, MOST * DEPTH, 5, 1);
            bf16 *a = bytes_of(&arena, MOST * DEPTH * sizeof *a);
            for (int i = 0; i < MOST * DEPTH; i++) a[i] = f32_to_bf16(x[i]);
            float *all = bytes_of(&arena, MOST * LANES * sizeof *all),
                  *some = bytes_of(&arena, MOST * LANES * sizeof *some);
            Product p = {.m = MOST,
                         .a = a,
                         .a_stride = DEPTH,
                         .b = {LANES, DEPTH, NULL, &w.rows, false},
                         .c = all,
                         .c_stride = LANES,
                         .c_dtype = DTYPE_F32};
            k.bf16.product(&p);
            p.c = some;
            for (p.m = 1; p.m < MOST; p.m += is_slow(set) ? 39 : 1) {
                k.bf16.product(&p);
                ck_assert_msg(memcmp(some, all, (size_t)p.m * LANES * sizeof *some) == 0, "%s, %s: %d rows", k.name,
                              kept_names[kept], p.m);
            }
            arena_free(&arena);
        }
    }
}
END_TEST

/* fp32: the products are exact to a rounding each, and summed in at most cols/VF + 64 steps of one vector; the error
 * is at most that many times 2^-24 of Σ|x·w| (Higham 2002, equation 3.5), whatever the order. */
START_TEST(few_rows_of_fp32_are_within_the_bound_of_their_sums) {
    static const struct {
        int rows, cols;
    } sizes[] = {{1, 1}, {5, 7}, {33, 64}, {40, 96}, {96, 288}, {50, 1100}, {64, 2080}};
    static const int counts[] = {1, 2, 3, 8, 9, 17};
    enum { N_SIZES = sizeof sizes / sizeof *sizes, N_COUNTS = sizeof counts / sizeof *counts, MOST = 17 };
    Kernels reference = kernel_reference();
    for (int set = 0; set < N_SETS; set++) {
        Kernels k;
        double worst_share = 0;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        for (int variant = 0; variant < KEPT_COUNT * N_SIZES * N_COUNTS; variant++) {
            Arena arena = {0};
            Weights w;
            int kept = variant % KEPT_COUNT, size = variant / KEPT_COUNT % N_SIZES;
            int m = counts[variant / KEPT_COUNT / N_SIZES], rows = sizes[size].rows, cols = sizes[size].cols;
            make_weights(&w, &arena, (Kept)kept, rows, cols, rows >= 3 ? 3 : 1);
            float *x = noise(&arena, (size_t)(m * cols), 5, 1), *row = numbers(&arena, (size_t)cols);
            float *got = numbers(&arena, (size_t)(m * rows)), *want = numbers(&arena, (size_t)(m * rows));
            float *one = numbers(&arena, (size_t)rows);
            reference.row_major_product(want, (size_t)rows, x, (size_t)cols, m, &w.rows);
            k.row_major_product(got, (size_t)rows, x, (size_t)cols, m, &w.rows);
            k.row_major_product(one, (size_t)rows, x + (size_t)(m - 1) * (size_t)cols, (size_t)cols, 1, &w.rows);
            ck_assert_msg(memcmp(one, got + (size_t)(m - 1) * (size_t)rows, (size_t)rows * sizeof *one) == 0,
                          "%s, %s: the last of %d rows", k.name, kept_names[kept], m);
            for (int i = 0; i < m * rows; i++) {
                double sum = 0;
                row_major_read(&w.rows, i % rows, 0, (size_t)cols, row);
                for (int c = 0; c < cols; c++) sum += fabs((double)row[c] * (double)x[i / rows * cols + c]);
                double bound = (cols / 8.0 + 64) * 0x1p-24 * sum + (double)FLT_MIN;
                double share = fabs((double)got[i] - (double)want[i]) / bound;
                worst_share = fmax(worst_share, share);
                ck_assert_msg(share <= 1, "%s, %s: %d rows, %d × %d: %g is not %g", k.name, kept_names[kept], m, rows,
                              cols, (double)got[i], (double)want[i]);
            }
            arena_free(&arena);
        }
        printf("%s: at most %.2f of the bound\n", k.name, worst_share);
    }
}
END_TEST

CHECK_MAIN("few_rows", few_rows_have_the_bits_of_packed_weights, a_row_does_not_depend_on_how_many_there_are,
           few_rows_of_fp32_are_within_the_bound_of_their_sums)
