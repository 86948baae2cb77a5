/* See ghost_file.h. */
#include "train/sampling/ghost_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"

enum { ID_DIGITS = 16 };

static int parse_id(uint64_t *id, const char *line, size_t size, const char *path, size_t number) {
    size_t begin = strlen(GHOST_LINE);
    int used = 0;
    char digits[ID_DIGITS + 1] = "";
    if (size > begin + ID_DIGITS + 1 && memcmp(line, GHOST_LINE, begin) == 0) memcpy(digits, line + begin, ID_DIGITS);
    if (sscanf(digits, "%16" SCNx64 "%n", id, &used) != 1 || used != ID_DIGITS || line[begin + ID_DIGITS] != '"' ||
        line[size - 1] != '}')
        FAIL(ERR_REFUSED, "%s:%zu: this line was not written by cria ghost; give another file, nothing is overwritten",
             path, number);
    return OK;
}

/* The ids of whole lines; *kept is where the last of them ends. */
static int read_lines(GhostFile *file, const char *bytes, size_t size, size_t *kept) {
    const char *end;
    *kept = 0;
    for (const char *line = bytes; (end = memchr(line, '\n', (size_t)(bytes + size - line))) != NULL; line = end + 1) {
        uint64_t *grown = realloc(file->ids, (file->n + 1) * sizeof *grown);
        if (!grown) FAIL(ERR_FAILED, "out of memory");
        file->ids = grown;
        TRY(parse_id(&grown[file->n], line, (size_t)(end - line), file->path, file->n + 1));
        file->n++;
        *kept = (size_t)(end + 1 - bytes);
    }
    size_t rest = size - *kept, begin = strlen(GHOST_LINE);
    if (memcmp(bytes + *kept, GHOST_LINE, rest < begin ? rest : begin) != 0)
        FAIL(ERR_REFUSED, "%s:%zu: this line was not written by cria ghost; give another file, nothing is overwritten",
             file->path, file->n + 1);
    return OK;
}

int ghost_file_open(GhostFile *file, const char *path) {
    char *bytes = NULL;
    size_t size, kept;
    *file = (GhostFile){.fd = -1, .path = path};
    TRY(directory_make_parent(path));
    file->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file->fd < 0) FAIL(ERR_FAILED, "%s: open failed: %s", path, strerror(errno));
    if (flock(file->fd, LOCK_EX | LOCK_NB) != 0)
        FAIL(ERR_REFUSED, "%s: another process writes it: %s", path, strerror(errno));
    TRY(file_read(&bytes, &size, path, 0));
    int rc = read_lines(file, bytes, size, &kept);
    free(bytes);
    TRY(rc);
    if (kept < size && ftruncate(file->fd, (off_t)kept) != 0)
        FAIL(ERR_FAILED, "%s: ftruncate failed: %s", path, strerror(errno));
    return OK;
}

int ghost_file_append(GhostFile *file, const Text *lines) {
    for (size_t done = 0; done < lines->length;) {
        ssize_t n = write(file->fd, lines->bytes + done, lines->length - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) FAIL(ERR_FAILED, "%s: write failed: %s", file->path, strerror(errno));
        done += (size_t)n;
    }
    if (fsync(file->fd) != 0) FAIL(ERR_FAILED, "%s: fsync failed: %s", file->path, strerror(errno));
    return OK;
}

void ghost_file_close(GhostFile *file) {
    if (file->fd >= 0) close(file->fd);
    free(file->ids);
    *file = (GhostFile){.fd = -1};
}
