/* Orders and packings, without files: permutations, the split, the mix, and which tokens are in which sequence. */
#include <math.h>
#include <string.h>

#include "data/order.h"
#include "data/packing.h"
#include "tests/check_main.h"

/* ---- order ------------------------------------------------------------------------------------------------------ */

START_TEST(a_permutation_has_every_index_once_and_follows_its_key) {
    for (uint64_t n = 1; n < 3000; n = n < 70 ? n + 1 : n * 3 / 2) {
        unsigned char *seen = calloc(n, 1);
        uint64_t fixed = 0, same = 0;
        for (uint64_t i = 0; i < n; i++) {
            uint64_t to = order_permute(order_key(7, 1, ORDER_SEQUENCES, 3), n, i);
            if (to >= n || seen[to]++) ck_abort_msg("%llu of %llu", (unsigned long long)to, (unsigned long long)n);
            fixed += to == i;
            same += to == order_permute(order_key(7, 1, ORDER_SEQUENCES, 4), n, i);
        }
        free(seen);
        if (n >= 64) ck_assert_uint_lt(fixed, 12); /* a random permutation has one fixed point on average: */
        if (n >= 64) ck_assert_uint_lt(same, 12);  /* Poisson(1) is above 11 once in 10^9 */
    }
}
END_TEST

START_TEST(a_permutation_spreads_neighbours_evenly) {
    enum { N = 1000, BINS = 10, KEYS = 200 };
    int count[BINS] = {0};
    for (int k = 0; k < KEYS; k++) {
        PhiloxKey key = order_key((uint64_t)k, 0, ORDER_SEQUENCES, 0);
        for (uint64_t i = 0; i + 1 < N; i++) {
            uint64_t gap = (order_permute(key, N, i + 1) + N - order_permute(key, N, i)) % N;
            count[gap * BINS / N]++;
        }
    }
    double expected = KEYS * (N - 1) / (double)BINS, chi = 0;
    for (int b = 0; b < BINS; b++) chi += (count[b] - expected) * (count[b] - expected) / expected;
    ck_assert_double_lt(chi, 40); /* 9 degrees of freedom: P < 1e-5 */
}
END_TEST

START_TEST(the_split_takes_its_share_after_a_shuffle_and_leaves_both_sides_something) {
    static const struct {
        uint32_t n;
        double share;
        uint32_t validation;
    } cases[] = {{1000, 0.1, 100}, {3, 0.01, 1}, {2, 0.9, 1}, {5, 0, 0}, {100, 0.999, 99}, {1, 0.5, 0}, {10, 0.25, 3}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        uint32_t *train, *validation, n_train, n_validation, n = cases[c].n;
        CHECK_OK(order_split(&train, &n_train, &validation, &n_validation, n, cases[c].share, 5, 0));
        ck_assert_uint_eq(n_validation, cases[c].validation);
        ck_assert_uint_eq(n_train + n_validation, n);
        uint32_t t = 0, v = 0, in_first_half = 0;
        for (uint32_t i = 0; i < n; i++) { /* each document on one side, both in rising order */
            bool is_train = t < n_train && train[t] == i, is_validation = v < n_validation && validation[v] == i;
            ck_assert(is_train != is_validation);
            t += is_train;
            v += is_validation;
            in_first_half += is_validation && i < n / 2;
        }
        if (n == 1000) ck_assert(in_first_half > 25 && in_first_half < 75); /* shuffled: 50 ± 5 standard deviations */
        free(train);
        free(validation);
    }
}
END_TEST

