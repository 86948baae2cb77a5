/* The kernels over rows of precision bf16, and add + RMSNorm in fp32.
 *
 * Bounds. The reference computes in fp32 or fp64 and rounds once: where its value and the exact one lie on two sides of
 * the middle between two bf16 numbers it is the other neighbour, else the same. So a bf16 result is within half an ulp
 * of bf16 plus the error before rounding, `fp32`, of the exact value (half_ulp below); against the reference, within
 * one ulp plus that error twice over. The error before rounding of each kernel stands with its test, in units of 2^-24
 * (u) of the largest sum of the terms' magnitudes. */
#include "model/kernels/fast/fast.h"
#include "tests/kernel_check.h"

static const double u = 0x1p-24;

static bf16 *narrow(Arena *arena, const float *x, size_t n) {
    bf16 *y = arena_alloc(arena, (n + 1) * sizeof *y);
    ck_assert_ptr_nonnull(y);
    for (size_t i = 0; i < n; i++) y[i] = f32_to_bf16(x[i]);
    return y;
}

static bf16 *noise16(Arena *arena, size_t n, uint64_t seed, float scale) {
    return narrow(arena, noise(arena, n, seed, scale), n);
}

static bf16 *copy16(Arena *arena, const bf16 *x, size_t n) {
    bf16 *y = arena_alloc(arena, (n + 1) * sizeof *y);
    ck_assert_ptr_nonnull(y);
    memcpy(y, x, n * sizeof *y);
    return y;
}

static double *widen16(Arena *arena, const bf16 *x, size_t n) {
    double *y = arena_alloc(arena, (n + 1) * sizeof *y);
    ck_assert_ptr_nonnull(y);
    for (size_t i = 0; i < n; i++) y[i] = (double)bf16_to_f32(x[i]);
    return y;
}

/* Half the distance between bf16 numbers about x (8 bits of significand); 0 below the normal numbers. */
static double half_ulp(double x) {
    int exponent;
    if (fabs(x) < (double)FLT_MIN) return 0;
    frexp(x, &exponent);
    return ldexp(1, exponent - 9);
}

/* got is exact rounded to bf16, after an error of at most `before`. Subnormal numbers may have become 0. */
static void check_rounded(const char *name, bf16 got, double exact, double before) {
    double x = (double)bf16_to_f32(got), bound = half_ulp(fabs(exact) + before) + before + (double)FLT_MIN;
    ck_assert_msg(fabs(x - exact) <= bound, "%s: %.9g instead of %.9g, bound %.3g", name, x, exact, bound);
}

/* a and b are roundings to bf16 of values that are at most `apart` apart */
static void check_neighbours(const char *name, const bf16 *a, const bf16 *b, size_t n, double apart) {
    for (size_t i = 0; i < n; i++) {
        double x = (double)bf16_to_f32(a[i]), y = (double)bf16_to_f32(b[i]);
        double bound = 2 * half_ulp(fmax(fabs(x), fabs(y))) + apart + (double)FLT_MIN;
        ck_assert_msg(fabs(x - y) <= bound, "%s[%zu]: %.9g, %.9g, bound %.3g", name, i, x, y, bound);
    }
}

/* The share of elements that differ: a kernel that is wrong by half an ulp throughout must not pass as "neighbours". */
static double share_different(const bf16 *a, const bf16 *b, size_t n) {
    size_t different = 0;
    for (size_t i = 0; i < n; i++) different += a[i] != b[i];
    return (double)different / (double)n;
}

/* ---- conversions ---- */

