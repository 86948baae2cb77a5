/* Collecting what is in a checkpoint, a run, a model or a tokenizer. Everything that has a checksum is verified. */
#include "train/files/inspect.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/tokenizer.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/text.h"
#include "model/formats/checkpoint.h"
#include "model/formats/checkpoint_list.h"
#include "model/formats/gguf.h"
#include "model/formats/hf_config.h"
#include "model/formats/llama2c.h"
#include "model/formats/named.h"
#include "train/files/adapter_file.h"
#include "train/files/model_file.h"

static int set(json_t *object, const char *key, json_t *value) {
    if (json_object_set_new(object, key, value) != 0) FAIL(ERR_FAILED, "out of memory, or '%s' is not UTF-8", key);
    return OK;
}

/* The current error becomes the report's problem, unless there is one already. */
static int set_problem(json_t *report) {
    if (!json_object_get(report, "problem")) TRY(set(report, "problem", json_string(error_text())));
    return OK;
}

static bool has(const char *directory, const char *name) {
    char *path = path_join(directory, name);
    bool found = path && (file_exists(path) || directory_exists(path));
    free(path);
    return found;
}

/* ---- arrays ---- */

static int natural_order(const void *a, const void *b) { /* layers.2 before layers.10 */
    return strverscmp((*(const NamedArray *const *)a)->name, (*(const NamedArray *const *)b)->name);
}

static int append_array(json_t *list, const NamedArray *array) {
    json_t *shape = json_array();
    for (int d = 0; d < array->n_dims; d++) json_array_append_new(shape, json_integer(array->dims[d]));
    const char *dtype = array->dtype < DTYPE_COUNT ? dtype_name(array->dtype) : "other";
    json_t *entry = json_pack("{s:s, s:s, s:o, s:I}", "name", array->name, "dtype", dtype, "shape", shape, "bytes",
                              (json_int_t)named_bytes(array));
    if (!entry || json_array_append_new(list, entry) != 0) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

static int add_arrays(json_t *report, const NamedFile *file) {
    int rc = OK;
    size_t n = named_count(file);
    uint64_t elements = 0, bytes = 0;
    json_t *list = json_array(), *texts = json_object();
    const NamedArray **sorted = malloc((n + 1) * sizeof *sorted);
    if (!sorted) FAIL_TO(done, ERR_FAILED, "out of memory");
    for (size_t i = 0; i < n; i++) sorted[i] = named_at(file, i);
    qsort(sorted, n, sizeof *sorted, natural_order);
    for (size_t i = 0; i < n; i++) {
        TRY_TO(done, append_array(list, sorted[i]));
        elements += named_elements(sorted[i]);
        bytes += named_bytes(sorted[i]);
    }
    for (size_t i = 0; i < named_text_count(file); i++)
        TRY_TO(done, set(texts, named_text_at(file, i).key, json_string(named_text_at(file, i).value)));
    TRY_TO(done, set(report, "format", json_string(named_format(file))));
    TRY_TO(done, set(report, "n_arrays", json_integer((json_int_t)n)));
    TRY_TO(done, set(report, "elements", json_integer((json_int_t)elements)));
    TRY_TO(done, set(report, "bytes", json_integer((json_int_t)bytes)));
    TRY_TO(done, set(report, "arrays", json_incref(list)));
    TRY_TO(done, set(report, "texts", json_incref(texts)));
done:
    json_decref(list);
    json_decref(texts);
    free(sorted);
    return rc;
}

/* ---- config and tokenizer ---- */

static int add_config(json_t *report, const HfConfig *config) {
    char *text;
    TRY(hf_config_format(config, &text));
    json_t *object = json_loads(text, 0, NULL);
    free(text);
    TRY(set(report, "config", object));
    return OK;
}

/* PATH: a config.json or its directory. What is wrong with it becomes the problem. */
static int add_config_file(json_t *report, const char *path) {
    HfConfig config;
    if (hf_config_read(&config, path) != OK)
        TRY(set_problem(report));
    else
        TRY(add_config(report, &config));
    return OK;
}

/* Takes the tokenizer. */
static int set_tokenizer(json_t *report, Tokenizer *tokenizer) {
    size_t size;
    (void)tokenizer_source(tokenizer, &size);
    json_t *object =
        json_pack("{s:s, s:i, s:i, s:i, s:s, s:I}", "kind", tokenizer_kind(tokenizer), "vocab_size",
                  tokenizer_vocab_size(tokenizer), "bos", (int)tokenizer_bos(tokenizer), "eos",
                  (int)tokenizer_eos(tokenizer), "source", tokenizer_source_name(tokenizer), "bytes", (json_int_t)size);
    tokenizer_free(tokenizer);
    TRY(set(report, "tokenizer", object));
    return OK;
}

static int add_tokenizer(json_t *report, const char *path) {
    Tokenizer *tokenizer;
    TRY(tokenizer_load(&tokenizer, path));
    TRY(set_tokenizer(report, tokenizer));
    return OK;
}

static bool has_tokenizer(const char *directory) {
    return has(directory, "tokenizer.json") || has(directory, "tokenizer.model") || has(directory, "tokenizer.bin");
}

static int add_side_files(json_t *report, const char *directory) {
    if (has(directory, "config.json")) TRY(add_config_file(report, directory));
    if (has_tokenizer(directory) && add_tokenizer(report, directory) != OK) TRY(set_problem(report));
    return OK;
}

/* ---- adapters ---- */

/* What PEFT's adapter_config.json says, how many numbers were trained, and of a checkpoint what its base was. */
static int add_adapter(json_t *report, json_t *config, json_t *base, const json_t *arrays) {
    static const char *const keys[][2] = {{"rank", "r"},
                                          {"alpha", "lora_alpha"},
                                          {"rslora", "use_rslora"},
                                          {"dora", "use_dora"},
                                          {"dropout", "lora_dropout"},
                                          {"targets", "target_modules"},
                                          {"base", "base_model_name_or_path"}};
    json_t *adapter = json_object();
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        json_t *value = json_object_get(config, keys[i][1]);
        if (value) json_object_set(adapter, keys[i][0], value);
    }
    json_t *fingerprint = json_object_get(base, "fingerprint");
    if (fingerprint) json_object_set(adapter, "base_fingerprint", fingerprint);
    json_object_set(adapter, "trained", json_object_get(arrays, "elements"));
    return set(report, "adapter", adapter);
}

