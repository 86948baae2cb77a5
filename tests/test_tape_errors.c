/* What a tape refuses: every mistake of recording gives its text from tape_plan, every wrong batch its text from
 * tape_bind, every replay out of order its own; nothing crashes. */
#include "model/autodiff/node.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/ops/ops.h"
#include "tests/gradient_check.h"

enum { WIDTH = 6 };
static const int32_t pages[2] = {0, 1};
static float values[CAPACITY * WIDTH * 4], gradients[CAPACITY * WIDTH * 4];

static Weight matrix(int rows, int cols) {
    return (Weight){.rows = rows,
                    .cols = cols,
                    .n_dims = 2,
                    .value = values,
                    .grad = gradients,
                    .trainable = true,
                    .n_views = 1,
                    .views = {{"model.layers.0.mlp.down_proj.weight", 0, rows}}};
}

static Tape *tape_of(bool training) {
    return tape_new(
        &(TapeOptions){.capacity = CAPACITY, .segments = 4, .samples = 2, .buffers = 2, .training = training});
}

static Tensor *input(Tape *tape, RowsKind rows, int width, Dtype dtype) {
    return tape_input(tape, rows, width, dtype, dtype == DTYPE_F32);
}

/* ---- recording ---- */

/* Each makes one mistake, then goes on as a user would, with whatever came back. */
static void wrong_linear(Tape *tape, Tensor *x) {
    static Weight w;
    w = matrix(3, WIDTH + 1);
    op_exp(tape, op_linear(tape, x, &w));
}
static void no_weight(Tape *tape, Tensor *x) {
    op_add(tape, x, op_linear(tape, x, NULL));
}
static void no_embedding(Tape *tape, Tensor *x) {
    op_add(tape, x, op_embedding(tape, NULL));
}
static void wrong_rmsnorm(Tape *tape, Tensor *x) {
    static Weight w;
    w = matrix(1, WIDTH - 1);
    op_rmsnorm(tape, x, &w, 1e-5f);
}
static void wrong_head(Tape *tape, Tensor *x) {
    static Weight w;
    w = matrix(9, WIDTH - 1);
    tape_keep(op_head(tape, x, &w, (HeadOptions){.entropy = true}).entropy);
}
static void head_of_segments(Tape *tape, Tensor *x) {
    static Weight w;
    w = matrix(9, WIDTH);
    op_head(tape, op_segment_mean(tape, x), &w, (HeadOptions){0});
}
static void odd_swiglu(Tape *tape, Tensor *x) {
    (void)x;
    op_swiglu(tape, input(tape, ROWS_TOKENS, 5, DTYPE_F32));
}
static void odd_qkv(Tape *tape, Tensor *x) {
    static Weight w;
    w = matrix(9, WIDTH);
    op_qkv(tape, x, &w, 2, (RotaryTable){values, values, 4, 3});
}
static void wide_qkv(Tape *tape, Tensor *x) {
    static Weight w;
    w = matrix(9, WIDTH);
    op_qkv(tape, x, &w, 2000000000, (RotaryTable){values, values, 4, 2000000000});
}
static void wrong_qkv(Tape *tape, Tensor *x) {
    static Weight w;
    w = matrix(9, WIDTH - 1);
    op_qkv(tape, x, &w, 1, (RotaryTable){values, values, 4, 2});
}
static void wrong_residual(Tape *tape, Tensor *x) {
    op_residual(tape, x, input(tape, ROWS_TOKENS, 5, DTYPE_F32));
}
static void wrong_add_rmsnorm(Tape *tape, Tensor *x) {
    static Weight gain;
    gain = matrix(1, WIDTH);
    op_add_rmsnorm(tape, x, input(tape, ROWS_TOKENS, 5, DTYPE_F32), &gain, 1e-5f);
}
/* On a tape of bf16 activations. */
static void wide_activation(Tape *tape, Tensor *x) {
    static Weight w;
    w = matrix(WIDTH, WIDTH);
    tape->options.dtype = DTYPE_BF16;
    op_linear(tape, x, &w);
}
static Tensor *activation(Tape *tape, Tensor *x) {
    static Weight gain;
    gain = matrix(1, WIDTH);
    tape->options.dtype = DTYPE_BF16;
    return op_rmsnorm(tape, x, &gain, 1e-5f);
}
static void narrow_loss(Tape *tape, Tensor *x) {
    op_exp(tape, activation(tape, x));
}
static void narrow_seed(Tape *tape, Tensor *x) {
    tape_seed(tape, activation(tape, x), input(tape, ROWS_TOKENS, WIDTH, DTYPE_F32));
}
static void wrong_attention(Tape *tape, Tensor *x) {
    op_attention(tape, x, (AttentionShape){.n_heads = 2, .n_kv_heads = 2, .head_dim = 2});
}
static void indivisible_attention(Tape *tape, Tensor *x) {
    op_attention(tape, x, (AttentionShape){.n_heads = 2, .n_kv_heads = 0, .head_dim = 3});
}
static void huge_attention(Tape *tape, Tensor *x) {
    op_attention(tape, x, (AttentionShape){.n_heads = 2000000000, .n_kv_heads = 1000000000, .head_dim = 2000000000});
}
static void cached_in_training(Tape *tape, Tensor *x) {
    KvLayer cache = {values, values, pages, 1, 1, 4, 0, DTYPE_F32};
    op_attention_cached(tape, x, (AttentionShape){.n_heads = 1, .n_kv_heads = 1, .head_dim = 2}, &cache);
}
static void missing_cache(Tape *tape, Tensor *x) {
    op_attention_cached(tape, x, (AttentionShape){.n_heads = 1, .n_kv_heads = 1, .head_dim = 2}, NULL);
}
static void unequal_operands(Tape *tape, Tensor *x) {
    op_mul(tape, x, input(tape, ROWS_TOKENS, WIDTH + 1, DTYPE_F32));
}
static void unequal_rows(Tape *tape, Tensor *x) {
    op_add(tape, x, input(tape, ROWS_SEGMENTS, WIDTH, DTYPE_F32));
}
static void missing_operand(Tape *tape, Tensor *x) {
    op_min(tape, x, NULL);
}
static void integers(Tape *tape, Tensor *x) {
    (void)x;
    op_mean(tape, input(tape, ROWS_TOKENS, 1, DTYPE_I32));
}
static void half_floats(Tape *tape, Tensor *x) {
    (void)x;
    op_mean(tape, input(tape, ROWS_TOKENS, 1, DTYPE_BF16));
}
static void differentiable_integers(Tape *tape, Tensor *x) {
    (void)x;
    tape_input(tape, ROWS_TOKENS, 1, DTYPE_I32, true);
}
static void no_width(Tape *tape, Tensor *x) {
    op_add(tape, x, input(tape, ROWS_TOKENS, 0, DTYPE_F32));
}
static void bounds_swapped(Tape *tape, Tensor *x) {
    op_clamp(tape, x, 1, 0);
}
static void segments_of_segments(Tape *tape, Tensor *x) {
    op_segment_sum(tape, op_segment_mean(tape, x));
}
static void float_index(Tape *tape, Tensor *x) {
    op_gather(tape, x, input(tape, ROWS_SAMPLES, 1, DTYPE_F32));
}
static void wide_seed(Tape *tape, Tensor *x) {
    tape_seed(tape, op_exp(tape, x), input(tape, ROWS_TOKENS, WIDTH + 1, DTYPE_F32));
}
static void integer_seed(Tape *tape, Tensor *x) {
    tape_seed(tape, op_exp(tape, x), input(tape, ROWS_TOKENS, WIDTH, DTYPE_I32));
}
static void computed_seed(Tape *tape, Tensor *x) {
    tape_seed(tape, op_exp(tape, x), op_exp(tape, x));
}
static void seeded_input(Tape *tape, Tensor *x) {
    tape_seed(tape, x, input(tape, ROWS_TOKENS, WIDTH, DTYPE_F32));
}
static void seeded_twice(Tape *tape, Tensor *x) {
    Tensor *y = op_exp(tape, x), *seed = input(tape, ROWS_TOKENS, WIDTH, DTYPE_F32);
    tape_seed(tape, y, seed);
    tape_seed(tape, y, seed);
}
static void seeded_and_used(Tape *tape, Tensor *x) {
    Tensor *y = op_exp(tape, x), *seed = input(tape, ROWS_TOKENS, WIDTH, DTYPE_F32);
    tape_seed(tape, y, seed);
    tape_seed(tape, op_exp(tape, y), seed);
}
static void nested_regions(Tape *tape, Tensor *x) {
    tape_recompute_begin(tape);
    op_exp(tape, x);
    tape_recompute_begin(tape);
    tape_recompute_end(tape);
}
static void open_region(Tape *tape, Tensor *x) {
    tape_recompute_begin(tape);
    op_exp(tape, x);
}
static void end_alone(Tape *tape, Tensor *x) {
    (void)x;
    tape_recompute_end(tape);
}

