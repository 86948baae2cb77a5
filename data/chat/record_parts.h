/* Shared by the readers of records: conversations (record.c) and preferences (preference.c). Errors are ERR_REFUSED
 * with what was found; `name` is a key before renaming. */
#ifndef CRIA_DATA_CHAT_RECORD_PARTS_H
#define CRIA_DATA_CHAT_RECORD_PARTS_H

#include "data/chat/record.h"
#include "model/core/text.h"

typedef struct {
    Conversation *conversation; /* what is read is added to it */
    const ChatColumns *columns;
} RecordParser;

const char *record_type_name(const json_t *value); /* "a string" */
const char *record_column(const RecordParser *parser, const char *name);
/* NULL where it is absent or null. */
json_t *record_field(const RecordParser *parser, const json_t *object, const char *name);

/* A string, or OpenAI's list of {"type": "text", "text": …}. */
int record_read_text(RecordParser *parser, const json_t *value, const char *name, ChatText *out);
/* A text by its key; {0} where it is absent or empty. */
int record_read_optional(RecordParser *parser, const json_t *root, const char *name, ChatText *text);
/* Keeps the text with the conversation, and empties it. */
int record_keep_text(RecordParser *parser, Text *made, ChatText *out);

int record_add_message(Conversation *conversation, ChatMessage message);
int record_read_message(RecordParser *parser, const json_t *object, const char *role_key, const char *text_key);
int record_read_messages(RecordParser *parser, const json_t *list, const char *name, const char *role_key,
                         const char *text_key);
int record_read_system(RecordParser *parser, const json_t *root);
/* Text of a role, or a list of messages. */
int record_read_side(RecordParser *parser, const json_t *root, const char *name, ChatRole role);

#endif
