/* AMX's products of bf16, on emulated tiles wherever the avx512 kernels run (tests/amx_emulation.h), against the
 * reference. On a CPU with AMX also that the emulation gives the hardware's bits.
 *
 * The bound. One TDPBF16PS adds 16 products to each of two sums, adds these, and adds that to C: a product passes 18
 * roundings there, then one for every further 32 depths, and one for each time a sum goes through memory (blocks of
 * depths or tokens, C). With u = 2^-24, n(depth) = 20 + 2·⌈depth / 32⌉ and γ = n·u / (1 − n·u) (Higham 2002, lemma 3.1)
 *
 *   |computed − exact| ≤ γ·(Σ|aᵢ·bᵢ| + |c|)
 *
 * and a bf16 C is rounded once more, in the reference too: 2^-8 of itself each. */
#include "tests/amx_emulation.h"
#include "tests/product_check.h"

/* ---- tables ---- */

static Bf16Kernels reference, emulated;

/* False where the CPU cannot even emulate. */
static bool tables(void) {
    Kernels avx512;
    threads_init(3);
    if (!kernel_table(&avx512, "avx512")) return false;
    reference = kernel_reference().bf16;
    emulated = reference;
    amx_emulated_products(&emulated);
    ck_assert_msg(emulated.product != reference.product, "the products of AMX are not built");
    return true;
}

static void check_no_fault(const char *what) {
    char text[120];
    int n = emulation_faults(text, sizeof text);
    ck_assert_msg(n == 0, "%s: %d faults, the first: %s", what, n, text);
    ck_assert_msg(emulation_configured() == 0, "%s: %d threads kept their tiles", what, emulation_configured());
}

static void check_fault(const char *part) {
    char text[120];
    int n = emulation_faults(text, sizeof text);
    ck_assert_msg(n == 1 && strstr(text, part), "%d faults, '%s' instead of '%s'", n, text, part);
}

/* ---- the emulation ---- */

static TileConfig whole(void) {
    TileConfig c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.rows[i] = 16;
        c.row_bytes[i] = 64;
    }
    return c;
}

START_TEST(the_emulation_notices_what_the_cpu_refuses) {
    bf16 data[16 * 32] = {0};
    TileConfig c = whole();
    TILES_ZERO(0);
    check_fault("not configured");
    c.rows[3] = 17;
    TILES_CONFIGURE(&c);
    check_fault("not a configuration");
    c = whole();
    c.row_bytes[7] = 65;
    TILES_CONFIGURE(&c);
    check_fault("not a configuration");
    c = whole();
    c.reserved[13] = 1;
    TILES_CONFIGURE(&c);
    check_fault("not a configuration");
    c = whole();
    c.rows[2] = 8; /* of B: the depth */
    TILES_CONFIGURE(&c);
    TILES_ZERO(0);
    TILES_LOAD(1, data, 64);
    TILES_LOAD(2, data, 64);
    TILES_DOT(0, 1, 2);
    check_fault("do not fit");
    TILES_DOT(0, 1, 1);
    check_fault("must be three");
    TILES_DOT(0, 1, 4);
    check_fault("never written");
    TILES_STORE(5, data, 64);
    check_fault("never written");
    c.rows[6] = 0;
    c.row_bytes[6] = 0;
    TILES_CONFIGURE(&c);
    TILES_ZERO(6);
    check_fault("tile 6 is not configured");
    ck_assert_int_eq(emulation_configured(), 1);
    TILES_RELEASE();
    check_no_fault("after release");
}
END_TEST

/* C of one product with A's row 0 and B's lane 0 given by their pairs; c is what C held. */
static float dotted(const float *a, const float *b, int n, float c) {
    bf16 left[16 * 32] = {0}, right[16 * 32] = {0};
    float sums[16 * 16] = {c};
    for (int i = 0; i < n; i++) {
        left[i] = f32_to_bf16(a[i]);
        right[i / 2 * 32 + i % 2] = f32_to_bf16(b[i]);
    }
    TileConfig config = whole();
    TILES_CONFIGURE(&config);
    TILES_LOAD(0, sums, 64);
    TILES_LOAD(1, left, 64);
    TILES_LOAD(2, right, 64);
    TILES_DOT(0, 1, 2);
    TILES_STORE(0, sums, 64);
    TILES_RELEASE();
    return sums[0];
}

