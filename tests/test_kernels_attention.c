/* The attention kernels: the reference against fp64 slopes, every faster set against the reference. Errors are relative
 * to the largest element of an array; an ulp is 1.2e-7. */
#include "tests/kernel_check.h"

static const double ulp = 1.1920929e-7;
enum { AVX2 = 2 }; /* in kernel_sets; the set before it has the reference's attention */

typedef struct {
    int H, KV, HD, n_segments;
    const int32_t *start;
    double scale;
    double *q, *k, *v, *dout;
} Attention;

static double score(const Attention *a, int t, int h, int j) {
    double sum = 0;
    for (int i = 0; i < a->HD; i++)
        sum += a->q[(t * a->H + h) * a->HD + i] * a->k[(j * a->KV + h / (a->H / a->KV)) * a->HD + i];
    return a->scale * sum;
}

/* Σ dout·out, straight from the definition */
static double attention_loss(const void *context) {
    const Attention *a = context;
    double loss = 0;
    for (int s = 0; s < a->n_segments; s++)
        for (int t = a->start[s]; t < a->start[s + 1]; t++)
            for (int h = 0; h < a->H; h++) {
                double sum = 0, dot = 0;
                for (int j = a->start[s]; j <= t; j++) {
                    double p = exp(score(a, t, h, j)), gv = 0;
                    for (int i = 0; i < a->HD; i++)
                        gv += a->dout[(t * a->H + h) * a->HD + i] * a->v[(j * a->KV + h / (a->H / a->KV)) * a->HD + i];
                    sum += p;
                    dot += p * gv;
                }
                loss += dot / sum;
            }
    return loss;
}

START_TEST(the_reference_attention_has_the_slopes_of_its_formula) {
    enum { T = 7, H = 4, KV = 2, HD = 3, Q = T * H * HD, K = T * KV * HD };
    const int32_t start[] = {0, 3, 4, 7};
    Arena arena = {0};
    Kernels table = kernel_reference();
    float *q = noise(&arena, Q, 1, 1), *k = noise(&arena, K, 2, 1), *v = noise(&arena, K, 3, 1);
    float *dout = noise(&arena, Q, 4, 1), out[Q], lse[T * H], dq[Q], dk[K], dv[K];
    AttentionInputs in = {H, KV, HD, 0.6f, q, k, v, H * HD, KV * HD};
    Segments segments = {3, start};
    Attention a = {H, KV, HD, 3, start, (double)in.scale, widen(&arena, q, Q), widen(&arena, k, K), NULL, NULL};
    a.v = widen(&arena, v, K);
    a.dout = widen(&arena, dout, Q);
    table.attention_forward(out, lse, &in, segments);
    double loss = 0;
    for (int i = 0; i < Q; i++) loss += (double)out[i] * a.dout[i];
    ck_assert_double_eq_tol(loss, attention_loss(&a), 1e-5);
    table.attention_backward(dq, dk, dv, false, dout, out, lse, &in, segments, NULL);
    check_slopes("dq", dq, a.q, Q, attention_loss, &a, 1e-6);
    check_slopes("dk", dk, a.k, K, attention_loss, &a, 1e-6);
    check_slopes("dv", dv, a.v, K, attention_loss, &a, 1e-6);
    arena_free(&arena);
}
END_TEST

enum { MAX_SEGMENTS = 40 };
typedef struct {
    int H, KV, HD;
    int lengths[MAX_SEGMENTS]; /* of the segments, up to the first 0 */
} Case;

static const Case shapes[] = {
    {1, 1, 1, {1}},
    {1, 1, 2, {1, 1, 1, 5}},
    {3, 3, 6, {70, 1, 33}},
    {8, 4, 8, {130, 64, 3}},
    {2, 2, 13, {65}},
    {4, 1, 16, {17, 40}},
    {6, 6, 48, {100}},
    {8, 2, 64, {129, 2}},
    {3, 1, 80, {50, 66}},
    {5, 1, 32, {90}},
    {12, 1, 24, {64, 30}}, /* more heads to a group than a block holds with AVX-512 */
    {2, 1, 128, {40, 1, 90}},
    {2, 2, 33, {300}}, /* several blocks of keys */
    {1, 1, 300, {20}}, /* wider than the tiles */
    {4, 2, 8, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 1, 1, 1, 1, 1, 1, 1, 1, 31}},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* A case laid out as one QKV row per token; `start` has room for all segments. */
