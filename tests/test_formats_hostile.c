/* Truncated and bit-flipped files: each is a clear error or harmless, none a crash (meant to run under ASan and UBSan).
 * Flips of a checkpoint's files are in test_checkpoint.c. */
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/philox.h"
#include "model/formats/hf_config.h"
#include "model/formats/llama2c.h"
#include "model/formats/manifest.h"
#include "model/formats/named.h"
#include "model/formats/safetensors.h"
#include "tests/formats_scratch.h"

/* Opens and, where that works, reads every element of every array. */
static bool opens(const char *path) {
    NamedFile *file;
    error_clear();
    int rc = named_open(&file, path);
    if (rc != OK) {
        ck_assert_ptr_null(file);
        ck_assert_msg(strlen(error_text()) > 10, "%s: no reason given", path);
        return false;
    }
    for (size_t i = 0; i < named_count(file); i++) {
        const NamedArray *array = named_at(file, i);
        size_t size = named_bytes(array);
        if (array->dtype == DTYPE_COUNT) continue;
        void *bytes = malloc(size + 1);
        ck_assert_ptr_nonnull(bytes);
        CHECK_OK(named_read(file, array, 0, named_elements(array), bytes));
        free(bytes);
    }
    named_close(file);
    return true;
}

/* Cut at each of the first 600 bytes and the last 10; how many of the cuts were noticed, and how many were made. */
static void check_cuts(const char *path, const char *bytes, size_t size) {
    for (size_t kept = 0; kept < size; kept++) {
        if (kept > 600 && kept + 10 < size) continue;
        overwrite(path, bytes, kept);
        ck_assert_msg(!opens(path), "%s opens with %zu of its %zu bytes", path, kept, size);
    }
}

/* `n` files with one to three flipped bits within the first `span` bytes. Returns how many were refused. */
static int check_flips(const char *path, const char *bytes, size_t size, size_t span, int n) {
    PhiloxKey key = philox_key(3, PHILOX_TEST, (uint32_t)size, 0);
    char *copy = malloc(size);
    int refused = 0;
    ck_assert_ptr_nonnull(copy);
    n = check_rounds(n);
    for (int i = 0; i < n; i++) {
        memcpy(copy, bytes, size);
        for (int f = 0; f <= i % 3; f++) {
            size_t bit = (size_t)philox_below(key, (uint64_t)(3 * i + f), 8 * span);
            copy[bit / 8] = (char)(copy[bit / 8] ^ 1 << bit % 8);
        }
        overwrite(path, copy, size);
        refused += !opens(path);
    }
    free(copy);
    return refused;
}

START_TEST(damaged_safetensors_never_crash) {
    char directory[SCRATCH_NAME], *bytes;
    size_t size;
    CHECK_OK(file_read(&bytes, &size, "tests/golden/formats.safetensors", 0));
    char *path = in(scratch(directory), "x.safetensors");
    check_cuts(path, bytes, size);
    ck_assert_int_gt(check_flips(path, bytes, size, 1000, 300), 200);
    check_flips(path, bytes, size, 8, 60); /* the header's length */
    free(bytes);
    free(path);
    CHECK_OK(directory_remove(directory));
}
END_TEST

/* A safetensors file with this header and `data` bytes behind it. */
static void write_header(const char *path, const char *header, size_t data) {
    unsigned char bytes[1024] = {0};
    size_t n = strlen(header);
    ck_assert_uint_le(8 + n + data, sizeof bytes);
    bytes[0] = (unsigned char)(n & 0xff);
    bytes[1] = (unsigned char)(n >> 8);
    memcpy(bytes + 8, header, n);
    overwrite(path, bytes, 8 + n + data);
}

START_TEST(lying_safetensors_headers_are_refused_with_the_reason) {
    static const struct {
        const char *header;
        size_t data;
        const char *reason;
    } cases[] = {
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
         12, "overlap"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "hole"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8, "8 bytes are there"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "does not fill"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}", 8, "outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}", 0, "memory"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1152921504606846976],\"data_offsets\":[0,0]}}", 0, "memory"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8, "whole number"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,2],\"data_offsets\":[0,8]}}", 8, "dimensions"},
        {"{\"a\":{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "F33"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
         8, "duplicate"},
        {"{\"\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "empty name"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,-8]}}", 8, "whole numbers"},
        {"{\"a\":[]}", 0, "expected"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "not a text"},
        {"[]", 0, "not a JSON object"},
        {"{", 0, "not JSON"},
    };
    char directory[SCRATCH_NAME];
    NamedFile *file;
    char *path = in(scratch(directory), "x.safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_header(path, cases[i].header, cases[i].data);
        CHECK_ERROR(safetensors_open(&file, path), ERR_REFUSED, cases[i].reason);
        ck_assert_ptr_nonnull(strstr(error_text(), path));
    }
    write_header(path, "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}   ", 8); /* odd alignment */
    CHECK_OK(safetensors_open(&file, path));
    float x[2];
    CHECK_OK(named_read_f32(file, named_find(file, "a"), 0, 2, x));
    named_close(file);
    free(path);
    CHECK_OK(directory_remove(directory));
}
END_TEST

