/* See encode.h. What is told of a record here is the cheap part of lint (lint.c): malformed, roles out of order, what
 * the template cannot show, too long, nothing learned. */
#include "data/chat/encode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/philox.h"

typedef struct {
    Conversation conversation;
    ChatTokens tokens;
} Scratch;

static void free_scratch(void *memory) {
    Scratch *scratch = memory;
    if (!scratch) return;
    conversation_free(&scratch->conversation);
    chat_tokens_free(&scratch->tokens);
    free(scratch);
}

static int tell(EncodedRecord *out, RecordOutcome outcome, const char *text) {
    out->outcome = outcome;
    out->text = strdup(text);
    if (!out->text) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

/* Cut to the context. *kept is false where the record is not. */
static int fit(const ChatEncoderOptions *options, ChatTokens *tokens, EncodedRecord *out, bool *kept) {
    char text[128];
    size_t n = tokens->n;
    *kept = true;
    if (n <= options->context) return OK;
    *kept = chat_fit(tokens, options->context, options->overlong);
    snprintf(text, sizeof text, "%zu tokens, and the context is %zu%s", n, options->context,
             *kept ? "; truncated" : "");
    return tell(out,
                *kept                                ? RECORD_TRUNCATED
                : options->overlong == OVERLONG_DROP ? RECORD_DROPPED
                                                     : RECORD_REFUSED,
                text);
}

static int keep(const ChatTokens *tokens, EncodedRecord *out) {
    TRY(token_list_append(&out->ids, tokens->ids, tokens->n));
    out->weights = malloc(tokens->n * sizeof *out->weights);
    if (!out->weights) FAIL(ERR_FAILED, "out of memory");
    memcpy(out->weights, tokens->weights, tokens->n * sizeof *out->weights);
    return OK;
}

static bool is_learned(const ChatTokens *tokens) {
    for (size_t i = 0; i < tokens->n; i++)
        if (tokens->weights[i] > 0) return true;
    return false;
}

static int encode(const RecordEncoder *base, void **memory, const char *bytes, size_t size, EncodedRecord *out) {
    const ChatEncoderOptions *options = &((const ChatEncoder *)(const void *)base)->options;
    bool kept;
    if (!*memory) *memory = calloc(1, sizeof(Scratch));
    Scratch *scratch = *memory;
    if (!scratch) FAIL(ERR_FAILED, "out of memory");
    ChatTokens *tokens = &scratch->tokens;
    *out = (EncodedRecord){0};
    int rc = conversation_parse(&scratch->conversation, bytes, size, options->columns);
    if (rc == OK) rc = chat_render(options->chat, &scratch->conversation, options->train_on, tokens);
    if (rc == ERR_REFUSED) {
        rc = tell(out, RECORD_BAD, error_text());
        error_clear();
        return rc;
    }
    TRY(rc);
    TRY(fit(options, tokens, out, &kept));
    if (!kept) return OK;
    if (tokens->n > 0) tokens->weights[0] = 0; /* nothing foretells it */
    if (is_learned(tokens)) return keep(tokens, out);
    free(out->text);
    out->text = NULL;
    return tell(out, RECORD_MASKED, "no token of it is learned");
}

void chat_encoder_init(ChatEncoder *encoder, const ChatEncoderOptions *options) {
    enum { VERSION = 1 }; /* of the rules above: a cache made by others is made again */
    uint64_t numbers[] = {VERSION, chat_template_hash(options->chat), (uint64_t)options->train_on, options->context,
                          (uint64_t)options->overlong};
    uint64_t key = chat_columns_hash(options->columns, hash_bytes(numbers, sizeof numbers, HASH_START));
    *encoder =
        (ChatEncoder){.base = {.samples = SAMPLE_DOCUMENT, .key = key, .encode = encode, .free_scratch = free_scratch},
                      .options = *options};
}
