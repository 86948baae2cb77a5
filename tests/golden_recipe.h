/* The optimizer and schedule that golden trainings used, read from their files. */
#ifndef CRIA_TESTS_GOLDEN_RECIPE_H
#define CRIA_TESTS_GOLDEN_RECIPE_H

#include "model/formats/json_read.h"
#include "optim/optimizer.h"
#include "tests/golden_llama.h"

typedef struct {
    OptimOptions optimizer;
    Schedule schedule;
    double plus_ratio; /* of an adapter's LoRA+ */
} Recipe;

static inline Recipe golden_recipe(const NamedFile *expected) {
    const char *text = named_text(expected, "hyperparameters");
    ck_assert_ptr_nonnull(text);
    json_t *json = NULL;
    Recipe r = {.schedule.kind = SCHEDULE_COSINE, .plus_ratio = 1};
    double warmup = 0, total = 0;
    CHECK_OK(json_read_object(&json, text, strlen(text), "hyperparameters"));
    CHECK_OK(json_read_number(&r.schedule.peak, json, "peak", "hyperparameters"));
    CHECK_OK(json_read_number(&r.schedule.final_ratio, json, "final_ratio", "hyperparameters"));
    CHECK_OK(json_read_number(&warmup, json, "warmup", "hyperparameters"));
    CHECK_OK(json_read_number(&total, json, "total", "hyperparameters"));
    CHECK_OK(json_read_number(&r.optimizer.beta1, json, "beta1", "hyperparameters"));
    CHECK_OK(json_read_number(&r.optimizer.beta2, json, "beta2", "hyperparameters"));
    CHECK_OK(json_read_number(&r.optimizer.epsilon, json, "epsilon", "hyperparameters"));
    CHECK_OK(json_read_number(&r.optimizer.weight_decay, json, "weight_decay", "hyperparameters"));
    CHECK_OK(json_read_number(&r.optimizer.clip, json, "clip", "hyperparameters"));
    CHECK_OK(json_read_number(&r.plus_ratio, json, "plus_ratio", "hyperparameters"));
    json_decref(json);
    ck_assert(r.schedule.peak > 0 && total == GOLDEN_STEPS && r.optimizer.clip > 0);
    r.schedule.warmup = (int64_t)warmup;
    r.schedule.total = (int64_t)total;
    r.optimizer.learning_rate = r.schedule.peak;
    return r;
}

#endif
