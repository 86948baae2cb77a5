/* The kernels that go over rows and arrays, and the products: reference against fp64, every faster set against the
 * reference. Errors are relative to the largest element; an ulp is 1.2e-7. */
#include "model/kernels/fast/fast.h"
#include "tests/kernel_check.h"

static const double ulp = 1.1920929e-7;

/* ---- the reference against fp64 formulas and finite differences ---- */

typedef struct {
    int T, D;
    double *x, *w, *dy; /* swiglu: x is gate_up[T,2D], w unused */
    double eps;
} Row;

static double norm_loss(const void *context) {
    const Row *r = context;
    double loss = 0;
    for (int t = 0; t < r->T; t++) {
        double squares = 0;
        for (int i = 0; i < r->D; i++) squares += r->x[t * r->D + i] * r->x[t * r->D + i];
        for (int i = 0; i < r->D; i++)
            loss += r->dy[t * r->D + i] * r->x[t * r->D + i] * r->w[i] / sqrt(squares / r->D + r->eps);
    }
    return loss;
}

START_TEST(the_reference_rmsnorm_has_the_slopes_of_its_formula) {
    enum { T = 3, D = 7 };
    Arena arena = {0};
    Kernels k = kernel_reference();
    float *x = noise(&arena, T * D, 1, 1), *w = noise(&arena, D, 2, 1), *dy = noise(&arena, T * D, 3, 1);
    float y[T * D], rstd[T], dx[T * D], dw[D] = {0};
    Row row = {T, D, widen(&arena, x, T * D), widen(&arena, w, D), widen(&arena, dy, T * D), 1e-5};
    k.rmsnorm_forward(y, rstd, x, w, T, D, 1e-5f);
    double loss = 0;
    for (int i = 0; i < T * D; i++) loss += (double)y[i] * row.dy[i];
    ck_assert_double_eq_tol(loss, norm_loss(&row), 1e-5);
    k.add_rmsnorm_backward(dx, false, NULL, dw, NULL, dy, x, w, rstd, T, D, numbers(&arena, norm_scratch(T, D)));
    check_slopes("dx", dx, row.x, T * D, norm_loss, &row, 1e-6);
    check_slopes("dw", dw, row.w, D, norm_loss, &row, 1e-6);
    arena_free(&arena);
}
END_TEST

static double swiglu_loss(const void *context) {
    const Row *r = context;
    double loss = 0;
    for (int t = 0; t < r->T; t++)
        for (int i = 0; i < r->D; i++) {
            double g = r->x[2 * t * r->D + i], u = r->x[(2 * t + 1) * r->D + i];
            loss += r->dy[t * r->D + i] * g / (1 + exp(-g)) * u;
        }
    return loss;
}

START_TEST(the_reference_swiglu_has_the_slopes_of_its_formula) {
    enum { T = 3, F = 5 };
    Arena arena = {0};
    Kernels k = kernel_reference();
    float *x = noise(&arena, 2 * T * F, 1, 2), *dy = noise(&arena, T * F, 3, 1), y[T * F], dx[2 * T * F];
    Row row = {T, F, widen(&arena, x, 2 * T * F), NULL, widen(&arena, dy, T * F), 0};
    k.swiglu_forward(y, x, T, F);
    double loss = 0;
    for (int i = 0; i < T * F; i++) loss += (double)y[i] * row.dy[i];
    ck_assert_double_eq_tol(loss, swiglu_loss(&row), 1e-5);
    k.swiglu_backward(dx, false, dy, x, T, F);
    check_slopes("dgate_up", dx, row.x, 2 * T * F, swiglu_loss, &row, 1e-6);
    arena_free(&arena);
}
END_TEST

