/* Opening a tokenizer (of its own, or a model's), a template and record files. */
#include "train/chat_input.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/source.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/text.h"
#include "model/shape_hf.h"
#include "train/model_file.h"

void chat_input_flags(ChatInput *input, Flag *flags) {
    const Flag rows[CHAT_INPUT_FLAGS] = {
        {"template", 0, FLAG_TEXT, &input->template_name, "NAME", "",
         "llama2, llama3, llama3.1, llama3.2, alpaca, chatml or plain"},
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
    rc = model_file_open(&file, path, (ModelFileOptions){.need_tokenizer = true, .shape_only = true});
    if (rc != OK && has_tokenizer) { /* a folder with a tokenizer and no model */
        error_clear();
        return OK;
    }
    if (rc != OK) FAIL(rc, "%s; as a tokenizer: %s", error_text(), reason);
    if (input->context == 0) input->context = llama_shape_from_hf(&file.config).max_context;
    tokenizer_free(input->tokenizer);
    input->tokenizer = file.tokenizer;
    file.tokenizer = NULL;
    model_file_close(&file);
    return OK;
}

static int open_template(ChatInput *input) {
    size_t n;
    const char *const *names = chat_template_names(&n);
    if (!input->template_name)
        FAIL(ERR_USAGE, "no template was named: --template llama3.1, say (llama2, llama3, llama3.1, llama3.2, alpaca, "
                        "chatml, plain)");
    const ChatTemplateSpec *spec = chat_template_spec(input->template_name);
    if (!spec) {
        const char *nearest = text_nearest(input->template_name, names, n);
        FAIL(ERR_USAGE, "there is no template '%s'; did you mean '%s'?", input->template_name,
             nearest ? nearest : "llama3.1");
    }
    return chat_template_new(&input->chat, spec,
                             &(ChatTemplateOptions){.date = input->date, .builtin_tools = input->builtin_tools},
                             input->tokenizer);
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
    tokenizer_free(input->tokenizer);
    chat_columns_free(&input->renamed);
    names_free(input->paths, input->n_paths);
}
