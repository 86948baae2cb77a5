/* The head of precision bf16: the reference against fp64 from the same bf16 operands, every faster set against the same
 * fp64 with the bounds that rounding to bf16 allows.
 *
 * With u = 2^-8, half of bf16's unit of the last place, c = dlogprob·scale and dz = c·(onehot − p) exact:
 *
 *   lse, logprob   fp32 throughout: no bf16 enters but the operands; 4e-6 of the largest logit
 *   dx             every dz_v is rounded to bf16, then the sum:  u·Σ_v |dz_v·w_vi| + u·|dx_i|
 *   dw             every dz_v, and every c·x_i, is rounded:      2u·Σ_t |dz_tv·x_ti|
 *
 * Beside that p errs by 4e-7·(1 + |z|) relative, from a logit z and the log-sum-exp in fp32, and so do sums in fp32:
 * that much of the same sums with |c|·(onehot + p) for |dz|, which does not vanish as p goes to 1.
 */
#include "tests/kernel_check.h"

typedef struct {
    int T, D, V;
    float scale;
    bool masked; /* every third token skipped */
} Case;

/* Inputs, and results in fp64 with the bounds above. */
typedef struct {
    Arena arena;
    Case c;
    bf16 *x, *w;
    float *dlogprob;
    int32_t *targets;
    Panels forward, backward; /* packed */
    RowMajor rows;
    double largest_logit;
    double *z, *lse, *logprob, *entropy, *mean, *dx, *dw;
    double *dx_terms, *dw_terms, *dx_whole, *dw_whole; /* the sums of magnitudes: with |dz|, and the other */
} Head;

static void *room(Head *h, size_t bytes) {
    void *p = arena_alloc(&h->arena, bytes + 64);
    ck_assert_ptr_nonnull(p);
    return p;
}

static bf16 *narrow(Head *h, const float *from, size_t n) {
    bf16 *to = room(h, n * sizeof *to);
    for (size_t i = 0; i < n; i++) to[i] = f32_to_bf16(from[i]);
    return to;
}

static double at(const bf16 *x, size_t i) {
    return (double)bf16_to_f32(x[i]);
}

/* Noise in x and w; tests that want other values write them before solve(). */
static Head head_case(Case c, float w_scale) {
    Head h = {.c = c};
    size_t T = (size_t)c.T, D = (size_t)c.D, V = (size_t)c.V;
    h.x = narrow(&h, noise(&h.arena, T * D, 1, 1), T * D);
    h.w = narrow(&h, noise(&h.arena, V * D, 2, w_scale), V * D);
    h.dlogprob = noise(&h.arena, T, 3, 1);
    h.targets = room(&h, T * sizeof *h.targets);
    for (int t = 0; t < c.T; t++) {
        bool skip = c.masked && t % 3 == 1;
        h.targets[t] = skip ? -100 : (t * 7) % c.V;
        if (skip) h.dlogprob[t] = 0;
    }
    return h;
}

static void solve_token(Head *h, size_t t) {
    size_t D = (size_t)h->c.D, V = (size_t)h->c.V, y = (size_t)h->targets[t];
    double *z = h->z + t * V, top = -INFINITY, sum = 0;
    for (size_t v = 0; v < V; v++) {
        z[v] = 0;
        for (size_t i = 0; i < D; i++) z[v] += at(h->x, t * D + i) * at(h->w, v * D + i);
        z[v] *= (double)h->c.scale;
        top = fmax(top, z[v]);
        h->largest_logit = fmax(h->largest_logit, fabs(z[v]));
        h->mean[t] += z[v] / h->c.V;
    }
    for (size_t v = 0; v < V; v++) sum += exp(z[v] - top);
    h->lse[t] = top + log(sum);
    h->logprob[t] = z[y] - top - log(sum);
    for (size_t v = 0; v < V; v++) {
        double p = exp(z[v] - h->lse[t]);
        double c = (double)h->dlogprob[t] * (double)h->c.scale, dz = c * ((v == y) - p), whole = c * ((v == y) + p);
        h->entropy[t] -= p * (z[v] - h->lse[t]);
        for (size_t i = 0; i < D; i++) {
            double to_x = dz * at(h->w, v * D + i), to_w = dz * at(h->x, t * D + i);
            h->dx[t * D + i] += to_x, h->dx_terms[t * D + i] += fabs(to_x);
            h->dw[v * D + i] += to_w, h->dw_terms[v * D + i] += fabs(to_w);
            h->dx_whole[t * D + i] += fabs(whole * at(h->w, v * D + i));
            h->dw_whole[v * D + i] += fabs(whole * at(h->x, t * D + i));
        }
    }
}

