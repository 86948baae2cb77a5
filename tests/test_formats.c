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
#include "tests/formats_scratch.h"

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
    char directory[SCRATCH_NAME];
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
    char directory[SCRATCH_NAME];
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

/* ---- files that others wrote (tests/golden/formats.py) ---- */

/* Element i is (i - 5) · 0.375, or i - 5, or i. */
static void check_ramp(const NamedFile *file, const char *name) {
    const NamedArray *array;
    CHECK_OK(named_get(&array, file, name));
    ck_assert_int_eq(array->n_dims, 3);
    ck_assert(array->dims[0] == 2 && array->dims[1] == 3 && array->dims[2] == 4);
    union {
        float f32[24];
        int32_t i32[24];
        int64_t i64[24];
        uint8_t u8[24];
    } x;
    bool whole = array->dtype == DTYPE_I32 || array->dtype == DTYPE_I64 || array->dtype == DTYPE_U8;
    for (size_t first = 0; first < 24; first += 5) { /* pieces that cross rows */
        size_t n = 24 - first < 5 ? 24 - first : 5;
        CHECK_OK(whole ? named_read(file, array, first, n, &x) : named_read_f32(file, array, first, n, x.f32));
        for (size_t i = 0; i < n; i++) {
            int e = (int)(first + i);
            if (array->dtype == DTYPE_I32)
                ck_assert_int_eq(x.i32[i], e - 5);
            else if (array->dtype == DTYPE_I64)
                ck_assert_int_eq(x.i64[i], e - 5);
            else if (array->dtype == DTYPE_U8)
                ck_assert_int_eq(x.u8[i], e);
            else
                ck_assert_msg(x.f32[i] == (float)(e - 5) * 0.375f, "%s[%d] = %g", name, e, (double)x.f32[i]);
        }
    }
}

static void check_unreadable(const NamedFile *file, const char *name) {
    const NamedArray *array;
    unsigned char byte[8];
    CHECK_OK(named_get(&array, file, name));
    ck_assert_int_eq(array->dtype, DTYPE_COUNT);
    CHECK_ERROR(named_read(file, array, 0, 1, byte), ERR_REFUSED, name);
}

static void check_scalar_and_empty(const NamedFile *file) {
    float value;
    const NamedArray *scalar = named_find(file, "scalar"), *empty = named_find(file, "empty");
    ck_assert_int_eq(scalar->n_dims, 0);
    CHECK_OK(named_read_f32(file, scalar, 0, 1, &value));
    ck_assert_float_eq(value, 0.375f);
    ck_assert_uint_eq(named_elements(empty), 0);
    CHECK_OK(named_read_f32(file, empty, 0, 0, &value));
    ck_assert_str_eq(named_text(file, "note"), "é");
}

START_TEST(a_file_by_the_safetensors_library_reads_right) {
    NamedFile *file;
    CHECK_OK(named_open(&file, "tests/golden/formats.safetensors"));
    static const char *const ramps[] = {"layer.f32", "layer.bf16", "layer.f16", "layer.f64",
                                        "layer.i32", "layer.i64",  "layer.u8"};
    for (size_t i = 0; i < sizeof ramps / sizeof *ramps; i++) check_ramp(file, ramps[i]);
    check_unreadable(file, "layer.bool");
    check_unreadable(file, "layer.f8");
    check_scalar_and_empty(file);
    ck_assert_ptr_nonnull(named_find(file, "größe"));
    ck_assert_uint_eq(named_count(file), 12);
    const NamedArray *array;
    CHECK_ERROR(named_get(&array, file, "layer.f23"), ERR_REFUSED, "nearest");
    named_close(file);
}
END_TEST

