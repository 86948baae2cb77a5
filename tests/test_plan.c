/* The planner, on random graphs: gradients against fp64, and every step of the schedule replayed symbolically, where
 * each cache line of the arena remembers whose value it holds. */
#include "model/autodiff/node.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "tests/random_graph.h"

enum { N_GRAPHS = 300 };

/* ---- symbolic replay ---- */

enum { NOBODY = -1 };
typedef struct {
    const Tape *tape;
    int *owner; /* of each line: tensor id × 2, + 1 for its gradient */
    int n_lines;
} Lines;

static int lines_of(const Lines *lines, const Tensor *tensor) {
    const TapeOptions *options = &lines->tape->options;
    TapeBatch full = {.n_tokens = options->capacity, .n_segments = options->segments, .n_samples = options->samples};
    size_t bytes = rows_of(&full, tensor->rows) * (size_t)tensor->width * sizeof(float);
    return (int)((bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT);
}

static void hold(const Lines *lines, const char *what, const Tensor *tensor, bool gradient, ptrdiff_t place) {
    if (place == BOUND) return;
    ck_assert_msg(place != NO_PLACE, "%s: a value it reads has no place", what);
    for (int i = 0; i < lines_of(lines, tensor); i++)
        ck_assert_msg(lines->owner[place / ARENA_ALIGNMENT + i] == 2 * tensor->id + gradient,
                      "%s reads tensor %d (gradient: %d), which was overwritten", what, tensor->id, gradient);
}

static void own(Lines *lines, const Tensor *tensor, bool gradient, ptrdiff_t place) {
    ck_assert_int_ge(place, 0);
    ck_assert_int_le(place / ARENA_ALIGNMENT + lines_of(lines, tensor), lines->n_lines);
    for (int i = 0; i < lines_of(lines, tensor); i++)
        lines->owner[place / ARENA_ALIGNMENT + i] = 2 * tensor->id + gradient;
}

static void replay_forward_step(Lines *lines, const Step *step, const Node *node) {
    for (int i = 0; i < node->n_inputs; i++) hold(lines, node->spec->name, node->inputs[i], false, step->in[i]);
    for (int o = 0; o < node->n_outputs; o++) {
        own(lines, node->outputs[o], false, step->out[o]);
        for (int i = 0; i < node->n_inputs; i++) /* what is read may be overwritten only where the op says so */
            if (!(o == 0 && node->spec->in_place == i && step->in[i] == step->out[0]) &&
                !(o == 0 && node->spec->in_place != NOT_IN_PLACE &&
                  node->inputs[i] == node->inputs[node->spec->in_place]))
                hold(lines, node->spec->name, node->inputs[i], false, step->in[i]);
    }
}

static void hold_backward(const Lines *lines, const Step *step, const Node *node) {
    unsigned saves = (node->backward_inputs ? node->spec->saves_for_inputs : 0) |
                     (node->backward_weights ? node->spec->saves_for_weights : 0);
    for (int i = 0; i < node->n_inputs; i++)
        if (saves & SAVES_IN(i)) hold(lines, node->spec->name, node->inputs[i], false, step->in[i]);
    for (int o = 0; o < node->n_outputs; o++)
        if (saves & SAVES_OUT(o)) hold(lines, node->spec->name, node->outputs[o], false, step->out[o]);
}

static void replay_backward_step(Lines *lines, const Step *step, const Node *node) {
    hold_backward(lines, step, node);
    hold(lines, node->spec->name, node->outputs[0], true, step->out_grad[0]);
    for (int i = 0; i < node->n_inputs; i++)
        if (step->in_grad[i] != NO_PLACE && step->accumulate[i] && (i == 0 || node->inputs[i] != node->inputs[0]))
            hold(lines, node->spec->name, node->inputs[i], true, step->in_grad[i]);
    for (int i = 0; i < node->n_inputs; i++) {
        if (step->in_grad[i] == NO_PLACE) continue;
        own(lines, node->inputs[i], true, step->in_grad[i]);
        hold_backward(lines, step, node);
        if (!(node->spec->grad_in_place == i && step->in_grad[i] == step->out_grad[0]) &&
            !(node->spec->grad_in_place == 0 && step->in_grad[0] == step->out_grad[0]))
            hold(lines, node->spec->name, node->outputs[0], true, step->out_grad[0]);
    }
}

static void check_kept(const Lines *lines) {
    const Tape *tape = lines->tape;
    for (int t = 0; t < tape->n_tensors; t++)
        if (tape->tensors[t]->kept && !tape->tensors[t]->input)
            hold(lines, "the user", tape->tensors[t], false, tape->plan.value_place[t]);
}

static void replay_symbolically(const Tape *tape) {
    Lines lines = {.tape = tape, .n_lines = (int)(tape->plan.bytes / ARENA_ALIGNMENT)};
    lines.owner = array((size_t)lines.n_lines, sizeof *lines.owner);
    for (int i = 0; i < lines.n_lines; i++) lines.owner[i] = NOBODY;
    for (int s = 0; s < tape->plan.n_steps; s++) {
        const Step *step = &tape->plan.steps[s];
        if (s == tape->plan.n_forward) check_kept(&lines);
        if (step->kind == STEP_BACKWARD)
            replay_backward_step(&lines, step, tape->nodes[step->node]);
        else
            replay_forward_step(&lines, step, tape->nodes[step->node]);
    }
    check_kept(&lines);
    for (int t = 0; t < tape->n_tensors; t++)
        if (tape->tensors[t]->input && tape->plan.grad_place[t] != NO_PLACE)
            hold(&lines, "the user", tape->tensors[t], true, tape->plan.grad_place[t]);
    free(lines.owner);
}

/* ---- numbers ---- */

static Tape *training_tape(int buffers) {
    return tape_new(&(TapeOptions){
        .capacity = CAPACITY, .segments = MAX_SEGMENTS, .samples = MAX_SAMPLES, .buffers = buffers, .training = true});
}

/* Fp32 rounding through up to 45 operations; 4e-7 was the most seen. */
static const double tolerance = 2e-6, value_tolerance = 2e-5; /* a single sum may cancel */

static void expect_gradient(const Graph *g, double *x, const float *found, size_t n, uint64_t seed, const char *what) {
    double *expected = graph_differences(g, x, n), norm = 0;
    for (size_t i = 0; i < n; i++) norm += expected[i] * expected[i];
    float *zero = array(n, sizeof *zero);
    double error = relative_error(found ? found : zero, expected, n);
    if (getenv("CRIA_TEST_VERBOSE")) printf("graph %d: %s %.1e of %.1e\n", (int)seed, what, error, sqrt(norm));
    if (norm > 1e-12) /* else nothing reaches it */
        ck_assert_msg(error <= tolerance, "graph %d: gradient of %s is off by %.2e", (int)seed, what, error);
    free(zero);
    free(expected);
}

static void expect_kept_values(const Graph *g, Tape *tape, const Recording *r) {
    graph_loss(g);
    for (int v = GRAPH_INPUTS; v < g->n_values; v++)
        if (g->values[v].kept)
            ck_assert_double_le(relative_error(tape_value(tape, 0, r->values[v]), g->out[v], graph_elements(g, v)),
                                value_tolerance);
}

static void replay(const Graph *g, Tape *tape, const Recording *r, int buffer) {
    graph_bind(g, tape, r, buffer);
    CHECK_OK(tape_forward(tape, buffer));
    CHECK_OK(tape_backward(tape, buffer));
}

START_TEST(random_graphs_agree_with_fp64_and_nothing_living_is_overwritten) {
    threads_init(1);
    CHECK_OK(kernels_select("auto"));
    for (uint64_t seed = 0; seed < (uint64_t)check_rounds(N_GRAPHS); seed++) {
        bool regions = seed % 2 == 1;
        Graph *g = graph_new(seed, regions);
        Tape *tape = training_tape(1);
        Recording *r = graph_record(g, tape, regions, false);
        replay_symbolically(tape);
        replay(g, tape, r, 0);
        expect_kept_values(g, tape, r);
        for (int i = 0; i < GRAPH_INPUTS; i++)
            expect_gradient(g, g->x[i], tape_grad(tape, 0, r->values[i]), graph_elements(g, i), seed, "an input");
        for (int w = 0; w < GRAPH_WEIGHTS; w++)
            if (!g->frozen[w])
                expect_gradient(g, g->w[w], r->dw[w], (size_t)(g->weight_rows[w] * g->weight_cols[w]), seed,
                                "a weight");
        tape_free(tape);
        recording_free(r);
        graph_free(g);
    }
}
END_TEST

static void expect_same_gradients(const Graph *g, Tape *a, const Recording *ra, int buffer_a, Tape *b,
                                  const Recording *rb, int buffer_b) {
    for (int i = 0; i < GRAPH_INPUTS; i++) {
        const float *found = tape_grad(a, buffer_a, ra->values[i]), *expected = tape_grad(b, buffer_b, rb->values[i]);
        ck_assert((found == NULL) == (expected == NULL));
        if (found) ck_assert_mem_eq(found, expected, graph_elements(g, i) * sizeof(float));
    }
    for (int w = 0; w < GRAPH_WEIGHTS; w++)
        ck_assert_mem_eq(ra->dw[w], rb->dw[w], (size_t)(g->weight_rows[w] * g->weight_cols[w]) * sizeof(float));
}

START_TEST(recomputed_and_kept_plans_give_the_same_bits) {
    threads_init(1);
    CHECK_OK(kernels_select("auto"));
    size_t bytes[3] = {0};
    for (uint64_t seed = 0; seed < (uint64_t)check_rounds(N_GRAPHS); seed++) {
        Graph *g = graph_new(seed, true);
        Tape *tapes[3];
        Recording *r[3];
        for (int k = 0; k < 3; k++) { /* stored, recomputed, everything kept */
            tapes[k] = training_tape(1);
            r[k] = graph_record(g, tapes[k], k == 1, k == 2);
            replay(g, tapes[k], r[k], 0);
            bytes[k] += tape_bytes(tapes[k]);
        }
        expect_same_gradients(g, tapes[1], r[1], 0, tapes[0], r[0], 0);
        expect_same_gradients(g, tapes[2], r[2], 0, tapes[0], r[0], 0);
        for (int k = 0; k < 3; k++) {
            tape_free(tapes[k]);
            recording_free(r[k]);
        }
        graph_free(g);
    }
    ck_assert_uint_lt(bytes[0], bytes[2]);
}
END_TEST

START_TEST(buffers_in_flight_do_not_disturb_each_other) {
    threads_init(1);
    CHECK_OK(kernels_select("auto"));
    for (uint64_t seed = 0; seed < (uint64_t)check_rounds(N_GRAPHS / 3); seed++) {
        Graph *g = graph_new(seed, true);
        Tape *flight = training_tape(2), *alone = training_tape(2);
        Recording *r = graph_record(g, flight, true, false), *a = graph_record(g, alone, true, false);
        static const int shorter[] = {2, 1, 1};
        BatchArrays arrays;
        TapeBatch full = g->batch, part = make_batch(&arrays, 3, shorter, 1);
        for (int i = 0; i < 3; i++) g->index[i] %= part.n_tokens;
        for (int k = 0; k < 2; k++) {
            g->batch = k ? part : full;
            graph_bind(g, flight, r, k);
            CHECK_OK(tape_forward(flight, k));
        }
        for (int k = 0; k < 2; k++) CHECK_OK(tape_backward(flight, k));
        for (int k = 0; k < 2; k++) {
            g->batch = k ? part : full;
            replay(g, alone, a, k);
        }
        for (int k = 0; k < 2; k++) {
            g->batch = k ? part : full;
            expect_same_gradients(g, flight, r, k, alone, a, k);
        }
        /* fewer live rows after more, in one buffer: nothing is left of the first */
        for (int w = 0; w < GRAPH_WEIGHTS; w++)
            memset(a->dw[w], 0, (size_t)(g->weight_rows[w] * g->weight_cols[w]) * sizeof(float));
        Tape *fresh = training_tape(1);
        Recording *f = graph_record(g, fresh, true, false);
        replay(g, alone, a, 0);
        replay(g, fresh, f, 0);
        expect_same_gradients(g, alone, a, 0, fresh, f, 0);
        tape_free(flight);
        tape_free(alone);
        tape_free(fresh);
        recording_free(r);
        recording_free(a);
        recording_free(f);
        graph_free(g);
    }
}
END_TEST

CHECK_MAIN("plan", random_graphs_agree_with_fp64_and_nothing_living_is_overwritten,
           recomputed_and_kept_plans_give_the_same_bits, buffers_in_flight_do_not_disturb_each_other)
