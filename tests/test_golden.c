/* Whole models against Hugging Face transformers: values, gradients, and training. The expected numbers and how exact
 * they are themselves: tests/golden/llama.py, and the report in each tests/golden/llama_CASE/expected.json. Bounds are
 * a few times what two correct fp32 programs may differ by, which that report measures. */
#include "tests/golden_recipe.h"

static const double gradient_bound = 5e-6; /* relative to the norm; transformers itself is up to 1.6e-6 from fp64 */
static const double loss_bound = 1e-6;     /* of losses near 4; an ulp there is 4.8e-7 */
static const double change_bound = 5e-5; /* of ‖Δθ − Δθ_ref‖ / ‖Δθ_ref‖ after 20 steps; transformers: up to 1.6e-5 */

/* ---- values and gradients ---- */

static void compare_gradients(Golden *golden, const char *table, const char *name, Worst *worst) {
    size_t n = 0, elements = 0;
    NamedArray *gradients = named_gradients(golden->model, &golden->arena, &n);
    for (size_t i = 0; i < n; i++) {
        char key[160];
        snprintf(key, sizeof key, "grad.%s", gradients[i].name);
        const float *expected = golden_array(golden, key, DTYPE_F32, &elements);
        ck_assert_uint_eq(elements, named_elements(&gradients[i]));
        worst_of(worst, relative_distance(gradients[i].data, expected, NULL, elements), table, name, key);
    }
}

START_TEST(loss_and_gradients_equal_those_of_transformers) {
    for (int k = 0; k < N_GOLDEN_KERNELS; k++) {
        Worst gradient = {0}, loss = {0};
        if (!golden_select(golden_kernels[k])) continue;
        for (int c = 0; c < N_GOLDEN; c++)
            for (int way = 0; way < 2 * RECOMPUTE_KINDS; way++) {
                Golden golden;
                Engine engine;
                size_t n;
                golden_open(&golden, golden_cases[c]);
                const Run *run = &golden.batches[0];
                engine_open(&engine, golden.model, run->n_tokens + 5 * way,
                            (EngineOptions){.seeded = way & 1, .recompute = (Recompute)(way / 2)});
                double found = engine_run(&engine, run, run_weight(run));
                const double *expected = golden_array(&golden, "loss", DTYPE_F64, &n);
                worst_of(&loss, fabs(found - *expected), golden_kernels[k], golden_cases[c], "");
                compare_gradients(&golden, golden_kernels[k], golden_cases[c], &gradient);
                engine_close(&engine);
                golden_close(&golden);
            }
        printf("%s: loss %.1e (%s), gradients %.1e (%s)\n", golden_kernels[k], loss.value, loss.where, gradient.value,
               gradient.where);
        ck_assert_msg(loss.value <= loss_bound, "loss: %g, %s", loss.value, loss.where);
        ck_assert_msg(gradient.value <= gradient_bound, "gradient: %g, %s", gradient.value, gradient.where);
    }
}
END_TEST

static void another_theta(LlamaShape *shape) {
    shape->rope_theta *= 1.01f;
}
static void no_rotary_scaling(LlamaShape *shape) {
    shape->rope_scaling.factor = 0;
}
static void another_band(LlamaShape *shape) { /* the blend begins elsewhere */
    shape->rope_scaling.high_freq_factor *= 1.1f;
}
static void another_epsilon_of_norms(LlamaShape *shape) {
    shape->norm_eps *= 1.1f;
}

