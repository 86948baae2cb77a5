/* From a JSON object to a conversation. Strings stay where the reader decoded them; texts made here (tool calls,
 * contents in parts) lie in blocks of the conversation's. */
#include "data/chat/record.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/chat/json_text.h"
#include "data/chat/record_parts.h"
#include "model/core/error.h"
#include "model/core/philox.h"

const char *chat_role_name(ChatRole role) {
    static const char *const names[N_CHAT_ROLES] = {"system", "user", "assistant", "tool"};
    return names[role];
}

/* ---- columns ------------------------------------------------------------------------------------------------------
 */

int chat_columns_parse(ChatColumns *columns, const char *text) {
    static const char *const known[] = {"messages",    "role",     "content", "conversations", "from",     "value",
                                        "prompt",      "text",     "input",   "completion",    "output",   "system",
                                        "instruction", "history",  "weight",  "train",         "tools",    "edited",
                                        "chosen",      "rejected", "label",   "margin",        "strength", "objective"};
    *columns = (ChatColumns){.text = strdup(text)};
    if (!columns->text) FAIL(ERR_FAILED, "out of memory");
    char *rest = columns->text, *pair;
    while ((pair = strsep(&rest, ",")) != NULL) {
        if (!*pair) continue;
        char *actual = strchr(pair, '=');
        if (!actual || actual == pair || !actual[1])
            FAIL(ERR_USAGE, "columns: '%s' is not NAME=COLUMN, as in completion=answer", pair);
        *actual++ = '\0';
        bool is_known = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) is_known = is_known || strcmp(known[i], pair) == 0;
        if (!is_known)
            FAIL(ERR_USAGE,
                 "columns: there is no column '%s' to rename; the names are messages, role, content, conversations, "
                 "from, value, prompt, completion, text, instruction, input, output, system, history, weight, train, "
                 "chosen, rejected, edited, margin, strength, objective, label",
                 pair);
        if (columns->n == sizeof columns->names / sizeof *columns->names) FAIL(ERR_USAGE, "columns: too many");
        columns->names[columns->n][0] = pair;
        columns->names[columns->n++][1] = actual;
    }
    return OK;
}

void chat_columns_free(ChatColumns *columns) {
    free(columns->text);
    *columns = (ChatColumns){0};
}

uint64_t chat_columns_hash(const ChatColumns *columns, uint64_t hash) {
    for (size_t i = 0; columns && i < columns->n; i++)
        for (int side = 0; side < 2; side++)
            hash = hash_bytes(columns->names[i][side], strlen(columns->names[i][side]) + 1, hash);
    return hash;
}

const char *record_column(const RecordParser *parser, const char *name) {
    for (size_t i = 0; parser->columns && i < parser->columns->n; i++)
        if (strcmp(parser->columns->names[i][0], name) == 0) return parser->columns->names[i][1];
    return name;
}

/* NULL where it is absent or null. */
const JsonNode *record_field(const RecordParser *parser, const JsonNode *object, const char *name) {
    const JsonNode *value = json_node_member(object, record_column(parser, name));
    return json_node_is(value, NODE_NULL) ? NULL : value;
}

/* ---- texts --------------------------------------------------------------------------------------------------------
 */

static ChatText string_text(const JsonNode *string) {
    return (ChatText){string->bytes, string->size};
}

enum { BLOCK_SIZE = 16 * 1024 };

typedef struct TextBlock {
    struct TextBlock *next; /* an earlier one */
    size_t used, capacity;
    char bytes[];
} TextBlock;

/* All but the earliest block, which serves again. */
static void drop_blocks(Conversation *conversation) {
    while (conversation->made && conversation->made->next) {
        TextBlock *block = conversation->made;
        conversation->made = block->next;
        free(block);
    }
    if (conversation->made) conversation->made->used = 0;
}