START_TEST(the_mix_counts_what_it_draws_and_keeps_its_shares) {
    static const double shares[][4] = {{1, 0, 0, 0}, {0.5, 0.5, 0, 0}, {0.67, 0.15, 0.155, 0.025}, {1, 1000, 0.01, 3}};
    static const int n_sources[] = {1, 2, 4, 4};
    enum { N = 20000 };
    for (int c = 0; c < 4; c++) {
        Mix mix;
        double total = 0;
        int64_t count[4] = {0};
        for (int s = 0; s < n_sources[c]; s++) total += shares[c][s];
        CHECK_OK(mix_init(&mix, shares[c], n_sources[c], 11));
        for (int64_t k = 0; k < N; k++) {
            for (int s = 0; s < n_sources[c]; s++) {
                if (k % 97 == 0 || k < 50) ck_assert_int_eq(mix_count(&mix, s, k), count[s]);
                double off = (double)count[s] - (double)k * shares[c][s] / total;
                if (fabs(off) > 1 + log2((double)k + 1))
                    ck_abort_msg("source %d is off by %g at %lld", s, off, (long long)k);
            }
            count[mix_source(&mix, k)]++;
        }
        /* far away, where nobody can count: counts add up, and follow the shares as closely */
        int64_t far = (int64_t)1 << 50, sum = 0;
        for (int s = 0; s < n_sources[c]; s++) {
            int64_t before = mix_count(&mix, s, far);
            sum += before;
            /* a whole number of turns visits each point of the circle equally often */
            ck_assert_int_eq(before, (int64_t)(mix.bound[s + 1] - mix.bound[s]) * (far >> 32));
            ck_assert_int_eq(mix_count(&mix, s, far + 1) - before, mix_source(&mix, far) == s);
            /* each share is rounded to 2^-32 of the circle */
            ck_assert_double_lt(fabs((double)before - (double)far * shares[c][s] / total), 0x1p-32 * (double)far + 51);
        }
        ck_assert_int_eq(sum, far);
        mix_free(&mix);
    }
}
END_TEST

/* ---- packing ---------------------------------------------------------------------------------------------------- */

enum { MAX_DOCUMENTS = 30000 };

typedef struct {
    uint64_t start[MAX_DOCUMENTS + 1];
    uint32_t documents[MAX_DOCUMENTS];
    uint32_t document_of[1 << 21]; /* of each token */
    DocumentSet set;
    int64_t n_tokens; /* of the set */
} Corpus;

/* Documents of 1..longest tokens (mostly short), of which every `skip`-th is not in the set. */
static Corpus *corpus_new(uint32_t n, uint64_t longest, uint32_t skip) {
    Corpus *corpus = calloc(1, sizeof *corpus);
    PhiloxKey key = philox_key(n, PHILOX_TEST, (uint32_t)longest, skip);
    corpus->set = (DocumentSet){.start = corpus->start, .documents = corpus->documents};
    for (uint32_t d = 0; d < n; d++) {
        double u = (double)philox_uniform(key, d);
        uint64_t length = 1 + (uint64_t)(u * u * u * (double)longest);
        corpus->start[d + 1] = corpus->start[d] + length;
        if (corpus->start[d + 1] >= sizeof corpus->document_of / sizeof *corpus->document_of) ck_abort_msg("too long");
        for (uint64_t t = corpus->start[d]; t < corpus->start[d + 1]; t++) corpus->document_of[t] = d;
        if (skip && d % skip == 0) continue;
        corpus->documents[corpus->set.n_documents++] = d;
        corpus->n_tokens += (int64_t)length;
    }
    return corpus;
}

static PlanOptions plan_options(Packing packing, bool mask, int context, bool shuffle, int64_t epoch) {
    return (PlanOptions){.packing = packing,
                         .document_mask = mask,
                         .context = context,
                         .shuffle = shuffle,
                         .documents = order_key(3, 0, ORDER_DOCUMENTS, epoch),
                         .sequences = order_key(3, 0, ORDER_SEQUENCES, epoch),
                         .phase = philox_u64(order_key(3, 0, ORDER_PHASE, epoch), 0)};
}

