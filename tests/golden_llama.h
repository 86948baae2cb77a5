/* The golden Llamas of tests/golden/llama.py, loaded through the program's own readers, and a model run on batches cut
 * in any way. */
#ifndef CRIA_TESTS_GOLDEN_LLAMA_H
#define CRIA_TESTS_GOLDEN_LLAMA_H

#include <math.h>
#include <string.h>

#include "model/core/threads.h"
#include "model/formats/hf_config.h"
#include "model/llama.h"
#include "model/shape_hf.h"
#include "tests/check_main.h"

static const char *const golden_cases[] = {"gqa", "tied", "llama31", "odd_heads", "packed", "large_init"};
static const char *const golden_kernels[] = {"reference", "openblas", "avx2", "avx512"};
enum { N_GOLDEN = 6, N_GOLDEN_KERNELS = 4, GOLDEN_BATCHES = 3, GOLDEN_STEPS = 20 };

/* Chooses a table; false, with a printed line, where this CPU cannot run it. */
static inline bool golden_select(const char *table) {
    threads_init(1); /* these models are small, and threads that wait for each other are slow on a busy machine */
    int rc = kernels_select(table);
    if (rc == ERR_REFUSED) printf("without the %s kernels: %s\n", table, error_text());
    ck_assert(rc == OK || rc == ERR_REFUSED);
    return rc == OK;
}

/* ---- a case ---- */

/* A flat run of segments with a weight per token. */
typedef struct {
    int n_tokens, n_segments;
    int32_t *tokens, *targets, *positions, *segment_start;
    float *weights;
    uint32_t *segment_ids, step; /* for dropout */
} Run;

typedef struct {
    Arena arena;
    Llama *model;
    NamedFile *expected;
    Run batches[GOLDEN_BATCHES];
} Golden;

static inline void *golden_array(Golden *golden, const char *name, Dtype dtype, size_t *n) {
    const NamedArray *array = NULL;
    CHECK_OK(named_get(&array, golden->expected, name));
    ck_assert_msg(array->dtype == dtype, "%s is %s", name, dtype_name(array->dtype));
    *n = named_elements(array);
    void *values = arena_alloc(&golden->arena, named_bytes(array));
    CHECK_OK(named_read(golden->expected, array, 0, *n, values));
    return values;
}

