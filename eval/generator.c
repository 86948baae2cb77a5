/* See generator.h. */
#include "eval/generator.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/text.h"

enum { PREFILL_CHUNK = 256, IDLE = -1 };

typedef struct {
    ptrdiff_t prompt; /* index, or IDLE */
    TokenList tokens; /* prompt and continuation */
    size_t n_prompt;  /* of them from the prompt */
    size_t n_cached;  /* of them in the cache */
    Text text;        /* of the continuation so far */
    size_t emitted;   /* bytes of it given to emit */
    double logprob;
} Sequence;

struct Generator {
    Llama *model;
    const Tokenizer *tokenizer;
    GeneratorOptions options;
    KvCache *cache;
    Tape *tape;
    Tensor *last, *logits; /* last: for each sequence that samples, its last row in the batch */
    int capacity;
    size_t n_computed;
    Sequence *sequences; /* [max_batch] */
    TokenList *kept;     /* [max_batch] with `keep`: whose keys and values a slot's cache holds */
    int32_t *ids, *positions, *slots, *last_rows, *segment_start, *samplers; /* one step's batch */
};

int generator_new(Generator **out, Llama *model, const Tokenizer *tokenizer, GeneratorOptions options) {
    int rc = OK;
    Generator *g = calloc(1, sizeof *g);
    *out = NULL;
    if (!g) FAIL(ERR_FAILED, "out of memory");
    g->model = model;
    g->tokenizer = tokenizer;
    g->options = options;
    g->capacity = options.max_batch > PREFILL_CHUNK ? options.max_batch : PREFILL_CHUNK;
    size_t rows = (size_t)g->capacity + 1, slots = (size_t)options.max_batch;
    g->sequences = calloc(slots, sizeof *g->sequences);
    g->kept = calloc(slots, sizeof *g->kept);
    g->ids = malloc((3 * rows + 3 * slots + 1) * sizeof *g->ids);
    if (options.max_batch <= 0 || options.max_sequence <= 1 || options.max_sequence > model->rotary.n_positions)
        FAIL_TO(failed, ERR_USAGE, "max_batch %d and max_sequence %d; at least 1, and 2 to %d, are expected",
                options.max_batch, options.max_sequence, model->rotary.n_positions);
    if (!g->sequences || !g->kept || !g->ids) FAIL_TO(failed, ERR_FAILED, "out of memory");
    g->positions = g->ids + rows;
    g->slots = g->positions + rows;
    g->last_rows = g->slots + rows;
    g->samplers = g->last_rows + slots;
    g->segment_start = g->samplers + slots;
    for (int s = 0; s < options.max_batch; s++) g->sequences[s].prompt = IDLE;
    TRY_TO(failed, kv_cache_new(&g->cache, &model->shape, options.max_batch, options.max_sequence));
    g->tape = tape_new(&(TapeOptions){.capacity = g->capacity,
                                      .segments = options.max_batch,
                                      .samples = options.max_batch,
                                      .dtype = model->inference});
    if (!g->tape) FAIL_TO(failed, ERR_FAILED, "out of memory");
    g->last = tape_input(g->tape, ROWS_SAMPLES, 1, DTYPE_I32, false);
    Tensor *hidden = llama_hidden(g->tape, model, (LlamaRecord){.cache = g->cache});
    g->logits = op_logits(g->tape, op_gather(g->tape, hidden, g->last), &model->head);
    tape_keep(g->logits);
    TRY_TO(failed, tape_plan(g->tape));
    *out = g;
    return OK;
failed:
    generator_free(g);
    return rc;
}

static void sequence_clear(Sequence *sequence) {
    token_list_free(&sequence->tokens);
    text_free(&sequence->text);
    *sequence = (Sequence){.prompt = IDLE};
}

void generator_free(Generator *g) {
    if (!g) return;
    for (int s = 0; g->sequences && s < g->options.max_batch; s++) sequence_clear(&g->sequences[s]);
    for (int s = 0; g->kept && s < g->options.max_batch; s++) token_list_free(&g->kept[s]);
    free(g->kept);
    tape_free(g->tape);
    kv_cache_free(g->cache);
    free(g->sequences);
    free(g->ids);
    free(g);
}

size_t generator_computed(const Generator *g) {
    return g->n_computed;
}
size_t generator_bytes(const Generator *g) {
    return g->cache->bytes + tape_bytes(g->tape);
}

void generation_free(Generation *generation) {
    token_list_free(&generation->tokens);
    free(generation->text);
    *generation = (Generation){0};
}

/* ---- one step: the batch, and its forward pass ---- */

