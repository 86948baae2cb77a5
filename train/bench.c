/* See bench.h. The machine's speed drifts, so its peak is measured before and after, and the better one counts. */
#include "train/bench.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/clock.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/memory.h"
#include "model/core/philox.h"
#include "train/loop.h"
#include "train/probe.h"
#include "train/setup.h"

enum { USUAL_VOCABULARY = 32000 /* where neither the config nor a tokenizer says */ };

/* ---- random steps ----------------------------------------------------------------------------------------------- */

/* The micro-batches of a step whose sequences are all full. */
typedef struct {
    Arena arena;
    MicroBatch *micro;
    int n_micro, vocabulary, context;
    int64_t tokens;
    uint64_t seed;
} RandomSteps;

static int add_micro(RandomSteps *steps, int n_sequences) {
    MicroBatch *micro = &steps->micro[steps->n_micro++];
    int n = n_sequences * steps->context;
    *micro = (MicroBatch){.n_tokens = n, .n_segments = n_sequences, .n_samples = n_sequences};
    ARENA_TRY(micro->tokens, &steps->arena, n);
    ARENA_TRY(micro->targets, &steps->arena, n);
    ARENA_TRY(micro->positions, &steps->arena, n);
    ARENA_TRY(micro->weights, &steps->arena, n);
    ARENA_TRY(micro->segment_start, &steps->arena, n_sequences + 1);
    ARENA_TRY(micro->source, &steps->arena, n_sequences);
    ARENA_TRY(micro->sample_id, &steps->arena, n_sequences);
    for (int t = 0; t < n; t++) {
        micro->positions[t] = t % steps->context;
        micro->weights[t] = 1;
    }
    for (int s = 0; s <= n_sequences; s++) micro->segment_start[s] = s * steps->context;
    steps->tokens += n;
    return OK;
}

/* As many sequences as fit the batch, cut into micro-batches as the loader cuts them. */
static int make_steps(RandomSteps *steps, const Config *config, int vocabulary) {
    steps->vocabulary = vocabulary;
    steps->context = (int)config->train_context;
    steps->seed = (uint64_t)config->seed;
    int64_t left = config->train_tokens_per_batch / config->train_context;
    int64_t most = config->train_tokens_per_microbatch / config->train_context;
    ARENA_TRY(steps->micro, &steps->arena, (left + most - 1) / most);
    for (; left > 0; left -= most) TRY(add_micro(steps, (int)(left < most ? left : most)));
    return OK;
}

/* New tokens for every step; a target is the token after it. */
static int random_step(void *context, int64_t step, StepBatch *batch) {
    RandomSteps *steps = context;
    PhiloxKey key = philox_key(steps->seed, PHILOX_TEST, (uint32_t)step, 0);
    uint64_t index = 0;
    for (int m = 0; m < steps->n_micro; m++) {
        MicroBatch *micro = &steps->micro[m];
        for (int t = 0; t < micro->n_tokens; t++) {
            int32_t token = (int32_t)philox_below(key, index++, (uint64_t)steps->vocabulary);
            micro->tokens[t] = token;
            if (t > 0) micro->targets[t - 1] = token;
        }
        micro->targets[micro->n_tokens - 1] = micro->tokens[0];
    }
    *batch = (StepBatch){.micro = steps->micro,
                         .n_micro = steps->n_micro,
                         .total_weight = (double)steps->tokens,
                         .total_tokens = steps->tokens};
    return OK;
}

/* ---- the parts of a run ----------------------------------------------------------------------------------------- */

typedef struct {
    RandomSteps steps;
    Mesh *mesh;
    Llama *model;
    Optimizer *optimizer;
    Objective *objective;
    Loop *loop;
    LoopState state;
} Run;

static void run_free(Run *run) {
    loop_free(run->loop);
    if (run->objective) run->objective->free(run->objective);
    optimizer_free(run->optimizer);
    llama_free(run->model);
    guard_free(&run->state.guard);
    arena_free(&run->steps.arena);
    if (run->mesh) mesh_finalize(run->mesh);
}

static int make_model(Run *run, Config *config) {
    LlamaShape shape;
    Tokenizer *tokenizer = NULL;
    if (*config->model_base)
        return config_fail(config, OPTION_model_base, "bench makes a new model: give model.preset, or a shape");
    if (*config->tokenizer_path && tokenizer_load(&tokenizer, config->tokenizer_path) != OK) error_clear();
    if (!tokenizer && config->model_vocab_size == 0 && !*config->model_preset) {
        config->model_vocab_size = USUAL_VOCABULARY;
        log_info("a vocabulary of %d tokens is assumed; model.vocab_size says otherwise", USUAL_VOCABULARY);
    }
    int rc = setup_shape(&shape, config, tokenizer);
    tokenizer_free(tokenizer);
    TRY(rc);
    LlamaOptions how = {
        .training = true, .precision = setup_precision(config), .n_positions = (int)config->train_context};
    TRY(llama_new(&run->model, &shape, how));
    return llama_init(run->model, setup_init(config));
}