START_TEST(narrowing_rounds_to_nearest_even_and_keeps_nan_in_every_set) {
    /* Through the norm of a row of one element: x / sqrt(x² + 0) = ±1, times w: w itself is rounded. */
    const float values[] = {1.00390625f, 1.01171875f, 0x1.01fffep0f, 0x1.010002p0f,     FLT_MAX, 1e-30f, -1.00390625f,
                            INFINITY,    -INFINITY,   NAN,           -0x1.02fffep-100f, 0,       -0.0f,  3};
    for (int set = 0; set < N_SETS; set++) {
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
            float one = 1;
            bf16 y, expected = f32_to_bf16(values[i]);
            k.bf16.rmsnorm_forward(&y, NULL, &one, &values[i], 1, 1, 0);
            if (isnan(values[i]))
                ck_assert_msg((y & 0x7fff) > 0x7f80 && (y & 0x40), "%s: NaN became %04x", k.name, y);
            else
                ck_assert_msg(y == expected, "%s: %g became %04x", k.name, (double)values[i], y);
        }
    }
}
END_TEST

/* ---- the references against fp64 ---- */

typedef struct {
    int T, D;
    double *x, *delta, *w, *dy, *h; /* loss = Σ dy·norm(x + delta) + Σ h·(x + delta) */
} Fused;

static void exact_norm(double *y, const Fused *f, int t) {
    double squares = 0;
    for (int i = 0; i < f->D; i++) {
        y[i] = f->x[t * f->D + i] + f->delta[t * f->D + i];
        squares += y[i] * y[i];
    }
    for (int i = 0; i < f->D; i++) y[i] *= f->w[i] / sqrt(squares / f->D + 1e-5);
}

static double fused_loss(const void *context) {
    const Fused *f = context;
    double loss = 0, y[64];
    for (int t = 0; t < f->T; t++) {
        exact_norm(y, f, t);
        for (int i = 0; i < f->D; i++) {
            int at = t * f->D + i;
            loss += f->dy[at] * y[i] + f->h[at] * (f->x[at] + f->delta[at]);
        }
    }
    return loss;
}

enum { FT = 37, FD = 7, FN = FT * FD }; /* more than a chunk of tokens */

static Fused fused_case(Arena *arena, float **x, bf16 **delta, float **w, bf16 **dy, float **h) {
    *x = noise(arena, FN, 1, 1), *delta = noise16(arena, FN, 2, 1), *w = noise(arena, FD, 3, 1);
    *dy = noise16(arena, FN, 4, 1), *h = noise(arena, FN, 5, 1);
    return (Fused){FT,
                   FD,
                   widen(arena, *x, FN),
                   widen16(arena, *delta, FN),
                   widen(arena, *w, FD),
                   widen16(arena, *dy, FN),
                   widen(arena, *h, FN)};
}

START_TEST(every_set_adds_and_norms_with_the_slopes_of_the_formula) {
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        float *x, *w, *h;
        bf16 *delta, *dy;
        Fused f = fused_case(&arena, &x, &delta, &w, &dy, &h);
        float sum[FN], rstd[FT], dx[FN], dw[FD] = {0}, *scratch = numbers(&arena, norm_scratch(FT, FD));
        bf16 y[FN], ddelta[FN];
        k.bf16.add_rmsnorm_forward(sum, y, rstd, x, delta, w, FT, FD, 1e-5f);
        for (int t = 0; t < FT; t++) {
            double exact[FD];
            exact_norm(exact, &f, t);
            for (int i = 0; i < FD; i++) {
                ck_assert(sum[t * FD + i] == x[t * FD + i] + bf16_to_f32(delta[t * FD + i]));
                check_rounded("y", y[t * FD + i], exact[i], 8 * u * fabs(exact[i]) + u * largest(w, FD));
            }
        }
        k.bf16.add_rmsnorm_backward(dx, false, ddelta, dw, h, dy, sum, w, rstd, FT, FD, scratch);
        check_slopes("dx", dx, f.x, FN, fused_loss, &f, 2e-6);
        check_slopes("dw", dw, f.w, FD, fused_loss, &f, 2e-6);
        for (int i = 0; i < FN; i++) ck_assert(ddelta[i] == f32_to_bf16(dx[i]));
        arena_free(&arena);
    }
}
END_TEST

