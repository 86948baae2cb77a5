/* See prompts.h. */
#include "train/answers/prompts.h"

#include <stdlib.h>
#include <string.h>

#include "data/source.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/text.h"

void prompts_truncate(Prompts *prompts, size_t n) {
    for (size_t i = n; i < prompts->n; i++) {
        token_list_free(&prompts->items[i].tokens);
        json_decref(prompts->items[i].prompt);
        free(prompts->items[i].text);
        free(prompts->items[i].place);
        json_decref(prompts->items[i].record);
        json_decref(prompts->items[i].answer);
    }
    prompts->n = n < prompts->n ? n : prompts->n;
}

void prompts_free(Prompts *prompts) {
    prompts_truncate(prompts, 0);
    free(prompts->items);
    *prompts = (Prompts){0};
}

const char *prompt_place(const Prompt *prompt) {
    return prompt->place ? prompt->place : "the prompt";
}

static int set_place(Prompts *prompts, const char *path, int64_t line) {
    Text place = {0};
    text_printf(&place, "%s:%lld", path, (long long)line);
    TRY(text_check(&place));
    prompts->items[prompts->n - 1].place = place.bytes;
    return OK;
}

static int add(Prompts *prompts, Prompt **added) {
    if (prompts->n == prompts->capacity) {
        size_t capacity = 2 * prompts->capacity + 16;
        Prompt *grown = realloc(prompts->items, capacity * sizeof *grown);
        if (!grown) FAIL(ERR_FAILED, "out of memory");
        prompts->items = grown;
        prompts->capacity = capacity;
    }
    *added = &prompts->items[prompts->n++];
    **added = (Prompt){0};
    return OK;
}

/* The messages before the answer, up to where the model goes on. */
static int render(Prompt *prompt, const ChatTemplate *chat, const Conversation *conversation) {
    ChatTokens tokens = {0};
    int rc = chat_render_prompt(chat, conversation, &tokens);
    if (rc == OK) rc = token_list_append(&prompt->tokens, tokens.ids, tokens.n);
    chat_tokens_free(&tokens);
    return rc;
}

static int take_text(Prompt *prompt, const PromptOptions *options, const char *text, size_t size) {
    prompt->text = malloc(size + 1);
    if (!prompt->text) FAIL(ERR_FAILED, "out of memory");
    memcpy(prompt->text, text, size);
    prompt->text[size] = '\0';
    prompt->size = size;
    prompt->prompt = json_stringn(text, size);
    if (!options->chat)
        return tokenizer_encode(options->tokenizer, text, size, options->bos ? TOKENIZE_BOS : 0, &prompt->tokens);
    Conversation conversation = {.kind = RECORD_MESSAGES};
    int rc = conversation_add(&conversation, CHAT_USER, prompt->text);
    if (rc == OK) conversation.messages[0].text.size = size; /* U+0000 is a character like any other */
    if (rc == OK) rc = render(prompt, options->chat, &conversation);
    conversation_free(&conversation);
    return rc;
}

int prompts_add_text(Prompts *prompts, const PromptOptions *options, const char *text, size_t size) {
    Prompt *prompt = NULL;
    TRY(add(prompts, &prompt));
    return take_text(prompt, options, text, size);
}

/* ---- records ---- */

static const char *column(const PromptOptions *options, const char *name) {
    for (size_t i = 0; options->columns && i < options->columns->n; i++)
        if (strcmp(options->columns->names[i][0], name) == 0) return options->columns->names[i][1];
    return name;
}

static bool has(const PromptOptions *options, const json_t *record, const char *name) {
    const json_t *value = json_object_get(record, column(options, name));
    return value && !json_is_null(value);
}

