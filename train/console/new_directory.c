/* rename(2) replaces an empty folder and refuses any other, so that nothing is lost even where somebody else writes
 * into it meanwhile. */
#include "train/console/new_directory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"

enum { MAX_LEFTOVERS = 1000 }; /* of earlier processes of the same number, which were killed */

int new_directory_check(const char *target) {
    char **names;
    size_t n;
    if (!*target) FAIL(ERR_USAGE, "the folder to write has no name");
    if (file_exists(target)) FAIL(ERR_REFUSED, "%s: is a file; the name of a new folder is expected", target);
    if (!directory_exists(target)) return OK;
    TRY(directory_list(&names, &n, target));
    int rc = OK;
    if (n > 0)
        rc =
            error_set(ERR_REFUSED, __FILE__, __LINE__,
                      "%s: is not empty (it holds '%s'); nothing is overwritten: name a new folder, or remove this one",
                      target, names[0]);
    names_free(names, n);
    return rc;
}

/* The target's own name: links followed where it exists, no slash at its end. */
static int settle_target(NewDirectory *directory, const char *target) {
    directory->target = directory_exists(target) ? realpath(target, NULL) : strdup(target);
    if (!directory->target) FAIL(ERR_FAILED, "%s: %s", target, strerror(errno));
    for (size_t n = strlen(directory->target); n > 1 && directory->target[n - 1] == '/'; n--)
        directory->target[n - 1] = '\0';
    return OK;
}

static int make_path(NewDirectory *directory) {
    for (int i = 0; i < MAX_LEFTOVERS; i++) {
        if (asprintf(&directory->path, "%s.incomplete-%ld", directory->target, (long)getpid() + i) < 0) {
            directory->path = NULL;
            FAIL(ERR_FAILED, "out of memory");
        }
        if (mkdir(directory->path, 0777) == 0) return OK;
        int code = errno;
        free(directory->path);
        directory->path = NULL;
        if (code != EEXIST) FAIL(ERR_FAILED, "%s: making a folder beside it: %s", directory->target, strerror(code));
    }
    FAIL(ERR_FAILED, "%s: too many folders of interrupted work beside it; remove the *.incomplete-*",
         directory->target);
}

int new_directory_begin(NewDirectory *directory, const char *target) {
    int rc = OK;
    *directory = (NewDirectory){0};
    TRY(new_directory_check(target));
    TRY_TO(failed, settle_target(directory, target));
    TRY_TO(failed, directory_make_parent(directory->target));
    TRY_TO(failed, make_path(directory));
    return OK;
failed:
    new_directory_abandon(directory);
    return rc;
}

static void release(NewDirectory *directory) {
    free(directory->target);
    free(directory->path);
    *directory = (NewDirectory){0};
}

int new_directory_commit(NewDirectory *directory) {
    int rc = OK;
    TRY_TO(failed, directory_sync(directory->path));
    TRY_TO(failed, file_rename(directory->path, directory->target));
    release(directory);
    return OK;
failed:
    new_directory_abandon(directory);
    return rc;
}

void new_directory_abandon(NewDirectory *directory) {
    if (directory->path && directory_exists(directory->path)) {
        char *reason = strdup(error_text()); /* the caller's error outlives this clean-up */
        if (directory_remove(directory->path) != OK && reason) error_set(ERR_FAILED, __FILE__, __LINE__, "%s", reason);
        free(reason);
    }
    if (directory->path) error_replace(directory->path, directory->target);
    release(directory);
}