START_TEST(every_set_adds_and_norms_in_fp32_with_the_slopes_of_the_formula) {
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        float *x, *w, *h, delta[FN], dy[FN], sum[FN], y[FN], rstd[FT], dx[FN], ddelta[FN], dw[FD] = {0};
        bf16 *delta16, *dy16;
        Fused f = fused_case(&arena, &x, &delta16, &w, &dy16, &h);
        for (int i = 0; i < FN; i++) delta[i] = (float)f.delta[i], dy[i] = (float)f.dy[i];
        k.add_rmsnorm_forward(sum, y, rstd, x, delta, w, FT, FD, 1e-5f);
        double loss = 0;
        for (int i = 0; i < FN; i++) loss += f.dy[i] * (double)y[i] + f.h[i] * (double)sum[i];
        ck_assert_double_eq_tol(loss, fused_loss(&f), FN * 1e-6);
        float *scratch = numbers(&arena, norm_scratch(FT, FD));
        k.add_rmsnorm_backward(dx, false, ddelta, dw, h, dy, sum, w, rstd, FT, FD, scratch);
        check_slopes("dx", dx, f.x, FN, fused_loss, &f, 2e-6);
        check_slopes("ddelta", ddelta, f.delta, FN, fused_loss, &f, 2e-6);
        check_slopes("dw", dw, f.w, FD, fused_loss, &f, 2e-6);
        arena_free(&arena);
    }
}
END_TEST

/* ---- every set against the reference: norms ---- */

static const int widths[] = {1, 2, 7, 8, 15, 16, 17, 31, 63, 64, 100, 172, 288, 1031};
enum { N_WIDTHS = sizeof widths / sizeof *widths };

/* y: r is off by (D/32 + 4)·u/2 at most (two sums in lanes of up to D/16 terms each, all positive), then two products
 */
static double norm_error(int width) {
    return (width / 32.0 + 8) * u;
}

static void check_norm_forward(Arena *arena, const Kernels *slow, const Kernels *fast, int T, int D) {
    size_t n = (size_t)T * (size_t)D;
    float *x = noise(arena, n, 1, 3), *w = noise(arena, (size_t)D, 2, 1);
    bf16 *delta = noise16(arena, n, 3, 1), *y = noise16(arena, n, 9, 1), *y2 = noise16(arena, n, 10, 1);
    float *sum = numbers(arena, n), *r = numbers(arena, (size_t)T), *r2 = numbers(arena, (size_t)T);
    slow->bf16.add_rmsnorm_forward(sum, y, r, x, delta, w, T, D, 1e-5f);
    double apart = norm_error(D) * largest(w, (size_t)D) * sqrt(D);
    float *in_place = copy(arena, x, n);
    fast->bf16.add_rmsnorm_forward(in_place, y2, r2, in_place, delta, w, T, D, 1e-5f);
    ck_assert(memcmp(in_place, sum, n * sizeof *sum) == 0);
    check_neighbours("y", y2, y, n, apart);
    ck_assert(share_different(y2, y, n) < 0.01 || n < 1000);
    CHECK_CLOSE(r2, r, (size_t)T, norm_error(D), "rstd, width %d, %s", D, fast->name);
    bf16 *y3 = noise16(arena, n, 9, 1);
    fast->bf16.rmsnorm_forward(y3, NULL, sum, w, T, D, 1e-5f);
    ck_assert(memcmp(y3, y2, n * sizeof *y3) == 0);
    float *delta32 = numbers(arena, n), *f = numbers(arena, n), *f2 = numbers(arena, n), *sum2 = numbers(arena, n);
    for (size_t i = 0; i < n; i++) delta32[i] = bf16_to_f32(delta[i]);
    slow->add_rmsnorm_forward(sum2, f, r, x, delta32, w, T, D, 1e-5f);
    fast->add_rmsnorm_forward(x, f2, NULL, x, delta32, w, T, D, 1e-5f);
    ck_assert(memcmp(x, sum, n * sizeof *x) == 0 && memcmp(sum2, sum, n * sizeof *x) == 0);
    CHECK_CLOSE(f2, f, n, norm_error(D), "fp32 y, width %d, %s", D, fast->name);
}