START_TEST(a_file_by_h5py_reads_right) {
    NamedFile *file;
    CHECK_OK(hdf5_open(&file, "tests/golden/formats.h5", NULL));
    static const char *const ramps[] = {"layer.f32", "layer.f16", "layer.f64",  "layer.big_endian", "layer.i32",
                                        "layer.i64", "layer.u8",  "layer.gzip", "group/inside"};
    for (size_t i = 0; i < sizeof ramps / sizeof *ramps; i++) check_ramp(file, ramps[i]);
    check_unreadable(file, "layer.i8");
    check_unreadable(file, "text");
    check_scalar_and_empty(file);
    ck_assert_str_eq(named_text(file, "fixed"), "abc");
    ck_assert_ptr_null(named_text(file, "number"));
    ck_assert_ptr_null(named_find(file, "link")); /* never followed out of the file */
    named_close(file);
}
END_TEST

/* ---- shards ---- */

START_TEST(a_model_in_shards_reads_like_one_in_a_single_file) {
    char directory[SCRATCH_NAME];
    NamedSource sources[N_EVERY];
    NamedFile *file;
    every_dtype(sources);
    scratch(directory);
    CHECK_OK(safetensors_write_directory(directory, sources, N_EVERY, 0));
    CHECK_OK(named_open(&file, directory));
    check_every_dtype(file);
    named_close(file);
    CHECK_OK(safetensors_write_directory(directory, sources, N_EVERY, 10000));
    char *single = in(directory, "model.safetensors"), *index = in(directory, "model.safetensors.index.json");
    ck_assert(!file_exists(single)); /* else other programs would read the older model */
    CHECK_OK(named_open(&file, directory));
    check_every_dtype(file);
    named_close(file);
    CHECK_OK(named_open(&file, index));
    named_close(file);
    char *shard = in(directory, "model-00002-of-00006.safetensors");
    ck_assert(file_exists(shard));
    ck_assert_int_eq(unlink(shard), 0);
    CHECK_ERROR(named_open(&file, directory), ERR_FAILED, "model-00002-of-00006.safetensors");
    CHECK_OK(safetensors_write_directory(directory, sources, N_EVERY, 0));
    ck_assert(!file_exists(index));
    free(single);
    free(index);
    free(shard);
    CHECK_OK(directory_remove(directory));
}
END_TEST

/* ---- what a writer refuses ---- */

static int failing_fill(void *context, size_t first, size_t n, float *out) {
    (void)context, (void)first, (void)n, (void)out;
    FAIL(ERR_FAILED, "no more data");
}

START_TEST(a_failed_write_names_the_array_and_leaves_the_old_file) {
    char directory[SCRATCH_NAME], *bytes;
    float x[4] = {1, 2, 3, 4};
    FileSum sum;
    size_t size;
    NamedSource sources[2] = {{.array = {.name = "a", .dtype = DTYPE_F32, .n_dims = 1, .dims = {4}}, .f32 = x},
                              {.array = {.name = "b", .dtype = DTYPE_F32, .n_dims = 1, .dims = {4}}, .f32 = x}};
    char *path = in(scratch(directory), "x.safetensors"), *h5 = in(directory, "x.h5");
    overwrite(path, "old", 3);
    overwrite(h5, "old", 3);
    sources[1].f32 = NULL;
    sources[1].fill = failing_fill;
    CHECK_ERROR(safetensors_write(path, sources, 2, NULL, 0), ERR_FAILED, "'b': no more data");
    CHECK_ERROR(hdf5_write(h5, sources, 2, NULL, 0, &sum), ERR_FAILED, "'b': no more data");
    sources[1].fill = NULL;
    CHECK_ERROR(safetensors_write(path, sources, 2, NULL, 0), ERR_FAILED, "'b' is given data in 0 ways");
    sources[1].f32 = x;
    sources[1].array.name = "a";
    CHECK_ERROR(safetensors_write(path, sources, 2, NULL, 0), ERR_REFUSED, "'a' is there twice");
    sources[1].array.name = "b";
    sources[1].array.dtype = DTYPE_I32;
    CHECK_ERROR(hdf5_write(h5, sources, 2, NULL, 0, &sum), ERR_FAILED, "int32");
    sources[1].array.dims[0] = -4;
    CHECK_ERROR(hdf5_write(h5, sources, 2, NULL, 0, &sum), ERR_REFUSED, "dimension 0 is -4");
    const char *const paths[] = {path, h5};
    for (int i = 0; i < 2; i++) {
        CHECK_OK(file_read(&bytes, &size, paths[i], 0));
        ck_assert_str_eq(bytes, "old");
        free(bytes);
    }
    char **names;
    size_t n;
    CHECK_OK(directory_list(&names, &n, directory));
    ck_assert_uint_eq(n, 2); /* nothing temporary is left */
    names_free(names, n);
    free(path);
    free(h5);
    CHECK_OK(directory_remove(directory));
}
END_TEST