/* What the slot's cache holds of the prompt need not be computed again, but for its last token, which samples. What
 * lies beyond is about to be overwritten. */
static void reuse_cache(Generator *g, int slot) {
    TokenList *kept = &g->kept[slot];
    Sequence *q = &g->sequences[slot];
    size_t n = 0;
    while (n + 1 < q->tokens.n && n < kept->n && kept->ids[n] == q->tokens.ids[n]) n++;
    q->n_cached = kept->n = n;
}

static int start_sequence(Generator *g, int slot, const TokenList *prompt, size_t index) {
    Sequence *sequence = &g->sequences[slot];
    int32_t bos = tokenizer_bos(g->tokenizer);
    sequence->prompt = (ptrdiff_t)index;
    TRY(token_list_append(&sequence->tokens, prompt->ids, prompt->n));
    if (prompt->n == 0) {
        if (bos < 0) FAIL(ERR_USAGE, "prompt %zu is empty, and this tokenizer has no BOS to begin with", index);
        TRY(token_list_append(&sequence->tokens, &bos, 1));
    }
    sequence->n_prompt = sequence->tokens.n;
    if (sequence->n_prompt >= (size_t)g->options.max_sequence)
        FAIL(ERR_REFUSED, "prompt %zu has %zu tokens; with max_sequence %d there is no room for an answer", index,
             sequence->n_prompt, g->options.max_sequence);
    if (g->options.keep) reuse_cache(g, slot);
    return OK;
}

/* Decoding sequences get their token first; the rest of the capacity goes to prompts, in order of slot. */
static void fill_batch(Generator *g, TapeBatch *batch) {
    int rows = 0, samplers = 0, segments = 0, decoding = 0;
    for (int s = 0; s < g->options.max_batch; s++) {
        const Sequence *q = &g->sequences[s];
        decoding += q->prompt != IDLE && q->tokens.n - q->n_cached == 1;
    }
    int for_prompts = g->capacity - decoding;
    g->segment_start[0] = 0;
    for (int s = 0; s < g->options.max_batch; s++) {
        Sequence *q = &g->sequences[s];
        if (q->prompt == IDLE) continue;
        int left = (int)(q->tokens.n - q->n_cached), take = left;
        if (left > 1) {
            take = left < for_prompts ? left : for_prompts;
            for_prompts -= take;
        }
        if (take == 0) continue;
        for (int i = 0; i < take; i++, rows++) {
            g->ids[rows] = q->tokens.ids[q->n_cached + (size_t)i];
            g->positions[rows] = (int32_t)q->n_cached + i;
            g->slots[rows] = s;
        }
        q->n_cached += (size_t)take;
        g->segment_start[++segments] = rows;
        if (take == left) {
            g->last_rows[samplers] = rows - 1;
            g->samplers[samplers++] = s;
        }
    }
    *batch = (TapeBatch){.n_tokens = rows,
                         .n_segments = segments,
                         .n_samples = samplers,
                         .tokens = g->ids,
                         .positions = g->positions,
                         .slots = g->slots,
                         .segment_start = g->segment_start};
}

/* ---- what a new token means ---- */

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

static bool find_stop_text(const Text *text, const GenerateOptions *options, size_t *at) {
    bool found = false;
    for (size_t i = 0; i < options->n_stop; i++) {
        size_t n = strlen(options->stop[i]);
        const char *hit = n && text->length ? memmem(text->bytes, text->length, options->stop[i], n) : NULL;
        if (hit && (!found || (size_t)(hit - text->bytes) < *at)) {
            *at = (size_t)(hit - text->bytes);
            found = true;
        }
    }
    return found;
}

static int emit_up_to(Sequence *q, const GenerateOptions *options, size_t end, bool last) {
    if (!last) end = whole_characters(q->text.bytes, end);
    if (!options->emit || end <= q->emitted) return OK;
    TRY(options->emit(options->context, (size_t)q->prompt, q->text.bytes + q->emitted, end - q->emitted));
    q->emitted = end;
    return OK;
}

static bool is_stop_token(const Generator *g, const GenerateOptions *options, int32_t id) {
    for (size_t i = 0; i < options->n_stop_tokens; i++)
        if (options->stop_tokens[i] == id) return true;
    return id == tokenizer_eos(g->tokenizer);
}

/* Special tokens, and rows that pad the embedding beyond the vocabulary, have no text. */
static int append_text(Generator *g, Sequence *q, int32_t id) {
    size_t size;
    const char *piece = tokenizer_piece(g->tokenizer, q->tokens.ids[q->tokens.n - 1], id, &size);
    text_append(&q->text, piece, size);
    return text_check(&q->text);
}

