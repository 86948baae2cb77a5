/* A checkpoint's model.h5 holds, besides the parameters: the texts config.json, generation_config.json, config.yaml,
 * chat_template.jinja and tokenizer (the name of its file), and the tokenizer's own bytes as the uint8 array
 * "cria.tokenizer". A Hugging Face directory has the same as files. */
#include "train/files/model_file.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "model/formats/gguf.h"
#include "model/formats/json_read.h"
#include "model/formats/llama2c.h"
#include "model/kernels/kernels.h"
#include "model/lora_peft.h"
#include "model/shape_hf.h"
#include "train/console/progress.h"
#include "train/files/adapter_file.h"

static const char tokenizer_array_name[] = "cria.tokenizer", tokenizer_name_key[] = "tokenizer";
static const char config_key[] = "config.json", generation_key[] = "generation_config.json";

enum { MAX_TEMPLATE = 16 << 20 }; /* bytes of the files a chat template may be in */

/* ---- opening ---- */

int model_file_tokenizer(Tokenizer **tokenizer, bool *found, const NamedFile *named) {
    const NamedArray *stored = named_find(named, tokenizer_array_name);
    const char *name = named_text(named, tokenizer_name_key);
    *found = stored && name;
    if (!*found) return OK;
    size_t size = named_bytes(stored);
    char *bytes = malloc(size + 1);
    if (!bytes) FAIL(ERR_FAILED, "out of memory");
    int rc = named_read(named, stored, 0, size, bytes);
    if (rc == OK) rc = tokenizer_load_memory(tokenizer, name, bytes, size);
    free(bytes);
    return rc == OK ? OK : error_context(rc, "%s: its tokenizer", named_path(named));
}

int model_file_load_tokenizer(Tokenizer **tokenizer, const char *path) {
    NamedFile *named;
    if (!file_exists(path) || !gguf_recognises(path)) return tokenizer_load(tokenizer, path);
    TRY(gguf_open(&named, path));
    int rc = gguf_tokenizer(tokenizer, named);
    named_close(named);
    TRY(rc);
    if (!*tokenizer) FAIL(ERR_REFUSED, "%s: there is no tokenizer in it", path);
    return OK;
}

static int read_tokenizer(ModelFile *file, const NamedFile *named, const char *path, const ModelFileOptions *options) {
    bool found;
    if (options->tokenizer) return model_file_load_tokenizer(&file->tokenizer, options->tokenizer);
    if (strcmp(named_format(named), "gguf") == 0)
        TRY(gguf_tokenizer(&file->tokenizer, named));
    else
        TRY(model_file_tokenizer(&file->tokenizer, &found, named));
    if (file->tokenizer) return OK;
    found = directory_exists(path) && tokenizer_load(&file->tokenizer, path) == OK;
    if (!found && options->need_tokenizer)
        FAIL(ERR_USAGE,
             "%s: there is no tokenizer in it%s%s; give one with --tokenizer FILE, or in a config tokenizer.path", path,
             directory_exists(path) ? ": " : "", directory_exists(path) ? error_text() : "");
    error_clear();
    return OK;
}

/* transformers takes them from config.json where generation_config.json does not say. */
static void complete_generation(HfGeneration *generation, const HfConfig *config) {
    if (generation->bos_token_id < 0) generation->bos_token_id = config->bos_token_id;
    if (generation->n_eos > 0) return;
    generation->n_eos = config->n_eos;
    memcpy(generation->eos_token_ids, config->eos_token_ids, sizeof generation->eos_token_ids);
}

/* llama2.c's stories begin with BOS and have no EOS: run.c stops where the next one would begin. */
static void llama2c_generation(HfGeneration *generation, const HfConfig *config) {
    complete_generation(generation, config);
    if (generation->n_eos < HF_MAX_EOS) generation->eos_token_ids[generation->n_eos++] = config->bos_token_id;
}

static int read_config(ModelFile *file, const NamedFile *named, const char *path) {
    const char *stored = named_text(named, config_key), *generation = named_text(named, generation_key);
    file->generation = hf_generation_default();
    if (strcmp(named_format(named), "gguf") == 0) {
        file->config = *gguf_config(named);
        complete_generation(&file->generation, &file->config);
        return gguf_check_readable(named);
    }
    if (stored) {
        TRY(hf_config_parse(&file->config, stored, strlen(stored), path));
        if (generation) TRY(hf_generation_parse(&file->generation, generation, strlen(generation), path));
        complete_generation(&file->generation, &file->config);
        return OK;
    }
    if (!directory_exists(path))
        FAIL(ERR_REFUSED, "%s: there is no config.json with it; give the directory that holds both", path);
    TRY(hf_config_read(&file->config, path));
    TRY(hf_generation_read(&file->generation, path));
    complete_generation(&file->generation, &file->config);
    return OK;
}