START_TEST(every_mistake_of_recording_is_told_by_the_plan) {
    static const struct {
        void (*record)(Tape *tape, Tensor *x);
        const char *text;
    } mistakes[] = {
        {wrong_linear, "model.layers.0.mlp.down_proj.weight is 3×7 and its input has width 6"},
        {no_weight, "linear: its weight is missing"},
        {no_embedding, "embedding: its weight is missing"},
        {wrong_rmsnorm, "has 5 gains and its input has width 6"},
        {wrong_head, "is 9×5 and its input has width 6"},
        {head_of_segments, "head:"},
        {odd_swiglu, "odd width 5"},
        {odd_qkv, "must be even"},
        {wide_qkv, "qkv: 2000000000 heads"},
        {wrong_qkv, "is 9×5 and its input has width 6"},
        {wrong_residual, "has width 6 and what is added 5"},
        {wrong_add_rmsnorm, "inputs have width 6 and 5"},
        {wide_activation, "linear: its input 0 is fp32; it must be bf16"},
        {narrow_loss, "exp: its input 0 is bf16; it must be fp32"},
        {narrow_seed, "a seed goes to an fp32 tensor"},
        {wrong_attention, "do not make one row of width 6"},
        {indivisible_attention, "0 key/value heads"},
        {huge_attention, "2000000000 heads"},
        {cached_in_training, "attention_cached has no backward"},
        {missing_cache, "the cache is missing"},
        {unequal_operands, "they have widths 6 and 7"},
        {unequal_rows, "operands must be fp32 of one shape"},
        {missing_operand, "min: input 1 is missing"},
        {integers, "mean: its input 0 is int32"},
        {half_floats, "fp32 or int32, not bf16"},
        {differentiable_integers, "not differentiable"},
        {no_width, "width is 0"},
        {bounds_swapped, "low 1 is above high 0"},
        {segments_of_segments, "segment_sum: its input has no row for each token"},
        {float_index, "the index must be int32"},
        {wide_seed, "a seed must be"},
        {integer_seed, "a seed must be"},
        {computed_seed, "a seed must be"},
        {seeded_input, "a seed goes to an operation's output"},
        {seeded_twice, "at most one"},
        {seeded_and_used, "op_scale(tensor, 1, 0)"},
        {nested_regions, "do not nest"},
        {open_region, "was not ended"},
        {end_alone, "did not begin"},
    };
    threads_init(1);
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        Tape *tape = tape_of(true);
        mistakes[i].record(tape, input(tape, ROWS_TOKENS, WIDTH, DTYPE_F32));
        Weight w = matrix(WIDTH, WIDTH); /* and on, after the mistake */
        Tensor *y = op_linear(tape, op_embedding(tape, &w), &w);
        tape_seed(tape, y, input(tape, ROWS_TOKENS, WIDTH, DTYPE_F32));
        tape_keep(y);
        CHECK_ERROR(tape_plan(tape), ERR_FAILED, mistakes[i].text);
        CHECK_ERROR(tape_bind(tape, 0, &(TapeBatch){0}), ERR_FAILED, mistakes[i].text);
        CHECK_ERROR(tape_forward(tape, 0), ERR_FAILED, mistakes[i].text);
        tape_free(tape);
    }
}
END_TEST