int record_keep(RecordParser *parser, const char *bytes, size_t size, ChatText *out) {
    TextBlock *block = parser->conversation->made;
    if (!block || block->capacity - block->used <= size) {
        size_t capacity = size < BLOCK_SIZE ? BLOCK_SIZE : size + 1;
        block = malloc(sizeof *block + capacity);
        if (!block) FAIL(ERR_FAILED, "out of memory");
        *block = (TextBlock){.next = parser->conversation->made, .capacity = capacity};
        parser->conversation->made = block;
    }
    char *copy = block->bytes + block->used;
    if (size > 0) memcpy(copy, bytes, size);
    copy[size] = '\0';
    block->used += size + 1;
    *out = (ChatText){copy, size};
    return OK;
}

int record_keep_text(RecordParser *parser, Text *made, ChatText *out) {
    int rc = text_check(made);
    if (rc == OK) rc = record_keep(parser, made->bytes, made->length, out);
    text_free(made);
    return rc;
}

/* A string, or OpenAI's list of {"type": "text", "text": …}. */
int record_read_text(RecordParser *parser, const JsonNode *value, const char *name, ChatText *out) {
    if (json_node_is(value, NODE_STRING)) {
        *out = string_text(value);
        return OK;
    }
    if (!json_node_is(value, NODE_ARRAY))
        FAIL(ERR_REFUSED, "\"%s\" is %s, not a string", record_column(parser, name), json_node_type_name(value));
    Text joined = {0};
    const JsonNode *part = json_node_first(value);
    for (size_t i = 0; i < value->size; i++, part = json_node_next(part)) {
        const JsonNode *text = json_node_member(part, "text");
        if (!json_node_is(text, NODE_STRING)) {
            text_free(&joined);
            FAIL(ERR_REFUSED, "part %zu of \"%s\" is no {\"type\": \"text\", \"text\": …}; only text can be learned",
                 i + 1, record_column(parser, name));
        }
        text_append(&joined, text->bytes, text->size);
    }
    return record_keep_text(parser, &joined, out);
}

/* ---- messages -----------------------------------------------------------------------------------------------------
 */

int record_add_message(Conversation *conversation, ChatMessage message) {
    if (conversation->n == conversation->capacity) {
        size_t capacity = 2 * conversation->capacity + 8;
        ChatMessage *grown = realloc(conversation->messages, capacity * sizeof *grown);
        if (!grown) FAIL(ERR_FAILED, "out of memory");
        conversation->messages = grown;
        conversation->capacity = capacity;
    }
    conversation->messages[conversation->n++] = message;
    return OK;
}

int conversation_add(Conversation *conversation, ChatRole role, const char *text) {
    return record_add_message(conversation, (ChatMessage){.role = role, .text = {text, strlen(text)}});
}

static int find_role(const char *name, ChatRole *role, bool *is_call) {
    static const struct {
        const char *name;
        ChatRole role;
    } names[] = {
        {"system", CHAT_SYSTEM},       {"developer", CHAT_SYSTEM},
        {"user", CHAT_USER},           {"human", CHAT_USER},
        {"assistant", CHAT_ASSISTANT}, {"gpt", CHAT_ASSISTANT},
        {"model", CHAT_ASSISTANT},     {"chatgpt", CHAT_ASSISTANT},
        {"bard", CHAT_ASSISTANT},      {"function_call", CHAT_ASSISTANT},
        {"tool", CHAT_TOOL},           {"ipython", CHAT_TOOL},
        {"observation", CHAT_TOOL},    {"function_response", CHAT_TOOL},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i].name, name) != 0) continue;
        *role = names[i].role;
        *is_call = strcmp(name, "function_call") == 0;
        return OK;
    }
    FAIL(ERR_REFUSED, "there is no role \"%s\"; system, user, assistant and tool are expected", name);
}