/* One kind of model does not do the other's work; what is kept of the config is what the model will be. */
static int settle_head(ModelFile *file, ModelHead wanted, const HfLabels *labels, const char *path) {
    bool scores = file->config.labels.n > 0;
    if (wanted == HEAD_TOKENS && scores)
        FAIL(
            ERR_REFUSED,
            "%s: a reward model (LlamaForSequenceClassification) gives scores, not texts; a language model is expected",
            path);
    if (wanted == HEAD_SCORE && !scores)
        FAIL(ERR_REFUSED,
             "%s: a language model has no score head; a reward model is expected ('cria reward' trains one)", path);
    file->own_scores = file->config.labels.n;
    file->new_head = wanted == HEAD_NEW || (wanted == HEAD_TO_SCORE && !scores);
    if (file->new_head) file->config.labels = labels ? *labels : hf_labels_unnamed(1);
    return OK;
}

/* The chat template in tokenizer_config.json, where older directories have it: a text, or a list of named ones, of
 * which 'default' is meant. */
static int template_in_config(ModelFile *file, const char *path) {
    char *bytes;
    size_t size, i;
    json_t *root, *each;
    TRY(file_read(&bytes, &size, path, MAX_TEMPLATE));
    int rc = json_read_object(&root, bytes, size, path);
    free(bytes);
    TRY(rc);
    const json_t *value = json_object_get(root, "chat_template");
    const char *text = json_string_value(value);
    json_array_foreach(value, i, each) {
        const char *name = json_string_value(json_object_get(each, "name"));
        if (name && strcmp(name, "default") == 0) text = json_string_value(json_object_get(each, "template"));
    }
    if (text) file->chat_template = strdup(text);
    bool copied = !text || file->chat_template;
    json_decref(root);
    if (!copied) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

static int read_template(ModelFile *file, const NamedFile *named, const char *path) {
    int rc = OK;
    size_t size;
    const char *stored = named_text(named, MODEL_FILE_TEMPLATE);
    if (!stored) stored = named_text(named, GGUF_TEMPLATE);
    if (stored) {
        file->chat_template = strdup(stored);
        if (!file->chat_template) FAIL(ERR_FAILED, "out of memory");
    }
    if (stored || !directory_exists(path)) return OK;
    char *jinja = path_join(path, MODEL_FILE_TEMPLATE), *config = path_join(path, "tokenizer_config.json");
    if (!jinja || !config) FAIL_TO(done, ERR_FAILED, "out of memory");
    if (file_exists(jinja))
        TRY_TO(done, file_read(&file->chat_template, &size, jinja, MAX_TEMPLATE));
    else if (file_exists(config))
        TRY_TO(done, template_in_config(file, config));
done:
    free(jinja);
    free(config);
    return rc;
}

/* Before any memory is asked for, so that it is never more than the file's own parameters need. */
static int check_model(const LlamaShape *shape, LlamaPart part, const NamedFile *named) {
    Llama *names;
    TRY(llama_new(&names, shape, (LlamaOptions){.names_only = true}));
    int rc = llama_check_part(names, part, named);
    llama_free(names);
    return rc;
}

/* Whether the model was made in 16 bits: its run's config, its config.json or its parameters say so. */
static bool made_in_16_bits(const ModelFile *file, const NamedFile *named) {
    const char *yaml = named_text(named, MODEL_FILE_YAML);
    if (yaml) return text_starts_with(yaml, "precision: bf16\n") || strstr(yaml, "\nprecision: bf16\n");
    if (file->config.dtype == DTYPE_BF16 || file->config.dtype == DTYPE_F16) return true;
    const NamedArray *embedding = named_find(named, "model.embed_tokens.weight");
    return embedding && dtype_size(embedding->dtype) == sizeof(bf16);
}

static Dtype resolve_precision(const ModelFile *file, const NamedFile *named, const ModelFileOptions *options) {
    if (options->inference == INFERENCE_NOT) return options->precision;
    if (options->inference != INFERENCE_AUTO) return options->inference == INFERENCE_BF16 ? DTYPE_BF16 : DTYPE_F32;
    if (options->frozen != FROZEN_NONE) return DTYPE_BF16;
    return kernels_have_bf16() && made_in_16_bits(file, named) ? DTYPE_BF16 : DTYPE_F32;
}

/* Of all that the file has, what is left out included. */
static int take_fingerprint(ModelFile *file, HfConfig stored, const NamedFile *named) {
    Llama *names;
    if (file->new_head) stored.labels = hf_labels_unnamed(file->own_scores);
    LlamaShape shape = llama_shape_from_hf(&stored);
    TRY(llama_new(&names, &shape, (LlamaOptions){.names_only = true}));
    int rc = base_fingerprint(&file->fingerprint, names, named);
    llama_free(names);
    return rc;
}

/* The model's config has the vocabulary of the adapter, or is to have more tokens than the file; *part is what the file
 * gives of it. Merged with an adapter of its own, a tied matrix becomes two. */
static int settle_vocabulary(ModelFile *file, LlamaPart *part, const NamedFile *named,
                             const ModelFileOptions *options) {
    HfConfig *config = &file->config;
    LoraOptions adapter = {0};
    LoraVocabulary *own = &file->vocabulary;
    *part = (LlamaPart){.no_head = file->new_head};
    file->n_rows = config->vocab_size;
    if (file->adapter.arrays) {
        TRY(adapter_compare_base(&file->adapter, named));
        TRY(lora_vocabulary(own, &file->adapter));
        TRY(lora_options_from_peft(&adapter, &file->adapter));
    }
    bool whole = own->embedding && (own->head || config->labels.n > 0 || (own->tied && config->tie_word_embeddings));
    if (own->rows > 0 && own->rows != config->vocab_size && !whole)
        FAIL(ERR_REFUSED, "%s: it has %d tokens in place of the base's %d, and not in both embedding and head",
             named_path(file->adapter.arrays), own->rows, config->vocab_size);
    if (own->rows > 0) {
        part->no_embedding = own->embedding != NULL;
        part->no_head = part->no_head || own->head != NULL;
        part->tied = config->tie_word_embeddings && !own->tied && config->labels.n == 0;
        config->vocab_size = own->rows;
    }
    bool merged = options->keep_open || options->training;
    if (merged && lora_unties(&adapter)) part->tied = config->tie_word_embeddings && config->labels.n == 0;
    if (part->tied) config->tie_word_embeddings = false;
    if (options->vocabulary > config->vocab_size) {
        part->rows = config->vocab_size;
        config->vocab_size = options->vocabulary;
    }
    return OK;
}

static void show_loading(void *context, uint64_t done, uint64_t total) {
    enum { MEGABYTE = 1000000 };
    Progress *progress = context;
    progress->total = (int64_t)(total / MEGABYTE);
    progress_update(progress, (int64_t)(done / MEGABYTE), "");
}

/* With a bar, where it takes a moment. */
static int load_parameters(Llama *model, LlamaPart part, const NamedFile *named) {
    Progress progress;
    progress_begin(&progress, "reading the model", "MB", 0, 0);
    int rc = llama_load_part(model, part, named, (LoadWatch){show_loading, &progress});
    progress_end(&progress);
    return rc;
}

static int read_model(ModelFile *file, LlamaPart part, const NamedFile *named, const ModelFileOptions *options) {
    LlamaShape shape = llama_shape_from_hf(&file->config);
    LlamaOptions how = {.training = options->training,
                        .train_head = options->train_head,
                        .train_vocabulary = options->train_vocabulary,
                        .precision = resolve_precision(file, named, options),
                        .frozen = options->frozen,
                        .quantised_head = options->inference != INFERENCE_NOT,
                        .unpacked = options->unpacked,
                        .packed_only = options->inference != INFERENCE_NOT && !file->adapter.arrays,
                        .n_positions = options->n_positions,
                        .names_only = options->keep_open};
    TRY(check_model(&shape, part, named));
    TRY(llama_new(&file->model, &shape, how));
    if (!options->keep_open) TRY(load_parameters(file->model, part, named));
    int vocabulary = file->tokenizer ? tokenizer_vocab_size(file->tokenizer) : 0;
    if (vocabulary > shape.vocab_size)
        log_warning("%s: its embedding has %d rows and the tokenizer %d tokens; the last %d cannot be used", file->path,
                    shape.vocab_size, vocabulary, vocabulary - shape.vocab_size);
    return OK;
}

static int read_parameters(ModelFile *file, const NamedFile *named, const ModelFileOptions *options) {
    LlamaPart part;
    HfConfig stored = file->config;
    TRY(settle_vocabulary(file, &part, named, options));
    if (options->shape_only) return OK;
    int rc = read_model(file, part, named, options);
    if (rc == OK && options->fingerprint) rc = take_fingerprint(file, stored, named);
    return rc == OK ? OK : error_context(rc, "%s", file->path);
}

/* Takes `named`, the opened PATH. */
static int open_whole(ModelFile *file, NamedFile *named, const char *path, const ModelFileOptions *options) {
    int rc = OK;
    if (strcmp(named_format(named), "llama2.c") == 0) {
        named_close(named);
        named = NULL;
        TRY_TO(done, llama2c_open(&named, &file->config, path));
        llama2c_generation(&file->generation, &file->config);
    } else {
        TRY_TO(done, read_config(file, named, path));
    }
    TRY_TO(done, settle_head(file, options->head, options->labels, path));
    TRY_TO(done, read_tokenizer(file, named, path, options));
    TRY_TO(done, read_template(file, named, path));
    TRY_TO(done, read_parameters(file, named, options));
    if (options->keep_open || options->frozen) {
        file->arrays = named;
        named = NULL;
    }
done:
    if (named) named_close(named);
    return rc;
}

/* ---- adapters ---- */

/* A checkpoint's config, tokenizer and chat template are the adapter's; PEFT's folder may have a tokenizer. */
static int read_own(ModelFile *file, const PeftAdapter *adapter, const char *path, const ModelFileOptions *options) {
    ModelFile own = {.path = file->path, .generation = file->generation};
    bool checkpoint = adapter_in_checkpoint(adapter->arrays);
    ModelFileOptions optional = {.tokenizer = options->tokenizer};
    int rc = read_tokenizer(&own, adapter->arrays, path, &optional);
    if (rc == OK) rc = read_template(&own, adapter->arrays, path);
    if (rc == OK && checkpoint) rc = read_config(&own, adapter->arrays, path);
    if (own.tokenizer) {
        tokenizer_free(file->tokenizer);
        file->tokenizer = own.tokenizer;
    }
    if (own.chat_template) {
        free(file->chat_template);
        file->chat_template = own.chat_template;
    }
    TRY(rc);
    if (!checkpoint) return OK;
    file->generation = own.generation;
    file->config.bos_token_id = own.config.bos_token_id;
    file->config.n_eos = own.config.n_eos;
    memcpy(file->config.eos_token_ids, own.config.eos_token_ids, sizeof own.config.eos_token_ids);
    return OK;
}

static int read_values(void *context, int first, int n, float *rows) {
    const Weight *weight = context;
    size_t cols = (size_t)weight->cols;
    memcpy(rows, weight->value + (size_t)first * cols, (size_t)n * cols * sizeof *rows);
    return OK;
}

/* Rows of every matrix that has an adapter. */
static int merge_into_values(const Lora *lora) {
    const Llama *model = lora->model;
    TRY(lora_measure_embedding(lora, read_values, &lora->model->embedding));
    for (int i = 0; i < model->n_weights; i++)
        for (int v = 0; v < model->weights[i]->n_views; v++) {
            const WeightView *view = &model->weights[i]->views[v];
            float *rows = model->weights[i]->value + (size_t)view->first_row * (size_t)model->weights[i]->cols;
            if (lora_adapts(lora, view->name)) lora_merge(lora, view->name, 0, view->rows, rows);
        }
    return OK;
}

static int attach(ModelFile *file, const ModelFileOptions *options) {
    if (options->shape_only) return OK;
    TRY(adapter_take_saved(&file->adapter, file->model, ADAPTER_ALL_ROWS));
    if (file->adapter.config.saved.score) file->new_head = false;
    TRY(adapter_check_base(file->adapter.arrays, file->path, file->fingerprint));
    Dtype precision = options->inference == INFERENCE_NOT ? options->precision : llama_inference_dtype(file->model);
    TRY(lora_from_peft(&file->lora, file->model, &file->adapter, (LlamaOptions){.precision = precision}));
    if (!options->training) return OK;
    TRY(merge_into_values(file->lora));
    lora_free(file->lora);
    file->lora = NULL;
    llama_pack(file->model);
    return OK;
}

/* file->adapter is the opened PATH. */
static int open_with_base(ModelFile *file, const char *path, const ModelFileOptions *options) {
    char *base;
    NamedFile *named;
    HfLabels labels;
    ModelFileOptions how = *options;
    how.need_tokenizer = false;
    how.fingerprint = true;
    if (options->whole)
        FAIL(ERR_REFUSED,
             "%s: it is an adapter, and another is trained on a whole model: 'cria merge %s TO' makes one (to train "
             "this "
             "one further give its base, and lora.init=%s)",
             path, path, path);
    if (file->adapter.config.saved.score && options->head == HEAD_TOKENS)
        FAIL(ERR_REFUSED, "%s: a reward model's adapter gives scores, not texts; a language model is expected", path);
    if (file->adapter.config.saved.score) {
        TRY(adapter_labels(&labels, &file->adapter));
        how.head = HEAD_NEW;
        how.labels = &labels;
    }
    TRY(adapter_base_path(&base, &file->adapter, options->base));
    int rc = OK;
    if (adapter_recognises(base))
        FAIL_TO(done, ERR_REFUSED, "%s: its base %s is an adapter too; 'cria merge' makes that a whole model", path,
                base);
    TRY_TO(done, named_open(&named, base));
    free(file->path);
    file->path = strdup(base);
    TRY_TO(done, open_whole(file, named, base, &how));
    TRY_TO(done, read_own(file, &file->adapter, path, options));
    if (options->need_tokenizer && !file->tokenizer)
        FAIL_TO(done, ERR_USAGE,
                "%s: neither it nor its base has a tokenizer; give one with --tokenizer FILE, or in a config "
                "tokenizer.path",
                path);
    TRY_TO(done, attach(file, options));
done:
    free(base);
    return rc;
}

int model_file_open(ModelFile *file, const char *path, ModelFileOptions options) {
    int rc = OK;
    NamedFile *named = NULL;
    *file = (ModelFile){.generation = hf_generation_default()};
    file->path = strdup(path);
    if (!file->path) FAIL(ERR_FAILED, "out of memory");
    bool of_peft = peft_is_adapter(path), of_checkpoint = false;
    if (of_peft) {
        TRY_TO(failed, peft_open(&file->adapter, path));
    } else {
        TRY_TO(failed, named_open(&named, path));
        of_checkpoint = adapter_in_checkpoint(named);
    }
    if (of_checkpoint) TRY_TO(failed, adapter_of_checkpoint(&file->adapter, named));
    if (of_peft || of_checkpoint)
        TRY_TO(failed, open_with_base(file, path, &options));
    else
        TRY_TO(failed, open_whole(file, named, path, &options));
    return OK;
failed:
    model_file_close(file);
    return rc;
}

void model_file_close(ModelFile *file) {
    lora_free(file->lora);
    peft_close(&file->adapter);
    llama_free(file->model);
    if (file->arrays) named_close(file->arrays);
    tokenizer_free(file->tokenizer);
    free(file->chat_template);
    free(file->path);
    *file = (ModelFile){0};
}

bool model_file_is_mapped(const NamedFile *file) {
    for (size_t i = 0; i < named_count(file); i++) {
        const NamedArray *array = named_at(file, i);
        bool narrow = array->dtype == DTYPE_BF16 || array->dtype == DTYPE_F16;
        if (array->n_dims == 2 && !(narrow && array->data)) return false;
    }
    return true;
}

/* ---- describing ---- */

HfConfig model_file_config(const LlamaShape *shape, const Tokenizer *tokenizer) {
    HfConfig config = llama_shape_to_hf(shape);
    if (!tokenizer) return config;
    config.bos_token_id = config.pad_token_id = tokenizer_bos(tokenizer);
    config.n_eos = tokenizer_eos(tokenizer) >= 0 ? 1 : 0;
    config.eos_token_ids[0] = tokenizer_eos(tokenizer);
    return config;
}

/* Moves malloc'd text into the arena. */
static int keep(Arena *arena, char *text, NamedText *out, const char *key) {
    *out = (NamedText){key, text ? arena_strdup(arena, text) : NULL};
    free(text);
    if (!out->value) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

int model_file_describe(const HfConfig *config, const Tokenizer *tokenizer, const HfGeneration *generation,
                        const char *chat_template, const char *resolved, Arena *arena, NamedText **texts,
                        size_t *n_texts, NamedArray *tokenizer_array) {
    enum { MOST = 5 };
    size_t n = 0, size;
    char *json = NULL;
    ARENA_TRY(*texts, arena, MOST);
    TRY(hf_config_format(config, &json));
    TRY(keep(arena, json, &(*texts)[n++], config_key));
    TRY(hf_generation_format(generation, &json));
    TRY(keep(arena, json, &(*texts)[n++], generation_key));
    if (chat_template) (*texts)[n++] = (NamedText){MODEL_FILE_TEMPLATE, chat_template};
    if (resolved) (*texts)[n++] = (NamedText){MODEL_FILE_YAML, resolved};
    if (tokenizer) {
        (*texts)[n++] = (NamedText){tokenizer_name_key, tokenizer_source_name(tokenizer)};
        const void *bytes = tokenizer_source(tokenizer, &size);
        *tokenizer_array = (NamedArray){
            .name = tokenizer_array_name, .dtype = DTYPE_U8, .n_dims = 1, .dims = {(int64_t)size}, .data = bytes};
    }
    *n_texts = n;
    return OK;
}
