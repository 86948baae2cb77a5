/* One stage after the other, each a process of its own: see rounds.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/output.h"
#include "train/files/model_file.h"
#include "train/rounds/child.h"
#include "train/rounds/record.h"
#include "train/rounds/words.h"

typedef struct {
    const Rounds *rounds;
    int lock;
} Runner;

/* ---- what is written before a stage ---- */

static int save_config(const Rounds *rounds) {
    Text text = {0};
    char *path = path_join(rounds->config->output, ROUNDS_CONFIG);
    text_puts(&text, ROUNDS_WRITTEN CRIA_VERSION " from this config\n");
    if (rounds->arguments.length) text_puts(&text, rounds->arguments.bytes);
    text_append(&text, rounds->bytes, rounds->size);
    int rc = path ? text_check(&text) : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    if (rc == OK) rc = file_write_atomic(path, text.bytes, text.length);
    free(path);
    text_free(&text);
    return rc;
}

/* Every option that was set, and nothing else, since commands look at what was. */
static int save_stage_config(const RoundStage *stage) {
    Text text = {0};
    text_printf(&text, "# written by cria rounds: cria %s %s\n", stage->spec->command->name, stage->yaml);
    int rc = config_write_set(stage->config, &text);
    if (rc == OK) rc = file_write_atomic(stage->yaml, text.bytes, text.length);
    text_free(&text);
    return rc;
}

/* What a killed merge left: "average.incomplete-123" beside where the average was to be. */
static int remove_incomplete(const RoundStage *stage) {
    char **names = NULL, prefix[128];
    size_t n = 0;
    char *folder = strndup(stage->folder, strlen(stage->folder) - strlen(stage->spec->name) - 1);
    if (!folder) FAIL(ERR_FAILED, "out of memory");
    snprintf(prefix, sizeof prefix, "%s.incomplete-", stage->spec->name);
    int rc = directory_list(&names, &n, folder);
    for (size_t i = 0; i < n && rc == OK; i++) {
        if (!text_starts_with(names[i], prefix)) continue;
        char *path = path_join(folder, names[i]);
        rc = path ? directory_remove(path) : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
        free(path);
    }
    names_free(names, n);
    free(folder);
    return rc;
}

/* ---- a stage ---- */

static int run_words(const Runner *runner, const Words *words, const char *launcher, int output) {
    return child_run(
        &(ChildOptions){.arguments = words->items, .launcher = launcher, .output = output, .lock = runner->lock});
}

/* Its figures appear in `name` when they are whole. */
static int run_eval_once(const Runner *runner, const RoundStage *stage, const char *model, const char *reference,
                         const char *name) {
    Words words = {.n = 0};
    Output output = {.fd = -1};
    char *path = path_join(stage->folder, name);
    int rc = path ? words_of_eval(&words, stage, model, reference)
                  : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    if (rc == OK) rc = output_begin(&output, path);
    if (rc == OK) rc = run_words(runner, &words, "", output.fd);
    if (rc == OK) rc = output_commit(&output);
    output_abandon(&output);
    free(path);
    words_free(&words);
    return rc;
}

/* Whether both models mean the same by every token: else neither template nor divergence carries over. */
static int same_tokens(bool *same, const char *model, const char *reference) {
    ModelFile files[2] = {{0}};
    const char *const paths[] = {model, reference};
    int rc = OK;
    for (int i = 0; i < 2 && rc == OK; i++)
        rc = model_file_open(&files[i], paths[i], (ModelFileOptions){.shape_only = true, .need_tokenizer = true});
    *same = rc == OK && tokenizer_vocab_size(files[0].tokenizer) == tokenizer_vocab_size(files[1].tokenizer) &&
            tokenizer_first_difference(files[0].tokenizer, files[1].tokenizer) < 0;
    for (int i = 0; i < 2; i++) model_file_close(&files[i]);
    return rc;
}

/* The reference's own figures first: those of the policy say that the stage is done. */
static int run_eval(const Runner *runner, const RoundStage *stage) {
    const char *model = stage->config->model_base, *reference = stage->config->dpo_reference;
    bool same = false;
    TRY(directory_make(stage->folder));
    if (*reference) TRY(same_tokens(&same, model, reference));
    if (*reference && !same)
        log_warning("%s: %s has other tokens than %s, and is not compared with it", stage->name, reference, model);
    if (same) TRY(run_eval_once(runner, stage, reference, NULL, REFERENCE_FIGURES));
    return run_eval_once(runner, stage, model, same ? reference : NULL, POLICY_FIGURES);
}

static int run_one(const Runner *runner, const RoundStage *stage) {
    Words words = {.n = 0};
    const char *launcher = stage->spec->command->training ? runner->rounds->config->rounds_launcher : "";
    int rc = words_of(&words, stage);
    if (rc == OK) rc = run_words(runner, &words, launcher, STDERR_FILENO);
    words_free(&words);
    return rc;
}

static int run_stage(const Runner *runner, const RoundStage *stage) {
    TRY(record_write(stage, false));
    if (stage->models.n == 0) TRY(save_stage_config(stage));
    if (stage->models.n > 0) TRY(remove_incomplete(stage));
    return stage->spec->command->makes & MAKES_FIGURES ? run_eval(runner, stage) : run_one(runner, stage);
}

/* ---- all ---- */

/* A line before each stage; what the stage itself shows follows. */
static void announce(const Rounds *rounds, const RoundStage *stage, const RoundState *state) {
    const char *what = state->finished ? "was finished before" : state->begun ? "goes on" : "begins";
    log_info("round %lld of %lld, stage %d of %d: %s (cria %s) %s", (long long)stage->round,
             (long long)rounds->config->rounds_count, stage->number, stage->of_round, stage->spec->name,
             stage->spec->command->name, what);
}

static int stopped(int rc, const RoundStage *stage) {
    if (rc == ERR_INTERRUPTED)
        FAIL(ERR_INTERRUPTED, "interrupted in %s; the same command goes on from there", stage->name);
    if (!error_is_reported()) return error_context(rc, "%s", stage->name);
    log_info("%s did not come to its end; once that is mended, the same command goes on from there", stage->name);
    return rc;
}

static int run_all(const Runner *runner, const RoundState *states) {
    const Rounds *rounds = runner->rounds;
    for (size_t i = 0; i < rounds->n_stages; i++) {
        const RoundStage *stage = &rounds->stages[i];
        announce(rounds, stage, &states[i]);
        int rc = states[i].finished ? OK : run_stage(runner, stage);
        if (rc != OK) return stopped(rc, stage);
        if (!states[i].recorded) TRY(record_write(stage, true));
        if (!states[i].recorded) TRY(rounds_report(rounds));
    }
    return rounds_report(rounds);
}

int rounds_run(const Rounds *rounds, const RoundState *states, int lock) {
    Runner runner = {.rounds = rounds, .lock = lock};
    TRY(save_config(rounds));
    children_begin();
    int rc = run_all(&runner, states);
    children_end();
    if (rc == OK)
        log_info("done: %lld round%s; %s/report.md says what came of them", (long long)rounds->config->rounds_count,
                 rounds->config->rounds_count == 1 ? "" : "s", rounds->config->output);
    return rc;
}
