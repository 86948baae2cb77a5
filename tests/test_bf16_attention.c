/* Attention in bf16: every set of kernels, the reference included, against the definition in fp64 on the same inputs.
 *
 * Bounds, element by element. u = 2^-8 is what rounding to bf16 may change, relatively. With the sums of magnitudes
 *
 *   |out| = Σ_j p·|v|    |dv| = Σ_t p·|g|    |dq| = scale·Σ_j |ds|·|k|    |dk| = scale·Σ_t |ds|·|q|
 *
 * rounding p and ds to bf16 changes a result by at most u times these; the exponential's own error (7.5e-5, twice: it
 * is in the log-sum-exp as well) and fp32 scores (HD·2^-24 of sums below 20: 2e-4) add less than a tenth of u. ds =
 * p·(g·v − δ) also carries the fp32 errors of the two dot products, which cancel: 2^-16·p·(Σ|g·v| + Σ|g·o|) covers HD
 * = 256. The result is rounded once more: u times itself. The reference has that last error only. */
#include "tests/kernel_check.h"

enum { MAX_SEGMENTS = 40 };
static const double u = 0x1p-8;

typedef struct {
    int H, KV, HD;
    int n_segments, lengths[MAX_SEGMENTS];
} Case;

static const Case shapes[] = {
    {1, 1, 2, 1, {1}},
    {8, 4, 8, 7, {0, 1, 17, 63, 64, 65, 200}},
    {4, 4, 10, 4, {65, 0, 130, 3}},
    {3, 1, 48, 4, {200, 1, 0, 17}},
    {6, 6, 48, 2, {100, 64}},
    {8, 2, 64, 7, {0, 1, 17, 63, 64, 65, 200}},
    {8, 1, 64, 2, {65, 70}}, /* more heads to a group than a block holds */
    {5, 1, 32, 3, {90, 2, 63}},
    {4, 2, 80, 2, {50, 66}},
    {2, 1, 128, 3, {40, 1, 130}},
    {2, 2, 256, 2, {64, 150}},
    {1, 1, 64, 1, {700}},   /* keys do not fit a buffer */
    {1, 1, 258, 1, {20}},   /* wider than the tiles */
    {2, 1, 13, 2, {20, 9}}, /* no pairs */
    {12, 1, 24, 2, {64, 30}},
    {4, 2, 8, 20, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 1, 31}},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static bf16 *halves(Arena *arena, size_t n) {
    bf16 *x = arena_alloc(arena, (n + 1) * sizeof *x);
    ck_assert_ptr_nonnull(x);
    return x;
}

static bf16 *half_noise(Arena *arena, size_t n, uint64_t seed, float scale) {
    bf16 *x = halves(arena, n);
    float *from = noise(arena, n, seed, scale);
    for (size_t i = 0; i < n; i++) x[i] = f32_to_bf16(from[i]);
    return x;
}

/* A case laid out as one QKV row per token, a little longer than need be. */
typedef struct {
    int H, KV, HD;
    size_t T, row, width; /* width: H·HD */
    int32_t start[MAX_SEGMENTS + 1];
    bf16 *qkv, *dout;
    AttentionInputsBf16 in;
    Segments segments;
} Laid;

static void lay_out(Laid *l, const Case *c, Arena *arena) {
    *l = (Laid){.H = c->H, .KV = c->KV, .HD = c->HD};
    for (int s = 0; s < c->n_segments; s++) l->start[s + 1] = l->start[s] + c->lengths[s];
    size_t HD = (size_t)c->HD, H = (size_t)c->H, KV = (size_t)c->KV;
    l->T = (size_t)l->start[c->n_segments];
    l->width = H * HD;
    l->row = (H + 2 * KV) * HD + 3;
    l->qkv = half_noise(arena, l->T * l->row, 1, 1);
    l->dout = half_noise(arena, l->T * l->width, 2, 1);
    float scale = 1.5f / sqrtf((float)HD); /* peakier than usual */
    bf16 *k = l->qkv + l->width, *v = k + KV * HD;
    l->in = (AttentionInputsBf16){c->H, c->KV, c->HD, scale, l->qkv, k, v, l->row, l->row};
    l->segments = (Segments){c->n_segments, l->start};
}

typedef struct {
    bf16 *out, *grad; /* grad: dq, dk, dv in one row each, as qkv */
    float *lse;
} Results;

static void forward(Results *r, const Kernels *k, const Laid *l, Arena *arena) {
    r->out = halves(arena, l->T * l->width);
    r->lse = numbers(arena, l->T * (size_t)l->H);
    k->bf16.attention_forward(r->out, r->lse, &l->in, l->segments);
}

