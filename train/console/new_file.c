/* renameat2(2) with RENAME_NOREPLACE, so that nothing is lost even where somebody else writes the same name meanwhile;
 * file systems that cannot do that get a look and a rename. */
#include "train/console/new_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"

static int refuse(const char *target) {
    FAIL(ERR_REFUSED, "%s: is there already; nothing is overwritten: name a new file, or remove this one", target);
}

int new_file_check(const char *target) {
    size_t length = strlen(target);
    if (length == 0) FAIL(ERR_USAGE, "the file to write has no name");
    if (target[length - 1] == '/' || directory_exists(target))
        FAIL(ERR_REFUSED, "%s: is a folder; the name of a new file is expected", target);
    return access(target, F_OK) == 0 ? refuse(target) : OK;
}

int new_file_begin(NewFile *file, const char *target) {
    int rc = OK;
    *file = (NewFile){0};
    TRY(new_file_check(target));
    TRY(directory_make_parent(target));
    file->target = strdup(target);
    if (!file->target || asprintf(&file->path, "%s.incomplete-%ld", target, (long)getpid()) < 0) {
        file->path = NULL;
        FAIL_TO(failed, ERR_FAILED, "out of memory");
    }
    return OK;
failed:
    new_file_abandon(file);
    return rc;
}

int new_file_commit(NewFile *file) {
    int rc = OK;
    if (renameat2(AT_FDCWD, file->path, AT_FDCWD, file->target, RENAME_NOREPLACE) == 0) {
        rc = directory_sync_parent(file->target);
    } else if (errno == EEXIST) {
        rc = refuse(file->target);
    } else if (errno == EINVAL || errno == ENOSYS) {
        TRY_TO(done, new_file_check(file->target));
        TRY_TO(done, file_rename(file->path, file->target));
    } else {
        FAIL_TO(done, ERR_FAILED, "%s: rename: %s", file->target, strerror(errno));
    }
done:
    new_file_abandon(file);
    return rc;
}

void new_file_abandon(NewFile *file) {
    if (file->path) {
        unlink(file->path);
        error_replace(file->path, file->target);
    }
    free(file->target);
    free(file->path);
    *file = (NewFile){0};
}
