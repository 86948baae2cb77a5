/* write, fsync, close, rename, fsync of the directory: each failing call is named with its file. */
#include "model/core/output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"

int output_begin(Output *output, const char *path) {
    int rc = OK;
    *output = (Output){.fd = -1};
    output->path = strdup(path);
    if (!output->path || asprintf(&output->temporary, "%s.tmp", path) < 0) {
        output->temporary = NULL;
        FAIL_TO(failed, ERR_FAILED, "%s: out of memory", path);
    }
    output->fd = open(output->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (output->fd < 0) FAIL_TO(failed, ERR_FAILED, "%s: open for writing: %s", output->temporary, strerror(errno));
    return OK;
failed:
    output_abandon(output);
    return rc;
}

int output_resize(Output *output, uint64_t size) {
    if (ftruncate(output->fd, (off_t)size) != 0)
        FAIL(ERR_FAILED, "%s: making it %llu bytes long: %s", output->temporary, (unsigned long long)size,
             strerror(errno));
    return OK;
}

int output_write(Output *output, const void *bytes, size_t size) {
    const char *next = bytes;
    while (size > 0) {
        ssize_t written = pwrite(output->fd, next, size, (off_t)output->offset);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) FAIL(ERR_FAILED, "%s: write: %s", output->temporary, strerror(errno));
        if (written == 0) FAIL(ERR_FAILED, "%s: write: nothing was taken", output->temporary);
        next += written;
        size -= (size_t)written;
        output->offset += (uint64_t)written;
    }
    return OK;
}

static void release(Output *output) {
    free(output->path);
    free(output->temporary);
    *output = (Output){.fd = -1};
}

int output_sync(Output *output) {
    if (fsync(output->fd) != 0 && errno != EINVAL) /* EINVAL: a file system without fsync */
        FAIL(ERR_FAILED, "%s: fsync: %s", output->temporary, strerror(errno));
    return OK;
}

int output_commit(Output *output) {
    int rc = OK;
    int fd = output->fd;
    output->fd = -1;
    TRY_TO(failed, file_sync_and_close(fd, output->temporary));
    TRY_TO(failed, file_rename(output->temporary, output->path));
    release(output);
    return OK;
failed:
    output_abandon(output);
    return rc;
}

void output_abandon(Output *output) {
    if (output->fd >= 0) close(output->fd);
    if (output->temporary) unlink(output->temporary);
    release(output);
}

int file_sum(FileSum *sum, const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) FAIL(ERR_FAILED, "%s: open: %s", path, strerror(errno));
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); /* advice: a refusal only costs us the proof */
    close(fd);
    TRY(file_crc32c(&sum->crc32c, &sum->size, path));
    return OK;
}
