/* What the comparisons of policy-gradient training with TRL's trainers share. */
#ifndef CRIA_TESTS_POLICY_GOLDEN_H
#define CRIA_TESTS_POLICY_GOLDEN_H

#include <math.h>
#include <string.h>

#include <jansson.h>

#include "model/formats/hf_config.h"
#include "model/shape_hf.h"
#include "tests/golden_llama.h"
#include "train/objectives/policy.h"
#include "train/loop/trained.h"

/* A case's own value of an option, or NULL. */
static inline const json_t *policy_given(const json_t *golden, const char *name) {
    return json_object_get(json_object_get(golden, "options"), name);
}

static inline double policy_option(const json_t *golden, const char *name, double otherwise) {
    const json_t *value = policy_given(golden, name);
    return value ? json_number_value(value) : otherwise;
}

/* Appends a list of ids behind the n that are there; returns how many there are then. */
static inline int policy_append(int32_t *tokens, int n, int most, const json_t *list) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        ck_assert_int_lt(n, most);
        tokens[n++] = (int32_t)json_integer_value(json_array_get(list, i));
    }
    return n;
}

/* What a step tells by that name; NaN where it does not. */
static inline double policy_metric(const Objective *objective, const ObjectiveSums *sums, const char *name) {
    if (strcmp(name, "entropy") == 0) return sums->entropy / sums->scored;
    for (int i = 0; i < objective->n_metrics; i++)
        if (objective->metrics[i] && strcmp(name, objective->metrics[i]) == 0)
            return sums->metric[i] / sums->metric_weight[i];
    return NAN;
}

static inline float *policy_read(const NamedFile *file, const char *prefix, const char *name, size_t elements,
                                 Arena *arena) {
    char full[256];
    const NamedArray *array;
    snprintf(full, sizeof full, "%s%s", prefix, name);
    CHECK_OK(named_get(&array, file, full));
    ck_assert_uint_eq(named_elements(array), elements);
    float *values = arena_alloc(arena, elements * sizeof *values);
    CHECK_OK(named_read_f32(file, array, 0, elements, values));
    return values;
}

/* ‖g - g_TRL‖ / ‖g_TRL‖ over all parameters; TRL's are named prefix + name. */
static inline double policy_gradients(Llama *model, const NamedFile *expected, const char *prefix, Arena *arena) {
    size_t n;
    double difference = 0, size = 0;
    NamedArray *arrays = named_gradients(model, arena, &n);
    for (size_t i = 0; i < n; i++) {
        size_t elements = named_elements(&arrays[i]);
        const float *found = arrays[i].data, *wanted = policy_read(expected, prefix, arrays[i].name, elements, arena);
        for (size_t e = 0; e < elements; e++) {
            double d = (double)found[e] - (double)wanted[e];
            difference += d * d;
            size += (double)wanted[e] * (double)wanted[e];
        }
    }
    return sqrt(difference / size);
}

/* ‖Δθ - Δθ_TRL‖ / ‖Δθ_TRL‖ over all parameters, from what `base` has. */
static inline double policy_change(const Trained *trained, const NamedFile *base, const NamedFile *expected,
                                   const char *prefix, Arena *arena) {
    NamedArray *arrays;
    size_t n;
    double difference = 0, size = 0;
    CHECK_OK(trained_arrays(trained, (WeightStorage){.arrays = NULL}, arena, &arrays, &n));
    for (size_t i = 0; i < n; i++) {
        size_t elements = named_elements(&arrays[i]);
        const float *found = arrays[i].data, *from = policy_read(base, "", arrays[i].name, elements, arena);
        const float *to = policy_read(expected, prefix, arrays[i].name, elements, arena);
        for (size_t e = 0; e < elements; e++) {
            double d = (double)found[e] - (double)to[e], s = (double)to[e] - (double)from[e];
            difference += d * d;
            size += s * s;
        }
    }
    return sqrt(difference / size);
}

/* AdamW as the goldens have it; clip 0: none. */
static inline void policy_optimizer(Optimizer **optimizer, const Trained *trained, double epsilon, double clip,
                                    Arena *arena) {
    OptimParameter *parameters = arena_alloc(arena, (size_t)trained->n_weights * sizeof *parameters);
    for (int i = 0; i < trained->n_weights; i++) {
        Weight *w = trained->weights[i];
        parameters[i] =
            (OptimParameter){.value = w->value, .grad = w->grad, .n = weight_elements(w), .decay = w->decay, .rate = 1};
    }
    OptimOptions options = {
        .learning_rate = 4e-3, .beta1 = 0.9, .beta2 = 0.95, .epsilon = epsilon, .weight_decay = 0.1, .clip = clip};
    CHECK_OK(optimizer_new(optimizer, parameters, (size_t)trained->n_weights, options));
}

#endif
