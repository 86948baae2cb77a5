/* See encode.h. What is told of a record here is the cheap part of lint (lint.c): malformed, roles out of order, what
 * the template cannot show, too long, nothing learned. */
#include "data/chat/encode.h"

#include <stdio.h>
#include <stdlib.h>

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

int chat_tell_overlong(EncodedRecord *out, size_t n, size_t context, Overlong policy, bool kept) {
    char text[128];
    const char *more = kept ? "; truncated" : policy > OVERLONG_DROP ? ", which the answer alone does not fit" : "";
    snprintf(text, sizeof text, "%zu tokens, and the context is %zu%s", n, context, more);
    RecordOutcome left_out = policy == OVERLONG_FAIL ? RECORD_REFUSED : RECORD_DROPPED;
    return encoded_record_tell(out, kept ? RECORD_TRUNCATED : left_out, text);
}

static int encode(const RecordEncoder *base, void **memory, const char *bytes, size_t size, EncodedRecord *out) {
    const ChatEncoderOptions *options = &((const ChatEncoder *)(const void *)base)->options;
    if (!*memory) *memory = calloc(1, sizeof(Scratch));
    Scratch *scratch = *memory;
    if (!scratch) FAIL(ERR_FAILED, "out of memory");
    ChatTokens *tokens = &scratch->tokens;
    *out = (EncodedRecord){0};
    int rc = conversation_parse(&scratch->conversation, bytes, size, options->columns);
    if (rc == OK) rc = chat_render(options->chat, &scratch->conversation, options->train_on, tokens);
    if (rc == ERR_REFUSED) {
        rc = encoded_record_tell(out, RECORD_BAD, error_text());
        error_clear();
        return rc;
    }
    TRY(rc);
    size_t n = tokens->n;
    bool kept = chat_fit(tokens, options->context, options->overlong);
    if (n > options->context) TRY(chat_tell_overlong(out, n, options->context, options->overlong, kept));
    if (!kept) return OK;
    if (options->mask_stop) chat_mask_stops(options->chat, tokens);
    chat_unlearn_first(tokens);
    if (tokens->n_live == 0) return encoded_record_tell(out, RECORD_MASKED, "no token of it is learned");
    return encoded_record_append(out, tokens->ids, tokens->weights, tokens->n);
}

void chat_encoder_init(ChatEncoder *encoder, const ChatEncoderOptions *options) {
    enum { VERSION = 1 }; /* of the rules above: a cache made by others is made again */
    uint64_t numbers[] = {VERSION,          chat_template_hash(options->chat), (uint64_t)options->train_on,
                          options->context, (uint64_t)options->overlong,       options->mask_stop};
    uint64_t key = chat_columns_hash(options->columns, hash_bytes(numbers, sizeof numbers, HASH_START));
    *encoder =
        (ChatEncoder){.base = {.samples = SAMPLE_DOCUMENT, .key = key, .encode = encode, .free_scratch = free_scratch},
                      .options = *options};
}