START_TEST(a_tape_without_room_is_refused) {
    Tape *tape = tape_new(&(TapeOptions){.capacity = 0});
    CHECK_ERROR(tape_plan(tape), ERR_FAILED, "capacity is 0 tokens");
    tape_free(tape);
    tape_free(NULL);
    tape_memory_free(NULL);
}
END_TEST

/* ---- batches ---- */

/* Embedding, QKV and head on one tape, so that tokens, positions, targets and segments are all read. */
typedef struct {
    Tape *tape;
    Weight embedding, qkv, head;
    BatchArrays arrays;
    TapeBatch batch;
    float known[CAPACITY];
    Tensor *gradient;
} Model;

static Model *model_new(void) {
    static const int lengths[] = {3, 0, 2};
    Model *m = array(1, sizeof *m);
    m->tape = tape_of(true);
    m->embedding = m->head = matrix(VOCABULARY, WIDTH);
    m->embedding.grad = m->head.grad = array(VOCABULARY * WIDTH, sizeof(float));
    m->embedding.value = m->head.value = random_floats(VOCABULARY * WIDTH, -1, 1, 1);
    m->batch = make_batch(&m->arrays, 3, lengths, 1);
    m->gradient = tape_input(m->tape, ROWS_TOKENS, 1, DTYPE_F32, false);
    m->qkv = matrix(6, WIDTH);
    m->qkv.value = random_floats((size_t)6 * WIDTH, -1, 1, 2);
    m->qkv.grad = array((size_t)6 * WIDTH, sizeof(float));
    Tensor *x = op_qkv(m->tape, op_embedding(m->tape, &m->embedding), &m->qkv, 1, (RotaryTable){values, values, 4, 6});
    x = op_attention(m->tape, x, (AttentionShape){.n_heads = 1, .n_kv_heads = 1, .head_dim = 2});
    static float narrow[VOCABULARY * 2], narrow_gradient[VOCABULARY * 2];
    m->head.value = narrow;
    m->head.grad = narrow_gradient;
    m->head.cols = 2;
    op_head(m->tape, x, &m->head, (HeadOptions){.known_gradient = m->gradient});
    return m;
}

