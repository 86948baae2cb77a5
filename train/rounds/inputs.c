/* What stages read, and how it is told from what it was: see record.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/source.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/formats/checkpoint.h"
#include "train/rounds/record.h"

/* ---- which ---- */

/* Words that stand where a path may, and what is written rather than read. */
static bool is_input(OptionId id, const char *path) {
    if (id == OPTION_output || id == OPTION_data_cache || !*path) return false;
    if (id == OPTION_tokenizer_path) return strcmp(path, "from-model") != 0 && strcmp(path, "bytes") != 0;
    return id != OPTION_ppo_value_model || strcmp(path, "from-policy") != 0;
}

static int visit_sources(const ConfigSources *paths, const ConfigSources *symbolic, OptionId id, InputVisit *visit,
                         void *context) {
    for (size_t i = 0; i < paths->n; i++) TRY(visit(context, id, paths->items[i].path, symbolic->items[i].path));
    return OK;
}

static int visit_strings(const ConfigStrings *paths, const ConfigStrings *symbolic, OptionId id, InputVisit *visit,
                         void *context) {
    for (size_t i = 0; i < paths->n; i++) TRY(visit(context, id, paths->items[i], symbolic->items[i]));
    return OK;
}

int inputs_visit(const RoundStage *stage, InputVisit *visit, void *context) {
    for (int i = 0; i < OPTION_COUNT; i++) {
        OptionId id = (OptionId)i;
        const Option *option = &option_table[id];
        const char *field = (const char *)stage->config + option->offset;
        const char *symbolic = (const char *)stage->symbolic + option->offset;
        if (!config_is_set(stage->config, id)) continue;
        if (option->type == OPTION_SOURCES)
            TRY(visit_sources((const void *)field, (const void *)symbolic, id, visit, context));
        else if (id == OPTION_rejection_earlier)
            TRY(visit_strings((const void *)field, (const void *)symbolic, id, visit, context));
        else if (option->type == OPTION_PATH && is_input(id, *(const char *const *)field))
            TRY(visit(context, id, *(const char *const *)field, *(const char *const *)symbolic));
    }
    return visit_strings(&stage->models, &stage->symbolic_models, OPTION_COUNT, visit, context);
}

/* ---- what they are ---- */

typedef struct {
    uint64_t size;
    uint32_t crc;
} Sum;

static int add_file(Sum *sum, const char *path) {
    uint32_t crc;
    uint64_t size;
    TRY(file_crc32c(&crc, &size, path));
    sum->crc = crc32c(sum->crc, &crc, sizeof crc);
    sum->size += size;
    return OK;
}

static int add_files(Sum *sum, char **paths, size_t n) {
    for (size_t i = 0; i < n; i++) TRY(add_file(sum, paths[i]));
    return OK;
}

/* The model's file of the checkpoint in this folder, which its manifest sums up; *found is false where it is none. */
static int add_checkpoint(Sum *sum, const char *folder, bool *found) {
    Manifest manifest = {0};
    char *path = path_join(folder, MANIFEST_NAME);
    *found = path && file_exists(path);
    free(path);
    if (!*found) return OK;
    int rc = manifest_read(&manifest, folder);
    const ManifestFile *model = rc == OK ? manifest_find(&manifest, CHECKPOINT_MODEL) : NULL;
    *found = model != NULL;
    if (model) *sum = (Sum){model->sum.size, crc32c(sum->crc, &model->sum.crc32c, sizeof model->sum.crc32c)};
    manifest_free(&manifest);
    return rc;
}

/* The newest checkpoint of a run, by name: its bytes are checked by who loads it. */
static int newest_step(char **folder, const char *run) {
    char **names = NULL, *checkpoints = path_join(run, "checkpoints");
    size_t n = 0;
    long long newest = -1;
    *folder = NULL;
    if (!checkpoints) FAIL(ERR_FAILED, "out of memory");
    int rc = directory_exists(checkpoints) ? directory_list(&names, &n, checkpoints) : OK;
    for (size_t i = 0; i < n; i++) {
        long long step;
        char name[64], *manifest = NULL;
        if (sscanf(names[i], "step-%lld", &step) != 1 || step <= newest) continue;
        snprintf(name, sizeof name, "step-%lld", step);
        bool whole =
            strcmp(name, names[i]) == 0 && asprintf(&manifest, "%s/%s/%s", checkpoints, name, MANIFEST_NAME) > 0;
        if (whole && file_exists(manifest)) newest = step;
        free(manifest);
    }
    if (newest >= 0 && asprintf(folder, "%s/step-%lld", checkpoints, newest) < 0) *folder = NULL;
    names_free(names, n);
    free(checkpoints);
    return rc;
}

/* RUN/best names a checkpoint of RUN. */
static int add_best(Sum *sum, const char *path, bool *found) {
    size_t n = strlen(path);
    char *folder = NULL, *run = text_ends_with(path, "/best") ? strndup(path, n - strlen("/best")) : NULL;
    *found = false;
    if (!run || directory_exists(path)) {
        free(run);
        return OK;
    }
    int rc = directory_exists(run) ? checkpoint_best(&folder, NULL, run) : OK;
    if (rc == OK && folder) rc = add_checkpoint(sum, folder, found);
    free(folder);
    free(run);
    return rc;
}

/* Every file below a folder, hidden ones aside. */
static int add_folder(Sum *sum, const char *folder) {
    char **names;
    size_t n;
    int rc = OK;
    TRY(directory_list(&names, &n, folder));
    for (size_t i = 0; i < n && rc == OK; i++) {
        char *path = path_join(folder, names[i]);
        if (!path)
            rc = error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
        else if (names[i][0] != '.')
            rc = directory_exists(path) ? add_folder(sum, path) : add_file(sum, path);
        free(path);
    }
    names_free(names, n);
    return rc;
}

/* A folder: a run's, a checkpoint, or any other. */
static int add_model(Sum *sum, const char *path, bool *found) {
    char *newest = NULL;
    TRY(newest_step(&newest, path));
    int rc = add_checkpoint(sum, newest ? newest : path, found);
    free(newest);
    if (rc == OK && !*found) {
        *found = true;
        rc = add_folder(sum, path);
    }
    return rc;
}

int input_sum(const char **out, const char *path, Arena *arena) {
    Sum sum = {0};
    bool found = false;
    char **paths = NULL, text[64];
    size_t n = 0;
    *out = "";
    TRY(add_best(&sum, path, &found));
    if (!found && directory_exists(path)) {
        TRY(add_model(&sum, path, &found));
    } else if (!found && source_files(&paths, &n, path) == OK) {
        found = true;
        int rc = add_files(&sum, paths, n);
        names_free(paths, n);
        TRY(rc);
    }
    if (!found) {
        error_clear();
        return OK;
    }
    snprintf(text, sizeof text, "%" PRIu64 ":%08" PRIx32, sum.size, sum.crc);
    *out = arena_strdup(arena, text);
    if (!*out) FAIL(ERR_FAILED, "out of memory");
    return OK;
}
