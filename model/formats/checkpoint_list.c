/* Which checkpoints a run has, which is the newest whole one, which the best, and which may go. */
#include "model/formats/checkpoint_list.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "model/formats/checkpoint.h"

static const char prefix[] = "step-", old_suffix[] = ".old";
enum { MAX_DIGITS = 18, MAX_MARKER = 64 };

/* ---- the list ---- */

bool step_name_parse(int64_t *step, bool *old, const char *name) {
    if (!text_starts_with(name, prefix)) return false;
    const char *digits = name + sizeof prefix - 1;
    size_t n = strspn(digits, "0123456789");
    if (n == 0 || n > MAX_DIGITS || (digits[0] == '0' && n > 1)) return false;
    *old = strcmp(digits + n, old_suffix) == 0;
    if (!*old && digits[n] != '\0') return false;
    *step = strtoll(digits, NULL, 10);
    return true;
}

char *step_path(const char *run, int64_t step, bool old) {
    char *path = NULL;
    if (asprintf(&path, "%s/%s/%s%lld%s", run, CHECKPOINTS, prefix, (long long)step, old ? old_suffix : "") < 0)
        return NULL;
    return path;
}

static int newest_first(const void *a, const void *b) {
    const StepFolder *x = a, *y = b;
    if (x->step != y->step) return x->step > y->step ? -1 : 1;
    return (int)x->old - (int)y->old;
}