static double *doubles(Head *h, size_t n) {
    double *p = room(h, n * sizeof *p);
    memset(p, 0, n * sizeof *p);
    return p;
}

static void solve(Head *h) {
    const Case *c = &h->c;
    size_t T = (size_t)c->T, D = (size_t)c->D, V = (size_t)c->V;
    h->z = doubles(h, T * V), h->lse = doubles(h, T), h->logprob = doubles(h, T), h->entropy = doubles(h, T);
    h->mean = doubles(h, T), h->dx = doubles(h, T * D), h->dx_terms = doubles(h, T * D);
    h->dw = doubles(h, V * D), h->dw_terms = doubles(h, V * D);
    h->dx_whole = doubles(h, T * D), h->dw_whole = doubles(h, V * D);
    for (size_t t = 0; t < T; t++)
        if (h->dlogprob[t] != 0) solve_token(h, t);
    h->rows = (RowMajor){.dtype = DTYPE_BF16, .n_views = 1, .cols = c->D, .view = {h->w}, .first_row = {0, c->V}};
    Kernels k = kernel_reference();
    bf16 *forward = room(h, panels_elements(c->V, c->D) * sizeof *forward);
    bf16 *backward = room(h, panels_elements(c->D, c->V) * sizeof *backward);
    h->forward = (Panels){c->V, c->D, NULL, &h->rows, false};
    h->backward = (Panels){c->D, c->V, NULL, &h->rows, true};
    k.bf16.pack(forward, panels_elements(PANEL_LANES, c->D), &h->forward, 0, c->V, 0, c->D);
    k.bf16.pack(backward, panels_elements(PANEL_LANES, c->V), &h->backward, 0, c->D, 0, c->V);
    h->forward.packed = forward;
    h->backward.packed = backward;
}

/* What a kernel gives. dx and dw begin as noise: dx is overwritten unless added to, dw is always added to. */
typedef struct {
    HeadResults out;
    bf16 *dx, *dx_before;
    float *dw, *dw_before, *scratch;
} Given;

static Given given(Head *h) {
    size_t T = (size_t)h->c.T, D = (size_t)h->c.D, V = (size_t)h->c.V;
    Given g = {.out = {.logprob = numbers(&h->arena, T), .lse = numbers(&h->arena, T)}};
    g.out.entropy = numbers(&h->arena, T);
    g.out.mean_logit = numbers(&h->arena, T);
    g.out.top1 = room(h, T * sizeof *g.out.top1);
    g.dx = narrow(h, noise(&h->arena, T * D, 9, 1), T * D);
    g.dx_before = room(h, T * D * sizeof *g.dx);
    memcpy(g.dx_before, g.dx, T * D * sizeof *g.dx);
    g.dw = noise(&h->arena, V * D, 8, 1);
    g.dw_before = copy(&h->arena, g.dw, V * D);
    g.scratch = numbers(&h->arena, head_scratch_bf16(h->c.T, h->c.D, 0, h->c.V));
    return g;
}

static void check_results(const Head *h, const Given *g, const char *name, bool all) {
    const double bound = 4e-6 * fmax(1, h->largest_logit);
    for (size_t t = 0; t < (size_t)h->c.T; t++) {
        const double *z = h->z + t * (size_t)h->c.V;
        if (h->dlogprob[t] == 0) {
            ck_assert(g->out.lse[t] == 0 && g->out.logprob[t] == 0);
            if (all) ck_assert(g->out.entropy[t] == 0 && g->out.mean_logit[t] == 0 && g->out.top1[t] == -1);
            continue;
        }
        double lse = fabs((double)g->out.lse[t] - h->lse[t]), logprob = fabs((double)g->out.logprob[t] - h->logprob[t]);
        if (!(lse <= bound)) ck_abort_msg("%s, V %d: lse of %zu errs by %g", name, h->c.V, t, lse);
        if (!(logprob <= bound)) ck_abort_msg("%s, V %d: logprob of %zu errs by %g", name, h->c.V, t, logprob);
        if (!all) continue;
        ck_assert_double_eq_tol((double)g->out.entropy[t], h->entropy[t], 4 * bound);
        ck_assert_double_eq_tol((double)g->out.mean_logit[t], h->mean[t], bound);
        int top = g->out.top1[t];
        ck_assert(top >= 0 && top < h->c.V);
        for (int v = 0; v < h->c.V; v++)
            if (!(z[top] >= z[v] - bound)) ck_abort_msg("%s: %d is above the top, %d", name, v, top);
    }
}

