/* A record in a template, for the tests of data/chat. */
#ifndef CRIA_TESTS_CHAT_CASE_H
#define CRIA_TESTS_CHAT_CASE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/chat/template.h"
#include "data/tokenizer/tokenizer.h"
#include "tests/check_main.h"

#define CHAT_TOKENIZER "tests/golden/tokenizer_chat.json"
#define LLAMA_TOKENIZER "tests/golden/tokenizer_llama.model"

typedef struct {
    Tokenizer *tokenizer;
    ChatTemplate *chat;
    Conversation conversation;
    ChatTokens tokens;
} Case;

static inline Case case_open_spec(const char *tokenizer, const ChatTemplateSpec *spec,
                                  const ChatTemplateOptions *options) {
    Case c = {0};
    ck_assert_ptr_nonnull(spec);
    CHECK_OK(tokenizer_load(&c.tokenizer, tokenizer));
    CHECK_OK(chat_template_new(&c.chat, spec, options, c.tokenizer));
    return c;
}
static const char *tokenizer_for(const char *name) {
    return strcmp(name, "llama2") == 0 ? LLAMA_TOKENIZER : CHAT_TOKENIZER;
}
static inline Case case_open(const char *name) {
    return case_open_spec(tokenizer_for(name), chat_template_spec(name), NULL);
}
static inline void case_close(Case *c) {
    chat_tokens_free(&c->tokens);
    conversation_free(&c->conversation);
    chat_template_free(c->chat);
    tokenizer_free(c->tokenizer);
}
static inline void parse(Case *c, const char *json) {
    CHECK_OK(conversation_parse(&c->conversation, json, strlen(json), NULL));
}
static inline void render(Case *c, const char *json, TrainOn mode) {
    parse(c, json);
    CHECK_OK(chat_render(c->chat, &c->conversation, mode, &c->tokens));
}
/* The learned tokens' text, "|" between runs. */
static inline char *learned(const Case *c) {
    static char out[4096];
    out[0] = '\0';
    for (size_t i = 0; i < c->tokens.n; i++) {
        if (!(c->tokens.weights[i] > 0)) continue;
        if (i > 0 && *out && !(c->tokens.weights[i - 1] > 0)) strcat(out, "|");
        char *text;
        size_t size;
        const char *name = tokenizer_name(c->tokenizer, c->tokens.ids[i]);
        CHECK_OK(tokenizer_decode(c->tokenizer, &c->tokens.ids[i], 1, true, &text, &size));
        strcat(out, name ? name : text);
        free(text);
    }
    return out;
}
static inline size_t count_id(const Case *c, int32_t id) {
    size_t n = 0;
    for (size_t i = 0; i < c->tokens.n; i++) n += c->tokens.ids[i] == id;
    return n;
}

static const char *const TEMPLATES[] = {"llama2", "llama3", "llama3.1", "llama3.2", "alpaca", "chatml", "plain"};
enum { N_TEMPLATES = sizeof TEMPLATES / sizeof *TEMPLATES };
#define TWO_TURNS                                                                                                  \
    "{\"messages\": [{\"role\": \"user\", \"content\": \"one\"}, {\"role\": \"assistant\", \"content\": \"two\"}," \
    "{\"role\": \"user\", \"content\": \"three\"}, {\"role\": \"assistant\", \"content\": \"four\"}]}"

#endif