static int read_nested(JsonDoc *doc, ChatText text) {
    TRY(json_doc_read(doc, text.bytes, text.size));
    if (json_node_is(doc->nodes, NODE_OBJECT) || json_node_is(doc->nodes, NODE_ARRAY)) return OK;
    FAIL(ERR_REFUSED, "%s was found where an object is expected", json_node_type_name(doc->nodes));
}

/* name.call(key="value", …) */
static void write_call(Text *out, const JsonNode *name, const JsonNode *arguments) {
    const char *between = "";
    text_append(out, name->bytes, name->size);
    text_puts(out, ".call(");
    for (const JsonNode *key = json_node_first(arguments); key < json_node_end(arguments);
         key = json_node_next(key + 1)) {
        text_puts(out, between);
        text_append(out, key->bytes, key->size);
        text_puts(out, "=\"");
        text_append(out, key[1].bytes, key[1].size);
        text_puts(out, "\"");
        between = ", ";
    }
    text_puts(out, ")");
}

static bool all_are_strings(const JsonNode *object) {
    if (!json_node_is(object, NODE_OBJECT)) return false;
    for (const JsonNode *key = json_node_first(object); key < json_node_end(object); key = json_node_next(key + 1))
        if (!json_node_is(key + 1, NODE_STRING)) return false;
    return true;
}

/* {"name": …, "arguments" | "parameters": {…}}; arguments may be that object as a string. */
static int read_call(RecordParser *parser, const JsonNode *function, ChatMessage *message) {
    const JsonNode *name = json_node_member(function, "name"), *arguments = json_node_member(function, "arguments");
    if (!arguments) arguments = json_node_member(function, "parameters");
    if (!json_node_is(name, NODE_STRING)) FAIL(ERR_REFUSED, "a tool call has no \"name\"");
    if (json_node_is(arguments, NODE_STRING)) {
        int rc = read_nested(&parser->conversation->arguments, string_text(arguments));
        if (rc != OK)
            return error_context(rc, "the arguments of tool call \"%s\" are a string that is no JSON", name->bytes);
        arguments = parser->conversation->arguments.nodes;
    }
    Text made = {0}, call = {0};
    text_puts(&made, "{\"name\": \"");
    text_append(&made, name->bytes, name->size);
    text_puts(&made, "\", \"parameters\": ");
    json_text_append(&made, arguments);
    text_puts(&made, "}");
    TRY(record_keep_text(parser, &made, &message->text));
    TRY(record_keep(parser, name->bytes, name->size, &message->call_name));
    if (!all_are_strings(arguments)) return OK;
    write_call(&call, name, arguments);
    return record_keep_text(parser, &call, &message->call_text);
}

/* ShareGPT's function_call: JSON in a string. */
static int read_call_text(RecordParser *parser, ChatMessage *message) {
    int rc = read_nested(&parser->conversation->call, message->text);
    if (rc != OK) return error_context(rc, "a function_call's text is no JSON");
    return read_call(parser, parser->conversation->call.nodes, message);
}

static int read_calls(RecordParser *parser, const JsonNode *calls, ChatMessage *message) {
    if (calls->size != 1)
        FAIL(ERR_REFUSED, "\"tool_calls\" has %zu entries; Llama's templates show one call a message", calls->size);
    const JsonNode *call = json_node_first(calls), *function = json_node_member(call, "function");
    return read_call(parser, function ? function : call, message);
}

static int read_weight(const RecordParser *parser, const JsonNode *object, ChatMessage *message) {
    const JsonNode *weight = record_field(parser, object, "weight"), *train = record_field(parser, object, "train");
    if (weight && train) FAIL(ERR_REFUSED, "a message has both \"weight\" and \"train\"; one is expected");
    if (!weight && !train) return OK;
    double value = weight ? json_node_number(weight) : json_node_is(train, NODE_TRUE);
    if (weight && (!json_node_is_number(weight) || !(value >= 0) || !isfinite((float)value)))
        FAIL(ERR_REFUSED, "a message's \"weight\" is not a number from 0 on");
    if (train && !json_node_is(train, NODE_TRUE) && !json_node_is(train, NODE_FALSE))
        FAIL(ERR_REFUSED, "a message's \"train\" is neither true nor false");
    message->has_weight = true;
    message->weight = (float)value;
    return OK;
}

