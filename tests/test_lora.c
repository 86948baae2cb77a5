/* LoRA: a fresh adapter changes nothing; its gradients are those of the merged matrix taken apart (dA = s·Bᵀ·dW,
 * dB = s·dW·Aᵀ); merged equals unmerged; files by PEFT's names. */
#include "model/core/philox.h"
#include "model/lora.h"
#include "tests/golden_llama.h"

static const unsigned some_targets = 1u << LORA_Q | 1u << LORA_V | 1u << LORA_UP | 1u << LORA_DOWN | 1u << LORA_O;

static float *noise(Arena *arena, size_t n, uint64_t seed, float scale) {
    float *x = arena_alloc(arena, n * sizeof *x);
    philox_fill_normal(x, 0, n, philox_key(seed, PHILOX_TEST, 0, 0), 0, scale);
    return x;
}

/* Base frozen, fp32 or packed bf16 tapes. */
static void freeze(Llama *model) {
    for (int i = 0; i < model->n_weights; i++) model->weights[i]->trainable = false;
}

static double run_batch(Golden *golden, Dtype precision) {
    Engine engine;
    engine_open(&engine, golden->model, 128, (EngineOptions){.precision = precision});
    double loss = engine_run(&engine, &golden->batches[0], run_weight(&golden->batches[0]));
    engine_close(&engine);
    return loss;
}

static void open_with(Golden *golden, Lora **lora, const char *name, Dtype precision, LoraOptions options) {
    golden_open_as(golden, name, NULL, precision);
    CHECK_OK(lora_new(lora, golden->model, options, (LlamaOptions){.training = true, .precision = precision}));
    CHECK_OK(lora_init(*lora, 7));
}

START_TEST(a_fresh_adapter_changes_no_bit) {
    static const Dtype precisions[] = {DTYPE_F32, DTYPE_BF16};
    for (int p = 0; p < 2; p++)
        for (int c = 0; c < N_GOLDEN; c++) {
            Golden plain, adapted;
            Lora *lora;
            if (!golden_select("auto")) return;
            golden_open_as(&plain, golden_cases[c], NULL, precisions[p]);
            open_with(&adapted, &lora, golden_cases[c], precisions[p],
                      (LoraOptions){.rank = 4, .alpha = 8, .rank_stabilised = false, .targets = LORA_ALL});
            double before = run_batch(&plain, precisions[p]), after = run_batch(&adapted, precisions[p]);
            ck_assert_msg(before == after, "%s, %s: %.17g, %.17g", golden_cases[c], dtype_name(precisions[p]), before,
                          after);
            lora_free(lora);
            golden_close(&plain);
            golden_close(&adapted);
        }
}
END_TEST

/* Row r, column c of a weight's gradient for the view `name`. */
static const float *view_gradient(const Llama *model, const char *name, size_t *cols) {
    for (int i = 0; i < model->n_weights; i++)
        for (int v = 0; v < model->weights[i]->n_views; v++) {
            const Weight *w = model->weights[i];
            if (strcmp(w->views[v].name, name) != 0) continue;
            *cols = (size_t)w->cols;
            return w->grad + (size_t)w->views[v].first_row * *cols;
        }
    ck_abort_msg("no %s", name);
}

/* "model.layers.0.self_attn.q_proj.weight" of an adapter's name */
static void base_name(char out[128], const char *name) {
    const char *stem = name + strlen("base_model.model.");
    snprintf(out, 128, "%.*s.weight", (int)(strstr(stem, ".lora_") - stem), stem);
}

/* Folds the adapter into the model's own values. */
static void merge(const Lora *lora, Llama *model) {
    for (int i = 0; i < model->n_weights; i++)
        for (int v = 0; v < model->weights[i]->n_views; v++) {
            Weight *w = model->weights[i];
            const WeightView *view = &w->views[v];
            float *rows = w->value + (size_t)view->first_row * (size_t)w->cols;
            if (w->n_dims == 2) lora_merge(lora, view->name, 0, view->rows, rows);
        }
    llama_pack(model);
}

