/* cria sft: a model learns from instructions. The data are conversations, rendered with a chat template; the loss is
 * the negative log-likelihood of what the template says is learned, over the sum of the step's weights. */
#include <stdlib.h>
#include <string.h>

#include "data/chat/encode.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "train/chat_sample.h"
#include "train/commands.h"
#include "train/model_template.h"
#include "train/run.h"
#include "train/setup.h"

typedef struct {
    ModelTemplate model_template;
    Text jinja;
    ChatColumns *columns; /* of each source, training then validation */
    size_t n_columns;
    int first_new_row; /* rows of the embedding from here on were added */
} Sft;

static void free_own(Run *run) {
    Sft *sft = run->own;
    if (!sft) return;
    for (size_t i = 0; i < sft->n_columns; i++) chat_columns_free(&sft->columns[i]);
    free(sft->columns);
    text_free(&sft->jinja);
    model_template_free(&sft->model_template);
    free(sft);
}

static void about(Text *out) {
    text_puts(out, "Fine-tunes model.base on instructions (data.train: JSONL or JSON arrays of messages,\n"
                   "conversations, instruction and output, prompt and completion, or text), rendered with a chat\n"
                   "template. The same command on the same output resumes.");
}

static int defaults(Config *config) {
    TRY(config_require(config, OPTION_model_base));
    return *config->template_name ? OK : config_set_text(config, OPTION_template_name, "from-model");
}

/* ---- the model ---- */

/* A larger embedding and head for the tokens that were added, unless there are rows to spare. */
static int grow_model(Run *run, Sft *sft) {
    int wanted = tokenizer_vocab_size(run->tokenizer);
    LlamaShape shape = run->model->shape;
    sft->first_new_row = shape.vocab_size;
    if (wanted <= shape.vocab_size) return OK;
    Llama *grown;
    shape.vocab_size = wanted;
    TRY(llama_new(&grown, &shape,
                  (LlamaOptions){.training = true,
                                 .precision = setup_precision(run->config),
                                 .n_positions = run->model->rotary.n_positions}));
    llama_copy_rows(grown, run->model);
    llama_free(run->model);
    run->model = run->base.model = grown;
    return OK;
}

/* Rows that belong to no token of the base; also those of a padded embedding, which were never trained. */
static void new_rows(Run *run) {
    Sft *sft = run->own;
    if (sft->first_new_row > 0) llama_init_new_rows(run->model, sft->first_new_row);
}

static int extend(Run *run, Sft *sft) {
    Tokenizer *extended;
    int before = tokenizer_vocab_size(run->tokenizer);
    TRY(model_template_extend(&sft->model_template, run->config, run->tokenizer, &extended));
    if (!extended) return OK;
    if (run->tokenizer != run->base.tokenizer) tokenizer_free(run->tokenizer);
    run->tokenizer = extended;
    TRY(grow_model(run, sft));
    if (before < sft->first_new_row) sft->first_new_row = before;
    new_rows(run);
    return OK;
}

static int prepare(Run *run) {
    Sft *sft = calloc(1, sizeof *sft);
    if (!sft) FAIL(ERR_FAILED, "out of memory");
    run->own = sft;
    ModelTemplate *m = &sft->model_template;
    TRY(model_template_choose(m, run->config, run->base.chat_template, run->config->model_base, run->tokenizer));
    TRY(extend(run, sft));
    TRY(model_template_open(m, run->tokenizer));
    TRY(chat_template_save(m->chat, &sft->jinja));
    run->chat_template = sft->jinja.bytes;
    run->n_stop_tokens = chat_template_stops(m->chat, run->stop_tokens);
    return OK;
}

/* ---- the data ---- */

static int add_encoders(Run *run, SourceOptions **sources, const SourceOptions *from, int n,
                        const ConfigSources *list) {
    Sft *sft = run->own;
    const Config *config = run->config;
    ARENA_TRY(*sources, &run->arena, n + 1);
    for (int i = 0; i < n; i++) {
        ChatEncoder *encoder;
        ARENA_TRY(encoder, &run->arena, 1);
        const char *own = list->items[i].columns;
        ChatColumns *columns = &sft->columns[sft->n_columns++];
        TRY(chat_columns_parse(columns, *own ? own : config->data_columns));
        chat_encoder_init(encoder, &(ChatEncoderOptions){.chat = sft->model_template.chat,
                                                         .columns = columns,
                                                         .train_on = (TrainOn)config->sft_train_on,
                                                         .context = (size_t)config->train_context,
                                                         .overlong = (Overlong)config->sft_overlong});
        (*sources)[i] = from[i];
        (*sources)[i].encoder = &encoder->base;
    }
    return OK;
}

static int data(Run *run, LoaderOptions *options) {
    Sft *sft = run->own;
    SourceOptions *sources, *validation;
    int n = options->n_sources + options->n_validation_sources;
    sft->columns = calloc((size_t)n + 1, sizeof *sft->columns);
    if (!sft->columns) FAIL(ERR_FAILED, "out of memory");
    TRY(add_encoders(run, &sources, options->sources, options->n_sources, &run->config->data_train));
    TRY(add_encoders(run, &validation, options->validation_sources, options->n_validation_sources,
                     &run->config->data_validation));
    options->sources = sources;
    options->validation_sources = options->n_validation_sources > 0 ? validation : NULL;
    return OK;
}

/* What was left out is told at every start, not only when the cache is made. */
static void data_opened(const Run *run) {
    const int64_t *n = loader_record_counts(run->loader).n;
    if (n[RECORD_TRUNCATED] + n[RECORD_DROPPED] + n[RECORD_MASKED] > 0)
        log_warning("data: %lld records were truncated to train.context, %lld left out for being longer, %lld left out "
                    "for having no token that is learned; 'cria data lint' names them",
                    (long long)n[RECORD_TRUNCATED], (long long)n[RECORD_DROPPED], (long long)n[RECORD_MASKED]);
}

static void sample(Run *run, int64_t step) {
    const Sft *sft = run->own;
    chat_sample(run->model, run->tokenizer, sft->model_template.chat, run->config, step);
}

int command_sft(int argc, char **argv) {
    static const Stage sft = {
        .about = about,
        .sections = "output seed precision model tokenizer data template sft optim train generate parallel",
        .defaults = defaults,
        .prepare = prepare,
        .new_rows = new_rows,
        .data = data,
        .data_opened = data_opened,
        .objective = sft_objective_new,
        .sample = sample,
        .free = free_own};
    return run_command(&sft, argc, argv);
}
