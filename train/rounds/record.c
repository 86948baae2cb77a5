/* See record.h. */
#include "train/rounds/record.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"

/* Options that change how a stage is computed and told of, and nothing that it leaves. */
static const OptionId without_effect[] = {OPTION_output,
                                          OPTION_data_cache,
                                          OPTION_parallel_data,
                                          OPTION_parallel_watchdog,
                                          OPTION_train_threads,
                                          OPTION_train_memory_limit,
                                          OPTION_train_checkpoint_minutes,
                                          OPTION_train_keep_last,
                                          OPTION_train_log_every,
                                          OPTION_train_recompute,
                                          OPTION_train_packed_weights,
                                          OPTION_train_sample_every,
                                          OPTION_train_sample_prompt,
                                          OPTION_sft_sample_prompts,
                                          OPTION_rejection_max_batch,
                                          OPTION_rejection_timeout,
                                          OPTION_ppo_max_batch,
                                          OPTION_ppo_timeout,
                                          OPTION_train_checkpoint_every};

static bool has_effect(const RoundStage *stage, OptionId id) {
    const StageCommand *command = stage->spec->command;
    for (size_t i = 0; i < sizeof without_effect / sizeof *without_effect; i++)
        if (without_effect[i] == id) return false;
    return !*command->idle || !config_in_sections(id, command->idle);
}

/* ---- what a record of this stage would say now ---- */

static json_t *options_of(const RoundStage *stage) {
    json_t *options = json_object();
    const RoundSpec *spec = stage->spec;
    for (int id = 0; id < OPTION_COUNT && options; id++) {
        Text text = {0};
        if (!config_is_set(stage->symbolic, (OptionId)id) || !has_effect(stage, (OptionId)id)) continue;
        if (config_value_text(stage->symbolic, (OptionId)id, &text) == OK)
            json_object_set_new(options, option_table[id].key, json_string(text.bytes));
        text_free(&text);
    }
    if (spec->models.n > 0) {
        Text models = {0};
        for (size_t i = 0; i < stage->symbolic_models.n; i++)
            text_printf(&models, "%s%s", i ? ", " : "", stage->symbolic_models.items[i]);
        json_object_set_new(options, "models", json_string(models.bytes ? models.bytes : ""));
        text_free(&models);
    }
    if (spec->weights) json_object_set_new(options, "weights", json_string(spec->weights));
    if (spec->dtype) json_object_set_new(options, "dtype", json_string(spec->dtype));
    return options;
}

typedef struct {
    json_t *sums;
    Arena arena;
} Inputs;

static int add_input(void *context, OptionId id, const char *path, const char *symbolic) {
    Inputs *inputs = context;
    const char *sum;
    (void)id;
    if (json_object_get(inputs->sums, symbolic)) return OK;
    TRY(input_sum(&sum, path, &inputs->arena));
    return json_object_set_new(inputs->sums, symbolic, json_string(sum)) == 0 ? OK : ERR_FAILED;
}

static int inputs_of(const RoundStage *stage, json_t **sums) {
    Inputs inputs = {.sums = json_object()};
    int rc = inputs.sums ? inputs_visit(stage, add_input, &inputs)
                         : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    arena_free(&inputs.arena);
    *sums = inputs.sums;
    return rc;
}

int record_write(const RoundStage *stage, bool finished) {
    int rc = OK;
    json_t *sums = NULL, *record = NULL;
    char *text = NULL;
    TRY_TO(done, inputs_of(stage, &sums));
    record = json_pack("{s:s, s:i, s:s, s:s, s:s, s:o, s:O}", "cria", "rounds", "format", 1, "stage", stage->name,
                       "run", stage->spec->command->name, "state", finished ? "finished" : "begun", "options",
                       options_of(stage), "inputs", sums);
    text = record ? json_dumps(record, JSON_INDENT(2)) : NULL;
    if (!text) FAIL_TO(done, ERR_FAILED, "%s: out of memory", stage->record);
    TRY_TO(done, directory_make_parent(stage->record));
    TRY_TO(done, file_write_atomic(stage->record, text, strlen(text)));
done:
    free(text);
    json_decref(record);
    json_decref(sums);
    return rc;
}

/* ---- against what it says ---- */

static const char *shown(const json_t *value) {
    return value ? json_string_value(value) : "left out";
}

