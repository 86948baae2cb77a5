/* The head's kernels: the reference against fp64 slopes, every faster set against the reference. Errors are relative to
 * the largest element of an array; an ulp is 1.2e-7. */
#include "tests/kernel_check.h"

static const double ulp = 1.1920929e-7;

typedef struct {
    int T, D, V;
    double scale;
    double *x, *w, *dlogprob;
    const int32_t *targets;
} Head;

static double head_logit(const Head *h, int t, int v) {
    double sum = 0;
    for (int i = 0; i < h->D; i++) sum += h->x[t * h->D + i] * h->w[v * h->D + i];
    return h->scale * sum;
}

static double head_lse(const Head *h, int t) {
    double sum = 0;
    for (int v = 0; v < h->V; v++) sum += exp(head_logit(h, t, v));
    return log(sum);
}

static double head_loss(const void *context) {
    const Head *h = context;
    double loss = 0;
    for (int t = 0; t < h->T; t++)
        if (h->dlogprob[t] != 0) loss += h->dlogprob[t] * (head_logit(h, t, h->targets[t]) - head_lse(h, t));
    return loss;
}

START_TEST(the_reference_head_has_the_slopes_of_its_formula) {
    enum { T = 4, D = 5, V = 7 };
    const int32_t targets[T] = {3, 0, -1, 6};
    const float dlogprob[T] = {-1, 0.5f, 0, 2}, scale = 0.7f;
    Arena arena = {0};
    Kernels k = kernel_reference();
    float *x = noise(&arena, T * D, 1, 1), *w = noise(&arena, V * D, 2, 1);
    float *dw = numbers(&arena, V * D), dx[T * D], logprob[T], lse[T], entropy[T], mean[T];
    int32_t top1[T];
    float *scratch = numbers(&arena, head_scratch(T, D, 0, V));
    HeadResults out = {logprob, lse, entropy, top1, mean};
    Head head = {T, D, V, (double)scale, widen(&arena, x, T * D), widen(&arena, w, V * D), NULL, targets};
    head.dlogprob = widen(&arena, dlogprob, T);
    k.head_forward_backward(out, dx, dw, dlogprob, x, w, NULL, targets, T, D, V, scale, scratch);
    for (int t = 0; t < T; t++) {
        if (dlogprob[t] == 0) {
            ck_assert(logprob[t] == 0 && lse[t] == 0 && entropy[t] == 0 && top1[t] == -1 && mean[t] == 0);
            continue;
        }
        double l = head_lse(&head, t), sum = 0, h = 0;
        int top = 0;
        for (int v = 0; v < V; v++) {
            double z = head_logit(&head, t, v);
            sum += z;
            h -= exp(z - l) * (z - l);
            if (z > head_logit(&head, t, top)) top = v;
        }
        ck_assert_double_eq_tol((double)lse[t], l, 1e-6);
        ck_assert_double_eq_tol((double)logprob[t], head_logit(&head, t, targets[t]) - l, 1e-6);
        ck_assert_double_eq_tol((double)entropy[t], h, 1e-6);
        ck_assert_double_eq_tol((double)mean[t], sum / V, 1e-6);
        ck_assert_int_eq(top1[t], top);
    }
    check_slopes("dx", dx, head.x, T * D, head_loss, &head, 1e-6);
    check_slopes("dw", dw, head.w, V * D, head_loss, &head, 1e-6);
    arena_free(&arena);
}
END_TEST

typedef struct {
    int T, D, V;
    bool masked; /* every third token skipped */
} Case;
static const Case head_cases[] = {
    {1, 1, 1, false},     {3, 8, 2, false},     {5, 17, 33, true},   {40, 64, 512, true},
    {70, 24, 1031, true}, {600, 16, 300, true}, {9, 5, 4099, false}, /* 600 tokens are more than one block */
};
enum { N_CASES = sizeof head_cases / sizeof *head_cases };

typedef struct {
    float *logprob, *lse, *entropy, *mean, *dx, *dw;
    int32_t *top1;
} Results;

static Results results(Arena *arena, const Case *c) {
    size_t T = (size_t)c->T, D = (size_t)c->D, V = (size_t)c->V;
    Results r = {numbers(arena, T),
                 numbers(arena, T),
                 numbers(arena, T),
                 numbers(arena, T),
                 noise(arena, T * D, 9, 1),
                 noise(arena, V * D, 8, 1),
                 NULL};
    r.top1 = arena_alloc(arena, T * sizeof *r.top1);
    return r;
}