typedef struct {
    float *dx, *dx32, *ddelta32, *dw;
    bf16 *ddelta;
} Gradients;

static Gradients gradients(Arena *arena, size_t n, size_t D) {
    return (Gradients){noise(arena, n, 20, 1), noise(arena, n, 21, 1), noise(arena, n, 22, 1), noise(arena, D, 23, 1),
                       noise16(arena, n, 24, 1)};
}

/* way: 1 accumulate, 2 no dsum, 4 dx in dsum's place, 8 without ddelta and dw, 16 ddelta in dy's place */
static void run_backward(Arena *arena, Gradients g, const Kernels *k, int way, const float *dsum, const bf16 *dy,
                         const float *sum, const float *w, const float *r, int T, int D) {
    size_t n = (size_t)T * (size_t)D;
    float *scratch = noise(arena, norm_scratch(T, D), 30, 100), *dy32 = numbers(arena, n);
    for (size_t i = 0; i < n; i++) dy32[i] = bf16_to_f32(dy[i]);
    const float *from = way & 2 ? NULL : way & 4 ? memcpy(g.dx, dsum, n * sizeof *dsum) : dsum;
    if (way & 16) dy = memcpy(g.ddelta, dy, n * sizeof *dy);
    k->bf16.add_rmsnorm_backward(g.dx, way & 1, way & 8 ? NULL : g.ddelta, way & 8 ? NULL : g.dw, from, dy, sum, w, r,
                                 T, D, scratch);
    if (way & 4) from = memcpy(g.dx32, dsum, n * sizeof *dsum);
    k->add_rmsnorm_backward(g.dx32, way & 1, way & 8 ? NULL : g.ddelta32, way & 8 ? NULL : g.dw, from, dy32, sum, w, r,
                            T, D, scratch);
}

/* Terms of dx: h, r·w·dy, and shrink·x; the dot product has D/32 additions a lane. dw: 32 additions in fp32 (the
 * chunk), then fp64; its terms are T products dy·x·r. */
static void check_norm_backward(Arena *arena, const Kernels *slow, const Kernels *fast, int T, int D, int way) {
    size_t n = (size_t)T * (size_t)D;
    float *sum = noise(arena, n, 1, 3), *w = noise(arena, (size_t)D, 2, 1), *dsum = noise(arena, n, 3, 1);
    float *r = numbers(arena, (size_t)T);
    bf16 *dy = noise16(arena, n, 4, 1), *y = noise16(arena, n, 5, 1);
    slow->bf16.rmsnorm_forward(y, r, sum, w, T, D, 1e-5f);
    Gradients a = gradients(arena, n, (size_t)D), b = gradients(arena, n, (size_t)D);
    run_backward(arena, a, slow, way, dsum, dy, sum, w, r, T, D);
    run_backward(arena, b, fast, way, dsum, dy, sum, w, r, T, D);
    double dy_top = 0;
    for (size_t i = 0; i < n; i++) dy_top = fmax(dy_top, fabs((double)bf16_to_f32(dy[i])));
    double terms = largest(r, (size_t)T) * largest(w, (size_t)D) * dy_top * (1 + sqrt(D)) + 2 * largest(dsum, n);
    double apart = norm_error(D) * terms;
    CHECK_CLOSE_TO(1.0, b.dx, a.dx, n, apart, "dx, width %d, way %d, %s", D, way, fast->name);
    CHECK_CLOSE_TO(1.0, b.dx32, a.dx32, n, apart, "fp32 dx, width %d, way %d, %s", D, way, fast->name);
    CHECK_CLOSE_TO(1.0, b.ddelta32, a.ddelta32, n, apart, "fp32 ddelta, width %d, way %d, %s", D, way, fast->name);
    check_neighbours("ddelta", b.ddelta, a.ddelta, n, apart);
    double products = (1 + T) * dy_top * sqrt(D) * 2; /* twice: bf16's and fp32's call add to the same dw */
    CHECK_CLOSE_TO(1.0, b.dw, a.dw, (size_t)D, (NORM_CHUNK / 2 + 4) * u * products, "dw, width %d, way %d, %s", D, way,
                   fast->name);
}

