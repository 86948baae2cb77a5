/* POSIX file handling; the save path is write, fsync, close, rename, fsync of the directory. */
#include "model/core/file.h"
#include "model/core/error.h"
#include "model/core/output.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FAIL_ERRNO(call, path) FAIL(ERR_FAILED, "%s: %s: %s", (path), (call), strerror(errno))

int file_read(char **bytes, size_t *size, const char *path, size_t limit) {
    int rc = OK;
    *bytes = NULL;
    *size = 0;
    FILE *file = fopen(path, "rb");
    if (!file) FAIL_ERRNO("open", path);
    size_t used = 0, capacity = (size_t)64 * 1024;
    char *buffer = malloc(capacity + 1);
    for (;;) {
        if (!buffer) FAIL_TO(done, ERR_FAILED, "%s: out of memory after %zu bytes", path, used);
        errno = 0;
        used += fread(buffer + used, 1, capacity - used, file);
        if (limit && used > limit)
            FAIL_TO(done, ERR_REFUSED, "%s: larger than the %zu bytes such a file may have", path, limit);
        if (used < capacity) break;
        char *larger = realloc(buffer, 2 * capacity + 1);
        if (!larger) FAIL_TO(done, ERR_FAILED, "%s: out of memory after %zu bytes", path, used);
        buffer = larger;
        capacity *= 2;
    }
    if (ferror(file)) FAIL_TO(done, ERR_FAILED, "%s: read: %s", path, strerror(errno));
    buffer[used] = '\0';
    *bytes = buffer;
    *size = used;
    buffer = NULL;
done:
    free(buffer);
    fclose(file);
    return rc;
}

int file_map(FileMap *map, const char *path) {
    *map = (FileMap){NULL, 0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) FAIL_ERRNO("open", path);
    struct stat status;
    if (fstat(fd, &status) != 0 || S_ISDIR(status.st_mode)) {
        int code = S_ISDIR(status.st_mode) ? EISDIR : errno;
        close(fd);
        FAIL(ERR_FAILED, "%s: %s", path, strerror(code));
    }
    if (status.st_size == 0) {
        close(fd);
        return OK;
    }
    void *bytes = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int code = errno;
    close(fd);
    if (bytes == MAP_FAILED) FAIL(ERR_FAILED, "%s: mmap: %s", path, strerror(code));
    *map = (FileMap){bytes, (size_t)status.st_size};
    return OK;
}

void file_unmap(FileMap *map) {
    if (map->size) munmap((void *)(uintptr_t)map->bytes, map->size);
    *map = (FileMap){NULL, 0};
}

void file_expect(const void *bytes, size_t size) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)bytes / page * page;
    if (size > 0)
        (void)madvise((void *)begin, (uintptr_t)bytes + size - begin, MADV_WILLNEED); /* refused: it is read later */
}

void file_forget(const void *bytes, size_t size) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = ((uintptr_t)bytes + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)bytes + size) / page * page;
    if (begin < end) (void)madvise((void *)begin, end - begin, MADV_DONTNEED); /* refused: they stay for a while */
}

int file_sync_and_close(int fd, const char *path) {
    if (fsync(fd) != 0 && errno != EINVAL) { /* EINVAL: a file system without fsync */
        int code = errno;
        close(fd);
        FAIL(ERR_FAILED, "%s: fsync: %s", path, strerror(code));
    }
    if (close(fd) != 0) FAIL_ERRNO("close", path);
    return OK;
}

int file_sync(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) FAIL_ERRNO("open", path);
    return file_sync_and_close(fd, path);
}

int directory_sync(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) FAIL_ERRNO("open", path);
    return file_sync_and_close(fd, path);
}

/* The folder that `path` is in, malloc'd: "." where it names none. NULL when memory is out. */
static char *parent_of(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    while (length > 0 && path[length - 1] != '/') length--;
    while (length > 1 && path[length - 1] == '/') length--;
    return length > 0 ? strndup(path, length) : strdup(".");
}

int directory_sync_parent(const char *path) {
    char *parent = parent_of(path);
    if (!parent) FAIL(ERR_FAILED, "out of memory");
    int rc = directory_sync(parent);
    free(parent);
    return rc;
}

int directory_make_parent(const char *path) {
    char *parent = parent_of(path);
    if (!parent) FAIL(ERR_FAILED, "out of memory");
    int rc = directory_make(parent);
    free(parent);
    return rc;
}