/* As record.h wants it: with an answer. */
static int complete_record(const PromptOptions *options, json_t *record) {
    const char *missing = NULL;
    if (has(options, record, "prompt") && !has(options, record, "completion")) missing = "completion";
    if (has(options, record, "instruction") && !has(options, record, "output")) missing = "output";
    if (!missing || has(options, record, "messages") || has(options, record, "conversations")) return OK;
    if (json_object_set_new(record, column(options, missing), json_string("")) != 0) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

static int parse(Conversation *conversation, const PromptOptions *options, const json_t *record) {
    json_t *complete = json_deep_copy(record);
    char *text = NULL;
    int rc = complete ? complete_record(options, complete) : ERR_FAILED;
    if (rc == OK) text = json_dumps(complete, JSON_COMPACT);
    json_decref(complete);
    if (rc == OK && !text) rc = error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    if (rc == OK) rc = conversation_parse(conversation, text, strlen(text), options->columns);
    free(text);
    return rc;
}

static int add_message(json_t *list, const ChatMessage *message) {
    json_t *content = json_stringn(message->text.bytes, message->text.size);
    if (content && message->input.bytes) { /* Alpaca's, as one text */
        Text both = {0};
        text_append(&both, message->text.bytes, message->text.size);
        text_puts(&both, "\n");
        text_append(&both, message->input.bytes, message->input.size);
        json_decref(content);
        content = both.failed ? NULL : json_stringn(both.bytes, both.length);
        text_free(&both);
    }
    json_t *object = json_pack("{s:s, s:o}", "role", chat_role_name(message->role), "content", content);
    if (!object || json_array_append_new(list, object) != 0) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

/* Splits the answer off: the messages that are a completion, of which the last is the answer. */
static int take_conversation(Prompt *prompt, const PromptOptions *options, Conversation *conversation) {
    size_t n = conversation->n;
    while (n > 0 && conversation->messages[n - 1].in_completion) n--;
    if (n < conversation->n) {
        const ChatText *last = &conversation->messages[conversation->n - 1].text;
        if (last->size > 0) prompt->answer = json_stringn(last->bytes, last->size);
    }
    if (n == 0) FAIL(ERR_REFUSED, "there is nothing to answer in it");
    conversation->n = n;
    const ChatMessage *only = &conversation->messages[0];
    if (!options->chat) {
        if (conversation->kind != RECORD_COMPLETION || n > 1 ||
            !json_is_string(json_object_get(prompt->record, column(options, "prompt"))))
            FAIL(ERR_REFUSED, "it has messages, which need a chat template; %s", options->chat_option);
        return take_text(prompt, options, only->text.bytes, only->text.size);
    }
    prompt->prompt = json_array();
    for (size_t i = 0; i < n; i++) TRY(add_message(prompt->prompt, &conversation->messages[i]));
    return render(prompt, options->chat, conversation);
}

/* What the other readers of records take is taken, and what they refuse is refused with their words. */
static int load_record(json_t **value, const Record *record) {
    const size_t flags = JSON_ALLOW_NUL;
    Conversation judged = {0};
    int rc = conversation_load(&judged, record->text, record->size);
    conversation_free(&judged);
    TRY(rc);
    *value = json_loadb(record->text, record->size, flags, NULL);
    if (!*value) /* an integer of more than 64 bits */
        *value = json_loadb(record->text, record->size, flags | JSON_DECODE_INT_AS_REAL, NULL);
    if (!*value) FAIL(ERR_FAILED, "out of memory for a record of %zu bytes", record->size);
    return OK;
}

static int take_record(Prompts *prompts, const PromptOptions *options, const Record *record) {
    Prompt *prompt = NULL;
    Conversation conversation = {0};
    TRY(add(prompts, &prompt));
    TRY(load_record(&prompt->record, record));
    int rc = parse(&conversation, options, prompt->record);
    if (rc == OK && conversation.kind == RECORD_TEXT) {
        const ChatText *text = &conversation.messages[0].text;
        PromptOptions plain = *options;
        plain.chat = NULL;
        rc = take_text(prompt, &plain, text->bytes, text->size);
    } else if (rc == OK) {
        rc = take_conversation(prompt, options, &conversation);
    }
    conversation_free(&conversation);
    return rc;
}

static int read_records(Prompts *prompts, const PromptOptions *options, char *const *path) {
    RecordReader *reader;
    Record record;
    bool found = true;
    TRY(records_open(&reader, &(RecordOptions){.paths = path, .n_paths = 1, .fail_on_error = true, .whole = true}));
    int rc = records_next(reader, &record, &found);
    for (; rc == OK && found; rc = records_next(reader, &record, &found)) {
        rc = take_record(prompts, options, &record);
        if (rc != OK) {
            rc = error_context(rc, "%s:%lld", record.path, (long long)record.line);
            break;
        }
        rc = set_place(prompts, record.path, record.line);
        if (rc != OK) break;
    }
    records_close(reader);
    return rc;
}

static int read_lines(Prompts *prompts, const PromptOptions *options, const char *path) {
    int rc = OK;
    int64_t number = 1;
    char *bytes;
    size_t size;
    TRY(file_read(&bytes, &size, path, 0));
    for (char *line = bytes, *end; line < bytes + size && rc == OK; line = end + 1, number++) {
        end = memchr(line, '\n', (size_t)(bytes + size - line));
        if (!end) end = bytes + size;
        const char *last = end > line && end[-1] == '\r' ? end - 1 : end; /* a file from Windows */
        if (last == line) continue;
        rc = prompts_add_text(prompts, options, line, (size_t)(last - line));
        rc = rc == OK ? set_place(prompts, path, number) : error_context(rc, "%s:%lld", path, (long long)number);
    }
    free(bytes);
    return rc;
}

int prompts_read(Prompts *prompts, const PromptOptions *options, const char *path) {
    char **paths;
    size_t n, before = prompts->n;
    int rc = OK;
    TRY(source_files(&paths, &n, path));
    for (size_t i = 0; i < n && rc == OK; i++)
        rc = source_is_jsonl(paths[i]) ? read_records(prompts, options, &paths[i])
                                       : read_lines(prompts, options, paths[i]);
    names_free(paths, n);
    TRY(rc);
    if (prompts->n == before) FAIL(ERR_REFUSED, "%s: there is no prompt in it", path);
    return OK;
}
