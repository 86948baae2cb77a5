/* What the tests of cria sft against TRL share: the recipe, the ways to cut it, running the program. */
#ifndef CRIA_TESTS_SFT_TRL_H
#define CRIA_TESTS_SFT_TRL_H

#include "tests/trl_golden.h"

#define GOLDEN "tests/golden/sft_trl"
enum { STEPS = 20 };

static const char recipe[] = "precision: fp32\nmodel: {base: " GOLDEN "}\n"
                             "tokenizer: {path: tests/golden/tokenizer_chat.json}\ntemplate: {name: llama3}\n"
                             "data: {train: [{path: " GOLDEN "/records.jsonl}], validation: 0}\n"
                             "sft: {train_on: completion}\n"
                             "optim: {lr: 2.0e-3, schedule: constant, warmup: 0, weight_decay: 0.1, beta2: 0.95}\n";

/* Every step is all eight records, however they are packed and cut. */
static const char *const ways[] = {
    "sft.packing=false train.context=128 train.tokens_per_batch=1024 train.tokens_per_microbatch=512",
    "sft.packing=false train.context=128 train.tokens_per_batch=1024 train.tokens_per_microbatch=128",
    "sft.packing=true train.context=256 train.tokens_per_batch=512 train.tokens_per_microbatch=512 "
    "train.recompute=layer",
};
enum { N_WAYS = sizeof ways / sizeof *ways };

static inline void run_cria(const char *config, const char *output, const char *way, const char *more) {
    char all[1024];
    snprintf(all, sizeof all, "train.steps=%d %s %s", STEPS, way, more);
    trl_run("sft", config, output, all);
}

/* The largest difference of a metric from the golden list, relative to it or not. */
static inline double compare_metric(const char *output, const char *metric, const json_t *expected, bool relative) {
    double *y = trl_metric(output, metric, STEPS), worst = 0;
    ck_assert_uint_eq(json_array_size(expected), STEPS);
    for (size_t i = 0; i < STEPS; i++) {
        double wanted = json_number_value(json_array_get(expected, i)), d = fabs(y[i] - wanted);
        if (relative) d /= wanted;
        if (!(d <= worst)) worst = d;
    }
    free(y);
    return worst;
}

#endif