START_TEST(rotary_turns_pairs_by_position_times_frequency) {
    enum { T = 3, H = 2, HD = 6, HALF = HD / 2 };
    const int32_t positions[T] = {5, 0, 1000};
    Arena arena = {0};
    Kernels k = kernel_reference();
    float *cosine = numbers(&arena, 1001 * HALF), *sine = numbers(&arena, 1001 * HALF);
    rotary_tables(cosine, sine, 1001, HD, 10000, (RotaryScaling){0});
    float *x = noise(&arena, T * H * HD, 1, 1), *y = copy(&arena, x, T * H * HD);
    k.rotary(y, H * HD, T, H, HD, positions, cosine, sine, false);
    for (int t = 0; t < T; t++)
        for (int h = 0; h < H; h++)
            for (int i = 0; i < HALF; i++) {
                double angle = positions[t] * pow(10000, -2.0 * i / HD);
                size_t at = (size_t)((t * H + h) * HD + i);
                double a = (double)x[at], b = (double)x[at + HALF];
                ck_assert_double_eq_tol((double)y[at], a * cos(angle) - b * sin(angle), 4 * ulp * (fabs(a) + fabs(b)));
                ck_assert_double_eq_tol((double)y[at + HALF], b * cos(angle) + a * sin(angle),
                                        4 * ulp * (fabs(a) + fabs(b)));
            }
    k.rotary(y, H * HD, T, H, HD, positions, cosine, sine, true);
    CHECK_CLOSE(y, x, T * H * HD, 4 * ulp, "forth and back");
    arena_free(&arena);
}
END_TEST

START_TEST(llama31_scaling_keeps_short_waves_and_stretches_long_ones) {
    /* Llama 3.1: theta 500000, head_dim 128, factor 8, low 1, high 4, original context 8192. Wavelengths: pair 0 has
     * 2π (kept), pair 63 about 2.6e6 (divided by 8), pair 33 between 2048 and 8192 (blended). */
    enum { HD = 128, HALF = 64, P = 3 };
    Arena arena = {0};
    float *cosine = numbers(&arena, P * HALF), *sine = numbers(&arena, P * HALF);
    RotaryScaling scaling = {8, 1, 4, 8192};
    rotary_tables(cosine, sine, P, HD, 500000, scaling);
    const double two_pi = 8 * atan(1);
    int kept = 0, blended = 0, stretched = 0;
    for (int i = 0; i < HALF; i++) {
        double f = pow(500000, -2.0 * i / HD), wavelength = two_pi / f, expected;
        if (wavelength < 8192.0 / 4) {
            expected = f;
            kept++;
        } else if (wavelength > 8192.0 / 1) {
            expected = f / 8;
            stretched++;
        } else {
            double smooth = (8192 / wavelength - 1) / (4 - 1);
            expected = (1 - smooth) * f / 8 + smooth * f;
            blended++;
        }
        ck_assert_double_eq_tol((double)sine[2 * HALF + i], sin(2 * expected), ulp * fabs(sin(2 * expected)));
        ck_assert_double_eq_tol((double)cosine[HALF + i], cos(expected), ulp);
    }
    ck_assert(kept > 0 && blended > 0 && stretched > 0);
    arena_free(&arena);
}
END_TEST

START_TEST(adamw_follows_its_formula_in_every_set) {
    enum { N = 8197 };
    const double lr = 0.01, b1 = 0.9, b2 = 0.95, eps = 1e-8, wd = 0.1, scale = 0.5;
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        float *p = noise(&arena, N, 1, 1), *m = numbers(&arena, N), *v = numbers(&arena, N);
        double *p64 = widen(&arena, p, N), *m64 = widen(&arena, m, N), *v64 = widen(&arena, v, N);
        for (int t = 1; t <= 5; t++) {
            float *g = noise(&arena, N, (uint64_t)(10 + t), 1);
            double c1 = 1 - pow(b1, t), c2 = 1 - pow(b2, t);
            k.adamw(p, m, v, g, N, (AdamwStep){lr, b1, b2, eps, wd, c1, c2, scale});
            for (int i = 0; i < N; i++) {
                double d = (double)g[i] * scale;
                m64[i] = b1 * m64[i] + (1 - b1) * d;
                v64[i] = b2 * v64[i] + (1 - b2) * d * d;
                p64[i] = p64[i] * (1 - lr * wd) - lr * (m64[i] / c1) / (sqrt(v64[i] / c2) + eps);
            }
        }
        float *expected = numbers(&arena, N);
        for (int i = 0; i < N; i++) expected[i] = (float)p64[i];
        CHECK_CLOSE(p, expected, N, 2 * ulp, "%s", k.name);
        arena_free(&arena);
    }
}
END_TEST