typedef struct {
    int n, H, KV, HD;
    size_t T, row; /* row: H*HD + 2*KV*HD, and a little more */
    int32_t start[MAX_SEGMENTS + 1];
    float *qkv, *dout;
    AttentionInputs in;
    Segments segments;
} Laid;

static void lay_out(Laid *l, const Case *c, Arena *arena) {
    *l = (Laid){.H = c->H, .KV = c->KV, .HD = c->HD};
    for (; l->n < MAX_SEGMENTS && c->lengths[l->n]; l->n++) l->start[l->n + 1] = l->start[l->n] + c->lengths[l->n];
    size_t HD = (size_t)c->HD, H = (size_t)c->H, KV = (size_t)c->KV;
    l->T = (size_t)l->start[l->n];
    l->row = (H + 2 * KV) * HD + 3;
    l->qkv = noise(arena, l->T * l->row, 1, 1);
    l->dout = noise(arena, l->T * H * HD, 2, 1);
    float scale = 1.5f / sqrtf((float)HD); /* peakier than usual */
    l->in =
        (AttentionInputs){c->H, c->KV, c->HD, scale, l->qkv, l->qkv + H * HD, l->qkv + (H + KV) * HD, l->row, l->row};
    l->segments = (Segments){l->n, l->start};
}

typedef struct {
    float *out, *lse, *grad; /* grad: dq, dk, dv in one row each, as qkv */
} Results;

static Results run(const Kernels *k, const Laid *l, bool accumulate, bool dq, bool dk, bool dv, Arena *arena) {
    size_t H = (size_t)l->H, HD = (size_t)l->HD, KV = (size_t)l->KV;
    Results r = {numbers(arena, l->T * H * HD), numbers(arena, l->T * H), noise(arena, l->T * l->row, 7, 1)};
    float *scratch = numbers(arena, attention_backward_scratch((int)l->T, l->H, l->HD));
    k->attention_forward(r.out, r.lse, &l->in, l->segments);
    k->attention_backward(dq ? r.grad : NULL, dk ? r.grad + H * HD : NULL, dv ? r.grad + (H + KV) * HD : NULL,
                          accumulate, l->dout, r.out, r.lse, &l->in, l->segments, scratch);
    return r;
}