START_TEST(the_emulation_adds_in_the_order_of_the_definition) {
    const float one[6] = {1, 1, 1, 1, 1, 1}, big = 0x1p24f, tiny = 0x1p-130f;
    /* even members: 2^24 + 1 = 2^24 (half to even) + 1 = 2^24; in one sum with the odd ones it would be 2^24 + 2 … */
    ck_assert(dotted((const float[]){big, 1, 1, 1, 1, 1}, one, 6, 0) == big + 4); /* 2^24 + 3, half to even */
    ck_assert(dotted((const float[]){big, 1, 1, 1}, one, 4, 0) == big + 2);
    /* C comes last: −2^24 + (2^24 + 2) */
    ck_assert(dotted((const float[]){big, 1, 1, 1}, one, 4, -big) == 2);
    /* half to even in the other direction: 2^24 + 2 + 1 = 2^24 + 4 */
    ck_assert(dotted((const float[]){big, 0, 2, 0, 1, 0}, one, 6, 0) == big + 4);
    /* one rounding for product and sum: (1 + 2^-7)² − (1 + 2^-6) = 2^-14 */
    ck_assert(dotted((const float[]){-1, 0, 1 + 0x1p-7f}, (const float[]){1 + 0x1p-6f, 0, 1 + 0x1p-7f}, 3, 0) ==
              0x1p-14f);
    /* subnormal operands, products, sums and what C held are zero */
    ck_assert(dotted((const float[]){tiny}, (const float[]){0x1p20f}, 1, 0) == 0);
    ck_assert(dotted((const float[]){0x1p-70f}, (const float[]){0x1p-70f}, 1, 0) == 0);
    ck_assert(dotted((const float[]){0x1.8p-126f, -0x1p-126f}, one, 2, 0) == 0);
    ck_assert(dotted((const float[]){0}, one, 1, tiny) == 0);
    ck_assert(isnan(dotted((const float[]){INFINITY}, (const float[]){0}, 1, 0)));
    check_no_fault("definition");
}
END_TEST

/* ---- products ---- */

static double rounding(int depth) {
    double nu = (20 + 2 * ((depth + 31) / 32)) * 0x1p-24;
    return nu / (1 - nu);
}

static void check_product(const Case *k) {
    char what[160];
    snprintf(what, sizeof what, "m %d, lanes %d, depth %d, %s%s%s%s", k->m, k->lanes, k->depth,
             k->c_dtype == DTYPE_BF16 ? "bf16" : "fp32", k->accumulate ? ", accumulate" : "",
             k->packed ? ", packed" : ", rows", k->transposed ? ", transposed" : "");
    const size_t a_stride = (size_t)k->depth + 3, c_stride = (size_t)k->lanes + 5;
    const int rows = k->transposed ? k->depth : k->lanes, cols = k->transposed ? k->lanes : k->depth;
    const bf16 *w = matrix(rows, cols, (size_t)cols, 2, k->at_end);
    const RowMajor row_major = weight_rows(w, rows, cols);
    Product p = {
        .m = k->m, .a_stride = a_stride, .c_stride = c_stride, .c_dtype = k->c_dtype, .accumulate = k->accumulate};
    p.a = matrix(k->m, k->depth, a_stride, 1, k->at_end);
    p.b = (Panels){k->lanes, k->depth, NULL, &row_major, k->transposed};
    Product expected = p;
    expected.c = c_filled(k, c_stride, 3);
    p.c = c_filled(k, c_stride, 3);
    if (k->packed) p.b.packed = packed_guarded(&reference, &row_major, &p.b);
    const float *magnitude = product_magnitude(&reference, &p, w, rows, cols, (size_t)k->m * (size_t)k->lanes);
    reference.product(&expected);
    emulated.product(&p);
    check_no_fault(what);
    check_c(what, k, p.c, expected.c, magnitude, c_stride, rounding(k->depth));
    guards_free();
}

