/* Adapters on a base in NF4 against bitsandbytes and PEFT (tests/golden/qlora.py): the dequantised matrices, gradients,
 * and twenty steps, in fp32. Bounds are those of tests/test_lora_golden.c; what NF4 adds is an offset of the scales
 * that is an ulp or two from bitsandbytes', whose mean torch sums in its own order: 1e-7 of a matrix' elements. */
#include "model/kernels/quantised.h"
#include "model/lora.h"
#include "tests/golden_recipe.h"

static const double gradient_bound = 5e-6, loss_bound = 1e-6, change_bound = 5e-5;
static const double matrix_bound = 3e-7; /* of an element, relative to the largest of the matrix */

typedef struct {
    Golden golden;
    NamedFile *base; /* what is kept in 16 bits is read there */
    Lora *lora;
    NamedArray *arrays;
    size_t n;
} Adapted;

static void adapted_open(Adapted *adapted, Frozen kind) {
    HfConfig config;
    NamedFile *adapter;
    Golden *golden = &adapted->golden;
    *golden = (Golden){0};
    CHECK_OK(hf_config_read(&config, "tests/golden/qlora"));
    LlamaShape shape = llama_shape_from_hf(&config);
    CHECK_OK(llama_new(&golden->model, &shape, (LlamaOptions){.frozen = kind}));
    CHECK_OK(named_open(&adapted->base, "tests/golden/qlora/model.safetensors"));
    CHECK_OK(llama_load(golden->model, adapted->base));
    CHECK_OK(named_open(&golden->expected, "tests/golden/qlora/expected.safetensors"));
    for (int k = 0; k < GOLDEN_BATCHES; k++) golden_batch(golden, k);
    CHECK_OK(lora_new(&adapted->lora, golden->model, (LoraOptions){.rank = 3, .alpha = 6, .targets = LORA_ALL},
                      (LlamaOptions){.training = true}));
    CHECK_OK(named_open(&adapter, "tests/golden/qlora/adapter/adapter_model.safetensors"));
    CHECK_OK(lora_load(adapted->lora, adapter));
    CHECK_OK(lora_arrays(adapted->lora, (WeightStorage){0}, &golden->arena, &adapted->arrays, &adapted->n));
    named_close(adapter);
}

static void adapted_close(Adapted *adapted) {
    lora_free(adapted->lora);
    named_close(adapted->base);
    golden_close(&adapted->golden);
}

START_TEST(matrices_are_those_that_bitsandbytes_dequantises) {
    static const char *const names[] = {"weight.model.layers.0.self_attn.o_proj.weight",
                                        "weight.model.layers.0.mlp.down_proj.weight"};
    Adapted adapted;
    if (!golden_select("auto")) return;
    adapted_open(&adapted, FROZEN_NF4);
    const LlamaLayer *layer = &adapted.golden.model->layers[0];
    const Weight *weights[] = {&layer->attention_out, &layer->down};
    for (int i = 0; i < 2; i++) {
        size_t n, cols = (size_t)weights[i]->cols;
        const float *want = golden_array(&adapted.golden, names[i], DTYPE_F32, &n);
        double most = 0;
        ck_assert_uint_eq(n, weight_elements(weights[i]));
        for (size_t e = 0; e < n; e++) most = fmax(most, fabs((double)want[e]));
        for (int r = 0; r < weights[i]->rows; r++) {
            float row[256];
            row_major_read(&weights[i]->stored, r, 0, cols, row);
            for (size_t c = 0; c < cols; c++)
                if (fabs((double)row[c] - (double)want[(size_t)r * cols + c]) > matrix_bound * most)
                    ck_abort_msg("%s: row %d, column %zu", names[i], r, c);
        }
    }
    adapted_close(&adapted);
}
END_TEST

typedef struct {
    Worst loss, gradient, change, norm;
} Distance;

static void compare_gradients(Adapted *adapted, const char *table, Worst *worst) {
    Golden *golden = &adapted->golden;
    NamedArray *gradients;
    size_t n, elements = 0;
    void **storage = arena_alloc(&golden->arena, (size_t)adapted->lora->n_weights * sizeof *storage);
    for (int i = 0; i < adapted->lora->n_weights; i++) storage[i] = adapted->lora->weights[i]->grad;
    CHECK_OK(lora_arrays(adapted->lora, (WeightStorage){storage, DTYPE_F32, NULL}, &golden->arena, &gradients, &n));
    for (size_t i = 0; i < n; i++) {
        char key[160];
        snprintf(key, sizeof key, "grad.%s", gradients[i].name);
        const float *expected = golden_array(golden, key, DTYPE_F32, &elements);
        worst_of(worst, relative_distance(gradients[i].data, expected, NULL, elements), table, key, "");
    }
}