START_TEST(a_slightly_wrong_model_is_noticed) {
    static const struct {
        const char *what, *name;
        void (*wrong)(LlamaShape *);
    } controls[] = {{"theta 1 % off", "gqa", another_theta},
                    {"theta 1 % off", "packed", another_theta},
                    {"no Llama 3.1 scaling", "llama31", no_rotary_scaling},
                    {"another band of Llama 3.1 scaling", "llama31", another_band},
                    {"epsilon of norms 10 % off", "gqa", another_epsilon_of_norms}};
    if (!golden_select("auto")) return;
    for (size_t i = 0; i < sizeof controls / sizeof *controls; i++) {
        Golden golden;
        Engine engine;
        Worst gradient = {0};
        golden_open_as(&golden, controls[i].name, controls[i].wrong, DTYPE_F32);
        engine_open(&engine, golden.model, 128, (EngineOptions){0});
        engine_run(&engine, &golden.batches[0], run_weight(&golden.batches[0]));
        compare_gradients(&golden, controls[i].what, controls[i].name, &gradient);
        ck_assert_msg(gradient.value > 10 * gradient_bound, "%s in %s passes: %g", controls[i].what, controls[i].name,
                      gradient.value);
        engine_close(&engine);
        golden_close(&golden);
    }
}
END_TEST

START_TEST(logits_equal_those_of_transformers) {
    for (int k = 0; k < N_GOLDEN_KERNELS; k++) {
        Worst worst = {0};
        if (!golden_select(golden_kernels[k])) continue;
        for (int c = 0; c < N_GOLDEN; c++) {
            Golden golden;
            size_t n;
            golden_open(&golden, golden_cases[c]);
            const Run *run = &golden.batches[0];
            Tape *tape = tape_new(&(TapeOptions){.capacity = run->n_tokens});
            Tensor *logits = op_linear(tape, llama_hidden(tape, golden.model, (LlamaRecord){0}), &golden.model->head);
            tape_keep(logits);
            CHECK_OK(tape_plan(tape));
            TapeBatch batch = {.n_tokens = run->n_tokens,
                               .n_segments = run->n_segments,
                               .tokens = run->tokens,
                               .positions = run->positions,
                               .segment_start = run->segment_start};
            CHECK_OK(tape_bind(tape, 0, &batch));
            CHECK_OK(tape_forward(tape, 0));
            const float *expected = golden_array(&golden, "logits", DTYPE_F32, &n);
            const float *found = tape_value(tape, 0, logits);
            for (size_t i = 0; i < n; i++)
                worst_of(&worst, fabs((double)found[i] - (double)expected[i]), golden_kernels[k], golden_cases[c], "");
            tape_free(tape);
            golden_close(&golden);
        }
        printf("%s: logits %.1e (%s)\n", golden_kernels[k], worst.value, worst.where);
        ck_assert_msg(worst.value <= 1e-5, "%g, %s", worst.value, worst.where);
    }
}
END_TEST

/* Feeds tokens at consecutive positions of slot 1 and returns the best id after the last. */
static int32_t feed(Tape *tape, const HeadOutputs *head, const int32_t *tokens, int n, int32_t *position) {
    int32_t positions[32], slots[32], targets[32] = {0}, start[2] = {0, n};
    for (int i = 0; i < n; i++) positions[i] = (*position)++, slots[i] = 1;
    TapeBatch batch = {.n_tokens = n,
                       .n_segments = 1,
                       .tokens = tokens,
                       .positions = positions,
                       .segment_start = start,
                       .targets = targets,
                       .slots = slots};
    CHECK_OK(tape_bind(tape, 0, &batch));
    CHECK_OK(tape_forward(tape, 0));
    const int32_t *top1 = tape_value(tape, 0, head->top1);
    return top1[n - 1];
}