/* From the out and lse of `r`; gradients begin as noise. want: bits of dq, dk, dv. */
static void backward(Results *r, const Kernels *k, const Laid *l, bool accumulate, int want, Arena *arena) {
    float *scratch = numbers(arena, attention_backward_scratch((int)l->T, l->H, l->HD));
    r->grad = half_noise(arena, l->T * l->row, 7, 1);
    bf16 *dk = r->grad + l->width, *dv = dk + l->KV * l->HD;
    k->bf16.attention_backward(want & 1 ? r->grad : NULL, want & 2 ? dk : NULL, want & 4 ? dv : NULL, accumulate,
                               l->dout, r->out, r->lse, &l->in, l->segments, scratch);
}

/* The definition in fp64, and what the bounds need: value and sum of magnitudes of every element. */
typedef struct {
    double *out, *out_size, *lse, *grad, *grad_size, *grad_dots;
} Truth;

static double *zeros(Arena *arena, size_t n) {
    double *x = arena_alloc(arena, (n + 1) * sizeof *x);
    ck_assert_ptr_nonnull(x);
    memset(x, 0, n * sizeof *x);
    return x;
}

static double at(const bf16 *x, size_t i) {
    return (double)bf16_to_f32(x[i]);
}

static double dot(const bf16 *a, const bf16 *b, int n, bool magnitudes) {
    double sum = 0;
    for (size_t i = 0; i < (size_t)n; i++) {
        double x = at(a, i) * at(b, i);
        sum += magnitudes ? fabs(x) : x;
    }
    return sum;
}

static void truth_forward_row(Truth *w, const Laid *l, size_t first, size_t t, size_t h) {
    size_t HD = (size_t)l->HD, head = t * (size_t)l->H + h, kv = h / (size_t)(l->H / l->KV) * HD;
    double scale = (double)l->in.scale, top = -INFINITY, sum = 0;
    const bf16 *q = l->in.q + t * l->row + h * HD;
    for (size_t j = first; j <= t; j++) top = fmax(top, scale * dot(q, l->in.k + j * l->row + kv, l->HD, false));
    for (size_t j = first; j <= t; j++) sum += exp(scale * dot(q, l->in.k + j * l->row + kv, l->HD, false) - top);
    w->lse[head] = top + log(sum);
    for (size_t j = first; j <= t; j++) {
        double p = exp(scale * dot(q, l->in.k + j * l->row + kv, l->HD, false) - w->lse[head]);
        for (size_t i = 0; i < HD; i++) {
            double x = p * at(l->in.v, j * l->row + kv + i);
            w->out[head * HD + i] += x;
            w->out_size[head * HD + i] += fabs(x);
        }
    }
}

static void add(Truth *w, size_t i, double factor, double dots, double x) {
    w->grad[i] += factor * x;
    w->grad_size[i] += fabs(factor * x);
    w->grad_dots[i] += dots * fabs(x);
}

/* Gradients through query t of head h, given out and lse */
static void truth_backward_row(Truth *w, const Laid *l, const Results *r, size_t first, size_t t, size_t h) {
    size_t HD = (size_t)l->HD, head = t * (size_t)l->H + h, kv = h / (size_t)(l->H / l->KV) * HD, width = l->width;
    double scale = (double)l->in.scale;
    size_t q = t * l->row + h * HD;
    const bf16 *g = l->dout + head * HD, *o = r->out + head * HD;
    double delta = dot(g, o, l->HD, false), delta_size = dot(g, o, l->HD, true);
    for (size_t j = first; j <= t; j++) {
        size_t k = j * l->row + width + kv, v = k + (size_t)(l->KV * l->HD);
        double p = exp(scale * dot(l->qkv + q, l->qkv + k, l->HD, false) - (double)r->lse[head]);
        double ds = scale * p * (dot(g, l->qkv + v, l->HD, false) - delta);
        double dots = scale * p * (dot(g, l->qkv + v, l->HD, true) + delta_size);
        for (size_t i = 0; i < HD; i++) {
            add(w, q + i, ds, dots, at(l->qkv, k + i));
            add(w, k + i, ds, dots, at(l->qkv, q + i));
            add(w, v + i, p, 0, at(g, i));
        }
    }
}