START_TEST(add_and_rmsnorm_agree_with_the_reference_at_every_width_and_in_place) {
    for (int set = 1; set < N_SETS; set++)
        for (int w = 0; w < N_WIDTHS; w++) {
            Arena arena = {0};
            Kernels slow = kernel_reference(), fast;
            if (!kernel_table(&fast, kernel_sets[set])) continue;
            const int lengths[] = {1, 5, 32, 33, 130};
            int T = lengths[w % 5];
            check_norm_forward(&arena, &slow, &fast, T, widths[w]);
            for (int way = 0; way < 32; way++) {
                if ((way & 4) && (way & 3)) continue; /* dx is dsum: no accumulation, and there is a dsum */
                if ((way & 16) && (way & 8)) continue;
                check_norm_backward(&arena, &slow, &fast, T, widths[w], way);
            }
            arena_free(&arena);
        }
}
END_TEST

START_TEST(gradients_that_are_not_wanted_may_be_null) {
    enum { T = 40, D = 24, N = T * D };
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        float *sum = noise(&arena, N, 1, 1), *w = noise(&arena, D, 2, 1), *h = noise(&arena, N, 3, 1), r[T];
        float dw[2][D] = {{0}}, *scratch = numbers(&arena, norm_scratch(T, D));
        bf16 *dy = noise16(&arena, N, 4, 1), *y = noise16(&arena, N, 5, 1), *ddelta = copy16(&arena, y, N);
        float *dx = copy(&arena, h, N);
        k.bf16.rmsnorm_forward(y, r, sum, w, T, D, 1e-5f);
        k.bf16.add_rmsnorm_backward(NULL, false, NULL, dw[0], h, dy, sum, w, r, T, D, scratch);
        k.bf16.add_rmsnorm_backward(dx, false, ddelta, dw[1], h, dy, sum, w, r, T, D, scratch);
        ck_assert(memcmp(dw[0], dw[1], sizeof dw[0]) == 0 && largest(dw[0], D) > 0);
        bf16 *alone = copy16(&arena, y, N);
        k.bf16.add_rmsnorm_backward(NULL, false, alone, NULL, h, dy, sum, w, r, T, D, NULL);
        ck_assert(memcmp(alone, ddelta, N * sizeof *alone) == 0);
        k.bf16.add_rmsnorm_backward(NULL, false, NULL, NULL, h, dy, sum, w, r, T, D, NULL);
        k.bf16.swiglu_backward(NULL, false, dy, dy, 1, D);
        arena_free(&arena);
    }
}
END_TEST

/* Positive terms, so that nothing cancels. A chunk of 32 summed in fp32 is off by about u/3·sqrt(32) = 2 u of its sum,
 * the mean of several chunks by less; 5 u is the bound, whatever the number of tokens (longer chunks, or fp32 sums over
 * all tokens, would be off by u/3·sqrt(tokens)). */
START_TEST(the_error_of_dw_does_not_grow_with_the_batch) {
    enum { D = 16 };
    const int lengths[] = {100, 10000, 200000};
    for (int set = 0; set < N_SETS; set++)
        for (int l = 0; l < 3; l++) {
            Arena arena = {0};
            Kernels k;
            if (!kernel_table(&k, kernel_sets[set])) continue;
            int T = lengths[l];
            size_t n = (size_t)T * D;
            float *x = noise(&arena, n, 1, 1), *r = numbers(&arena, (size_t)T), w[D] = {0}, dw[D] = {0};
            bf16 *dy = noise16(&arena, n, 2, 1);
            double exact[D] = {0}, size = 0;
            for (int t = 0; t < T; t++) r[t] = 1;
            for (size_t i = 0; i < n; i++) {
                x[i] = 1 + fabsf(x[i]), dy[i] &= 0x7fff; /* no cancellation: the worst case for the error */
                exact[i % D] += (double)bf16_to_f32(dy[i]) * (double)x[i];
            }
            for (int i = 0; i < D; i++) size = fmax(size, exact[i]);
            k.bf16.add_rmsnorm_backward(NULL, false, NULL, dw, NULL, dy, x, w, r, T, D,
                                        numbers(&arena, norm_scratch(T, D)));
            for (int i = 0; i < D; i++)
                ck_assert_msg(fabs((double)dw[i] - exact[i]) <= 5 * u * exact[i], "%s, %d tokens: %.9g instead of %.9g",
                              k.name, T, (double)dw[i], exact[i]);
            ck_assert(size > T);
            arena_free(&arena);
        }
}
END_TEST

