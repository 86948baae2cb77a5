/* Whole models in bf16 against Hugging Face transformers' fp32 values (tests/golden/llama.py), and what must hold
 * exactly: recomputation, packings after an update, frozen weights.
 *
 * A bf16 product rounds both operands (2^-9 relative each, at random), so each stage of a layer adds about 2^-8.5/sqrt
 * 3 of noise, relative to its norm, to what passes through; over the ten to twenty stages of these models that is about
 * one per cent of a gradient's norm. */
#include "optim/optimizer.h"
#include "tests/golden_llama.h"

static const double loss_bound = 5e-3, gradient_bound = 4e-2;
static const char *const sets[] = {"reference", "avx2", "avx512", "avx512bf16", "amx"};
enum { N_SETS = sizeof sets / sizeof *sets };

static void compare_gradients(Golden *golden, const char *table, const char *name, Worst *worst) {
    size_t n = 0, elements = 0;
    NamedArray *gradients = named_gradients(golden->model, &golden->arena, &n);
    for (size_t i = 0; i < n; i++) {
        char key[160];
        snprintf(key, sizeof key, "grad.%s", gradients[i].name);
        const float *expected = golden_array(golden, key, DTYPE_F32, &elements);
        worst_of(worst, relative_distance(gradients[i].data, expected, NULL, elements), table, name, key);
    }
}

START_TEST(loss_and_gradients_are_those_of_transformers_to_bf16s_rounding) {
    for (int k = 0; k < N_SETS; k++) {
        Worst gradient = {0}, loss = {0};
        if (!golden_select(sets[k])) continue;
        for (int c = 0; c < N_GOLDEN; c++)
            for (int seeded = 0; seeded < 2; seeded++) {
                Golden golden;
                Engine engine;
                size_t n;
                golden_open_as(&golden, golden_cases[c], NULL, DTYPE_BF16);
                const Run *run = &golden.batches[0];
                engine_open(&engine, golden.model, run->n_tokens + 5 * seeded,
                            (EngineOptions){.seeded = seeded, .precision = DTYPE_BF16});
                double found = engine_run(&engine, run, run_weight(run));
                const double *expected = golden_array(&golden, "loss", DTYPE_F64, &n);
                worst_of(&loss, fabs(found - *expected), sets[k], golden_cases[c], "");
                compare_gradients(&golden, sets[k], golden_cases[c], &gradient);
                engine_close(&engine);
                golden_close(&golden);
            }
        printf("%s: loss %.1e (%s), gradients %.1e (%s)\n", sets[k], loss.value, loss.where, gradient.value,
               gradient.where);
        ck_assert_msg(loss.value <= loss_bound, "loss: %g, %s", loss.value, loss.where);
        ck_assert_msg(gradient.value <= gradient_bound, "gradient: %g, %s", gradient.value, gradient.where);
    }
}
END_TEST

/* Gradients of batch 0, as one array. */
static float *gradients_of_open(Golden *golden, Dtype precision, Recompute recompute, size_t *n) {
    Engine engine;
    float *gradients;
    engine_open(&engine, golden->model, 128, (EngineOptions){.recompute = recompute, .precision = precision});
    engine_run(&engine, &golden->batches[0], run_weight(&golden->batches[0]));
    engine_close(&engine);
    llama_gradients(golden->model, &gradients, n);
    return gradients;
}

static float *gradients_of(Golden *golden, const char *name, Dtype precision, Recompute recompute, size_t *n) {
    golden_open_as(golden, name, NULL, precision);
    return gradients_of_open(golden, precision, recompute, n);
}

START_TEST(recomputation_gives_the_same_bits) {
    static const Dtype precisions[] = {DTYPE_F32, DTYPE_BF16};
    for (int k = 0; k < N_SETS; k++) {
        if (!golden_select(sets[k])) continue;
        for (int p = 0; p < 2; p++)
            for (int c = 0; c < N_GOLDEN; c++)
                for (Recompute recompute = RECOMPUTE_NORMS; recompute < RECOMPUTE_KINDS; recompute++) {
                    Golden plain, again;
                    size_t n, m;
                    float *a = gradients_of(&plain, golden_cases[c], precisions[p], RECOMPUTE_NONE, &n);
                    float *b = gradients_of(&again, golden_cases[c], precisions[p], recompute, &m);
                    ck_assert_uint_eq(n, m);
                    ck_assert_msg(memcmp(a, b, n * sizeof *a) == 0, "%s, %s, %s, recompute %d", sets[k],
                                  golden_cases[c], dtype_name(precisions[p]), recompute);
                    golden_close(&plain);
                    golden_close(&again);
                }
    }
}
END_TEST

/* As LlamaOptions.unpacked has it. */
static void forget_packings(Llama *model) {
    for (int i = 0; i < model->n_weights; i++) model->weights[i]->forward = model->weights[i]->backward = NULL;
}