static Truth truth(const Laid *l, const Results *r, bool accumulate, Arena *arena) {
    size_t n = l->T * l->width, rows = l->T * l->row;
    Truth w = {zeros(arena, n),    zeros(arena, n),    zeros(arena, l->T * (size_t)l->H),
               zeros(arena, rows), zeros(arena, rows), zeros(arena, rows)};
    bf16 *before = half_noise(arena, rows, 7, 1);
    for (int s = 0; s < l->segments.n_segments; s++)
        for (size_t t = (size_t)l->start[s]; t < (size_t)l->start[s + 1]; t++)
            for (size_t h = 0; h < (size_t)l->H; h++) {
                truth_forward_row(&w, l, (size_t)l->start[s], t, h);
                truth_backward_row(&w, l, r, (size_t)l->start[s], t, h);
            }
    for (size_t i = 0; i < rows; i++)
        if (accumulate || i % l->row >= l->row - 3) w.grad[i] += at(before, i);
    return w;
}

/* ck_assert writes to a file at every call: here and below only a failure asks for it. */
static void check_element(const char *what, const char *set, int shape, size_t i, double x, double y, double bound) {
    if (fabs(x - y) <= bound) return;
    ck_abort_msg("%s: %s[%zu], shape %d: %.7g for %.7g, off by %.3g > %.3g", set, what, i, shape, x, y, fabs(x - y),
                 bound);
}

static void check_all(const Results *r, const Truth *w, const Laid *l, const char *set, int shape) {
    bool reference = strcmp(set, "reference") == 0 || strcmp(set, "openblas") == 0;
    double inner = reference ? 0 : 1.1 * u, dots = reference ? 0 : 0x1p-16;
    const double ulp = 0x1p-23, last = u * (1 + 0x1p-8), tiny = 1e-30;
    for (size_t i = 0; i < l->T * l->width; i++)
        check_element("out", set, shape, i, at(r->out, i), w->out[i],
                      inner * w->out_size[i] * (1 + u) + last * fabs(w->out[i]) + tiny);
    for (size_t i = 0; i < l->T * (size_t)l->H; i++) {
        double bound = reference ? ulp * fabs(w->lse[i]) : 7.5e-5 + 32 * ulp;
        check_element("lse", set, shape, i, (double)r->lse[i], w->lse[i], bound + ulp * (1 + fabs(w->lse[i])));
    }
    for (size_t i = 0; i < l->T * l->row; i++)
        check_element("gradient", set, shape, i, at(r->grad, i), w->grad[i],
                      (inner * w->grad_size[i] + dots * w->grad_dots[i]) * (1 + u) + last * fabs(w->grad[i]) + tiny);
}

START_TEST(attention_is_the_definition_within_the_bounds_at_every_shape) {
    for (int c = 0; c < N_SHAPES; c++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            threads_init(1);
            Arena arena = {0};
            Laid l;
            Results exact;
            Kernels k = kernel_reference();
            lay_out(&l, &shapes[c], &arena);
            forward(&exact, &k, &l, &arena);
            Truth w = truth(&l, &exact, accumulate, &arena);
            for (int set = 0; set < N_SETS; set++)
                for (int threads = 1; threads <= 3; threads += 2) { /* both ways of cutting the backward pass */
                    threads_init(threads);
                    if (!kernel_table(&k, kernel_sets[set])) continue;
                    Results r = exact;
                    backward(&r, &k, &l, accumulate, 7, &arena);
                    forward(&r, &k, &l, &arena);
                    check_all(&r, &w, &l, k.name, c);
                }
            arena_free(&arena);
        }
}
END_TEST

START_TEST(gradients_not_wanted_are_left_alone_and_the_others_are_the_same) {
    for (int threads = 1; threads <= 3; threads += 2)
        for (int set = 0; set < N_SETS; set++)
            for (int want = 0; want < 8; want++) {
                threads_init(threads);
                Arena arena = {0};
                Kernels k;
                if (!kernel_table(&k, kernel_sets[set])) continue;
                Laid l;
                Results all, some;
                lay_out(&l, &shapes[3], &arena);
                forward(&all, &k, &l, &arena);
                some = all;
                backward(&all, &k, &l, false, 7, &arena);
                backward(&some, &k, &l, false, want, &arena);
                bf16 *before = half_noise(&arena, l.T * l.row, 7, 1);
                size_t kv = (size_t)(l.KV * l.HD);
                for (size_t i = 0; i < l.T * l.row; i++) {
                    size_t column = i % l.row;
                    int part = column < l.width ? 1 : column < l.width + kv ? 2 : column < l.width + 2 * kv ? 4 : 0;
                    bool right = some.grad[i] == (want & part ? all.grad[i] : before[i]);
                    if (!right) ck_abort_msg("%s: gradient[%zu], wanted %d", k.name, i, want);
                }
                arena_free(&arena);
            }
}
END_TEST

