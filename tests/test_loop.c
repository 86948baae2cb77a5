/* The training loop's decisions around bad steps, with a save and a roll-back that only take notes. */
#include <math.h>
#include <signal.h>
#include <string.h>

#include "tests/data_fixture.h"
#include "train/console/interrupt.h"
#include "train/loop/loop.h"

enum { MOST_SAVES = 8 };

typedef struct {
    LoopParts parts;
    Tokenizer *bytes;
    OptimParameter *parameters;
    Loop *loop;
    LoopState state;
    int n_saves, n_loads;
    int64_t saved_step[MOST_SAVES], saved_bad[MOST_SAVES];
} Fixture;

static int note_save(void *context, const LoopState *state, bool is_best) {
    Fixture *fixture = context;
    (void)is_best;
    ck_assert_int_lt(fixture->n_saves, MOST_SAVES);
    fixture->saved_step[fixture->n_saves] = state->step;
    fixture->saved_bad[fixture->n_saves++] = state->guard.bad_in_a_row;
    return OK;
}

/* What broke the model is undone. */
static int mend(void *context, LoopState *state) {
    Fixture *fixture = context;
    fixture->n_loads++;
    fixture->parts.model->norm.value[0] = 1;
    *state = (LoopState){.best_step = -1};
    return OK;
}

static void make_loader(Fixture *fixture) {
    char text[4096];
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('a' + i * i % 23);
    SourceOptions source = {
        .path = fixture_write("text.txt", text, sizeof text), .name = "text", .field = "text", .weight = 1};
    LoaderOptions options = {.sources = &source,
                             .n_sources = 1,
                             .cache = fixture_folder,
                             .context = 16,
                             .tokens_per_batch = 64,
                             .tokens_per_microbatch = 32,
                             .n_ranks = 1};
    CHECK_OK(loader_open(&fixture->parts.loader, &options, fixture->bytes));
}

static void make_optimizer(Fixture *fixture) {
    Llama *model = fixture->parts.model;
    fixture->parameters = calloc((size_t)model->n_weights, sizeof *fixture->parameters);
    for (int i = 0; i < model->n_weights; i++) {
        Weight *weight = model->weights[i];
        fixture->parameters[i] =
            (OptimParameter){.value = weight->value, .grad = weight->grad, .n = weight_elements(weight)};
    }
    CHECK_OK(optimizer_new(&fixture->parts.optimizer, fixture->parameters, (size_t)model->n_weights,
                           (OptimOptions){.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8}));
}

static void set_up(Fixture *fixture, int64_t steps) {
    LlamaShape shape = {.dim = 16,
                        .n_layers = 1,
                        .n_heads = 2,
                        .vocab_size = 258,
                        .max_context = 16,
                        .norm_eps = 1e-5f,
                        .rope_theta = 1e4f};
    *fixture = (Fixture){.state.best_step = -1};
    fixture_setup();
    CHECK_OK(tokenizer_load(&fixture->bytes, "bytes"));
    CHECK_OK(llama_shape_check(&shape));
    CHECK_OK(llama_new(&fixture->parts.model, &shape, (LlamaOptions){.training = true}));
    CHECK_OK(llama_init(fixture->parts.model, (LlamaInit){.seed = 1, .std = 0.02f}));
    CHECK_OK(mesh_init(&fixture->parts.mesh, NULL, NULL));
    CHECK_OK(nll_objective_new(&fixture->parts.objective, 32));
    make_loader(fixture);
    make_optimizer(fixture);
    fixture->parts.hooks = (LoopHooks){.context = fixture, .save = note_save, .load_newest = mend};
    LoopOptions options = {.steps = steps,
                           .log_every = 1,
                           .tokens_per_microbatch = 32,
                           .schedule = {.kind = SCHEDULE_CONSTANT, .peak = 1e-3, .total = steps}};
    CHECK_OK(loop_new(&fixture->loop, &fixture->parts, &options));
}

static void tear_down(Fixture *fixture) {
    loop_free(fixture->loop);
    optimizer_free(fixture->parts.optimizer);
    free(fixture->parameters);
    loader_free(fixture->parts.loader);
    fixture->parts.objective->free(fixture->parts.objective);
    llama_free(fixture->parts.model);
    tokenizer_free(fixture->bytes);
    guard_free(&fixture->state.guard);
    mesh_finalize(fixture->parts.mesh);
    fixture_teardown();
}

/* A checkpoint of weights that give NaN would be the newest, the one that every later roll-back goes to. */
START_TEST(an_interruption_among_bad_steps_saves_at_the_next_good_one) {
    Fixture fixture;
    set_up(&fixture, 20);
    fixture.parts.model->norm.value[0] = NAN;
    interrupt_install(NULL);
    raise(SIGTERM);
    CHECK_ERROR(loop_run(fixture.loop, &fixture.state), ERR_INTERRUPTED, "interrupted at step 4 of 20");
    interrupt_restore();
    ck_assert_int_eq(fixture.n_loads, 1);
    ck_assert_int_eq(fixture.n_saves, 1);
    ck_assert_int_eq(fixture.saved_step[0], 4); /* steps 0, 1, 2 were bad and are skipped */
    ck_assert_int_eq(fixture.saved_bad[0], 0);
    tear_down(&fixture);
}
END_TEST

START_TEST(an_interruption_saves_after_the_step_it_fell_in) {
    Fixture fixture;
    set_up(&fixture, 20);
    interrupt_install(NULL);
    raise(SIGTERM);
    CHECK_ERROR(loop_run(fixture.loop, &fixture.state), ERR_INTERRUPTED, "interrupted at step 1 of 20");
    interrupt_restore();
    ck_assert_int_eq(fixture.n_saves, 1);
    tear_down(&fixture);
}
END_TEST

CHECK_MAIN("loop", an_interruption_among_bad_steps_saves_at_the_next_good_one,
           an_interruption_saves_after_the_step_it_fell_in)