START_TEST(weights_packed_as_they_are_used_give_the_same_bits) {
    for (int k = 0; k < N_SETS; k++) {
        if (!golden_select(sets[k])) continue;
        for (int c = 0; c < N_GOLDEN; c++) {
            Golden packed, unpacked;
            size_t n, m;
            float *a = gradients_of(&packed, golden_cases[c], DTYPE_BF16, RECOMPUTE_NONE, &n);
            golden_open_as(&unpacked, golden_cases[c], NULL, DTYPE_BF16);
            forget_packings(unpacked.model);
            float *b = gradients_of_open(&unpacked, DTYPE_BF16, RECOMPUTE_NONE, &m);
            ck_assert_uint_eq(n, m);
            ck_assert_msg(memcmp(a, b, n * sizeof *a) == 0, "%s, %s", sets[k], golden_cases[c]);
            golden_close(&packed);
            golden_close(&unpacked);
        }
    }
}
END_TEST

/* Packings that updates have written equal those packed anew from the values. */
START_TEST(an_update_leaves_the_packings_of_its_new_values) {
    for (int k = 0; k < N_SETS; k++) {
        if (!golden_select(sets[k])) continue;
        for (int c = 0; c < N_GOLDEN; c++) {
            Golden golden;
            size_t n;
            gradients_of(&golden, golden_cases[c], DTYPE_BF16, RECOMPUTE_NONE, &n);
            Llama *model = golden.model;
            OptimParameter *parameters = arena_alloc(&golden.arena, (size_t)model->n_weights * sizeof *parameters);
            size_t n_parameters = 0;
            for (int i = 0; i < model->n_weights; i++) {
                Weight *w = model->weights[i];
                if (w->tied) continue;
                parameters[n_parameters++] = (OptimParameter){.value = w->value,
                                                              .grad = w->grad,
                                                              .n = weight_elements(w),
                                                              .rows = w->rows,
                                                              .cols = w->cols,
                                                              .forward = w->forward,
                                                              .backward = w->backward};
            }
            Optimizer *optimizer;
            CHECK_OK(optimizer_new(
                &optimizer, parameters, n_parameters,
                (OptimOptions){.learning_rate = 0.1, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .clip = 1}));
            llama_merge_tied_gradients(model);
            optimizer_step(optimizer, 0.1, optimizer_grad_norm(optimizer));
            bf16 *written = arena_alloc(&golden.arena, model->packing_bytes);
            memcpy(written, model->packings, model->packing_bytes);
            llama_pack(model);
            ck_assert_uint_gt(model->packing_bytes, 0);
            ck_assert_msg(memcmp(written, model->packings, model->packing_bytes) == 0, "%s, %s", sets[k],
                          golden_cases[c]);
            optimizer_free(optimizer);
            golden_close(&golden);
        }
    }
}
END_TEST

/* What a frozen model has in 16 bits, the embedding included. */
static void round_matrices(Llama *model) {
    for (int i = 0; i < model->n_weights; i++) {
        Weight *w = model->weights[i];
        for (size_t j = 0; j < weight_elements(w) && w->n_dims == 2; j++)
            w->value[j] = bf16_to_f32(f32_to_bf16(w->value[j]));
    }
    llama_pack(model);
}

/* Weights in 16 bits that are packed as they are used give what packings made beforehand give: seen in the gradients of
 * the norms' gains, which flow through all of the model. Sums may be cut differently in depth: fp32 rounding that tips
 * a few roundings to bf16. */
START_TEST(frozen_matrices_compute_as_packed_ones_do) {
    for (int k = 0; k < N_SETS; k++) {
        if (!golden_select(sets[k])) continue;
        for (int c = 0; c < N_GOLDEN; c++) {
            Golden golden;
            size_t n;
            char path[256];
            golden_open_as(&golden, golden_cases[c], NULL, DTYPE_BF16);
            round_matrices(golden.model);
            gradients_of_open(&golden, DTYPE_BF16, RECOMPUTE_NONE, &n);
            NamedFile *file;
            Llama *frozen;
            snprintf(path, sizeof path, "tests/golden/llama_%s", golden_cases[c]);
            CHECK_OK(named_open(&file, path));
            CHECK_OK(llama_new(&frozen, &golden.model->shape,
                               (LlamaOptions){.training = true, .precision = DTYPE_BF16, .frozen = true}));
            CHECK_OK(llama_load(frozen, file));
            Engine engine;
            engine_open(&engine, frozen, 128, (EngineOptions){.precision = DTYPE_BF16});
            engine_run(&engine, &golden.batches[0], run_weight(&golden.batches[0]));
            Worst worst = {0};
            for (int i = 0; i < frozen->n_weights; i++) {
                const Weight *w = frozen->weights[i], *same = golden.model->weights[i];
                if (!w->trainable) continue;
                worst_of(&worst, relative_distance(w->grad, same->grad, NULL, weight_elements(w)), sets[k],
                         golden_cases[c], w->views[0].name);
            }
            ck_assert_msg(worst.value <= 1e-3, "%s: %g", worst.where, worst.value);
            engine_close(&engine);
            llama_free(frozen);
            named_close(file);
            golden_close(&golden);
        }
    }
}
END_TEST

CHECK_MAIN("bf16_llama", loss_and_gradients_are_those_of_transformers_to_bf16s_rounding,
           recomputation_gives_the_same_bits, weights_packed_as_they_are_used_give_the_same_bits,
           an_update_leaves_the_packings_of_its_new_values, frozen_matrices_compute_as_packed_ones_do)
