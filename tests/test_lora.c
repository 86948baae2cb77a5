/* LoRA: a fresh adapter changes nothing; its gradients are those of the merged matrix taken apart (dA = s·Bᵀ·dW,
 * dB = s·dW·Aᵀ); merged equals unmerged; files by PEFT's names. */
#include "model/core/philox.h"
#include "model/lora.h"
#include "tests/golden_llama.h"

static const unsigned some_targets = 1u << LORA_Q | 1u << LORA_V | 1u << LORA_UP | 1u << LORA_DOWN | 1u << LORA_O;

static const unsigned nine = (1u << LORA_TARGETS) - 1;

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
    for (int way = 0; way < 2; way++) /* LoRA, DoRA */
        for (int p = 0; p < 2; p++)
            for (int c = 0; c < N_GOLDEN; c++) {
                Golden plain, adapted;
                Lora *lora;
                if (!golden_select("auto")) return;
                golden_open_as(&plain, golden_cases[c], NULL, precisions[p]);
                open_with(&adapted, &lora, golden_cases[c], precisions[p],
                          (LoraOptions){.rank = 4, .alpha = 8, .magnitudes = way, .targets = nine});
                double before = run_batch(&plain, precisions[p]), after = run_batch(&adapted, precisions[p]);
                ck_assert_msg(before == after, "%s, %s: %.17g, %.17g", golden_cases[c], dtype_name(precisions[p]),
                              before, after);
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
    if (adapted.model->head.tied) { /* the merged model would be one whose head is not its embedding */
        lora_free(lora);
        golden_close(&adapted);
        options.targets &= ~LORA_VOCABULARY;
        open_with(&adapted, &lora, name, precision, options);
    }
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
            size_t width = 0, rank = (size_t)adapter->rank, rows = (size_t)b->rows;
            base_name(of, a->name);
            const float *dw = view_gradient(merged.model, of, &width);
            /* of an embedding it is the transpose that is adapted */
            size_t cols = (size_t)adapter->a.cols, down = adapter->of_tokens ? 1 : width;
            size_t along = adapter->of_tokens ? width : 1;
            const float *a_value = adapter->a.value + (size_t)a->first_row * cols;
            float *da = arena_alloc(&adapted.arena, rank * cols * sizeof *da);
            float *db = arena_alloc(&adapted.arena, rows * rank * sizeof *db);
            for (size_t r = 0; r < rows; r++)
                for (size_t k = 0; k < rank; k++)
                    for (size_t j = 0; j < cols; j++) {
                        da[k * cols + j] += scale * b->value[r * rank + k] * dw[r * down + j * along];
                        db[r * rank + k] += scale * a_value[k * cols + j] * dw[r * down + j * along];
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
                            (LoraOptions){.rank = 8, .alpha = 4, .rank_stabilised = true, .targets = nine}, 1e-5, 2e-5);
            check_gradients(golden_cases[c], DTYPE_BF16,
                            (LoraOptions){.rank = 8, .alpha = 4, .rank_stabilised = true, .targets = nine}, 1e-2, 6e-2);
        }
    }
}
END_TEST

/* ---- dropout and magnitudes ---- */

static void randomise(Lora *lora, Arena *arena) {
    for (int i = 0; i < lora->n_weights; i++) {
        Weight *w = lora->weights[i];
        float *values = noise(arena, weight_elements(w), 50 + (uint64_t)i, 0.1f);
        for (size_t e = 0; e < weight_elements(w); e++) w->value[e] = values[e] + (w->n_dims == 1 ? 0.8f : 0);
    }
    lora_pack(lora);
}

static void clear_adapter(Lora *lora) {
    for (int i = 0; i < lora->n_weights; i++)
        memset(lora->weights[i]->grad, 0, weight_elements(lora->weights[i]) * sizeof(float));
}

static double run_with(Golden *golden, Run *run, EngineOptions options, double total) {
    Engine engine;
    engine_open(&engine, golden->model, 128, options);
    double loss = engine_run(&engine, run, total);
    engine_close(&engine);
    return loss;
}

/* Every gradient of a case with ids given to its segments, as one array. */
static float *gradients(const Lora *lora, Arena *arena, size_t *n) {
    *n = lora->grad_bytes / sizeof(float);
    float *copy = arena_alloc(arena, lora->grad_bytes);
    return memcpy(copy, lora->grads, lora->grad_bytes);
}

