/* See continuation.h. */
#include "eval/continuation.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

int continuation_begin(Continuation *c, const TokenList *prompt) {
    *c = (Continuation){.n_prompt = prompt->n, .stop_token = -1};
    return token_list_append(&c->tokens, prompt->ids, prompt->n);
}

void continuation_free(Continuation *c) {
    token_list_free(&c->tokens);
    text_free(&c->text);
    free(c->logprobs);
    *c = (Continuation){.stop_token = -1};
}

/* Length of the text without a character that is still incomplete at its end. */
static size_t whole_characters(const char *text, size_t n) {
    uint32_t code;
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char byte = (unsigned char)text[n - back];
        if ((byte & 0xc0) == 0x80) continue;
        size_t wants = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
        return wants > back && utf8_decode(text + n - back, back, &code) == 0 ? n - back : n;
    }
    return n;
}

/* Bytes that may be shown: everything but a tail that could become a stop text. */
static size_t safe_length(const Text *text, const GenerateOptions *options) {
    size_t safe = text->length;
    for (size_t i = 0; i < options->n_stop; i++) {
        size_t n = strlen(options->stop[i]), longest = n < text->length + 1 ? n : text->length + 1;
        for (size_t tail = longest > 0 ? longest - 1 : 0; tail > 0; tail--)
            if (memcmp(text->bytes + text->length - tail, options->stop[i], tail) == 0) {
                if (text->length - tail < safe) safe = text->length - tail;
                break;
            }
    }
    return safe;
}

/* The first stop text that ends behind `from`. */
static bool find_stop_text(const Text *text, size_t from, const GenerateOptions *options, size_t *at) {
    bool found = false;
    for (size_t i = 0; i < options->n_stop; i++) {
        size_t n = strlen(options->stop[i]), begin = from > n ? from - n : 0;
        const char *hit =
            n && text->length ? memmem(text->bytes + begin, text->length - begin, options->stop[i], n) : NULL;
        if (hit && (!found || (size_t)(hit - text->bytes) < *at)) {
            *at = (size_t)(hit - text->bytes);
            found = true;
        }
    }
    return found;
}

static int emit_up_to(Continuation *c, const GenerateOptions *options, size_t sequence, size_t end, bool last) {
    if (!last) end = whole_characters(c->text.bytes, end);
    if (!options->emit || end <= c->emitted) return OK;
    TRY(options->emit(options->context, sequence, c->text.bytes + c->emitted, end - c->emitted));
    c->emitted = end;
    return OK;
}

static bool is_stop_token(const Tokenizer *tokenizer, const GenerateOptions *options, int32_t id) {
    for (size_t i = 0; i < options->n_stop_tokens; i++)
        if (options->stop_tokens[i] == id) return true;
    return id == tokenizer_eos(tokenizer);
}

static int add_logprob(Continuation *c, double logprob) {
    if (c->n_logprobs == c->logprobs_capacity) {
        size_t capacity = 2 * c->logprobs_capacity + 32;
        float *grown = realloc(c->logprobs, capacity * sizeof *grown);
        if (!grown) FAIL(ERR_FAILED, "out of memory");
        c->logprobs = grown;
        c->logprobs_capacity = capacity;
    }
    c->logprobs[c->n_logprobs++] = (float)logprob;
    return OK;
}

int continuation_add(Continuation *c, const Tokenizer *tokenizer, int32_t id, double logprob,
                     const GenerateOptions *options, size_t max_sequence, size_t sequence, FinishReason *reason,
                     bool *finished) {
    size_t stop_at = 0, n_new = c->tokens.n - c->n_prompt, size, before = c->text.length;
    *finished = true;
    *reason = FINISH_STOP_TOKEN;
    TRY(add_logprob(c, logprob));
    if (is_stop_token(tokenizer, options, id)) {
        c->stop_token = id;
        return emit_up_to(c, options, sequence, c->text.length, true);
    }
    /* Special tokens, and rows that pad the embedding beyond the vocabulary, have no text. */
    const char *piece = tokenizer_piece(tokenizer, c->tokens.ids[c->tokens.n - 1], id, &size);
    text_append(&c->text, piece, size);
    TRY(text_check(&c->text));
    TRY(token_list_append(&c->tokens, &id, 1));
    *reason = FINISH_STOP_TEXT;
    if (find_stop_text(&c->text, before, options, &stop_at)) {
        c->text.length = stop_at;
        return emit_up_to(c, options, sequence, stop_at, true);
    }
    bool full = c->tokens.n >= max_sequence, all_made = n_new + 1 >= (size_t)options->max_new_tokens;
    *reason = all_made ? FINISH_LENGTH : FINISH_CONTEXT;
    *finished = full || all_made;
    return emit_up_to(c, options, sequence, *finished ? c->text.length : safe_length(&c->text, options), *finished);
}

int continuation_end(Continuation *c, FinishReason reason, Generation *out) {
    *out = (Generation){.reason = reason, .text_size = c->text.length, .stop_token = c->stop_token};
    out->text = malloc(c->text.length + 1);
    if (!out->text) FAIL(ERR_FAILED, "out of memory");
    if (c->text.length) memcpy(out->text, c->text.bytes, c->text.length);
    out->text[c->text.length] = '\0';
    out->logprobs = c->logprobs;
    out->n_logprobs = c->n_logprobs;
    c->logprobs = NULL;
    for (size_t i = 0; i < out->n_logprobs; i++) out->logprob += (double)out->logprobs[i];
    TRY(token_list_append(&out->tokens, c->tokens.ids + c->n_prompt, c->tokens.n - c->n_prompt));
    continuation_free(c);
    return OK;
}

void generation_free(Generation *generation) {
    token_list_free(&generation->tokens);
    free(generation->text);
    free(generation->logprobs);
    *generation = (Generation){0};
}

const char *finish_reason_name(FinishReason reason) {
    static const char *const names[] = {"stop-token", "stop-text", "length", "context"};
    return names[reason];
}
