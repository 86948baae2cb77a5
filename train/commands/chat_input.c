/* Opening a tokenizer (of its own, or a model's), a template and record files. */
#include "train/commands/chat_input.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/source.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "model/shape_hf.h"
#include "train/files/model_file.h"

void chat_input_flags(ChatInput *input, Flag *flags) {
    const Flag rows[CHAT_INPUT_FLAGS] = {
        {"template", 0, FLAG_TEXT, &input->template_name, "NAME", "",
         "llama2, llama3, llama3.1, llama3.2, alpaca, chatml or plain (default: the config's, or the model's own)"},
        {"config", 0, FLAG_TEXT, &input->config_path, "FILE", "",
         "a run's YAML: its template (one written there too), columns, context, sft.*; other flags win"},
        {"train-on", 0, FLAG_TEXT, &input->train_on, "WHAT", "",
         "what is learned: all, completion, assistant (every answer) or last (default assistant)"},
        {"context", 'c', FLAG_INT, &input->context, "N", ">= 2", "tokens at most (a model's own; else any number)"},
        {"overlong", 0, FLAG_TEXT, &input->overlong, "POLICY", "",
         "longer records: fail, drop, truncate-left or truncate-right (default fail)"},
        {"columns", 0, FLAG_TEXT, &input->columns, "A=B,...", "",
         "columns of other names: prompt=question,completion=answer"},
        {"date", 0, FLAG_TEXT, &input->date, "DATE", "", "what Llama 3.1 and 3.2 call today (" CHAT_DATE ")"},
        {"builtin-tools", 0, FLAG_TEXT, &input->builtin_tools, "A,B", "",
         "Llama 3.1: tools that are called with <|python_tag|>, as brave_search"},
    };
    memcpy(flags, rows, sizeof rows);
}

/* A tokenizer's file or directory, or what belongs to a model, whose context is the default one. */
static int open_tokenizer(ChatInput *input, const char *path) {
    ModelFile file;
    char reason[512];
    int rc = tokenizer_load(&input->tokenizer, path);
    if (rc == OK && !directory_exists(path)) return OK;
    snprintf(reason, sizeof reason, "%s", rc == OK ? "" : error_text());
    bool has_tokenizer = rc == OK;
    error_clear();
    rc = model_file_open(&file, path, (ModelFileOptions){.head = HEAD_ANY, .need_tokenizer = true, .shape_only = true});
    if (rc != OK && has_tokenizer) { /* a folder with a tokenizer and no model */
        error_clear();
        return OK;
    }
    if (rc != OK) FAIL(rc, "%s; as a tokenizer: %s", error_text(), reason);
    if (input->context == 0) input->context = llama_shape_from_hf(&file.config).max_context;
    tokenizer_free(input->tokenizer);
    input->tokenizer = file.tokenizer;
    file.tokenizer = NULL;
    input->jinja = file.chat_template;
    file.chat_template = NULL;
    model_file_close(&file);
    return OK;
}

/* What the flags say goes over what the config file says. */
static int read_config(ChatInput *input) {
    const struct {
        const char *flag, *key, *value;
    } rows[] = {{"--template", "template.name", input->template_name},
                {"--date", "template.date", input->date},
                {"--builtin-tools", "template.builtin_tools", input->builtin_tools},
                {"--train-on", "sft.train_on", input->train_on},
                {"--overlong", "sft.overlong", input->overlong},
                {"--columns", "data.columns", input->columns}};
    TRY(config_new(&input->config));
    if (input->config_path) TRY(config_load(input->config, input->config_path));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].value) TRY(config_set(input->config, rows[i].key, rows[i].value, rows[i].flag));
    input->mode = (TrainOn)input->config->sft_train_on;
    input->policy = (Overlong)input->config->sft_overlong;
    if (input->context == 0 && config_is_set(input->config, OPTION_train_context))
        input->context = input->config->train_context;
    return *input->config->data_columns ? chat_columns_parse(&input->renamed, input->config->data_columns) : OK;
}

/* Tokens that the template needs and the tokenizer lacks are added, as training adds them. */
static int open_template(ChatInput *input, const char *model) {
    Tokenizer *extended;
    ModelTemplate *chosen = &input->model_template;
    int rc = model_template_choose(chosen, input->config, input->jinja, model, input->tokenizer);
    if (rc != OK && !*input->config->template_name) return error_context(rc, "give --template NAME or --config FILE");
    TRY(rc);
    TRY(model_template_extend(chosen, input->config, input->tokenizer, &extended));
    if (extended) {
        model_template_tell_growth(chosen, input->tokenizer, extended);
        tokenizer_free(input->tokenizer);
        input->tokenizer = extended;
    }
    TRY(model_template_open(chosen, input->tokenizer));
    input->chat = chosen->chat;
    return OK;
}

static int add_files(ChatInput *input, const char *word) {
    char **found;
    size_t n;
    TRY(source_files(&found, &n, word));
    char **grown = realloc(input->paths, (input->n_paths + n) * sizeof *grown);
    if (!grown) {
        names_free(found, n);
        FAIL(ERR_FAILED, "out of memory");
    }
    memcpy(grown + input->n_paths, found, n * sizeof *grown);
    free(found);
    input->paths = grown;
    input->n_paths += n;
    return OK;
}

int chat_input_open(ChatInput *input, char *const *words, int n_words) {
    TRY(read_config(input));
    TRY(open_tokenizer(input, words[0]));
    TRY(open_template(input, words[0]));
    for (int i = 1; i < n_words; i++) TRY(add_files(input, words[i]));
    return OK;
}

void chat_input_close(ChatInput *input) {
    model_template_free(&input->model_template);
    config_free(input->config);
    free(input->jinja);
    tokenizer_free(input->tokenizer);
    chat_columns_free(&input->renamed);
    names_free(input->paths, input->n_paths);
}