int file_rename(const char *from, const char *to) {
    if (rename(from, to) != 0) FAIL(ERR_FAILED, "rename %s to %s: %s", from, to, strerror(errno));
    return directory_sync_parent(to);
}

int file_write_atomic(const char *path, const void *bytes, size_t size) {
    Output output;
    TRY(output_begin(&output, path));
    int rc = output_write(&output, bytes, size);
    if (rc == OK) return output_commit(&output);
    output_abandon(&output);
    return error_trace(rc, __FILE__, __LINE__);
}

int directory_make(const char *path) {
    char *partial = strdup(path);
    if (!partial) FAIL(ERR_FAILED, "out of memory");
    for (char *p = partial + (*partial == '/'); *partial; p++) {
        if (*p != '/' && *p != '\0') continue;
        char saved = *p;
        *p = '\0';
        int code = mkdir(partial, 0777) == 0 ? 0 : errno; /* before directory_exists sets another */
        if (code != 0 && !directory_exists(partial)) {
            free(partial);
            FAIL(ERR_FAILED, "%s: mkdir: %s", path, strerror(code));
        }
        *p = saved;
        if (!saved) break;
    }
    free(partial);
    return OK;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *ftw) {
    (void)status, (void)kind, (void)ftw;
    return remove(path);
}

int directory_remove(const char *path) {
    if (nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS) != 0 && errno != ENOENT) FAIL_ERRNO("remove", path);
    return OK;
}

bool file_exists(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 && !S_ISDIR(status.st_mode);
}

bool directory_exists(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

int file_size(uint64_t *size, const char *path) {
    struct stat status;
    if (stat(path, &status) != 0) FAIL_ERRNO("stat", path);
    *size = (uint64_t)status.st_size;
    return OK;
}

int file_modified(int64_t *nanoseconds, const char *path) {
    struct stat status;
    if (stat(path, &status) != 0) FAIL_ERRNO("stat", path);
    *nanoseconds = (int64_t)status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec;
    return OK;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int names_add(char ***names, size_t *n, const char *name) {
    char **grown = realloc(*names, (*n + 1) * sizeof **names);
    if (!grown) FAIL(ERR_FAILED, "out of memory");
    *names = grown;
    grown[*n] = strdup(name);
    if (!grown[*n]) FAIL(ERR_FAILED, "out of memory");
    (*n)++;
    return OK;
}

int directory_list(char ***names, size_t *n, const char *path) {
    int rc = OK;
    *names = NULL;
    *n = 0;
    DIR *directory = opendir(path);
    if (!directory) FAIL_ERRNO("open directory", path);
    for (struct dirent *entry; (entry = readdir(directory));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            TRY_TO(done, names_add(names, n, entry->d_name));
    if (*n) qsort(*names, *n, sizeof **names, compare_names);
done:
    closedir(directory);
    if (rc != OK) {
        names_free(*names, *n);
        *names = NULL;
        *n = 0;
    }
    return rc;
}

int glob_list(char ***paths, size_t *n, const char *pattern) {
    int rc = OK;
    glob_t found;
    *paths = NULL;
    *n = 0;
    int result = glob(pattern, GLOB_BRACE | GLOB_TILDE, NULL, &found);
    if (result == GLOB_NOMATCH) FAIL(ERR_REFUSED, "%s: no such file, and nothing matches it as a pattern", pattern);
    if (result != 0) FAIL(ERR_FAILED, "%s: the directory cannot be read", pattern);
    for (size_t i = 0; i < found.gl_pathc; i++) TRY_TO(done, names_add(paths, n, found.gl_pathv[i]));
done:
    globfree(&found);
    if (rc != OK) {
        names_free(*paths, *n);
        *paths = NULL;
        *n = 0;
    }
    return rc;
}

void names_free(char **names, size_t n) {
    for (size_t i = 0; i < n; i++) free(names[i]);
    free(names);
}

char *path_join(const char *a, const char *b) {
    char *joined = NULL;
    size_t n = strlen(a);
    if (asprintf(&joined, "%s%s%s", a, n && a[n - 1] == '/' ? "" : "/", b) < 0) return NULL;
    return joined;
}

const char *path_base(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

int file_crc32c(uint32_t *crc, uint64_t *size, const char *path) {
    FileMap map;
    TRY(file_map(&map, path));
    *crc = crc32c(0, map.bytes, map.size);
    *size = map.size;
    file_unmap(&map);
    return OK;
}
