/* See run_adapter.h. */
#include "train/run_adapter.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "model/lora_peft.h"
#include "train/answers/reward_model.h"
#include "train/files/adapter_file.h"
#include "train/objectives/micro_batch.h"
#include "train/setup.h"

int run_check_adapter_options(const Config *config) {
    LoraOptions options;
    bool wanted;
    TRY(setup_lora(&options, &wanted, config));
    if (wanted && !*config->model_base)
        return config_fail(config, OPTION_lora_rank, "an adapter is trained on a model: give model.base");
    for (int id = 0; id < OPTION_COUNT && !wanted && !config_is_set(config, OPTION_lora_rank); id++)
        if (config_in_sections((OptionId)id, "lora") && config_is_set(config, (OptionId)id))
            return config_fail(config, (OptionId)id,
                               "an adapter has a rank: give lora.rank (lora.rank 0 trains the whole model)");
    return OK;
}

/* ---- how it begins ---- */

static int compare_options(const Config *config, OptionId option, const LoraOptions *wanted, const LoraOptions *found) {
    if (found->rank != wanted->rank)
        return config_fail(config, option, "its rank is %d, and lora.rank %d", found->rank, wanted->rank);
    if (fabs(found->alpha - wanted->alpha) > 0)
        return config_fail(config, option, "its alpha is %g, and lora.alpha %g", found->alpha, wanted->alpha);
    if (found->rank_stabilised != wanted->rank_stabilised)
        return config_fail(config, option, "it has%s rsLoRA's scale; see lora.rslora",
                           found->rank_stabilised ? "" : " not");
    if (found->magnitudes != wanted->magnitudes)
        return config_fail(config, option, "it has%s DoRA's magnitudes; see lora.dora",
                           found->magnitudes ? "" : " not");
    if (found->targets != wanted->targets)
        return config_fail(config, option, "it adapts other matrices than lora.targets names");
    return OK;
}

/* What it has of a vocabulary must be what this run trains. */
static int compare_vocabulary(const Run *run, const Llama *model, OptionId option, const LoraVocabulary *found) {
    bool trained = setup_trains_vocabulary(run->config), tied = model->head.tied;
    bool whole = found->embedding && (found->head || model->shape.n_scores > 0 || (tied && found->tied));
    if (!trained && found->rows > 0)
        return config_fail(run->config, option, "its vocabulary was trained beside it; see lora.vocabulary");
    if (found->rows > 0 && (!whole || (tied && !found->tied)))
        return config_fail(run->config, option,
                           "it has another embedding or head in place of the base's, and not one for both as this run");
    return OK;
}

/* A run's own scores have the names of what they begin as, where that has any. */
static int compare_labels(const Run *run, OptionId option, const HfLabels *found) {
    char names[2][HF_LABELS_TEXT];
    const HfLabels *wanted = &run->base.config.labels;
    if (hf_labels_equal(found, wanted) || (found->n == wanted->n && hf_labels_are_unnamed(found))) return OK;
    return config_fail(run->config, option, "its scores are %s, and this run's %s", hf_labels_text(found, names[0]),
                       hf_labels_text(wanted, names[1]));
}

/* A value model begins as one of a reward model's scores. */
static int score_row(int *row, const Run *run, const Lora *lora, const PeftAdapter *adapter, OptionId option) {
    HfLabels labels;
    *row = ADAPTER_ALL_ROWS;
    if (!adapter->config.saved.score) return OK;
    TRY(adapter_labels(&labels, adapter));
    if (lora->model == run->model) return compare_labels(run, option, &labels);
    if (labels.n == 1) return OK;
    return reward_row(row, &labels, run->config->ppo_head, option_table[OPTION_ppo_head].key,
                      named_path(adapter->arrays));
}

static int load_values(const Run *run, Lora *lora, const PeftAdapter *adapter, OptionId option) {
    int row;
    LoraOptions found;
    LoraVocabulary vocabulary;
    TRY(lora_options_from_peft(&found, adapter));
    TRY(lora_vocabulary(&vocabulary, adapter));
    TRY(compare_options(run->config, option, &lora->options, &found));
    TRY(compare_vocabulary(run, lora->model, option, &vocabulary));
    TRY(adapter_check_base(adapter->arrays, run->config->model_base, run->base.fingerprint));
    TRY(lora_load(lora, adapter->arrays));
    TRY(score_row(&row, run, lora, adapter, option));
    return adapter_take_saved(adapter, lora->model, row);
}

/* PEFT saves the base's embedding and head with an adapter of them. */
static int leave_base_aside(const Run *run, PeftAdapter *adapter) {
    NamedFile *base;
    if (!named_find(adapter->arrays, LORA_EMBEDDING_BASE) && !named_find(adapter->arrays, LORA_HEAD_BASE)) return OK;
    TRY(named_open(&base, run->config->model_base));
    int rc = adapter_compare_base(adapter, base);
    named_close(base);
    return rc;
}

