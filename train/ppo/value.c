/* See value.h. */
#include "train/ppo/value.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/formats/checkpoint.h"
#include "train/answers/reward_model.h"
#include "train/files/adapter_file.h"
#include "train/other_model.h"
#include "train/run_adapter.h"
#include "train/setup.h"

#define VALUE_NAME "value"
#define VALUE_FILE VALUE_NAME ".h5" /* in a checkpoint, as train/run_files.c writes a companion */

void value_model_free(ValueModel *value) {
    optimizer_free(value->companion.optimizer);
    lora_free(value->lora);
    llama_free(value->model);
    model_file_close(&value->body); /* what the model borrows from */
    arena_free(&value->arena);
    *value = (ValueModel){.model = NULL};
}

/* ---- what it begins as ---- */

typedef struct {
    const char *path; /* NULL: the policy */
    OptionId option;  /* that names it */
    bool wanted;      /* by ppo.value_model; else the policy serves where it does not fit */
} Source;

static Source source_of(const Config *config) {
    if (strcmp(config->ppo_value_model, "from-policy") == 0) return (Source){.path = NULL};
    if (*config->ppo_value_model) return (Source){config->ppo_value_model, OPTION_ppo_value_model, true};
    if (config->ppo_reward == REWARD_MODEL && *config->ppo_model)
        return (Source){config->ppo_model, OPTION_ppo_model, false};
    return (Source){.path = NULL};
}

