/* Models on disk for the tests of import and export: small odd ones, commands run on them, comparing. */
#ifndef CRIA_TESTS_MODEL_DIRECTORIES_H
#define CRIA_TESTS_MODEL_DIRECTORIES_H

#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "model/formats/checkpoint.h"
#include "model/formats/safetensors.h"
#include "model/llama.h"
#include "model/shape_hf.h"
#include "tests/formats_scratch.h"
#include "train/commands.h"
#include "train/files/model_file.h"

/* ---- models to move ---- */

/* Every field unlike its default, as in Llama 3.1; the vocabulary of the tokenizer "bytes" and two rows more. */
static inline HfConfig odd_config(bool tied) {
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

static inline Llama *odd_model(bool tied) {
    Llama *model;
    HfConfig config = odd_config(tied);
    LlamaShape shape = llama_shape_from_hf(&config);
    CHECK_OK(llama_new(&model, &shape, (LlamaOptions){0}));
    CHECK_OK(llama_init(model, (LlamaInit){.seed = 5, .std = 0.05f}));
    return model;
}

/* The model's arrays as sources of this dtype; *n of them. */
static inline NamedSource *sources_of(const Llama *model, Dtype dtype, Arena *arena, size_t *n) {
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
static inline char *write_hf(const char *root, const char *name, NamedSource *sources, size_t n, HfConfig config) {
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

static inline char *make_hf(const char *root, const char *name, Dtype dtype, bool tied) {
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

static inline int run(int (*command)(int, char **), const char *const *words) {
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

/* Exports in shards; returns how many there are. */
static inline size_t export_shards(const char *hf, const char *out, const char *size, uint64_t most) {
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

/* ---- comparing ---- */

/* Every parameter of `a` is in `b` with the same bits, and b has no other but the tokenizer. */
static inline void check_same_bits(const char *a, const char *b) {
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
static inline char *configs_of(const char *path) {
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

static inline void check_same_configs(const char *a, const char *b) {
    char *first = configs_of(a), *second = configs_of(b);
    ck_assert_str_eq(first, second);
    free(first);
    free(second);
}

/* No folder of unfinished work is in the directory, which has `n` entries. */
static inline void check_entries(const char *directory, size_t n) {
    char **names;
    size_t found;
    CHECK_OK(directory_list(&names, &found, directory));
    for (size_t i = 0; i < found; i++) ck_assert_msg(!strstr(names[i], "incomplete"), "%s was left behind", names[i]);
    ck_assert_uint_eq(found, n);
    names_free(names, found);
}

#endif
