/* Named arrays out and in again: safetensors, HDF5, llama2.c. */
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/philox.h"
#include "model/formats/hdf5_file.h"
#include "model/formats/llama2c.h"
#include "model/formats/named.h"
#include "model/formats/safetensors.h"
#include "tests/check_main.h"

/* A fresh directory for one test; its name in a buffer of the test's. */
static char *scratch(char out[64]) {
    snprintf(out, 64, "/tmp/cria-formats-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(out));
    return out;
}

static char *in(const char *directory, const char *name) {
    char *path = path_join(directory, name);
    ck_assert_ptr_nonnull(path);
    return path;
}

/* One array of every dtype, of awkward sizes, with bits that no rounding would leave alone. */
enum { N_EVERY = DTYPE_COUNT + 3, EVERY_BYTES = 8 * 1001 };
static unsigned char every_bytes[DTYPE_COUNT][EVERY_BYTES];
static const float every_f32[6] = {1.0f, -2.5f, 0.1f, 1e-30f, -0.0f, 3.0e38f};

static int fill_ramp(void *context, size_t first, size_t n, float *out) {
    (void)context;
    for (size_t i = 0; i < n; i++) out[i] = (float)(first + i) * 0.25f;
    return OK;
}

enum { RAMP = 3 * 200000 }; /* more than one slice of the writers */

static void every_dtype(NamedSource sources[N_EVERY]) {
    static const char *const names[DTYPE_COUNT] = {"w.fp32",  "w.bf16",  "w.fp16", "w.fp64",
                                                   "w.int32", "w.int64", "w.u8"};
    PhiloxKey key = philox_key(1, PHILOX_TEST, 0, 0);
    for (int d = 0; d < DTYPE_COUNT; d++) {
        for (size_t i = 0; i < EVERY_BYTES; i++)
            every_bytes[d][i] = (unsigned char)philox_u64(key, (uint64_t)d * EVERY_BYTES + i);
        sources[d] = (NamedSource){
            .array = {.name = names[d], .dtype = (Dtype)d, .n_dims = 2, .dims = {7, 143}, .data = every_bytes[d]}};
    }
    sources[DTYPE_COUNT] = (NamedSource){
        .array = {.name = "as.bf16", .dtype = DTYPE_BF16, .n_dims = 3, .dims = {1, 2, 3}}, .f32 = every_f32};
    sources[DTYPE_COUNT + 1] = (NamedSource){
        .array = {.name = "ramp", .dtype = DTYPE_F32, .n_dims = 2, .dims = {3, RAMP / 3}}, .fill = fill_ramp};
    sources[DTYPE_COUNT + 2] = (NamedSource){.array = {.name = "none", .dtype = DTYPE_F32, .n_dims = 1, .dims = {0}}};
}

static void check_every_dtype(const NamedFile *file) {
    NamedSource sources[N_EVERY];
    every_dtype(sources);
    ck_assert_uint_eq(named_count(file), N_EVERY);
    for (int i = 0; i < N_EVERY; i++) {
        const NamedArray *given = &sources[i].array, *found;
        CHECK_OK(named_get(&found, file, given->name));
        ck_assert_int_eq(found->dtype, given->dtype);
        ck_assert_int_eq(found->n_dims, given->n_dims);
        ck_assert_mem_eq(found->dims, given->dims, (size_t)given->n_dims * sizeof *given->dims);
        if (given->data) {
            static unsigned char stored[EVERY_BYTES];
            size_t n = named_elements(given), size = dtype_size(given->dtype);
            CHECK_OK(named_read(file, found, 0, n, stored));
            ck_assert_mem_eq(stored, given->data, n * size);
            CHECK_OK(named_read(file, found, 5, 9, stored));
            ck_assert_mem_eq(stored, (const char *)given->data + 5 * size, 9 * size);
            CHECK_ERROR(named_read(file, found, n - 1, 2, stored), ERR_FAILED, "elements");
        }
    }
    float values[6];
    CHECK_OK(named_read_f32(file, named_find(file, "as.bf16"), 0, 6, values));
    for (int i = 0; i < 6; i++) ck_assert_float_eq(values[i], bf16_to_f32(f32_to_bf16(every_f32[i])));
    static float ramp[RAMP];
    CHECK_OK(named_read_f32(file, named_find(file, "ramp"), 0, RAMP, ramp));
    for (int i = 0; i < RAMP; i++) ck_assert_float_eq(ramp[i], (float)i * 0.25f);
    CHECK_ERROR(named_read_f32(file, named_find(file, "w.int32"), 0, 1, values), ERR_REFUSED, "int32");
}

START_TEST(safetensors_gives_back_every_dtype_bit_for_bit) {
    char directory[64];
    NamedSource sources[N_EVERY];
    NamedFile *file;
    every_dtype(sources);
    char *path = in(scratch(directory), "x.safetensors");
    CHECK_OK(safetensors_write(path, sources, N_EVERY, &(NamedText){"step", "12"}, 1));
    CHECK_OK(safetensors_open(&file, path));
    check_every_dtype(file);
    ck_assert_str_eq(named_text(file, "format"), "pt");
    ck_assert_str_eq(named_text(file, "step"), "12");
    named_close(file);
    free(path);
    CHECK_OK(directory_remove(directory));
}
END_TEST

START_TEST(hdf5_gives_back_every_dtype_bit_for_bit) {
    char directory[64];
    NamedSource sources[N_EVERY];
    NamedFile *file;
    FileSum sum, again;
    every_dtype(sources);
    char *path = in(scratch(directory), "x.h5");
    static char long_text[200000]; /* above the 64 KiB that a plain HDF5 attribute may have */
    memset(long_text, 'x', sizeof long_text - 1);
    const NamedText texts[] = {{"config", "{\"a\": \"é\"}"}, {"empty", ""}, {"long", long_text}};
    CHECK_OK(hdf5_write(path, sources, N_EVERY, texts, 3, &sum));
    CHECK_OK(file_sum(&again, path));
    ck_assert_uint_eq(sum.size, again.size);
    ck_assert_uint_eq(sum.crc32c, again.crc32c);
    CHECK_OK(hdf5_open(&file, path, &sum));
    check_every_dtype(file);
    ck_assert_str_eq(named_text(file, "config"), texts[0].value);
    ck_assert_str_eq(named_text(file, "empty"), "");
    ck_assert_str_eq(named_text(file, "long"), long_text);
    named_close(file);
    sum.crc32c ^= 1;
    CHECK_ERROR(hdf5_open(&file, path, &sum), ERR_REFUSED, "CRC32C");
    free(path);
    CHECK_OK(directory_remove(directory));
}
END_TEST

CHECK_MAIN("formats", safetensors_gives_back_every_dtype_bit_for_bit, hdf5_gives_back_every_dtype_bit_for_bit)