/* Of a checkpoint's model.h5, where it holds one. */
static int add_checkpoint_adapter(json_t *report, const NamedFile *named, const json_t *arrays) {
    const char *config = named_text(named, "adapter_config.json"), *base = named_text(named, "base.json");
    if (!adapter_in_checkpoint(named)) return OK;
    json_t *config_object = config ? json_loads(config, 0, NULL) : NULL,
           *base_object = base ? json_loads(base, 0, NULL) : NULL;
    int rc = add_adapter(report, config_object, base_object, arrays);
    json_decref(config_object);
    json_decref(base_object);
    return rc;
}

/* PEFT's folder. */
static int add_peft(json_t *report, const char *path) {
    PeftAdapter adapter;
    TRY(set(report, "kind", json_string("adapter")));
    TRY(adapter_open(&adapter, path));
    int rc = add_arrays(report, adapter.arrays);
    peft_close(&adapter);
    TRY(rc);
    char *file = path_join(path, "adapter_config.json");
    json_t *config = file ? json_load_file(file, 0, NULL) : NULL;
    free(file);
    rc = add_adapter(report, config, NULL, report);
    json_decref(config);
    TRY(rc);
    return add_side_files(report, path);
}

/* What a checkpoint's model.h5 carries besides parameters (train/files/model_file.c). */
static int add_described(json_t *report, const NamedFile *named) {
    const char *json = named_text(named, "config.json");
    HfConfig config;
    if (json && hf_config_parse(&config, json, strlen(json), "config.json") != OK)
        TRY(set_problem(report));
    else if (json)
        TRY(add_config(report, &config));
    Tokenizer *tokenizer;
    bool found;
    if (model_file_tokenizer(&tokenizer, &found, named) != OK)
        TRY(set_problem(report));
    else if (found)
        TRY(set_tokenizer(report, tokenizer));
    return OK;
}