static uint32_t segment_ids[8] = {17, 4, 90, 3, 5, 6, 7, 8};

static void open_dropping(Golden *golden, Lora **lora, Dtype precision, double dropout, bool magnitudes) {
    open_with(golden, lora, "packed", precision,
              (LoraOptions){
                  .rank = 4, .alpha = 8, .targets = nine, .dropout = dropout, .magnitudes = magnitudes, .seed = 11});
    freeze(golden->model);
    randomise(*lora, &golden->arena);
    for (int k = 0; k < GOLDEN_BATCHES; k++) golden->batches[k].segment_ids = segment_ids;
}

/* Along a random direction d, (L(θ + hd) - L(θ - hd)) / 2h is the gradient's part along d, to O(h²) and the loss's
 * rounding over h: fp32 logprobs near 4 summed in fp64 carry some 1e-7, of 1e-2 times the derivative. The magnitudes'
 * norm is a constant to the gradient, so with them only m is moved. */
static void check_direction(double dropout, bool magnitudes, EngineOptions options) {
    Golden golden;
    Lora *lora;
    size_t n;
    double along = 0, losses[2], h = 1e-3;
    open_dropping(&golden, &lora, DTYPE_F32, dropout, magnitudes);
    Run *run = &golden.batches[1];
    run->step = 5;
    double total = run_weight(run);
    run_with(&golden, run, options, total);
    float *start = arena_alloc(&golden.arena, lora->value_bytes);
    memcpy(start, lora->values, lora->value_bytes);
    float *gradient = gradients(lora, &golden.arena, &n);
    float *direction = noise(&golden.arena, n, 99, 1);
    for (int i = 0; i < lora->n_weights; i++)
        if (magnitudes && lora->weights[i]->n_dims == 2)
            memset(direction + (lora->weights[i]->value - lora->values), 0,
                   weight_elements(lora->weights[i]) * sizeof(float));
    for (size_t e = 0; e < n; e++) along += (double)gradient[e] * (double)direction[e];
    for (int side = 0; side < 2; side++) {
        for (size_t e = 0; e < n; e++) lora->values[e] = start[e] + (float)(side ? -h : h) * direction[e];
        lora_pack(lora);
        losses[side] = run_with(&golden, run, options, total);
    }
    double found = (losses[0] - losses[1]) / (2 * h);
    ck_assert_msg(fabs(found - along) <= 3e-3 * fabs(along) + 2e-4, "dropout %g: %g along the direction, %g expected",
                  dropout, along, found);
    lora_free(lora);
    golden_close(&golden);
}

START_TEST(gradients_under_dropout_are_those_of_finite_differences) {
    if (!golden_select("auto")) return;
    for (int magnitudes = 0; magnitudes < 2; magnitudes++)
        for (int r = 0; r < RECOMPUTE_KINDS; r++) {
            check_direction(0.3, magnitudes, (EngineOptions){.recompute = (Recompute)r});
            check_direction(0, magnitudes, (EngineOptions){.recompute = (Recompute)r, .seeded = true});
        }
}
END_TEST

/* With the same masks; bf16's activations are within 2^-9 of theirs each, which gives gradients a few per cent. */
START_TEST(magnitudes_and_dropout_in_bf16_are_those_of_fp32) {
    Golden wide, narrow;
    Lora *lora, *narrow_lora;
    size_t n;
    if (!golden_select("auto")) return;
    open_dropping(&wide, &lora, DTYPE_F32, 0.25, true);
    open_dropping(&narrow, &narrow_lora, DTYPE_BF16, 0.25, true);
    Run *run = &wide.batches[1];
    double loss = run_with(&wide, run, (EngineOptions){0}, run_weight(run));
    double found = run_with(&narrow, run, (EngineOptions){.precision = DTYPE_BF16}, run_weight(run));
    ck_assert_msg(fabs(found - loss) < 1e-2, "loss %g, in bf16 %g", loss, found);
    gradients(lora, &wide.arena, &n);
    double distance = relative_distance(narrow_lora->grads, lora->grads, NULL, n);
    ck_assert_msg(distance > 0 && distance < 6e-2, "%g", distance);
    lora_free(lora);
    lora_free(narrow_lora);
    golden_close(&wide);
    golden_close(&narrow);
}
END_TEST

