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

const char *record_column(const RecordParser *parser, const char *name);
/* NULL where it is absent or null. */
const JsonNode *record_field(const RecordParser *parser, const JsonNode *object, const char *name);

/* A string, or OpenAI's list of {"type": "text", "text": …}. */
int record_read_text(RecordParser *parser, const JsonNode *value, const char *name, ChatText *out);
/* A text by its key; {0} where it is absent or empty. */
int record_read_optional(RecordParser *parser, const JsonNode *root, const char *name, ChatText *text);
/* Copies a text, which stays as long as what was parsed does. */
int record_keep(RecordParser *parser, const char *bytes, size_t size, ChatText *out);
/* The same, and frees `made`. */
int record_keep_text(RecordParser *parser, Text *made, ChatText *out);

int record_add_message(Conversation *conversation, ChatMessage message);
int record_read_message(RecordParser *parser, const JsonNode *object, const char *role_key, const char *text_key);
int record_read_messages(RecordParser *parser, const JsonNode *list, const char *name, const char *role_key,
                         const char *text_key);
int record_read_system(RecordParser *parser, const JsonNode *root);
/* Text of a role, or a list of messages. */
int record_read_side(RecordParser *parser, const JsonNode *root, const char *name, ChatRole role);

#endif
