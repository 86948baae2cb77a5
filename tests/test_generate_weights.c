/* What generate.weights does to a model: its logits beside those of the model in fp32, the loss of a trained one, and
 * how much is kept in memory. The head is quantised too, and with it an embedding that it shares. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/tokenizer.h"
#include "model/core/file.h"
#include "model/core/philox.h"
#include "model/core/threads.h"
#include "model/formats/llama2c.h"
#include "model/kernels/kernels.h"
#include "model/llama.h"
#include "model/shape_hf.h"
#include "tests/check_main.h"

#define STORIES "../shared/data/stories260K/"

/* The relative error of normal numbers in blocks of 64 (model/kernels/quantised.h; tests/test_frozen.c checks it), and
 * of their rounding to bf16, in norm. */
static const struct {
    const char *name;
    Frozen frozen;
    double error;
} kinds[] = {{"16bit", FROZEN_16BIT, 2e-3}, {"int8", FROZEN_INT8, 8e-3}, {"nf4", FROZEN_NF4, 0.11}};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

static LlamaOptions kept_as(int kind, Dtype precision) {
    return (LlamaOptions){.precision = precision, .frozen = kinds[kind].frozen, .quantised_head = true};
}

/* ---- logits ---- */

enum { LAYERS = 4, TOKENS = 24, VOCABULARY = 320, PRODUCTS = 2 * LAYERS + 1 };

static Llama *random_model(bool tied, LlamaOptions how) {
    Llama *model;
    LlamaShape shape = {.dim = 96,
                        .n_layers = LAYERS,
                        .n_heads = 6,
                        .n_kv_heads = 3,
                        .ffn_dim = 256,
                        .vocab_size = VOCABULARY,
                        .max_context = TOKENS,
                        .tied = tied,
                        .norm_eps = 1e-5f,
                        .rope_theta = 1e4f};
    CHECK_OK(llama_shape_check(&shape));
    CHECK_OK(llama_new(&model, &shape, how));
    CHECK_OK(llama_init(model, (LlamaInit){.seed = 3, .std = 0.08f}));
    llama_pack(model);
    return model;
}

static void logits_of(Llama *model, float *out) {
    int32_t tokens[TOKENS], positions[TOKENS], segments[2] = {0, TOKENS};
    for (int t = 0; t < TOKENS; t++) {
        tokens[t] = (int32_t)philox_below(philox_key(9, PHILOX_TEST, 0, 0), (uint64_t)t, VOCABULARY);
        positions[t] = t;
    }
    Tape *tape = tape_new(&(TapeOptions){.capacity = TOKENS, .dtype = llama_inference_dtype(model)});
    Tensor *logits = op_logits(tape, llama_hidden(tape, model, (LlamaRecord){0}), &model->head);
    tape_keep(logits);
    CHECK_OK(tape_plan(tape));
    TapeBatch batch = {
        .n_tokens = TOKENS, .n_segments = 1, .tokens = tokens, .positions = positions, .segment_start = segments};
    CHECK_OK(tape_bind(tape, 0, &batch));
    CHECK_OK(tape_forward(tape, 0));
    memcpy(out, tape_value(tape, 0, logits), TOKENS * VOCABULARY * sizeof *out);
    tape_free(tape);
}

static double distance(const float *a, const float *b, size_t n) {
    double apart = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        apart += pow((double)a[i] - (double)b[i], 2);
        norm += pow((double)b[i], 2);
    }
    return sqrt(apart / norm);
}

/* A logit comes through the head and, by way of the residual stream, 2·layers blocks of two matrices each; the errors
 * of different matrices are independent, and add up as squares do. bf16 rounds the activations too, once for each. */
START_TEST(logits_are_as_near_as_the_weights_are) {
    static const char *const sets[] = {"reference", "openblas", "avx2", "avx512", "avx512bf16"};
    static float want[TOKENS * VOCABULARY], got[TOKENS * VOCABULARY];
    for (size_t s = 0; s < sizeof sets / sizeof *sets; s++) {
        if (kernels_select(sets[s]) == ERR_REFUSED) continue;
        for (int variant = 0; variant < 4 * N_KINDS; variant++) {
            int kind = variant / 4;
            Dtype precision = variant / 2 % 2 ? DTYPE_BF16 : DTYPE_F32;
            Llama *model = random_model(variant % 2, (LlamaOptions){0});
            Llama *kept = random_model(variant % 2, kept_as(kind, precision));
            ck_assert_int_eq(llama_inference_dtype(kept), precision);
            ck_assert(kept->head.narrow && (kept->head.stored.quantised != NULL) == (kind > 0));
            ck_assert((kept->embedding.stored.quantised != NULL) == (kind > 0 && variant % 2));
            logits_of(model, want);
            logits_of(kept, got);
            double found = distance(got, want, TOKENS * VOCABULARY), most = kinds[kind].error * sqrt(2.0 * PRODUCTS);
            if (precision == DTYPE_BF16) most += 2e-3 * sqrt(4.0 * PRODUCTS);
            printf("%s, %s, %s: logits %.1e apart (at most %.1e)\n", sets[s], kinds[kind].name, dtype_name(precision),
                   found, most);
            ck_assert_msg(found <= most && found > kinds[kind].error / 10, "%s: %g", kinds[kind].name, found);
            llama_free(kept);
            llama_free(model);
        }
    }
    CHECK_OK(kernels_select("auto"));
}
END_TEST

