/* A gradient does not depend on how the same samples are cut into micro-batches, packed, ordered, recomputed, or on
 * the way the gradient enters: fp32 sums in another order, and nothing else. The bound: an fp32 run of these models
 * is up to 1.6e-6 (in norm) from exact arithmetic (tests/golden/llama_CASE/expected.json), so two of them are at most
 * twice that apart. */
#include "model/core/philox.h"
#include "tests/golden_llama.h"

static const double gradient_bound = 3.2e-6, loss_bound = 1e-6;

enum { SAMPLES = 8, LONGEST = 40, CAPACITY = SAMPLES * LONGEST };

/* Eight samples of different lengths (one of a single token, whose weight is not 0), tokens and weights from Philox. */
static Run *make_samples(Arena *arena, int vocab) {
    static const int lengths[SAMPLES] = {17, 40, 3, 1, 29, 8, 33, 12};
    PhiloxKey key = philox_key(11, PHILOX_TEST, 0, 0);
    uint64_t drawn = 0;
    Run *samples = arena_alloc(arena, SAMPLES * sizeof *samples);
    for (int s = 0; s < SAMPLES; s++) {
        size_t n = (size_t)lengths[s];
        Run *run = &samples[s];
        *run = (Run){lengths[s],
                     1,
                     arena_alloc(arena, n * sizeof(int32_t)),
                     arena_alloc(arena, n * sizeof(int32_t)),
                     arena_alloc(arena, n * sizeof(int32_t)),
                     arena_alloc(arena, 2 * sizeof(int32_t)),
                     arena_alloc(arena, n * sizeof(float)),
                     NULL,
                     0};
        run->segment_start[1] = lengths[s];
        for (int t = 0; t < lengths[s]; t++) {
            run->tokens[t] = (int32_t)philox_below(key, drawn++, (uint64_t)vocab);
            run->targets[t] = (int32_t)philox_below(key, drawn++, (uint64_t)vocab);
            run->positions[t] = t;
            run->weights[t] = 0.5f * (float)philox_below(key, drawn++, 4); /* 0, ½, 1, 1½ */
        }
    }
    samples[3].weights[0] = 1;
    return samples;
}

/* Samples order[0 … n) as one flat run. */
static Run pack(Arena *arena, const Run *samples, const int *order, int n) {
    Run run = {0,
               n,
               arena_alloc(arena, CAPACITY * sizeof(int32_t)),
               arena_alloc(arena, CAPACITY * sizeof(int32_t)),
               arena_alloc(arena, CAPACITY * sizeof(int32_t)),
               arena_alloc(arena, (SAMPLES + 1) * sizeof(int32_t)),
               arena_alloc(arena, CAPACITY * sizeof(float)),
               NULL,
               0};
    for (int i = 0; i < n; i++) {
        const Run *sample = &samples[order[i]];
        size_t length = (size_t)sample->n_tokens;
        memcpy(run.tokens + run.n_tokens, sample->tokens, length * sizeof *run.tokens);
        memcpy(run.targets + run.n_tokens, sample->targets, length * sizeof *run.targets);
        memcpy(run.positions + run.n_tokens, sample->positions, length * sizeof *run.positions);
        memcpy(run.weights + run.n_tokens, sample->weights, length * sizeof *run.weights);
        run.n_tokens += sample->n_tokens;
        run.segment_start[i + 1] = run.n_tokens;
    }
    return run;
}

/* The samples in this order, cut after so many of them each time. */
typedef struct {
    const char *what;
    int order[SAMPLES], sizes[SAMPLES];
    EngineOptions options;
    int threads;
} Cut;

static const Cut cuts[] = {
    {"1 x 8", {0, 1, 2, 3, 4, 5, 6, 7}, {8}, {0}, 1},
    {"8 x 1", {0, 1, 2, 3, 4, 5, 6, 7}, {1, 1, 1, 1, 1, 1, 1, 1}, {0}, 1},
    {"1 x 8, reversed", {7, 6, 5, 4, 3, 2, 1, 0}, {8}, {0}, 1},
    {"3 + 5, shuffled", {4, 1, 6, 0, 3, 7, 2, 5}, {3, 5}, {0}, 1},
    {"1 + 1 + 2 + 4, seeded behind the head", {6, 3, 0, 5, 2, 7, 4, 1}, {1, 1, 2, 4}, {.seeded = true}, 1},
    {"4 + 4, recomputed", {0, 1, 2, 3, 4, 5, 6, 7}, {4, 4}, {.recompute = true}, 1},
    {"1 x 8, two threads", {0, 1, 2, 3, 4, 5, 6, 7}, {8}, {0}, 2},
    {"2 + 6, three threads", {1, 4, 0, 2, 3, 5, 6, 7}, {2, 6}, {0}, 3},
};
enum { N_CUTS = sizeof cuts / sizeof *cuts };