static double logit_error(const Head *h) {
    return 4e-7 * (1 + h->largest_logit);
}

/* `u` is what a factor of a product may err by, relatively: 0 for the reference. */
static void check_dx(const Head *h, const Given *g, const char *name, bool added, double u) {
    for (size_t i = 0; i < (size_t)h->c.T * (size_t)h->c.D; i++) {
        double want = h->dx[i] + (added ? at(g->dx_before, i) : 0), error = fabs(at(g->dx, i) - want);
        double bound = u * h->dx_terms[i] + logit_error(h) * h->dx_whole[i];
        bound += 0x1p-8 * (fabs(want) + bound);
        if (!(error <= bound))
            ck_abort_msg("%s, V %d: dx %zu is %g, not %g: error %.3g > %.3g", name, h->c.V, i, at(g->dx, i), want,
                         error, bound);
    }
}

static void check_dw(const Head *h, const Given *g, const char *name, double u) {
    for (size_t i = 0; i < (size_t)h->c.V * (size_t)h->c.D; i++) {
        double want = h->dw[i] + (double)g->dw_before[i], error = fabs((double)g->dw[i] - want);
        double bound = (2 * u + u * u) * h->dw_terms[i] + logit_error(h) * h->dw_whole[i] + 0x1p-22 * fabs(want);
        if (!(error <= bound))
            ck_abort_msg("%s, V %d: dw %zu is %g, not %g: error %.3g > %.3g", name, h->c.V, i, (double)g->dw[i], want,
                         error, bound);
    }
}

/* Both passes at once, then apart, then each gradient alone. */
static void check_head(Head *h, const Kernels *k) {
    const Case *c = &h->c;
    const bool exact = strcmp(k->name, "reference") == 0 || strcmp(k->name, "openblas") == 0;
    const double u = exact ? 0 : 0x1p-8;
    Given a = given(h), b = given(h), d = given(h), e = given(h);
    k->bf16.head_forward_backward(a.out, a.dx, a.dw, h->dlogprob, h->x, h->forward, h->backward, NULL, h->targets, c->T,
                                  c->scale, a.scratch);
    check_results(h, &a, k->name, true);
    check_dx(h, &a, k->name, false, u);
    check_dw(h, &a, k->name, u);

    b.out = (HeadResults){.logprob = b.out.logprob, .lse = b.out.lse};
    k->bf16.head_forward(b.out, h->x, h->forward, NULL, h->targets, h->dlogprob, c->T, c->scale, b.scratch);
    check_results(h, &b, k->name, false);
    k->bf16.head_backward(b.dx, true, b.dw, h->dlogprob, h->x, h->forward, h->backward, NULL, b.out.lse, h->targets,
                          c->T, c->scale, b.scratch);
    check_dx(h, &b, k->name, true, u);
    check_dw(h, &b, k->name, u);

    k->bf16.head_backward(d.dx, false, NULL, h->dlogprob, h->x, h->forward, h->backward, NULL, b.out.lse, h->targets,
                          c->T, c->scale, d.scratch);
    check_dx(h, &d, k->name, false, u);
    k->bf16.head_forward_backward(e.out, NULL, e.dw, h->dlogprob, h->x, h->forward, h->backward, NULL, h->targets, c->T,
                                  c->scale, e.scratch);
    check_dw(h, &e, k->name, u);
}

static void check_every_set(Head *h) {
    solve(h);
    for (int set = 0; set < N_SETS; set++)
        for (int threads = 1; threads <= 3; threads++) {
            Kernels k;
            threads_init(threads);
            if (kernel_table(&k, kernel_sets[set])) check_head(h, &k);
        }
    arena_free(&h->arena);
}