START_TEST(products_agree_with_the_reference) {
    static const int ms[] = {1, 2, 15, 16, 17, 31, 32, 33, 65}, lanes[] = {1, 15, 16, 17, 32, 33, 48, 100};
    static const int depths[] = {1, 2, 31, 32, 33, 64, 95};
    if (!tables()) return;
    unsigned turn = 0;
    for (size_t i = 0; i < COUNT(ms); i++)
        for (size_t j = 0; j < COUNT(lanes); j++)
            for (size_t l = 0; l < COUNT(depths); l++, turn++) {
                Case k = {ms[i],        lanes[j],     depths[l],    turn % 2 ? DTYPE_BF16 : DTYPE_F32,
                          turn / 2 % 2, turn / 4 % 2, turn / 3 % 2, turn / 5 % 2};
                check_product(&k);
            }
}
END_TEST

/* Depths and lanes of several blocks, rows of several threads; every kind of C and B. Depth 1021 has a stride of 2 KiB.
 */
START_TEST(products_of_many_blocks_agree_with_the_reference) {
    static const int shapes[][3] = {{70, 144, 641}, {33, 31, 1337}, {200, 300, 330},
                                    {3, 700, 2050}, {600, 33, 40},  {75, 450, 1021}};
    if (!tables()) return;
    for (size_t i = 0; i < COUNT(shapes); i++)
        for (int kind = 0; kind < 16; kind++) {
            Case k = {shapes[i][0], shapes[i][1], shapes[i][2], kind % 2 ? DTYPE_BF16 : DTYPE_F32,
                      kind / 2 % 2, kind / 4 % 2, kind / 8 % 2, true};
            check_product(&k);
        }
}
END_TEST

/* Every row is finished once, when all its lanes are there. */
typedef struct {
    const float *c;
    int lanes;
    size_t stride;
    int finished[300];
} Finish;

static void finish_row(void *context, int first_row, int n_rows) {
    Finish *f = context;
    for (int r = first_row; r < first_row + n_rows; r++) {
        f->finished[r]++;
        for (int i = 0; i < f->lanes; i++)
            if (isnan(f->c[(size_t)r * f->stride + (size_t)i])) f->finished[r] += 100;
    }
}

START_TEST(finish_meets_every_row_once_and_whole) {
    enum { M = 300, LANES = 200, DEPTH = 333 };
    if (!tables()) return;
    for (int packed = 0; packed < 2; packed++) {
        const bf16 *w = matrix(LANES, DEPTH, DEPTH, 2, true);
        const RowMajor rows = weight_rows(w, LANES, DEPTH);
        float *c = guard(sizeof *c * M * LANES, true);
        for (size_t i = 0; i < M * LANES; i++) c[i] = NAN;
        Finish finish = {c, LANES, LANES, {0}};
        Product p = {.m = M, .a = matrix(M, DEPTH, DEPTH, 1, true), .a_stride = DEPTH, .c = c, .c_stride = LANES};
        p.b = (Panels){LANES, DEPTH, NULL, &rows, false};
        if (packed) p.b.packed = packed_guarded(&reference, &rows, &p.b);
        p.finish = finish_row;
        p.context = &finish;
        emulated.product(&p);
        check_no_fault("finish");
        for (int r = 0; r < M; r++) ck_assert_msg(finish.finished[r] == 1, "row %d: %d", r, finish.finished[r]);
        guards_free();
    }
}
END_TEST