START_TEST(attention_gives_the_same_bits_in_every_run_and_for_any_number_of_threads) {
    for (int set = 2; set < N_SETS; set++)
        for (int c = 0; c < N_SHAPES; c++) {
            Arena arena = {0};
            Kernels k;
            if (!kernel_table(&k, kernel_sets[set])) continue;
            Laid l;
            lay_out(&l, &shapes[c], &arena);
            const int threads[] = {1, 1, 2, 5};
            Results first = {0}, r;
            for (int i = 0; i < 4; i++) {
                threads_init(threads[i]);
                forward(&r, &k, &l, &arena);
                backward(&r, &k, &l, false, 7, &arena);
                if (i == 0) first = r;
                ck_assert(memcmp(r.out, first.out, l.T * l.width * sizeof *r.out) == 0);
                ck_assert(memcmp(r.lse, first.lse, l.T * (size_t)l.H * sizeof *r.lse) == 0);
                ck_assert(memcmp(r.grad, first.grad, l.T * l.row * sizeof *r.grad) == 0);
            }
            arena_free(&arena);
        }
}
END_TEST

START_TEST(large_scores_of_either_sign_do_not_overflow) {
    enum { T = 200, HD = 8 };
    const int32_t start[] = {0, T};
    threads_init(1);
    for (int set = 0; set < N_SETS; set++)
        for (int sign = -1; sign <= 1; sign += 2) {
            Arena arena = {0};
            Kernels k;
            if (!kernel_table(&k, kernel_sets[set])) continue;
            bf16 *q = half_noise(&arena, T * HD, 1, 300), *kv = half_noise(&arena, T * HD, 2, 300);
            bf16 out[T * HD], grad[3][T * HD];
            float lse[T], *scratch = numbers(&arena, attention_backward_scratch(T, 1, HD));
            for (int i = 0; sign < 0 && i < T * HD; i++) { /* every score is far below 0 */
                q[i] = q[i] & 0x7fff;
                kv[i] = kv[i] | 0x8000;
            }
            AttentionInputsBf16 in = {1, 1, HD, 1, q, kv, kv, HD, HD};
            k.bf16.attention_forward(out, lse, &in, (Segments){1, start});
            k.bf16.attention_backward(grad[0], grad[1], grad[2], false, kv, out, lse, &in, (Segments){1, start},
                                      scratch);
            double top = largest(lse, T);
            ck_assert(top > 1e5 && top < 1e7);
            for (int i = 0; i < T * HD; i++) {
                bool finite = fabs(at(out, (size_t)i)) <= 2000;
                for (int g = 0; g < 3; g++) finite = finite && isfinite(at(grad[g], (size_t)i));
                if (!finite) ck_abort_msg("%s: element %d", k.name, i);
            }
            arena_free(&arena);
        }
}
END_TEST

/* A NaN in the keys of the middle one of three segments */
START_TEST(a_nan_shows_where_it_is_seen_and_in_no_other_segment) {
    const Case c = {4, 2, 16, 3, {70, 70, 70}};
    enum { FIRST = 70, END = 140, AT = 110 };
    threads_init(1);
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        Laid l;
        Results clean, r;
        lay_out(&l, &c, &arena);
        forward(&clean, &k, &l, &arena);
        backward(&clean, &k, &l, false, 7, &arena);
        l.qkv[AT * l.row + l.width] = l.qkv[AT * l.row + l.width + 32] = f32_to_bf16(NAN); /* k and v of head 0 */
        forward(&r, &k, &l, &arena);
        backward(&r, &k, &l, false, 7, &arena);
        for (size_t t = 0; t < l.T; t++) {
            bool other = t < FIRST || t >= END;
            size_t out = l.width * sizeof *r.out, grad = l.row * sizeof *r.grad;
            ck_assert(!other || memcmp(r.out + t * l.width, clean.out + t * l.width, out) == 0);
            ck_assert(!other || memcmp(r.grad + t * l.row, clean.grad + t * l.row, grad) == 0);
            ck_assert_int_eq(isnan(r.lse[t * 4]) != 0, t >= AT && t < END);
            ck_assert(t < AT || t >= END || isnan(at(r.out, t * l.width)));
        }
        arena_free(&arena);
    }
}
END_TEST

CHECK_MAIN("kernels: attention in bf16", attention_is_the_definition_within_the_bounds_at_every_shape,
           gradients_not_wanted_are_left_alone_and_the_others_are_the_same,
           attention_gives_the_same_bits_in_every_run_and_for_any_number_of_threads,
           large_scores_of_either_sign_do_not_overflow, a_nan_shows_where_it_is_seen_and_in_no_other_segment)
