/* Instruction records: what a line of JSON means as a conversation. Recognised by their keys, in this order (a key
 * whose value is null counts as absent):
 *
 *   messages      [{role, content[, weight | train][, tool_calls]}]          OpenAI
 *   conversations [{from, value[, weight | train]}][, system]                ShareGPT
 *   instruction, output[, input][, system][, history: [[user, answer], …]]   Alpaca
 *   prompt, completion   both text, or both lists of messages                TRL
 *   text                                                                     a document
 *
 * Roles: system, developer; user, human; assistant, gpt, model, chatgpt, bard; tool, ipython, observation,
 * function_response. `function_call` (ShareGPT) is an assistant's message whose text is {"name", "arguments"}; the same
 * as tool_calls[0].function of an OpenAI message. Other keys are left alone, except that `tools` is remembered. */
#ifndef CRIA_DATA_CHAT_RECORD_H
#define CRIA_DATA_CHAT_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/json_doc.h"

typedef enum { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT, CHAT_TOOL, N_CHAT_ROLES } ChatRole;
const char *chat_role_name(ChatRole role);

typedef struct {
    const char *bytes; /* NULL: none; else NUL-terminated, and may have NULs inside */
    size_t size;
} ChatText;

typedef struct {
    ChatRole role;
    ChatText text;      /* of a tool call: {"name": "…", "parameters": {…}} */
    ChatText input;     /* Alpaca's input */
    ChatText json;      /* of a tool's message: its content as JSON */
    ChatText call_name; /* of a tool call: the function */
    ChatText call_text; /* … and name.call(key="value", …), where every argument is a string */
    bool has_weight, in_completion;
    float weight; /* of `weight` or `train`: replaces what train_on says */
} ChatMessage;

typedef enum { RECORD_MESSAGES, RECORD_CONVERSATIONS, RECORD_ALPACA, RECORD_COMPLETION, RECORD_TEXT } RecordKind;

typedef struct {
    RecordKind kind;
    ChatMessage *messages; /* RECORD_TEXT: one, of any role */
    size_t n, capacity;
    bool has_tools;          /* a list of tools that is not empty, which no template here shows */
    JsonDoc json;            /* the record; texts point into it */
    JsonDoc call, arguments; /* of a tool call that is JSON in a string */
    struct TextBlock *made;  /* the texts that stand in no JSON */
} Conversation;              /* {0} is empty; may be parsed into again; conversation_free */

/* Renamed columns: "completion=answer,prompt=question". Any of the names above may be on the left. */
typedef struct {
    char *text;               /* the copy that `names` points into */
    const char *names[16][2]; /* the name here, the column's */
    size_t n;
} ChatColumns; /* {0}: none */
int chat_columns_parse(ChatColumns *columns, const char *text);
void chat_columns_free(ChatColumns *columns);
uint64_t chat_columns_hash(const ChatColumns *columns, uint64_t hash); /* columns may be NULL */

/* Reads one JSON object. ERR_REFUSED says what is wrong with it; the caller adds the file and line. */
int conversation_parse(Conversation *conversation, const char *json, size_t size, const ChatColumns *columns);
/* The same in two: the JSON, and what it means. */
int conversation_load(Conversation *conversation, const char *json, size_t size);
int conversation_read(Conversation *conversation, const ChatColumns *columns);
void conversation_free(Conversation *conversation);

/* For those who make conversations themselves: the text is the caller's. */
int conversation_add(Conversation *conversation, ChatRole role, const char *text);

/* Whether the roles are in an order that every template can show: [system], then user and assistant in turns, with
 * tool messages between two of an assistant's. ERR_REFUSED names the message. */
int conversation_check_roles(const Conversation *conversation);

#endif
