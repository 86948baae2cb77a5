/* The head's kernels with an adapter: the reference of fp32 against fp64 slopes, every faster set against the
 * reference, with and without gains, with some tokens skipped and in more than one block; and an adapter that adds
 * nothing, which changes no bit. */
#include "tests/kernel_check.h"

static const double ulp = 1.1920929e-7;

typedef struct {
    int T, D, R, V;
    bool gains;
    float scale;
} Case;
static const Case head_cases[] = {{1, 3, 1, 2, false, 1},         {5, 17, 3, 33, true, 0.7f},
                                  {40, 64, 8, 512, false, -0.9f}, {70, 24, 5, 1031, true, 1.3f},
                                  {600, 16, 4, 300, true, 0.9f},  {530, 33, 16, 901, false, 1}};
enum { N_CASES = sizeof head_cases / sizeof *head_cases };

/* What goes in, and room for what comes out of fp32 kernels, or of those of bf16. */
typedef struct {
    Arena arena;
    Case c;
    float *x, *w, *u, *b, *gains, *dlogprob;
    int32_t *targets;
    HeadResults out;
    float *dx, *dw, *du, *db, *dlog_gains, *scratch; /* dx and du: bf16 where the kernels are */
} Data;

static Data data_new(Case c) {
    Data d = {.c = c};
    size_t T = (size_t)c.T, D = (size_t)c.D, R = (size_t)c.R, V = (size_t)c.V;
    d.x = noise(&d.arena, T * D, 1, 1), d.w = noise(&d.arena, V * D, 2, 0.3f);
    d.u = noise(&d.arena, T * R, 3, 1), d.b = noise(&d.arena, V * R, 4, 0.3f);
    d.gains = noise(&d.arena, V, 5, 0.2f), d.dlogprob = noise(&d.arena, T, 6, 1);
    d.targets = arena_alloc(&d.arena, T * sizeof *d.targets);
    for (size_t v = 0; v < V; v++) d.gains[v] += 1;
    for (int t = 0; t < c.T; t++) {
        d.targets[t] = t % 3 == 1 ? -100 : (t * 7) % c.V;
        if (t % 3 == 1) d.dlogprob[t] = 0;
    }
    d.out = (HeadResults){.logprob = numbers(&d.arena, T), .lse = numbers(&d.arena, T)};
    d.dx = numbers(&d.arena, T * D), d.dw = numbers(&d.arena, V * D);
    d.du = numbers(&d.arena, T * R), d.db = numbers(&d.arena, V * R), d.dlog_gains = numbers(&d.arena, V);
    size_t wide = head_scratch(c.T, c.D, c.R, c.V), narrow = head_scratch_bf16(c.T, c.D, c.R, c.V);
    d.scratch = numbers(&d.arena, wide > narrow ? wide : narrow);
    return d;
}

static void clear(Data *d) {
    size_t T = (size_t)d->c.T, D = (size_t)d->c.D, R = (size_t)d->c.R, V = (size_t)d->c.V;
    memset(d->dx, 0xff, T * D * sizeof(float)), memset(d->du, 0xff, T * R * sizeof(float)); /* NaN */
    memset(d->dw, 0, V * D * sizeof(float)), memset(d->db, 0, V * R * sizeof(float));
    memset(d->dlog_gains, 0, V * sizeof(float));
}

static HeadAdapter adapter_of(const Data *d) {
    return (HeadAdapter){.rank = d->c.R,
                         .u = d->u,
                         .b = d->b,
                         .gains = d->c.gains ? d->gains : NULL,
                         .du = d->du,
                         .db = d->db,
                         .dlog_gains = d->dlog_gains};
}

/* ---- fp32 ---- */