/* ---- every faster set against the reference ---- */

static const int widths[] = {1, 2, 7, 8, 15, 16, 17, 63, 64, 100, 288, 1031};
enum { N_WIDTHS = sizeof widths / sizeof *widths };

START_TEST(rmsnorm_agrees_with_the_reference_at_every_width) {
    for (int set = 1; set < N_SETS; set++)
        for (int w = 0; w < N_WIDTHS; w++) {
            Arena arena = {0};
            Kernels slow = kernel_reference(), fast;
            if (!kernel_table(&fast, kernel_sets[set])) continue;
            int T = w % 2 ? 300 : 5, D = widths[w];
            size_t n = (size_t)T * (size_t)D, width = (size_t)D;
            float *x = noise(&arena, n, 1, 3), *weight = noise(&arena, width, 2, 1), *dy = noise(&arena, n, 3, 1);
            float *y = numbers(&arena, n), *y2 = numbers(&arena, n), *r = numbers(&arena, n), *r2 = numbers(&arena, n);
            slow.rmsnorm_forward(y, r, x, weight, T, D, 1e-5f);
            fast.rmsnorm_forward(y2, r2, x, weight, T, D, 1e-5f);
            CHECK_CLOSE(y2, y, n, 3 * ulp, "y, width %d, %s", D, fast.name);
            CHECK_CLOSE(r2, r, (size_t)T, 3 * ulp, "rstd, width %d, %s", D, fast.name);
            fast.rmsnorm_forward(y2, NULL, x, weight, T, D, 1e-5f);
            CHECK_CLOSE(y2, y, n, 3 * ulp, "y without rstd, width %d, %s", D, fast.name);
            for (int accumulate = 0; accumulate < 2; accumulate++) {
                float *dx = noise(&arena, n, 4, 1), *dx2 = copy(&arena, dx, n);
                slow.add_rmsnorm_backward(dx, accumulate, NULL, NULL, NULL, dy, x, weight, r, T, D,
                                          numbers(&arena, norm_scratch(T, D)));
                fast.add_rmsnorm_backward(dx2, accumulate, NULL, NULL, NULL, dy, x, weight, r, T, D,
                                          numbers(&arena, norm_scratch(T, D)));
                /* of its terms, which cancel where the width is small */
                double terms = largest(r, (size_t)T) * largest(weight, width) * largest(dy, n);
                CHECK_CLOSE(dx2, dx, n, 2 * ulp * fmax(1, terms / largest(dx, n)), "dx, width %d, %s", D, fast.name);
            }
            fast.add_rmsnorm_backward(NULL, false, NULL, NULL, NULL, dy, x, weight, r, T, D,
                                      numbers(&arena, norm_scratch(T, D)));
            float *dw = noise(&arena, width, 5, 1), *dw2 = copy(&arena, dw, width);
            slow.add_rmsnorm_backward(NULL, false, NULL, dw, NULL, dy, x, weight, r, T, D,
                                      numbers(&arena, norm_scratch(T, D)));
            fast.add_rmsnorm_backward(NULL, false, NULL, dw2, NULL, dy, x, weight, r, T, D,
                                      numbers(&arena, norm_scratch(T, D)));
            CHECK_CLOSE(dw2, dw, width, 8 * ulp, "dw, width %d, %s", D, fast.name);
            arena_free(&arena);
        }
}
END_TEST

