/* JSON as Python's json.dumps(value, ensure_ascii=False) writes it, byte for byte: chat templates show tool calls and
 * tool results so, and a model must see the same characters here and there. */
#ifndef CRIA_DATA_CHAT_JSON_TEXT_H
#define CRIA_DATA_CHAT_JSON_TEXT_H

#include "data/json_doc.h"
#include "model/core/text.h"

void json_text_append(Text *out, const JsonNode *value);          /* NULL: null */
void json_text_string(Text *out, const char *bytes, size_t size); /* in quotes */

#endif