static void check_gradients(const char *name, Dtype precision, LoraOptions options, double loss_bound, double bound) {
    Golden merged, adapted;
    Lora *lora;
    open_with(&adapted, &lora, name, precision, options);
    for (int i = 0; i < lora->n_weights; i++) {
        Weight *w = lora->weights[i];
        float *values = noise(&adapted.arena, weight_elements(w), 50 + (uint64_t)i, 0.1f);
        memcpy(w->value, values, weight_elements(w) * sizeof *values);
    }
    lora_pack(lora);
    freeze(adapted.model);
    double loss = run_batch(&adapted, precision);
    golden_open_as(&merged, name, NULL, DTYPE_F32);
    merge(lora, merged.model);
    double expected_loss = run_batch(&merged, DTYPE_F32);
    llama_merge_tied_gradients(merged.model);
    ck_assert_msg(fabs(loss - expected_loss) <= loss_bound, "%s: loss %g, merged %g", name, loss, expected_loss);
    Worst worst = {0};
    float scale = (float)(options.alpha / (options.rank_stabilised ? sqrt(options.rank) : options.rank));
    for (int i = 0; i < merged.model->n_weights; i++) {
        const Weight *base = adapted.model->weights[i];
        const Adapter *adapter = base->adapter;
        for (int v = 0; adapter && v < adapter->n; v++) {
            const WeightView *a = &adapter->a.views[v];
            const Weight *b = &adapter->views[v].b;
            char of[128];
            size_t cols = 0, rank = (size_t)adapter->rank, rows = (size_t)b->rows;
            base_name(of, a->name);
            const float *dw = view_gradient(merged.model, of, &cols);
            const float *a_value = adapter->a.value + (size_t)a->first_row * cols;
            float *da = arena_alloc(&adapted.arena, rank * cols * sizeof *da);
            float *db = arena_alloc(&adapted.arena, rows * rank * sizeof *db);
            for (size_t r = 0; r < rows; r++)
                for (size_t k = 0; k < rank; k++)
                    for (size_t j = 0; j < cols; j++) {
                        da[k * cols + j] += scale * b->value[r * rank + k] * dw[r * cols + j];
                        db[r * rank + k] += scale * a_value[k * cols + j] * dw[r * cols + j];
                    }
            worst_of(&worst, relative_distance(adapter->a.grad + (size_t)a->first_row * cols, da, NULL, rank * cols),
                     kernels()->name, name, a->name);
            worst_of(&worst, relative_distance(b->grad, db, NULL, rows * rank), kernels()->name, name,
                     b->views[0].name);
        }
    }
    ck_assert_msg(worst.value > 0 && worst.value <= bound, "%s: %g", worst.where, worst.value);
    lora_free(lora);
    golden_close(&merged);
    golden_close(&adapted);
}

START_TEST(gradients_are_those_of_the_merged_matrix_taken_apart) {
    static const char *const sets[] = {"reference", "avx2", "avx512", "avx512bf16"};
    for (int k = 0; k < 4; k++) {
        if (!golden_select(sets[k])) continue;
        for (int c = 0; c < N_GOLDEN; c++) {
            check_gradients(golden_cases[c], DTYPE_F32,
                            (LoraOptions){.rank = 3, .alpha = 6, .rank_stabilised = false, .targets = some_targets},
                            1e-5, 2e-5);
            check_gradients(golden_cases[c], DTYPE_F32,
                            (LoraOptions){.rank = 8, .alpha = 4, .rank_stabilised = true, .targets = LORA_ALL}, 1e-5,
                            2e-5);
            check_gradients(golden_cases[c], DTYPE_BF16,
                            (LoraOptions){.rank = 8, .alpha = 4, .rank_stabilised = true, .targets = LORA_ALL}, 1e-2,
                            6e-2);
        }
    }
}
END_TEST

START_TEST(arrays_have_pefts_names_and_shapes) {
    Golden golden;
    Lora *lora;
    NamedArray *arrays;
    size_t n;
    if (!golden_select("auto")) return;
    open_with(
        &golden, &lora, "gqa", DTYPE_F32,
        (LoraOptions){.rank = 4, .alpha = 8, .rank_stabilised = false, .targets = 1u << LORA_V | 1u << LORA_DOWN});
    CHECK_OK(lora_arrays(lora, NULL, "", &golden.arena, &arrays, &n));
    const LlamaShape *shape = &golden.model->shape;
    ck_assert_uint_eq(n, 4 * (size_t)shape->n_layers);
    ck_assert_str_eq(arrays[0].name, "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight");
    ck_assert_int_eq(arrays[0].dims[0], 4);
    ck_assert_int_eq(arrays[0].dims[1], shape->dim);
    ck_assert_str_eq(arrays[1].name, "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight");
    ck_assert_int_eq(arrays[1].dims[0], shape->n_kv_heads * shape->head_dim);
    ck_assert_int_eq(arrays[1].dims[1], 4);
    ck_assert_str_eq(arrays[3].name, "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight");
    lora_free(lora);
    golden_close(&golden);
}
END_TEST

START_TEST(options_that_make_no_adapter_are_refused) {
    Golden golden;
    Lora *lora;
    if (!golden_select("auto")) return;
    golden_open(&golden, "gqa");
    LlamaOptions how = {.training = true};
    CHECK_ERROR(lora_new(&lora, golden.model,
                         (LoraOptions){.rank = 0, .alpha = 8, .rank_stabilised = false, .targets = LORA_ALL}, how),
                ERR_USAGE, "rank is 0");
    CHECK_ERROR(lora_new(&lora, golden.model,
                         (LoraOptions){.rank = 4, .alpha = 0, .rank_stabilised = false, .targets = LORA_ALL}, how),
                ERR_USAGE, "alpha is 0");
    CHECK_ERROR(lora_new(&lora, golden.model,
                         (LoraOptions){.rank = 4, .alpha = 8, .rank_stabilised = false, .targets = 0}, how),
                ERR_USAGE, "names no matrix");
    golden_close(&golden);
}
END_TEST

CHECK_MAIN("lora", a_fresh_adapter_changes_no_bit, gradients_are_those_of_the_merged_matrix_taken_apart,
           arrays_have_pefts_names_and_shapes, options_that_make_no_adapter_are_refused)
