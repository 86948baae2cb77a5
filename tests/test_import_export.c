/* cria import and cria export: what comes out is what went in. */
#include <string.h>

#include "tests/model_directories.h"

START_TEST(import_and_export_keep_every_bit_and_every_field) {
    static const Dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    char root[SCRATCH_NAME];
    scratch(root);
    char *imported = in(root, "a/b/imported"), *exported = in(root, "exported/"); /* folders on the way are made */
    char *hf = make_hf(root, "hf", dtypes[_i / 2], _i % 2);
    CHECK_OK(IMPORT(hf, imported, "--tokenizer", "bytes"));
    check_same_bits(hf, imported);
    check_same_configs(hf, imported);
    CHECK_OK(EXPORT("--format", "hf", imported, exported));
    check_same_bits(hf, exported);
    check_same_configs(hf, exported);
    CHECK_OK(directory_remove(root));
    free(hf), free(imported), free(exported);
}
END_TEST

START_TEST(an_imported_model_is_a_checkpoint_that_can_be_trained_but_has_no_optimizer) {
    char root[SCRATCH_NAME];
    scratch(root);
    char *hf = make_hf(root, "hf", DTYPE_BF16, true), *run_folder = in(root, "run"), *folder = NULL;
    int64_t step;
    ModelFile file;
    CHECK_OK(IMPORT(hf, run_folder, "-t", "bytes"));
    CHECK_OK(checkpoint_newest(&folder, &step, run_folder));
    ck_assert_int_eq(step, 0);
    CHECK_OK(checkpoint_verify(folder));
    check_entries(folder, 2); /* model.h5, manifest.json */
    CHECK_OK(model_file_open(&file, run_folder, (ModelFileOptions){.training = true, .need_tokenizer = true}));
    ck_assert_str_eq(tokenizer_kind(file.tokenizer), "bytes");
    Llama *expected = odd_model(true);
    size_t n = weight_elements(&expected->embedding);
    for (size_t i = 0; i < n; i++) /* bf16 in the file, fp32 in memory */
        ck_assert_float_eq(file.model->embedding.value[i], bf16_to_f32(f32_to_bf16(expected->embedding.value[i])));
    ck_assert_ptr_nonnull(file.model->embedding.grad);
    llama_free(expected);
    model_file_close(&file);
    CHECK_OK(directory_remove(root));
    free(hf), free(run_folder), free(folder);
}
END_TEST

static void check_rounded(const char *from, const char *to, Dtype dtype) {
    NamedFile *exact, *rounded;
    CHECK_OK(named_open(&exact, from));
    CHECK_OK(named_open(&rounded, to));
    ck_assert_uint_eq(named_count(exact), named_count(rounded));
    for (size_t i = 0; i < named_count(exact); i++) {
        const NamedArray *x = named_at(exact, i), *y;
        CHECK_OK(named_get(&y, rounded, x->name));
        ck_assert_int_eq(y->dtype, dtype);
        for (size_t e = 0; e < named_elements(x); e++) {
            float value;
            uint16_t bits;
            memcpy(&value, (const char *)x->data + e * sizeof value, sizeof value);
            memcpy(&bits, (const char *)y->data + e * sizeof bits, sizeof bits);
            ck_assert_uint_eq(bits, dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value));
        }
    }
    named_close(exact);
    named_close(rounded);
}

START_TEST(another_dtype_is_the_same_numbers_rounded_once) {
    char root[SCRATCH_NAME];
    scratch(root);
    char *hf = make_hf(root, "hf", DTYPE_F32, false), *narrow = in(root, "bf16"), *fp16 = in(root, "fp16");
    char *back = in(root, "back");
    HfConfig config;
    CHECK_OK(EXPORT(hf, narrow, "--dtype", "bf16"));
    check_rounded(hf, narrow, DTYPE_BF16);
    CHECK_OK(hf_config_read(&config, narrow));
    ck_assert_int_eq(config.dtype, DTYPE_BF16);
    CHECK_OK(EXPORT(hf, fp16, "--dtype=fp16"));
    check_rounded(hf, fp16, DTYPE_F16);
    CHECK_OK(EXPORT(narrow, back, "--dtype", "fp32"));
    check_rounded(back, narrow, DTYPE_BF16); /* widening lost nothing */
    CHECK_OK(directory_remove(root));
    free(hf), free(narrow), free(fp16), free(back);
}
END_TEST

