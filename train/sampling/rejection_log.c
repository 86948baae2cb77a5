/* samples.jsonl: see rejection.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "train/sampling/rejection.h"

static int write_all(RejectionLog *log, const char *bytes, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t n = write(log->fd, bytes + done, size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) FAIL(ERR_FAILED, "%s: write: %s", log->path, strerror(errno));
        done += (size_t)n;
    }
    if (fsync(log->fd) != 0) FAIL(ERR_FAILED, "%s: fsync: %s", log->path, strerror(errno));
    return OK;
}

static int begin(RejectionLog *log, const json_t *header) {
    char *text = json_dumps(header, JSON_COMPACT);
    if (!text) FAIL(ERR_FAILED, "out of memory");
    size_t size = strlen(text);
    text[size] = '\n'; /* in place of the NUL */
    int rc = ftruncate(log->fd, 0) == 0
                 ? write_all(log, text, size + 1)
                 : error_set(ERR_FAILED, __FILE__, __LINE__, "%s: truncate: %s", log->path, strerror(errno));
    free(text);
    return rc == OK ? directory_sync_parent(log->path) : rc;
}

static int check_header(const RejectionLog *log, const char *line, size_t size, const json_t *header) {
    int rc = OK;
    const char *key;
    json_t *wanted, *found = json_loadb(line, size, JSON_ALLOW_NUL, NULL), *all = (json_t *)(uintptr_t)header;
    if (!json_is_object(found) || !json_object_get(found, "cria"))
        rc = error_set(ERR_REFUSED, __FILE__, __LINE__,
                       "%s: its first line is not what a run of cria rejection writes; choose another folder",
                       log->path);
    json_object_foreach(all, key, wanted) {
        const json_t *value = json_object_get(found, key);
        if (rc != OK || (value && json_equal((json_t *)(uintptr_t)value, wanted))) continue;
        char *before = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
        char *now = json_dumps(wanted, JSON_ENCODE_ANY | JSON_COMPACT);
        rc = error_set(ERR_REFUSED, __FILE__, __LINE__,
                       "%s: the run was begun with another %s: %.200s before, %.200s now; go on with what it was, or "
                       "choose another folder",
                       log->path, key, before ? before : "none", now ? now : "another");
        free(before);
        free(now);
    }
    json_decref(found);
    return rc;
}

/* Cuts behind the last whole chunk. */
static int resume(RejectionLog *log, const char *bytes, size_t size, const json_t *header, size_t chunk,
                  size_t n_prompts) {
    const char *end = memchr(bytes, '\n', size), *keep;
    if (!end) return begin(log, header); /* killed while it wrote the header */
    TRY(check_header(log, bytes, (size_t)(end - bytes), header));
    keep = end + 1;
    size_t lines = 0;
    for (const char *line = keep; (end = memchr(line, '\n', size - (size_t)(line - bytes))) != NULL; line = end + 1) {
        lines++;
        if (lines % chunk != 0 && lines != n_prompts) continue;
        keep = end + 1;
        log->n = lines;
    }
    if (log->n > n_prompts) FAIL(ERR_REFUSED, "%s: it has more prompts than the run", log->path);
    off_t at = (off_t)(keep - bytes);
    if (ftruncate(log->fd, at) != 0 || lseek(log->fd, at, SEEK_SET) < 0)
        FAIL(ERR_FAILED, "%s: truncate: %s", log->path, strerror(errno));
    return OK;
}

int rejection_log_open(RejectionLog *log, const char *path, const json_t *header, size_t chunk, size_t n_prompts) {
    char *bytes = NULL;
    size_t size = 0;
    *log = (RejectionLog){.fd = -1, .path = strdup(path)};
    if (!log->path) FAIL(ERR_FAILED, "out of memory");
    if (file_exists(path)) TRY(file_read(&bytes, &size, path, 0));
    log->fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    int rc = log->fd >= 0 ? OK : error_set(ERR_FAILED, __FILE__, __LINE__, "%s: open: %s", path, strerror(errno));
    if (rc == OK) rc = size > 0 ? resume(log, bytes, size, header, chunk, n_prompts) : begin(log, header);
    free(bytes);
    return rc;
}

int rejection_log_append(RejectionLog *log, const Text *lines, size_t n_prompts) {
    TRY(write_all(log, lines->bytes, lines->length));
    log->n += n_prompts;
    return OK;
}

void rejection_log_close(RejectionLog *log) {
    if (log->fd > 0) close(log->fd);
    free(log->path);
    *log = (RejectionLog){.fd = -1};
}

int rejection_log_read(const char *path, int (*take)(void *context, const json_t *line), void *context) {
    int rc = OK;
    char *line = NULL;
    size_t capacity = 0;
    ssize_t n;
    FILE *file = fopen(path, "r");
    if (!file) FAIL(ERR_REFUSED, "%s: open: %s", path, strerror(errno));
    for (long long number = 1; rc == OK && (n = getline(&line, &capacity, file)) > 0; number++) {
        json_error_t where;
        json_t *object = json_loadb(line, (size_t)n, JSON_ALLOW_NUL, &where);
        if (!json_is_object(object))
            rc = error_set(ERR_REFUSED, __FILE__, __LINE__, "%s, line %lld: not a JSON object: %s", path, number,
                           object ? "another value" : where.text);
        else if (number > 1)
            rc = take(context, object);
        if (rc != OK && json_is_object(object)) rc = error_context(rc, "%s, line %lld", path, number);
        json_decref(object);
    }
    if (rc == OK && ferror(file)) rc = error_set(ERR_FAILED, __FILE__, __LINE__, "%s: read: %s", path, strerror(errno));
    free(line);
    fclose(file);
    return rc;
}
