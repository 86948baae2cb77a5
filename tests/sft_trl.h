/* What the tests of cria sft against TRL share: the recipe, the ways to cut it, running the program. */
#ifndef CRIA_TESTS_SFT_TRL_H
#define CRIA_TESTS_SFT_TRL_H

#include <math.h>
#include <string.h>

#include <jansson.h>

#include "model/formats/named.h"
#include "tests/data_fixture.h"
#include "train/metrics.h"

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
    char command[16384];
    const char *cria = getenv("CRIA");
    snprintf(command, sizeof command, "%s sft %s output=%s train.steps=%d train.threads=1 %s %s 2>%s.log",
             cria ? cria : "build/cria", config, output, STEPS, way, more, output);
    ck_assert_msg(system(command) == 0, "%s", command);
}

/* The largest difference of a metric from the golden list, relative to it or not. */
static inline double compare_metric(const char *output, const char *metric, const json_t *expected, bool relative) {
    char path[512];
    double *x, *y, worst = 0;
    size_t n;
    snprintf(path, sizeof path, "%s/metrics.jsonl", output);
    CHECK_OK(metrics_read(path, metric, &x, &y, &n));
    ck_assert_uint_eq(n, STEPS);
    ck_assert_uint_eq(json_array_size(expected), STEPS);
    for (size_t i = 0; i < n; i++) {
        double wanted = json_number_value(json_array_get(expected, i)), d = fabs(y[i] - wanted);
        if (relative) d /= wanted;
        if (!(d <= worst)) worst = d;
    }
    free(x);
    free(y);
    return worst;
}

static inline float *read_array(const NamedFile *file, const char *name, size_t *n) {
    const NamedArray *array;
    CHECK_OK(named_get(&array, file, name));
    *n = named_elements(array);
    float *values = malloc(*n * sizeof *values);
    CHECK_OK(named_read_f32(file, array, 0, *n, values));
    return values;
}

/* ‖is - to‖ / ‖to - from‖ */
static inline double relative_change(const float *is, const float *to, const float *from, size_t n) {
    double difference = 0, size = 0;
    for (size_t e = 0; e < n; e++) {
        double d = (double)is[e] - (double)to[e], s = (double)to[e] - (double)from[e];
        difference += d * d;
        size += s * s;
    }
    return sqrt(difference / size);
}

#endif