static int make_run(Run *run, Config *config, int *argc, char ***argv) {
    TRY(mesh_init(&run->mesh, argc, argv));
    if (mesh_size(run->mesh) > 1) FAIL(ERR_USAGE, "bench measures one rank; start it without mpirun");
    if (!config_is_set(config, OPTION_train_tokens_per_batch)) /* one micro-batch a step tells as much, sooner */
        config->train_tokens_per_batch = config->train_tokens_per_microbatch;
    TRY(make_model(run, config));
    TRY(make_steps(&run->steps, config, run->model->shape.vocab_size));
    TRY(setup_optimizer(&run->optimizer, run->model, config, &run->steps.arena));
    LoopOptions options = setup_loop(config, config->train_steps > 0 ? config->train_steps : 1000, 1);
    TRY(nll_objective_new(&run->objective, options.tokens_per_microbatch));
    LoopParts parts = {.model = run->model,
                       .batches = {.context = &run->steps, .step = random_step},
                       .optimizer = run->optimizer,
                       .objective = run->objective,
                       .mesh = run->mesh};
    return loop_new(&run->loop, &parts, &options);
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

static MachineSpeed measure_machine(void) {
    return (MachineSpeed){.gemm_flops = probe_gemm_flops(), .copy_bytes = probe_copy_bytes()};
}

/* Bytes of the heap in use, and of everything mapped. */
static int64_t allocated_now(void) {
    struct mallinfo2 heap = mallinfo2();
    return (int64_t)(heap.uordblks + heap.hblkhd) + (int64_t)memory_use().mapped;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, compare_doubles);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static int check_step(const LoopStep *step) {
    if (!step->applied)
        FAIL(ERR_FAILED, "a step was not applied: loss %g, gradient norm %g", step->loss, step->grad_norm);
    return OK;
}

enum { MOST_STEPS = 1 << 20 };

/* The steps: the first allocates, some more warm the caches, the others count. */
static int measure_steps(BenchResult *result, Run *run, const BenchOptions *options) {
    int rc = OK, n = 0;
    LoopStep step = {.loss = 0};
    double *seconds = calloc(2 * (size_t)MOST_STEPS, sizeof *seconds);
    if (!seconds) FAIL(ERR_FAILED, "out of memory");
    double *updates = seconds + MOST_STEPS;
    for (int64_t i = 0; i < options->warmup; i++) {
        TRY_TO(done, loop_step(run->loop, &run->state, &step));
        TRY_TO(done, check_step(&step));
    }
    int64_t before = allocated_now();
    double start = clock_seconds();
    while (n < MOST_STEPS && (n < options->steps || clock_seconds() - start < options->seconds)) {
        TRY_TO(done, loop_step(run->loop, &run->state, &step));
        TRY_TO(done, check_step(&step));
        seconds[n] = step.seconds;
        updates[n++] = step.update_seconds;
    }
    result->allocated_bytes = allocated_now() - before;
    result->steps = n;
    result->loss = step.loss;
    result->median_seconds = median(seconds, n);
    result->best_seconds = seconds[0]; /* sorted now */
    result->update_seconds = median(updates, n);
    result->flops_per_second = 3 * step.forward_flops / result->median_seconds;
done:
    free(seconds);
    return rc;
}

static int compare_ops(const void *a, const void *b) {
    const BenchOp *x = a, *y = b;
    double first = x->forward_seconds + x->backward_seconds, second = y->forward_seconds + y->backward_seconds;
    return (first < second) - (first > second);
}

static BenchOp *find_op(BenchResult *result, const char *name) {
    for (int i = 0; i < result->n_ops; i++)
        /* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): the first n_ops have names */
        if (strcmp(result->ops[i].name, name) == 0) return &result->ops[i];
    result->ops[result->n_ops].name = name;
    return &result->ops[result->n_ops++];
}

/* One more step with the tape's clock on. */
static int profile_step(BenchResult *result, Run *run) {
    LoopStep step;
    Tape *tape = loop_training_tape(run->loop);
    result->ops = calloc((size_t)tape_profile_rows(tape) + 1, sizeof *result->ops);
    if (!result->ops) FAIL(ERR_FAILED, "out of memory");
    tape_profile(tape, true);
    TRY(loop_step(run->loop, &run->state, &step));
    for (int row = 0; row < tape_profile_rows(tape); row++) {
        double forward, backward;
        BenchOp *op = find_op(result, tape_profile_row(tape, row, &forward, &backward));
        op->forward_seconds += forward;
        op->backward_seconds += backward;
    }
    tape_profile(tape, false);
    qsort(result->ops, (size_t)result->n_ops, sizeof *result->ops, compare_ops);
    result->profiled_seconds = step.seconds;
    result->profiled_update_seconds = step.update_seconds;
    return OK;
}

static int measure(BenchResult *result, Run *run, const BenchOptions *options) {
    TRY(measure_steps(result, run, options));
    result->peak_memory_bytes = memory_use().peak;
    TRY(profile_step(result, run));
    result->parameters = llama_parameters(&run->model->shape);
    result->tokens_per_step = run->steps.tokens;
    result->micro_batches = run->steps.n_micro;
    result->activation_bytes = loop_tape_bytes(run->loop);
    result->tokens_per_second = (double)run->steps.tokens / result->median_seconds;
    result->best_tokens_per_second = (double)run->steps.tokens / result->best_seconds;
    return OK;
}

int bench_run(BenchResult *result, Config *config, const BenchOptions *options) {
    Run run = {.state = {.best_step = -1}};
    char name[] = "cria", *arguments[] = {name, NULL}, **argv = arguments;
    int argc = 1;
    *result = (BenchResult){.before = measure_machine()};
    memory_reset_peak(); /* the measurement's own arrays are not the run's */
    int rc = make_run(&run, config, &argc, &argv);
    if (rc == OK) rc = measure(result, &run, options);
    run_free(&run);
    TRY(rc);
    result->after = measure_machine();
    const MachineSpeed *before = &result->before, *after = &result->after;
    result->peak_flops = before->gemm_flops > after->gemm_flops ? before->gemm_flops : after->gemm_flops;
    result->mfu = result->peak_flops > 0 ? result->flops_per_second / result->peak_flops : 0;
    return OK;
}

void bench_free(BenchResult *result) {
    free(result->ops);
    *result = (BenchResult){0};
}