/* ---- rotary ---- */

static const int heads[] = {2, 4, 6, 8, 16, 24, 34, 48, 64, 66, 96, 128};
enum { N_HEADS = sizeof heads / sizeof *heads };

/* Products and sum in fp32 of exact bf16: 3 roundings of u. The tables' own error (u each) is not the kernel's. */
START_TEST(rotary_turns_pairs_in_every_set_in_place_and_out_of_place) {
    enum { T = 5, POSITIONS = 40 };
    const int32_t positions[T] = {5, 0, 39, 1, 17};
    for (int set = 0; set < N_SETS; set++)
        for (int h = 0; h < N_HEADS; h++)
            for (int H = 1; H < 4; H++) {
                Arena arena = {0};
                Kernels k;
                if (!kernel_table(&k, kernel_sets[set])) continue;
                int HD = heads[h], half = HD / 2;
                size_t width = (size_t)(H * HD) + 3, stride = width + 2, n = T * stride;
                float *cosine = numbers(&arena, (size_t)(POSITIONS * half));
                float *sine = numbers(&arena, (size_t)(POSITIONS * half));
                rotary_tables(cosine, sine, POSITIONS, HD, 10000, (RotaryScaling){0});
                bf16 *x = noise16(&arena, n, 1, 1), *in_place = copy16(&arena, x, n), *out = noise16(&arena, n, 2, 1);
                bf16 *untouched = copy16(&arena, out, n);
                for (int inverse = 0; inverse < 2; inverse++) {
                    memcpy(in_place, x, n * sizeof *x);
                    k.bf16.rotary(in_place, stride, T, H, HD, positions, cosine, sine, inverse);
                    k.bf16.rotary_copy(out, x, stride, width, T, H, HD, positions, cosine, sine, inverse);
                    for (size_t t = 0; t < T; t++)
                        for (size_t i = 0; i < stride; i++) {
                            size_t at = t * stride + i, in_head = i % (size_t)HD;
                            if (i < width) ck_assert(out[at] == in_place[at]);
                            if (i >= width) ck_assert(out[at] == untouched[at]);
                            if (i >= (size_t)(H * HD)) {
                                ck_assert(in_place[at] == x[at]);
                                continue;
                            }
                            bool second = in_head >= (size_t)half;
                            size_t angle = (size_t)(positions[t] * half) + in_head % (size_t)half;
                            size_t other = second ? at - (size_t)half : at + (size_t)half;
                            double a = (double)bf16_to_f32(x[at]), b = (double)bf16_to_f32(x[other]);
                            double s = (double)sine[angle] * (second == (bool)inverse ? -1 : 1);
                            double terms = fabs(a * (double)cosine[angle]) + fabs(b * s);
                            check_rounded("rotary", out[at], a * (double)cosine[angle] + b * s, 3 * u * terms);
                        }
                }
                arena_free(&arena);
            }
}
END_TEST

/* ---- SwiGLU ---- */

/* Before rounding: the fast sets' sigmoid is within 2^-13.8 (fast/bf16_rows.h), the reference's within 2^-22. Below
 * g = −83 σ stays 2^-120 or so, an absolute error of |g|·2^-119 beside |u|. */
static const double sigmoid_error = 0x1p-13 * 0.58;

