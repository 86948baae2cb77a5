/* Writing one checkpoint, and reading the files of one; see checkpoint.h for the protocol. */
#include "model/formats/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "model/formats/checkpoint_list.h"
#include "model/formats/hdf5_file.h"

struct CheckpointWriter {
    char *parent; /* RUN/checkpoints */
    char *folder, *old;
    Manifest manifest;
};

static void writer_free(CheckpointWriter *writer) {
    free(writer->parent);
    free(writer->folder);
    free(writer->old);
    manifest_free(&writer->manifest);
    free(writer);
}

/* ---- writing ---- */

/* What is already under the step's name: a whole checkpoint is put aside until the new one is committed, anything else
 * is removed. */
static int clear_folder(const CheckpointWriter *writer) {
    if (!directory_exists(writer->folder)) return OK;
    if (!step_looks_committed(writer->folder)) {
        TRY(step_remove(writer->folder));
        return OK;
    }
    TRY(step_remove(writer->old));
    TRY(file_rename(writer->folder, writer->old));
    return OK;
}

int checkpoint_begin(CheckpointWriter **writer, const char *run, int64_t step) {
    int rc = OK;
    *writer = NULL;
    if (step < 0) FAIL(ERR_FAILED, "a checkpoint of step %lld was asked for", (long long)step);
    CheckpointWriter *w = calloc(1, sizeof *w);
    if (!w) FAIL(ERR_FAILED, "out of memory");
    w->manifest.step = step;
    w->parent = path_join(run, CHECKPOINTS);
    w->folder = step_path(run, step, false);
    w->old = step_path(run, step, true);
    if (!w->parent || !w->folder || !w->old) FAIL_TO(failed, ERR_FAILED, "out of memory");
    TRY_TO(failed, directory_make(w->parent));
    TRY_TO(failed, directory_sync(run));
    TRY_TO(failed, clear_folder(w));
    TRY_TO(failed, directory_make(w->folder));
    TRY_TO(failed, directory_sync(w->parent));
    *writer = w;
    return OK;
failed:
    writer_free(w);
    return rc;
}

const char *checkpoint_folder(const CheckpointWriter *writer) {
    return writer->folder;
}