/* Every promise of packing.h that does not need the order to be known. */
static void check_plan(const Corpus *corpus, PlanOptions options) {
    EpochPlan plan;
    RunList runs = {0};
    CHECK_OK(plan_make(&plan, &corpus->set, &options));
    ck_assert_int_eq(plan.n_tokens, corpus->n_tokens);
    size_t n_all = sizeof corpus->document_of / sizeof *corpus->document_of;
    unsigned char *as_input = calloc(n_all, 1), *as_target = calloc(n_all, 1);
    int64_t n_inputs = 0, n_targets = 0, n_full = 0;
    bool apart = options.packing == PACKING_BEST_FIT || options.document_mask;
    for (int64_t i = 0; i < plan.n_sequences; i++) {
        int tokens, targets;
        runs.n = 0;
        CHECK_OK(plan_sequence(&plan, i, &runs, &tokens, &targets));
        ck_assert_int_ge(tokens, 1);
        ck_assert_int_le(tokens, options.context);
        ck_assert(runs.runs[0].begins_segment);
        n_inputs += tokens;
        n_targets += targets;
        n_full += tokens == options.context;
        for (size_t r = 0; r < runs.n; r++) {
            Run run = runs.runs[r];
            uint32_t document = corpus->document_of[run.first];
            ck_assert_int_ge(run.n, 1);
            ck_assert_uint_eq(corpus->document_of[run.first + run.n - 1], document);
            ck_assert(run.begins_segment == (apart || r == 0));
            for (int64_t t = run.first; t < run.first + run.n; t++) as_input[t]++;
            for (int64_t t = run.first + 1; t < run.first + run.n; t++) as_target[t]++;
            if (run.next < 0) continue;
            as_target[run.next]++;
            if (apart) ck_assert_uint_eq(corpus->document_of[run.next], document);
            if (corpus->document_of[run.next] == document && corpus->set.n_documents > 1)
                ck_assert_int_eq(run.next, run.first + run.n);
            if (r + 1 < runs.n && !runs.runs[r + 1].begins_segment) ck_assert_int_eq(run.next, runs.runs[r + 1].first);
        }
    }
    ck_assert_int_eq(n_inputs, corpus->n_tokens);
    if (options.packing == PACKING_STREAM) ck_assert_int_ge(n_full, plan.n_sequences - 1);
    int64_t without_target = 0, n_bad = 0;
    for (uint32_t i = 0; i < corpus->set.n_documents; i++) {
        uint32_t document = corpus->set.documents[i];
        for (uint64_t t = corpus->start[document]; t < corpus->start[document + 1]; t++) {
            bool is_first = t == corpus->start[document]; /* ck_assert is too slow for each of a million tokens */
            n_bad += as_input[t] != 1;
            n_bad += apart ? as_target[t] != !is_first : !is_first && as_target[t] != 1;
            without_target += !as_target[t];
        }
    }
    ck_assert_int_eq(n_bad, 0);
    ck_assert_int_eq(n_targets, corpus->n_tokens - without_target);
    int64_t expected = apart ? (int64_t)corpus->set.n_documents : options.shuffle ? 0 : 1;
    ck_assert_int_eq(without_target, expected); /* a circle loses none, a line its first token, apart each document's */
    free(as_input);
    free(as_target);
    free(runs.runs);
    plan_free(&plan);
}

START_TEST(every_token_is_an_input_once_and_a_target_once) {
    static const struct {
        uint32_t n, skip;
        uint64_t longest;
        int context;
    } cases[] = {{1, 0, 1000, 64},  {1, 0, 5, 64},  {2, 0, 3, 1},        {50, 3, 40, 16},
                 {300, 7, 900, 64}, {7, 0, 64, 64}, {20000, 10, 60, 128}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        Corpus *corpus = corpus_new(cases[c].n, cases[c].longest, cases[c].skip);
        for (int shuffle = 0; shuffle < 2; shuffle++)
            for (int64_t epoch = 0; epoch < 3; epoch++) {
                check_plan(corpus, plan_options(PACKING_STREAM, false, cases[c].context, shuffle, epoch));
                check_plan(corpus, plan_options(PACKING_STREAM, true, cases[c].context, shuffle, epoch));
                check_plan(corpus, plan_options(PACKING_BEST_FIT, true, cases[c].context, shuffle, epoch));
            }
        free(corpus);
    }
}
END_TEST

/* A sequence as text: "first+n>next" per run, a bar before each segment. */
static const char *show(const EpochPlan *plan, int64_t index) {
    static char text[256];
    RunList runs = {0};
    int tokens, targets, used = 0;
    CHECK_OK(plan_sequence(plan, index, &runs, &tokens, &targets));
    for (size_t r = 0; r < runs.n; r++)
        used +=
            snprintf(text + used, sizeof text - (size_t)used, "%s%lld+%d>%lld ", runs.runs[r].begins_segment ? "|" : "",
                     (long long)runs.runs[r].first, runs.runs[r].n, (long long)runs.runs[r].next);
    free(runs.runs);
    return text;
}

