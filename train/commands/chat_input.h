/* What `cria data lint` and `cria data show` have in common: a tokenizer, a template, files, and the flags for them. */
#ifndef CRIA_TRAIN_CHAT_INPUT_H
#define CRIA_TRAIN_CHAT_INPUT_H

#include "train/console/cli.h"
#include "train/files/model_template.h"

typedef struct {
    /* flags */
    const char *config_path, *template_name, *date, *builtin_tools, *train_on, *overlong, *columns;
    int64_t context; /* 0: the model's, or any */
    /* what they lead to */
    Tokenizer *tokenizer;
    char *jinja; /* the model's own template; NULL: none */
    Config *config;
    ModelTemplate model_template;
    const ChatTemplate *chat; /* it */
    ChatColumns renamed;
    TrainOn mode;
    Overlong policy;
    char **paths;
    size_t n_paths;
} ChatInput;

enum { CHAT_INPUT_FLAGS = 8 };
/* Writes CHAT_INPUT_FLAGS rows. */
void chat_input_flags(ChatInput *input, Flag *flags);

/* words[0] is a TOKENIZER or a MODEL, the others are files, globs or directories. */
int chat_input_open(ChatInput *input, char *const *words, int n_words);
void chat_input_close(ChatInput *input);

#endif