/* malloc'd path of a file of the checkpoint being written. */
static int new_file(char **path, const CheckpointWriter *writer, const char *name) {
    *path = path_join(writer->folder, name);
    if (!*path) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

int checkpoint_add_arrays(CheckpointWriter *writer, const char *name, const NamedSource *sources, size_t n,
                          const NamedText *texts, size_t n_texts) {
    int rc = OK;
    char *path;
    FileSum sum;
    TRY(new_file(&path, writer, name));
    TRY_TO(done, hdf5_write(path, sources, n, texts, n_texts, &sum));
    TRY_TO(done, manifest_add(&writer->manifest, name, &sum));
done:
    free(path);
    return rc;
}

int checkpoint_add_bytes(CheckpointWriter *writer, const char *name, const void *bytes, size_t size) {
    int rc = OK;
    char *path;
    FileSum found, given = {size, crc32c(0, bytes, size)};
    TRY(new_file(&path, writer, name));
    TRY_TO(done, file_write_atomic(path, bytes, size));
    TRY_TO(done, file_sum(&found, path));
    if (found.size != given.size || found.crc32c != given.crc32c)
        FAIL_TO(done, ERR_FAILED, "%s: reads back unlike what was written; the disk or memory is faulty", path);
    TRY_TO(done, manifest_add(&writer->manifest, name, &given));
done:
    free(path);
    return rc;
}

int checkpoint_add_existing(CheckpointWriter *writer, const char *name, const FileSum *sum) {
    TRY(manifest_add(&writer->manifest, name, sum));
    return OK;
}

int checkpoint_commit(CheckpointWriter *writer) {
    int rc = OK;
    Manifest written;
    TRY_TO(failed, manifest_check_sizes(&writer->manifest, writer->folder));
    TRY_TO(failed, directory_sync(writer->folder));
    TRY_TO(failed, manifest_write(&writer->manifest, writer->folder));
    TRY_TO(failed, manifest_read(&written, writer->folder)); /* which its own CRC32C proves */
    manifest_free(&written);
    if (directory_exists(writer->old) && step_remove(writer->old) != OK) /* committed all the same; prune tries again */
        log_warning("the older form of a checkpoint stays: %s", error_text());
    writer_free(writer);
    return OK;
failed:
    checkpoint_abandon(writer);
    return rc;
}

void checkpoint_abandon(CheckpointWriter *writer) {
    if (!writer) return;
    char *reason = strdup(error_text()); /* the caller's error outlives this clean-up */
    int removed = step_remove(writer->folder);
    if (removed == OK && directory_exists(writer->old)) removed = file_rename(writer->old, writer->folder);
    if (reason && removed != OK) error_set(ERR_FAILED, __FILE__, __LINE__, "%s", reason);
    free(reason);
    writer_free(writer);
}

/* ---- reading ---- */

/* Whether PATH is RUN/best, in either of its spellings; *run is malloc'd. */
static bool names_best(char **run, const char *path) {
    static const char *const endings[] = {"/" CHECKPOINTS "/" CHECKPOINT_BEST, "/" CHECKPOINT_BEST};
    for (int i = 0; i < 2; i++) {
        if (!text_ends_with(path, endings[i])) continue;
        *run = strndup(path, strlen(path) - strlen(endings[i]));
        char *marker = NULL;
        if (*run && asprintf(&marker, "%s%s", *run, endings[0]) < 0) marker = NULL;
        bool found = marker && file_exists(marker);
        free(marker);
        if (found) return true;
        free(*run);
    }
    *run = NULL;
    return false;
}

int checkpoint_resolve(char **folder, const char *path) {
    char *run;
    *folder = NULL;
    if (names_best(&run, path)) {
        int rc = step_best(folder, NULL, run, CHECKPOINT_MODEL);
        free(run);
        TRY(rc);
        return OK;
    }
    char *checkpoints = path_join(path, CHECKPOINTS);
    if (!checkpoints) FAIL(ERR_FAILED, "out of memory");
    bool is_run = directory_exists(checkpoints) && !step_has_manifest(path);
    free(checkpoints);
    if (is_run) {
        TRY(step_newest(folder, NULL, path, CHECKPOINT_MODEL));
        if (!*folder) FAIL(ERR_REFUSED, "%s: this run has no finished checkpoint yet", path);
        return OK;
    }
    TRY(step_verify(path, CHECKPOINT_MODEL));
    *folder = strdup(path);
    if (!*folder) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

/* The manifest's word on NAME, and its path; malloc'd. */
static int listed_file(FileSum *sum, char **path, const char *folder, const char *name) {
    Manifest manifest;
    TRY(manifest_read(&manifest, folder));
    const ManifestFile *file = manifest_find(&manifest, name);
    if (file) *sum = file->sum;
    manifest_free(&manifest);
    if (!file) FAIL(ERR_REFUSED, "%s: its manifest lists no '%s'", folder, name);
    *path = path_join(folder, name);
    if (!*path) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

int checkpoint_open_arrays(NamedFile **file, const char *folder, const char *name) {
    FileSum sum = {0};
    char *path;
    TRY(listed_file(&sum, &path, folder, name));
    int rc = hdf5_open(file, path, &sum);
    free(path);
    TRY(rc);
    return OK;
}

int checkpoint_read_bytes(char **bytes, size_t *size, const char *folder, const char *name) {
    int rc = OK;
    FileSum sum = {0};
    char *path;
    *bytes = NULL;
    TRY(listed_file(&sum, &path, folder, name));
    TRY_TO(done, file_read(bytes, size, path, 0));
    if (*size != sum.size || crc32c(0, *bytes, *size) != sum.crc32c) {
        free(*bytes);
        *bytes = NULL;
        FAIL_TO(done, ERR_REFUSED, "%s: does not match its manifest: it is damaged", path);
    }
done:
    free(path);
    return rc;
}