static Optimizer *adapter_optimizer(Adapted *adapted, const Recipe *recipe) {
    const Lora *lora = adapted->lora;
    Optimizer *optimizer = NULL;
    OptimParameter *parameters = arena_alloc(&adapted->golden.arena, (size_t)lora->n_weights * sizeof *parameters);
    for (int i = 0; i < lora->n_weights; i++) {
        Weight *w = lora->weights[i];
        parameters[i] =
            (OptimParameter){.value = w->value, .grad = w->grad, .n = weight_elements(w), .decay = w->decay, .rate = 1};
    }
    CHECK_OK(optimizer_new(&optimizer, parameters, (size_t)lora->n_weights, recipe->optimizer));
    return optimizer;
}

/* 20 updates on a base of that kind. */
static Distance train(const char *table, Frozen kind) {
    Adapted adapted;
    Engine engine;
    Distance distance = {0};
    size_t m;
    adapted_open(&adapted, kind);
    Golden *golden = &adapted.golden;
    Recipe recipe = golden_recipe(golden->expected);
    float **before = arena_alloc(&golden->arena, adapted.n * sizeof *before);
    for (size_t i = 0; i < adapted.n; i++) {
        size_t bytes = named_bytes(&adapted.arrays[i]);
        before[i] = memcpy(arena_alloc(&golden->arena, bytes), adapted.arrays[i].data, bytes);
    }
    const double *losses = golden_array(golden, "losses", DTYPE_F64, &m);
    const double *norms = golden_array(golden, "grad_norms", DTYPE_F64, &m);
    Optimizer *optimizer = adapter_optimizer(&adapted, &recipe);
    engine_open(&engine, golden->model, 128, (EngineOptions){0});
    for (int step = 0; step < GOLDEN_STEPS; step++) {
        const Run *batch = &golden->batches[step % GOLDEN_BATCHES];
        double loss = engine_run(&engine, batch, run_weight(batch)), norm = optimizer_grad_norm(optimizer);
        if (step == 0) compare_gradients(&adapted, table, &distance.gradient);
        optimizer_step(optimizer, schedule_at(&recipe.schedule, step), norm);
        optimizer_zero_grad(optimizer);
        worst_of(&distance.loss, fabs(loss - losses[step]), table, "", "");
        worst_of(&distance.norm, fabs(norm / norms[step] - 1), table, "", "");
    }
    for (size_t i = 0; i < adapted.n; i++) {
        char key[160];
        size_t elements;
        snprintf(key, sizeof key, "theta.%s", adapted.arrays[i].name);
        const float *expected = golden_array(golden, key, DTYPE_F32, &elements);
        worst_of(&distance.change, relative_distance(adapted.arrays[i].data, expected, before[i], elements), table, key,
                 "");
    }
    engine_close(&engine);
    optimizer_free(optimizer);
    adapted_close(&adapted);
    return distance;
}

START_TEST(twenty_qlora_steps_follow_bitsandbytes_and_peft) {
    for (int k = 0; k < N_GOLDEN_KERNELS; k++) {
        if (!golden_select(golden_kernels[k])) continue;
        Distance d = train(golden_kernels[k], FROZEN_NF4);
        printf("%s: losses %.1e, gradients %.1e (%s), change %.1e (%s), norms %.1e\n", golden_kernels[k], d.loss.value,
               d.gradient.value, d.gradient.where, d.change.value, d.change.where, d.norm.value);
        ck_assert_msg(d.gradient.value <= gradient_bound, "gradient: %g, %s", d.gradient.value, d.gradient.where);
        ck_assert_msg(d.loss.value <= loss_bound, "loss: %g", d.loss.value);
        ck_assert_msg(d.norm.value <= 1e-5, "norm: %g", d.norm.value);
        ck_assert_msg(d.change.value <= change_bound, "change: %g, %s", d.change.value, d.change.where);
    }
}
END_TEST

START_TEST(another_kind_of_base_is_noticed) {
    if (!golden_select("auto")) return;
    for (int kind = FROZEN_16BIT; kind < FROZEN_NF4; kind++) {
        Distance d = train("auto", (Frozen)kind);
        ck_assert_msg(d.gradient.value > 100 * gradient_bound && d.change.value > 100 * change_bound, "%s: %g",
                      frozen_name((Frozen)kind), d.change.value);
    }
}
END_TEST

CHECK_MAIN("qlora_golden", matrices_are_those_that_bitsandbytes_dequantises,
           twenty_qlora_steps_follow_bitsandbytes_and_peft, another_kind_of_base_is_noticed)