START_TEST(small_packings_are_as_computed_by_hand) {
    static const uint64_t start[] = {0, 3, 5, 12, 13}; /* lengths 3, 2, 7, 1 */
    static const uint32_t documents[] = {0, 1, 2, 3};
    DocumentSet set = {.start = start, .documents = documents, .n_documents = 4};
    EpochPlan plan;
    PlanOptions options = plan_options(PACKING_STREAM, false, 4, false, 0);
    CHECK_OK(plan_make(&plan, &set, &options));
    ck_assert_int_eq(plan.n_sequences, 4);
    ck_assert_str_eq(show(&plan, 0), "|0+3>3 3+1>4 ");
    ck_assert_str_eq(show(&plan, 1), "|4+1>5 5+3>8 ");
    ck_assert_str_eq(show(&plan, 2), "|8+4>12 ");
    ck_assert_str_eq(show(&plan, 3), "|12+1>-1 ");
    plan_free(&plan);

    options.document_mask = true;
    CHECK_OK(plan_make(&plan, &set, &options));
    ck_assert_str_eq(show(&plan, 0), "|0+3>-1 |3+1>4 ");
    ck_assert_str_eq(show(&plan, 1), "|4+1>-1 |5+3>8 ");
    ck_assert_str_eq(show(&plan, 2), "|8+4>-1 ");
    ck_assert_str_eq(show(&plan, 3), "|12+1>-1 ");
    plan_free(&plan);

    /* Pieces by length: 2a (4 tokens), 0 (3), 2b (3), 1 (2), 3 (1). 2a fills sequence 0; 0 opens 1, 2b opens 2, 1 opens
     * 3; 3 fits best where one token is left: in 2, the later of the two. In a sequence pieces keep the documents'
     * order. */
    options.packing = PACKING_BEST_FIT;
    CHECK_OK(plan_make(&plan, &set, &options));
    ck_assert_int_eq(plan.n_sequences, 4);
    ck_assert_str_eq(show(&plan, 0), "|5+4>9 ");
    ck_assert_str_eq(show(&plan, 1), "|0+3>-1 ");
    ck_assert_str_eq(show(&plan, 2), "|9+3>-1 |12+1>-1 ");
    ck_assert_str_eq(show(&plan, 3), "|3+2>-1 ");
    plan_free(&plan);
}
END_TEST

START_TEST(best_fit_leaves_little_room) {
    Corpus *corpus = corpus_new(MAX_DOCUMENTS, 200, 0);
    EpochPlan plan;
    PlanOptions options = plan_options(PACKING_BEST_FIT, true, 256, true, 0);
    CHECK_OK(plan_make(&plan, &corpus->set, &options));
    double fill = (double)plan.n_tokens / (256.0 * (double)plan.n_sequences);
    ck_assert_msg(fill > 0.995, "%.4f of the room is used", fill);
    plan_free(&plan);
    free(corpus);
}
END_TEST

START_TEST(one_document_is_cut_elsewhere_and_in_another_order_each_epoch) {
    Corpus *corpus = corpus_new(1, 0, 0);
    corpus->start[1] = 100000;
    corpus->n_tokens = 100000;
    int64_t first[4][20];
    for (int64_t epoch = 0; epoch < 4; epoch++) {
        EpochPlan plan;
        PlanOptions options = plan_options(PACKING_STREAM, false, 64, true, epoch);
        CHECK_OK(plan_make(&plan, &corpus->set, &options));
        int64_t neighbours = 0;
        for (int64_t i = 0; i < 20; i++) {
            RunList runs = {0};
            int tokens, targets;
            CHECK_OK(plan_sequence(&plan, i, &runs, &tokens, &targets));
            first[epoch][i] = runs.runs[0].first;
            if (i) neighbours += first[epoch][i] == first[epoch][i - 1] + 64;
            free(runs.runs);
        }
        ck_assert_int_lt(neighbours, 3);
        for (int64_t before = 0; before < epoch; before++)
            ck_assert_int_ne(first[before][0] % 64, first[epoch][0] % 64); /* another phase (of these four epochs) */
        plan_free(&plan);
    }
    free(corpus);
}
END_TEST

CHECK_MAIN("packing", a_permutation_has_every_index_once_and_follows_its_key, a_permutation_spreads_neighbours_evenly,
           the_split_takes_its_share_after_a_shuffle_and_leaves_both_sides_something,
           the_mix_counts_what_it_draws_and_keeps_its_shares, every_token_is_an_input_once_and_a_target_once,
           small_packings_are_as_computed_by_hand, best_fit_leaves_little_room,
           one_document_is_cut_elsewhere_and_in_another_order_each_epoch)