START_TEST(attention_agrees_with_the_reference_at_every_shape) {
    for (int threads = 1; threads <= 3; threads += 2) /* both ways of cutting the backward pass */
        for (int set = AVX2; set < N_SETS; set++)
            for (int c = 0; c < N_SHAPES; c++) {
                threads_init(threads);
                Arena arena = {0};
                Kernels slow = kernel_reference(), fast;
                if (!kernel_table(&fast, kernel_sets[set])) continue;
                Laid l;
                lay_out(&l, &shapes[c], &arena);
                for (int accumulate = 0; accumulate < 2; accumulate++) {
                    Results a = run(&slow, &l, accumulate, true, true, true, &arena);
                    Results b = run(&fast, &l, accumulate, true, true, true, &arena);
                    CHECK_CLOSE(b.out, a.out, l.T * (size_t)(l.H * l.HD), 8 * ulp, "%s: out, shape %d", fast.name, c);
                    CHECK_CLOSE(b.lse, a.lse, l.T * (size_t)l.H, 8 * ulp, "%s: lse, shape %d", fast.name, c);
                    CHECK_CLOSE(b.grad, a.grad, l.T * l.row, 16 * ulp, "%s: gradients, shape %d", fast.name, c);
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
                lay_out(&l, &shapes[3], &arena);
                Results all = run(&k, &l, false, true, true, true, &arena);
                Results some = run(&k, &l, false, want & 1, want & 2, want & 4, &arena);
                float *before = noise(&arena, l.T * l.row, 7, 1);
                size_t q_end = (size_t)(l.H * l.HD), k_end = q_end + (size_t)(l.KV * l.HD),
                       v_end = k_end + (size_t)(l.KV * l.HD);
                for (size_t i = 0; i < l.T * l.row; i++) {
                    size_t column = i % l.row;
                    bool wanted = column < q_end ? want & 1 : column < k_end ? want & 2 : column < v_end && want & 4;
                    ck_assert(some.grad[i] == (wanted ? all.grad[i] : before[i]));
                }
                arena_free(&arena);
            }
}
END_TEST

START_TEST(attention_gives_the_same_bits_in_every_run_and_for_any_number_of_threads) {
    for (int set = AVX2; set < N_SETS; set++)
        for (int c = 0; c < N_SHAPES; c++) {
            Arena arena = {0};
            Kernels k;
            if (!kernel_table(&k, kernel_sets[set])) continue;
            Laid l;
            lay_out(&l, &shapes[c], &arena);
            const int threads[] = {1, 1, 2, 5};
            Results first = {0};
            for (int i = 0; i < 4; i++) {
                threads_init(threads[i]);
                Results r = run(&k, &l, false, true, true, true, &arena);
                if (i == 0) first = r;
                ck_assert(memcmp(r.out, first.out, l.T * (size_t)(l.H * l.HD) * sizeof *r.out) == 0);
                ck_assert(memcmp(r.lse, first.lse, l.T * (size_t)l.H * sizeof *r.lse) == 0);
                ck_assert(memcmp(r.grad, first.grad, l.T * l.row * sizeof *r.grad) == 0);
            }
            arena_free(&arena);
        }
}
END_TEST

/* Rows of three sequences whose pages lie in no order: a prefill over the border of a page, a short one, single rows.
 */
enum {
    CACHED_ROWS = 60,
    CACHED_SLOTS = 3,
    CACHED_LENGTH = 150,
    SLOT_PAGES = 3,
    CACHED_PAGES = CACHED_SLOTS * SLOT_PAGES
};
static const int32_t cached_pages[CACHED_PAGES] = {4, 0, 7, 2, 8, 1, 6, 3, 5};

typedef struct {
    CachedAttention shape;
    float *q, *k, *v, *out, *keys, *values; /* k, v[slots, length, KV·HD]: every position of every sequence */
    bf16 *half_q, *half_k, *half_v, *half_out, *half_keys, *half_values;
    size_t n_out;
    int32_t positions[CACHED_ROWS], slots[CACHED_ROWS];
} CachedCase;

/* Values of bf16, in both types. */
static float *both(Arena *arena, bf16 **half, size_t n, uint64_t seed) {
    float *x = noise(arena, n, seed, 1);
    *half = arena_alloc(arena, (n + 1) * sizeof **half);
    for (size_t i = 0; i < n; i++) {
        (*half)[i] = f32_to_bf16(x[i]);
        x[i] = bf16_to_f32((*half)[i]);
    }
    return x;
}

static CachedCase *cached_case(Arena *arena, int KV, int group, int HD) {
    CachedCase *c = arena_alloc(arena, sizeof *c);
    int H = KV * group;
    size_t n_cache = CACHED_PAGES * (CACHE_PAGE * (size_t)(KV * HD) + 16),
           n_rows = CACHED_SLOTS * CACHED_LENGTH * (size_t)(KV * HD);
    c->shape = (CachedAttention){CACHED_ROWS,
                                 H,
                                 KV,
                                 HD,
                                 1 / sqrtf((float)HD),
                                 (size_t)(H * HD) + 5,
                                 c->positions,
                                 c->slots,
                                 cached_pages,
                                 SLOT_PAGES,
                                 CACHE_PAGE * (size_t)(KV * HD) + 16};
    c->n_out = (size_t)(CACHED_ROWS * H * HD);
    c->q = both(arena, &c->half_q, CACHED_ROWS * c->shape.stride, 1);
    c->k = both(arena, &c->half_k, n_rows, 2);
    c->v = both(arena, &c->half_v, n_rows, 3);
    c->keys = both(arena, &c->half_keys, n_cache, 4); /* what is not stored is noise */
    c->values = both(arena, &c->half_values, n_cache, 5);
    c->out = numbers(arena, c->n_out);
    c->half_out = arena_alloc(arena, c->n_out * sizeof *c->half_out);
    for (int t = 0; t < CACHED_ROWS; t++) { /* 40 rows of slot 1 from 60 on, then 2 of slot 0, then single rows */
        c->slots[t] = t < 40 ? 1 : t < 42 ? 0 : t % CACHED_SLOTS;
        c->positions[t] = t < 40 ? 60 + t : t < 42 ? t - 40 : (t * 37) % CACHED_LENGTH;
    }
    return c;
}

/* All positions of all sequences, 70 rows at a time. */
static void fill_cache(const Kernels *kernels, CachedCase *c) {
    enum { STEP = 70 };
    size_t row = (size_t)(c->shape.n_kv_heads * c->shape.head_dim);
    for (int32_t slot = 0; slot < CACHED_SLOTS; slot++)
        for (int first = 0; first < CACHED_LENGTH; first += STEP) {
            int32_t positions[STEP], slots[STEP];
            CachedAttention shape = c->shape;
            size_t at = (size_t)(slot * CACHED_LENGTH + first) * row;
            shape.n_tokens = CACHED_LENGTH - first < STEP ? CACHED_LENGTH - first : STEP;
            shape.positions = positions;
            shape.slots = slots;
            shape.stride = row;
            for (int t = 0; t < shape.n_tokens; t++) {
                positions[t] = first + t;
                slots[t] = slot;
            }
            kernels->cache_store(c->keys, c->values, c->k + at, c->v + at, &shape);
            kernels->bf16.cache_store(c->half_keys, c->half_values, c->half_k + at, c->half_v + at, &shape);
        }
}

START_TEST(cached_attention_agrees_with_the_reference_for_prefills_and_single_rows) {
    const int dims[] = {1, 8, 20, 48, 64, 300}, groups[] = {1, 3, 12};
    for (int set = AVX2; set < N_SETS; set++)
        for (size_t d = 0; d < 6; d++)
            for (size_t g = 0; g < 3; g++) {
                threads_init(1 + (int)(d % 2));
                Arena arena = {0};
                Kernels slow = kernel_reference(), fast;
                if (!kernel_table(&fast, kernel_sets[set])) continue;
                CachedCase *c = cached_case(&arena, 2, groups[g], dims[d]);
                float *expected = numbers(&arena, c->n_out);
                fill_cache(&slow, c);
                slow.attention_cached(expected, c->q, c->keys, c->values, &c->shape);
                fill_cache(&fast, c);
                fast.attention_cached(c->out, c->q, c->keys, c->values, &c->shape);
                CHECK_CLOSE(c->out, expected, c->n_out, 8 * ulp, "%s: head_dim %d, group %d", fast.name, dims[d],
                            groups[g]);
                fast.bf16.attention_cached(c->half_out, c->half_q, c->half_keys, c->half_values, &c->shape);
                for (size_t i = 0; i < c->n_out; i++) c->out[i] = bf16_to_f32(c->half_out[i]);
                CHECK_CLOSE(c->out, expected, c->n_out, 0x1.02p-7, "%s: bf16, head_dim %d, group %d", fast.name,
                            dims[d], groups[g]); /* probabilities and the result are rounded to bf16 */
                arena_free(&arena);
            }
}
END_TEST

/* A query of a sequence at each position, from the cache and in a segment: in bf16 with bf16 instructions the same
 * bits. */
START_TEST(cached_bf16_attention_is_bit_for_bit_that_of_a_training_graph) {
    const int dims[] = {2, 8, 20, 48, 64, 144}, groups[] = {1, 4, 12};
    for (int set = AVX2; set < N_SETS; set++)
        for (size_t d = 0; d < 6; d++)
            for (size_t g = 0; g < 3; g++) {
                Arena arena = {0};
                Kernels fast;
                if (!kernel_table(&fast, kernel_sets[set]) || !kernels_have_bf16()) continue;
                int KV = 2, H = KV * groups[g], HD = dims[d];
                size_t kv_row = (size_t)(KV * HD), q_row = (size_t)(H * HD), n_out = CACHED_LENGTH * q_row;
                CachedCase *c = cached_case(&arena, KV, groups[g], HD);
                int32_t *positions = arena_alloc(&arena, CACHED_LENGTH * sizeof *positions);
                int32_t *slots = arena_alloc(&arena, CACHED_LENGTH * sizeof *slots);
                bf16 *q, *whole = arena_alloc(&arena, n_out * sizeof *whole);
                bf16 *out = arena_alloc(&arena, n_out * sizeof *out);
                float *lse = numbers(&arena, (size_t)(CACHED_LENGTH * H));
                float *wide = both(&arena, &q, n_out, 9);
                for (size_t i = 0; i < n_out; i++) q[i] = f32_to_bf16(8 * wide[i]); /* sharp: maxima move */
                AttentionInputsBf16 in = {H, KV, HD, c->shape.scale, q, c->half_k, c->half_v, q_row, kv_row};
                const int32_t start[2] = {0, CACHED_LENGTH};
                fast.bf16.attention_forward(whole, lse, &in, (Segments){1, start});
                fill_cache(&fast, c);
                c->shape.stride = q_row;
                c->shape.positions = positions;
                c->shape.slots = slots; /* 0: the sequence whose keys and values the segment has */
                for (int alone = 0; alone < 2; alone++) {
                    c->shape.n_tokens = alone ? 1 : CACHED_LENGTH;
                    for (int32_t t = 0; t < CACHED_LENGTH; t++) positions[t] = t;
                    for (size_t t = 0; t < CACHED_LENGTH; t += (size_t)c->shape.n_tokens) {
                        c->shape.positions = positions + t;
                        fast.bf16.attention_cached(out + t * q_row, q + t * q_row, c->half_keys, c->half_values,
                                                   &c->shape);
                    }
                    ck_assert_msg(memcmp(out, whole, n_out * sizeof *out) == 0, "%s: head_dim %d, group %d, %s",
                                  fast.name, HD, groups[g], alone ? "row by row" : "at once");
                }
                arena_free(&arena);
            }
}
END_TEST

START_TEST(a_cached_row_does_not_depend_on_what_is_computed_beside_it) {
    const int dims[] = {8, 48, 64}, first[] = {0, 40, 42, 43, 50, CACHED_ROWS};
    for (int set = AVX2; set < N_SETS; set++)
        for (size_t d = 0; d < 3; d++) {
            Arena arena = {0};
            Kernels fast;
            if (!kernel_table(&fast, kernel_sets[set])) continue;
            CachedCase *c = cached_case(&arena, 2, 3, dims[d]);
            size_t row = (size_t)(c->shape.n_heads * c->shape.head_dim);
            bf16 *alone = arena_alloc(&arena, c->n_out * sizeof *alone);
            float *single = numbers(&arena, c->n_out);
            fill_cache(&fast, c);
            fast.bf16.attention_cached(c->half_out, c->half_q, c->half_keys, c->half_values, &c->shape);
            fast.attention_cached(c->out, c->q, c->keys, c->values, &c->shape);
            for (int i = 0; i < 5; i++) {
                CachedAttention part = c->shape;
                size_t t = (size_t)first[i];
                part.n_tokens = first[i + 1] - first[i];
                part.positions += t;
                part.slots += t;
                fast.bf16.attention_cached(alone + t * row, c->half_q + t * part.stride, c->half_keys, c->half_values,
                                           &part);
                fast.attention_cached(single + t * row, c->q + t * part.stride, c->keys, c->values, &part);
            }
            ck_assert_mem_eq(alone, c->half_out, c->n_out * sizeof *alone);
            ck_assert_mem_eq(single, c->out, c->n_out * sizeof *single);
            arena_free(&arena);
        }
}
END_TEST

START_TEST(large_scores_do_not_overflow_and_a_nan_shows) {
    enum { T = 70, HD = 8 };
    const int32_t start[] = {0, T};
    for (int set = 0; set < N_SETS; set++) {
        Arena arena = {0};
        Kernels k;
        if (!kernel_table(&k, kernel_sets[set])) continue;
        float *q = noise(&arena, T * HD, 1, 300), *kv = noise(&arena, T * HD, 2, 300), out[T * HD], lse[T];
        AttentionInputs in = {1, 1, HD, 1, q, kv, kv, HD, HD};
        k.attention_forward(out, lse, &in, (Segments){1, start});
        for (int i = 0; i < T * HD; i++) ck_assert(isfinite(out[i]));
        kv[40 * HD] = NAN;
        k.attention_forward(out, lse, &in, (Segments){1, start});
        for (int t = 0; t < T; t++) {
            ck_assert_int_eq(isnan(lse[t]) != 0, t >= 40);
            ck_assert(t < 40 || isnan(out[t * HD]));
        }
        arena_free(&arena);
    }
}
END_TEST

CHECK_MAIN("kernels: attention", the_reference_attention_has_the_slopes_of_its_formula,
           attention_agrees_with_the_reference_at_every_shape,
           gradients_not_wanted_are_left_alone_and_the_others_are_the_same,
           attention_gives_the_same_bits_in_every_run_and_for_any_number_of_threads,
           cached_attention_agrees_with_the_reference_for_prefills_and_single_rows,
           cached_bf16_attention_is_bit_for_bit_that_of_a_training_graph,
           a_cached_row_does_not_depend_on_what_is_computed_beside_it, large_scores_do_not_overflow_and_a_nan_shows)
