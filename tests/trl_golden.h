/* Runs of the program beside those of TRL (tests/golden/{sft,dpo}_trl.py): metrics of every step, the first gradient,
 * and how far the parameters have gone. */
#ifndef CRIA_TESTS_TRL_GOLDEN_H
#define CRIA_TESTS_TRL_GOLDEN_H

#include <math.h>
#include <string.h>

#include <jansson.h>

#include "model/formats/checkpoint.h"
#include "model/formats/named.h"
#include "tests/data_fixture.h"
#include "train/console/metrics.h"

static inline void trl_run(const char *command, const char *config, const char *output, const char *more) {
    char *line;
    const char *cria = getenv("CRIA");
    int n = asprintf(&line, "%s %s %s output=%s train.threads=1 %s 2>%s.log", cria ? cria : "build/cria", command,
                     config, output, more, output);
    ck_assert(n > 0);
    ck_assert_msg(system(line) == 0, "%s", line);
    free(line);
}

/* A metric of every step; free it. */
static inline double *trl_metric(const char *output, const char *metric, size_t n_steps) {
    double *x, *y;
    size_t n;
    char *path = path_join(output, "metrics.jsonl");
    CHECK_OK(metrics_read(path, metric, &x, &y, &n));
    ck_assert_msg(n == n_steps, "%s: %zu of %s", path, n, metric);
    free(path);
    free(x);
    return y;
}

/* The largest difference of a metric from TRL's over the first steps of n_steps, relative to the value or to 1. `rows`:
 * an object for each step. */
static inline double trl_metric_distance(const char *output, const json_t *rows, const char *metric, size_t steps,
                                         size_t n_steps) {
    double *y = trl_metric(output, metric, n_steps), worst = 0;
    for (size_t i = 0; i < steps; i++) {
        double wanted = json_number_value(json_object_get(json_array_get(rows, i), metric));
        double d = fabs(y[i] - wanted) / fmax(1, fabs(wanted));
        if (!(d <= worst)) worst = d;
    }
    free(y);
    return worst;
}

static inline float *trl_array(const NamedFile *file, const char *name, size_t *n) {
    const NamedArray *array;
    CHECK_OK(named_get(&array, file, name));
    *n = named_elements(array);
    float *values = malloc(*n * sizeof *values);
    CHECK_OK(named_read_f32(file, array, 0, *n, values));
    return values;
}

/* ‖Δθ - Δ‖ / ‖Δ‖ of one parameter, where Δ is expected - base, or -scale · expected where that is a gradient. */
static inline double trl_distance(const float *base, const float *found, const float *expected, double scale,
                                  size_t n) {
    double difference = 0, size = 0;
    for (size_t e = 0; e < n; e++) {
        double wanted = scale > 0 ? -scale * (double)expected[e] : (double)expected[e] - (double)base[e];
        double d = (double)found[e] - (double)base[e] - wanted;
        difference += d * d;
        size += wanted * wanted;
    }
    return sqrt(difference / size);
}

/* Over all parameters of `expected` the largest distance between the change that the run made to them and TRL's; with
 * a scale, of the arrays named gradient.…, of whose like the run has subtracted so many times its own. */
static inline double trl_compare(const char *output, const char *base_path, const char *expected_path, double scale,
                                 size_t n_parameters) {
    static const char prefix[] = "gradient.";
    NamedFile *base, *expected, *found;
    char *folder;
    double worst = 0;
    size_t seen = 0;
    CHECK_OK(named_open(&base, base_path));
    CHECK_OK(named_open(&expected, expected_path));
    CHECK_OK(checkpoint_resolve(&folder, output));
    CHECK_OK(checkpoint_open_arrays(&found, folder, CHECKPOINT_MODEL));
    for (size_t i = 0; i < named_count(expected); i++) {
        const char *key = named_at(expected, i)->name;
        if ((strncmp(key, prefix, sizeof prefix - 1) == 0) != (scale > 0)) continue;
        const char *name = scale > 0 ? key + sizeof prefix - 1 : key;
        size_t n, m, k;
        float *from = trl_array(base, name, &n), *to = trl_array(expected, key, &m), *is = trl_array(found, name, &k);
        ck_assert(n == m && n == k);
        double distance = trl_distance(from, is, to, scale, n);
        if (!(distance <= worst)) worst = distance;
        seen++;
        free(from);
        free(to);
        free(is);
    }
    ck_assert_uint_eq(seen, n_parameters);
    named_close(base);
    named_close(expected);
    named_close(found);
    free(folder);
    return worst;
}

/* With so large an epsilon Adam's first step is the gradient itself, lr / eps times, to one part in 10^6 of its largest
 * element. */
enum { TRL_GRADIENT_SCALE = 1000 };
#define TRL_GRADIENT_STEP "train.steps=1 optim.lr=1e9 optim.eps=1e6 optim.clip=0 optim.weight_decay=0"

#endif