START_TEST(greedy_text_from_the_cache_equals_that_of_transformers) {
    for (int k = 0; k < N_GOLDEN_KERNELS; k++) {
        if (!golden_select(golden_kernels[k])) continue;
        for (int c = 0; c < N_GOLDEN; c++)
            for (int piece = 1; piece <= 16; piece += 15) { /* the prompt token by token, and at once */
                Golden golden;
                KvCache *cache = NULL;
                size_t n_prompt, n;
                int32_t position = 0, next = -1;
                golden_open(&golden, golden_cases[c]);
                const int32_t *prompt = golden_array(&golden, "greedy.prompt", DTYPE_I32, &n_prompt);
                const int32_t *expected = golden_array(&golden, "greedy.tokens", DTYPE_I32, &n);
                CHECK_OK(
                    kv_cache_new(&cache, &golden.model->shape, (KvCacheOptions){.n_slots = 3, .max_sequence = 32}));
                for (int slot = 0; slot < 3; slot++) CHECK_OK(kv_cache_extend(cache, slot, 0, 32));
                Tape *tape = tape_new(&(TapeOptions){.capacity = 16});
                HeadOutputs head =
                    llama_record(tape, golden.model, (LlamaRecord){.cache = cache}, (HeadOptions){.top1 = true});
                tape_keep(head.top1);
                CHECK_OK(tape_plan(tape));
                for (int first = 0; first < (int)n_prompt; first += piece)
                    next = feed(tape, &head, prompt + first, piece == 1 ? 1 : (int)n_prompt, &position);
                for (size_t i = 0; i < n; i++) {
                    ck_assert_msg(next == expected[i], "%s, %s: id %zu is %d, not %d", golden_kernels[k],
                                  golden_cases[c], i, next, expected[i]);
                    next = feed(tape, &head, &next, 1, &position);
                }
                tape_free(tape);
                kv_cache_free(cache);
                golden_close(&golden);
            }
    }
}
END_TEST

/* ---- training ---- */

static Optimizer *golden_optimizer(Golden *golden, Recipe recipe) {
    Llama *model = golden->model;
    int n = llama_untied_weights(model), next = 0;
    OptimParameter *parameters = arena_alloc(&golden->arena, (size_t)n * sizeof *parameters);
    for (int i = 0; i < model->n_weights; i++) {
        Weight *w = model->weights[i];
        if (!w->tied)
            parameters[next++] =
                (OptimParameter){.value = w->value, .grad = w->grad, .n = weight_elements(w), .decay = w->decay};
    }
    Optimizer *optimizer = NULL;
    CHECK_OK(optimizer_new(&optimizer, parameters, (size_t)n, recipe.optimizer));
    return optimizer;
}

/* How far a training run ended from transformers'. */
typedef struct {
    Worst change, loss, norm, rate;
} Distance;

static void compare_change(Golden *golden, const NamedArray *before, const NamedArray *after, size_t n,
                           const char *table, const char *name, Worst *worst) {
    for (size_t i = 0; i < n; i++) {
        char key[160];
        size_t elements;
        snprintf(key, sizeof key, "theta.%s", after[i].name);
        const float *expected = golden_array(golden, key, DTYPE_F32, &elements);
        ck_assert_uint_eq(elements, named_elements(&after[i]));
        worst_of(worst, relative_distance(after[i].data, expected, before[i].data, elements), table, name, key);
    }
}

/* 20 updates; `wrong` changes the recipe first. */
static void train(Distance *distance, const char *table, const char *name, void (*wrong)(Recipe *)) {
    Golden golden;
    Engine engine;
    size_t n, m;
    golden_open(&golden, name);
    Recipe recipe = golden_recipe(golden.expected);
    if (wrong) wrong(&recipe);
    NamedArray *before = NULL, *after = NULL;
    CHECK_OK(llama_arrays(golden.model, (WeightStorage){0}, &golden.arena, &before, &n));
    for (size_t i = 0; i < n; i++) {
        void *copy = arena_alloc(&golden.arena, named_bytes(&before[i]));
        before[i].data = memcpy(copy, before[i].data, named_bytes(&before[i]));
    }
    const double *losses = golden_array(&golden, "losses", DTYPE_F64, &m);
    const double *norms = golden_array(&golden, "grad_norms", DTYPE_F64, &m);
    const double *rates = golden_array(&golden, "learning_rates", DTYPE_F64, &m);
    ck_assert_uint_eq(m, GOLDEN_STEPS);
    Optimizer *optimizer = golden_optimizer(&golden, recipe);
    engine_open(&engine, golden.model, 128, (EngineOptions){0});
    for (int step = 0; step < GOLDEN_STEPS; step++) {
        const Run *run = &golden.batches[step % GOLDEN_BATCHES];
        double loss = engine_run(&engine, run, run_weight(run));
        llama_merge_tied_gradients(golden.model);
        double norm = optimizer_grad_norm(optimizer), rate = schedule_at(&recipe.schedule, step);
        optimizer_step(optimizer, rate, norm);
        optimizer_zero_grad(optimizer);
        worst_of(&distance->loss, fabs(loss - losses[step]), table, name, "");
        worst_of(&distance->norm, fabs(norm / norms[step] - 1), table, name, "");
        worst_of(&distance->rate, fabs(rate / rates[step] - 1), table, name, "");
    }
    CHECK_OK(llama_arrays(golden.model, (WeightStorage){0}, &golden.arena, &after, &n));
    compare_change(&golden, before, after, n, table, name, &distance->change);
    engine_close(&engine);
    optimizer_free(optimizer);
    golden_close(&golden);
}

