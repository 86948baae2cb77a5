/* What cria inspect reports, as --json prints it. */
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "model/formats/checkpoint.h"
#include "model/formats/hf_config.h"
#include "tests/formats_scratch.h"
#include "train/files/inspect.h"

static float weights[64 * 16];

static void save(const char *run, int64_t step) {
    CheckpointWriter *writer;
    char *config;
    HfConfig shape = hf_config_default();
    shape.vocab_size = 64;
    const NamedSource sources[] = {
        {.array = {.name = "model.embed_tokens.weight", .dtype = DTYPE_BF16, .n_dims = 2, .dims = {64, 16}},
         .f32 = weights}};
    CHECK_OK(checkpoint_begin(&writer, run, step));
    CHECK_OK(checkpoint_add_arrays(writer, CHECKPOINT_MODEL, sources, 1, NULL, 0));
    CHECK_OK(hf_config_format(&shape, &config));
    CHECK_OK(checkpoint_add_bytes(writer, "config.json", config, strlen(config)));
    free(config);
    CHECK_OK(checkpoint_commit(writer));
}

static const json_t *at(const json_t *report, const char *key) {
    const json_t *value = json_object_get(report, key);
    ck_assert_msg(value != NULL, "no '%s'", key);
    return value;
}

static void check_checkpoint(const json_t *report, int step) {
    ck_assert_str_eq(json_string_value(at(report, "kind")), "checkpoint");
    ck_assert_int_eq(json_integer_value(at(report, "step")), step);
    ck_assert_int_eq(json_integer_value(at(at(report, "config"), "vocab_size")), 64);
    const json_t *model = json_array_get(at(report, "files"), 0), *array = json_array_get(at(model, "arrays"), 0);
    ck_assert_str_eq(json_string_value(at(model, "name")), "model.h5");
    ck_assert_int_eq(json_integer_value(at(model, "elements")), 1024);
    ck_assert_str_eq(json_string_value(at(array, "dtype")), "bf16");
    ck_assert_int_eq(json_integer_value(json_array_get(at(array, "shape"), 1)), 16);
}

START_TEST(a_run_is_reported_with_its_steps_and_its_newest_checkpoint) {
    char run[SCRATCH_NAME];
    json_t *report;
    scratch(run);
    for (int step = 1; step <= 3; step++) save(run, step);
    CHECK_OK(checkpoint_mark_best(run, 1));
    char *model = in(run, "checkpoints/step-3/model.h5"), *manifest = in(run, "checkpoints/step-2/manifest.json");
    CHECK_OK(inspect_path(&report, run));
    ck_assert_str_eq(json_string_value(at(report, "kind")), "run");
    ck_assert_ptr_null(json_object_get(report, "problem"));
    ck_assert_uint_eq(json_array_size(at(report, "checkpoints")), 3);
    check_checkpoint(at(report, "newest"), 3);
    json_decref(report);

    ck_assert_int_eq(unlink(manifest), 0); /* an unfinished save is told, but is no fault */
    CHECK_OK(inspect_path(&report, run));
    ck_assert_ptr_null(json_object_get(report, "problem"));
    ck_assert_ptr_nonnull(
        strstr(json_string_value(at(json_array_get(at(report, "checkpoints"), 1), "problem")), "finish"));
    json_decref(report);

    overwrite(model, "damaged", 7);
    CHECK_OK(inspect_path(&report, run));
    ck_assert_ptr_nonnull(strstr(json_string_value(at(report, "problem")), "model.h5"));
    check_checkpoint(at(report, "newest"), 1);
    ck_assert(json_is_true(at(json_array_get(at(report, "checkpoints"), 2), "best")));
    json_decref(report);
    free(model);
    free(manifest);
    CHECK_OK(directory_remove(run));
}
END_TEST

START_TEST(a_checkpoint_is_reported_file_by_file_and_damage_is_a_problem) {
    char run[SCRATCH_NAME];
    json_t *report;
    save(scratch(run), 5);
    CHECK_OK(checkpoint_mark_best(run, 5));
    char *folder = in(run, "checkpoints/step-5"), *config = in(folder, "config.json"), *best = in(run, "best");
    CHECK_OK(inspect_path(&report, folder));
    check_checkpoint(report, 5);
    ck_assert_ptr_null(json_object_get(report, "problem"));
    json_decref(report);
    CHECK_OK(inspect_path(&report, best));
    check_checkpoint(report, 5);
    json_decref(report);
    overwrite(config, "{}", 2);
    CHECK_OK(inspect_path(&report, folder));
    ck_assert_ptr_nonnull(strstr(json_string_value(at(report, "problem")), "config.json"));
    ck_assert_ptr_null(json_object_get(json_array_get(at(report, "files"), 0), "problem"));
    ck_assert_ptr_nonnull(json_object_get(json_array_get(at(report, "files"), 1), "problem"));
    json_decref(report);
    free(folder);
    free(config);
    free(best);
    CHECK_OK(directory_remove(run));
}
END_TEST

START_TEST(models_configs_and_tokenizers_are_told_apart) {
    static const struct {
        const char *path, *kind, *key;
    } cases[] = {
        {"tests/golden/formats.safetensors", "model", "arrays"},
        {"tests/golden/formats_config.json", "config", "config"},
        {"tests/golden/llama_tied", "model", "config"},
        {"bytes", "tokenizer", "tokenizer"},
        {"../shared/data/stories260K/stories260K.bin", "model", "config"},
        {"../shared/data/stories260K/tok512.bin", "tokenizer", "tokenizer"},
        {"../shared/data/tokenizers/llama3", "tokenizer", "tokenizer"},
    };
    json_t *report;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (strstr(cases[i].path, "shared") && !file_exists(cases[i].path) && !directory_exists(cases[i].path)) {
            printf("without %s: it is absent\n", cases[i].path);
            continue;
        }
        CHECK_OK(inspect_path(&report, cases[i].path));
        ck_assert_str_eq(json_string_value(at(report, "kind")), cases[i].kind);
        at(report, cases[i].key);
        ck_assert_ptr_null(json_object_get(report, "problem"));
        json_decref(report);
    }
    CHECK_ERROR(inspect_path(&report, "tests/golden/formats.h5"), ERR_REFUSED, "manifest.json");
    CHECK_ERROR(inspect_path(&report, "Makefile"), ERR_REFUSED, "Makefile");
    CHECK_ERROR(inspect_path(&report, "absent"), ERR_REFUSED, "no such file");
}
END_TEST

CHECK_MAIN("inspect", a_run_is_reported_with_its_steps_and_its_newest_checkpoint,
           a_checkpoint_is_reported_file_by_file_and_damage_is_a_problem, models_configs_and_tokenizers_are_told_apart)