START_TEST(the_head_agrees_with_fp64_from_the_same_operands) {
    static const Case cases[] = {
        {1, 2, 1, 1, false},     {1, 7, 2, 0.7f, false},      {3, 63, 17, 1, false},
        {5, 64, 33, 0.5f, true}, {20, 288, 1000, 0.1f, true}, {33, 64, 4099, 0.3f, true},
        {4, 7, 4099, -1, false}, {1100, 8, 70, 1, true}, /* more than one block */
        {2, 100, 5, 0, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Head h = head_case(cases[i], 0.5f);
        check_every_set(&h);
    }
}
END_TEST

/* Two words, one of them with logits from −1 to 1 in small steps: a wrong power for any fraction of the exponent would
 * show in some token's log-sum-exp. */
START_TEST(powers_of_every_fraction_are_those_of_fp32) {
    enum { T = 600, D = 2, V = 2 };
    Head h = head_case((Case){T, D, V, 1, false}, 1);
    for (int i = 0; i < V * D; i++) h.w[i] = f32_to_bf16(i < D ? 0 : 1);
    for (int t = 0; t < T; t++) {
        float z = (float)t / (T / 2) - 1;
        h.x[t * D] = f32_to_bf16(z);
        h.x[t * D + 1] = f32_to_bf16(z - bf16_to_f32(h.x[t * D]));
    }
    check_every_set(&h);
}
END_TEST

/* Logits that rise, or fall, by 400 nats along the vocabulary, which is 577 bits: more than fp32 and bf16 can hold for
 * any one reference. Words are taken a few hundred at a time, so the first piece's reference is exceeded several times
 * in each thread's part and between the parts; results that had kept it would be infinite or NaN. Targets lie
 * everywhere, most where p is 0. */
START_TEST(logits_of_any_rise_give_exact_gradients) {
    enum { T = 6, D = 3, V = 4099 };
    Head h = head_case((Case){T, D, V, 1, false}, 0.5f);
    for (int v = 0; v < V; v++) h.w[v * D] = f32_to_bf16((float)(v - V / 2) / (V / 2));
    for (int t = 0; t < T; t++) {
        h.x[t * D] = f32_to_bf16(t % 2 ? -200.0f : 200.0f);
        h.targets[t] = t < 2 ? V / 3 : t < 4 ? V - 1 : 0;
    }
    check_every_set(&h);
}
END_TEST

/* Among equal logits the lowest id, wherever pieces and threads' parts meet. */
START_TEST(of_equal_logits_the_first_is_the_top_one) {
    enum { T = 2, D = 4, V = 2000 };
    for (int set = 0; set < N_SETS; set++)
        for (int threads = 1; threads <= 3; threads++)
            for (int first = 0; first < V; first += 97) {
                Head h = head_case((Case){T, D, V, 1, false}, 0.5f);
                for (int v = first; v < V; v += v - first < 40 ? 3 : 479)
                    for (int i = 0; i < D; i++) h.w[v * D + i] = f32_to_bf16(9);
                for (int i = 0; i < T * D; i++) h.x[i] = f32_to_bf16(1);
                h.rows = (RowMajor){DTYPE_BF16, 1, D, {h.w}, {0, V}, NULL};
                h.forward = (Panels){V, D, NULL, &h.rows, false};
                Given g = given(&h);
                Kernels k;
                threads_init(threads);
                if (kernel_table(&k, kernel_sets[set])) {
                    k.bf16.head_forward(g.out, h.x, h.forward, NULL, h.targets, NULL, T, 1, given(&h).scratch);
                    for (int t = 0; t < T; t++) ck_assert_int_eq(g.out.top1[t], first);
                }
                arena_free(&h.arena);
            }
}
END_TEST

START_TEST(skipped_tokens_have_zeros_and_their_targets_are_not_read) {
    enum { T = 5, D = 40, V = 50 };
    for (int set = 0; set < N_SETS; set++) {
        Head h = head_case((Case){T, D, V, 1, false}, 1);
        for (int t = 0; t < T; t++) h.dlogprob[t] = 0, h.targets[t] = INT32_MAX - t;
        solve(&h);
        Kernels k;
        if (kernel_table(&k, kernel_sets[set])) check_head(&h, &k);
        arena_free(&h.arena);
    }
}
END_TEST

/* Word `place` has the row (2e38, 2e38): its logit is a number for the hidden state (1, 0) and infinite for (1, 1). */
START_TEST(an_infinite_logit_makes_the_logprob_of_its_token_nan_and_no_other) {
    enum { T = 3, D = 2, V = 1200 };
    const float x[T * D] = {1, 0, 1, 1, 1, 0};
    for (int set = 0; set < N_SETS; set++)
        for (int place = 0; place < V; place += 171) {
            Head h = head_case((Case){T, D, V, 1, false}, 1);
            for (int i = 0; i < T * D; i++) h.x[i] = f32_to_bf16(x[i]);
            h.w[place * D] = h.w[place * D + 1] = f32_to_bf16(2e38f);
            for (int t = 0; t < T; t++) h.dlogprob[t] = 1;
            solve(&h);
            Given g = given(&h);
            Kernels k;
            threads_init(2);
            if (kernel_table(&k, kernel_sets[set])) {
                k.bf16.head_forward_backward(g.out, g.dx, g.dw, h.dlogprob, h.x, h.forward, h.backward, NULL, h.targets,
                                             T, 1, given(&h).scratch);
                for (int t = 0; t < T; t++) ck_assert_int_eq(isnan(g.out.logprob[t]) != 0, t == 1);
                for (int t = 0; t < T; t++) ck_assert_int_eq(isnan(g.out.lse[t]) != 0, t == 1);
            }
            arena_free(&h.arena);
        }
}
END_TEST

START_TEST(a_nan_weight_shows_in_every_logprob) {
    enum { T = 3, D = 2, V = 1200 };
    for (int set = 0; set < N_SETS; set++)
        for (int place = 0; place < V; place += 171) {
            Head h = head_case((Case){T, D, V, 1, false}, 1);
            h.w[place * D] = f32_to_bf16(NAN);
            solve(&h);
            Given g = given(&h);
            Kernels k;
            threads_init(2);
            if (kernel_table(&k, kernel_sets[set])) {
                k.bf16.head_forward(g.out, h.x, h.forward, NULL, h.targets, NULL, T, 1, given(&h).scratch);
                for (int t = 0; t < T; t++) ck_assert_msg(isnan(g.out.logprob[t]), "%s: hidden at %d", k.name, place);
            }
            arena_free(&h.arena);
        }
}
END_TEST

typedef struct {
    bf16 *dx;
    float *dw, *logprob;
} Bits;

static Bits run(Head *h, const Kernels *k, const Panels *forward, const Panels *backward) {
    Given g = given(h);
    k->bf16.head_forward_backward(g.out, g.dx, g.dw, h->dlogprob, h->x, *forward, *backward, NULL, h->targets, h->c.T,
                                  h->c.scale, g.scratch);
    return (Bits){g.dx, g.dw, g.out.logprob};
}

static bool same(const Head *h, Bits a, Bits b) {
    size_t T = (size_t)h->c.T, D = (size_t)h->c.D, V = (size_t)h->c.V;
    return memcmp(a.dx, b.dx, T * D * sizeof *a.dx) == 0 && memcmp(a.dw, b.dw, V * D * sizeof *a.dw) == 0 &&
           memcmp(a.logprob, b.logprob, T * sizeof *a.logprob) == 0;
}

/* Other threads have other references and partial sums. The first change nothing, the second a few bits of fp32, and so
 * here and there the rounding of a factor c·x to bf16. */
START_TEST(the_head_gives_the_same_bits_in_every_run_and_nearly_for_any_number_of_threads) {
    const Case c = {100, 33, 1500, 1, true};
    for (int set = 0; set < N_SETS; set++) {
        Head h = head_case(c, 0.5f);
        solve(&h);
        Bits first[4] = {{0}};
        for (int threads = 1; threads <= 3; threads++) {
            Kernels k;
            threads_init(threads);
            if (!kernel_table(&k, kernel_sets[set])) break;
            first[threads] = run(&h, &k, &h.forward, &h.backward);
            ck_assert(same(&h, first[threads], run(&h, &k, &h.forward, &h.backward)));
            CHECK_CLOSE(first[threads].logprob, first[1].logprob, (size_t)c.T, 1e-6, "%s: logprob", k.name);
            CHECK_CLOSE(first[threads].dw, first[1].dw, (size_t)c.V * (size_t)c.D, 0x1p-9, "%s: dw", k.name);
        }
        arena_free(&h.arena);
    }
}
END_TEST

START_TEST(weights_packed_on_the_way_give_the_bits_of_weights_packed_before) {
    const Case cases[] = {{30, 70, 1500, 1, true}, {3, 9, 5, 1, false}};
    for (int set = 0; set < N_SETS; set++)
        for (int i = 0; i < 2; i++) {
            Head h = head_case(cases[i], 0.5f);
            solve(&h);
            Kernels k;
            threads_init(2);
            if (kernel_table(&k, kernel_sets[set])) {
                Panels forward = h.forward, backward = h.backward;
                forward.packed = backward.packed = NULL;
                ck_assert(same(&h, run(&h, &k, &forward, &backward), run(&h, &k, &h.forward, &h.backward)));
            }
            arena_free(&h.arena);
        }
}
END_TEST

CHECK_MAIN("kernels: head in bf16", the_head_agrees_with_fp64_from_the_same_operands,
           powers_of_every_fraction_are_those_of_fp32, logits_of_any_rise_give_exact_gradients,
           of_equal_logits_the_first_is_the_top_one, skipped_tokens_have_zeros_and_their_targets_are_not_read,
           an_infinite_logit_makes_the_logprob_of_its_token_nan_and_no_other, a_nan_weight_shows_in_every_logprob,
           the_head_gives_the_same_bits_in_every_run_and_nearly_for_any_number_of_threads,
           weights_packed_on_the_way_give_the_bits_of_weights_packed_before)