static void model_free(Model *m) {
    tape_free(m->tape);
    free(m->embedding.value);
    free(m->embedding.grad);
    free(m->qkv.value);
    free(m->qkv.grad);
    free(m);
}

START_TEST(a_batch_that_does_not_fit_is_refused) {
    Model *m = model_new();
    threads_init(1);
    CHECK_OK(tape_plan(m->tape));
    CHECK_OK(tape_bind(m->tape, 0, &m->batch));
#define REFUSED(change, text)                                      \
    do {                                                           \
        TapeBatch b = m->batch;                                    \
        change;                                                    \
        CHECK_ERROR(tape_bind(m->tape, 0, &b), ERR_REFUSED, text); \
    } while (0)
    REFUSED(b.n_tokens = CAPACITY + 1, "a batch of 33 tokens");
    REFUSED(b.n_tokens = -1, "a batch of -1 tokens");
    REFUSED(b.n_segments = 5, "5 segments");
    REFUSED(b.n_samples = 3, "3 samples");
    REFUSED(b.n_tokens = 4, "span rows 0 to 5 of a batch of 4 tokens");
    REFUSED(b.tokens = NULL, "has no tokens");
    REFUSED(b.positions = NULL, "has no positions");
    REFUSED(b.targets = NULL, "has no targets");
    REFUSED(b.segment_start = NULL, "where its segments start");
    static const int32_t backwards[] = {0, 4, 3, 5}, late[] = {1, 3, 3, 5};
    REFUSED(b.segment_start = backwards, "segment 1 ends before it begins");
    REFUSED(b.segment_start = late, "span rows 1 to 5");
    static int32_t bad[] = {1, 2, VOCABULARY, 0, 1}, negative[] = {0, 0, 0, 0, -1}, far[] = {0, 4, 0, 0, 0};
    REFUSED(b.tokens = bad, "token 23 at row 2 of the batch is outside 0…22");
    REFUSED(b.tokens = negative, "token -1 at row 4");
    REFUSED(b.targets = bad, "target 23 at row 2");
    REFUSED(b.positions = far, "position 4 at row 1 of the batch is outside 0…3");
    CHECK_ERROR(tape_bind(m->tape, 2, &m->batch), ERR_FAILED, "buffer 2 of 2");
    CHECK_ERROR(tape_bind(m->tape, -1, &m->batch), ERR_FAILED, "buffer -1 of 2");
    model_free(m);
}
END_TEST