/* The loss of all samples; their gradients, by name, in `arena`. */
static double run_cut(Golden *golden, const Run *samples, const Cut *cut, Arena *arena, NamedArray **gradients,
                      size_t *n) {
    Engine engine;
    double loss = 0, total = 0;
    for (int s = 0; s < SAMPLES; s++) total += run_weight(&samples[s]);
    threads_init(cut->threads);
    engine_open(&engine, golden->model, CAPACITY, cut->options);
    clear_gradients(golden->model);
    for (int i = 0, first = 0; first < SAMPLES; first += cut->sizes[i++]) {
        Run run = pack(arena, samples, cut->order + first, cut->sizes[i]);
        loss += engine_run(&engine, &run, total);
    }
    *gradients = named_gradients(golden->model, arena, n);
    for (size_t i = 0; i < *n; i++) {
        size_t bytes = named_bytes(&(*gradients)[i]);
        (*gradients)[i].data = memcpy(arena_alloc(arena, bytes), (*gradients)[i].data, bytes);
    }
    engine_close(&engine);
    return loss;
}

START_TEST(a_gradient_does_not_depend_on_how_the_samples_are_cut_and_packed) {
    for (int k = 0; k < N_GOLDEN_KERNELS; k++) {
        Worst gradient = {0}, loss = {0};
        if (!golden_select(golden_kernels[k])) continue;
        for (int c = 0; c < N_GOLDEN; c++) {
            Golden golden;
            golden_open(&golden, golden_cases[c]);
            NamedArray *first = NULL, *other = NULL;
            size_t n;
            const Run *samples = make_samples(&golden.arena, golden.model->shape.vocab_size);
            double reference = run_cut(&golden, samples, &cuts[0], &golden.arena, &first, &n);
            ck_assert(reference > 1);
            for (int i = 1; i < N_CUTS; i++) {
                double found = run_cut(&golden, samples, &cuts[i], &golden.arena, &other, &n);
                worst_of(&loss, fabs(found - reference), golden_cases[c], cuts[i].what, "");
                for (size_t a = 0; a < n; a++)
                    worst_of(&gradient,
                             relative_distance(other[a].data, first[a].data, NULL, named_elements(&first[a])),
                             golden_cases[c], cuts[i].what, first[a].name);
            }
            golden_close(&golden);
        }
        printf("%s: loss %.1e (%s), gradients %.1e (%s)\n", golden_kernels[k], loss.value, loss.where, gradient.value,
               gradient.where);
        ck_assert_msg(loss.value <= loss_bound, "loss: %g, %s", loss.value, loss.where);
        ck_assert_msg(gradient.value <= gradient_bound, "gradient: %g, %s", gradient.value, gradient.where);
    }
}
END_TEST

START_TEST(the_same_cut_gives_the_same_bits_again) {
    for (int k = 0; k < N_GOLDEN_KERNELS; k++) {
        if (!golden_select(golden_kernels[k])) continue;
        Golden golden;
        golden_open(&golden, "gqa");
        const Run *samples = make_samples(&golden.arena, golden.model->shape.vocab_size);
        for (int i = 0; i < N_CUTS; i++) {
            NamedArray *first = NULL, *again = NULL;
            size_t n;
            double loss = run_cut(&golden, samples, &cuts[i], &golden.arena, &first, &n);
            ck_assert(loss == run_cut(&golden, samples, &cuts[i], &golden.arena, &again, &n));
            for (size_t a = 0; a < n; a++)
                ck_assert_msg(memcmp(first[a].data, again[a].data, named_bytes(&first[a])) == 0, "%s, %s, %s",
                              golden_kernels[k], cuts[i].what, first[a].name);
        }
        golden_close(&golden);
    }
}
END_TEST

START_TEST(a_sample_that_sees_its_neighbour_is_noticed) {
    Golden golden;
    if (!golden_select("auto")) return;
    golden_open(&golden, "packed");
    NamedArray *right = NULL;
    size_t n;
    Run *samples = make_samples(&golden.arena, golden.model->shape.vocab_size);
    run_cut(&golden, samples, &cuts[0], &golden.arena, &right, &n);
    Engine engine;
    double total = 0, farthest = 0;
    for (int s = 0; s < SAMPLES; s++) total += run_weight(&samples[s]);
    Run run = pack(&golden.arena, samples, cuts[0].order, SAMPLES);
    run.segment_start[1] = run.n_tokens; /* one segment instead of eight */
    run.n_segments = 1;
    engine_open(&engine, golden.model, CAPACITY, (EngineOptions){0});
    clear_gradients(golden.model);
    engine_run(&engine, &run, total);
    NamedArray *wrong = named_gradients(golden.model, &golden.arena, &n);
    for (size_t a = 0; a < n; a++)
        farthest = fmax(farthest, relative_distance(wrong[a].data, right[a].data, NULL, named_elements(&right[a])));
    ck_assert_msg(farthest > 1000 * gradient_bound, "%g", farthest);
    engine_close(&engine);
    golden_close(&golden);
}
END_TEST

CHECK_MAIN("batch_invariance", a_gradient_does_not_depend_on_how_the_samples_are_cut_and_packed,
           the_same_cut_gives_the_same_bits_again, a_sample_that_sees_its_neighbour_is_noticed)
