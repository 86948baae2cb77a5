/* AdamW on matrices: the same bits as adamw on arrays, packings by their definition (PANELS in bf16.h), and bf16
 * moments that follow fp32 ones. */
#include "model/kernels/fast/fast.h"
#include "tests/kernel_check.h"

typedef struct {
    int rows, cols;
} Size;
/* The last three: several blocks in a row, and packings written past the caches. */
static const Size sizes[] = {{1, 1},   {1, 64},   {64, 1},   {15, 31},  {16, 32},   {17, 33},  {32, 64},    {31, 100},
                             {33, 65}, {64, 172}, {172, 64}, {48, 513}, {34, 1031}, {3, 4200}, {1000, 100}, {33, 2100}};
enum { N_SIZES = sizeof sizes / sizeof *sizes, GUARD = 64 };

static AdamwStep step_number(int t, double beta2) {
    return (AdamwStep){.learning_rate = 0.01,
                       .beta1 = 0.9,
                       .beta2 = beta2,
                       .epsilon = 1e-8,
                       .weight_decay = 0.1,
                       .bias_correction1 = 1 - pow(0.9, t),
                       .bias_correction2 = 1 - pow(beta2, t),
                       .grad_scale = 0.5};
}

static bf16 *filled(Arena *arena, size_t n) {
    bf16 *x = arena_alloc(arena, (n + GUARD) * sizeof *x);
    ck_assert_ptr_nonnull(x);
    memset(x, 0xa5, (n + GUARD) * sizeof *x);
    return x;
}

static void check_guard(const char *name, const bf16 *x, size_t n) {
    for (size_t i = n; i < n + GUARD; i++) ck_assert_msg(x[i] == 0xa5a5, "%s: wrote behind the packing", name);
}

/* Every element of the packing of B(lane, d) = from[lane·lane_stride + d·depth_stride], padding included. */
static void check_packing(const char *name, const bf16 *packed, const float *from, int lanes, int depth,
                          size_t lane_stride, size_t depth_stride) {
    size_t padded = ((size_t)depth + 31) / 32 * 32, n = panels_elements(lanes, depth);
    for (size_t i = 0; i < n; i++) {
        size_t lane = i / (16 * padded) * 16 + i / 2 % 16, d = i % (16 * padded) / 32 * 2 + i % 2;
        bool inside = lane < (size_t)lanes && d < (size_t)depth;
        bf16 expected = inside ? f32_to_bf16(from[lane * lane_stride + d * depth_stride]) : 0;
        ck_assert_msg(packed[i] == expected, "%s, %d×%d: lane %zu, depth %zu is %04x instead of %04x", name, lanes,
                      depth, lane, d, packed[i], expected);
    }
    check_guard(name, packed, n);
}

START_TEST(matrices_get_the_bits_of_arrays_and_both_packings_in_every_set_and_size) {
    for (int set = 0; set < N_SETS; set++)
        for (int s = 0; s < N_SIZES; s++)
            for (int way = s < 10 ? 0 : 7; way < 8; way++) { /* 1 forward, 2 backward, 4 zero_grad */
                Arena arena = {0};
                Kernels k;
                if (!kernel_table(&k, kernel_sets[set])) continue;
                int rows = sizes[s].rows, cols = sizes[s].cols;
                size_t n = (size_t)rows * (size_t)cols;
                float *p = noise(&arena, n, 1, 1), *m = noise(&arena, n, 2, 1), *v = noise(&arena, n, 3, 1);
                for (size_t i = 0; i < n; i++) v[i] = fabsf(v[i]);
                float *p2 = copy(&arena, p, n), *m2 = copy(&arena, m, n), *v2 = copy(&arena, v, n);
                float *g = noise(&arena, n, 4, 1), *g2 = copy(&arena, g, n);
                p2[n] = m2[n] = v2[n] = g2[n] = 77;
                AdamwMatrix matrix = {.param = p2, .grad = g2, .m = m2, .v = v2, .rows = rows, .cols = cols};
                matrix.zero_grad = way & 4;
                matrix.forward = way & 1 ? filled(&arena, panels_elements(rows, cols)) : NULL;
                matrix.backward = way & 2 ? filled(&arena, panels_elements(cols, rows)) : NULL;
                k.adamw(p, m, v, g, n, step_number(3, 0.95));
                k.bf16.adamw(&matrix, step_number(3, 0.95));
                ck_assert_msg(memcmp(p, p2, n * sizeof *p) == 0, "param, %d×%d, %s", rows, cols, k.name);
                ck_assert(memcmp(m, m2, n * sizeof *m) == 0 && memcmp(v, v2, n * sizeof *v) == 0);
                ck_assert(p2[n] == 77 && m2[n] == 77 && v2[n] == 77 && g2[n] == 77);
                for (size_t i = 0; i < n; i++) ck_assert(g2[i] == (way & 4 ? 0 : g[i]));
                if (way & 1) check_packing("forward", matrix.forward, p, rows, cols, (size_t)cols, 1);
                if (way & 2) check_packing("backward", matrix.backward, p, cols, rows, 1, (size_t)cols);
                arena_free(&arena);
            }
}
END_TEST