START_TEST(a_model_takes_the_bits_a_parameter_that_its_kind_says) {
    static const double bits[] = {16, 8.5, 4.127};
    for (int kind = 0; kind < N_KINDS; kind++) {
        Llama *model = random_model(true, kept_as(kind, DTYPE_BF16));
        double parameters = 0, norms = 0;
        for (int i = 0; i < model->n_weights; i++) {
            const Weight *w = model->weights[i];
            if (!w->tied) *(w->n_dims == 2 ? &parameters : &norms) += (double)weight_elements(w);
        }
        double expected = parameters * bits[kind] / 8;
        ck_assert_msg((double)model->frozen_bytes >= expected && (double)model->frozen_bytes <= expected * 1.05,
                      "%s: %zu bytes of %g parameters", kinds[kind].name, model->frozen_bytes, parameters);
        ck_assert((double)model->value_bytes <= 2 * norms * sizeof(float) && model->packing_bytes == 0);
        llama_free(model);
    }
}
END_TEST

/* ---- a trained model ---- */

static Llama *stories(LlamaOptions how) {
    HfConfig config;
    NamedFile *file = NULL;
    Llama *model = NULL;
    CHECK_OK(llama2c_open(&file, &config, STORIES "stories260K.bin"));
    LlamaShape shape = llama_shape_from_hf(&config);
    CHECK_OK(llama_shape_check(&shape));
    CHECK_OK(llama_new(&model, &shape, how));
    CHECK_OK(llama_load(model, file));
    named_close(file);
    return model;
}

/* Nats a token of its own greedy story, which it is most sure of, and so loses most. */
static double loss_of(Llama *model, const TokenList *text) {
    enum { MOST = 512 };
    int n = (int)text->n - 1;
    int32_t positions[MOST], segments[2] = {0, n};
    double sum = 0;
    ck_assert_int_le(n, MOST);
    for (int t = 0; t < n; t++) positions[t] = t;
    Tape *tape = tape_new(&(TapeOptions){.capacity = MOST, .dtype = llama_inference_dtype(model)});
    HeadOutputs head = llama_record(tape, model, (LlamaRecord){0}, (HeadOptions){0});
    tape_keep(head.logprob);
    CHECK_OK(tape_plan(tape));
    TapeBatch batch = {.n_tokens = n,
                       .n_segments = 1,
                       .tokens = text->ids,
                       .targets = text->ids + 1,
                       .positions = positions,
                       .segment_start = segments};
    CHECK_OK(tape_bind(tape, 0, &batch));
    CHECK_OK(tape_forward(tape, 0));
    for (int t = 0; t < n; t++) sum -= (double)((const float *)tape_value(tape, 0, head.logprob))[t];
    tape_free(tape);
    return sum / n;
}

/* The same model with normal errors of so much of each matrix' size. */
static void disturb(Llama *model, double error, uint32_t seed) {
    for (int i = 0; i < model->n_weights; i++) {
        Weight *w = model->weights[i];
        size_t n = weight_elements(w);
        if (w->tied || w->n_dims != 2) continue;
        float *noise = malloc(n * sizeof *noise);
        double square = 0;
        for (size_t e = 0; e < n; e++) square += pow((double)w->value[e], 2);
        philox_fill_normal(noise, 0, n, philox_key(17, PHILOX_TEST, seed, (uint32_t)i), 0,
                           (float)(error * sqrt(square / (double)n)));
        for (size_t e = 0; e < n; e++) w->value[e] += noise[e];
        free(noise);
    }
}

/* How much random errors of the size that `kind` makes raise the perplexity, in the mean. */
static double rise_by_chance(int kind, const TokenList *text, double loss) {
    enum { SEEDS = 6 };
    double rise = 0;
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        Llama *model = stories((LlamaOptions){0});
        disturb(model, kinds[kind].error, seed);
        rise += (exp(loss_of(model, text) - loss) - 1) / SEEDS;
        llama_free(model);
    }
    return rise;
}

/* Not more than twice what random errors of the same size cost it, where that is more than what bf16's activations do.
 */
START_TEST(a_trained_model_loses_what_errors_of_that_size_cost) {
    static const double of_activations = 0.005;
    if (!file_exists(STORIES "stories260K.bin")) {
        printf("skipped: %s is absent\n", STORIES "stories260K.bin");
        return;
    }
    Tokenizer *tokenizer;
    TokenList text = {0};
    char *story;
    size_t size;
    CHECK_OK(file_read(&story, &size, STORIES "expected_greedy.txt", 0));
    CHECK_OK(tokenizer_load(&tokenizer, STORIES "tok512.bin"));
    CHECK_OK(tokenizer_encode(tokenizer, story, size, TOKENIZE_BOS, &text));
    Llama *whole = stories((LlamaOptions){0});
    double loss = loss_of(whole, &text);
    ck_assert(loss > 0.1);
    for (int kind = 0; kind < N_KINDS; kind++) {
        Llama *kept = stories(kept_as(kind, DTYPE_BF16));
        double rise = exp(loss_of(kept, &text) - loss) - 1, chance = rise_by_chance(kind, &text, loss);
        printf("stories260K, %s: perplexity %+.3f %%; by chance %+.3f %%\n", kinds[kind].name, 100 * rise,
               100 * chance);
        ck_assert_msg(fabs(rise) <= 2 * fmax(chance, 0) + of_activations && rise != 0, "%s: %g", kinds[kind].name,
                      rise);
        llama_free(kept);
    }
    llama_free(whole);
    token_list_free(&text);
    tokenizer_free(tokenizer);
    free(story);
}
END_TEST

CHECK_MAIN("generate_weights", logits_are_as_near_as_the_weights_are,
           a_model_takes_the_bits_a_parameter_that_its_kind_says, a_trained_model_loses_what_errors_of_that_size_cost)