static int read_content(RecordParser *parser, const JsonNode *content, const char *key, bool is_call,
                        ChatMessage *message) {
    if (!content) FAIL(ERR_REFUSED, "no \"%s\"", record_column(parser, key));
    if (message->role == CHAT_TOOL) {
        Text json = {0};
        json_text_append(&json, content);
        TRY(record_keep_text(parser, &json, &message->json));
        if (!json_node_is(content, NODE_STRING)) {
            message->text = message->json;
            return OK;
        }
    }
    TRY(record_read_text(parser, content, key, &message->text));
    return is_call ? read_call_text(parser, message) : OK;
}

int record_read_message(RecordParser *parser, const JsonNode *object, const char *role_key, const char *text_key) {
    ChatMessage message = {0};
    bool is_call = false;
    if (!json_node_is(object, NODE_OBJECT))
        FAIL(ERR_REFUSED, "%s was found where an object is expected", json_node_type_name(object));
    const JsonNode *role = record_field(parser, object, role_key);
    if (!json_node_is(role, NODE_STRING))
        FAIL(ERR_REFUSED, "no \"%s\" that is a string", record_column(parser, role_key));
    TRY(find_role(role->bytes, &message.role, &is_call));
    TRY(read_weight(parser, object, &message));
    const JsonNode *content = record_field(parser, object, text_key), *calls = json_node_member(object, "tool_calls");
    bool has_calls = json_node_is(calls, NODE_ARRAY) && calls->size > 0;
    if (has_calls && json_node_is(content, NODE_STRING) && content->size > 0)
        FAIL(ERR_REFUSED, "a message has both text and \"tool_calls\"; Llama's templates show one or the other");
    if (has_calls)
        TRY(read_calls(parser, calls, &message));
    else
        TRY(read_content(parser, content, text_key, is_call, &message));
    return record_add_message(parser->conversation, message);
}

int record_read_messages(RecordParser *parser, const JsonNode *list, const char *name, const char *role_key,
                         const char *text_key) {
    if (!json_node_is(list, NODE_ARRAY))
        FAIL(ERR_REFUSED, "\"%s\" is %s, not an array", record_column(parser, name), json_node_type_name(list));
    if (list->size == 0) FAIL(ERR_REFUSED, "\"%s\" is empty", record_column(parser, name));
    const JsonNode *message = json_node_first(list);
    for (size_t i = 0; i < list->size; i++, message = json_node_next(message)) {
        int rc = record_read_message(parser, message, role_key, text_key);
        if (rc != OK) return error_context(rc, "message %zu of \"%s\"", i + 1, record_column(parser, name));
    }
    return OK;
}

/* ---- kinds of records ---------------------------------------------------------------------------------------------
 */

/* A text by its key, where it is there and not empty. */
int record_read_optional(RecordParser *parser, const JsonNode *root, const char *name, ChatText *text) {
    const JsonNode *value = record_field(parser, root, name);
    *text = (ChatText){0};
    if (!value) return OK;
    TRY(record_read_text(parser, value, name, text));
    if (text->size == 0) *text = (ChatText){0};
    return OK;
}

int record_read_system(RecordParser *parser, const JsonNode *root) {
    ChatMessage message = {.role = CHAT_SYSTEM};
    TRY(record_read_optional(parser, root, "system", &message.text));
    return message.text.bytes ? record_add_message(parser->conversation, message) : OK;
}