static void check_swiglu(const Kernels *k, const bf16 *x, const bf16 *dy, const bf16 *old, const bf16 *y,
                         const bf16 *dx, bool accumulate, size_t F, size_t T) {
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < F; i++) {
            size_t at = 2 * t * F + i;
            double g = (double)bf16_to_f32(x[at]), up = (double)bf16_to_f32(x[at + F]);
            double d = (double)bf16_to_f32(dy[t * F + i]), s = 1 / (1 + exp(-g)), rest = 1 / (1 + exp(g));
            double floor = (1 + fabs(g)) * (1 + fabs(g)) * 0x1p-119, e = sigmoid_error + 8 * u;
            check_rounded(k->name, y[t * F + i], g * s * up, fabs(g * s * up) * e + floor * fabs(up));
            double dg = d * up * s * (1 + g * rest), du = d * g * s;
            double dg_terms = fabs(d * up) * (s * (1 + 2 * fabs(g) * rest) * e + floor);
            double add_g = accumulate ? (double)bf16_to_f32(old[at]) : 0;
            double add_u = accumulate ? (double)bf16_to_f32(old[at + F]) : 0;
            check_rounded(k->name, dx[at], dg + add_g, dg_terms + 2 * u * (fabs(add_g) + fabs(dg)));
            check_rounded(k->name, dx[at + F], du + add_u,
                          fabs(du) * e + floor * fabs(d) + 2 * u * (fabs(add_u) + fabs(du)));
        }
}

START_TEST(swiglu_is_its_formula_rounded_in_every_set_at_every_width_and_at_extremes) {
    for (int set = 0; set < N_SETS; set++)
        for (int w = 0; w < N_WIDTHS; w++) {
            Arena arena = {0};
            Kernels k;
            if (!kernel_table(&k, kernel_sets[set])) continue;
            size_t T = 5, F = (size_t)widths[w], n = T * F;
            bf16 *x = noise16(&arena, 2 * n, 1, 4), *dy = noise16(&arena, n, 3, 1), *y = noise16(&arena, n, 5, 1);
            x[0] = f32_to_bf16(200);
            if (F > 3) x[1] = f32_to_bf16(-200), x[2] = 0, x[3] = f32_to_bf16(-80);
            k.bf16.swiglu_forward(y, x, (int)T, (int)F);
            for (int accumulate = 0; accumulate < 2; accumulate++) {
                bf16 *dx = noise16(&arena, 2 * n, 4, 1), *old = copy16(&arena, dx, 2 * n);
                k.bf16.swiglu_backward(dx, accumulate, dy, x, (int)T, (int)F);
                check_swiglu(&k, x, dy, old, y, dx, accumulate, F, T);
            }
            arena_free(&arena);
        }
}
END_TEST

START_TEST(swiglu_is_its_formula_for_every_bf16_gate_of_a_sane_size) {
    enum { F = 2 * 0x4400 }; /* |g| < 512 */
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        bf16 *x = noise16(&arena, 2 * F, 1, 1), *dy = noise16(&arena, F, 2, 1), *y = noise16(&arena, F, 5, 1);
        bf16 *dx = noise16(&arena, 2 * F, 4, 1);
        for (int i = 0; i < F; i++) x[i] = (bf16)(i / 2 | (i & 1) << 15);
        k.bf16.swiglu_forward(y, x, 1, F);
        k.bf16.swiglu_backward(dx, false, dy, x, 1, F);
        check_swiglu(&k, x, dy, dx, y, dx, false, F, 1);
        arena_free(&arena);
    }
}
END_TEST

/* ---- NaN, repeatability ---- */