/* Of a run of PPO its value model is meant. malloc'd. */
static int resolve(char **path, const char *given) {
    char *folder = NULL, *own = NULL;
    if (checkpoint_resolve(&folder, given) == OK) own = path_join(folder, VALUE_FILE);
    error_clear();
    free(folder);
    bool found = own && file_exists(own);
    *path = found ? own : strdup(given);
    if (!found) free(own);
    if (!*path) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

/* ---- what it is ---- */

int value_model_body(char **path, const Config *config) {
    Source source = source_of(config);
    *path = NULL;
    if (config->lora_rank == 0 || !source.path) return OK;
    TRY(resolve(path, source.path));
    if (!adapter_recognises(*path)) return OK;
    free(*path);
    *path = NULL;
    return OK;
}

ModelFileOptions value_body_options(const Config *config) {
    return (ModelFileOptions){.head = HEAD_TO_SCORE,
                              .precision = setup_precision(config),
                              .frozen = setup_frozen(config),
                              .unpacked = !config->train_packed_weights,
                              .need_tokenizer = true,
                              .fingerprint = true,
                              .whole = true};
}

/* It must read the policy's tokens. */
static int open_body(ModelFile *body, const Run *run, const char *path, OptionId option) {
    TRY(model_file_open(body, path, value_body_options(run->config)));
    int rc = other_model_check(run, option, body);
    if (rc != OK) model_file_close(body);
    return rc;
}

/* What cannot be opened is the start's to tell. */
static int take_body(ValueModel *value, const Run *run) {
    char *path;
    Source source = source_of(run->config);
    TRY(value_model_body(&path, run->config));
    if (path && open_body(&value->body, run, path, source.option) != OK) error_clear();
    free(path);
    return OK;
}

static int make_model(ValueModel *value, const Run *run) {
    LlamaOptions how = setup_llama(run->config, run->model->rotary.n_positions);
    LlamaShape shape = run->model->shape;
    LoraOptions options;
    bool adapted;
    TRY(setup_value_lora(&options, &adapted, run->config));
    how.training = true;
    if (adapted) {
        TRY(take_body(value, run));
        TRY(llama_new_on_body(&value->model, value->body.model ? value->body.model : run->model, how));
        return lora_new(&value->lora, value->model, options,
                        (LlamaOptions){.training = true, .precision = setup_precision(run->config)});
    }
    shape.n_scores = 1;
    shape.tied = false;
    return llama_new(&value->model, &shape, how);
}

static int make_companion(ValueModel *value, const Run *run) {
    Companion *companion = &value->companion;
    double rate = run->config->ppo_value_lr;
    *companion = (Companion){.name = VALUE_NAME,
                             .rate = rate > 0 ? rate / run->config->optim_lr : 1,
                             .base_path = value->body.path,
                             .base_fingerprint = value->body.fingerprint};
    TRY(trained_list(&companion->trained, value->model, value->lora, &value->arena));
    return setup_optimizer(&companion->optimizer, &companion->trained, run->config, &value->arena);
}

int value_model_new(ValueModel *value, const Run *run) {
    TRY(make_model(value, run));
    TRY(make_companion(value, run));
    return value_model_start(value, run);
}

/* ---- how it begins ---- */

static void no_head(const ValueModel *value) {
    Weight *head = &value->model->head;
    memset(head->value, 0, weight_elements(head) * sizeof *head->value);
}

/* A score head of zeros: all values are 0 at first. */
static int start_as_policy(ValueModel *value, const Run *run) {
    no_head(value);
    if (value->lora) return lora_init(value->lora, (uint64_t)run->config->seed);
    llama_copy_body(value->model, run->model);
    return OK;
}

/* Whether one's body computes what the other's does with the same numbers. */
static bool same_body(const LlamaShape *a, const LlamaShape *b) {
    bool sizes = a->dim == b->dim && a->n_layers == b->n_layers && a->n_heads == b->n_heads &&
                 a->n_kv_heads == b->n_kv_heads && a->head_dim == b->head_dim && a->ffn_dim == b->ffn_dim &&
                 a->vocab_size == b->vocab_size;
    return sizes && fabsf(a->rope_theta - b->rope_theta) <= 0 && fabsf(a->norm_eps - b->norm_eps) <= 0 &&
           fabsf(a->rope_scaling.factor - b->rope_scaling.factor) <= 0;
}

/* It must read the policy's tokens, and be of its shape. */
static int check_kind(const ValueModel *value, const Run *run, const Source *source, const ModelFile *file) {
    const LlamaShape *wanted = &value->model->shape, *found = &file->model->shape;
    if (!same_body(found, wanted))
        return config_fail(run->config, source->option,
                           "it is of another shape than the policy (%d layers of %d, %d rows of embedding, rope_theta "
                           "%g; the policy has %d of %d, %d, %g), which the value model must have",
                           found->n_layers, found->dim, found->vocab_size, (double)found->rope_theta, wanted->n_layers,
                           wanted->dim, wanted->vocab_size, (double)wanted->rope_theta);
    return other_model_check(run, source->option, file);
}

/* The row of its head that ppo.head names, where it has several; zeros where it has none. */
static int start_head(const ValueModel *value, const Run *run, const ModelFile *file) {
    const Weight *head = &value->model->head, *from = &file->model->head;
    const HfLabels *labels = &file->config.labels;
    int row;
    size_t n = (size_t)head->cols;
    TRY(reward_row(&row, labels, labels->n > 1 ? run->config->ppo_head : "", option_table[OPTION_ppo_head].key,
                   file->path));
    memcpy(head->value, from->value + (size_t)row * n, n * sizeof *head->value);
    return OK;
}

static int start_as_model(ValueModel *value, const Run *run, const Source *source) {
    ModelFile file;
    TRY(model_file_open(&file, source->path,
                        (ModelFileOptions){.head = HEAD_TO_SCORE, .training = true, .need_tokenizer = true}));
    int rc = check_kind(value, run, source, &file);
    if (rc == OK) rc = start_head(value, run, &file);
    if (rc == OK) llama_copy_body(value->model, file.model);
    model_file_close(&file);
    return rc;
}

/* A fresh adapter on a whole model's body. */
static int start_on_body(ValueModel *value, const Run *run, const Source *source) {
    ModelFile body;
    if (!value->body.model) { /* for the reason that it cannot be opened */
        TRY(open_body(&body, run, source->path, source->option));
        model_file_close(&body);
        FAIL(ERR_FAILED, "%s could not be opened when the run began, and now it can: start the run again",
             source->path);
    }
    TRY(start_head(value, run, &value->body));
    return lora_init(value->lora, (uint64_t)run->config->seed);
}

/* On the base that the policy has; the head stays zero where none was trained beside it. */
static int start_as_adapter(ValueModel *value, const Run *run, const Source *source) {
    if (!adapter_recognises(source->path)) return start_on_body(value, run, source);
    no_head(value);
    return run_load_adapter(run, value->lora, source->option, source->path);
}

static int start_as_other(ValueModel *value, const Run *run, const Source *source) {
    char *path;
    TRY(resolve(&path, source->path));
    Source resolved = {path, source->option, source->wanted};
    int rc = value->lora ? start_as_adapter(value, run, &resolved) : start_as_model(value, run, &resolved);
    free(path);
    return rc;
}

int value_model_start(ValueModel *value, const Run *run) {
    Source source = source_of(run->config);
    optimizer_reset(value->companion.optimizer);
    if (!source.path) return start_as_policy(value, run);
    int rc = start_as_other(value, run, &source);
    if (rc == OK || source.wanted) return rc;
    log_info("the value model begins as the policy, for it cannot begin as the reward model: %s", error_text());
    error_clear();
    return start_as_policy(value, run);
}
