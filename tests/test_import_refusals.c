/* cria import and cria export: what is no model of theirs is refused by name, and nothing is overwritten or left half
 * done. */
#include <signal.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/model_directories.h"
#include "train/files/model_copy.h"

/* Both commands refuse `from`, name the tensor or file, and leave nothing. */
static void check_refused(const char *root, const char *from, const char *part) {
    char *out = in(root, "out");
    CHECK_ERROR(IMPORT(from, out, "-t", "bytes"), ERR_REFUSED, part);
    CHECK_ERROR(EXPORT(from, out), ERR_REFUSED, part);
    ck_assert(!directory_exists(out));
    free(out);
}

START_TEST(tensors_that_are_not_this_models_are_refused_by_name) {
    char root[SCRATCH_NAME];
    size_t n;
    Arena arena = {0};
    scratch(root);
    Llama *model = odd_model(false);
    NamedSource *sources = sources_of(model, DTYPE_F32, &arena, &n), extra = sources[0];
    HfConfig config = odd_config(false);
    config.ffn_dim = 58;
    char *hf = write_hf(root, "hf", sources, n, config);
    check_refused(root, hf, "model.layers.0.mlp.gate_proj.weight is 56×40 in the file; this model's shape wants 58×40");
    free(hf);
    hf = write_hf(root, "hf", sources, n - 1, odd_config(false));
    check_refused(root, hf, "lm_head.weight is missing");
    free(hf);
    extra.array.name = "model.layers.2.mlp.up_proj.weight";
    sources[n] = extra;
    hf = write_hf(root, "hf", sources, n + 1, odd_config(false));
    check_refused(root, hf, "model.layers.2.mlp.up_proj.weight is in the file");
    CHECK_OK(directory_remove(root));
    free(sources), free(hf);
    arena_free(&arena);
    llama_free(model);
}
END_TEST

START_TEST(an_element_type_that_is_no_float_is_refused_by_name) {
    char root[SCRATCH_NAME];
    size_t n;
    static int32_t integers[40];
    Arena arena = {0};
    scratch(root);
    Llama *model = odd_model(false);
    NamedSource *sources = sources_of(model, DTYPE_F32, &arena, &n);
    ck_assert_str_eq(sources[n - 2].array.name, "model.norm.weight");
    sources[n - 2].array.dtype = DTYPE_I32;
    sources[n - 2].array.data = integers;
    sources[n - 2].f32 = NULL;
    char *hf = write_hf(root, "hf", sources, n, odd_config(false));
    check_refused(root, hf, "model.norm.weight holds int32");
    CHECK_OK(directory_remove(root));
    free(sources), free(hf);
    arena_free(&arena);
    llama_free(model);
}
END_TEST

START_TEST(a_truncated_or_missing_shard_is_refused_by_its_file) {
    char root[SCRATCH_NAME];
    scratch(root);
    char *hf = make_hf(root, "hf", DTYPE_F32, false), *shards = in(root, "shards");
    size_t n = export_shards(hf, shards, "42kB", 42000);
    char name[64];
    snprintf(name, sizeof name, "model-00002-of-%05zu.safetensors", n);
    char *second = in(shards, name);
    uint64_t size;
    CHECK_OK(file_size(&size, second));
    ck_assert_int_eq(truncate(second, (off_t)size - 1), 0);
    check_refused(root, shards, name);
    ck_assert_int_eq(truncate(second, 5), 0);
    check_refused(root, shards, name);
    ck_assert_int_eq(unlink(second), 0);
    char *out = in(root, "out");
    CHECK_ERROR(IMPORT(shards, out, "-t", "bytes"), ERR_FAILED, name);
    ck_assert(!directory_exists(out));
    CHECK_OK(directory_remove(root));
    free(hf), free(shards), free(second), free(out);
}
END_TEST

/* A base is refused by its headers alone (keep_open reads nothing else), and so by who would quantise it. */
static void check_base(const char *path, int status, const char *part) {
    const ModelFileOptions ways[] = {
        {.head = HEAD_ANY, .tokenizer = "bytes", .keep_open = true},
        {.head = HEAD_ANY, .tokenizer = "bytes", .frozen = FROZEN_NF4, .precision = DTYPE_BF16}};
    for (int w = 0; w < 2; w++) {
        ModelFile file;
        CHECK_ERROR(model_file_open(&file, path, ways[w]), status, part);
    }
}

/* Adds a line to the index: an array that is in no shard. */
static void add_to_index(const char *shards, const char *shard) {
    static const char map[] = "\"weight_map\": {";
    char *index = in(shards, "model.safetensors.index.json"), *bytes, *at;
    size_t size;
    Text text = {0};
    CHECK_OK(file_read(&bytes, &size, index, 0));
    at = strstr(bytes, map);
    ck_assert_ptr_nonnull(at);
    at += strlen(map);
    text_append(&text, bytes, (size_t)(at - bytes));
    text_printf(&text, "\"gone.weight\": \"%s\", %s", shard, at);
    overwrite(index, text.bytes, text.length);
    text_free(&text);
    free(bytes), free(index);
}

