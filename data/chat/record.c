/* From a JSON object to a conversation. Strings stay where the parser put them; texts made here (tool calls, contents
 * in parts) are strings of `generated`. */
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
    static const char *const known[] = {"messages",    "role",     "content", "conversations", "from",    "value",
                                        "prompt",      "text",     "input",   "completion",    "output",  "system",
                                        "instruction", "history",  "weight",  "train",         "tools",   "edited",
                                        "chosen",      "rejected", "label",   "margin",        "strength"};
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
                 "chosen, rejected, edited, margin, strength, label",
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
json_t *record_field(const RecordParser *parser, const json_t *object, const char *name) {
    json_t *value = json_object_get(object, record_column(parser, name));
    return json_is_null(value) ? NULL : value;
}

/* ---- texts --------------------------------------------------------------------------------------------------------
 */

const char *record_type_name(const json_t *value) {
    return json_is_object(value)   ? "an object"
           : json_is_array(value)  ? "an array"
           : json_is_string(value) ? "a string"
           : json_is_number(value) ? "a number"
           : json_is_null(value)   ? "null"
                                   : "true or false";
}

static ChatText string_text(const json_t *string) {
    return (ChatText){json_string_value(string), json_string_length(string)};
}

/* Keeps the text with the conversation, and empties it. */
int record_keep_text(RecordParser *parser, Text *made, ChatText *out) {
    int rc = text_check(made);
    json_t *string = rc == OK ? json_stringn(made->bytes ? made->bytes : "", made->length) : NULL;
    text_free(made);
    TRY(rc);
    if (!string) FAIL(ERR_REFUSED, "its text is not UTF-8");
    *out = string_text(string);
    if (json_array_append_new(parser->conversation->generated, string) != 0) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

/* A string, or OpenAI's list of {"type": "text", "text": …}. */
int record_read_text(RecordParser *parser, const json_t *value, const char *name, ChatText *out) {
    if (json_is_string(value)) {
        *out = string_text(value);
        return OK;
    }
    if (!json_is_array(value))
        FAIL(ERR_REFUSED, "\"%s\" is %s, not a string", record_column(parser, name), record_type_name(value));
    Text joined = {0};
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *part = json_array_get(value, i), *text = json_object_get(part, "text");
        if (!json_is_string(text)) {
            text_free(&joined);
            FAIL(ERR_REFUSED, "part %zu of \"%s\" is no {\"type\": \"text\", \"text\": …}; only text can be learned",
                 i + 1, record_column(parser, name));
        }
        text_append(&joined, json_string_value(text), json_string_length(text));
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

/* {"name": …, "arguments" | "parameters": {…}}; arguments may be that object as a string. */
static int read_call(RecordParser *parser, const json_t *function, ChatMessage *message) {
    const json_t *name = json_object_get(function, "name"), *arguments = json_object_get(function, "arguments");
    if (!arguments) arguments = json_object_get(function, "parameters");
    if (!json_is_string(name)) FAIL(ERR_REFUSED, "a tool call has no \"name\"");
    json_t *parsed = NULL;
    if (json_is_string(arguments))
        parsed = json_loadb(json_string_value(arguments), json_string_length(arguments), JSON_REJECT_DUPLICATES, NULL);
    if (json_is_string(arguments) && !parsed)
        FAIL(ERR_REFUSED, "the arguments of tool call \"%s\" are a string that is no JSON", json_string_value(name));
    const json_t *all = parsed ? parsed : arguments;
    Text made = {0}, call = {0};
    text_puts(&made, "{\"name\": \"");
    text_append(&made, json_string_value(name), json_string_length(name));
    text_puts(&made, "\", \"parameters\": ");
    json_text_append(&made, all);
    text_puts(&made, "}");
    bool strings = json_is_object(all);
    text_printf(&call, "%s.call(", json_string_value(name));
    const char *key, *between = "";
    json_t *value, *object = (json_t *)(uintptr_t)all; /* the iterator wants it mutable */
    json_object_foreach(object, key, value) {
        strings = strings && json_is_string(value);
        text_printf(&call, "%s%s=\"", between, key);
        if (json_is_string(value)) text_append(&call, json_string_value(value), json_string_length(value));
        text_puts(&call, "\"");
        between = ", ";
    }
    text_puts(&call, ")");
    json_decref(parsed);
    message->call_name = string_text(name);
    int rc = record_keep_text(parser, &made, &message->text);
    if (rc == OK && strings) return record_keep_text(parser, &call, &message->call_text);
    text_free(&call);
    return rc;
}

/* ShareGPT's function_call: JSON in a string. */
static int read_call_text(RecordParser *parser, ChatMessage *message) {
    json_error_t where;
    json_t *function = json_loadb(message->text.bytes, message->text.size, JSON_REJECT_DUPLICATES, &where);
    if (!function) FAIL(ERR_REFUSED, "a function_call's text is no JSON: %s", where.text);
    if (json_array_append_new(parser->conversation->generated, function) != 0) FAIL(ERR_FAILED, "out of memory");
    return read_call(parser, function, message);
}

static int read_calls(RecordParser *parser, const json_t *calls, ChatMessage *message) {
    if (json_array_size(calls) != 1)
        FAIL(ERR_REFUSED, "\"tool_calls\" has %zu entries; Llama's templates show one call a message",
             json_array_size(calls));
    const json_t *call = json_array_get(calls, 0), *function = json_object_get(call, "function");
    return read_call(parser, function ? function : call, message);
}

static int read_weight(const RecordParser *parser, const json_t *object, ChatMessage *message) {
    const json_t *weight = record_field(parser, object, "weight"), *train = record_field(parser, object, "train");
    if (weight && train) FAIL(ERR_REFUSED, "a message has both \"weight\" and \"train\"; one is expected");
    if (!weight && !train) return OK;
    double value = weight ? json_number_value(weight) : json_is_true(train);
    if (weight && (!json_is_number(weight) || !(value >= 0) || !isfinite((float)value)))
        FAIL(ERR_REFUSED, "a message's \"weight\" is not a number from 0 on");
    if (train && !json_is_boolean(train)) FAIL(ERR_REFUSED, "a message's \"train\" is neither true nor false");
    message->has_weight = true;
    message->weight = (float)value;
    return OK;
}

static int read_content(RecordParser *parser, const json_t *content, const char *key, bool is_call,
                        ChatMessage *message) {
    if (!content) FAIL(ERR_REFUSED, "no \"%s\"", record_column(parser, key));
    if (message->role == CHAT_TOOL) {
        Text json = {0};
        json_text_append(&json, content);
        TRY(record_keep_text(parser, &json, &message->json));
        if (!json_is_string(content)) {
            message->text = message->json;
            return OK;
        }
    }
    TRY(record_read_text(parser, content, key, &message->text));
    return is_call ? read_call_text(parser, message) : OK;
}

int record_read_message(RecordParser *parser, const json_t *object, const char *role_key, const char *text_key) {
    ChatMessage message = {0};
    bool is_call = false;
    if (!json_is_object(object))
        FAIL(ERR_REFUSED, "%s was found where an object is expected", record_type_name(object));
    const json_t *role = record_field(parser, object, role_key);
    if (!json_is_string(role)) FAIL(ERR_REFUSED, "no \"%s\" that is a string", record_column(parser, role_key));
    TRY(find_role(json_string_value(role), &message.role, &is_call));
    TRY(read_weight(parser, object, &message));
    const json_t *content = record_field(parser, object, text_key), *calls = json_object_get(object, "tool_calls");
    if (json_array_size(calls) > 0 && json_string_length(content) > 0)
        FAIL(ERR_REFUSED, "a message has both text and \"tool_calls\"; Llama's templates show one or the other");
    if (json_array_size(calls) > 0)
        TRY(read_calls(parser, calls, &message));
    else
        TRY(read_content(parser, content, text_key, is_call, &message));
    return record_add_message(parser->conversation, message);
}

int record_read_messages(RecordParser *parser, const json_t *list, const char *name, const char *role_key,
                         const char *text_key) {
    if (!json_is_array(list))
        FAIL(ERR_REFUSED, "\"%s\" is %s, not an array", record_column(parser, name), record_type_name(list));
    if (json_array_size(list) == 0) FAIL(ERR_REFUSED, "\"%s\" is empty", record_column(parser, name));
    for (size_t i = 0; i < json_array_size(list); i++) {
        int rc = record_read_message(parser, json_array_get(list, i), role_key, text_key);
        if (rc != OK) return error_context(rc, "message %zu of \"%s\"", i + 1, record_column(parser, name));
    }
    return OK;
}

/* ---- kinds of records ---------------------------------------------------------------------------------------------
 */

/* A text by its key, where it is there and not empty. */
int record_read_optional(RecordParser *parser, const json_t *root, const char *name, ChatText *text) {
    const json_t *value = record_field(parser, root, name);
    *text = (ChatText){0};
    if (!value) return OK;
    TRY(record_read_text(parser, value, name, text));
    if (text->size == 0) *text = (ChatText){0};
    return OK;
}

int record_read_system(RecordParser *parser, const json_t *root) {
    ChatMessage message = {.role = CHAT_SYSTEM};
    TRY(record_read_optional(parser, root, "system", &message.text));
    return message.text.bytes ? record_add_message(parser->conversation, message) : OK;
}

static int read_alpaca(RecordParser *parser, const json_t *root) {
    ChatMessage user = {.role = CHAT_USER}, answer = {.role = CHAT_ASSISTANT};
    TRY(record_read_system(parser, root));
    const json_t *history = record_field(parser, root, "history");
    if (history && !json_is_array(history))
        FAIL(ERR_REFUSED, "\"%s\" is not an array", record_column(parser, "history"));
    for (size_t i = 0; i < json_array_size(history); i++) {
        const json_t *turn = json_array_get(history, i);
        if (json_array_size(turn) != 2)
            FAIL(ERR_REFUSED, "entry %zu of \"%s\" is not [instruction, answer]", i + 1,
                 record_column(parser, "history"));
        TRY(record_read_text(parser, json_array_get(turn, 0), "history", &user.text));
        TRY(record_read_text(parser, json_array_get(turn, 1), "history", &answer.text));
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
int record_read_side(RecordParser *parser, const json_t *root, const char *name, ChatRole role) {
    const json_t *value = record_field(parser, root, name);
    if (json_is_array(value)) return record_read_messages(parser, value, name, "role", "content");
    ChatMessage message = {.role = role};
    TRY(record_read_text(parser, value, name, &message.text));
    if (role == CHAT_ASSISTANT) TRY(read_weight(parser, root, &message));
    return record_add_message(parser->conversation, message);
}

static int read_completion(RecordParser *parser, const json_t *root) {
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

static int read_text_record(RecordParser *parser, const json_t *root) {
    ChatMessage message = {.role = CHAT_ASSISTANT, .in_completion = true};
    TRY(record_read_text(parser, record_field(parser, root, "text"), "text", &message.text));
    TRY(read_weight(parser, root, &message));
    return record_add_message(parser->conversation, message);
}

static int refuse_keys(const json_t *root) {
    Text keys = {0};
    const char *key;
    json_t *value, *object = (json_t *)(uintptr_t)root;
    json_object_foreach(object, key, value) {
        text_printf(&keys, "%s%s", keys.length > 0 ? ", " : "", key);
    }
    error_set(ERR_REFUSED, __FILE__, __LINE__,
              "not a known kind of record: its keys are %.200s; expected messages, conversations, instruction and "
              "output, prompt and completion, or text (other names: --columns completion=answer,prompt=question); "
              "pairs, chosen and rejected, are for 'cria dpo' and 'cria reward'",
              keys.length > 0 ? keys.bytes : "none");
    text_free(&keys);
    return ERR_REFUSED;
}

static int read_kind(RecordParser *parser, const json_t *root) {
    Conversation *conversation = parser->conversation;
    const json_t *list;
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
    json_error_t where;
    json_decref(conversation->root);
    json_decref(conversation->generated);
    conversation->n = 0;
    conversation->has_tools = false;
    conversation->generated = json_array();
    conversation->root = json_loadb(json, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    if (!conversation->root && json_error_code(&where) == json_error_numeric_overflow) /* an id of 70 bits, say */
        conversation->root =
            json_loadb(json, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &where);
    if (!conversation->generated) FAIL(ERR_FAILED, "out of memory");
    if (!conversation->root)
        FAIL(ERR_REFUSED, "not a JSON object: %s (byte %d of the record)", where.text, where.position);
    if (!json_is_object(conversation->root))
        FAIL(ERR_REFUSED, "%s was found where each record must be one JSON object",
             record_type_name(conversation->root));
    return OK;
}

int conversation_read(Conversation *conversation, const ChatColumns *columns) {
    RecordParser parser = {conversation, columns};
    const json_t *tools = record_field(&parser, conversation->root, "tools");
    conversation->has_tools =
        json_array_size(tools) > 0 || (json_string_length(tools) > 0 && strcmp(json_string_value(tools), "[]") != 0);
    return read_kind(&parser, conversation->root);
}

int conversation_parse(Conversation *conversation, const char *json, size_t size, const ChatColumns *columns) {
    TRY(conversation_load(conversation, json, size));
    return conversation_read(conversation, columns);
}

void conversation_free(Conversation *conversation) {
    json_decref(conversation->root);
    json_decref(conversation->generated);
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