START_TEST(damaged_shard_indices_never_crash) {
    char directory[SCRATCH_NAME], *bytes;
    float x[8] = {0};
    size_t size;
    scratch(directory);
    NamedSource sources[2] = {
        {.array = {.name = "first.weight", .dtype = DTYPE_F32, .n_dims = 1, .dims = {8}}, .f32 = x},
        {.array = {.name = "second.weight", .dtype = DTYPE_F32, .n_dims = 1, .dims = {8}}, .f32 = x}};
    CHECK_OK(safetensors_write_directory(directory, sources, 2, 40));
    char *index = in(directory, "model.safetensors.index.json");
    CHECK_OK(file_read(&bytes, &size, index, 0));
    ck_assert(opens(directory));
    while (size > 0 && bytes[size - 1] == '\n') size--; /* nothing is lost with the last line's end */
    check_cuts(index, bytes, size);
    ck_assert_int_gt(check_flips(index, bytes, size, size, 200), 100);
    static const char outside[] = "{\"weight_map\": {\"first.weight\": \"../model.safetensors\"}}";
    overwrite(index, outside, strlen(outside));
    NamedFile *file;
    CHECK_ERROR(named_open(&file, directory), ERR_REFUSED, "same directory");
    free(bytes);
    free(index);
    CHECK_OK(directory_remove(directory));
}
END_TEST

START_TEST(damaged_llama2c_files_never_crash) {
    char directory[SCRATCH_NAME];
    TinyLlama2c tiny = tiny_llama2c();
    char *path = in(scratch(directory), "tiny.bin");
    overwrite(path, &tiny, sizeof tiny);
    ck_assert(opens(path));
    check_cuts(path, (const char *)&tiny, sizeof tiny);
    ck_assert_int_ge(check_flips(path, (const char *)&tiny, sizeof tiny, sizeof tiny.header, 224), 200);
    for (int field = 0; field < 7; field++)
        for (int kind = 0; kind < 4; kind++) {
            static const int32_t extremes[] = {0, INT32_MIN, INT32_MAX, 1 << 24};
            TinyLlama2c wrong = tiny;
            wrong.header[field] = extremes[kind];
            overwrite(path, &wrong, sizeof wrong);
            ck_assert_msg(!opens(path), "field %d = %d", field, extremes[kind]);
        }
    static const char later[28] = "24ka\1\0\0\0";
    NamedFile *file;
    overwrite(path, later, sizeof later);
    CHECK_ERROR(named_open(&file, path), ERR_REFUSED, "version 0");
    free(path);
    CHECK_OK(directory_remove(directory));
}
END_TEST

START_TEST(damaged_configs_never_crash) {
    char *bytes;
    size_t size;
    HfConfig config;
    HfGeneration generation;
    PhiloxKey key = philox_key(4, PHILOX_TEST, 0, 0);
    int refused = 0;
    log_set_level(LOG_ERROR);
    CHECK_OK(file_read(&bytes, &size, "tests/golden/formats_config.json", 0));
    char *end = strrchr(bytes, '}');
    for (char *cut = bytes; cut <= end; cut++)
        CHECK_ERROR(hf_config_parse(&config, bytes, (size_t)(cut - bytes), "c.json"), ERR_REFUSED, "c.json");
    for (int i = 0; i < check_rounds(1000); i++) {
        size_t bit = (size_t)philox_below(key, (uint64_t)i, 8 * size);
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
        int rc = hf_config_parse(&config, bytes, size, "c.json");
        if (rc == OK)
            CHECK_OK(hf_config_check(&config));
        else
            ck_assert_ptr_nonnull(strstr(error_text(), "c.json"));
        refused += rc != OK;
        (void)hf_generation_parse(&generation, bytes, size, "g.json");
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
    }
    ck_assert_int_gt(refused, 200);
    free(bytes);
}
END_TEST

START_TEST(a_forged_manifest_cannot_reach_outside_its_folder) {
    static const char *const names[] = {"../model.h5", "/etc/passwd",   "",     ".",   "..", "a/b",
                                        ".hidden",     "manifest.json", "a\nb", "a\"b"};
    Manifest manifest = {0};
    const FileSum sum = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        CHECK_ERROR(manifest_add(&manifest, names[i], &sum), ERR_REFUSED, "plain file name");
    CHECK_OK(manifest_add(&manifest, "model.h5", &sum));
    CHECK_ERROR(manifest_add(&manifest, "model.h5", &sum), ERR_REFUSED, "twice");
    manifest_free(&manifest);
    static const char unsealed[] =
        "{\n  \"format\": \"cria checkpoint\", \"version\": 1, \"step\": 1, \"files\": []\n}\n";
    CHECK_ERROR(manifest_parse(&manifest, unsealed, strlen(unsealed), "m.json"), ERR_REFUSED, "CRC32C");
}
END_TEST

CHECK_MAIN("formats_hostile", damaged_safetensors_never_crash, lying_safetensors_headers_are_refused_with_the_reason,
           damaged_shard_indices_never_crash, damaged_llama2c_files_never_crash, damaged_configs_never_crash,
           a_forged_manifest_cannot_reach_outside_its_folder)