static inline void golden_batch(Golden *golden, int k) {
    char name[64];
    size_t n = 0, n_starts = 0;
    Run *run = &golden->batches[k];
#define GOLDEN_FIELD(field, dtype, count)              \
    snprintf(name, sizeof name, "batch%d." #field, k); \
    run->field = golden_array(golden, name, dtype, &(count))
    GOLDEN_FIELD(segment_start, DTYPE_I32, n_starts);
    GOLDEN_FIELD(targets, DTYPE_I32, n);
    GOLDEN_FIELD(positions, DTYPE_I32, n);
    GOLDEN_FIELD(weights, DTYPE_F32, n);
    GOLDEN_FIELD(tokens, DTYPE_I32, n);
#undef GOLDEN_FIELD
    run->n_tokens = (int)n;
    run->n_segments = (int)n_starts - 1;
    /* A batch's targets are ids everywhere; -100 is torch's "not looked at", and has weight 0. */
    for (int t = 0; t < run->n_tokens; t++) {
        ck_assert(run->targets[t] >= 0 || run->weights[t] == 0);
        if (run->targets[t] < 0) run->targets[t] = 0;
    }
}

/* `wrong`, unless NULL, changes the shape first. */
static inline void golden_open_as(Golden *golden, const char *name, void (*wrong)(LlamaShape *), Dtype precision) {
    char path[256];
    HfConfig config;
    NamedFile *parameters = NULL;
    *golden = (Golden){0};
    snprintf(path, sizeof path, "tests/golden/llama_%s", name);
    CHECK_OK(hf_config_read(&config, path));
    LlamaShape shape = llama_shape_from_hf(&config);
    if (wrong) wrong(&shape);
    CHECK_OK(llama_shape_check(&shape));
    CHECK_OK(llama_new(&golden->model, &shape, (LlamaOptions){.training = true, .precision = precision}));
    CHECK_OK(named_open(&parameters, path));
    CHECK_OK(llama_load(golden->model, parameters));
    named_close(parameters);
    snprintf(path, sizeof path, "tests/golden/llama_%s/expected.safetensors", name);
    CHECK_OK(named_open(&golden->expected, path));
    for (int k = 0; k < GOLDEN_BATCHES; k++) golden_batch(golden, k);
}

static inline void golden_open(Golden *golden, const char *name) {
    golden_open_as(golden, name, NULL, DTYPE_F32);
}

static inline void golden_close(Golden *golden) {
    named_close(golden->expected);
    llama_free(golden->model);
    arena_free(&golden->arena);
}

static inline double run_weight(const Run *run) {
    double sum = 0;
    for (int t = 0; t < run->n_tokens; t++) sum += (double)run->weights[t];
    return sum;
}

/* ---- running a model ---- */

typedef struct {
    bool seeded; /* the gradient flows in behind the head; else the head knows it beforehand */
    Recompute recompute;
    Dtype precision; /* of the tape's activations */
} EngineOptions;

typedef struct {
    Llama *model;
    Tape *tape;
    Tensor *gradient;
    HeadOutputs head;
    float *values; /* of `gradient` */
} Engine;

static inline void engine_open(Engine *engine, Llama *model, int capacity, EngineOptions options) {
    *engine = (Engine){.model = model, .values = calloc((size_t)capacity, sizeof(float))};
    engine->tape = tape_new(&(TapeOptions){.capacity = capacity, .dtype = options.precision, .training = true});
    ck_assert(engine->tape && engine->values);
    engine->gradient = tape_input(engine->tape, ROWS_TOKENS, 1, DTYPE_F32, false);
    HeadOptions head = {.mask = options.seeded ? engine->gradient : NULL,
                        .known_gradient = options.seeded ? NULL : engine->gradient};
    engine->head = llama_record(engine->tape, model, (LlamaRecord){.recompute = options.recompute}, head);
    if (options.seeded) tape_seed(engine->tape, engine->head.logprob, engine->gradient);
    tape_keep(engine->head.logprob);
    CHECK_OK(tape_plan(engine->tape));
}

static inline void engine_close(Engine *engine) {
    tape_free(engine->tape);
    free(engine->values);
}

/* One micro-batch, forward and backward: adds to the gradients of sum(w·nll) / total_weight, returns its part of it. */
static inline double engine_run(Engine *engine, const Run *run, double total_weight) {
    for (int t = 0; t < run->n_tokens; t++) engine->values[t] = (float)(-(double)run->weights[t] / total_weight);
    TapeBatch batch = {.n_tokens = run->n_tokens,
                       .n_segments = run->n_segments,
                       .n_samples = run->n_segments,
                       .tokens = run->tokens,
                       .positions = run->positions,
                       .segment_start = run->segment_start,
                       .targets = run->targets,
                       .segment_ids = run->segment_ids,
                       .step = run->step};
    CHECK_OK(tape_bind(engine->tape, 0, &batch));
    tape_bind_input(0, engine->gradient, engine->values);
    CHECK_OK(tape_forward(engine->tape, 0));
    const float *logprob = tape_value(engine->tape, 0, engine->head.logprob);
    double loss = 0;
    for (int t = 0; t < run->n_tokens; t++)
        if (run->weights[t] > 0) loss -= (double)run->weights[t] * (double)logprob[t];
    CHECK_OK(tape_backward(engine->tape, 0));
    return loss / total_weight;
}

static inline void clear_gradients(Llama *model) {
    for (int i = 0; i < model->n_weights; i++)
        memset(model->weights[i]->grad, 0, weight_elements(model->weights[i]) * sizeof(float));
}

/* ---- comparing ---- */

/* The model's gradients as named arrays, a tied head merged into its embedding. */
static inline NamedArray *named_gradients(Llama *model, Arena *arena, size_t *n) {
    llama_merge_tied_gradients(model);
    void **storage = arena_alloc(arena, (size_t)model->n_weights * sizeof *storage);
    for (int i = 0, stored = 0; i < model->n_weights; i++)
        if (!model->weights[i]->tied) storage[stored++] = model->weights[i]->grad;
    NamedArray *arrays = NULL;
    CHECK_OK(llama_arrays(model, (WeightStorage){storage, DTYPE_F32, NULL}, arena, &arrays, n));
    return arrays;
}

/* ‖(a - base) - (b - base)‖ / ‖b - base‖; base NULL: 0. */
static inline double relative_distance(const float *a, const float *b, const float *base, size_t n) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        double from = base ? (double)base[i] : 0, d = (double)a[i] - (double)b[i], s = (double)b[i] - from;
        difference += d * d;
        size += s * s;
    }
    return size > 0 ? sqrt(difference / size) : (difference > 0 ? INFINITY : 0);
}

/* The largest of some distances, and whose it is. */
typedef struct {
    double value;
    char where[256];
} Worst;

static inline void worst_of(Worst *worst, double value, const char *a, const char *b, const char *c) {
    if (value < worst->value) return; /* a NaN is kept */
    worst->value = value;
    snprintf(worst->where, sizeof worst->where, "%s %s %s", a, b, c);
}

#endif
