/* See bench.h. The machine's speed drifts, within seconds where its cores are shared: it is measured before the steps,
 * in their midst and after, and medians are compared with medians. */
#include "train/commands/bench.h"

#include <inttypes.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/clock.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/memory.h"
#include "model/storage.h"
#include "train/flops.h"
#include "train/loop/loop.h"
#include "train/commands/random_steps.h"
#include "train/setup.h"

enum { USUAL_VOCABULARY = 32000 /* where neither the config nor a tokenizer says */ };

/* ---- the parts of a run ----------------------------------------------------------------------------------------- */

typedef struct {
    RandomSteps steps;
    Mesh *mesh;
    Llama *model;
    Lora *lora; /* NULL: none */
    Trained trained;
    Optimizer *optimizer;
    Arena arena;
    Objective *objective;
    Loop *loop;
    LoopState state;
    Dtype precision;
    uint64_t peak; /* of memory, before the last measurement of the machine */
} Run;

static void run_free(Run *run) {
    loop_free(run->loop);
    if (run->objective) run->objective->free(run->objective);
    optimizer_free(run->optimizer);
    arena_free(&run->arena);
    lora_free(run->lora);
    llama_free(run->model);
    guard_free(&run->state.guard);
    random_steps_free(&run->steps);
    if (run->mesh) mesh_finalize(run->mesh);
}

static int make_model(Run *run, Config *config, const BenchOptions *options) {
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
    LlamaOptions how = setup_llama(config, (int)config->train_context);
    if (options->frozen && config->lora_rank == 0)
        how.frozen = config->lora_base > 0 ? (Frozen)config->lora_base : FROZEN_16BIT;
    TRY(llama_new(&run->model, &shape, how));
    return llama_init(run->model, setup_init(config));
}

/* Where lora.rank asks for one. */
static int make_adapter(Run *run, const Config *config) {
    LoraOptions options;
    bool wanted;
    TRY(setup_lora(&options, &wanted, config));
    if (!wanted) return OK;
    TRY(lora_new(&run->lora, run->model, options, (LlamaOptions){.training = true, .precision = run->precision}));
    return lora_init(run->lora, (uint64_t)config->seed);
}

static int make_run(Run *run, Config *config, const BenchOptions *options) {
    char name[] = "cria", *arguments[] = {name, NULL}, **argv = arguments;
    int argc = 1;
    TRY(mesh_init(&run->mesh, &argc, &argv));
    if (mesh_size(run->mesh) > 1) FAIL(ERR_USAGE, "bench measures one rank; start it without mpirun");
    if (!config_is_set(config, OPTION_train_tokens_per_batch)) /* one micro-batch a step tells as much, sooner */
        config->train_tokens_per_batch = config->train_tokens_per_microbatch;
    run->precision = setup_precision(config);
    TRY(make_model(run, config, options));
    TRY(make_adapter(run, config));
    TRY(random_steps_new(&run->steps, config, run->model->shape.vocab_size));
    TRY(trained_list(&run->trained, run->model, run->lora, &run->arena));
    TRY(setup_optimizer(&run->optimizer, &run->trained, config, &run->arena));
    LoopOptions loop_options = setup_loop(config, config->train_steps > 0 ? config->train_steps : 1000, 1);
    TRY(nll_objective_new(&run->objective, loop_options.tokens_per_microbatch));
    LoopParts parts = {.model = run->model,
                       .batches = random_steps_batches(&run->steps),
                       .lora = run->lora,
                       .optimizer = run->optimizer,
                       .objective = run->objective,
                       .mesh = run->mesh};
    return loop_new(&run->loop, &parts, &loop_options);
}