START_TEST(a_cache_is_never_written_outside_its_slots) {
    static const int lengths[] = {2};
    BatchArrays arrays;
    TapeBatch batch = make_batch(&arrays, 1, lengths, 1);
    KvLayer cache = {values, values, pages, 1, 2, 3, 0, DTYPE_F32};
    Tape *tape = tape_of(false);
    Tensor *x = input(tape, ROWS_TOKENS, WIDTH, DTYPE_F32);
    op_attention_cached(tape, x, (AttentionShape){.n_heads = 1, .n_kv_heads = 1, .head_dim = 2}, &cache);
    CHECK_OK(tape_plan(tape));
    CHECK_OK(tape_bind(tape, 0, &batch));
    arrays.slots[1] = 2;
    CHECK_ERROR(tape_bind(tape, 0, &batch), ERR_REFUSED, "slot 2 at row 1 of the batch is outside 0…1");
    arrays.slots[1] = 1;
    arrays.positions[1] = 3;
    CHECK_ERROR(tape_bind(tape, 0, &batch), ERR_REFUSED, "position 3 at row 1 of the batch is outside 0…2");
    arrays.positions[1] = 1;
    batch.slots = NULL;
    CHECK_ERROR(tape_bind(tape, 0, &batch), ERR_REFUSED, "has no slots");
    tape_free(tape);
}
END_TEST

/* ---- replay ---- */

START_TEST(a_replay_out_of_order_is_refused) {
    Model *m = model_new();
    threads_init(1);
    CHECK_OK(kernels_select("reference"));
    CHECK_ERROR(tape_forward(m->tape, 0), ERR_FAILED, "was not planned");
    CHECK_OK(tape_plan(m->tape));
    CHECK_ERROR(tape_plan(m->tape), ERR_FAILED, "planned already");
    CHECK_ERROR(tape_forward(m->tape, 0), ERR_FAILED, "has no batch");
    CHECK_OK(tape_bind(m->tape, 0, &m->batch));
    CHECK_ERROR(tape_forward(m->tape, 0), ERR_FAILED, "head: tape input 0 is not bound in buffer 0");
    tape_bind_input(0, m->gradient, m->known);
    CHECK_ERROR(tape_backward(m->tape, 0), ERR_FAILED, "without a forward");
    CHECK_ERROR(tape_forward(m->tape, 2), ERR_FAILED, "buffer 2 of 2");
    CHECK_ERROR(tape_forward(m->tape, 1), ERR_FAILED, "buffer 1 has no batch");
    float *grad = m->head.grad;
    m->head.grad = NULL;
    CHECK_ERROR(tape_forward(m->tape, 0), ERR_FAILED, "down_proj.weight is trainable and has no gradient array");
    m->head.grad = grad;
    CHECK_OK(tape_forward(m->tape, 0));
    CHECK_OK(tape_backward(m->tape, 0));
    CHECK_ERROR(tape_backward(m->tape, 0), ERR_FAILED, "without a forward");
    CHECK_OK(tape_bind(m->tape, 0, &(TapeBatch){.segment_start = (int32_t[]){0}})); /* nothing at all */
    CHECK_OK(tape_forward(m->tape, 0));
    CHECK_OK(tape_backward(m->tape, 0));
    model_free(m);
}
END_TEST

