/* choice.def as a table, and the rows of Bf16Kernels that ask it. */
#include "model/kernels/products/choice.h"

#include <limits.h>

#include "model/kernels/products/onednn.h"

enum { MOST = INT_MAX };

typedef struct {
    ProductBy set;
    ProductKind kind;
    int m[2], lanes[2], depth[2];
    ProductBy by;
} Choice;

static const Choice choices[] = {
#define CHOICE(set, kind, m_least, m_most, lanes_least, lanes_most, depth_least, depth_most, by) \
    {BY_##set, KIND_##kind, {m_least, m_most}, {lanes_least, lanes_most}, {depth_least, depth_most}, BY_##by},
#include "model/kernels/products/choice.def"
#undef CHOICE
};

/* Without a row by oneDNN the program does not call it, so it is not loaded. */
enum {
    ONEDNN_ROWS = 0
// NOLINTNEXTLINE(bugprone-macro-parentheses): each row is a term of a sum
#define CHOICE(set, kind, m_least, m_most, lanes_least, lanes_most, depth_least, depth_most, by) +(BY_##by == BY_ONEDNN)
#include "model/kernels/products/choice.def"
#undef CHOICE
};

static bool within(const int range[2], int n) {
    return range[0] <= n && n <= range[1];
}

ProductBy product_choice(ProductBy set, ProductKind kind, int m, int lanes, int depth) {
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++) {
        const Choice *c = &choices[i];
        if (c->set == set && c->kind == kind && within(c->m, m) && within(c->lanes, lanes) && within(c->depth, depth))
            return c->by;
    }
    return set;
}

/* What each set gave: written when a table is selected, like the table itself. */
static Bf16Kernels own[BY_COUNT];
static bool given[BY_COUNT];

const Bf16Kernels *product_own(ProductBy set) {
    return given[set] ? &own[set] : NULL;
}

/* Who computes it once oneDNN has been tried. */
static const Bf16Kernels *rows_of(ProductBy set, ProductBy by) {
    return given[by] ? &own[by] : &own[set];
}

static void chosen_product(ProductBy set, const Product *p) {
    ProductBy by = product_choice(set, p->b.packed ? KIND_PACKED : KIND_FROZEN, p->m, p->b.lanes, p->b.depth);
    if (ONEDNN_ROWS > 0 && by == BY_ONEDNN && onednn_product(p)) return;
    rows_of(set, by)->product(p);
}

static void chosen_product_weight(ProductBy set, float *dw, size_t dw_stride, const bf16 *dy, size_t dy_stride,
                                  const bf16 *x, size_t x_stride, int n_tokens, int rows, int cols) {
    ProductBy by = product_choice(set, KIND_WEIGHT, rows, cols, n_tokens);
    if (ONEDNN_ROWS > 0 && by == BY_ONEDNN &&
        onednn_product_weight(dw, dw_stride, dy, dy_stride, x, x_stride, n_tokens, rows, cols))
        return;
    rows_of(set, by)->product_weight(dw, dw_stride, dy, dy_stride, x, x_stride, n_tokens, rows, cols);
}

static void chosen_multiply(ProductBy set, float *c, size_t c_stride, bool accumulate, const bf16 *a, size_t a_stride,
                            int m, const bf16 *packed, size_t panel_stride, int lanes, int depth) {
    const Bf16Kernels *rows = rows_of(set, product_choice(set, KIND_BLOCK, m, lanes, depth));
    rows->blocks->multiply(c, c_stride, accumulate, a, a_stride, m, packed, panel_stride, lanes, depth);
}

static void chosen_multiply_transposed(ProductBy set, float *c, size_t c_stride, const bf16 *a, size_t a_stride,
                                       const bf16 *b, size_t b_stride, int n_tokens, int rows, int cols,
                                       float *scratch) {
    const Bf16Kernels *by = rows_of(set, product_choice(set, KIND_BLOCK_T, rows, cols, n_tokens));
    by->blocks->multiply_transposed(c, c_stride, a, a_stride, b, b_stride, n_tokens, rows, cols, scratch);
}

/* The table's rows have no room for the set they belong to: each set has functions of its own. */
#define ROWS_OF_SET(name, set)                                                                                       \
    static void name##_product(const Product *product) {                                                             \
        chosen_product(set, product);                                                                                \
    }                                                                                                                \
    static void name##_product_weight(float *dw, size_t dw_stride, const bf16 *dy, size_t dy_stride, const bf16 *x,  \
                                      size_t x_stride, int n_tokens, int rows, int cols) {                           \
        chosen_product_weight(set, dw, dw_stride, dy, dy_stride, x, x_stride, n_tokens, rows, cols);                 \
    }                                                                                                                \
    static void name##_multiply(float *c, size_t c_stride, bool accumulate, const bf16 *a, size_t a_stride, int m,   \
                                const bf16 *packed, size_t panel_stride, int lanes, int depth) {                     \
        chosen_multiply(set, c, c_stride, accumulate, a, a_stride, m, packed, panel_stride, lanes, depth);           \
    }                                                                                                                \
    static void name##_multiply_transposed(float *c, size_t c_stride, const bf16 *a, size_t a_stride, const bf16 *b, \
                                           size_t b_stride, int n_tokens, int rows, int cols, float *scratch) {      \
        chosen_multiply_transposed(set, c, c_stride, a, a_stride, b, b_stride, n_tokens, rows, cols, scratch);       \
    }                                                                                                                \
    static const ProductBlocks name##_blocks = {name##_multiply, name##_multiply_transposed}

ROWS_OF_SET(avx512bf16, BY_AVX512BF16);
ROWS_OF_SET(amx, BY_AMX);

void product_choices(Bf16Kernels *table, ProductBy set) {
    own[set] = *table;
    given[set] = true;
    table->product = set == BY_AMX ? amx_product : avx512bf16_product;
    table->product_weight = set == BY_AMX ? amx_product_weight : avx512bf16_product_weight;
    table->blocks = set == BY_AMX ? &amx_blocks : &avx512bf16_blocks;
}