/* A line for each option that is another one. */
static void compare_options(const json_t *then, json_t *now, Text *out) {
    const char *key;
    json_t *value, *all = (json_t *)(uintptr_t)then;
    json_object_foreach(all, key, value) {
        const json_t *other = json_object_get(now, key);
        if (!other || !json_equal(value, (json_t *)(uintptr_t)other))
            text_printf(out, "%s: %s then, %s now\n", key, shown(value), shown(other));
    }
    json_object_foreach(now, key, value) {
        if (!json_object_get(then, key)) text_printf(out, "%s: left out then, %s now\n", key, shown(value));
    }
}

/* What is gone is not needed any more. */
static void compare_inputs(const json_t *then, json_t *now, Text *out) {
    const char *path;
    json_t *value;
    json_object_foreach(now, path, value) {
        const json_t *other = json_object_get(then, path);
        if (other && *json_string_value(value) && !json_equal((json_t *)(uintptr_t)other, value))
            text_printf(out, "%s has changed since\n", path);
    }
}

static int check_finished(const RoundStage *stage, const json_t *record) {
    json_t *options = options_of(stage), *inputs = NULL;
    Text found = {0};
    int rc = inputs_of(stage, &inputs);
    compare_options(json_object_get(record, "options"), options, &found);
    if (!found.length && rc == OK) compare_inputs(json_object_get(record, "inputs"), inputs, &found);
    if (rc == OK && found.length)
        rc = error_set(
            ERR_REFUSED, __FILE__, __LINE__,
            "%s is %s, and was made with something else:\n%sset it back, or choose another output folder", stage->name,
            strcmp(json_string_value(json_object_get(record, "state")), "finished") == 0 ? "finished" : "begun",
            found.bytes);
    text_free(&found);
    json_decref(options);
    json_decref(inputs);
    return rc;
}

/* Products of stages that do not go on by themselves appear whole: where they are, all is done but the record. */
static bool has_product(const RoundStage *stage) {
    if (!(stage->spec->command->makes & MAKES_FIGURES)) return directory_exists(stage->folder);
    char *figures = path_join(stage->folder, POLICY_FIGURES);
    bool there = figures && file_exists(figures);
    free(figures);
    return there;
}

static int check_product(const RoundStage *stage) {
    if (has_product(stage)) return OK;
    FAIL(ERR_REFUSED,
         "%s is recorded as finished, and its folder %s is gone: put it back, or remove %s to run it again",
         stage->name, stage->folder, stage->record);
}

static int check_record(const RoundStage *stage, const json_t *record) {
    const char *cria = json_string_value(json_object_get(record, "cria"));
    const char *name = json_string_value(json_object_get(record, "stage"));
    const char *run = json_string_value(json_object_get(record, "run"));
    if (!cria || strcmp(cria, "rounds") != 0 || !name || !run || !json_is_object(json_object_get(record, "options")) ||
        !json_is_object(json_object_get(record, "inputs")) || !json_is_string(json_object_get(record, "state")))
        FAIL(ERR_REFUSED, "%s: it is not the record of a stage, as cria rounds writes it", stage->record);
    if (strcmp(run, stage->spec->command->name) != 0)
        FAIL(ERR_REFUSED, "%s was made by cria %s, and the config has cria %s for it; give the stage another name",
             stage->name, run, stage->spec->command->name);
    return OK;
}

static int load_record(const RoundStage *stage, json_t **record, RoundState *state) {
    json_error_t where;
    *state = (RoundState){0};
    *record = NULL;
    if (!file_exists(stage->record)) return OK;
    *record = json_load_file(stage->record, 0, &where);
    if (!*record) FAIL(ERR_REFUSED, "%s:%d: %s", stage->record, where.line, where.text);
    TRY(check_record(stage, *record));
    state->begun = true;
    state->finished = strcmp(json_string_value(json_object_get(*record, "state")), "finished") == 0;
    state->recorded = state->finished;
    return OK;
}

int record_state(const RoundStage *stage, RoundState *state) {
    json_t *record;
    int rc = load_record(stage, &record, state);
    json_decref(record);
    return rc;
}

int record_read(const RoundStage *stage, RoundState *state) {
    json_t *record;
    int rc = load_record(stage, &record, state);
    if (rc == OK && !record && directory_exists(stage->folder))
        rc = error_set(ERR_REFUSED, __FILE__, __LINE__,
                       "%s is there, and no record of it: this run did not make it; choose another output folder",
                       stage->folder);
    if (rc == OK && record) {
        bool whole = !state->finished && !stage->spec->command->resumes && has_product(stage);
        if (state->finished || whole) rc = check_finished(stage, record);
        if (rc == OK && state->finished) rc = check_product(stage);
        state->finished = state->finished || whole;
    }
    json_decref(record);
    return rc;
}