static void check_template(const char *path, const char *expected) {
    ModelFile file;
    CHECK_OK(model_file_open(&file, path, (ModelFileOptions){.shape_only = true}));
    ck_assert_pstr_eq(file.chat_template, expected);
    model_file_close(&file);
}

START_TEST(a_chat_template_survives) {
    static const char *const configs[] = {
        "{\"chat_template\": \"{{ bos }}\\n\"}",
        ("{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"x\"},"
         " {\"name\": \"default\", \"template\": \"{{ bos }}\\n\"}]}"),
        "{}",
        "{\"chat_template\": 3}",
    };
    for (int i = 0; i < 4; i++) {
        char root[SCRATCH_NAME];
        scratch(root);
        char *hf = make_hf(root, "hf", DTYPE_F32, false), *imported = in(root, "imported"), *out = in(root, "out");
        char *config = in(hf, "tokenizer_config.json"), *jinja = in(out, "chat_template.jinja");
        const char *expected = i < 2 ? "{{ bos }}\n" : NULL;
        overwrite(config, configs[i], strlen(configs[i]));
        check_template(hf, expected);
        CHECK_OK(IMPORT(hf, imported, "-t", "bytes"));
        check_template(imported, expected);
        CHECK_OK(EXPORT(imported, out));
        check_template(out, expected);
        ck_assert_int_eq(file_exists(jinja), expected != NULL);
        overwrite(config, "{", 1);
        CHECK_ERROR(EXPORT(hf, out), ERR_REFUSED, "is not empty");
        CHECK_OK(directory_remove(out));
        CHECK_ERROR(EXPORT(hf, out), ERR_REFUSED, "tokenizer_config.json");
        CHECK_OK(directory_remove(root));
        free(hf), free(imported), free(out), free(config), free(jinja);
    }
}
END_TEST

START_TEST(fp64_is_stored_as_fp32) {
    char root[SCRATCH_NAME];
    scratch(root);
    char *wide = make_hf(root, "wide", DTYPE_F64, false), *narrow = make_hf(root, "narrow", DTYPE_F32, false);
    char *out = in(root, "out");
    CHECK_OK(EXPORT(wide, out));
    check_same_bits(narrow, out);
    CHECK_OK(directory_remove(root));
    free(wide), free(narrow), free(out);
}
END_TEST

START_TEST(a_number_too_large_for_fp16_is_refused_and_nothing_is_left) {
    char root[SCRATCH_NAME];
    size_t n;
    Arena arena = {0};
    scratch(root);
    Llama *model = odd_model(false);
    NamedSource *sources = sources_of(model, DTYPE_F32, &arena, &n);
    char *out = in(root, "out");
    model->norm.value[3] = 65519.0f; /* rounds to 65504 */
    char *hf = write_hf(root, "hf", sources, n, odd_config(false));
    CHECK_OK(EXPORT(hf, out, "--dtype", "fp16"));
    CHECK_OK(directory_remove(out));
    model->norm.value[3] = -65520.0f;
    free(hf);
    hf = write_hf(root, "hf", sources, n, odd_config(false));
    CHECK_ERROR(EXPORT(hf, out, "--dtype", "fp16"), ERR_REFUSED, "model.norm.weight");
    CHECK_ERROR(IMPORT(hf, out, "--dtype", "fp16", "-t", "bytes"), ERR_REFUSED, "-65520");
    check_entries(root, 1);
    CHECK_OK(EXPORT(hf, out, "--dtype", "bf16"));
    CHECK_OK(directory_remove(root));
    free(sources), free(hf), free(out);
    arena_free(&arena);
    llama_free(model);
}
END_TEST