START_TEST(a_base_in_shards_is_refused_before_one_matrix_is_read) {
    char root[SCRATCH_NAME], last[64], expected[128];
    scratch(root);
    char *hf = make_hf(root, "hf", DTYPE_BF16, false), *shards = in(root, "shards");
    size_t n = export_shards(hf, shards, "20kB", 20000);
    snprintf(last, sizeof last, "model-%05zu-of-%05zu.safetensors", n, n);
    char *path = in(shards, last), *aside = in(root, "aside");
    ck_assert_int_eq(rename(path, aside), 0);
    check_base(shards, ERR_FAILED, last);
    ck_assert_int_eq(rename(aside, path), 0);
    add_to_index(shards, last);
    snprintf(expected, sizeof expected, "weight_map has 'gone.weight' in %s", last);
    check_base(shards, ERR_REFUSED, expected);
    uint64_t size;
    CHECK_OK(file_size(&size, path));
    ck_assert_int_eq(truncate(path, (off_t)size / 2), 0);
    check_base(shards, ERR_REFUSED, "truncated");
    check_base(shards, ERR_REFUSED, last);
    CHECK_OK(directory_remove(root));
    free(hf), free(shards), free(path), free(aside);
}
END_TEST

START_TEST(a_base_of_another_shape_or_element_type_is_refused_before_one_matrix_is_read) {
    static const char down[] = "model.layers.1.mlp.down_proj.weight";
    char root[SCRATCH_NAME];
    size_t n, d = 0;
    static int32_t integers[40 * 56];
    Arena arena = {0};
    scratch(root);
    Llama *model = odd_model(false);
    NamedSource *sources = sources_of(model, DTYPE_BF16, &arena, &n);
    while (strcmp(sources[d].array.name, down) != 0) d++;
    NamedSource kept = sources[d];
    sources[d] = (NamedSource){.array = kept.array};
    sources[d].array.dtype = DTYPE_I32;
    sources[d].array.data = integers;
    char *hf = write_hf(root, "integers", sources, n, odd_config(false));
    check_base(hf, ERR_REFUSED,
               "model.layers.1.mlp.down_proj.weight holds int32; fp32, bf16, fp16 or fp64 is expected");
    free(hf);
    sources[d] = kept;
    sources[d].array.dims[1] -= 1;
    hf = write_hf(root, "narrow", sources, n, odd_config(false));
    check_base(hf, ERR_REFUSED,
               "model.layers.1.mlp.down_proj.weight is 40×55 in the file; this model's shape wants 40×56");
    CHECK_OK(directory_remove(root));
    free(sources), free(hf);
    arena_free(&arena);
    llama_free(model);
}
END_TEST

START_TEST(what_is_there_is_never_overwritten) {
    char root[SCRATCH_NAME];
    scratch(root);
    char *hf = make_hf(root, "hf", DTYPE_F32, false), *file = in(root, "file"), *full = in(root, "full");
    char *mine = in(full, "mine"), *empty = in(root, "empty"), *link = in(root, "link");
    overwrite(file, "x", 1);
    CHECK_OK(directory_make(full));
    overwrite(mine, "x", 1);
    CHECK_ERROR(EXPORT(hf, file), ERR_REFUSED, "is a file");
    CHECK_ERROR(EXPORT(hf, full), ERR_REFUSED, "it holds 'mine'");
    CHECK_ERROR(EXPORT(hf, hf), ERR_REFUSED, "is not empty");
    CHECK_ERROR(IMPORT(hf, file, "-t", "bytes"), ERR_REFUSED, "is a file");
    CHECK_ERROR(IMPORT(hf, full, "-t", "bytes"), ERR_REFUSED, "it holds 'mine'");
    ck_assert(file_exists(mine));
    check_entries(full, 1);
    CHECK_OK(directory_make(empty));
    ck_assert_int_eq(symlink("empty", link), 0);
    CHECK_OK(EXPORT(hf, link)); /* into the empty folder it points to */
    check_same_bits(hf, empty);
    check_entries(root, 5);
    CHECK_OK(directory_remove(root));
    free(hf), free(file), free(full), free(mine), free(empty), free(link);
}
END_TEST

START_TEST(what_was_made_may_be_read_by_others) {
    char root[SCRATCH_NAME];
    struct stat status;
    scratch(root);
    char *hf = make_hf(root, "hf", DTYPE_F32, false), *out = in(root, "out");
    mode_t mask = umask(022);
    CHECK_OK(EXPORT(hf, out));
    umask(mask);
    ck_assert_int_eq(stat(out, &status), 0);
    ck_assert_int_eq(status.st_mode & 0777, 0755);
    CHECK_OK(directory_remove(root));
    free(hf), free(out);
}
END_TEST