START_TEST(swiglu_agrees_with_the_reference_at_every_width_and_at_extremes) {
    for (int set = 1; set < N_SETS; set++)
        for (int w = 0; w < N_WIDTHS; w++) {
            Arena arena = {0};
            Kernels slow = kernel_reference(), fast;
            if (!kernel_table(&fast, kernel_sets[set])) continue;
            int T = 5, F = widths[w];
            size_t n = (size_t)(T * F);
            float *x = noise(&arena, 2 * n, 1, 4), *dy = noise(&arena, n, 3, 1);
            x[0] = 200;                       /* σ is 1 */
            if (F > 3) x[1] = -200, x[2] = 0; /* σ is 0; exactly a half */
            float *y = numbers(&arena, n), *y2 = numbers(&arena, n);
            slow.swiglu_forward(y, x, T, F);
            fast.swiglu_forward(y2, x, T, F);
            for (size_t i = 0; i < n; i++)
                ck_assert_msg(fabsf(y2[i] - y[i]) <= 4e-7f * fabsf(y[i]) + FLT_MIN, "%s: %g instead of %g", fast.name,
                              (double)y2[i], (double)y[i]);
            for (int accumulate = 0; accumulate < 2; accumulate++) {
                float *dx = noise(&arena, 2 * n, 4, 1), *dx2 = copy(&arena, dx, 2 * n);
                slow.swiglu_backward(dx, accumulate, dy, x, T, F);
                fast.swiglu_backward(dx2, accumulate, dy, x, T, F);
                CHECK_CLOSE(dx2, dx, 2 * n, 3 * ulp, "width %d, %s", F, fast.name);
            }
            fast.swiglu_backward(NULL, false, dy, x, T, F);
            arena_free(&arena);
        }
}
END_TEST

START_TEST(rotary_agrees_with_the_reference_at_every_head_width) {
    const int dims[] = {1, 2, 3, 6, 8, 9, 16, 24, 30, 32, 48, 64, 80, 128, 130};
    for (int set = 1; set < N_SETS; set++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
            enum { T = 5, H = 3, P = 40 };
            const int32_t positions[T] = {0, 39, 7, 7, 20};
            Arena arena = {0};
            Kernels slow = kernel_reference(), fast;
            if (!kernel_table(&fast, kernel_sets[set])) continue;
            size_t HD = (size_t)dims[d], stride = H * HD + 5, n = T * stride, half = HD / 2;
            float *cosine = numbers(&arena, P * half), *sine = numbers(&arena, P * half);
            rotary_tables(cosine, sine, P, dims[d], 10000, (RotaryScaling){0});
            for (int inverse = 0; inverse < 2; inverse++) {
                float *x = noise(&arena, n, 1, 1), *y = copy(&arena, x, n);
                slow.rotary(x, stride, T, H, dims[d], positions, cosine, sine, inverse);
                fast.rotary(y, stride, T, H, dims[d], positions, cosine, sine, inverse);
                CHECK_CLOSE(y, x, n, ulp, "head_dim %d, %s", dims[d], fast.name);
            }
            arena_free(&arena);
        }
}
END_TEST

