/* Scratch directories and file contents for the tests of model/formats. */
#ifndef CRIA_TESTS_FORMATS_SCRATCH_H
#define CRIA_TESTS_FORMATS_SCRATCH_H

#include <string.h>
#include <unistd.h>

#include "model/core/file.h"
#include "tests/check_main.h"

enum { SCRATCH_NAME = 64 };

/* A fresh directory, in memory where possible: these tests fsync a lot. */
static inline char *scratch(char out[SCRATCH_NAME]) {
    snprintf(out, SCRATCH_NAME, "%s/cria-formats-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(out));
    return out;
}

/* malloc'd DIRECTORY/name. */
static inline char *in(const char *directory, const char *name) {
    char *path = path_join(directory, name);
    ck_assert_ptr_nonnull(path);
    return path;
}

static inline void overwrite(const char *path, const void *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, size, file), size);
    ck_assert_int_eq(fclose(file), 0);
}

/* A small llama2.c model: dim 8, hidden 12, 2 layers, 2 heads, 1 KV head, 5 tokens, 3 positions, separate classifier.
 * Its floats are 0, 1, 2, … in the file's order. */
enum { TINY_FLOATS = 5 * 8 + 2 * (8 + 64 + 32 + 32 + 64 + 8 + 96 + 96 + 96) + 8 + 3 * 2 * 2 + 5 * 8 };
typedef struct {
    int32_t header[7];
    float floats[TINY_FLOATS];
} TinyLlama2c;

static inline TinyLlama2c tiny_llama2c(void) {
    TinyLlama2c tiny = {.header = {8, 12, 2, 2, 1, -5, 3}};
    for (int i = 0; i < TINY_FLOATS; i++) tiny.floats[i] = (float)i;
    return tiny;
}

#endif