/* ---- checkpoints and runs ---- */

static int add_checkpoint_file(json_t *report, json_t *files, const ManifestFile *file, const char *folder) {
    int rc = OK;
    NamedFile *named = NULL;
    char crc[16];
    snprintf(crc, sizeof crc, "%08x", file->sum.crc32c);
    json_t *entry = json_pack("{s:s, s:I, s:s}", "name", file->name, "size", (json_int_t)file->sum.size, "crc32c", crc);
    if (!entry || json_array_append_new(files, entry) != 0) FAIL(ERR_FAILED, "out of memory");
    rc = manifest_check_file(file, folder);
    if (rc == OK && text_ends_with(file->name, ".h5")) {
        rc = checkpoint_open_arrays(&named, folder, file->name);
        if (rc == OK) TRY_TO(done, add_arrays(entry, named));
        if (rc == OK && strcmp(file->name, CHECKPOINT_MODEL) == 0) {
            TRY_TO(done, add_described(report, named));
            TRY_TO(done, add_checkpoint_adapter(report, named, entry));
        }
    }
    if (rc != OK) {
        TRY_TO(done, set_problem(entry));
        TRY_TO(done, set_problem(report));
        rc = OK;
    }
done:
    named_close(named);
    return rc;
}

static int add_checkpoint(json_t *report, const char *folder) {
    int rc = OK;
    Manifest manifest = {0};
    json_t *files = json_array();
    TRY_TO(done, set(report, "files", files));
    TRY_TO(done, manifest_read(&manifest, folder));
    TRY_TO(done, set(report, "kind", json_string("checkpoint")));
    TRY_TO(done, set(report, "step", json_integer(manifest.step)));
    for (size_t i = 0; i < manifest.n; i++)
        TRY_TO(done, add_checkpoint_file(report, files, &manifest.files[i], folder));
    TRY_TO(done, add_side_files(report, folder));
done:
    manifest_free(&manifest);
    return rc;
}

static int add_step(json_t *report, json_t *list, const StepFolder *folder, int64_t best) {
    json_t *entry = json_pack("{s:I, s:s, s:b}", "step", (json_int_t)folder->step, "path", folder->path, "best",
                              (int)(folder->step == best));
    if (!entry || json_array_append_new(list, entry) != 0) FAIL(ERR_FAILED, "out of memory");
    if (checkpoint_verify(folder->path) == OK) return OK;
    TRY(set_problem(entry));
    if (step_has_manifest(folder->path)) TRY(set_problem(report)); /* an unfinished save is no damage */
    return OK;
}

static int add_run(json_t *report, const char *run) {
    int rc = OK;
    int64_t best;
    const char *newest = NULL;
    StepList steps;
    json_t *list = json_array(), *checkpoint = json_object();
    TRY_TO(failed, set(report, "kind", json_string("run")));
    TRY_TO(failed, set(report, "checkpoints", json_incref(list)));
    TRY_TO(failed, step_read_best(&best, run));
    TRY_TO(failed, step_list_read(&steps, run));
    for (size_t i = 0; i < steps.n; i++) {
        TRY_TO(done, add_step(report, list, &steps.items[i], best));
        if (!newest && !json_object_get(json_array_get(list, i), "problem")) newest = steps.items[i].path;
    }
    if (newest) {
        TRY_TO(done, set(checkpoint, "path", json_string(newest)));
        TRY_TO(done, add_checkpoint(checkpoint, newest));
        TRY_TO(done, set(report, "newest", json_incref(checkpoint)));
    }
done:
    step_list_free(&steps);
failed:
    json_decref(list);
    json_decref(checkpoint);
    return rc;
}