/* apart: the two passes, in which the second computes the logits again. */
static void run(const Kernels *k, Data *d, bool apart) {
    const Case *c = &d->c;
    HeadAdapter adapter = adapter_of(d);
    clear(d);
    if (!apart) {
        k->head_forward_backward(d->out, d->dx, d->dw, d->dlogprob, d->x, d->w, &adapter, d->targets, c->T, c->D, c->V,
                                 c->scale, d->scratch);
        return;
    }
    k->head_forward(d->out, d->x, d->w, &adapter, d->targets, d->dlogprob, c->T, c->D, c->V, c->scale, d->scratch);
    k->head_backward(d->dx, false, d->dw, d->dlogprob, d->x, d->w, &adapter, d->out.lse, d->targets, c->T, c->D, c->V,
                     c->scale, d->scratch);
}

typedef struct {
    const Data *d;
    double *x, *w, *u, *b, *log_gains;
} Wide;

static double loss(const void *context) {
    const Wide *s = context;
    const Case *c = &s->d->c;
    double total = 0;
    for (int t = 0; t < c->T; t++) {
        double sum = 0, target = 0;
        if (s->d->dlogprob[t] == 0) continue;
        for (int v = 0; v < c->V; v++) {
            double z = 0;
            for (int i = 0; i < c->D; i++) z += s->x[t * c->D + i] * s->w[v * c->D + i];
            for (int k = 0; k < c->R; k++) z += s->u[t * c->R + k] * s->b[v * c->R + k];
            z *= (double)c->scale * exp(s->log_gains[v]);
            sum += exp(z);
            if (v == s->d->targets[t]) target = z;
        }
        total += (double)s->d->dlogprob[t] * (target - log(sum));
    }
    return total;
}

START_TEST(the_reference_has_the_slopes_of_its_formula) {
    Data d = data_new((Case){5, 4, 3, 7, true, 0.7f});
    const size_t T = 5, D = 4, R = 3, V = 7;
    Kernels k = kernel_reference();
    run(&k, &d, false);
    Wide s = {&d,
              widen(&d.arena, d.x, T * D),
              widen(&d.arena, d.w, V * D),
              widen(&d.arena, d.u, T * R),
              widen(&d.arena, d.b, V * R),
              widen(&d.arena, d.gains, V)};
    for (size_t v = 0; v < V; v++) s.log_gains[v] = log(s.log_gains[v]);
    check_slopes("dx", d.dx, s.x, T * D, loss, &s, 1e-6);
    check_slopes("dw", d.dw, s.w, V * D, loss, &s, 1e-6);
    check_slopes("du", d.du, s.u, T * R, loss, &s, 1e-6);
    check_slopes("db", d.db, s.b, V * R, loss, &s, 1e-6);
    check_slopes("dlog_gains", d.dlog_gains, s.log_gains, V, loss, &s, 1e-6);
    arena_free(&d.arena);
}
END_TEST

START_TEST(every_set_agrees_with_the_reference) {
    for (int set = 1; set < N_SETS; set++)
        for (int i = 0; i < N_CASES; i++)
            for (int apart = 0; apart < 2; apart++) {
                Kernels slow = kernel_reference(), fast;
                if (!kernel_table(&fast, kernel_sets[set])) continue;
                Data a = data_new(head_cases[i]), b = data_new(head_cases[i]);
                const Case *c = &head_cases[i];
                size_t T = (size_t)c->T, D = (size_t)c->D, R = (size_t)c->R, V = (size_t)c->V;
                run(&slow, &a, false);
                run(&fast, &b, apart);
                CHECK_CLOSE(b.out.logprob, a.out.logprob, T, 8 * ulp, "%s: logprob, case %d", fast.name, i);
                CHECK_CLOSE_TO(1, b.dx, a.dx, T * D, 32 * ulp, "%s: dx, case %d", fast.name, i);
                CHECK_CLOSE_TO(1, b.dw, a.dw, V * D, 32 * ulp, "%s: dw, case %d", fast.name, i);
                CHECK_CLOSE_TO(1, b.du, a.du, T * R, 32 * ulp, "%s: du, case %d", fast.name, i);
                CHECK_CLOSE_TO(1, b.db, a.db, V * R, 32 * ulp, "%s: db, case %d", fast.name, i);
                CHECK_CLOSE_TO(1, b.dlog_gains, a.dlog_gains, V, 32 * ulp, "%s: gains, case %d", fast.name, i);
                arena_free(&a.arena);
                arena_free(&b.arena);
            }
}
END_TEST

