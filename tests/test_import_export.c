/* cria import and cria export: what comes out is what went in, and nothing is overwritten or left half done. */
#include <signal.h>
#include <string.h>
#include <sys/stat.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "model/formats/checkpoint.h"
#include "model/formats/safetensors.h"
#include "model/llama.h"
#include "model/shape_hf.h"
#include "tests/formats_scratch.h"
#include "train/commands.h"
#include "train/model_copy.h"

/* ---- models to move ---- */

/* Every field unlike its default, as in Llama 3.1; the vocabulary of the tokenizer "bytes" and two rows more. */
static HfConfig odd_config(bool tied) {
    HfConfig config = hf_config_default();
    config.dim = 40;
    config.n_layers = 2;
    config.n_heads = 4;
    config.n_kv_heads = 2;
    config.head_dim = 12;
    config.ffn_dim = 56;
    config.vocab_size = 260;
    config.max_position_embeddings = 96;
    config.rms_norm_eps = 3e-5;
    config.rope_theta = 500000;
    config.rope_scaling.llama3 = true;
    config.rope_scaling.factor = 8;
    config.rope_scaling.low_freq_factor = 1;
    config.rope_scaling.high_freq_factor = 4;
    config.rope_scaling.original_max_position_embeddings = 32;
    config.tie_word_embeddings = tied;
    config.bos_token_id = 256;
    config.n_eos = 3;
    memcpy(config.eos_token_ids, (int32_t[]){257, 10, 13}, 3 * sizeof(int32_t));
    config.initializer_range = 0.05;
    return config;
}

static Llama *odd_model(bool tied) {
    Llama *model;
    HfConfig config = odd_config(tied);
    LlamaShape shape = llama_shape_from_hf(&config);
    CHECK_OK(llama_new(&model, &shape, (LlamaOptions){0}));
    CHECK_OK(llama_init(model, (LlamaInit){.seed = 5, .std = 0.05f}));
    return model;
}

/* The model's arrays as sources of this dtype; *n of them. */
static NamedSource *sources_of(const Llama *model, Dtype dtype, Arena *arena, size_t *n) {
    NamedArray *arrays;
    CHECK_OK(llama_arrays(model, (WeightStorage){0}, arena, &arrays, n));
    NamedSource *sources = calloc(*n + 1, sizeof *sources);
    for (size_t i = 0; i < *n; i++) {
        sources[i] = (NamedSource){.array = arrays[i], .f32 = arrays[i].data};
        sources[i].array.data = NULL;
        sources[i].array.dtype = dtype;
    }
    return sources;
}

/* Writes a Hugging Face directory of `n` sources; malloc'd path. */
static char *write_hf(const char *root, const char *name, NamedSource *sources, size_t n, HfConfig config) {
    char *path = in(root, name);
    HfGeneration generation = hf_generation_default();
    generation.bos_token_id = 256;
    generation.n_eos = 2;
    generation.eos_token_ids[0] = 10;
    generation.eos_token_ids[1] = 257;
    generation.do_sample = true;
    generation.temperature = 0.7;
    CHECK_OK(directory_make(path));
    CHECK_OK(hf_config_write(&config, path));
    CHECK_OK(hf_generation_write(&generation, path));
    CHECK_OK(safetensors_write_directory(path, sources, n, 0));
    return path;
}

static char *make_hf(const char *root, const char *name, Dtype dtype, bool tied) {
    size_t n;
    Arena arena = {0};
    Llama *model = odd_model(tied);
    NamedSource *sources = sources_of(model, dtype, &arena, &n);
    HfConfig config = odd_config(tied);
    config.dtype = dtype;
    char *path = write_hf(root, name, sources, n, config);
    free(sources);
    arena_free(&arena);
    llama_free(model);
    return path;
}

/* ---- running a command ---- */

enum { MOST_WORDS = 12 };