/* Something happens while a model is being written. */
typedef struct {
    int signal;          /* sent to this process */
    const char *appears; /* a file that somebody puts into TO */
} Meanwhile;

static int write_arrays(ModelCopy *copy, const char *directory, const void *context) {
    const Meanwhile *meanwhile = context;
    TRY(hf_config_write(&copy->file.config, directory)); /* there is something to leave behind */
    if (meanwhile->signal) raise(meanwhile->signal);
    if (meanwhile->appears) overwrite(meanwhile->appears, "x", 1);
    return safetensors_write_directory(directory, copy->sources, copy->n, 0);
}

START_TEST(a_signal_stops_the_work_and_nothing_is_left) {
    char root[SCRATCH_NAME];
    ModelCopy copy;
    scratch(root);
    char *hf = make_hf(root, "hf", DTYPE_F32, false), *out = in(root, "out");
    CHECK_OK(model_copy_open(&copy, hf, (ModelCopyOptions){0}));
    for (int i = 0; i < 2; i++) {
        Meanwhile meanwhile = {.signal = i ? SIGTERM : SIGINT};
        CHECK_ERROR(model_copy_write(&copy, out, "export", write_arrays, &meanwhile), ERR_INTERRUPTED,
                    i ? "stopped by SIGTERM" : "stopped by SIGINT");
        check_entries(root, 1);
    }
    CHECK_OK(model_copy_write(&copy, out, "export", write_arrays, &(Meanwhile){0})); /* the copy still serves */
    check_same_bits(hf, out);
    model_copy_close(&copy);
    CHECK_OK(directory_remove(root));
    free(hf), free(out);
}
END_TEST

START_TEST(a_file_that_appears_meanwhile_is_kept) {
    char root[SCRATCH_NAME];
    ModelCopy copy;
    scratch(root);
    char *hf = make_hf(root, "hf", DTYPE_F32, false), *out = in(root, "out"), *theirs = in(out, "theirs");
    CHECK_OK(directory_make(out));
    CHECK_OK(model_copy_open(&copy, hf, (ModelCopyOptions){0}));
    Meanwhile meanwhile = {.appears = theirs};
    CHECK_ERROR(model_copy_write(&copy, out, "export", write_arrays, &meanwhile), ERR_FAILED, "rename");
    model_copy_close(&copy);
    ck_assert(file_exists(theirs));
    check_entries(out, 1);
    check_entries(root, 2);
    CHECK_OK(directory_remove(root));
    free(hf), free(out), free(theirs);
}
END_TEST

START_TEST(wrong_words_and_flags_are_usage_errors) {
    char root[SCRATCH_NAME];
    scratch(root);
    char *hf = make_hf(root, "hf", DTYPE_F32, false), *out = in(root, "out");
    CHECK_ERROR(EXPORT("--format", "onnx", hf, out), ERR_USAGE, "there is: hf");
    CHECK_ERROR(EXPORT(hf, out, "--dtype", "int8"), ERR_USAGE, "expected fp32, bf16 or fp16");
    CHECK_ERROR(EXPORT(hf, out, "--dtype", "fp64"), ERR_USAGE, "expected fp32, bf16 or fp16");
    CHECK_ERROR(EXPORT(hf), ERR_USAGE, "");
    CHECK_ERROR(EXPORT(hf, ""), ERR_USAGE, "no name");
    CHECK_ERROR(IMPORT(hf, out), ERR_USAGE, "give one with --tokenizer FILE");
    ck_assert(!directory_exists(out));
    CHECK_OK(directory_remove(root));
    free(hf), free(out);
}
END_TEST

START_TEST(another_models_tokenizer_is_refused) {
    char root[SCRATCH_NAME];
    scratch(root);
    TinyLlama2c tiny = tiny_llama2c(); /* 5 tokens */
    char *bin = in(root, "tiny.bin"), *out = in(root, "out");
    overwrite(bin, &tiny, sizeof tiny);
    CHECK_ERROR(IMPORT(bin, out, "-t", "bytes"), ERR_REFUSED, "258 tokens");
    ck_assert(!directory_exists(out));
    CHECK_OK(directory_remove(root));
    free(bin), free(out);
}
END_TEST

CHECK_MAIN("import refusals", tensors_that_are_not_this_models_are_refused_by_name,
           an_element_type_that_is_no_float_is_refused_by_name, a_truncated_or_missing_shard_is_refused_by_its_file,
           a_base_in_shards_is_refused_before_one_matrix_is_read,
           a_base_of_another_shape_or_element_type_is_refused_before_one_matrix_is_read,
           what_is_there_is_never_overwritten, what_was_made_may_be_read_by_others,
           a_signal_stops_the_work_and_nothing_is_left, a_file_that_appears_meanwhile_is_kept,
           wrong_words_and_flags_are_usage_errors, another_models_tokenizer_is_refused)