/* ---- bf16 ---- */

typedef struct {
    bf16 *x, *w, *u, *b;
    RowMajor w_rows, b_rows;
    Panels forward, backward;
    HeadAdapter adapter;
} Narrow;

static bf16 *narrow(Arena *arena, const float *from, size_t n) {
    bf16 *to = arena_alloc(arena, n * sizeof *to + 64);
    for (size_t i = 0; i < n; i++) to[i] = f32_to_bf16(from[i]);
    return to;
}

static Panels packed(Arena *arena, const RowMajor *rows, int lanes, int depth, bool transposed) {
    Panels p = {lanes, depth, NULL, rows, transposed};
    bf16 *to = arena_alloc(arena, panels_elements(lanes, depth) * sizeof *to);
    kernels()->bf16.pack(to, panels_elements(PANEL_LANES, depth), &p, 0, lanes, 0, depth);
    p.packed = to;
    return p;
}

/* The matrix itself packed, or (a frozen one) packed as it is used. */
static void narrow_of(Narrow *n, Data *d, bool pack) {
    const Case *c = &d->c;
    size_t T = (size_t)c->T, D = (size_t)c->D, R = (size_t)c->R, V = (size_t)c->V;
    n->x = narrow(&d->arena, d->x, T * D), n->w = narrow(&d->arena, d->w, V * D);
    n->u = narrow(&d->arena, d->u, T * R), n->b = narrow(&d->arena, d->b, V * R);
    n->w_rows = (RowMajor){.dtype = DTYPE_BF16, .n_views = 1, .cols = c->D, .view = {n->w}, .first_row = {0, c->V}};
    n->b_rows = (RowMajor){.dtype = DTYPE_BF16, .n_views = 1, .cols = c->R, .view = {n->b}, .first_row = {0, c->V}};
    n->forward = packed(&d->arena, &n->w_rows, c->V, c->D, false);
    n->backward = packed(&d->arena, &n->w_rows, c->D, c->V, true);
    if (!pack) n->forward.packed = n->backward.packed = NULL;
    n->adapter = adapter_of(d);
    n->adapter.u = n->u;
    n->adapter.forward = packed(&d->arena, &n->b_rows, c->V, c->R, false);
    n->adapter.backward = packed(&d->arena, &n->b_rows, c->R, c->V, true);
}

static void run_narrow(const Kernels *k, Data *d, const Narrow *n, bool apart) {
    const Case *c = &d->c;
    bf16 *dx = (bf16 *)(void *)d->dx;
    clear(d);
    if (!apart) {
        k->bf16.head_forward_backward(d->out, dx, d->dw, d->dlogprob, n->x, n->forward, n->backward, &n->adapter,
                                      d->targets, c->T, c->scale, d->scratch);
        return;
    }
    k->bf16.head_forward(d->out, n->x, n->forward, &n->adapter, d->targets, d->dlogprob, c->T, c->scale, d->scratch);
    k->bf16.head_backward(dx, false, d->dw, d->dlogprob, n->x, n->forward, n->backward, &n->adapter, d->out.lse,
                          d->targets, c->T, c->scale, d->scratch);
}

/* ‖a − b‖ / ‖b‖ of fp32 arrays, or of bf16. */
static double distance(const void *a, const void *b, Dtype dtype, size_t n) {
    double apart = 0, whole = 0;
    for (size_t i = 0; i < n; i++) {
        double x = dtype == DTYPE_BF16 ? (double)bf16_to_f32(((const bf16 *)a)[i]) : (double)((const float *)a)[i];
        double y = dtype == DTYPE_BF16 ? (double)bf16_to_f32(((const bf16 *)b)[i]) : (double)((const float *)b)[i];
        apart += (x - y) * (x - y);
        whole += y * y;
    }
    return whole > 0 ? sqrt(apart / whole) : apart;
}