/* ---- bf16 moments ---- */

typedef struct {
    float *p, *g;
    bf16 *m, *v;
    AdamwMatrix matrix;
} Case;

static Case case_of(Arena *arena, int rows, int cols) {
    size_t n = (size_t)rows * (size_t)cols;
    Case c = {noise(arena, n, 1, 1), noise(arena, n, 4, 1), filled(arena, n), filled(arena, n), {0}};
    float *m = noise(arena, n, 2, 1), *v = noise(arena, n, 3, 1);
    for (size_t i = 0; i < n; i++) c.m[i] = f32_to_bf16(m[i]), c.v[i] = f32_to_bf16(fabsf(v[i]));
    c.matrix = (AdamwMatrix){.param = c.p,
                             .grad = c.g,
                             .m = c.m,
                             .v = c.v,
                             .moments = DTYPE_BF16,
                             .rows = rows,
                             .cols = cols,
                             .rounding = philox_key(7, PHILOX_ROUNDING, 1, 2),
                             .update = 12,
                             .first_row = 4294967290}; /* rows beyond 2^32 too */
    return c;
}

/* Sets differ by an ulp of fp32 in m and v (fused products), which tips one rounding in 2^15 or so. */
START_TEST(every_set_rounds_moments_with_the_random_numbers_of_the_reference) {
    size_t different = 0, all = 0;
    for (int set = 1; set < N_SETS; set++)
        for (int s = 0; s < N_SIZES; s++) {
            Arena arena = {0};
            Kernels slow = kernel_reference(), fast;
            if (!kernel_table(&fast, kernel_sets[set])) continue;
            size_t n = (size_t)sizes[s].rows * (size_t)sizes[s].cols;
            Case a = case_of(&arena, sizes[s].rows, sizes[s].cols), b = case_of(&arena, sizes[s].rows, sizes[s].cols);
            slow.bf16.adamw(&a.matrix, step_number(3, 0.95));
            fast.bf16.adamw(&b.matrix, step_number(3, 0.95));
            CHECK_CLOSE(b.p, a.p, n, 4e-7, "param, %d×%d, %s", sizes[s].rows, sizes[s].cols, fast.name);
            for (size_t i = 0; i < n; i++) {
                ck_assert_msg(abs(a.m[i] - b.m[i]) <= 1 && abs(a.v[i] - b.v[i]) <= 1, "%zu of %d×%d: %s", i,
                              sizes[s].rows, sizes[s].cols, fast.name);
                different += (size_t)(a.m[i] != b.m[i]) + (size_t)(a.v[i] != b.v[i]);
            }
            all += 2 * n;
            check_guard("m", b.m, n);
            check_guard("v", b.v, n);
            arena_free(&arena);
        }
    ck_assert_msg((double)different <= 1e-3 * (double)all + 2, "%zu of %zu differ", different, all);
}
END_TEST

