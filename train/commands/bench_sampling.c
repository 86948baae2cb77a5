/* Sampling as a benchmark: sequences of random tokens continued together, again and again. */
#include <inttypes.h>
#include <stdlib.h>

#include "data/tokenizer/tokenizer.h"
#include "eval/generator.h"
#include "model/core/clock.h"
#include "model/core/error.h"
#include "model/core/memory.h"
#include "model/core/philox.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/lora.h"
#include "train/commands/bench.h"
#include "train/flops.h"
#include "train/setup.h"

enum { PROMPT_TOKENS = 16, NEW_TOKENS = 128, BYTES_VOCABULARY = 258, MOST_ROUNDS = 1 << 16 };

typedef struct {
    Llama *model;
    Lora *lora; /* NULL: none */
    Tokenizer *tokenizer;
    Generator *generator;
    TokenList *prompts;
    Generation *out;
    int batch;
    uint64_t seed; /* of the next round */
    uint64_t n_tokens;
    double seconds[MOST_ROUNDS]; /* a token of one sequence */
    int n;
} Sampling;

/* As generate.weights says; with lora.rank a policy in training: an adapter on the base that lora.base says. */
static int make_model(Sampling *s, const LlamaShape *shape, const Config *config, int n_positions) {
    Frozen weights = setup_inference_weights(config);
    LlamaOptions how = {.precision = setup_precision(config), .n_positions = n_positions};
    bool adapted = config->lora_rank > 0;
    if (adapted && weights != FROZEN_NONE)
        FAIL(ERR_USAGE, "generate.weights and lora.rank: the base of an adapter is kept as lora.base says");
    how.frozen = adapted ? setup_frozen(config) : weights;
    how.quantised_head = !adapted;
    TRY(llama_new(&s->model, shape, how));
    TRY(llama_init(s->model, setup_init(config)));
    llama_pack(s->model);
    if (!adapted) return OK;
    LoraOptions options;
    TRY(setup_lora(&options, &adapted, config));
    TRY(lora_new(&s->lora, s->model, options, (LlamaOptions){.precision = how.precision}));
    TRY(lora_init(s->lora, (uint64_t)config->seed));
    lora_pack(s->lora);
    return OK;
}

static int make(Sampling *s, Config *config, int batch) {
    LlamaShape shape;
    int sequence = PROMPT_TOKENS + NEW_TOKENS;
    s->batch = batch;
    if (config->model_vocab_size == 0 && !*config->model_preset) config->model_vocab_size = BYTES_VOCABULARY;
    TRY(setup_shape(&shape, config, NULL));
    TRY(tokenizer_load(&s->tokenizer, "bytes"));
    TRY(make_model(s, &shape, config, sequence));
    s->prompts = calloc((size_t)batch, sizeof *s->prompts);
    s->out = calloc((size_t)batch, sizeof *s->out);
    if (!s->prompts || !s->out) FAIL(ERR_FAILED, "out of memory");
    for (int p = 0; p < batch; p++)
        for (int i = 0; i < PROMPT_TOKENS; i++) {
            PhiloxKey key = philox_key((uint64_t)config->seed, PHILOX_TEST, (uint32_t)p, 0);
            int32_t id = (int32_t)philox_below(key, (uint64_t)i, (uint64_t)shape.vocab_size);
            TRY(token_list_append(&s->prompts[p], &id, 1));
        }
    return generator_new(&s->generator, s->model, s->tokenizer,
                         (GeneratorOptions){.max_batch = batch, .max_sequence = sequence});
}

static void sampling_free(Sampling *s) {
    generator_free(s->generator);
    for (int p = 0; s->prompts && p < s->batch; p++) token_list_free(&s->prompts[p]);
    free(s->prompts);
    free(s->out);
    tokenizer_free(s->tokenizer);
    lora_free(s->lora);
    llama_free(s->model);
    free(s);
}

/* All prompts continued once, by plain sampling at temperature 1. A sequence that happens to draw EOS ends there, and
 * what it lacks is not counted. */
static int one_round(Sampling *s) {
    GenerateOptions options = {.sampler = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = s->seed++},
                               .max_new_tokens = NEW_TOKENS};
    uint64_t tokens = 0;
    double start = clock_seconds();
    TRY(generator_run(s->generator, s->prompts, (size_t)s->batch, &options, s->out));
    double seconds = clock_seconds() - start;
    for (int p = 0; p < s->batch; p++) {
        tokens += s->out[p].n_logprobs;
        generation_free(&s->out[p]);
    }
    if (s->n < MOST_ROUNDS) s->seconds[s->n++] = seconds * s->batch / (double)tokens;
    return OK;
}

static int rounds(Sampling *s, int64_t steps, double seconds) {
    double start = clock_seconds();
    s->n = 0;
    while (s->n < MOST_ROUNDS && (s->n < steps || clock_seconds() - start < seconds)) TRY(one_round(s));
    return OK;
}

/* Of what products and the head do for a token in the middle of its sequence. */
static void tell_model(const Sampling *s, FILE *out) {
    uint64_t parameters = 0;
    for (int i = 0; i < s->model->n_weights; i++)
        if (!s->model->weights[i]->tied) parameters += weight_elements(s->model->weights[i]);
    fprintf(out,
            "{\"ready\": true, \"trained_parameters\": 0, \"frozen_parameters\": %" PRIu64
            ", \"tokens_per_step\": %d, \"flops_per_token\": %.9g}\n",
            parameters, s->batch * NEW_TOKENS,
            forward_flops_total(forward_flops(&s->model->shape, PROMPT_TOKENS + NEW_TOKENS)));
    fflush(out);
}

static void tell_turn(Sampling *s, FILE *out) {
    double median = median_of(s->seconds, s->n);
    fprintf(out,
            "{\"tokens_per_second\": %.9g, \"steps\": %d, \"step_seconds\": %.9g, \"sequences\": %d, "
            "\"precision\": \"%s\", \"kernels\": \"%s\", \"threads\": %d, \"peak_memory_bytes\": %" PRIu64 "}\n",
            s->batch / median, s->n, median * NEW_TOKENS, s->batch, dtype_name(llama_inference_dtype(s->model)),
            kernels()->name, threads_count(), memory_use().peak);
    fflush(out);
}

static int serve(Sampling *s, FILE *in, FILE *out) {
    char line[128], *end;
    tell_model(s, out);
    while (fgets(line, sizeof line, in)) {
        long long steps = strtoll(line, &end, 10);
        double seconds = strtod(end, NULL);
        if (steps < 1) FAIL(ERR_USAGE, "a turn is a line 'STEPS SECONDS', such as '2 0.5'; found '%s'", line);
        TRY(rounds(s, steps, seconds));
        tell_turn(s, out);
    }
    return OK;
}

int bench_sampling(Config *config, const BenchOptions *options, FILE *in, FILE *out) {
    int rc = OK;
    Sampling *s = calloc(1, sizeof *s);
    if (!s) FAIL(ERR_FAILED, "out of memory");
    TRY_TO(done, make(s, config, (int)options->sampling));
    TRY_TO(done, rounds(s, 1, 0));
    if (in) {
        rc = serve(s, in, out);
    } else {
        TRY_TO(done, rounds(s, options->steps, options->seconds));
        tell_turn(s, out);
    }
done:
    sampling_free(s);
    return rc;
}