START_TEST(recomputation_draws_the_same_dropout) {
    static const Dtype precisions[] = {DTYPE_F32, DTYPE_BF16};
    if (!golden_select("auto")) return;
    for (int p = 0; p < 2; p++)
        for (int r = 1; r < RECOMPUTE_KINDS; r++) {
            Golden golden;
            Lora *lora;
            size_t n;
            open_dropping(&golden, &lora, precisions[p], 0.25, true);
            Run *run = &golden.batches[1];
            run_with(&golden, run, (EngineOptions){.precision = precisions[p]}, run_weight(run));
            float *expected = gradients(lora, &golden.arena, &n);
            clear_adapter(lora);
            run_with(&golden, run, (EngineOptions){.precision = precisions[p], .recompute = (Recompute)r},
                     run_weight(run));
            double distance = relative_distance(lora->grads, expected, NULL, n);
            /* the norms alone are computed by another sum; another mask would be some 0.5 away */
            double bound = r == RECOMPUTE_LAYER ? 0 : precisions[p] == DTYPE_BF16 ? 2e-2 : 1e-6;
            ck_assert_msg(distance <= bound, "%s, recomputation %d: %g", dtype_name(precisions[p]), r, distance);
            lora_free(lora);
            golden_close(&golden);
        }
}
END_TEST

/* Segment s of a run, alone. */
static Run segment_alone(const Run *run, int s, int32_t starts[2]) {
    int first = run->segment_start[s], n = run->segment_start[s + 1] - first;
    starts[0] = 0;
    starts[1] = n;
    return (Run){.n_tokens = n,
                 .n_segments = 1,
                 .tokens = run->tokens + first,
                 .targets = run->targets + first,
                 .positions = run->positions + first,
                 .segment_start = starts,
                 .weights = run->weights + first,
                 .segment_ids = run->segment_ids + s,
                 .step = run->step};
}

START_TEST(dropout_does_not_depend_on_packing_and_changes_with_the_step) {
    Golden golden;
    Lora *lora;
    size_t n;
    int32_t starts[2];
    if (!golden_select("auto")) return;
    open_dropping(&golden, &lora, DTYPE_F32, 0.25, false);
    Run *run = &golden.batches[1];
    double total = run_weight(run), loss = run_with(&golden, run, (EngineOptions){0}, total), apart = 0;
    float *together = gradients(lora, &golden.arena, &n);
    clear_adapter(lora);
    ck_assert_int_ge(run->n_segments, 3);
    for (int s = run->n_segments - 1; s >= 0; s--) {
        Run alone = segment_alone(run, s, starts);
        apart += run_with(&golden, &alone, (EngineOptions){0}, total);
    }
    ck_assert_msg(fabs(loss - apart) < 1e-6, "%g together, %g apart", loss, apart);
    ck_assert(relative_distance(lora->grads, together, NULL, n) < 5e-6);
    run->step++;
    double next = run_with(&golden, run, (EngineOptions){0}, total);
    ck_assert_msg(fabs(next - loss) > 1e-4, "%g at both steps", loss);
    run->step--;
    segment_ids[0]++;
    ck_assert(fabs(run_with(&golden, run, (EngineOptions){0}, total) - loss) > 1e-5);
    segment_ids[0]--;
    run->segment_ids = NULL;
    Engine engine;
    engine_open(&engine, golden.model, 128, (EngineOptions){0});
    TapeBatch batch = {.n_tokens = run->n_tokens,
                       .n_segments = run->n_segments,
                       .tokens = run->tokens,
                       .targets = run->targets,
                       .positions = run->positions,
                       .segment_start = run->segment_start};
    CHECK_ERROR(tape_bind(engine.tape, 0, &batch), ERR_FAILED, "which segments it has");
    engine_close(&engine);
    lora_free(lora);
    golden_close(&golden);
}
END_TEST

/* Logits of batch 0 by a tape that does not train. */
static float *inference(Golden *golden, size_t *n) {
    const Run *run = &golden->batches[0];
    Tape *tape = tape_new(&(TapeOptions){.capacity = run->n_tokens});
    Tensor *hidden = llama_hidden(tape, golden->model, (LlamaRecord){0});
    tape_keep(hidden);
    CHECK_OK(tape_plan(tape));
    TapeBatch batch = {.n_tokens = run->n_tokens,
                       .n_segments = run->n_segments,
                       .tokens = run->tokens,
                       .positions = run->positions,
                       .segment_start = run->segment_start};
    CHECK_OK(tape_bind(tape, 0, &batch));
    CHECK_OK(tape_forward(tape, 0));
    *n = (size_t)run->n_tokens * (size_t)golden->model->shape.dim;
    float *copy = arena_alloc(&golden->arena, *n * sizeof(float));
    memcpy(copy, tape_value(tape, 0, hidden), *n * sizeof(float));
    tape_free(tape);
    return copy;
}

