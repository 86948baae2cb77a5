/* Adapters against PEFT: values, gradients and training on the golden Llamas, and PEFT's own files as the start. What
 * the numbers are and how exact: tests/golden/lora.py and the report in each tests/golden/lora_CASE/expected.json. */
#include "tests/golden_adapter.h"

static const double gradient_bound = 5e-6; /* relative to the norm; PEFT itself is up to 1e-6 from fp64 */
static const double loss_bound = 1e-6;     /* of losses near 4; an ulp there is 4.8e-7 */
static const double change_bound = 5e-5; /* of ‖Δθ − Δθ_ref‖ / ‖Δθ_ref‖ after 20 steps; PEFT from fp64: 5e-6 */

enum {
    ALL = (1u << LORA_LM_HEAD) - 1,
    QV = 1u << LORA_Q | 1u << LORA_V,
    QKUP = 1u << LORA_Q | 1u << LORA_K | 1u << LORA_UP,
    QDOWN = 1u << LORA_Q | 1u << LORA_DOWN,
    VOGATE = 1u << LORA_V | 1u << LORA_O | 1u << LORA_GATE,
    VOCABULARY = 1u << LORA_LM_HEAD | 1u << LORA_EMBED_TOKENS,
    NINE = (1u << LORA_TARGETS) - 1
};

typedef struct {
    const char *name, *base;
    bool vocabulary; /* is trained too */
    LoraOptions options;
} Case;

static const Case golden_adapters[] = {
    {"plain", "gqa", false, {.rank = 3, .alpha = 6, .targets = ALL}},
    {"rslora", "tied", false, {.rank = 3, .alpha = 5, .rank_stabilised = true, .targets = ALL}},
    {"subset", "packed", false, {.rank = 3, .alpha = 7, .targets = QV}},
    {"plus", "llama31", false, {.rank = 4, .alpha = 8, .targets = QKUP, .plus_ratio = 8}},
    {"dora", "odd_heads", false, {.rank = 4, .alpha = 6, .targets = ALL, .magnitudes = true}},
    {"dora_fresh", "gqa", false, {.rank = 2, .alpha = 4, .targets = VOGATE, .magnitudes = true, .plus_ratio = 4}},
    {"vocabulary", "gqa", true, {.rank = 3, .alpha = 6, .targets = QDOWN}},
    {"vocabulary_tied", "tied", true, {.rank = 3, .alpha = 6, .targets = QDOWN}},
    {"nine", "gqa", false, {.rank = 3, .alpha = 6, .targets = NINE}},
    {"nine_tied", "tied", false, {.rank = 3, .alpha = 5, .rank_stabilised = true, .targets = NINE}},
    {"nine_dora", "odd_heads", false, {.rank = 4, .alpha = 6, .targets = NINE, .magnitudes = true, .plus_ratio = 4}},
    {"nine_fresh", "tied", false, {.rank = 3, .alpha = 6, .targets = VOCABULARY, .magnitudes = true}},
};
enum { N_CASES = sizeof golden_adapters / sizeof *golden_adapters };

static void adapted_open(Adapted *adapted, const Case *c, void (*wrong)(LoraOptions *)) {
    char path[256];
    Golden *golden = &adapted->golden;
    LoraOptions options = c->options;
    if (wrong) wrong(&options);
    golden_open(golden, c->base);
    for (int i = 0; i < golden->model->n_weights; i++) golden->model->weights[i]->trainable = false;
    golden->model->embedding.trainable = golden->model->head.trainable = c->vocabulary;
    named_close(golden->expected);
    snprintf(path, sizeof path, "tests/golden/lora_%s/expected.safetensors", c->name);
    CHECK_OK(named_open(&golden->expected, path));
    snprintf(path, sizeof path, "tests/golden/lora_%s", c->name);
    adapted_attach(adapted, path, options);
}

/* ---- values and gradients ---- */

static void run(Adapted *adapted, const char *table, const Case *c, EngineOptions options, Worst *loss,
                Worst *gradient) {
    Engine engine;
    size_t n;
    const Run *batch = &adapted->golden.batches[0];
    engine_open(&engine, adapted->golden.model, 128, options);
    double found = engine_run(&engine, batch, run_weight(batch));
    const double *expected = golden_array(&adapted->golden, "loss", DTYPE_F64, &n);
    worst_of(loss, fabs(found - *expected), table, c->name, "");
    adapted_gradients(adapted, table, c->name, gradient);
    engine_close(&engine);
}

START_TEST(loss_and_gradients_equal_those_of_peft) {
    for (int k = 0; k < N_GOLDEN_KERNELS; k++) {
        Worst gradient = {0}, loss = {0};
        if (!golden_select(golden_kernels[k])) continue;
        for (int c = 0; c < N_CASES; c++)
            for (int way = 0; way < 2 * RECOMPUTE_KINDS; way++) {
                Adapted adapted;
                adapted_open(&adapted, &golden_adapters[c], NULL);
                run(&adapted, golden_kernels[k], &golden_adapters[c],
                    (EngineOptions){.seeded = way & 1, .recompute = (Recompute)(way / 2)}, &loss, &gradient);
                adapted_close(&adapted);
            }
        printf("%s: loss %.1e (%s), gradients %.1e (%s)\n", golden_kernels[k], loss.value, loss.where, gradient.value,
               gradient.where);
        ck_assert_msg(loss.value <= loss_bound, "loss: %g, %s", loss.value, loss.where);
        ck_assert_msg(gradient.value <= gradient_bound, "gradient: %g, %s", gradient.value, gradient.where);
    }
}
END_TEST

