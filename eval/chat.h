/* A conversation with a model: its messages, and a generator whose cache of keys and values stays from turn to turn, so
 * that a turn costs its own tokens and not the conversation's. */
#ifndef CRIA_EVAL_CHAT_H
#define CRIA_EVAL_CHAT_H

#include "data/chat/template.h"
#include "eval/generator.h"
#include "model/core/text.h"

typedef struct Chat Chat;

/* Model, tokenizer and template must outlive it. `context`: tokens of the whole conversation, at most the model's. */
int chat_new(Chat **chat, Llama *model, const Tokenizer *tokenizer, const ChatTemplate *chat_template, int context);
void chat_free(Chat *chat);

/* Begins anew; `system` is the system message, or NULL. */
int chat_begin(Chat *chat, const char *system);

/* Asks for an answer to `text`. The stop tokens are the template's. Without room for the question and one token of an
 * answer it is ERR_REFUSED, and the conversation as it was. An answer that `emit` breaks off stays as far as it came,
 * and the error is the one that emit returned. */
int chat_ask(Chat *chat, const char *text, const GenerateOptions *options, FinishReason *reason);

/* Forgets the oldest turn: a user's message and all up to the next one's. False where there is none but the last. */
bool chat_drop_oldest(Chat *chat);

/* Tokens of the conversation with a question added, as chat_ask would begin. */
int chat_count(Chat *chat, const char *text, size_t *n);
int chat_context(const Chat *chat);
size_t chat_computed(const Chat *chat); /* tokens put through the model so far, over all turns */

/* The conversation as a record, {"messages": [{"role", "content"}, …]}, on one line. */
int chat_record(const Chat *chat, Text *out);

#endif
