/* The table of who computes which product (choice.def), and oneDNN as one of them and as a second opinion.
 *
 * The bound for sums in an unknown order (Higham 2002, section 3.1): |computed − exact| ≤ γ·(Σ|aᵢ·bᵢ| + |c|) with
 * γ = n·u / (1 − n·u), u = 2^-24, n = depth + 1. */
#include "model/kernels/products/choice.h"

#include <limits.h>

#include "model/kernels/products/onednn.h"
#include "tests/amx_emulation.h"
#include "tests/product_check.h"

static double rounding(int depth) {
    double nu = (depth + 1) * 0x1p-24;
    return nu / (1 - nu);
}

enum { MOST = INT_MAX };

START_TEST(rows_of_the_table_make_sense) {
#define CHOICE(set, kind, m_least, m_most, lanes_least, lanes_most, depth_least, depth_most, by)               \
    ck_assert(1 <= (m_least) && (m_least) <= (m_most) && 1 <= (lanes_least) && (lanes_least) <= (lanes_most)); \
    ck_assert(1 <= (depth_least) && (depth_least) <= (depth_most));                                            \
    ck_assert(BY_##set != BY_ONEDNN && BY_##set != BY_##by);                                                   \
    ck_assert((KIND_##kind != KIND_BLOCK && KIND_##kind != KIND_BLOCK_T) || BY_##by != BY_ONEDNN);             \
    ck_assert_msg(BY_##set != BY_AVX512BF16 || BY_##by != BY_AMX, "a CPU may have avx512bf16 and no amx");     \
    ck_assert_msg(product_choice(BY_##set, KIND_##kind, m_least, lanes_least, depth_least) == BY_##by,         \
                  "a row before it hides: %s %s %d %d %d", #set, #kind, (m_least), (lanes_least), (depth_least));
#include "model/kernels/products/choice.def"
#undef CHOICE
}
END_TEST

START_TEST(a_shape_that_no_row_names_is_the_sets_own) {
    for (int kind = 0; kind < KIND_COUNT; kind++)
        for (int set = 0; set < BY_ONEDNN; set++)
            ck_assert_int_eq(product_choice((ProductBy)set, (ProductKind)kind, 111, 1111, 11111), set);
}
END_TEST

/* One product by the rows of a table. */
static void multiply(const Bf16Kernels *table, float *c, int m, int lanes, int depth, const bf16 *a,
                     const RowMajor *rows, const bf16 *packed) {
    Product p = {.m = m, .a = a, .a_stride = (size_t)depth, .c = c, .c_stride = (size_t)lanes};
    p.b = (Panels){lanes, depth, packed, rows, false};
    table->product(&p);
}

/* With emulated tiles: one row goes to avx512bf16, more do not, as choice.def says; the two differ in their bits. */
START_TEST(products_go_where_the_table_says) {
    enum { M = 40, LANES = 70, DEPTH = 500 };
    static float chosen[M * LANES], avx512bf16[M * LANES], amx[M * LANES];
    Kernels table;
    if (!kernel_table(&table, "avx512bf16")) return;
    const Bf16Kernels *own = product_own(BY_AVX512BF16), reference = kernel_reference().bf16;
    Bf16Kernels with_tiles = table.bf16, emulated = table.bf16;
    amx_emulated_products(&emulated);
    with_tiles = emulated;
    product_choices(&with_tiles, BY_AMX);
    ck_assert(with_tiles.product != emulated.product && with_tiles.blocks != emulated.blocks);
    const bf16 *a = matrix(M, DEPTH, DEPTH, 1, true), *w = matrix(LANES, DEPTH, DEPTH, 2, true);
    const RowMajor rows = weight_rows(w, LANES, DEPTH);
    const Panels b = {LANES, DEPTH, NULL, &rows, false};
    const bf16 *packed = packed_guarded(&reference, &rows, &b);
    int differ = 0;
    for (int m = 1; m <= M; m++) {
        ProductBy by = product_choice(BY_AMX, KIND_PACKED, m, LANES, DEPTH);
        multiply(&with_tiles, chosen, m, LANES, DEPTH, a, &rows, packed);
        multiply(own, avx512bf16, m, LANES, DEPTH, a, &rows, packed);
        multiply(&emulated, amx, m, LANES, DEPTH, a, &rows, packed);
        const size_t bytes = (size_t)m * LANES * sizeof *amx;
        differ += memcmp(amx, avx512bf16, bytes) != 0;
        ck_assert_msg(memcmp(chosen, by == BY_AMX ? amx : avx512bf16, bytes) == 0, "m %d is not by %d", m, by);
    }
    ck_assert_msg(differ > 0, "the two have the same bits, so the check would prove nothing");
    ck_assert_int_eq(product_choice(BY_AMX, KIND_PACKED, 1, LANES, DEPTH), BY_AVX512BF16);
    guards_free();
}
END_TEST

static bool without_onednn(void) {
#if defined(CRIA_ONEDNN)
    return false;
#else
    printf("built without oneDNN\n");
    return true;
#endif
}

static void check_onednn(const Bf16Kernels *reference, const Case *k) {
    char what[160];
    snprintf(what, sizeof what, "m %d, lanes %d, depth %d, %s%s%s%s", k->m, k->lanes, k->depth,
             k->c_dtype == DTYPE_BF16 ? "bf16" : "fp32", k->accumulate ? ", accumulate" : "",
             k->packed ? ", packed" : ", rows", k->transposed ? ", transposed" : "");
    const size_t a_stride = (size_t)k->depth + 3, c_stride = (size_t)k->lanes + 5;
    const int rows = k->transposed ? k->depth : k->lanes, cols = k->transposed ? k->lanes : k->depth;
    const bf16 *w = matrix(rows, cols, (size_t)cols, 2, true);
    const RowMajor row_major = weight_rows(w, rows, cols);
    Product p = {
        .m = k->m, .a_stride = a_stride, .c_stride = c_stride, .c_dtype = k->c_dtype, .accumulate = k->accumulate};
    p.a = matrix(k->m, k->depth, a_stride, 1, true);
    p.b = (Panels){k->lanes, k->depth, NULL, &row_major, k->transposed};
    Product expected = p;
    expected.c = c_filled(k, c_stride, 3);
    p.c = c_filled(k, c_stride, 3);
    if (k->packed) p.b.packed = packed_guarded(reference, &row_major, &p.b);
    const float *magnitude = product_magnitude(reference, &p, w, rows, cols, (size_t)k->m * (size_t)k->lanes);
    reference->product(&expected);
    ck_assert_msg(onednn_product(&p), "%s: oneDNN refuses", what);
    check_c(what, k, p.c, expected.c, magnitude, c_stride, rounding(k->depth));
    guards_free();
}

START_TEST(onednn_agrees_with_the_reference_on_our_layouts) {
    static const int shapes[][3] = {{1, 16, 32}, {33, 64, 96}, {70, 100, 65}, {5, 33, 1}, {128, 288, 768}};
    if (without_onednn()) return;
    const Bf16Kernels reference = kernel_reference().bf16;
    for (size_t i = 0; i < COUNT(shapes); i++)
        for (int kind = 0; kind < 16; kind++) {
            Case k = {shapes[i][0], shapes[i][1], shapes[i][2], kind % 2 ? DTYPE_BF16 : DTYPE_F32,
                      kind / 2 % 2, kind / 4 % 2, kind / 8 % 2, true};
            check_onednn(&reference, &k);
        }
}
END_TEST

START_TEST(onednn_adds_gradients_of_weights_as_the_reference) {
    enum { TOKENS = 77, ROWS = 50, COLS = 60 };
    if (without_onednn()) return;
    const Bf16Kernels reference = kernel_reference().bf16;
    const Case k = {.m = ROWS, .lanes = COLS, .depth = TOKENS, .c_dtype = DTYPE_F32, .at_end = true};
    const bf16 *dy = matrix(TOKENS, ROWS, ROWS + 3, 1, true), *x = matrix(TOKENS, COLS, COLS + 1, 2, true);
    float *expected = c_filled(&k, COLS + 2, 3), *dw = c_filled(&k, COLS + 2, 3);
    float *magnitude = guard(sizeof *magnitude * ROWS * COLS, true);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t i = 0; i < COLS; i++) magnitude[r * COLS + i] = fabsf(dw[r * (COLS + 2) + i]);
    reference.product_weight(magnitude, COLS, magnitudes(dy, TOKENS, ROWS, ROWS + 3), ROWS + 3,
                             magnitudes(x, TOKENS, COLS, COLS + 1), COLS + 1, TOKENS, ROWS, COLS);
    reference.product_weight(expected, COLS + 2, dy, ROWS + 3, x, COLS + 1, TOKENS, ROWS, COLS);
    ck_assert(onednn_product_weight(dw, COLS + 2, dy, ROWS + 3, x, COLS + 1, TOKENS, ROWS, COLS));
    check_c("gradient", &k, dw, expected, magnitude, COLS + 2, rounding(TOKENS));
    guards_free();
}
END_TEST

CHECK_MAIN("product choice", rows_of_the_table_make_sense, a_shape_that_no_row_names_is_the_sets_own,
           products_go_where_the_table_says, onednn_agrees_with_the_reference_on_our_layouts,
           onednn_adds_gradients_of_weights_as_the_reference)