int run_load_adapter(const Run *run, Lora *lora, OptionId option, const char *path) {
    PeftAdapter adapter;
    TRY(adapter_open(&adapter, path));
    int rc = leave_base_aside(run, &adapter);
    if (rc == OK) rc = load_values(run, lora, &adapter, option);
    peft_close(&adapter);
    return rc;
}

int run_start_adapter(Run *run) {
    if (!*run->config->lora_init) return lora_init(run->lora, (uint64_t)run->config->seed);
    return run_load_adapter(run, run->lora, OPTION_lora_init, run->config->lora_init);
}

/* ---- how it begins again ---- */

int run_remember_head(Run *run) {
    const Weight *head = &run->model->head;
    if (run->model->shape.n_scores == 0) return OK;
    ARENA_TRY(run->first_head, &run->arena, weight_elements(head));
    memcpy(run->first_head, head->value, weight_elements(head) * sizeof *head->value);
    return OK;
}

static void restore_head(const Run *run) {
    const Weight *head = &run->model->head;
    if (run->first_head) memcpy(head->value, run->first_head, weight_elements(head) * sizeof *head->value);
}

static int read_again(const Weight *weight, const NamedFile *file) {
    const NamedArray *array;
    if (weight->tied || !weight->trainable) return OK;
    TRY(named_get(&array, file, weight->views[0].name));
    return named_read_f32(file, array, 0, named_elements(array), weight->value);
}

/* The vocabulary as the base has it. */
static int restore_vocabulary(Run *run) {
    ModelFile base;
    if (!setup_trains_vocabulary(run->config)) return OK;
    TRY(model_file_open(&base, run->config->model_base,
                        (ModelFileOptions){.head = run->stage->head, .keep_open = true}));
    int rc = read_again(&run->model->embedding, base.arrays);
    if (rc == OK && run->model->shape.n_scores == 0) rc = read_again(&run->model->head, base.arrays);
    model_file_close(&base);
    TRY(rc);
    llama_pack(run->model);
    if (run->stage->new_rows) run->stage->new_rows(run);
    return OK;
}

int run_restart_adapter(Run *run) {
    restore_head(run);
    TRY(restore_vocabulary(run));
    return run_start_adapter(run);
}

/* ---- stop tokens ---- */

/* Other rows of the head that are as good as this one: within a thousandth of its length. `row` and `other` are [dim];
 * most rows are told apart by their first elements. */
static int count_like(const Llama *model, int32_t id, float *row, float *other) {
    enum { SLICE = 64 };
    const double NEAR = 1e-3;
    size_t dim = (size_t)model->shape.dim;
    double length = 0;
    int n = 0;
    row_major_read(&model->head.stored, id, 0, dim, row);
    for (size_t d = 0; d < dim; d++) length += (double)row[d] * (double)row[d];
    for (int r = 0; r < model->shape.vocab_size; r++) {
        double apart = 0;
        for (size_t d = 0; d < dim && !(apart > NEAR * NEAR * length); d++) {
            if (d % SLICE == 0) row_major_read(&model->head.stored, r, d, dim - d < SLICE ? dim - d : SLICE, other + d);
            double difference = (double)row[d] - (double)other[d];
            apart += difference * difference;
        }
        n += r != id && apart <= NEAR * NEAR * length;
    }
    return n;
}

/* A stop token whose row was never trained is one of many alike, and an adapter that leaves the head as it is could
 * never prefer it to them. A reward model ends no answers; and where stops are masked, nobody asks for them. */
static int check_stops(const Run *run, const LoraOptions *adapter) {
    int rc = OK;
    bool learns = setup_trains_vocabulary(run->config) || (adapter->targets & 1u << LORA_LM_HEAD);
    if (run->model->shape.n_scores > 0 || run->stops_masked || learns) return OK;
    size_t dim = (size_t)run->model->shape.dim;
    float *rows = malloc(2 * dim * sizeof *rows);
    if (!rows) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < run->n_stop_tokens; i++) {
        int alike = count_like(run->model, run->stop_tokens[i], rows, rows + dim);
        if (alike == 0) continue;
        FAIL_TO(done, ERR_REFUSED,
                "%s never learned the stop token %s: %d other rows of its head are the same, and an adapter leaves "
                "them so; answers would not end. Take a template with another stop, or let the head learn too "
                "(head in lora.targets, or lora.vocabulary train)",
                run->config->model_base, tokenizer_name(run->tokenizer, run->stop_tokens[i]), alike);
    }
done:
    free(rows);
    return rc;
}

int run_make_adapter(Run *run) {
    LoraOptions options;
    bool wanted;
    TRY(setup_lora(&options, &wanted, run->config));
    if (!wanted) return OK;
    TRY(check_stops(run, &options));
    TRY(lora_new(&run->lora, run->model, options,
                 (LlamaOptions){.training = true, .precision = setup_precision(run->config)}));
    return run_start_adapter(run);
}

static const char *kind_of(const LoraOptions *options) {
    if (options->magnitudes) return "DoRA";
    return options->rank_stabilised ? "rsLoRA" : "LoRA";
}