START_TEST(a_part_of_the_rows_is_rounded_as_in_the_whole_matrix_and_any_number_of_threads_gives_the_same_bits) {
    enum { ROWS = 45, COLS = 100, N = ROWS * COLS, FIRST = 13 };
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        Case a = case_of(&arena, ROWS, COLS), b = case_of(&arena, ROWS, COLS), c = case_of(&arena, ROWS, COLS);
        k.bf16.adamw(&a.matrix, step_number(3, 0.95));
        threads_init(3);
        k.bf16.adamw(&b.matrix, step_number(3, 0.95));
        AdamwMatrix part = c.matrix;
        part.rows = FIRST;
        k.bf16.adamw(&part, step_number(3, 0.95));
        part = c.matrix;
        part.param += FIRST * COLS, part.grad += FIRST * COLS, part.m = c.m + FIRST * COLS, part.v = c.v + FIRST * COLS;
        part.rows -= FIRST, part.first_row += FIRST;
        k.bf16.adamw(&part, step_number(3, 0.95));
        threads_init(0);
        ck_assert(memcmp(a.p, b.p, N * sizeof *a.p) == 0 && memcmp(a.p, c.p, N * sizeof *a.p) == 0);
        ck_assert(memcmp(a.m, b.m, N * sizeof *a.m) == 0 && memcmp(a.m, c.m, N * sizeof *a.m) == 0);
        ck_assert(memcmp(a.v, b.v, N * sizeof *a.v) == 0 && memcmp(a.v, c.v, N * sizeof *a.v) == 0);
        arena_free(&arena);
    }
}
END_TEST

static float nearest(float x) {
    return bf16_to_f32(f32_to_bf16(x));
}

/* g² = 1 and v = 1/2 at first, β2 = 0.999: v must go to 1 − 0.999^t / 2. A step is a thousandth of v, an ulp 2^-8 (v
 * below 1): to nearest, v never moves, which is shown first. Rounded stochastically its mean follows, and by the
 * variance in reference/bf16_adamw.c each is within ulp / 2 / sqrt(1 − β2²) standard deviations. */
START_TEST(v_does_not_stall_and_is_not_biased) {
    enum { ROWS = 64, COLS = 64, N = ROWS * COLS, STEPS = 1000 };
    float stalled = 0.5f;
    for (int t = 1; t <= STEPS; t++) stalled = nearest(0.999f * stalled + 0.001f);
    ck_assert(stalled == 0.5f);
    threads_init(1); /* thousands of small matrices: threads would mostly wait for each other */
    const double exact = 1 - 0.5 * pow(0.999, STEPS), deviation = 0x1p-9 / sqrt(1 - 0.999 * 0.999);
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        Case c = case_of(&arena, ROWS, COLS);
        for (int i = 0; i < N; i++) c.v[i] = f32_to_bf16(0.5f), c.m[i] = 0, c.g[i] = 2; /* grad_scale is a half */
        for (int t = 1; t <= STEPS; t++) {
            c.matrix.update = (uint32_t)t;
            k.bf16.adamw(&c.matrix, step_number(t, 0.999));
        }
        double mean = 0, squares = 0, furthest = 0;
        for (int i = 0; i < N; i++) {
            double off = (double)bf16_to_f32(c.v[i]) - exact;
            mean += off / N, squares += off * off / N, furthest = fmax(furthest, fabs(off));
        }
        printf("%s: v %.4f, mean %+.4f, deviation %.4f (bound %.4f), furthest %.4f\n", k.name, exact, mean,
               sqrt(squares), deviation, furthest);
        ck_assert(fabs(mean) <= 5 * deviation / sqrt(N) && squares <= deviation * deviation &&
                  furthest <= 6 * deviation);
        ck_assert(squares > 0); /* it is random */
        arena_free(&arena);
    }
}
END_TEST

/* Noise for gradients, 1,000 steps, both kinds of moments. The bounds: relative deviation of v 2^-8 / sqrt(1 − β2²); of
 * m 2^-8 / sqrt(1 − β1²) of its size (the root of its mean square; a single m may be small). What follows for the
 * parameters: every step is off by half of v's relative deviation and by m's, of the size of a step. */