static int run(int (*command)(int, char **), const char *const *words) {
    char *argv[MOST_WORDS + 2] = {strdup("command")};
    int argc = 1;
    log_set_level(LOG_ERROR);
    for (; words[argc - 1]; argc++) argv[argc] = strdup(words[argc - 1]);
    char *owned[MOST_WORDS + 2];
    memcpy(owned, argv, sizeof owned); /* the parser moves words */
    int rc = command(argc, argv);
    for (int i = 0; i < argc; i++) free(owned[i]);
    return rc;
}
#define IMPORT(...) run(command_import, (const char *const[]){__VA_ARGS__, NULL})
#define EXPORT(...) run(command_export, (const char *const[]){__VA_ARGS__, NULL})

/* ---- comparing ---- */

/* Every parameter of `a` is in `b` with the same bits, and b has no other but the tokenizer. */
static void check_same_bits(const char *a, const char *b) {
    NamedFile *first, *second;
    size_t parameters = 0;
    CHECK_OK(named_open(&first, a));
    CHECK_OK(named_open(&second, b));
    for (size_t i = 0; i < named_count(first); i++) {
        const NamedArray *x = named_at(first, i), *y;
        if (text_starts_with(x->name, "cria.")) continue;
        CHECK_OK(named_get(&y, second, x->name));
        ck_assert_msg(x->dtype == y->dtype, "%s: %s became %s", x->name, dtype_name(x->dtype), dtype_name(y->dtype));
        ck_assert_uint_eq(named_bytes(x), named_bytes(y));
        ck_assert_msg(memcmp(x->data, y->data, named_bytes(x)) == 0, "%s has other bits", x->name);
        parameters++;
    }
    ck_assert_uint_eq(parameters, 2 * 9 + (named_find(first, "lm_head.weight") ? 3 : 2));
    for (size_t i = 0; i < named_count(second); i++)
        parameters -= !text_starts_with(named_at(second, i)->name, "cria.");
    ck_assert_uint_eq(parameters, 0);
    named_close(first);
    named_close(second);
}

/* config.json and generation_config.json of any MODEL, one after the other; malloc'd. */
static char *configs_of(const char *path) {
    ModelFile file;
    char *config, *generation, *both;
    CHECK_OK(model_file_open(&file, path, (ModelFileOptions){.shape_only = true}));
    CHECK_OK(hf_config_format(&file.config, &config));
    CHECK_OK(hf_generation_format(&file.generation, &generation));
    ck_assert_int_gt(asprintf(&both, "%s%s", config, generation), 0);
    free(config);
    free(generation);
    model_file_close(&file);
    return both;
}

static void check_same_configs(const char *a, const char *b) {
    char *first = configs_of(a), *second = configs_of(b);
    ck_assert_str_eq(first, second);
    free(first);
    free(second);
}

/* No folder of unfinished work is in the directory, which has `n` entries. */
static void check_entries(const char *directory, size_t n) {
    char **names;
    size_t found;
    CHECK_OK(directory_list(&names, &found, directory));
    for (size_t i = 0; i < found; i++) ck_assert_msg(!strstr(names[i], "incomplete"), "%s was left behind", names[i]);
    ck_assert_uint_eq(found, n);
    names_free(names, found);
}

/* ---- tests ---- */

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

/* Exports in shards; returns how many there are. */
static size_t export_shards(const char *hf, const char *out, const char *size, uint64_t most) {
    char **names;
    size_t n, shards = 0;
    CHECK_OK(EXPORT(hf, out, "--shard-size", size));
    CHECK_OK(directory_list(&names, &n, out));
    for (size_t i = 0; i < n; i++) {
        uint64_t bytes;
        char *path = in(out, names[i]);
        CHECK_OK(file_size(&bytes, path));
        if (text_ends_with(names[i], ".safetensors")) {
            enum { HEADER = 4096 };
            ck_assert_uint_le(bytes, most + HEADER);
            shards++;
        }
        free(path);
    }
    names_free(names, n);
    return shards;
}

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
        tensors_that_are_not_this_models_are_refused_by_name,
        an_element_type_that_is_no_float_is_refused_by_name,
        a_truncated_or_missing_shard_is_refused_by_its_file,
        what_is_there_is_never_overwritten,
        what_was_made_may_be_read_by_others,
        a_signal_stops_the_work_and_nothing_is_left,
        a_file_that_appears_meanwhile_is_kept,
        wrong_words_and_flags_are_usage_errors,
        another_models_tokenizer_is_refused,
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
