/* Opening a tokenizer (of its own, or a model's), a template and record files. */
#include "train/chat_input.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/source.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "model/shape_hf.h"
#include "train/model_file.h"

void chat_input_flags(ChatInput *input, Flag *flags) {
    const Flag rows[CHAT_INPUT_FLAGS] = {
        {"template", 0, FLAG_TEXT, &input->template_name, "NAME", "",
         "llama2, llama3, llama3.1, llama3.2, alpaca, chatml or plain (default: the model's own)"},
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

/* The template that was named, else the model's own. */
static int choose_template(ChatInput *input, ChatTemplateSpec *spec, ChatTemplateOptions *options) {
    size_t n;
    bool found = false;
    const char *const *names = chat_template_names(&n);
    *options = (ChatTemplateOptions){0};
    if (!input->template_name && input->jinja)
        TRY(saved_template_read(&input->saved, &found, input->jinja, input->tokenizer));
    if (found) {
        *spec = input->saved.spec;
        *options = input->saved.options;
        return OK;
    }
    if (!input->template_name)
        FAIL(ERR_USAGE,
             "%sno template was named: --template llama3.1, say (llama2, llama3, llama3.1, llama3.2, alpaca, "
             "chatml, plain)",
             input->jinja ? "the model's own template is none that cria knows, and " : "");
    const ChatTemplateSpec *known = chat_template_spec(input->template_name);
    if (!known) {
        const char *nearest = text_nearest(input->template_name, names, n);
        FAIL(ERR_USAGE, "there is no template '%s'; did you mean '%s'?", input->template_name,
             nearest ? nearest : "llama3.1");
    }
    *spec = *known;
    return OK;
}

/* Tokens that the template needs and the tokenizer lacks are added, as training adds them. */
static int extend_tokenizer(ChatInput *input) {
    char **names;
    size_t n;
    Tokenizer *extended = NULL;
    TRY(chat_spec_missing(&input->spec, NULL, 0, input->tokenizer, &names, &n));
    int rc = n > 0 ? tokenizer_extend(&extended, input->tokenizer, (const char *const *)names, n) : OK;
    if (extended) {
        log_info("template %s needs %zu tokens that the tokenizer lacks (%s …); training adds them", input->spec.name,
                 n, names[0]);
        tokenizer_free(input->tokenizer);
        input->tokenizer = extended;
    }
    names_free(names, n);
    return rc;
}

static int open_template(ChatInput *input) {
    ChatTemplateOptions options;
    TRY(choose_template(input, &input->spec, &options));
    TRY(extend_tokenizer(input));
    if (input->date) options.date = input->date;
    if (input->builtin_tools) options.builtin_tools = input->builtin_tools;
    return chat_template_new(&input->chat, &input->spec, &options, input->tokenizer);
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
    TRY(train_on_parse(&input->mode, input->train_on));
    TRY(overlong_parse(&input->policy, input->overlong));
    if (input->columns) TRY(chat_columns_parse(&input->renamed, input->columns));
    TRY(open_tokenizer(input, words[0]));
    TRY(open_template(input));
    for (int i = 1; i < n_words; i++) TRY(add_files(input, words[i]));
    return OK;
}

void chat_input_close(ChatInput *input) {
    chat_template_free(input->chat);
    saved_template_free(&input->saved);
    free(input->jinja);
    tokenizer_free(input->tokenizer);
    chat_columns_free(&input->renamed);
    names_free(input->paths, input->n_paths);
}
