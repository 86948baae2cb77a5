/* Products from quantised weights: every set packs what the reference packs, bit for bit, and multiplies as it does the
 * same weight dequantised to bf16 beforehand, whose products tests/test_products.c bounds. */
#include "model/kernels/quantised.h"
#include "tests/kernel_check.h"

typedef struct {
    RowMajor quantised, rounded; /* the same values */
    Quantised parts[PANEL_MAX_VIEWS];
} Weights;

static void *bytes_of(Arena *arena, size_t n) {
    void *bytes = arena_alloc(arena, n + 64);
    ck_assert_ptr_nonnull(bytes);
    return bytes;
}

/* W[rows, cols] of normal numbers, in views of uneven heights. Behind the codes lie ones that are no part of it. */
static void make_weights(Weights *w, Arena *arena, QuantisedKind kind, int rows, int cols, int n_views) {
    *w = (Weights){.quantised = {.n_views = n_views, .cols = cols},
                   .rounded = {.dtype = DTYPE_BF16, .n_views = 1, .cols = cols, .first_row = {0, rows}}};
    bf16 *all = bytes_of(arena, (size_t)rows * (size_t)cols * sizeof *all), *to = all;
    for (int v = 0; v < n_views; v++) {
        int first = rows * v * v / 9 + (v > 0 && rows > 3);
        int end = v + 1 == n_views ? rows : rows * (v + 1) * (v + 1) / 9 + (rows > 3);
        size_t n = (size_t)(end - first) * (size_t)cols, blocks = quantised_blocks(n);
        float *values = noise(arena, n, (uint64_t)kind * 10 + (uint64_t)(v + rows), 0.05f);
        float *absmax = bytes_of(arena, blocks * sizeof *absmax);
        void *storage = bytes_of(arena, quantised_bytes(kind, n));
        memset(storage, 0x5b, quantised_bytes(kind, n));
        Quantised *q = &w->parts[v];
        *q = quantised_place(kind, n, storage);
        ck_assert(quantised_encode(q, 0, n, values, absmax));
        q->offset = quantised_mean(absmax, blocks);
        if (kind == QUANTISED_NF4) quantised_encode_scales(q, 0, quantised_groups(n), absmax, q->offset);
        quantised_read(q, 0, n, values);
        for (size_t i = 0; i < n; i++) *to++ = f32_to_bf16(values[i]);
        w->quantised.first_row[v] = first;
        w->quantised.first_row[v + 1] = end;
    }
    w->quantised.quantised = w->parts;
    w->rounded.view[0] = all;
}

