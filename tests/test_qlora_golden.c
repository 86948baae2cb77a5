/* Adapters on a base in NF4 against bitsandbytes and PEFT (tests/golden/qlora.py): the dequantised matrices, gradients,
 * and twenty steps, in fp32. Bounds are those of tests/test_lora_golden.c; what NF4 adds is an offset of the scales
 * that is an ulp or two from bitsandbytes', whose mean torch sums in its own order: 1e-7 of a matrix' elements. */
#include "model/kernels/quantised.h"
#include "tests/golden_adapter.h"

static const double gradient_bound = 5e-6, loss_bound = 1e-6, change_bound = 5e-5;
static const double matrix_bound = 3e-7; /* of an element, relative to the largest of the matrix */

typedef struct {
    Adapted adapted;
    NamedFile *base; /* what is kept in 16 bits is read there */
} OnQuantised;

static void quantised_open(OnQuantised *quantised, Frozen kind) {
    HfConfig config;
    Golden *golden = &quantised->adapted.golden;
    *golden = (Golden){0};
    CHECK_OK(hf_config_read(&config, "tests/golden/qlora"));
    LlamaShape shape = llama_shape_from_hf(&config);
    CHECK_OK(llama_new(&golden->model, &shape, (LlamaOptions){.frozen = kind}));
    CHECK_OK(named_open(&quantised->base, "tests/golden/qlora/model.safetensors"));
    CHECK_OK(llama_load(golden->model, quantised->base));
    CHECK_OK(named_open(&golden->expected, "tests/golden/qlora/expected.safetensors"));
    for (int k = 0; k < GOLDEN_BATCHES; k++) golden_batch(golden, k);
    adapted_attach(&quantised->adapted, "tests/golden/qlora/adapter",
                   (LoraOptions){.rank = 3, .alpha = 6, .targets = LORA_ALL});
}

static void quantised_close(OnQuantised *quantised) {
    adapted_close(&quantised->adapted);
    named_close(quantised->base);
}

START_TEST(matrices_are_those_that_bitsandbytes_dequantises) {
    static const char *const names[] = {"weight.model.layers.0.self_attn.o_proj.weight",
                                        "weight.model.layers.0.mlp.down_proj.weight"};
    OnQuantised quantised;
    if (!golden_select("auto")) return;
    quantised_open(&quantised, FROZEN_NF4);
    const LlamaLayer *layer = &quantised.adapted.golden.model->layers[0];
    const Weight *weights[] = {&layer->attention_out, &layer->down};
    for (int i = 0; i < 2; i++) {
        size_t n, cols = (size_t)weights[i]->cols;
        const float *want = golden_array(&quantised.adapted.golden, names[i], DTYPE_F32, &n);
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
    quantised_close(&quantised);
}
END_TEST

/* 20 updates on a base of that kind. */
static AdaptedDistance train(const char *table, Frozen kind) {
    OnQuantised quantised;
    AdaptedDistance distance = {0};
    quantised_open(&quantised, kind);
    Recipe recipe = golden_recipe(quantised.adapted.golden.expected);
    adapted_train(&quantised.adapted, &recipe, table, "", &distance);
    quantised_close(&quantised);
    return distance;
}

START_TEST(twenty_qlora_steps_follow_bitsandbytes_and_peft) {
    for (int k = 0; k < N_GOLDEN_KERNELS; k++) {
        if (!golden_select(golden_kernels[k])) continue;
        AdaptedDistance d = train(golden_kernels[k], FROZEN_NF4);
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
        AdaptedDistance d = train("auto", (Frozen)kind);
        ck_assert_msg(d.gradient.value > 100 * gradient_bound && d.change.value > 100 * change_bound, "%s: %g",
                      frozen_name((Frozen)kind), d.change.value);
    }
}
END_TEST

CHECK_MAIN("qlora_golden", matrices_are_those_that_bitsandbytes_dequantises,
           twenty_qlora_steps_follow_bitsandbytes_and_peft, another_kind_of_base_is_noticed)