START_TEST(nan_comes_out_where_it_went_in) {
    enum { T = 2, D = 40, N = T * D };
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        float *x = noise(&arena, N, 1, 1), *w = noise(&arena, D, 2, 1), sum[N], r[T], dx[N], dw[D] = {0};
        bf16 *delta = noise16(&arena, 2 * N, 3, 1), y[N], d2[2 * N];
        delta[37] = 0x7fc1;
        k.bf16.add_rmsnorm_forward(sum, y, r, x, delta, w, T, D, 1e-5f);
        for (int i = 0; i < N; i++) ck_assert(isnan(bf16_to_f32(y[i])) == (i < D));
        for (int t = 0; t < T; t++) r[t] = 1;
        k.bf16.add_rmsnorm_backward(dx, false, NULL, dw, NULL, delta, x, w, r, T, D,
                                    numbers(&arena, norm_scratch(T, D)));
        for (int i = 0; i < N; i++) ck_assert(isnan(dx[i]) == (i < D));
        for (int i = 0; i < D; i++) ck_assert(isnan(dw[i]) == (i == 37));
        k.bf16.swiglu_forward(y, delta, T, D);
        for (int i = 0; i < N; i++) ck_assert(isnan(bf16_to_f32(y[i])) == (i == 37));
        k.bf16.swiglu_backward(d2, false, y, delta, T, D);
        for (int i = 0; i < 2 * N; i++) ck_assert(isnan(bf16_to_f32(d2[i])) == (i == 37 || i == 77));
        arena_free(&arena);
    }
}
END_TEST

START_TEST(rows_give_the_same_bits_for_any_number_of_threads) {
    enum { T = 301, D = 72, N = T * D };
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        float *x = noise(&arena, N, 1, 1), *w = noise(&arena, D, 2, 1), *h = noise(&arena, N, 3, 1);
        bf16 *delta = noise16(&arena, N, 4, 1), *dy = noise16(&arena, N, 5, 1), *y[3], *ddelta[3], *s[3];
        float *dx[3], *dw[3];
        bool available = true;
        for (int run = 0; run < 3; run++) {
            Kernels k;
            threads_init(run == 2 ? 3 : run + 1);
            if (!(available = kernel_table(&k, kernel_sets[set]))) break;
            float *sum = numbers(&arena, N), *r = numbers(&arena, T), *scratch = numbers(&arena, norm_scratch(T, D));
            y[run] = copy16(&arena, dy, N), ddelta[run] = copy16(&arena, dy, N), s[run] = copy16(&arena, dy, N);
            dx[run] = numbers(&arena, N), dw[run] = numbers(&arena, D);
            k.bf16.add_rmsnorm_forward(sum, y[run], r, x, delta, w, T, D, 1e-5f);
            k.bf16.add_rmsnorm_backward(dx[run], false, ddelta[run], dw[run], h, dy, sum, w, r, T, D, scratch);
            k.bf16.swiglu_forward(s[run], y[run], T, D / 2);
        }
        for (int run = 1; run < 3 && available; run++) {
            ck_assert(memcmp(y[0], y[run], N * sizeof **y) == 0 && memcmp(dx[0], dx[run], N * sizeof **dx) == 0);
            ck_assert(memcmp(dw[0], dw[run], D * sizeof **dw) == 0 && memcmp(s[0], s[run], N * sizeof **s) == 0);
            ck_assert(memcmp(ddelta[0], ddelta[run], N * sizeof **ddelta) == 0);
        }
        arena_free(&arena);
    }
}
END_TEST

CHECK_MAIN("bf16_rows", narrowing_rounds_to_nearest_even_and_keeps_nan_in_every_set,
           every_set_adds_and_norms_with_the_slopes_of_the_formula,
           every_set_adds_and_norms_in_fp32_with_the_slopes_of_the_formula,
           add_and_rmsnorm_agree_with_the_reference_at_every_width_and_in_place,
           gradients_that_are_not_wanted_may_be_null, the_error_of_dw_does_not_grow_with_the_batch,
           rotary_turns_pairs_in_every_set_in_place_and_out_of_place,
           swiglu_is_its_formula_rounded_in_every_set_at_every_width_and_at_extremes,
           swiglu_is_its_formula_for_every_bf16_gate_of_a_sane_size, nan_comes_out_where_it_went_in,
           rows_give_the_same_bits_for_any_number_of_threads)