/* Where the reference has fp64, the fast ones round each dz, with gains twice, and each f·u to bf16: 2^-9 relative each
 * at most, in results 2^-9; the norm of a sum of many is far within their sum. */
static const double narrow_bound = 6 * 0x1p-9;

START_TEST(in_bf16_every_set_agrees_with_the_reference) {
    for (int set = 2; set < N_SETS; set++)
        for (int i = 0; i < N_CASES; i++)
            for (int way = 0; way < 4; way++) {
                Kernels slow = kernel_reference(), fast;
                Data a = data_new(head_cases[i]), b = data_new(head_cases[i]);
                const Case *c = &head_cases[i];
                size_t T = (size_t)c->T, D = (size_t)c->D, R = (size_t)c->R, V = (size_t)c->V;
                Narrow of_a, of_b;
                narrow_of(&of_a, &a, true);
                run_narrow(&slow, &a, &of_a, false);
                if (kernel_table(&fast, kernel_sets[set])) {
                    narrow_of(&of_b, &b, way & 1);
                    run_narrow(&fast, &b, &of_b, way & 2);
                    CHECK_CLOSE_TO(1, b.out.logprob, a.out.logprob, T, 8e-6, "%s: logprob, case %d", fast.name, i);
                    const double found[] = {
                        distance(b.dx, a.dx, DTYPE_BF16, T * D), distance(b.dw, a.dw, DTYPE_F32, V * D),
                        distance(b.du, a.du, DTYPE_BF16, T * R), distance(b.db, a.db, DTYPE_F32, V * R),
                        distance(b.dlog_gains, a.dlog_gains, DTYPE_F32, c->gains ? V : 0)};
                    for (int g = 0; g < 5; g++)
                        ck_assert_msg(found[g] <= narrow_bound, "%s, case %d, way %d: gradient %d is %g away",
                                      fast.name, i, way, g, found[g]);
                }
                arena_free(&a.arena);
                arena_free(&b.arena);
            }
}
END_TEST

/* ---- nothing added ---- */

START_TEST(an_adapter_that_adds_nothing_changes_no_bit) {
    for (int set = 0; set < N_SETS; set++)
        for (int i = 0; i < N_CASES; i++) {
            Kernels k;
            if (!kernel_table(&k, kernel_sets[set])) continue;
            Data with = data_new(head_cases[i]), without = data_new(head_cases[i]);
            const Case *c = &head_cases[i];
            size_t T = (size_t)c->T, D = (size_t)c->D, V = (size_t)c->V;
            memset(with.b, 0, V * (size_t)c->R * sizeof *with.b);
            for (size_t v = 0; v < V; v++) with.gains[v] = 1;
            run(&k, &with, false);
            clear(&without);
            k.head_forward_backward(without.out, without.dx, without.dw, without.dlogprob, without.x, without.w, NULL,
                                    without.targets, c->T, c->D, c->V, c->scale, without.scratch);
            ck_assert_mem_eq(with.out.lse, without.out.lse, T * sizeof(float));
            ck_assert_mem_eq(with.out.logprob, without.out.logprob, T * sizeof(float));
            ck_assert_mem_eq(with.dx, without.dx, T * D * sizeof(float));
            if (k.bf16.head_forward) {
                Narrow n;
                narrow_of(&n, &with, true);
                run_narrow(&k, &with, &n, false);
                k.bf16.head_forward_backward(without.out, (bf16 *)(void *)without.dx, without.dw, without.dlogprob, n.x,
                                             n.forward, n.backward, NULL, without.targets, c->T, c->scale,
                                             without.scratch);
                ck_assert_mem_eq(with.out.lse, without.out.lse, T * sizeof(float));
                ck_assert_mem_eq(with.dx, without.dx, T * D * sizeof(bf16));
            }
            arena_free(&with.arena);
            arena_free(&without.arena);
        }
}
END_TEST

CHECK_MAIN("head_adapter", the_reference_has_the_slopes_of_its_formula, every_set_agrees_with_the_reference,
           in_bf16_every_set_agrees_with_the_reference, an_adapter_that_adds_nothing_changes_no_bit)