/* Tied weights are counted once. */
static BenchModel describe(const Run *run, const BenchOptions *options) {
    const LlamaShape *shape = &run->model->shape;
    ForwardFlops flops = forward_flops(shape, run->steps.context);
    BenchModel model = {.tokens_per_step = run->steps.tokens,
                        .micro_batches = run->steps.n_micro,
                        .precision = run->precision,
                        .flops_per_token = 3 * forward_flops_total(flops),
                        .attention_flops_share = flops.attention / forward_flops_total(flops)};
    for (int i = 0; i < run->model->n_weights; i++) {
        const Weight *weight = run->model->weights[i];
        if (weight->tied || weight->trainable) continue;
        model.frozen += weight_elements(weight);
        if (weight->value) model.frozen_bytes += weight_value_bytes(weight);
    }
    model.trained = trained_elements(&run->trained);
    model.frozen_bytes += run->model->frozen_bytes;
    if (options->frozen || run->lora)
        model.flops_per_token -= flops.matrices + flops.head; /* no gradients of matrices */
    return model;
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* Bytes of the heap in use, and of everything mapped but the stack. */
static int64_t allocated_now(void) {
    struct mallinfo2 heap = mallinfo2();
    MemoryUse use = memory_use();
    return (int64_t)(heap.uordblks + heap.hblkhd) + (int64_t)(use.mapped - use.stack);
}

static int one_step(Run *run, LoopStep *step) {
    TRY(loop_step(run->loop, &run->state, step));
    if (!step->applied)
        FAIL(ERR_FAILED, "a step was not applied: loss %g, gradient norm %g", step->loss, step->grad_norm);
    return OK;
}

static int warm_up(Run *run, int64_t steps) {
    LoopStep step;
    for (int64_t i = 0; i < steps; i++) TRY(one_step(run, &step));
    return OK;
}

/* Seconds of each step, in the order they were run. */
enum { MOST_STEPS = 1 << 20 };
typedef struct {
    double *seconds, *updates; /* [MOST_STEPS] */
    int n;
} Times; /* of some steps */

static int times_new(Times *times) {
    *times = (Times){calloc(MOST_STEPS, sizeof(double)), calloc(MOST_STEPS, sizeof(double)), 0};
    if (!times->seconds || !times->updates) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

static void times_free(Times *times) {
    free(times->seconds);
    free(times->updates);
}

/* At least `steps` more for at least `seconds`. */
static int run_steps(BenchTurn *turn, Run *run, Times *times, int64_t steps, double seconds) {
    LoopStep step = {.loss = 0};
    int first = times->n;
    int64_t before = allocated_now();
    double start = clock_seconds();
    while (times->n < MOST_STEPS && (times->n - first < steps || clock_seconds() - start < seconds)) {
        TRY(one_step(run, &step));
        times->seconds[times->n] = step.seconds;
        times->updates[times->n++] = step.update_seconds;
    }
    turn->allocated_bytes += allocated_now() - before;
    turn->loss = step.loss;
    return OK;
}

static void sum_up(BenchTurn *turn, const Run *run, Times *times) {
    uint64_t peak = memory_use().peak;
    turn->steps = times->n;
    turn->median_seconds = median_of(times->seconds, times->n);
    turn->best_seconds = times->seconds[0]; /* sorted now */
    turn->update_seconds = median_of(times->updates, times->n);
    turn->peak_memory_bytes = peak > run->peak ? peak : run->peak;
}

/* ---- one measurement -------------------------------------------------------------------------------------------- */

/* What the measurement itself takes is not the run's. */
static MachineSpeed sit(Run *run) {
    uint64_t peak = memory_use().peak;
    if (run->loop && peak > run->peak) run->peak = peak;
    MachineSpeed speed = probe_machine(run->precision == DTYPE_BF16);
    memory_reset_peak();
    return speed;
}

/* Two halves, the machine measured between them; after it the caches are cold, so a step is left out. */
static int measure_steps(BenchResult *result, Run *run, const BenchOptions *options) {
    int rc = OK;
    Times times;
    int64_t half = (options->steps + 1) / 2;
    TRY_TO(done, times_new(&times));
    TRY_TO(done, warm_up(run, options->warmup));
    TRY_TO(done, run_steps(&result->turn, run, &times, half, options->seconds / 2));
    result->sittings[1] = sit(run);
    TRY_TO(done, warm_up(run, 1));
    TRY_TO(done, run_steps(&result->turn, run, &times, options->steps - half, options->seconds / 2));
    sum_up(&result->turn, run, &times);
done:
    times_free(&times);
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
    TRY(one_step(run, &step));
    for (int row = 0; row < tape_profile_rows(tape); row++) {
        double forward, backward;
        BenchOp *op = find_op(result, tape_profile_row(tape, row, &forward, &backward));
        op->forward_seconds += forward;
        op->backward_seconds += backward;
        if (strcmp(op->name, "attention") == 0) result->attention_time_share += (forward + backward) / step.seconds;
    }
    tape_profile(tape, false);
    qsort(result->ops, (size_t)result->n_ops, sizeof *result->ops, compare_ops);
    result->profiled_seconds = step.seconds;
    result->profiled_update_seconds = step.update_seconds;
    return OK;
}

/* AdamW's pass alone, on the gradients of the last step; a learning rate of nearly zero leaves the model as it is. */
static void measure_adamw(BenchResult *result, Run *run) {
    enum { SAMPLES = 7 };
    const double LEARNING_RATE = 1e-12, NORM = 1;
    double seconds[SAMPLES];
    for (int i = 0; i < SAMPLES; i++) {
        double start = clock_seconds();
        optimizer_step(run->optimizer, LEARNING_RATE, NORM);
        seconds[i] = clock_seconds() - start;
    }
    result->adamw_seconds = median_of(seconds, SAMPLES);
    result->adamw_bytes = adamw_bytes_per_parameter(run->model->packing_bytes > 0, optimizer_moments(run->optimizer)) *
                          (double)result->model.trained;
}

/* A CPU without bf16 instructions multiplies bf16 numbers in fp32. */
static double peak_of(const MachineSpeed *machine, Dtype precision) {
    if (precision != DTYPE_BF16) return machine->rate[MACHINE_F32_PRODUCT];
    double tiles = machine->rate[MACHINE_BF16_CACHE];
    return tiles > 0 ? tiles : machine->rate[MACHINE_F32_CACHE];
}

static void compare(BenchResult *result) {
    const BenchModel *model = &result->model;
    const BenchTurn *turn = &result->turn;
    double tokens = (double)model->tokens_per_step;
    result->machine = machine_median(result->sittings, BENCH_SITTINGS);
    result->tokens_per_second = tokens / turn->median_seconds;
    result->best_tokens_per_second = tokens / turn->best_seconds;
    result->flops_per_second = model->flops_per_token * result->tokens_per_second;
    result->peak_flops = peak_of(&result->machine, model->precision);
    result->mfu = result->peak_flops > 0 ? result->flops_per_second / result->peak_flops : 0;
    result->excess_bytes =
        (int64_t)turn->peak_memory_bytes - (int64_t)(BYTES_PER_TRAINED * model->trained + model->frozen_bytes);
}

static int measure(BenchResult *result, Run *run, Config *config, const BenchOptions *options) {
    TRY(make_run(run, config, options));
    result->model = describe(run, options);
    TRY(measure_steps(result, run, options));
    TRY(profile_step(result, run));
    measure_adamw(result, run);
    result->activation_bytes = loop_tape_bytes(run->loop);
    return OK;
}

int bench_run(BenchResult *result, Config *config, const BenchOptions *options) {
    Run run = {.state = {.best_step = -1}, .precision = setup_precision(config)};
    *result = (BenchResult){.sittings = {sit(&run)}};
    int rc = measure(result, &run, config, options);
    run_free(&run);
    TRY(rc);
    result->sittings[2] = sit(&(Run){.precision = result->model.precision});
    compare(result);
    return OK;
}

void bench_free(BenchResult *result) {
    free(result->ops);
    *result = (BenchResult){.ops = NULL};
}

/* ---- turns ------------------------------------------------------------------------------------------------------ */

static void tell_model(const BenchModel *model, FILE *out) {
    fprintf(out,
            "{\"ready\": true, \"trained_parameters\": %" PRIu64 ", \"frozen_parameters\": %" PRIu64
            ", \"tokens_per_step\": %" PRId64 ", \"flops_per_token\": %.9g}\n",
            model->trained, model->frozen, model->tokens_per_step, model->flops_per_token);
    fflush(out);
}

static void tell_turn(const BenchTurn *turn, const BenchModel *model, FILE *out) {
    fprintf(out,
            "{\"tokens_per_second\": %.9g, \"steps\": %d, \"step_seconds\": %.9g, \"peak_memory_bytes\": %" PRIu64
            ", \"loss\": %.9g}\n",
            (double)model->tokens_per_step / turn->median_seconds, turn->steps, turn->median_seconds,
            turn->peak_memory_bytes, turn->loss);
    fflush(out);
}

static int serve(Run *run, Times *times, const BenchModel *model, FILE *in, FILE *out) {
    char line[128];
    while (fgets(line, sizeof line, in)) {
        BenchTurn turn = {.steps = 0};
        char *end;
        long long steps = strtoll(line, &end, 10);
        double seconds = strtod(end, NULL);
        if (steps < 1) FAIL(ERR_USAGE, "a turn is a line 'STEPS SECONDS', such as '2 0.5'; found '%s'", line);
        times->n = 0;
        TRY(run_steps(&turn, run, times, steps, seconds));
        sum_up(&turn, run, times);
        tell_turn(&turn, model, out);
    }
    return OK;
}

int bench_serve(Config *config, const BenchOptions *options, FILE *in, FILE *out) {
    int rc = OK;
    Run run = {.state = {.best_step = -1}};
    Times times;
    TRY_TO(done, times_new(&times));
    TRY_TO(done, make_run(&run, config, options));
    TRY_TO(done, warm_up(&run, options->warmup));
    BenchModel model = describe(&run, options);
    tell_model(&model, out);
    rc = serve(&run, &times, &model, in, out);
done:
    times_free(&times);
    run_free(&run);
    return rc;
}