START_TEST(a_tied_head_is_not_written) {
    char root[SCRATCH_NAME];
    size_t n;
    Arena arena = {0};
    scratch(root);
    Llama *model = odd_model(true);
    NamedSource *sources = sources_of(model, DTYPE_F32, &arena, &n);
    sources[n] = sources[0]; /* some files carry it all the same */
    sources[n].array.name = "lm_head.weight";
    char *hf = write_hf(root, "hf", sources, n + 1, odd_config(true)), *out = in(root, "out");
    CHECK_OK(EXPORT(hf, out));
    NamedFile *file;
    CHECK_OK(named_open(&file, out));
    ck_assert_uint_eq(named_count(file), n);
    ck_assert_ptr_null(named_find(file, "lm_head.weight"));
    named_close(file);
    CHECK_OK(directory_remove(root));
    free(sources), free(hf), free(out);
    arena_free(&arena);
    llama_free(model);
}
END_TEST

START_TEST(a_model_above_the_shard_size_is_split_and_reads_back_the_same) {
    char root[SCRATCH_NAME];
    scratch(root);
    char *hf = make_hf(root, "hf", DTYPE_F32, false), *out = in(root, "out"), *one = in(root, "one");
    char *index = in(out, "model.safetensors.index.json");
    ck_assert_uint_ge(export_shards(hf, out, "42kB", 42000), 3);
    ck_assert(file_exists(index));
    check_same_bits(hf, out);
    CHECK_OK(directory_remove(out));
    ck_assert_uint_eq(export_shards(hf, out, "0.25MiB", 262144), 1);
    ck_assert(!file_exists(index));
    CHECK_OK(EXPORT(hf, one));
    check_same_bits(out, one);
    static const char *const wrong[] = {"", "5XB", "GB", "0", "-1GB", "5GBB", "5 0GB", "nan", "1e30GB"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK_ERROR(EXPORT(hf, "x", "--shard-size", wrong[i]), ERR_USAGE, "--shard-size");
    CHECK_OK(directory_remove(root));
    free(hf), free(out), free(one), free(index);
}
END_TEST

START_TEST(a_llama2c_file_is_exported_under_hugging_face_names_with_its_rows_reordered) {
    char root[SCRATCH_NAME];
    NamedFile *file;
    const NamedArray *query;
    scratch(root);
    TinyLlama2c tiny = tiny_llama2c();
    char *bin = in(root, "tiny.bin"), *out = in(root, "out");
    overwrite(bin, &tiny, sizeof tiny);
    CHECK_OK(EXPORT(bin, out));
    check_same_configs(bin, out);
    CHECK_OK(named_open(&file, out));
    CHECK_OK(named_get(&query, file, "model.layers.0.self_attn.q_proj.weight"));
    const float *values = query->data;
    enum { QUERY = 5 * 8 + 2 * 8, WIDTH = 8 };          /* behind the embedding and both layers' norms */
    static const int rows[] = {0, 2, 1, 3, 4, 6, 5, 7}; /* two heads of 4: halves for pairs */
    for (int row = 0; row < 8; row++)
        for (int column = 0; column < WIDTH; column++)
            ck_assert_float_eq(values[row * WIDTH + column], (float)(QUERY + rows[row] * WIDTH + column));
    named_close(file);
    CHECK_OK(directory_remove(root));
    free(bin), free(out);
}
END_TEST

static int check_all(void) {
    Suite *suite = suite_create("import and export");
    TCase *all = tcase_create("all");
    tcase_set_timeout(all, 60);
    tcase_add_loop_test(all, import_and_export_keep_every_bit_and_every_field, 0, 6);
    const CheckCase cases[] = {
        an_imported_model_is_a_checkpoint_that_can_be_trained_but_has_no_optimizer,
        another_dtype_is_the_same_numbers_rounded_once,
        a_chat_template_survives,
        fp64_is_stored_as_fp32,
        a_number_too_large_for_fp16_is_refused_and_nothing_is_left,
        a_tied_head_is_not_written,
        a_model_above_the_shard_size_is_split_and_reads_back_the_same,
        a_llama2c_file_is_exported_under_hugging_face_names_with_its_rows_reordered,
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) tcase_add_test(all, cases[i]);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}

int main(void) {
    return check_all() == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