/* Takes the token into the sequence. *finished where it ends here. */
static int accept(Generator *g, Sequence *q, int32_t id, const GenerateOptions *options, FinishReason *reason,
                  bool *finished) {
    size_t stop_at = 0, n_new = q->tokens.n - q->n_prompt;
    *finished = true;
    *reason = FINISH_STOP_TOKEN;
    if (is_stop_token(g, options, id)) return emit_up_to(q, options, q->text.length, true);
    TRY(append_text(g, q, id));
    TRY(token_list_append(&q->tokens, &id, 1));
    *reason = FINISH_STOP_TEXT;
    if (find_stop_text(&q->text, options, &stop_at)) {
        q->text.length = stop_at;
        return emit_up_to(q, options, stop_at, true);
    }
    bool full = q->tokens.n >= (size_t)g->options.max_sequence;
    bool all_made = n_new + 1 >= (size_t)options->max_new_tokens;
    *reason = all_made ? FINISH_LENGTH : FINISH_CONTEXT;
    *finished = full || all_made;
    return emit_up_to(q, options, *finished ? q->text.length : safe_length(&q->text, options), *finished);
}

static int finish(Sequence *q, FinishReason reason, Generation *out) {
    *out = (Generation){.logprob = q->logprob, .reason = reason, .text_size = q->text.length};
    out->text = malloc(q->text.length + 1);
    if (!out->text) FAIL(ERR_FAILED, "out of memory");
    if (q->text.length) memcpy(out->text, q->text.bytes, q->text.length);
    out->text[q->text.length] = '\0';
    TRY(token_list_append(&out->tokens, q->tokens.ids + q->n_prompt, q->tokens.n - q->n_prompt));
    sequence_clear(q);
    return OK;
}

/* The tokens whose keys and values the slot's cache holds. */
static int keep_cache(Generator *g, int slot) {
    const Sequence *q = &g->sequences[slot];
    g->kept[slot].n = 0;
    return token_list_append(&g->kept[slot], q->tokens.ids, q->n_cached);
}

/* ---- the run ---- */

static int sample_all(Generator *g, Sampler *sampler, const TapeBatch *batch, const GenerateOptions *options,
                      Generation *out, size_t *n_finished) {
    const float *logits = tape_value(g->tape, 0, g->logits);
    size_t vocab = (size_t)g->model->shape.vocab_size;
    for (int i = 0; i < batch->n_samples; i++) {
        Sequence *q = &g->sequences[g->samplers[i]];
        double logprob;
        FinishReason reason;
        bool finished;
        int32_t id;
        TRY(sampler_next(sampler, logits + (size_t)i * vocab, q->tokens.ids, q->tokens.n, (uint64_t)q->prompt,
                         q->tokens.n, &id, &logprob));
        q->logprob += logprob;
        TRY(accept(g, q, id, options, &reason, &finished));
        if (!finished) continue;
        (*n_finished)++;
        if (g->options.keep) TRY(keep_cache(g, g->samplers[i]));
        TRY(finish(q, reason, &out[q->prompt]));
    }
    return OK;
}

static int step(Generator *g, Sampler *sampler, const GenerateOptions *options, Generation *out, size_t *n_finished) {
    TapeBatch batch;
    fill_batch(g, &batch);
    g->n_computed += (size_t)batch.n_tokens;
    TRY(tape_bind(g->tape, 0, &batch));
    tape_bind_input(0, g->last, g->last_rows);
    TRY(tape_forward(g->tape, 0));
    return sample_all(g, sampler, &batch, options, out, n_finished);
}

int generator_run(Generator *g, const TokenList *prompts, size_t n, const GenerateOptions *options, Generation *out) {
    int rc = OK;
    size_t next = 0, n_finished = 0;
    Sampler *sampler;
    TRY(sampler_new(&sampler, g->model->shape.vocab_size, options->sampler));
    for (size_t i = 0; i < n; i++) out[i] = (Generation){0};
    while (n_finished < n) {
        for (int s = 0; s < g->options.max_batch && next < n; s++)
            if (g->sequences[s].prompt == IDLE) {
                TRY_TO(done, start_sequence(g, s, &prompts[next], next));
                next++;
            }
        TRY_TO(done, step(g, sampler, options, out, &n_finished));
    }
done:
    for (int s = 0; s < g->options.max_batch; s++) sequence_clear(&g->sequences[s]);
    for (size_t i = 0; i < n && rc != OK; i++) generation_free(&out[i]);
    sampler_free(sampler);
    return rc;
}
