/* See model_write.h. */
#include "train/files/model_write.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/formats/checkpoint.h"
#include "model/formats/json_read.h"
#include "model/formats/safetensors.h"
#include "train/files/adapter_file.h"

static int write_template(const char *directory, const char *text) {
    char *path = path_join(directory, MODEL_FILE_TEMPLATE);
    if (!path) FAIL(ERR_FAILED, "out of memory");
    int rc = file_write_atomic(path, text, strlen(text));
    free(path);
    return rc;
}

/* Programs that do not read chat_template.jinja look for the template in tokenizer_config.json. */
static int add_to_config(const char *directory, const char *text) {
    int rc = OK;
    char *path = path_join(directory, "tokenizer_config.json"), *bytes = NULL, *dumped = NULL;
    json_t *root = NULL;
    size_t size;
    if (!path) FAIL(ERR_FAILED, "out of memory");
    if (!file_exists(path)) goto done;
    TRY_TO(done, file_read(&bytes, &size, path, 0));
    TRY_TO(done, json_read_object(&root, bytes, size, path));
    json_object_set_new(root, "chat_template", json_string(text));
    dumped = json_dumps(root, JSON_INDENT(2));
    if (!dumped) FAIL_TO(done, ERR_FAILED, "out of memory");
    TRY_TO(done, file_write_atomic(path, dumped, strlen(dumped)));
done:
    json_decref(root);
    free(bytes);
    free(dumped);
    free(path);
    return rc;
}

/* config.json, generation_config.json, the tokenizer's files and chat template, and the arrays in one file or several.
 */
int model_write_hugging_face(ModelCopy *copy, const char *directory, const void *context) {
    const uint64_t *shard_bytes = context;
    TRY(hf_config_write(&copy->file.config, directory));
    TRY(hf_generation_write(&copy->file.generation, directory));
    if (copy->file.tokenizer)
        TRY(tokenizer_export(copy->file.tokenizer, directory));
    else
        log_warning("%s has no tokenizer, so the export has none; --tokenizer FILE gives it one", copy->file.path);
    if (copy->file.chat_template) {
        TRY(write_template(directory, copy->file.chat_template));
        TRY(add_to_config(directory, copy->file.chat_template));
    }
    return safetensors_write_directory(directory, copy->sources, copy->n, *shard_bytes);
}

/* RUN/checkpoints/step-0; `sources` has room for one more. */
static int write_step(const char *run, NamedSource *sources, size_t n, NamedArray tokenizer, const NamedText *texts,
                      size_t n_texts) {
    CheckpointWriter *writer;
    if (tokenizer.name) sources[n++] = (NamedSource){.array = tokenizer};
    TRY(checkpoint_begin(&writer, run, 0));
    int rc = checkpoint_add_arrays(writer, CHECKPOINT_MODEL, sources, n, texts, n_texts);
    if (rc != OK) {
        checkpoint_abandon(writer);
        return rc;
    }
    return checkpoint_commit(writer);
}

int model_write_checkpoint(ModelCopy *copy, const char *run, const void *context) {
    (void)context;
    NamedText *texts;
    NamedArray tokenizer = {0};
    size_t n_texts;
    const ModelFile *file = &copy->file;
    const NamedFile *origin = file->adapter.arrays ? file->adapter.arrays : file->arrays;
    const char *resolved = named_text(origin, MODEL_FILE_YAML); /* of the run that made it */
    TRY(model_file_describe(&file->config, file->tokenizer, &file->generation, file->chat_template, resolved,
                            &copy->arena, &texts, &n_texts, &tokenizer));
    return write_step(run, copy->sources, copy->n, tokenizer, texts, n_texts);
}

int model_write_adapter(ModelCopy *copy, const char *run, const void *context) {
    (void)context;
    NamedText *texts, *all;
    NamedArray tokenizer = {0};
    size_t n_texts;
    const ModelFile *file = &copy->file;
    const char *resolved = named_text(file->adapter.arrays, MODEL_FILE_YAML);
    TRY(model_file_describe(&file->config, file->tokenizer, &file->generation, file->chat_template, resolved,
                            &copy->arena, &texts, &n_texts, &tokenizer));
    ARENA_TRY(all, &copy->arena, n_texts + ADAPTER_TEXTS);
    memcpy(all, texts, n_texts * sizeof *all);
    TRY(adapter_describe(all + n_texts, &file->lora->options, file->adapter.config.saved, file->path, run,
                         file->fingerprint, &copy->arena));
    return write_step(run, copy->sources, copy->n, tokenizer, all, n_texts + ADAPTER_TEXTS);
}