/* Gradients are fp32 sums over the vocabulary or the tokens: 32 ulp of the largest for up to 4,099 terms. */
static void compare(const Results *a, const Results *b, const Case *c, const char *name) {
    size_t T = (size_t)c->T, D = (size_t)c->D, V = (size_t)c->V;
    CHECK_CLOSE(a->logprob, b->logprob, T, 8 * ulp, "%s: logprob, V %d", name, c->V);
    CHECK_CLOSE(a->lse, b->lse, T, 8 * ulp, "%s: lse, V %d", name, c->V);
    for (size_t t = 0; t < T; t++) { /* absolute: an entropy may be all but 0; logits of 10 err by 1e-6 */
        ck_assert_double_eq_tol((double)a->entropy[t], (double)b->entropy[t], 5e-6);
        ck_assert_double_eq_tol((double)a->mean[t], (double)b->mean[t], 2e-6);
    }
    ck_assert(memcmp(a->top1, b->top1, T * sizeof *a->top1) == 0);
    CHECK_CLOSE_TO(1, a->dx, b->dx, T * D, 32 * ulp, "%s: dx, V %d", name, c->V);
    CHECK_CLOSE_TO(1, a->dw, b->dw, V * D, 32 * ulp, "%s: dw, V %d", name, c->V);
}

START_TEST(the_head_agrees_with_the_reference) {
    for (int set = 1; set < N_SETS; set++)
        for (int i = 0; i < N_CASES; i++) {
            const Case *c = &head_cases[i];
            size_t T = (size_t)c->T, D = (size_t)c->D, V = (size_t)c->V;
            Arena arena = {0};
            Kernels slow = kernel_reference(), fast;
            if (!kernel_table(&fast, kernel_sets[set])) continue;
            float *x = noise(&arena, T * D, 1, 1), *w = noise(&arena, V * D, 2, 0.5f);
            float *dlogprob = noise(&arena, T, 3, 1), *scratch = numbers(&arena, head_scratch(c->T, c->D, 0, c->V));
            int32_t *targets = arena_alloc(&arena, T * sizeof *targets);
            for (int t = 0; t < c->T; t++) {
                bool skip = c->masked && t % 3 == 1;
                targets[t] = skip ? -100 : (t * 7) % c->V;
                if (skip) dlogprob[t] = 0;
            }
            Results a = results(&arena, c), b = results(&arena, c), e = results(&arena, c);
            HeadResults to_a = {a.logprob, a.lse, a.entropy, a.top1, a.mean};
            HeadResults to_b = {b.logprob, b.lse, b.entropy, b.top1, b.mean};
            slow.head_forward_backward(to_a, a.dx, a.dw, dlogprob, x, w, NULL, targets, c->T, c->D, c->V, 0.9f,
                                       scratch);
            fast.head_forward_backward(to_b, b.dx, b.dw, dlogprob, x, w, NULL, targets, c->T, c->D, c->V, 0.9f,
                                       scratch);
            compare(&b, &a, c, fast.name);

            /* the passes apart, and adding to dx */
            HeadResults to_e = {e.logprob, e.lse, NULL, NULL, NULL};
            fast.head_forward(to_e, x, w, NULL, targets, dlogprob, c->T, c->D, c->V, 0.9f, scratch);
            float *before = copy(&arena, e.dx, T * D);
            fast.head_backward(e.dx, true, e.dw, dlogprob, x, w, NULL, e.lse, targets, c->T, c->D, c->V, 0.9f, scratch);
            for (size_t j = 0; j < T * D; j++) before[j] += a.dx[j];
            CHECK_CLOSE_TO(1, e.dx, before, T * D, 32 * ulp, "%s: dx added, V %d", fast.name, c->V);
            CHECK_CLOSE_TO(1, e.dw, a.dw, V * D, 32 * ulp, "%s: dw apart, V %d", fast.name, c->V);
            CHECK_CLOSE(e.logprob, a.logprob, T, 8 * ulp, "%s: logprob apart, V %d", fast.name, c->V);

            /* one gradient at a time; with dx overwritten, skipped rows are 0 */
            float *dw = noise(&arena, V * D, 8, 1), *dx = noise(&arena, T * D, 9, 1);
            fast.head_backward(NULL, false, dw, dlogprob, x, w, NULL, e.lse, targets, c->T, c->D, c->V, 0.9f, scratch);
            fast.head_backward(dx, false, NULL, dlogprob, x, w, NULL, e.lse, targets, c->T, c->D, c->V, 0.9f, scratch);
            CHECK_CLOSE_TO(1, dw, a.dw, V * D, 32 * ulp, "%s: dw alone, V %d", fast.name, c->V);
            CHECK_CLOSE_TO(1, dx, a.dx, T * D, 32 * ulp, "%s: dx alone, V %d", fast.name, c->V);
            arena_free(&arena);
        }
}
END_TEST

START_TEST(large_logits_neither_overflow_nor_lose_the_loss) {
    enum { T = 2, D = 2, V = 40 };
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        float x[T * D] = {1, 0, 1, 0}, *w = numbers(&arena, V * D), logprob[T], lse[T];
        float *scratch = numbers(&arena, head_scratch(T, D, 0, V));
        const int32_t targets[T] = {5, 6};
        for (int v = 0; v < V; v++) w[v * D] = v == 5 ? 30000.0f : -30000.0f;
        k.head_forward((HeadResults){.logprob = logprob, .lse = lse}, x, w, NULL, targets, NULL, T, D, V, 1, scratch);
        ck_assert(logprob[0] == 0 && logprob[1] == -60000.0f && lse[0] == 30000.0f);
        arena_free(&arena);
    }
}
END_TEST