/* dw += dyᵀ·x: the reference, and magnitudes from |dy|, |x| and |dw|. */
static void check_weight(int n_tokens, int rows, int cols, bool block) {
    char what[100];
    snprintf(what, sizeof what, "%d tokens, %d × %d%s", n_tokens, rows, cols, block ? ", a block" : "");
    const size_t dy_stride = (size_t)rows + 3, x_stride = (size_t)cols + 1, stride = (size_t)cols + 2;
    Case k = {.m = rows, .lanes = cols, .depth = n_tokens, .c_dtype = DTYPE_F32, .at_end = true};
    const bf16 *dy = matrix(n_tokens, rows, dy_stride, 1, true), *x = matrix(n_tokens, cols, x_stride, 2, true);
    float *expected = c_filled(&k, stride, 3), *dw = c_filled(&k, stride, 3);
    float *magnitude = guard(sizeof *magnitude * (size_t)rows * (size_t)cols, true);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < cols; i++)
            magnitude[(size_t)r * (size_t)cols + (size_t)i] = fabsf(dw[(size_t)r * stride + (size_t)i]);
    reference.product_weight(magnitude, (size_t)cols, magnitudes(dy, n_tokens, rows, dy_stride), dy_stride,
                             magnitudes(x, n_tokens, cols, x_stride), x_stride, n_tokens, rows, cols);
    reference.product_weight(expected, stride, dy, dy_stride, x, x_stride, n_tokens, rows, cols);
    if (block) {
        float *scratch = guard(sizeof *scratch * product_block_scratch(n_tokens, rows, cols), true);
        emulated.blocks->multiply_transposed(dw, stride, dy, dy_stride, x, x_stride, n_tokens, rows, cols, scratch);
    } else {
        emulated.product_weight(dw, stride, dy, dy_stride, x, x_stride, n_tokens, rows, cols);
    }
    check_no_fault(what);
    check_c(what, &k, dw, expected, magnitude, stride, rounding(n_tokens));
    guards_free();
}

START_TEST(gradients_of_weights_agree_with_the_reference) {
    static const int tokens[] = {1, 2, 31, 32, 33, 95}, rows[] = {1, 16, 17, 33, 64}, cols[] = {1, 15, 32, 49};
    if (!tables()) return;
    for (int block = 0; block < 2; block++) {
        for (size_t i = 0; i < COUNT(tokens); i++)
            for (size_t j = 0; j < COUNT(rows); j++)
                for (size_t l = 0; l < COUNT(cols); l++) check_weight(tokens[i], rows[j], cols[l], block);
        check_weight(2500, 70, 100, block);
        check_weight(333, 500, 200, block);
    }
}
END_TEST

/* The blocks, called by threads that share out the work and know nothing of tiles. */
START_TEST(blocks_agree_with_the_reference_in_a_parallel_region) {
    enum { PARTS = 6, M = 45, LANES = 90, DEPTH = 353, PADDED = 384, PANELS = 6 };
    if (!tables()) return;
    const bf16 *w = matrix(LANES, DEPTH, DEPTH, 2, true), *a = matrix(PARTS * M, DEPTH, DEPTH + 7, 1, true);
    const RowMajor rows = weight_rows(w, LANES, DEPTH);
    Product p = {.m = PARTS * M, .a = a, .a_stride = DEPTH + 7, .c_stride = LANES, .accumulate = true};
    p.b = (Panels){LANES, DEPTH, NULL, &rows, false};
    Case k = {.m = PARTS * M, .lanes = LANES, .depth = DEPTH, .c_dtype = DTYPE_F32, .at_end = true};
    float *expected = c_filled(&k, LANES, 3), *c = c_filled(&k, LANES, 3);
    p.c = expected;
    const float *magnitude = product_magnitude(&reference, &p, w, LANES, DEPTH, (size_t)PARTS * M * LANES);
    reference.product(&p);
    bf16 *packed = guard(sizeof *packed * ((PANELS - 1) * (PADDED + 2) + PADDED) * PANEL_LANES, true);
    reference.pack(packed, (PADDED + 2) * PANEL_LANES, &p.b, 0, LANES, 0, DEPTH);
#pragma omp parallel for num_threads(3)
    for (int i = 0; i < PARTS; i++)
        emulated.blocks->multiply(c + (size_t)i * M * LANES, LANES, true, a + (size_t)i * M * (DEPTH + 7), DEPTH + 7, M,
                                  packed, (PADDED + 2) * PANEL_LANES, LANES, DEPTH);
    check_no_fault("blocks");
    check_c("blocks", &k, c, expected, magnitude, LANES, rounding(DEPTH));
    guards_free();
}
END_TEST