static int read_alpaca(RecordParser *parser, const JsonNode *root) {
    ChatMessage user = {.role = CHAT_USER}, answer = {.role = CHAT_ASSISTANT};
    TRY(record_read_system(parser, root));
    const JsonNode *history = record_field(parser, root, "history");
    if (history && !json_node_is(history, NODE_ARRAY))
        FAIL(ERR_REFUSED, "\"%s\" is not an array", record_column(parser, "history"));
    const JsonNode *turn = history ? json_node_first(history) : NULL;
    for (size_t i = 0; i < json_node_count(history); i++, turn = json_node_next(turn)) {
        if (!json_node_is(turn, NODE_ARRAY) || turn->size != 2)
            FAIL(ERR_REFUSED, "entry %zu of \"%s\" is not [instruction, answer]", i + 1,
                 record_column(parser, "history"));
        TRY(record_read_text(parser, json_node_element(turn, 0), "history", &user.text));
        TRY(record_read_text(parser, json_node_element(turn, 1), "history", &answer.text));
        TRY(record_add_message(parser->conversation, user));
        TRY(record_add_message(parser->conversation, answer));
    }
    TRY(record_read_text(parser, record_field(parser, root, "instruction"), "instruction", &user.text));
    TRY(record_read_optional(parser, root, "input", &user.input));
    TRY(record_read_text(parser, record_field(parser, root, "output"), "output", &answer.text));
    answer.in_completion = true;
    TRY(read_weight(parser, root, &answer));
    TRY(record_add_message(parser->conversation, user));
    return record_add_message(parser->conversation, answer);
}

/* One side of prompt, completion. */
int record_read_side(RecordParser *parser, const JsonNode *root, const char *name, ChatRole role) {
    const JsonNode *value = record_field(parser, root, name);
    if (json_node_is(value, NODE_ARRAY)) return record_read_messages(parser, value, name, "role", "content");
    ChatMessage message = {.role = role};
    TRY(record_read_text(parser, value, name, &message.text));
    if (role == CHAT_ASSISTANT) TRY(read_weight(parser, root, &message));
    return record_add_message(parser->conversation, message);
}

static int read_completion(RecordParser *parser, const JsonNode *root) {
    TRY(record_read_system(parser, root));
    TRY(record_read_side(parser, root, "prompt", CHAT_USER));
    size_t first = parser->conversation->n;
    TRY(record_read_side(parser, root, "completion", CHAT_ASSISTANT));
    for (size_t i = first; i < parser->conversation->n; i++) parser->conversation->messages[i].in_completion = true;
    return OK;
}

/* Without a prompt of its own, the completion is what follows the last user's message. */
static void mark_completion(Conversation *conversation) {
    for (size_t i = conversation->n; i-- > 0 && conversation->messages[i].role != CHAT_USER;)
        conversation->messages[i].in_completion = true;
}

static int read_text_record(RecordParser *parser, const JsonNode *root) {
    ChatMessage message = {.role = CHAT_ASSISTANT, .in_completion = true};
    TRY(record_read_text(parser, record_field(parser, root, "text"), "text", &message.text));
    TRY(read_weight(parser, root, &message));
    return record_add_message(parser->conversation, message);
}

static int refuse_keys(const JsonNode *root) {
    Text keys = {0};
    for (const JsonNode *key = json_node_first(root); key < json_node_end(root); key = json_node_next(key + 1))
        text_printf(&keys, "%s%s", keys.length > 0 ? ", " : "", key->bytes);
    error_set(ERR_REFUSED, __FILE__, __LINE__,
              "not a known kind of record: its keys are %.200s; expected messages, conversations, instruction and "
              "output, prompt and completion, or text (other names: --columns completion=answer,prompt=question); "
              "pairs, chosen and rejected, are for 'cria dpo' and 'cria reward'",
              keys.length > 0 ? keys.bytes : "none");
    text_free(&keys);
    return ERR_REFUSED;
}