START_TEST(products_agree_with_the_reference_for_every_transposition) {
    const int sizes[][3] = {{1, 1, 1}, {1, 33, 20}, {7, 1, 9}, {5, 6, 7}, {64, 65, 63}, {130, 47, 300}, {3, 500, 64}};
    for (int set = 1; set < N_SETS; set++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (int way = 0; way < 8; way++) {
                Arena arena = {0};
                Kernels slow = kernel_reference(), fast;
                if (!kernel_table(&fast, kernel_sets[set])) continue;
                bool ta = way & 1, tb = way & 2, add = way & 4;
                int m = sizes[s][0], n = sizes[s][1], k = sizes[s][2];
                size_t lda = (size_t)(ta ? m : k) + 3, ldb = (size_t)(tb ? k : n) + 1, ldc = (size_t)n + 2;
                float *a = noise(&arena, lda * (size_t)(ta ? k : m), 1, 1);
                float *b = noise(&arena, ldb * (size_t)(tb ? n : k), 2, 1);
                float *c = noise(&arena, ldc * (size_t)m, 3, 1), *c2 = copy(&arena, c, ldc * (size_t)m);
                if (!add) c[0] = c2[0] = NAN; /* beta = 0 does not read C */
                slow.gemm(ta, tb, m, n, k, 0.5f, a, lda, b, ldb, add ? 1.0f : 0.0f, c, ldc);
                fast.gemm(ta, tb, m, n, k, 0.5f, a, lda, b, ldb, add ? 1.0f : 0.0f, c2, ldc);
                CHECK_CLOSE(c2, c, ldc * (size_t)m, 8 * ulp, "%d×%d×%d, way %d, %s", m, n, k, way, fast.name);
                arena_free(&arena);
            }
}
END_TEST

START_TEST(sums_and_additions_agree_with_the_reference) {
    const size_t sizes[] = {0, 1, 15, 17, 4097, 65536, 65537, 200003};
    for (int set = 1; set < N_SETS; set++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            Arena arena = {0};
            Kernels slow = kernel_reference(), fast;
            if (!kernel_table(&fast, kernel_sets[set])) continue;
            size_t n = sizes[s];
            float *x = noise(&arena, n, 1, 1), *y = noise(&arena, n, 2, 1), *z = numbers(&arena, n);
            double expected = slow.sum_of_squares(x, n);
            ck_assert_double_eq_tol(fast.sum_of_squares(x, n), expected, 1e-13 * expected + 1e-300);
            fast.add(z, x, y, n);
            fast.add(y, y, x, n); /* in place */
            for (size_t i = 0; i < n; i++) ck_assert(z[i] == y[i]);
            slow.add(z, z, x, n);
            fast.add(y, x, y, n);
            ck_assert(n == 0 || memcmp(z, y, n * sizeof *z) == 0);
            if (n > 0) {
                x[n / 2] = INFINITY;
                ck_assert(isinf(fast.sum_of_squares(x, n)));
                x[n - 1] = NAN;
                ck_assert(isnan(fast.sum_of_squares(x, n)));
            }
            arena_free(&arena);
        }
}
END_TEST

START_TEST(rows_and_arrays_give_the_same_bits_for_any_number_of_threads) {
    enum { T = 301, D = 288, N = T * D };
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        float *x = noise(&arena, N, 1, 1), *w = noise(&arena, D, 2, 1), *dy = noise(&arena, N, 3, 1);
        float *y[3], *r[3], *dx[3], *dw[3];
        double squares[3];
        bool available = true;
        for (int run = 0; run < 3; run++) {
            Kernels k;
            threads_init(run == 2 ? 3 : run + 1);
            if (!(available = kernel_table(&k, kernel_sets[set]))) break;
            y[run] = numbers(&arena, N), r[run] = numbers(&arena, T);
            dx[run] = numbers(&arena, N), dw[run] = numbers(&arena, D);
            k.rmsnorm_forward(y[run], r[run], x, w, T, D, 1e-5f);
            k.add_rmsnorm_backward(dx[run], false, NULL, NULL, NULL, dy, x, w, r[run], T, D,
                                   numbers(&arena, norm_scratch(T, D)));
            k.add_rmsnorm_backward(NULL, false, NULL, dw[run], NULL, dy, x, w, r[run], T, D,
                                   numbers(&arena, norm_scratch(T, D)));
            squares[run] = k.sum_of_squares(x, N);
        }
        for (int run = 1; run < 3 && available; run++) {
            ck_assert(memcmp(y[0], y[run], N * sizeof **y) == 0 && memcmp(dx[0], dx[run], N * sizeof **dx) == 0);
            ck_assert(memcmp(dw[0], dw[run], D * sizeof **dw) == 0 && squares[0] == squares[run]);
        }
        arena_free(&arena);
    }
}
END_TEST

