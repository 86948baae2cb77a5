/* Files for the tests of data/: a folder of their own, texts plain and compressed. */
#ifndef CRIA_TESTS_DATA_FIXTURE_H
#define CRIA_TESTS_DATA_FIXTURE_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "model/core/file.h"
#include "model/core/log.h"
#include "tests/check_main.h"

static char fixture_folder[64];

static inline void fixture_setup(void) {
    log_set_level(LOG_ERROR);
    strcpy(fixture_folder, "/tmp/cria-test-data-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(fixture_folder));
}
static inline void fixture_teardown(void) {
    CHECK_OK(directory_remove(fixture_folder));
}

/* The path of a file in the folder; the same pointer for the same name. */
static inline const char *fixture_path(const char *name) {
    static char paths[32][256];
    static int n;
    char path[256];
    snprintf(path, sizeof path, "%s/%s", fixture_folder, name);
    for (int i = 0; i < n; i++)
        if (strcmp(paths[i], path) == 0) return paths[i];
    ck_assert_int_lt(n, 32);
    return strcpy(paths[n++], path);
}

/* Writes a file, compressed where the name ends in .gz or .zst; returns its path. */
static inline const char *fixture_write(const char *name, const void *bytes, size_t size) {
    const char *path = fixture_path(name);
    char *folder = strdup(path);
    *strrchr(folder, '/') = '\0';
    CHECK_OK(directory_make(folder));
    free(folder);
    size_t n = size, room = size + size / 100 + 4096;
    unsigned char *packed = malloc(room);
    if (strlen(name) > 3 && strcmp(name + strlen(name) - 3, ".gz") == 0) {
        z_stream stream = {0};
        ck_assert_int_eq(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
        stream.next_in = (Bytef *)(uintptr_t)bytes;
        stream.avail_in = (uInt)size;
        stream.next_out = packed;
        stream.avail_out = (uInt)room;
        ck_assert_int_eq(deflate(&stream, Z_FINISH), Z_STREAM_END);
        n = stream.total_out;
        deflateEnd(&stream);
    } else if (strlen(name) > 4 && strcmp(name + strlen(name) - 4, ".zst") == 0) {
        n = ZSTD_compress(packed, room, bytes, size, 3);
        ck_assert(!ZSTD_isError(n));
    } else if (size) {
        memcpy(packed, bytes, size);
    }
    CHECK_OK(file_write_atomic(path, packed, n));
    free(packed);
    return path;
}
static inline const char *fixture_text(const char *name, const char *text) {
    return fixture_write(name, text, strlen(text));
}

#endif