static const char *frozen_note(bool vocabulary, Frozen frozen) {
    static const char *const notes[2][FROZEN_KINDS] = {
        {"", ", its matrices in 16 bits", ", its matrices in int8, embedding and head in 16 bits",
         ", its matrices in NF4, embedding and head in 16 bits"},
        {" but for embedding and head", " but for embedding and head, its matrices in 16 bits",
         " but for embedding and head, its matrices in int8", " but for embedding and head, its matrices in NF4"}};
    return notes[vocabulary][frozen];
}

void run_announce_adapter(const Run *run) {
    char parameters[32];
    log_info("adapter: %s of rank %d, %s parameters; the model is frozen%s", kind_of(&run->lora->options),
             run->lora->options.rank, text_thousands(parameters, trained_elements(&run->trained)),
             frozen_note(setup_trains_vocabulary(run->config), setup_frozen(run->config)));
}

/* ---- before the first step ---- */

/* How many tokens tell whether an adapter is fresh: products with more take seconds of a large model. */
enum { CHECKED_TOKENS = 64 };

typedef struct {
    int32_t segment_start[CHECKED_TOKENS + 1];
    float *outputs[2]; /* with the adapter, without it: of each token its scores, or its log-probability */
} FreshCheck;

/* The first tokens of a micro-batch, each its own target: what is learned of them does not matter here. */
static MicroBatch first_tokens(FreshCheck *check, const MicroBatch *micro) {
    MicroBatch few = *micro;
    few.n_tokens = micro->n_tokens < CHECKED_TOKENS ? micro->n_tokens : CHECKED_TOKENS;
    few.targets = micro->tokens;
    few.segment_start = check->segment_start;
    for (few.n_segments = 0; few.n_segments < micro->n_segments; few.n_segments++) {
        if (micro->segment_start[few.n_segments] >= few.n_tokens) break;
        check->segment_start[few.n_segments] = micro->segment_start[few.n_segments];
    }
    check->segment_start[few.n_segments] = few.n_tokens;
    return few;
}

static size_t n_outputs(const Llama *model, const MicroBatch *few) {
    int each = model->shape.n_scores > 0 ? model->shape.n_scores : 1;
    return (size_t)few->n_tokens * (size_t)each;
}

static int replay(float *outputs, Tape *tape, Llama *model, const MicroBatch *few, const MicroBuffers *buffers) {
    Tensor *out = model->shape.n_scores > 0 ? llama_score(tape, model, (LlamaRecord){0}, NULL)
                                            : llama_record(tape, model, (LlamaRecord){0}, (HeadOptions){0}).logprob;
    tape_keep(out);
    TRY(tape_plan(tape));
    TRY(micro_batch_bind(tape, 0, few, buffers));
    TRY(tape_forward(tape, 0));
    memcpy(outputs, tape_value(tape, 0, out), n_outputs(model, few) * sizeof *outputs);
    return OK;
}

/* Scores, or the tokens' log-probabilities. */
static int outputs_of(float *outputs, const Run *run, const MicroBatch *few, Dtype precision) {
    MicroBuffers buffers;
    TRY(micro_buffers_new(&buffers, CHECKED_TOKENS, false));
    Tape *tape = tape_new(&(TapeOptions){.capacity = few->n_tokens, .segments = few->n_segments, .dtype = precision});
    int rc = tape ? replay(outputs, tape, run->model, few, &buffers)
                  : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    tape_free(tape);
    micro_buffers_free(&buffers);
    return rc;
}

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static int compare_outputs(const FreshCheck *check, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (bits_of(check->outputs[0][i]) != bits_of(check->outputs[1][i]))
            FAIL(ERR_FAILED,
                 "the fresh adapter changes the model: output %zu of the first micro-batch is %.9g with it and %.9g "
                 "without it",
                 i, (double)check->outputs[0][i], (double)check->outputs[1][i]);
    return OK;
}

int run_check_adapter(Run *run, const LoopOptions *options) {
    int rc = OK;
    StepBatch batch;
    FreshCheck check;
    if (*run->config->lora_init) return OK; /* it is not fresh */
    TRY(loader_step(run->loader, 0, &batch));
    if (batch.n_micro == 0) return OK;
    MicroBatch few = first_tokens(&check, &batch.micro[0]);
    size_t n = n_outputs(run->model, &few);
    check.outputs[0] = calloc(2 * n + 1, sizeof *check.outputs[0]);
    if (!check.outputs[0]) FAIL(ERR_FAILED, "out of memory");
    check.outputs[1] = check.outputs[0] + n;
    TRY_TO(done, outputs_of(check.outputs[0], run, &few, options->precision));
    lora_attach(run->lora, false);
    rc = outputs_of(check.outputs[1], run, &few, options->precision);
    lora_attach(run->lora, true);
    if (rc == OK) rc = compare_outputs(&check, n);
done:
    free(check.outputs[0]);
    return rc;
}
