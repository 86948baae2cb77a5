/* See chat.h. The whole conversation is rendered at every turn: what it has in common with the tokens in the cache,
 * which is nearly all of it, is not computed again. */
#include "eval/chat.h"

#include <stdlib.h>
#include <string.h>

#include "data/chat/json_text.h"
#include "model/core/error.h"

typedef struct {
    ChatRole role;
    char *text;
} Message;

struct Chat {
    const ChatTemplate *chat_template;
    Generator *generator;
    int context;
    Message *messages;
    size_t n, capacity;
    ChatTokens tokens;
    const GenerateOptions *options; /* of the running question */
    Text answer;                    /* as far as it has come */
};

int chat_new(Chat **out, Llama *model, const Tokenizer *tokenizer, const ChatTemplate *chat_template, int context) {
    Chat *chat = calloc(1, sizeof *chat);
    *out = NULL;
    if (!chat) FAIL(ERR_FAILED, "out of memory");
    chat->chat_template = chat_template;
    chat->context = context;
    int rc = generator_new(&chat->generator, model, tokenizer,
                           (GeneratorOptions){.max_batch = 1, .max_sequence = context, .keep = true});
    if (rc != OK) {
        chat_free(chat);
        return rc;
    }
    *out = chat;
    return OK;
}

static void drop(Chat *chat, size_t first, size_t end) {
    for (size_t i = first; i < end; i++) free(chat->messages[i].text);
    if (end < chat->n) memmove(chat->messages + first, chat->messages + end, (chat->n - end) * sizeof *chat->messages);
    chat->n -= end - first;
}

void chat_free(Chat *chat) {
    if (!chat) return;
    drop(chat, 0, chat->n);
    free(chat->messages);
    chat_tokens_free(&chat->tokens);
    text_free(&chat->answer);
    generator_free(chat->generator);
    free(chat);
}

int chat_context(const Chat *chat) {
    return chat->context;
}
size_t chat_computed(const Chat *chat) {
    return generator_computed(chat->generator);
}

static int add(Chat *chat, ChatRole role, const char *text) {
    if (chat->n == chat->capacity) {
        size_t capacity = 2 * chat->capacity + 16;
        Message *grown = realloc(chat->messages, capacity * sizeof *grown);
        if (!grown) FAIL(ERR_FAILED, "out of memory");
        chat->messages = grown;
        chat->capacity = capacity;
    }
    Message *message = &chat->messages[chat->n];
    *message = (Message){role, strdup(text)};
    if (!message->text) FAIL(ERR_FAILED, "out of memory");
    chat->n++;
    return OK;
}

int chat_begin(Chat *chat, const char *system) {
    drop(chat, 0, chat->n);
    return system ? add(chat, CHAT_SYSTEM, system) : OK;
}

bool chat_drop_oldest(Chat *chat) {
    size_t first = chat->n > 0 && chat->messages[0].role == CHAT_SYSTEM, end = first + 1;
    while (end < chat->n && chat->messages[end].role != CHAT_USER) end++;
    if (first >= chat->n) return false;
    drop(chat, first, end < chat->n ? end : chat->n);
    return true;
}

/* The conversation as it stands, whose last message is the user's, up to where the model goes on. */
static int render(Chat *chat) {
    int rc = OK;
    Conversation conversation = {.kind = RECORD_MESSAGES};
    for (size_t i = 0; i < chat->n; i++)
        TRY_TO(done, conversation_add(&conversation, chat->messages[i].role, chat->messages[i].text));
    TRY_TO(done, chat_render_prompt(chat->chat_template, &conversation, &chat->tokens));
done:
    conversation_free(&conversation);
    return rc;
}

int chat_count(Chat *chat, const char *text, size_t *n) {
    TRY(add(chat, CHAT_USER, text));
    int rc = render(chat);
    drop(chat, chat->n - 1, chat->n);
    *n = chat->tokens.n;
    return rc;
}

static int collect(void *context, size_t prompt, const char *bytes, size_t n) {
    Chat *chat = context;
    text_append(&chat->answer, bytes, n);
    TRY(text_check(&chat->answer));
    return chat->options->emit ? chat->options->emit(chat->options->context, prompt, bytes, n) : OK;
}

static int generate(Chat *chat, const GenerateOptions *options, FinishReason *reason) {
    int32_t stops[2];
    TokenList prompt = {chat->tokens.ids, chat->tokens.n, chat->tokens.n};
    GenerateOptions inner = *options;
    Generation generation;
    inner.stop_tokens = stops;
    inner.n_stop_tokens = chat_template_stops(chat->chat_template, stops);
    inner.emit = collect;
    inner.context = chat;
    chat->options = options;
    text_clear(&chat->answer);
    TRY(generator_run(chat->generator, &prompt, 1, &inner, &generation));
    *reason = generation.reason;
    generation_free(&generation);
    return OK;
}

int chat_ask(Chat *chat, const char *text, const GenerateOptions *options, FinishReason *reason) {
    TRY(add(chat, CHAT_USER, text));
    int rc = render(chat);
    if (rc == OK && chat->tokens.n >= (size_t)chat->context)
        rc = error_set(ERR_REFUSED, __FILE__, __LINE__,
                       "the conversation and this question have %zu tokens, and the context is %d", chat->tokens.n,
                       chat->context);
    if (rc != OK) {
        drop(chat, chat->n - 1, chat->n);
        return rc;
    }
    rc = generate(chat, options, reason);
    int added = add(chat, CHAT_ASSISTANT, chat->answer.bytes ? chat->answer.bytes : "");
    if (added != OK) drop(chat, chat->n - 1, chat->n);
    return rc != OK ? rc : added;
}

int chat_record(const Chat *chat, Text *out) {
    text_puts(out, "{\"messages\": [");
    for (size_t i = 0; i < chat->n; i++) {
        text_printf(out, "%s{\"role\": \"%s\", \"content\": ", i ? ", " : "", chat_role_name(chat->messages[i].role));
        json_text_string(out, chat->messages[i].text, strlen(chat->messages[i].text));
        text_puts(out, "}");
    }
    text_puts(out, "]}\n");
    return text_check(out);
}