static void another_alpha(LoraOptions *options) {
    options->alpha *= 1.01;
}
static void another_scale(LoraOptions *options) {
    options->rank_stabilised = !options->rank_stabilised;
}
static void unadapted(LoraOptions *options) {
    options->alpha = 1e-20;
}

START_TEST(a_slightly_wrong_adapter_is_noticed) {
    static void (*const controls[])(LoraOptions *) = {another_alpha, another_scale, unadapted};
    if (!golden_select("auto")) return;
    for (int w = 0; w < 3; w++)
        for (int c = 0; c < N_CASES; c++) {
            Adapted adapted;
            Worst gradient = {0}, loss = {0};
            adapted_open(&adapted, &golden_adapters[c], controls[w]);
            run(&adapted, "auto", &golden_adapters[c], (EngineOptions){0}, &loss, &gradient);
            ck_assert_msg(gradient.value > 100 * gradient_bound, "control %d passes in %s: %g", w,
                          golden_adapters[c].name, gradient.value);
            adapted_close(&adapted);
        }
}
END_TEST

/* ---- training ---- */

typedef struct {
    AdaptedDistance peft;
    Worst rate;
} Distance;

static void compare_rates(Golden *golden, const Recipe *recipe, const char *table, const char *name, Worst *worst) {
    size_t n;
    const double *rates = golden_array(golden, "learning_rates", DTYPE_F64, &n);
    ck_assert_uint_eq(n, GOLDEN_STEPS);
    for (int step = 0; step < GOLDEN_STEPS; step++)
        worst_of(worst, fabs(schedule_at(&recipe->schedule, step) / rates[step] - 1), table, name, "");
}

/* 20 updates; the wrongs change what is trained first. */
static void train(Distance *distance, const char *table, const Case *c, void (*wrong)(LoraOptions *),
                  void (*wrong_recipe)(Recipe *)) {
    Adapted adapted;
    adapted_open(&adapted, c, wrong);
    Recipe recipe = golden_recipe(adapted.golden.expected);
    if (!wrong) ck_assert(recipe.plus_ratio == fmax(1, c->options.plus_ratio));
    if (wrong_recipe) wrong_recipe(&recipe);
    compare_rates(&adapted.golden, &recipe, table, c->name, &distance->rate);
    adapted_train(&adapted, &recipe, table, c->name, &distance->peft);
    adapted_close(&adapted);
}

START_TEST(twenty_adamw_steps_end_where_those_of_peft_end) {
    for (int k = 0; k < N_GOLDEN_KERNELS; k++) {
        Distance d = {0};
        if (!golden_select(golden_kernels[k])) continue;
        for (int c = 0; c < N_CASES; c++) train(&d, golden_kernels[k], &golden_adapters[c], NULL, NULL);
        printf("%s: losses %.1e (%s), change %.1e (%s), norms %.1e\n", golden_kernels[k], d.peft.loss.value,
               d.peft.loss.where, d.peft.change.value, d.peft.change.where, d.peft.norm.value);
        ck_assert_msg(d.rate.value <= 1e-14, "learning rate: %g, %s", d.rate.value, d.rate.where);
        ck_assert_msg(d.peft.norm.value <= 1e-5, "norm: %g, %s", d.peft.norm.value, d.peft.norm.where);
        ck_assert_msg(d.peft.loss.value <= loss_bound, "loss: %g, %s", d.peft.loss.value, d.peft.loss.where);
        ck_assert_msg(d.peft.change.value <= change_bound, "change: %g, %s", d.peft.change.value, d.peft.change.where);
    }
}
END_TEST

static void no_decay(Recipe *recipe) {
    recipe->optimizer.weight_decay = 0;
}
static void another_ratio(LoraOptions *options) {
    options->plus_ratio = (options->plus_ratio > 0 ? options->plus_ratio : 1) * 1.05;
}

START_TEST(a_wrong_recipe_is_noticed_in_every_case) {
    static const struct {
        const char *what;
        void (*adapter)(LoraOptions *);
        void (*recipe)(Recipe *);
    } controls[] = {{"alpha 1 % off", another_alpha, NULL},
                    {"the other scale", another_scale, NULL},
                    {"no weight decay", NULL, no_decay},
                    {"LoRA+ ratio 5 % off", another_ratio, NULL}};
    if (!golden_select("auto")) return;
    for (size_t i = 0; i < sizeof controls / sizeof *controls; i++)
        for (int c = 0; c < N_CASES; c++) {
            Distance d = {0};
            train(&d, "auto", &golden_adapters[c], controls[i].adapter, controls[i].recipe);
            ck_assert_msg(d.peft.change.value > 5 * change_bound, "%s in %s passes: change %g", controls[i].what,
                          golden_adapters[c].name, d.peft.change.value);
        }
}
END_TEST

CHECK_MAIN("lora_golden", loss_and_gradients_equal_those_of_peft, a_slightly_wrong_adapter_is_noticed,
           twenty_adamw_steps_end_where_those_of_peft_end, a_wrong_recipe_is_noticed_in_every_case)