/* Word `place` has the row (3e38, 3e38): its logit is a number for the hidden state (1, 0) and infinite for (1, 1). */
START_TEST(an_infinite_logit_makes_the_logprob_of_its_token_nan_and_no_other) {
    enum { T = 3, D = 2, V = 37 };
    const float x[T * D] = {1, 0, 1, 1, 1, 0}, dlogprob[T] = {1, 1, 1};
    const int32_t targets[T] = {1, 2, 3};
    for (int set = 0; set < N_SETS; set++)
        for (int place = 0; place < V; place += 9) {
            Arena arena = {0};
            Kernels k;
            if (!kernel_table(&k, kernel_sets[set])) continue;
            float *w = noise(&arena, V * D, 1, 1), *dw = numbers(&arena, V * D), logprob[T], lse[T], dx[T * D];
            float *scratch = numbers(&arena, head_scratch(T, D, 0, V));
            HeadResults out = {.logprob = logprob, .lse = lse};
            w[place * D] = w[place * D + 1] = 3e38f;
            k.head_forward_backward(out, dx, dw, dlogprob, x, w, NULL, targets, T, D, V, 1, scratch);
            for (int t = 0; t < T; t++) ck_assert_int_eq(isnan(logprob[t]) != 0, t == 1);
            arena_free(&arena);
        }
}
END_TEST

START_TEST(a_nan_weight_shows_in_every_logprob) {
    enum { T = 3, D = 2, V = 37 };
    const int32_t targets[T] = {1, 2, 3};
    for (int set = 0; set < N_SETS; set++)
        for (int place = 0; place < V; place += 9) {
            Arena arena = {0};
            Kernels k;
            if (!kernel_table(&k, kernel_sets[set])) continue;
            float *x = noise(&arena, T * D, 2, 1), *w = noise(&arena, V * D, 1, 1), logprob[T], lse[T];
            float *scratch = numbers(&arena, head_scratch(T, D, 0, V));
            w[place * D] = NAN;
            k.head_forward((HeadResults){.logprob = logprob, .lse = lse}, x, w, NULL, targets, NULL, T, D, V, 1,
                           scratch);
            for (int t = 0; t < T; t++) ck_assert_msg(isnan(logprob[t]), "%s: hidden at %d", k.name, place);
            arena_free(&arena);
        }
}
END_TEST

/* Two runs on one thread, two on two: the same bits for the same number of threads, and the products of OpenBLAS within
 * the bound of compare() between the two numbers. */
START_TEST(the_head_gives_the_same_bits_in_every_run_and_nearly_for_any_number_of_threads) {
    enum { T = 100, D = 33, V = 1000, RUNS = 4 };
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        float *x = noise(&arena, T * D, 1, 1), *w = noise(&arena, V * D, 2, 1), *d = noise(&arena, T, 3, 1);
        float *dx[RUNS], *dw[RUNS], lse[T], logprob[RUNS][T];
        int32_t targets[T];
        bool available = true;
        for (int t = 0; t < T; t++) targets[t] = t;
        for (int run = 0; run < RUNS && available; run++) {
            Kernels k;
            threads_init(1 + run / 2);
            if (!(available = kernel_table(&k, kernel_sets[set]))) break;
            float *scratch = numbers(&arena, head_scratch(T, D, 0, V));
            dx[run] = numbers(&arena, T * D), dw[run] = numbers(&arena, V * D);
            HeadResults out = {.logprob = logprob[run], .lse = lse};
            k.head_forward_backward(out, dx[run], dw[run], d, x, w, NULL, targets, T, D, V, 1, scratch);
        }
        for (int run = 0; run < RUNS && available; run += 2) {
            ck_assert(memcmp(dx[run], dx[run + 1], T * D * sizeof(float)) == 0);
            ck_assert(memcmp(dw[run], dw[run + 1], V * D * sizeof(float)) == 0);
            ck_assert(memcmp(logprob[run], logprob[run + 1], T * sizeof(float)) == 0);
            CHECK_CLOSE(dx[run], dx[0], T * D, 8 * ulp, "%s: dx", kernel_sets[set]);
            CHECK_CLOSE(dw[run], dw[0], V * D, 8 * ulp, "%s: dw", kernel_sets[set]);
            CHECK_CLOSE(logprob[run], logprob[0], T, 8 * ulp, "%s: logprob", kernel_sets[set]);
        }
        arena_free(&arena);
    }
}
END_TEST

CHECK_MAIN("kernels: head", the_reference_head_has_the_slopes_of_its_formula, the_head_agrees_with_the_reference,
           large_logits_neither_overflow_nor_lose_the_loss,
           an_infinite_logit_makes_the_logprob_of_its_token_nan_and_no_other, a_nan_weight_shows_in_every_logprob,
           the_head_gives_the_same_bits_in_every_run_and_nearly_for_any_number_of_threads)