/* ---- models ---- */

/* What is wrong with the tokenizer, or with an element type, becomes the problem. */
static int add_gguf(json_t *report, const NamedFile *file) {
    Tokenizer *tokenizer = NULL;
    TRY(add_config(report, gguf_config(file)));
    if (gguf_tokenizer(&tokenizer, file) != OK) TRY(set_problem(report));
    if (tokenizer) TRY(set_tokenizer(report, tokenizer));
    if (gguf_check_readable(file) != OK) TRY(set_problem(report));
    return OK;
}

static int add_model(json_t *report, const char *path) {
    NamedFile *file;
    TRY(named_open(&file, path));
    int rc = add_arrays(report, file);
    if (rc == OK && strcmp(named_format(file), "gguf") == 0) rc = add_gguf(report, file);
    named_close(file);
    TRY(rc);
    if (directory_exists(path)) TRY(add_side_files(report, path));
    return OK;
}

/* llama2.c's .bin: a model, or its tokenizer, which has no magic number either. */
static int add_bin(json_t *report, const char *path) {
    NamedFile *file;
    HfConfig config;
    int rc = llama2c_open(&file, &config, path);
    if (rc == OK) {
        rc = add_arrays(report, file);
        named_close(file);
        TRY(rc);
        TRY(add_config(report, &config));
        return OK;
    }
    char *reason = strdup(error_text());
    rc = add_tokenizer(report, path);
    if (rc == OK) rc = set(report, "kind", json_string("tokenizer"));
    if (rc != OK && reason) rc = error_set(ERR_REFUSED, __FILE__, __LINE__, "%s; nor its tokenizer", reason);
    free(reason);
    return rc;
}

static int add_directory(json_t *report, const char *path) {
    if (has(path, MANIFEST_NAME)) {
        TRY(add_checkpoint(report, path));
    } else if (has(path, CHECKPOINTS)) {
        TRY(add_run(report, path));
    } else if (has(path, "adapter_config.json")) {
        TRY(add_peft(report, path));
    } else if (!has_tokenizer(path) || has(path, "config.json") || has(path, "model.safetensors")) {
        TRY(add_model(report, path));
    } else {
        TRY(set(report, "kind", json_string("tokenizer")));
        TRY(add_tokenizer(report, path));
    }
    return OK;
}

static int add_file(json_t *report, const char *path) {
    if (text_ends_with(path, ".bin")) {
        TRY(add_bin(report, path));
    } else if (text_ends_with(path, "config.json") && strcmp(path_base(path), "generation_config.json") != 0) {
        HfConfig config;
        TRY(set(report, "kind", json_string("config")));
        TRY(hf_config_read(&config, path));
        TRY(add_config(report, &config));
    } else if (text_ends_with(path, ".model") || strcmp(path_base(path), "tokenizer.json") == 0 ||
               (strcmp(path, "bytes") == 0 && !file_exists(path))) {
        TRY(set(report, "kind", json_string("tokenizer")));
        TRY(add_tokenizer(report, path));
    } else {
        TRY(add_model(report, path));
    }
    return OK;
}

/* RUN/best stands for the folder it names. */
static int add_best(json_t *report, const char *path) {
    char *folder;
    TRY(checkpoint_resolve(&folder, path));
    int rc = set(report, "path", json_string(folder));
    if (rc == OK) rc = add_checkpoint(report, folder);
    free(folder);
    TRY(rc);
    return OK;
}

int inspect_path(json_t **report, const char *path) {
    *report = json_pack("{s:s, s:s}", "path", path, "kind", "model");
    if (!*report) FAIL(ERR_FAILED, "%s: out of memory, or not UTF-8", path);
    int rc = directory_exists(path)                      ? add_directory(*report, path)
             : text_ends_with(path, "/" CHECKPOINT_BEST) ? add_best(*report, path)
                                                         : add_file(*report, path);
    if (rc != OK) {
        json_decref(*report);
        *report = NULL;
    }
    TRY(rc);
    return OK;
}