/* One order of sums for a depth: the bits do not depend on how many threads there are, on whether B was packed before,
 * or on which rows come along. */
static void check_one_order(bool accumulate, Dtype c_dtype) {
    enum { M = 130, LANES = 140, DEPTH = 1001, WAYS = 4 };
    const Case k = {.m = M, .lanes = LANES, .c_dtype = c_dtype};
    const size_t row = LANES * (c_dtype == DTYPE_BF16 ? sizeof(bf16) : sizeof(float));
    const bf16 *w = matrix(LANES, DEPTH, DEPTH, 2, true), *a = matrix(M, DEPTH, DEPTH, 1, true);
    const RowMajor rows = weight_rows(w, LANES, DEPTH);
    void *c[WAYS];
    for (int i = 0; i < WAYS; i++) {
        c[i] = c_filled(&k, LANES, 3);
        Product p = {.m = i < 3 ? M : 7, .a = a, .a_stride = DEPTH, .c = c[i], .c_stride = LANES, .c_dtype = c_dtype};
        p.accumulate = accumulate;
        p.b = (Panels){LANES, DEPTH, NULL, &rows, false};
        if (i > 0) p.b.packed = packed_guarded(&reference, &rows, &p.b);
        if (i == 2) {
#pragma omp parallel num_threads(2)
#pragma omp single
            emulated.product(&p); /* in a parallel region: by one thread */
        } else {
            emulated.product(&p);
        }
    }
    ck_assert_int_eq(memcmp(c[0], c[1], M * row), 0);
    ck_assert_int_eq(memcmp(c[0], c[2], M * row), 0);
    ck_assert_int_eq(memcmp(c[0], c[3], 7 * row), 0);
    check_no_fault("order");
    guards_free();
}

START_TEST(a_sum_has_one_order) {
    if (!tables()) return;
    for (int i = 0; i < 4; i++) check_one_order(i % 2, i / 2 ? DTYPE_BF16 : DTYPE_F32);
}
END_TEST

START_TEST(the_emulation_gives_the_bits_of_hardware) {
    enum { M = 77, LANES = 150, DEPTH = 700 };
    static float c[2][M * LANES], dw[2][LANES * DEPTH];
    Kernels amx;
    if (!tables() || !kernel_table(&amx, "amx")) return;
    const bf16 *w = matrix(LANES, DEPTH, DEPTH, 2, true), *a = matrix(M, DEPTH, DEPTH, 1, true);
    const RowMajor rows = weight_rows(w, LANES, DEPTH);
    for (int i = 0; i < 2; i++) {
        const Bf16Kernels *table = i ? &amx.bf16 : &emulated;
        Product p = {.m = M, .a = a, .a_stride = DEPTH, .c = c[i], .c_stride = LANES};
        p.b = (Panels){LANES, DEPTH, NULL, &rows, false};
        table->product(&p);
        table->product_weight(dw[i], DEPTH, w, DEPTH, w, DEPTH, LANES, LANES, DEPTH); /* rows: its first columns */
    }
    ck_assert_int_eq(memcmp(c[0], c[1], sizeof c[0]), 0);
    ck_assert_int_eq(memcmp(dw[0], dw[1], sizeof dw[0]), 0);
    guards_free();
}
END_TEST

CHECK_MAIN("amx", the_emulation_notices_what_the_cpu_refuses, the_emulation_adds_in_the_order_of_the_definition,
           products_agree_with_the_reference, products_of_many_blocks_agree_with_the_reference,
           finish_meets_every_row_once_and_whole, gradients_of_weights_agree_with_the_reference,
           blocks_agree_with_the_reference_in_a_parallel_region, a_sum_has_one_order,
           the_emulation_gives_the_bits_of_hardware)
