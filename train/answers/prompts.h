/* Prompts, for those who have a model answer them: lines of text, or records of JSON. A record is one of those of
 * data/chat/record.h, whose own answer (the completion, or what follows the last user's message) is taken off and may
 * be absent: {"prompt": "…"}, {"messages": […]}, {"instruction": "…", "input": "…"}, {"text": "…"}. */
#ifndef CRIA_TRAIN_PROMPTS_H
#define CRIA_TRAIN_PROMPTS_H

#include <jansson.h>

#include "data/chat/template.h"
#include "data/tokenizer/tokenizer.h"

typedef struct {
    TokenList tokens;
    json_t *prompt; /* a string (NULL where the text is not UTF-8), or a list of {"role", "content"} */
    char *text;     /* of a text, NUL-terminated; NULL: messages */
    size_t size;
    json_t *record; /* that it came from; NULL: a line of text */
    json_t *answer; /* the record's own, a string; NULL: none */
    char *place;    /* "FILE:LINE"; NULL: it is of no file */
} Prompt;
const char *prompt_place(const Prompt *prompt); /* for messages */

typedef struct {
    Prompt *items;
    size_t n, capacity;
} Prompts; /* {0} is empty; prompts_free */
void prompts_free(Prompts *prompts);
void prompts_truncate(Prompts *prompts, size_t n); /* the first n stay */

/* Leaves out those of `limit` tokens and more, which have no room for an answer; how many, and the first with file and
 * line, is logged. The order stays. */
void prompts_drop_overlong(Prompts *prompts, size_t limit);

typedef struct {
    const Tokenizer *tokenizer;
    const ChatTemplate *chat; /* texts are a user's messages, rendered up to the answer; NULL: what a text begins with,
                                 and messages are refused */
    bool bos;                 /* a text that is no message begins with BOS */
    const ChatColumns *columns; /* names that a record has instead; may be NULL */
    const char *chat_option;    /* what to give for messages to be understood, for the error: "--chat" */
} PromptOptions;

int prompts_add_text(Prompts *prompts, const PromptOptions *options, const char *text, size_t size);
/* A file, a glob or a directory (data/source.h): what source_is_jsonl has a record a line (or one array), any other a
 * prompt a line. ERR_REFUSED names file and line. Having none is an error. */
int prompts_read(Prompts *prompts, const PromptOptions *options, const char *path);

#endif
