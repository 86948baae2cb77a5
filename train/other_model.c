/* See other_model.h. */
#include "train/other_model.h"

#include "model/core/error.h"
#include "model/storage.h"

int other_model_check(const Run *run, OptionId option, const ModelFile *file) {
    const Config *config = run->config;
    int wanted = tokenizer_vocab_size(run->tokenizer), id = tokenizer_first_difference(file->tokenizer, run->tokenizer);
    int rows = file->model->shape.vocab_size;
    if (rows < wanted || id >= 0)
        return config_fail(config, option,
                           "%s has other tokens than the policy (%d, here %d; the first that differs is %d): what it "
                           "says of them cannot be compared",
                           file->path, tokenizer_vocab_size(file->tokenizer), wanted, id >= 0 ? id : rows);
    if (file->model->rotary.n_positions < config->train_context)
        return config_fail(config, option, "%s was made for at most %d tokens", file->path,
                           file->model->rotary.n_positions);
    return OK;
}

/* Of a model that keeps nothing but packings, the embedding's values too. */
static uint64_t resident_bytes(const ModelFile *file, Frozen frozen) {
    const Llama *model = file->model;
    bool mapped = frozen == FROZEN_16BIT && model_file_is_mapped(file->arrays);
    uint64_t values = model->value_bytes;
    if (model->packed_only && model->packing_bytes > 0)
        values = weight_value_bytes(&model->embedding) + weight_value_bytes(&model->norm);
    return values + model->packing_bytes + (mapped ? 0 : model->frozen_bytes) +
           llama_table_bytes(&model->shape, model->rotary.n_positions) + (file->lora ? lora_bytes(file->lora) : 0);
}

int other_model_bytes(uint64_t *bytes, MemoryPlan *plan, const char *path, ModelFileOptions options,
                      int (*pass)(uint64_t *bytes, Llama *model, void *context), void *context) {
    ModelFile file;
    uint64_t more = 0;
    *bytes = 0;
    options.keep_open = true;
    options.need_tokenizer = false;
    if (model_file_open(&file, path, options) != OK) {
        text_printf(&plan->notes, "%s is not counted: %s\n", path, error_text());
        error_clear();
        return OK;
    }
    int rc = pass ? pass(&more, file.model, context) : OK;
    *bytes = resident_bytes(&file, options.frozen) + more;
    model_file_close(&file);
    return rc;
}
