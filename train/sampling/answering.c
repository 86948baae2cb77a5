/* See answering.h. */
#include "train/sampling/answering.h"

#include "model/core/error.h"
#include "train/setup.h"

/* An answer also ends with the template's stops. */
static int open_template(Answering *a, const Config *config) {
    int32_t stops[2];
    HfGeneration *generation = &a->file.generation;
    TRY(model_template_choose(&a->chat, config, a->file.chat_template, a->file.path, a->file.tokenizer));
    TRY(model_template_open(&a->chat, a->file.tokenizer));
    size_t n = chat_template_stops(a->chat.chat, stops);
    for (size_t i = 0; i < n && generation->n_eos < HF_MAX_EOS; i++)
        generation->eos_token_ids[generation->n_eos++] = stops[i];
    return OK;
}

static bool has_template(const Answering *a, const Config *config) {
    return a->file.chat_template || *config->template_name || *config->template_user_before;
}

int answering_open(Answering *a, const Config *config, const AnsweringOptions *options) {
    TRY(model_file_open(&a->file, options->model,
                        (ModelFileOptions){.tokenizer = options->tokenizer,
                                           .need_tokenizer = true,
                                           .base = options->base,
                                           .inference = setup_inference(config)}));
    if (options->chat == ANSWER_CHAT || (options->chat == ANSWER_CHAT_AUTO && has_template(a, config)))
        TRY(open_template(a, config));
    TRY(chat_columns_parse(&a->columns, options->columns));
    a->how = (PromptOptions){.tokenizer = a->file.tokenizer,
                             .chat = a->chat.chat,
                             .bos = !options->no_bos,
                             .columns = &a->columns,
                             .chat_option = options->chat_option};
    return OK;
}

void answering_close(Answering *a) {
    prompts_free(&a->prompts);
    chat_columns_free(&a->columns);
    model_template_free(&a->chat);
    model_file_close(&a->file);
}

GenerateOptions answering_generate_options(const Answering *a, const Config *config) {
    return (GenerateOptions){.sampler = setup_sampler(config),
                             .max_new_tokens = (int)config->generate_max_new_tokens,
                             .stop = config->generate_stop.items,
                             .n_stop = config->generate_stop.n,
                             .stop_tokens = a->file.generation.eos_token_ids,
                             .n_stop_tokens = (size_t)a->file.generation.n_eos};
}

int answering_longest(const Answering *a, const Config *config) {
    int64_t longest = 1, limit = a->file.model->rotary.n_positions;
    for (size_t i = 0; i < a->prompts.n; i++)
        if ((int64_t)a->prompts.items[i].tokens.n > longest) longest = (int64_t)a->prompts.items[i].tokens.n;
    int64_t wanted = longest + config->generate_max_new_tokens;
    return (int)(wanted < limit ? wanted : limit);
}