/* Error in ulp of the result, of `y` as f(x), where the result is a normal number; exact where it is not. */
static double ulps_off(float y, double exact) {
    if (exact < (double)FLT_MIN) return y == 0 || fabs((double)y - exact) <= (double)FLT_MIN * ulp ? 0 : INFINITY;
    if (exact > (double)FLT_MAX) return isinf(y) || (double)y >= (double)FLT_MAX * (1 - ulp) ? 0 : INFINITY;
    int exponent;
    frexp(exact, &exponent);
    return fabs((double)y - exact) / ldexp(1, exponent - 24);
}

START_TEST(exponentials_are_within_two_ulp_over_their_whole_range) {
    enum { N = 4001 };
    for (int set = 2; set < N_SETS; set++) {
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        double worst_exp = 0, worst_exp2 = 0;
        for (int part = 0; part < 200; part++) {
            float x[N], e[N], e2[N];
            for (int i = 0; i < N; i++) x[i] = -130 + 260 * ((float)(part * N + i) / (200 * N));
            (set == 2 ? avx2_exponentials : avx512_exponentials)(e, e2, x, N);
            for (int i = 0; i < N; i++) {
                worst_exp = fmax(worst_exp, ulps_off(e[i], exp((double)x[i])));
                worst_exp2 = fmax(worst_exp2, ulps_off(e2[i], exp2((double)x[i])));
            }
        }
        printf("%s: exp %.3f ulp, exp2 %.3f ulp\n", k.name, worst_exp, worst_exp2);
        ck_assert(worst_exp <= 2 && worst_exp2 <= 2);
        const float special[] = {NAN, INFINITY, -INFINITY, 0};
        float e[4], e2[4];
        (set == 2 ? avx2_exponentials : avx512_exponentials)(e, e2, special, 4);
        ck_assert(isnan(e[0]) && isnan(e2[0]) && isinf(e[1]) && isinf(e2[1]));
        ck_assert(e[2] == 0 && e2[2] == 0 && e[3] == 1 && e2[3] == 1);
    }
}
END_TEST

START_TEST(kernels_are_chosen_by_name_and_unknown_names_are_refused) {
    CHECK_ERROR(kernels_select("neon"), ERR_USAGE, "neon");
    CHECK_OK(kernels_select("auto"));
    ck_assert_str_ne(kernels()->name, "reference");
    setenv("CRIA_KERNELS", "reference", 1);
    CHECK_OK(kernels_select("auto"));
    ck_assert_str_eq(kernels()->name, "reference");
    setenv("CRIA_KERNELS", "sse9", 1);
    CHECK_ERROR(kernels_select("auto"), ERR_USAGE, "sse9");
}
END_TEST

CHECK_MAIN("kernels", the_reference_rmsnorm_has_the_slopes_of_its_formula,
           the_reference_swiglu_has_the_slopes_of_its_formula, rotary_turns_pairs_by_position_times_frequency,
           llama31_scaling_keeps_short_waves_and_stretches_long_ones, adamw_follows_its_formula_in_every_set,
           rmsnorm_agrees_with_the_reference_at_every_width,
           swiglu_agrees_with_the_reference_at_every_width_and_at_extremes,
           rotary_agrees_with_the_reference_at_every_head_width,
           products_agree_with_the_reference_for_every_transposition, sums_and_additions_agree_with_the_reference,
           rows_and_arrays_give_the_same_bits_for_any_number_of_threads,
           exponentials_are_within_two_ulp_over_their_whole_range,
           kernels_are_chosen_by_name_and_unknown_names_are_refused)