START_TEST(inference_knows_no_dropout) {
    Golden plain, dropping;
    Lora *lora, *other;
    size_t n;
    if (!golden_select("auto")) return;
    open_dropping(&plain, &lora, DTYPE_F32, 0, true);
    open_dropping(&dropping, &other, DTYPE_F32, 0.5, true);
    const float *expected = inference(&plain, &n), *found = inference(&dropping, &n);
    ck_assert(memcmp(expected, found, n * sizeof(float)) == 0);
    lora_free(lora);
    lora_free(other);
    golden_close(&plain);
    golden_close(&dropping);
}
END_TEST

/* Philox blocks are those of philox4x32, and a mask leaves out its share: of n = 65,536 draws within 5 standard
 * deviations sqrt(p(1-p)/n). */
START_TEST(draws_of_dropout_are_philox_blocks) {
    enum { N = 16384 };
    static uint32_t words[4 * N];
    const uint32_t counter[4] = {3, 1, 2, 7};
    PhiloxKey key = philox_key(5, PHILOX_DROPOUT, 1, 2);
    philox_blocks(words, counter, N - 1, key);
    ck_assert_uint_eq(words[4 * (N - 1)], 0); /* no more than asked for */
    philox_blocks(words, counter, N, key);
    size_t dropped = 0;
    for (uint32_t i = 0; i < N; i++) {
        uint32_t block[4];
        philox4x32(block, (uint32_t[4]){3 + i, 1, 2, 7}, key);
        ck_assert(memcmp(block, words + 4 * i, sizeof block) == 0);
        for (int w = 0; w < 4; w++) dropped += block[w] < (uint32_t)(0.1 * 4294967296.0);
    }
    double share = (double)dropped / (4 * N);
    ck_assert_msg(fabs(share - 0.1) < 5 * sqrt(0.1 * 0.9 / (4 * N)), "%g", share);
}
END_TEST

/* The frozen model in 16 bits has the same magnitudes and norms as its fp32 copy. */
START_TEST(magnitudes_of_a_base_in_16_bits_are_its_rows_lengths) {
    Golden golden;
    Lora *lora, *narrow_lora;
    Llama *narrow;
    NamedFile *file;
    if (!golden_select("auto")) return;
    LoraOptions options = {.rank = 2, .alpha = 4, .targets = LORA_ALL, .magnitudes = true};
    open_with(&golden, &lora, "gqa", DTYPE_F32, options);
    CHECK_OK(llama_new(&narrow, &golden.model->shape, (LlamaOptions){.frozen = true, .precision = DTYPE_BF16}));
    CHECK_OK(named_open(&file, "tests/golden/llama_gqa"));
    CHECK_OK(llama_load(narrow, file));
    CHECK_OK(lora_new(&narrow_lora, narrow, options, (LlamaOptions){.training = true, .precision = DTYPE_BF16}));
    CHECK_OK(lora_init(narrow_lora, 7));
    for (int i = 0; i < lora->n_weights; i++) {
        const Weight *m = lora->weights[i], *other = narrow_lora->weights[i];
        for (int e = 0; m->n_dims == 1 && e < m->cols; e++) /* each element within 2^-9 of itself */
            ck_assert_msg(fabsf(m->value[e] - other->value[e]) <= 0x1p-9f * m->value[e] && m->value[e] > 0, "%s",
                          m->views[0].name);
    }
    lora_free(narrow_lora);
    lora_free(lora);
    named_close(file);
    llama_free(narrow);
    golden_close(&golden);
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
    CHECK_OK(lora_arrays(lora, (WeightStorage){0}, &golden.arena, &arrays, &n));
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
           gradients_under_dropout_are_those_of_finite_differences, recomputation_draws_the_same_dropout,
           magnitudes_and_dropout_in_bf16_are_those_of_fp32,
           dropout_does_not_depend_on_packing_and_changes_with_the_step, inference_knows_no_dropout,
           draws_of_dropout_are_philox_blocks, magnitudes_of_a_base_in_16_bits_are_its_rows_lengths,
           arrays_have_pefts_names_and_shapes, options_that_make_no_adapter_are_refused)