START_TEST(bf16_moments_follow_fp32_moments_over_a_thousand_steps) {
    enum { ROWS = 32, COLS = 128, N = ROWS * COLS, STEPS = 1000 };
    const double beta2s[] = {0.95, 0.999};
    threads_init(1);
    for (int set = 0; set < N_SETS; set++)
        for (int b = 0; b < 2; b++) {
            Arena arena = {0};
            Kernels k;
            if (!kernel_table(&k, kernel_sets[set])) continue;
            Case c = case_of(&arena, ROWS, COLS);
            float *p = copy(&arena, c.p, N), *p0 = copy(&arena, c.p, N), *m = numbers(&arena, N),
                  *v = numbers(&arena, N);
            memset(c.m, 0, N * sizeof *c.m), memset(c.v, 0, N * sizeof *c.v);
            for (int t = 1; t <= STEPS; t++) {
                AdamwStep step = step_number(t, beta2s[b]);
                step.weight_decay = 0;
                philox_fill_normal(c.g, 0, N, philox_key((uint64_t)t, PHILOX_TEST, 9, 9), 0.1f, 1);
                k.adamw(p, m, v, c.g, N, step);
                c.matrix.update = (uint32_t)t;
                k.bf16.adamw(&c.matrix, step);
            }
            double v_mean = 0, v_squares = 0, m_squares = 0, m_size = 0, moved = 0, off = 0;
            for (int i = 0; i < N; i++) {
                double relative = (double)bf16_to_f32(c.v[i]) / (double)v[i] - 1;
                v_mean += relative / N, v_squares += relative * relative / N;
                m_squares += pow((double)bf16_to_f32(c.m[i]) - (double)m[i], 2), m_size += pow((double)m[i], 2);
                moved += pow((double)p[i] - (double)p0[i], 2), off += pow((double)c.p[i] - (double)p[i], 2);
            }
            double v_bound = 0x1p-8 / sqrt(1 - beta2s[b] * beta2s[b]), m_bound = 0x1p-8 / sqrt(1 - 0.9 * 0.9);
            printf("%s, beta2 %g: v %+.4f ± %.4f (bound %.4f), m ± %.4f (bound %.4f), parameters' change off by %.4f\n",
                   k.name, beta2s[b], v_mean, sqrt(v_squares), v_bound, sqrt(m_squares / m_size), m_bound,
                   sqrt(off / moved));
            ck_assert(fabs(v_mean) <= 5 * v_bound / sqrt(N) && sqrt(v_squares) <= v_bound);
            ck_assert(sqrt(m_squares / m_size) <= m_bound && sqrt(off / moved) <= v_bound / 2 + m_bound);
            arena_free(&arena);
        }
}
END_TEST

START_TEST(nan_and_infinity_stay_where_they_are) {
    enum { ROWS = 3, COLS = 70, N = ROWS * COLS };
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        Case c = case_of(&arena, ROWS, COLS);
        c.g[5] = NAN, c.g[COLS + 66] = INFINITY;
        c.matrix.forward = filled(&arena, panels_elements(ROWS, COLS));
        k.bf16.adamw(&c.matrix, step_number(3, 0.95));
        for (int i = 0; i < N; i++) {
            float m = bf16_to_f32(c.m[i]), v = bf16_to_f32(c.v[i]);
            ck_assert(isnan(m) == (i == 5) && isnan(v) == (i == 5));
            ck_assert(isinf(m) == (i == COLS + 66) && isinf(v) == (i == COLS + 66));
            ck_assert(isnan(c.p[i]) == (i == 5 || i == COLS + 66));
        }
        ck_assert(isnan(bf16_to_f32(c.matrix.forward[5 / 2 * 32 + 1]))); /* row 0, column 5 */
        arena_free(&arena);
    }
}
END_TEST

CHECK_MAIN("bf16_adamw", matrices_get_the_bits_of_arrays_and_both_packings_in_every_set_and_size,
           every_set_rounds_moments_with_the_random_numbers_of_the_reference,
           a_part_of_the_rows_is_rounded_as_in_the_whole_matrix_and_any_number_of_threads_gives_the_same_bits,
           v_does_not_stall_and_is_not_biased, bf16_moments_follow_fp32_moments_over_a_thousand_steps,
           nan_and_infinity_stay_where_they_are)