START_TEST(twenty_adamw_steps_end_where_those_of_transformers_end) {
    for (int k = 0; k < N_GOLDEN_KERNELS; k++) {
        Distance d = {0};
        if (!golden_select(golden_kernels[k])) continue;
        for (int c = 0; c < N_GOLDEN; c++) train(&d, golden_kernels[k], golden_cases[c], NULL);
        printf("%s: losses %.1e (%s), change %.1e (%s), norms %.1e\n", golden_kernels[k], d.loss.value, d.loss.where,
               d.change.value, d.change.where, d.norm.value);
        ck_assert_msg(d.rate.value <= 1e-14, "learning rate: %g, %s", d.rate.value, d.rate.where);
        ck_assert_msg(d.norm.value <= 1e-5, "norm: %g, %s", d.norm.value, d.norm.where);
        ck_assert_msg(d.loss.value <= loss_bound, "loss: %g, %s", d.loss.value, d.loss.where);
        ck_assert_msg(d.change.value <= change_bound, "change: %g, %s", d.change.value, d.change.where);
    }
}
END_TEST

static void no_decay(Recipe *recipe) {
    recipe->optimizer.weight_decay = 0;
}
static void another_beta2(Recipe *recipe) {
    recipe->optimizer.beta2 = 0.999;
}
static void another_epsilon(Recipe *recipe) {
    recipe->optimizer.epsilon = 1e-6;
}
static void no_clipping(Recipe *recipe) {
    recipe->optimizer.clip = 0;
}
static void no_warmup(Recipe *recipe) {
    recipe->schedule.warmup = 0;
}

START_TEST(a_wrong_recipe_is_noticed_in_every_case) {
    static const struct {
        const char *what;
        void (*wrong)(Recipe *);
    } controls[] = {{"no weight decay", no_decay},
                    {"beta2 0.999", another_beta2},
                    {"epsilon 1e-6", another_epsilon},
                    {"no clipping", no_clipping},
                    {"no warm-up", no_warmup}};
    if (!golden_select("auto")) return;
    for (size_t i = 0; i < sizeof controls / sizeof *controls; i++)
        for (int c = 0; c < N_GOLDEN; c++) {
            Distance d = {0};
            train(&d, "auto", golden_cases[c], controls[i].wrong);
            ck_assert_msg(d.change.value > 5 * change_bound, "%s in %s passes: change %g", controls[i].what,
                          golden_cases[c], d.change.value);
        }
}
END_TEST

CHECK_MAIN("golden", loss_and_gradients_equal_those_of_transformers, a_slightly_wrong_model_is_noticed,
           logits_equal_those_of_transformers, greedy_text_from_the_cache_equals_that_of_transformers,
           twenty_adamw_steps_end_where_those_of_transformers_end, a_wrong_recipe_is_noticed_in_every_case)