typedef struct {
    int lanes, depth;
} Shape;
/* Widths that are a multiple of the block, of 32, of 16, and of none; less than a block and less than a unit. */
static const Shape shapes[] = {{1, 1},    {3, 2},    {16, 32},  {17, 33},  {40, 31},  {64, 128},
                               {100, 65}, {48, 176}, {176, 80}, {33, 192}, {130, 320}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

START_TEST(every_set_packs_the_bits_of_the_dequantised_weight) {
    Kernels reference = kernel_reference();
    for (int set = 0; set < N_SETS; set++) {
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        for (int s = 0; s < N_SHAPES; s++)
            for (int variant = 0; variant < 2 * 2 * 3; variant++) {
                Arena arena = {0};
                Weights w;
                bool transposed = variant % 2;
                int lanes = shapes[s].lanes, depth = shapes[s].depth, n_views = 1 + variant / 4;
                int rows = transposed ? depth : lanes, cols = transposed ? lanes : depth;
                make_weights(&w, &arena, (QuantisedKind)(variant / 2 % 2), rows, cols, n_views);
                Panels rounded = {lanes, depth, NULL, &w.rounded, transposed};
                Panels quantised = {lanes, depth, NULL, &w.quantised, transposed};
                size_t n = panels_elements(lanes, depth), stride = (size_t)(depth + 31) / 32 * 32 * 16;
                bf16 *want = bytes_of(&arena, n * sizeof *want), *got = bytes_of(&arena, (n + 64) * sizeof *got);
                memset(got, 0x7f, (n + 64) * sizeof *got);
                reference.bf16.pack(want, stride, &rounded, 0, lanes, 0, depth);
                k.bf16.pack(got, stride, &quantised, 0, lanes, 0, depth);
                ck_assert_msg(memcmp(got, want, n * sizeof *got) == 0, "%s: %d lanes of %d, variant %d", k.name, lanes,
                              depth, variant);
                for (size_t i = n; i < n + 64; i++) ck_assert(got[i] == 0x7f7f);
                arena_free(&arena);
            }
    }
}
END_TEST

START_TEST(any_part_is_packed_as_in_the_whole) {
    enum { LANES = 200, DEPTH = 260, STEP = 48, DEPTHS = 96 };
    Kernels reference = kernel_reference();
    for (int set = 0; set < N_SETS; set++) {
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        for (int variant = 0; variant < 4; variant++) {
            Arena arena = {0};
            Weights w;
            bool transposed = variant % 2;
            make_weights(&w, &arena, (QuantisedKind)(variant / 2), transposed ? DEPTH : LANES,
                         transposed ? LANES : DEPTH, 2);
            Panels rounded = {LANES, DEPTH, NULL, &w.rounded, transposed};
            Panels quantised = {LANES, DEPTH, NULL, &w.quantised, transposed};
            bf16 want[STEP * DEPTHS], got[STEP * DEPTHS];
            for (int lane = 0; lane < LANES; lane += STEP)
                for (int d = 0; d < DEPTH; d += DEPTHS) {
                    int end = lane + STEP < LANES ? lane + STEP : LANES, last = d + DEPTHS < DEPTH ? d + DEPTHS : DEPTH;
                    memset(want, 0x7f, sizeof want);
                    memset(got, 0x7f, sizeof got);
                    reference.bf16.pack(want, DEPTHS * 16, &rounded, lane, end, d, last);
                    k.bf16.pack(got, DEPTHS * 16, &quantised, lane, end, d, last);
                    ck_assert_msg(memcmp(got, want, sizeof got) == 0, "%s: lane %d, depth %d, variant %d", k.name, lane,
                                  d, variant);
                }
            arena_free(&arena);
        }
    }
}
END_TEST

/* One thread and two, rows for one tile and for many: decoding and training. */
START_TEST(products_are_those_of_the_dequantised_weight) {
    static const int rows_of_a[] = {1, 5, 64, 300};
    for (int set = 0; set < N_SETS; set++) {
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        for (int variant = 0; variant < 2 * 2 * 4; variant++) {
            enum { ROWS = 448, COLS = 320 };
            Arena arena = {0};
            Weights w;
            bool transposed = variant % 2;
            int m = rows_of_a[variant / 4], lanes = transposed ? COLS : ROWS, depth = transposed ? ROWS : COLS;
            make_weights(&w, &arena, (QuantisedKind)(variant / 2 % 2), ROWS, COLS, 3);
            float *x = noise(&arena, (size_t)(m * depth), 77, 1);
            bf16 *a = bytes_of(&arena, (size_t)(m * depth) * sizeof *a);
            for (int i = 0; i < m * depth; i++) a[i] = f32_to_bf16(x[i]);
            for (int accumulate = 0; accumulate < 2; accumulate++) {
                float *want = noise(&arena, (size_t)(m * lanes), 78, 1),
                      *got = noise(&arena, (size_t)(m * lanes), 78, 1);
                Product p = {
                    .m = m, .a = a, .a_stride = (size_t)depth, .c_stride = (size_t)lanes, .c_dtype = DTYPE_F32};
                p.accumulate = accumulate;
                p.b = (Panels){lanes, depth, NULL, &w.rounded, transposed};
                p.c = want;
                k.bf16.product(&p);
                p.b.rows = &w.quantised;
                p.c = got;
                k.bf16.product(&p);
                ck_assert_msg(memcmp(got, want, (size_t)(m * lanes) * sizeof *got) == 0, "%s: %d rows, variant %d",
                              k.name, m, variant);
            }
            arena_free(&arena);
        }
    }
}
END_TEST

CHECK_MAIN("quantised_products", every_set_packs_the_bits_of_the_dequantised_weight, any_part_is_packed_as_in_the_whole,
           products_are_those_of_the_dequantised_weight)
