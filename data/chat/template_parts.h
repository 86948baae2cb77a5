/* Shared by the files that compile, render and export a template. */
#ifndef CRIA_DATA_CHAT_TEMPLATE_PARTS_H
#define CRIA_DATA_CHAT_TEMPLATE_PARTS_H

#include "data/chat/template.h"

/* A template's text taken apart: special tokens and text in turns. */
typedef struct {
    int32_t id; /* -1: text */
    const char *text;
    size_t size;
} ChatPart;

typedef struct {
    Text source; /* what the parts point into */
    ChatPart *parts;
    size_t n;
} ChatParts;

typedef struct {
    bool present;
    ChatParts before, after;
    size_t answer_part; /* the assistant's: of `before`'s last part, spaces from this byte on belong to the answer */
    size_t stop_part;   /* … the index in `after` of the stop */
} ChatTemplatePart;

struct ChatTemplate {
    const ChatTemplateSpec *spec;
    const Tokenizer *tokenizer;
    char *date, *builtin_tools; /* NULL: none */
    ChatParts begin;
    ChatTemplatePart role[N_CHAT_ROLES];
    int32_t bos, eos, call_tag, call_stop;
};

/* Whether `name` is in a list with commas. */
bool chat_list_has(const char *list, const char *name, size_t size);

/* Without the white space at its ends, where the template trims: Python's str.strip. */
ChatText chat_trim(const ChatTemplate *chat, ChatText text);

#endif
