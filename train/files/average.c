/* See average.h. */
#include "train/files/average.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "model/shape_hf.h"

struct Average {
    const char *path;  /* the first model's */
    ModelFile *others; /* [n] opened, all but the first */
    int n;
    const double *weights; /* [n + 1], the first model's first */
    float *values;         /* room for a slice */
    double *sum;
    size_t room;
};

static int reserve(Average *average, size_t n) {
    if (n <= average->room) return OK;
    float *values = realloc(average->values, n * sizeof *values);
    if (values) average->values = values;
    double *sum = realloc(average->sum, n * sizeof *sum);
    if (sum) average->sum = sum;
    if (!values || !sum) FAIL(ERR_FAILED, "out of memory");
    average->room = n;
    return OK;
}

static int check_values(const char *path, const char *name, size_t first, size_t n, const float *values) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            FAIL(ERR_REFUSED, "%s: %s: value %zu is %g; only finite weights can be averaged", path, name, first + i,
                 (double)values[i]);
    return OK;
}

static int change(void *context, const char *name, size_t first, size_t n, float *values) {
    Average *average = context;
    TRY(reserve(average, n));
    TRY(check_values(average->path, name, first, n, values));
    for (size_t i = 0; i < n; i++) average->sum[i] = average->weights[0] * (double)values[i];
    for (int k = 0; k < average->n; k++) {
        const NamedArray *array;
        TRY(named_get(&array, average->others[k].arrays, name));
        TRY(named_read_f32(average->others[k].arrays, array, first, n, average->values));
        TRY(check_values(average->others[k].path, name, first, n, average->values));
        for (size_t i = 0; i < n; i++) average->sum[i] += average->weights[k + 1] * (double)average->values[i];
    }
    for (size_t i = 0; i < n; i++) values[i] = (float)average->sum[i];
    return OK;
}

/* ---- what must be the same ---- */

/* Reward models have the same scores, in the same order. */
static int check_scores(const ModelFile *one, const ModelFile *other) {
    const ModelFile *files[] = {one, other};
    char names[2][HF_LABELS_TEXT];
    if (hf_labels_equal(&one->config.labels, &other->config.labels)) return OK;
    for (int i = 0; i < 2; i++) {
        hf_labels_text(&files[i]->config.labels, names[i]);
        if (files[i]->config.labels.n == 0) snprintf(names[i], sizeof names[i], "none, a language model");
    }
    FAIL(ERR_REFUSED, "%s: its scores are %s, and those of %s %s; only reward models with the same can be averaged",
         other->path, names[1], one->path, names[0]);
}

static int check_shape(const ModelFile *one, const ModelFile *other) {
    LlamaShape a = llama_shape_from_hf(&one->config), b = llama_shape_from_hf(&other->config);
    const struct {
        const char *name;
        double a, b;
    } rows[] = {
#define ROW(field) {#field, (double)a.field, (double)b.field}
        ROW(dim),        ROW(n_layers), ROW(n_heads),    ROW(n_kv_heads),          ROW(head_dim), ROW(ffn_dim),
        ROW(vocab_size), ROW(norm_eps), ROW(rope_theta), ROW(rope_scaling.factor), ROW(tied),
#undef ROW
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (fabs(rows[i].a - rows[i].b) > 0)
            FAIL(ERR_REFUSED, "%s: its %s is %g, and that of %s %g; only models of one shape can be averaged",
                 other->path, rows[i].name, rows[i].b, one->path, rows[i].a);
    return check_scores(one, other);
}

static int check_arrays(const ModelCopy *copy, const ModelFile *other) {
    for (size_t i = 0; i < copy->n; i++) {
        char expected[NAMED_SHAPE_TEXT], found[NAMED_SHAPE_TEXT];
        const NamedArray *wanted = &copy->sources[i].array, *array;
        TRY(named_get(&array, other->arrays, wanted->name));
        named_shape(expected, wanted);
        named_shape(found, array);
        if (strcmp(expected, found) != 0)
            FAIL(ERR_REFUSED, "%s: %s is %s, and in %s %s", other->path, wanted->name, found, copy->file.path,
                 expected);
    }
    return OK;
}

static void compare_tokenizers(const ModelFile *one, const ModelFile *other) {
    if (one->tokenizer && other->tokenizer &&
        tokenizer_fingerprint(one->tokenizer) != tokenizer_fingerprint(other->tokenizer))
        log_warning("%s: its tokenizer is another file than that of %s, which the average will have", other->path,
                    one->path);
}

static int check_weights(const double *weights, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += weights[i];
    if (!(fabs(sum - 1) <= 1e-6))
        FAIL(ERR_USAGE, "--weights: they sum to %g; those of an average of models sum to 1", sum);
    return OK;
}

/* ---- the public functions ---- */

int average_new(Average **out, ModelCopy *copy, char *const *paths, const double *weights, int n) {
    int rc = OK;
    *out = NULL;
    TRY(check_weights(weights, n));
    Average *average = calloc(1, sizeof *average);
    if (!average) FAIL(ERR_FAILED, "out of memory");
    average->path = copy->file.path;
    average->weights = weights;
    average->others = calloc((size_t)n, sizeof *average->others);
    if (!average->others) FAIL_TO(done, ERR_FAILED, "out of memory");
    for (; average->n < n - 1; average->n++)
        TRY_TO(done, model_file_open(&average->others[average->n], paths[average->n + 1],
                                     (ModelFileOptions){.head = HEAD_ANY, .whole = true, .keep_open = true}));
    for (int k = 0; k < average->n; k++) {
        TRY_TO(done, check_shape(&copy->file, &average->others[k]));
        TRY_TO(done, check_arrays(copy, &average->others[k]));
        compare_tokenizers(&copy->file, &average->others[k]);
    }
    copy->change = change;
    copy->change_context = average;
    *out = average;
    return OK;
done:
    average_free(average);
    return rc;
}

void average_free(Average *average) {
    if (!average) return;
    for (int k = 0; k < average->n; k++) model_file_close(&average->others[k]);
    free(average->others);
    free(average->values);
    free(average->sum);
    free(average);
}