/* ---- llama2.c ---- */

START_TEST(llama2c_rows_come_in_the_order_of_transformers) {
    char directory[SCRATCH_NAME];
    NamedFile *file;
    HfConfig config;
    TinyLlama2c tiny = tiny_llama2c();
    char *path = in(scratch(directory), "tiny.bin");
    overwrite(path, &tiny, sizeof tiny);
    CHECK_OK(llama2c_open(&file, &config, path));
    ck_assert(config.dim == 8 && config.ffn_dim == 12 && config.n_layers == 2 && config.n_heads == 2);
    ck_assert(config.n_kv_heads == 1 && config.vocab_size == 5 && config.head_dim == 4 && !config.tie_word_embeddings);
    ck_assert_uint_eq(named_count(file), 2 * 9 + 3);
    float q[64];
    const NamedArray *array;
    CHECK_OK(named_get(&array, file, "model.layers.1.self_attn.q_proj.weight"));
    for (size_t first = 0; first < 64; first += 7) /* pieces that cross rows */
        CHECK_OK(named_read_f32(file, array, first, 64 - first < 7 ? 64 - first : 7, q + first));
    const float q_begins = 5 * 8 + 2 * 8 + 64; /* after the embedding, both rms_att, and layer 0's wq */
    static const int rows[8] = {0, 2, 1, 3, 4, 6, 5, 7};
    for (int row = 0; row < 8; row++)
        for (int column = 0; column < 8; column++)
            ck_assert_float_eq(q[row * 8 + column], q_begins + (float)(rows[row] * 8 + column));
    float head[40];
    CHECK_OK(named_get(&array, file, "lm_head.weight"));
    CHECK_OK(named_read_f32(file, array, 0, 40, head));
    ck_assert_float_eq(head[39], TINY_FLOATS - 1);
    CHECK_OK(named_get(&array, file, "model.layers.0.mlp.down_proj.weight"));
    ck_assert(array->dims[0] == 8 && array->dims[1] == 12);
    named_close(file);
    free(path);
    CHECK_OK(directory_remove(directory));
}
END_TEST

START_TEST(stories260K_has_the_published_shape) {
    static const char path[] = "../shared/data/stories260K/stories260K.bin";
    NamedFile *file;
    HfConfig config;
    if (!file_exists(path)) {
        printf("skipped: %s is absent\n", path);
        return;
    }
    CHECK_OK(llama2c_open(&file, &config, path));
    ck_assert(config.dim == 64 && config.n_layers == 5 && config.n_heads == 8 && config.n_kv_heads == 4);
    ck_assert(config.ffn_dim == 172 && config.vocab_size == 512 && config.tie_word_embeddings);
    size_t parameters = 0;
    for (size_t i = 0; i < named_count(file); i++) parameters += named_elements(named_at(file, i));
    ck_assert_uint_eq(parameters, 260032);
    float x;
    CHECK_OK(named_read_f32(file, named_find(file, "model.norm.weight"), 0, 1, &x));
    ck_assert(x > 0.1f && x < 100.0f);
    named_close(file);
}
END_TEST

CHECK_MAIN("formats", safetensors_gives_back_every_dtype_bit_for_bit, hdf5_gives_back_every_dtype_bit_for_bit,
           a_file_by_the_safetensors_library_reads_right, a_file_by_h5py_reads_right,
           a_model_in_shards_reads_like_one_in_a_single_file, a_failed_write_names_the_array_and_leaves_the_old_file,
           llama2c_rows_come_in_the_order_of_transformers, stories260K_has_the_published_shape)