static bool is_real_directory(const char *path) { /* and not a link to one: what is removed must be ours */
    struct stat status;
    return lstat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

int step_list_read(StepList *list, const char *run) {
    int rc = OK;
    char **names = NULL, *directory = path_join(run, CHECKPOINTS);
    size_t n = 0;
    *list = (StepList){0};
    if (!directory) FAIL(ERR_FAILED, "out of memory");
    if (!directory_exists(directory)) goto done;
    TRY_TO(done, directory_list(&names, &n, directory));
    list->items = calloc(n + 1, sizeof *list->items);
    if (!list->items) FAIL_TO(done, ERR_FAILED, "out of memory");
    for (size_t i = 0; i < n; i++) {
        StepFolder *item = &list->items[list->n];
        if (!step_name_parse(&item->step, &item->old, names[i])) continue;
        item->path = path_join(directory, names[i]);
        if (!item->path) FAIL_TO(done, ERR_FAILED, "out of memory");
        if (is_real_directory(item->path))
            list->n++;
        else
            free(item->path);
    }
    qsort(list->items, list->n, sizeof *list->items, newest_first);
done:
    names_free(names, n);
    free(directory);
    if (rc != OK) step_list_free(list);
    return rc;
}

void step_list_free(StepList *list) {
    for (size_t i = 0; i < list->n; i++) free(list->items[i].path);
    free(list->items);
    *list = (StepList){0};
}

bool step_has_manifest(const char *folder) {
    char *path = path_join(folder, MANIFEST_NAME);
    bool found = path && file_exists(path);
    free(path);
    return found;
}

bool step_looks_committed(const char *folder) {
    Manifest manifest;
    if (!step_has_manifest(folder) || manifest_read(&manifest, folder) != OK) return false;
    bool whole = manifest_check_sizes(&manifest, folder) == OK;
    manifest_free(&manifest);
    return whole;
}

/* ---- checking ---- */

int step_verify(const char *folder, const char *only) {
    int rc = OK;
    Manifest manifest;
    if (!directory_exists(folder)) FAIL(ERR_REFUSED, "%s: no such checkpoint", folder);
    if (!step_has_manifest(folder)) FAIL(ERR_REFUSED, "%s: has no %s: its save did not finish", folder, MANIFEST_NAME);
    TRY(manifest_read(&manifest, folder));
    if (!only) {
        TRY_TO(done, manifest_check_bytes(&manifest, folder));
    } else {
        const ManifestFile *file = manifest_find(&manifest, only);
        TRY_TO(done, manifest_check_sizes(&manifest, folder));
        if (!file) FAIL_TO(done, ERR_REFUSED, "%s: its manifest lists no '%s'", folder, only);
        TRY_TO(done, manifest_check_file(file, folder));
    }
done:
    manifest_free(&manifest);
    return rc;
}

int checkpoint_verify(const char *folder) {
    TRY(step_verify(folder, NULL));
    return OK;
}

int step_newest(char **folder, int64_t *step, const char *run, const char *only) {
    StepList list;
    size_t damaged = 0;
    *folder = NULL;
    TRY(step_list_read(&list, run));
    for (size_t i = 0; i < list.n && !*folder; i++) {
        if (step_verify(list.items[i].path, only) == OK) {
            *folder = list.items[i].path;
            list.items[i].path = NULL;
            if (step) *step = list.items[i].step;
            continue;
        }
        log_warning("passing over a checkpoint: %s", error_text());
        damaged += step_has_manifest(list.items[i].path);
    }
    step_list_free(&list);
    if (!*folder && damaged)
        FAIL(ERR_REFUSED,
             "%s: all of its %zu committed checkpoints are damaged (see the warnings above); restore one, or "
             "remove them to start over",
             run, damaged);
    return OK;
}

int checkpoint_newest(char **folder, int64_t *step, const char *run) {
    TRY(step_newest(folder, step, run, NULL));
    return OK;
}

int step_find_whole(char **folder, const char *run, int64_t step, const char *only) {
    *folder = step_path(run, step, true);
    if (!*folder) FAIL(ERR_FAILED, "out of memory");
    char *plain = step_path(run, step, false);
    if (!plain) {
        free(*folder);
        FAIL(ERR_FAILED, "out of memory");
    }
    bool use_old = !step_looks_committed(plain) && directory_exists(*folder);
    if (use_old) {
        free(plain);
    } else {
        free(*folder);
        *folder = plain;
    }
    int rc = step_verify(*folder, only);
    if (rc != OK) {
        free(*folder);
        *folder = NULL;
    }
    TRY(rc);
    return OK;
}

/* ---- the best ---- */

/* malloc'd RUN/checkpoints/best. NULL when memory is out. */
static char *best_path(const char *run) {
    char *path = NULL;
    return asprintf(&path, "%s/%s/%s", run, CHECKPOINTS, CHECKPOINT_BEST) < 0 ? NULL : path;
}

int step_read_best(int64_t *step, const char *run) {
    int rc = OK;
    char *bytes = NULL, *path = best_path(run);
    size_t size;
    bool old = false;
    *step = -1;
    if (!path) FAIL(ERR_FAILED, "out of memory");
    if (!file_exists(path)) goto done;
    TRY_TO(done, file_read(&bytes, &size, path, MAX_MARKER));
    bytes[strcspn(bytes, "\n")] = '\0';
    if (!step_name_parse(step, &old, bytes) || old)
        FAIL_TO(done, ERR_REFUSED, "%s: a line like 'step-200' is expected", path);
done:
    free(bytes);
    free(path);
    return rc;
}

int step_best(char **folder, int64_t *step, const char *run, const char *only) {
    int64_t best;
    *folder = NULL;
    TRY(step_read_best(&best, run));
    if (best < 0) FAIL(ERR_REFUSED, "%s: no checkpoint has been marked as the best one", run);
    TRY(step_find_whole(folder, run, best, only));
    if (step) *step = best;
    return OK;
}

int checkpoint_best(char **folder, int64_t *step, const char *run) {
    TRY(step_best(folder, step, run, NULL));
    return OK;
}

int checkpoint_mark_best(const char *run, int64_t step) {
    int rc = OK;
    char *folder = step_path(run, step, false), *path = NULL, line[MAX_MARKER];
    if (!folder) FAIL(ERR_FAILED, "out of memory");
    if (!step_looks_committed(folder))
        FAIL_TO(done, ERR_FAILED, "%s: is not a finished checkpoint, so it cannot be the best", folder);
    path = best_path(run);
    if (!path) FAIL_TO(done, ERR_FAILED, "out of memory");
    int n = snprintf(line, sizeof line, "%s%lld\n", prefix, (long long)step);
    TRY_TO(done, file_write_atomic(path, line, (size_t)n));
done:
    free(path);
    free(folder);
    return rc;
}

/* ---- removing ---- */

int step_remove(const char *folder) {
    int rc = OK;
    char *manifest = path_join(folder, MANIFEST_NAME);
    if (!manifest) FAIL(ERR_FAILED, "out of memory");
    if (unlink(manifest) != 0 && errno != ENOENT && errno != ENOTDIR)
        FAIL_TO(done, ERR_FAILED, "%s: remove: %s", manifest, strerror(errno));
    if (directory_exists(folder)) TRY_TO(done, directory_sync(folder));
    TRY_TO(done, directory_remove(folder));
done:
    free(manifest);
    return rc;
}

int checkpoint_prune(const char *run, int keep_last) {
    int rc = OK;
    StepList list;
    int64_t best, newest_commit = -1, last_kept = -1;
    int kept = 0;
    if (keep_last < 1) keep_last = 1;
    TRY(step_read_best(&best, run));
    TRY(step_list_read(&list, run));
    for (size_t i = 0; i < list.n; i++) {
        const StepFolder *item = &list.items[i];
        bool committed = step_looks_committed(item->path);
        if (committed && newest_commit < 0) newest_commit = item->step;
        bool superseded = item->old && committed && last_kept == item->step; /* its newer form was kept just above */
        bool unfinished = !step_has_manifest(item->path) && item->step < newest_commit;
        bool surplus = committed && kept >= keep_last && item->step != best;
        if (superseded || unfinished || surplus) {
            TRY_TO(done, step_remove(item->path));
        } else if (committed) {
            last_kept = item->step;
            kept++;
        }
    }
done:
    step_list_free(&list);
    return rc;
}
