/* See chat_stage.h. */
#include "train/chat_stage.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "train/chat_sample.h"
#include "train/setup.h"

void chat_stage_free(ChatStage *stage) {
    for (size_t i = 0; i < stage->n_columns; i++) chat_columns_free(&stage->columns[i]);
    free(stage->columns);
    text_free(&stage->jinja);
    model_template_free(&stage->model_template);
}

int chat_stage_defaults(Config *config) {
    TRY(config_require(config, OPTION_model_base));
    return *config->template_name ? OK : config_set_text(config, OPTION_template_name, "from-model");
}

/* ---- the model ---- */

/* The model was made with rows for the tokens that were added, unless it is frozen. */
static int check_rows(const Run *run, int before) {
    int wanted = tokenizer_vocab_size(run->tokenizer);
    if (run->config->lora_rank > 0 && !setup_trains_vocabulary(run->config))
        return config_fail(
            run->config, OPTION_lora_vocabulary,
            "the chat template needs %d tokens that %s lacks, whose rows an adapter does not train: train the "
            "vocabulary beside it (lora.vocabulary train) or the whole model (lora.rank 0), or take a template made "
            "of its own tokens (alpaca, plain)",
            wanted - before, run->config->model_base);
    if (wanted > run->model->shape.vocab_size)
        FAIL(ERR_FAILED, "%d tokens, and a model planned for %d", wanted, run->model->shape.vocab_size);
    return OK;
}

/* Rows that belong to no token of the base; also those of a padded embedding, which were never trained. */
void chat_stage_new_rows(Run *run) {
    ChatStage *stage = run->own;
    if (stage->first_new_row > 0) llama_init_new_rows(run->model, stage->first_new_row);
}

static int extend(Run *run, ChatStage *stage) {
    Tokenizer *extended;
    int before = tokenizer_vocab_size(run->tokenizer);
    TRY(model_template_extend(&stage->model_template, run->config, run->tokenizer, &extended));
    if (!extended) return OK;
    if (run->tokenizer != run->base.tokenizer) tokenizer_free(run->tokenizer);
    run->tokenizer = extended;
    TRY(check_rows(run, before));
    stage->first_new_row = before < run->base.n_rows ? before : run->base.n_rows;
    chat_stage_new_rows(run);
    return OK;
}

int chat_stage_prepare(Run *run) {
    ChatStage *stage = run->own;
    ModelTemplate *m = &stage->model_template;
    TRY(model_template_choose(m, run->config, run->base.chat_template, run->config->model_base, run->tokenizer));
    TRY(extend(run, stage));
    TRY(model_template_open(m, run->tokenizer));
    TRY(chat_template_save(m->chat, &stage->jinja));
    run->chat_template = stage->jinja.bytes;
    run->n_stop_tokens = chat_template_stops(m->chat, run->stop_tokens);
    return OK;
}

/* ---- the data ---- */

static int add_encoders(Run *run, SourceOptions **sources, const SourceOptions *from, int n, const ConfigSources *list,
                        MakeEncoder make) {
    ChatStage *stage = run->own;
    ARENA_TRY(*sources, &run->arena, n + 1);
    for (int i = 0; i < n; i++) {
        const char *own = list->items[i].columns;
        ChatColumns *columns = &stage->columns[stage->n_columns++];
        TRY(chat_columns_parse(columns, *own ? own : run->config->data_columns));
        (*sources)[i] = from[i];
        TRY(make(&(*sources)[i].encoder, run, &list->items[i], columns));
    }
    return OK;
}

int chat_stage_data(Run *run, LoaderOptions *options, MakeEncoder make) {
    ChatStage *stage = run->own;
    SourceOptions *sources, *validation;
    int n = options->n_sources + options->n_validation_sources;
    stage->columns = calloc((size_t)n + 1, sizeof *stage->columns);
    if (!stage->columns) FAIL(ERR_FAILED, "out of memory");
    TRY(add_encoders(run, &sources, options->sources, options->n_sources, &run->config->data_train, make));
    TRY(add_encoders(run, &validation, options->validation_sources, options->n_validation_sources,
                     &run->config->data_validation, make));
    options->sources = sources;
    options->validation_sources = options->n_validation_sources > 0 ? validation : NULL;
    return OK;
}

int chat_stage_pair_encoder(const RecordEncoder **encoder, Run *run, const ChatColumns *columns,
                            PairObjectives objectives, SampleKind samples) {
    const ChatStage *stage = run->own;
    const Config *config = run->config;
    PairEncoder *pairs;
    ARENA_TRY(pairs, &run->arena, 1);
    pair_encoder_init(pairs, &(PairOptions){.chat = stage->model_template.chat,
                                            .columns = columns,
                                            .samples = samples,
                                            .context = (size_t)config->train_context,
                                            .overlong = (Overlong)config->preferences_overlong,
                                            .mask_stop = config->preferences_mask_stop,
                                            .objectives = objectives});
    *encoder = &pairs->base;
    return OK;
}

void chat_stage_data_opened(const Run *run) {
    const int64_t *n = loader_record_counts(run->loader).n;
    if (n[RECORD_TRUNCATED] + n[RECORD_DROPPED] + n[RECORD_MASKED] > 0)
        log_warning("data: %lld records were truncated to train.context, %lld left out for being longer, %lld left out "
                    "for having nothing that is learned; 'cria data lint' names them",
                    (long long)n[RECORD_TRUNCATED], (long long)n[RECORD_DROPPED], (long long)n[RECORD_MASKED]);
}

void chat_stage_sample(Run *run, int64_t step) {
    const ChatStage *stage = run->own;
    chat_sample(run->model, run->tokenizer, stage->model_template.chat, run->config, step);
}
