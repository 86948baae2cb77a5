/* See answering.h. */
#include "train/sampling/answering.h"

#include "model/core/error.h"
#include "train/setup.h"

static int open_template(Answering *a, const Config *config) {
    TRY(model_template_choose(&a->chat, config, a->file.chat_template, a->file.path, a->file.tokenizer));
    TRY(model_template_open(&a->chat, a->file.tokenizer));
    a->n_stops += chat_template_stops(a->chat.chat, a->stops + a->n_stops);
    return OK;
}

static bool has_template(const Answering *a, const Config *config) {
    return a->file.chat_template || *config->template_name || *config->template_user_before;
}

int answering_open(Answering *a, const Config *config, const AnsweringOptions *options) {
    TRY(model_file_open(&a->file, options->model,
                        (ModelFileOptions){.tokenizer = options->tokenizer,
                                           .need_tokenizer = true,
                                           .fingerprint = options->fingerprint,
                                           .base = options->base,
                                           .inference = setup_inference(config),
                                           .frozen = setup_inference_weights(config)}));
    for (int i = 0; i < a->file.generation.n_eos; i++) a->stops[a->n_stops++] = a->file.generation.eos_token_ids[i];
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
                             .stop_tokens = a->stops,
                             .n_stop_tokens = a->n_stops};
}

int answering_longest(const Answering *a, const Config *config) {
    int64_t longest = 1, limit = a->file.model->rotary.n_positions;
    for (size_t i = 0; i < a->prompts.n; i++)
        if ((int64_t)a->prompts.items[i].tokens.n > longest) longest = (int64_t)a->prompts.items[i].tokens.n;
    int64_t wanted = longest + config->generate_max_new_tokens;
    return (int)(wanted < limit ? wanted : limit);
}

int answering_scorer(Scorer **scorer, const Config *config) {
    return scorer_new(scorer, &(ScorerOptions){.kind = (RewardKind)config->rejection_reward,
                                               .word = config->rejection_word,
                                               .pattern = config->rejection_pattern,
                                               .program = config->rejection_program,
                                               .model = config->rejection_model,
                                               .head = config->rejection_head,
                                               .safety_model = config->rejection_safety_model,
                                               .safety_head = config->rejection_safety_head,
                                               .length = (double)config->rejection_length,
                                               .timeout = config->rejection_timeout,
                                               .section = "rejection"});
}