static int read_kind(RecordParser *parser, const JsonNode *root) {
    Conversation *conversation = parser->conversation;
    const JsonNode *list;
    if ((list = record_field(parser, root, "messages")) != NULL) {
        conversation->kind = RECORD_MESSAGES;
        TRY(record_read_messages(parser, list, "messages", "role", "content"));
        mark_completion(conversation);
        return OK;
    }
    if ((list = record_field(parser, root, "conversations")) != NULL) {
        conversation->kind = RECORD_CONVERSATIONS;
        TRY(record_read_system(parser, root));
        TRY(record_read_messages(parser, list, "conversations", "from", "value"));
        mark_completion(conversation);
        return OK;
    }
    if (record_field(parser, root, "instruction") && record_field(parser, root, "output")) {
        conversation->kind = RECORD_ALPACA;
        return read_alpaca(parser, root);
    }
    if (record_field(parser, root, "prompt") && record_field(parser, root, "completion")) {
        conversation->kind = RECORD_COMPLETION;
        return read_completion(parser, root);
    }
    conversation->kind = RECORD_TEXT;
    return record_field(parser, root, "text") ? read_text_record(parser, root) : refuse_keys(root);
}

int conversation_load(Conversation *conversation, const char *json, size_t size) {
    conversation->n = 0;
    conversation->has_tools = false;
    drop_blocks(conversation);
    int rc = json_doc_read(&conversation->json, json, size);
    if (rc != OK) return error_context(rc, "not a JSON object");
    if (!json_node_is(conversation->json.nodes, NODE_OBJECT))
        FAIL(ERR_REFUSED, "%s was found where each record must be one JSON object",
             json_node_type_name(conversation->json.nodes));
    return OK;
}

int conversation_read(Conversation *conversation, const ChatColumns *columns) {
    RecordParser parser = {conversation, columns};
    const JsonNode *root = conversation->json.nodes, *tools = record_field(&parser, root, "tools");
    bool is_text = json_node_is(tools, NODE_STRING);
    conversation->has_tools = is_text ? tools->size > 0 && strcmp(tools->bytes, "[]") != 0
                                      : json_node_is(tools, NODE_ARRAY) && tools->size > 0;
    return read_kind(&parser, root);
}

int conversation_parse(Conversation *conversation, const char *json, size_t size, const ChatColumns *columns) {
    TRY(conversation_load(conversation, json, size));
    return conversation_read(conversation, columns);
}

void conversation_free(Conversation *conversation) {
    json_doc_free(&conversation->json);
    json_doc_free(&conversation->call);
    json_doc_free(&conversation->arguments);
    drop_blocks(conversation);
    free(conversation->made);
    free(conversation->messages);
    *conversation = (Conversation){0};
}

int conversation_check_roles(const Conversation *conversation) {
    static const bool may_follow[N_CHAT_ROLES][N_CHAT_ROLES] = {
        /* the later     system user   assistant tool */
        [CHAT_SYSTEM] = {false, true, false, false},
        [CHAT_USER] = {false, false, true, false},
        [CHAT_ASSISTANT] = {false, true, false, true},
        [CHAT_TOOL] = {false, false, true, true},
    };
    if (conversation->kind == RECORD_TEXT) return OK;
    for (size_t i = 0; i < conversation->n; i++) {
        ChatRole role = conversation->messages[i].role;
        if (i == 0 && (role == CHAT_SYSTEM || role == CHAT_USER)) continue;
        if (i == 0)
            FAIL(ERR_REFUSED, "role order: message 1 is the %s's; a system message or the user's is expected",
                 chat_role_name(role));
        ChatRole before = conversation->messages[i - 1].role;
        if (!may_follow[before][role])
            FAIL(ERR_REFUSED,
                 "role order: message %zu is the %s's, after the %s's; expected: [system], then user and assistant in "
                 "turns, tools between an assistant's messages",
                 i + 1, chat_role_name(role), chat_role_name(before));
    }
    if (conversation->n == 0 || conversation->messages[conversation->n - 1].role == CHAT_SYSTEM)
        FAIL(ERR_REFUSED, "role order: there is no user's message");
    return OK;
}