START_TEST(recording_after_the_plan_is_refused) {
    for (int k = 0; k < 4; k++) {
        Model *m = model_new();
        Tensor *x = tape_input(m->tape, ROWS_TOKENS, WIDTH, DTYPE_F32, true), *y = op_exp(m->tape, x);
        CHECK_OK(tape_plan(m->tape));
        if (k == 0) op_exp(m->tape, x);
        if (k == 1) tape_input(m->tape, ROWS_TOKENS, 1, DTYPE_F32, false);
        if (k == 2) tape_seed(m->tape, y, x);
        if (k == 3) op_head(m->tape, x, &m->head, (HeadOptions){.top1 = true});
        CHECK_ERROR(tape_plan(m->tape), ERR_FAILED, "after tape_plan");
        CHECK_ERROR(tape_forward(m->tape, 0), ERR_FAILED, "after tape_plan");
        model_free(m);
    }
}
END_TEST

START_TEST(what_is_not_there_reads_as_null) {
    Tape *tape = tape_of(true);
    Tensor *x = input(tape, ROWS_TOKENS, WIDTH, DTYPE_F32), *y = op_exp(tape, x), *z = op_exp(tape, y);
    tape_keep(z);
    CHECK_OK(tape_plan(tape));
    ck_assert_ptr_null(tape_value(tape, 0, z)); /* nothing ran */
    CHECK_OK(tape_bind(tape, 0, &(TapeBatch){.n_tokens = 2}));
    tape_bind_input(0, x, values);
    CHECK_OK(tape_forward(tape, 0));
    CHECK_OK(tape_backward(tape, 0));
    ck_assert_ptr_nonnull(tape_value(tape, 0, z));
    ck_assert_ptr_null(tape_value(tape, 0, y));
    ck_assert_ptr_null(tape_value(tape, 1, z));
    ck_assert_ptr_null(tape_grad(tape, 0, x)); /* nothing was seeded */
    tape_free(tape);
}
END_TEST

START_TEST(a_seed_behind_which_nothing_is_trained_has_no_effect) {
    Tape *tape = tape_of(true);
    Tensor *x = tape_input(tape, ROWS_TOKENS, WIDTH, DTYPE_F32, false);
    Weight frozen = matrix(WIDTH, WIDTH);
    frozen.trainable = false;
    frozen.grad = NULL;
    Tensor *seed = tape_input(tape, ROWS_TOKENS, WIDTH, DTYPE_F32, false);
    tape_seed(tape, op_linear(tape, x, &frozen), seed);
    CHECK_OK(tape_plan(tape));
    CHECK_OK(tape_bind(tape, 0, &(TapeBatch){.n_tokens = 2}));
    tape_bind_input(0, x, values);
    CHECK_OK(tape_forward(tape, 0));
    CHECK_OK(tape_backward(tape, 0));
    tape_free(tape);
}
END_TEST

START_TEST(flops_and_profile_count_the_live_rows) {
    Model *m = model_new();
    threads_init(1);
    CHECK_OK(tape_plan(m->tape));
    CHECK_OK(tape_bind(m->tape, 0, &m->batch));
    tape_bind_input(0, m->gradient, m->known);
    double pairs = 6 + 3, attention = 4 * pairs * 2, head = 2.0 * 5 * VOCABULARY * 2;
    double qkv = 2.0 * 5 * 6 * WIDTH;
    ck_assert_double_eq(tape_forward_flops(m->tape, 0), qkv + attention + head);
    tape_profile(m->tape, true);
    CHECK_OK(tape_forward(m->tape, 0));
    CHECK_OK(tape_backward(m->tape, 0));
    ck_assert_int_eq(tape_profile_rows(m->tape), 4);
    double forward, backward;
    ck_assert_str_eq(tape_profile_row(m->tape, 3, &forward, &backward), "head");
    ck_assert(forward > 0 && backward > 0);
    model_free(m);
}
END_TEST

CHECK_MAIN("tape_errors", every_mistake_of_recording_is_told_by_the_plan, a_tape_without_room_is_refused,
           a_batch_that_does_not_fit_is_refused, a_cache_is_never_written_outside_its_slots,
           a_replay_out_of_order_is_refused, recording_after_the_plan_is_refused, what_is_not_there_reads_as_null,
           a_seed_behind_which_nothing_is_trained_has_no_effect, flops_and_profile_count_the_live_rows)
