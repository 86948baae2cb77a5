/* See generator.h. Slots of the cache: one for each sequence, then one for each prompt that is being computed or has
 * samples left to begin (a prefix). A sequence waits in its slot until its prefix is there, shares its pages, and draws
 * its first token from the prefix's last row of logits; from then on it is one row of every step. Prompts are cut into
 * chunks that depend on the prompt alone. */
#include "eval/generator.h"

#include <stdlib.h>
#include <string.h>

#include "eval/continuation.h"
#include "model/core/error.h"

enum { PREFILL_CHUNK = 256, IDLE = -1, NONE = -1 };

typedef struct {
    ptrdiff_t prompt; /* index, or IDLE */
    int sample;
    int prefix;      /* that it waits for; NONE: it decodes */
    size_t n_cached; /* tokens in the cache */
    Continuation text;
} Sequence;

typedef struct {
    ptrdiff_t prompt; /* index, or IDLE */
    TokenList tokens;
    size_t n_cached; /* all of them: its last row of logits is in `logits` */
    int n_waiting;
    bool more; /* samples that have no slot yet */
} Prefix;

struct Generator {
    Llama *model;
    const Tokenizer *tokenizer;
    GeneratorOptions options;
    KvCache *cache;
    Tape *tape;
    Tensor *last, *logits; /* last: the rows of the batch that are sampled from */
    int capacity;
    size_t n_computed;
    Sequence *sequences; /* [max_batch] */
    Prefix *prefixes;    /* [max_batch + 1] */
    TokenList *kept;     /* [max_batch] with `keep`: whose keys and values an idle slot holds */
    float *first_logits; /* [vocab] of the prefix that has more samples to come */
    int32_t *ids, *positions, *slots, *last_rows, *segment_start, *sampled; /* one step's batch; sampled: slots */
    Draw *draws;                                                            /* [max_batch] */
    int *drawers;                                                           /* [max_batch] whose draws they are */
    int n_draws;
};

/* One call of generator_run. */
typedef struct {
    const TokenList *prompts;
    size_t n;
    const GenerateOptions *options;
    Sampler *sampler;
    Generation *out;
    int samples;
    size_t next_prompt, n_finished;
    int next_sample, open; /* of the prefix that is being dealt out; NONE */
} Run;

static int prefix_slot(const Generator *g, int prefix) {
    return g->options.max_batch + prefix;
}

static int allocate(Generator *g) {
    size_t rows = (size_t)g->capacity, batch = (size_t)g->options.max_batch;
    g->sequences = calloc(batch, sizeof *g->sequences);
    g->prefixes = calloc(batch + 1, sizeof *g->prefixes);
    g->kept = calloc(batch, sizeof *g->kept);
    g->draws = calloc(batch, sizeof *g->draws);
    g->drawers = calloc(batch, sizeof *g->drawers);
    g->ids = malloc((3 * rows + 2 * batch + 2 * batch + 2) * sizeof *g->ids);
    g->first_logits = malloc((size_t)g->model->shape.vocab_size * sizeof *g->first_logits);
    if (!g->sequences || !g->prefixes || !g->kept || !g->draws || !g->drawers || !g->ids || !g->first_logits)
        FAIL(ERR_FAILED, "out of memory");
    g->positions = g->ids + rows;
    g->slots = g->positions + rows;
    g->last_rows = g->slots + rows;
    g->sampled = g->last_rows + batch;
    g->segment_start = g->sampled + batch;
    for (int s = 0; s < g->options.max_batch; s++) g->sequences[s].prompt = IDLE;
    for (int p = 0; p <= g->options.max_batch; p++) g->prefixes[p].prompt = IDLE;
    return OK;
}

static int record(Generator *g) {
    int batch = g->options.max_batch;
    Dtype dtype = llama_inference_dtype(g->model);
    int slot_pages = (g->options.max_sequence + CACHE_PAGE - 1) / CACHE_PAGE;
    /* A sequence that waits holds nothing; of a prompt that is dealt out the page that its end shares with each sample
     * is copied. */
    TRY(kv_cache_new(&g->cache, &g->model->shape,
                     (KvCacheOptions){.n_slots = 2 * batch + 1,
                                      .max_sequence = g->options.max_sequence,
                                      .n_pages = batch * (slot_pages + 1),
                                      .dtype = dtype}));
    g->tape =
        tape_new(&(TapeOptions){.capacity = g->capacity, .segments = 2 * batch + 1, .samples = batch, .dtype = dtype});
    if (!g->tape) FAIL(ERR_FAILED, "out of memory");
    g->last = tape_input(g->tape, ROWS_SAMPLES, 1, DTYPE_I32, false);
    Tensor *hidden = llama_hidden(g->tape, g->model, (LlamaRecord){.cache = g->cache});
    g->logits = op_logits(g->tape, op_gather(g->tape, hidden, g->last), &g->model->head);
    tape_keep(g->logits);
    return tape_plan(g->tape);
}

int generator_new(Generator **out, Llama *model, const Tokenizer *tokenizer, GeneratorOptions options) {
    int rc = OK;
    *out = NULL;
    if (options.max_batch <= 0 || options.max_sequence <= 1 || options.max_sequence > model->rotary.n_positions)
        FAIL(ERR_USAGE, "max_batch %d and max_sequence %d; at least 1, and 2 to %d, are expected", options.max_batch,
             options.max_sequence, model->rotary.n_positions);
    Generator *g = calloc(1, sizeof *g);
    if (!g) FAIL(ERR_FAILED, "out of memory");
    g->model = model;
    g->tokenizer = tokenizer;
    g->options = options;
    g->capacity = options.max_batch + PREFILL_CHUNK;
    TRY_TO(failed, allocate(g));
    TRY_TO(failed, record(g));
    *out = g;
    return OK;
failed:
    generator_free(g);
    return rc;
}

static void sequence_clear(Sequence *sequence) {
    continuation_free(&sequence->text);
    *sequence = (Sequence){.prompt = IDLE};
}

static void prefix_clear(Generator *g, int prefix) {
    token_list_free(&g->prefixes[prefix].tokens);
    g->prefixes[prefix] = (Prefix){.prompt = IDLE};
    if (g->cache) kv_cache_truncate(g->cache, prefix_slot(g, prefix), 0);
}

void generator_free(Generator *g) {
    if (!g) return;
    for (int s = 0; g->sequences && s < g->options.max_batch; s++) sequence_clear(&g->sequences[s]);
    for (int p = 0; g->prefixes && p <= g->options.max_batch; p++) prefix_clear(g, p);
    for (int s = 0; g->kept && s < g->options.max_batch; s++) token_list_free(&g->kept[s]);
    tape_free(g->tape);
    kv_cache_free(g->cache);
    free(g->sequences);
    free(g->prefixes);
    free(g->kept);
    free(g->draws);
    free(g->drawers);
    free(g->ids);
    free(g->first_logits);
    free(g);
}

size_t generator_computed(const Generator *g) {
    return g->n_computed;
}
size_t generator_bytes(const Generator *g) {
    return g->cache->bytes + tape_bytes(g->tape);
}

/* ---- prompts ---- */

static size_t common_length(const TokenList *a, const TokenList *b) {
    size_t n = 0;
    while (n < a->n && n < b->n && a->ids[n] == b->ids[n]) n++;
    return n;
}

/* What an idle slot holds of the prompt need not be computed again, but for the last token, which samples. */
static void reuse_cache(Generator *g, int prefix) {
    Prefix *p = &g->prefixes[prefix];
    int best = NONE;
    for (int s = 0; s < g->options.max_batch; s++) {
        size_t n = common_length(&p->tokens, &g->kept[s]);
        if (n >= p->tokens.n) n = p->tokens.n - 1;
        if (n <= p->n_cached) continue;
        best = s;
        p->n_cached = n;
    }
    if (best != NONE) kv_cache_share(g->cache, prefix_slot(g, prefix), best, (int)p->n_cached);
}

static int open_prompt(Generator *g, Run *run) {
    size_t index = run->next_prompt++;
    int32_t bos = tokenizer_bos(g->tokenizer);
    run->open = run->next_sample = 0;
    while (g->prefixes[run->open].prompt != IDLE) run->open++;
    Prefix *p = &g->prefixes[run->open];
    *p = (Prefix){.prompt = (ptrdiff_t)index, .more = true};
    TRY(token_list_append(&p->tokens, run->prompts[index].ids, run->prompts[index].n));
    if (p->tokens.n == 0) {
        if (bos < 0) FAIL(ERR_USAGE, "prompt %zu is empty, and this tokenizer has no BOS to begin with", index);
        TRY(token_list_append(&p->tokens, &bos, 1));
    }
    if (p->tokens.n >= (size_t)g->options.max_sequence)
        FAIL(ERR_REFUSED, "prompt %zu has %zu tokens; with max_sequence %d there is no room for an answer", index,
             p->tokens.n, g->options.max_sequence);
    if (g->options.keep) reuse_cache(g, run->open);
    return OK;
}

/* ---- sequences ---- */

static void add_draw(Generator *g, int slot, const float *logits) {
    const Sequence *q = &g->sequences[slot];
    g->drawers[g->n_draws] = slot;
    g->draws[g->n_draws++] = (Draw){.logits = logits,
                                    .history = q->text.tokens.ids,
                                    .n_history = q->text.tokens.n,
                                    .sample = (uint32_t)q->sample,
                                    .position = q->text.tokens.n};
}

/* From what its prefix has computed; the prefix goes with the last. */
static int start_sequence(Generator *g, int slot, const float *logits) {
    Sequence *q = &g->sequences[slot];
    Prefix *p = &g->prefixes[q->prefix];
    TRY(continuation_begin(&q->text, &p->tokens));
    kv_cache_share(g->cache, slot, prefix_slot(g, q->prefix), (int)p->tokens.n);
    q->n_cached = p->tokens.n;
    p->n_waiting--;
    if (p->n_waiting == 0 && !p->more) prefix_clear(g, q->prefix);
    q->prefix = NONE;
    add_draw(g, slot, logits);
    return OK;
}

/* Idle slots get the next samples, in order. */
static int deal_slots(Generator *g, Run *run) {
    for (int s = 0; s < g->options.max_batch; s++) {
        Sequence *q = &g->sequences[s];
        if (q->prompt != IDLE) continue;
        if (run->open == NONE && run->next_prompt == run->n) return OK;
        if (run->open == NONE) TRY(open_prompt(g, run));
        Prefix *p = &g->prefixes[run->open];
        *q = (Sequence){.prompt = p->prompt, .sample = run->next_sample++, .prefix = run->open};
        p->n_waiting++;
        p->more = run->next_sample < run->samples;
        if (!p->more) run->open = NONE;
        g->kept[s].n = 0;
        kv_cache_truncate(g->cache, s, 0);
        if (p->n_cached == p->tokens.n) TRY(start_sequence(g, s, g->first_logits));
    }
    return OK;
}

/* The tokens whose keys and values the slot's cache holds. */
static int keep_cache(Generator *g, int slot, size_t n) {
    g->kept[slot].n = 0;
    return token_list_append(&g->kept[slot], g->sequences[slot].text.tokens.ids, n);
}

static int finish(Generator *g, Run *run, int slot, FinishReason reason) {
    Sequence *q = &g->sequences[slot];
    size_t index = (size_t)q->prompt * (size_t)run->samples + (size_t)q->sample;
    if (g->options.keep)
        TRY(keep_cache(g, slot, q->n_cached));
    else
        kv_cache_truncate(g->cache, slot, 0);
    TRY(continuation_end(&q->text, reason, &run->out[index]));
    sequence_clear(q);
    run->n_finished++;
    return run->options->finished ? run->options->finished(run->options->context, index, &run->out[index]) : OK;
}

double generate_temperature(const GenerateOptions *options, int k) {
    double from = options->sampler.temperature, to = options->temperature_to;
    if (to <= 0 || options->samples <= 1) return from;
    return from + (to - from) * k / (options->samples - 1);
}

static int take_draws(Generator *g, Run *run) {
    FinishReason reason;
    bool finished;
    for (int i = 0; i < g->n_draws; i++) {
        const Sequence *q = &g->sequences[g->drawers[i]];
        g->draws[i].prompt = run->options->first_prompt + (uint32_t)q->prompt;
        g->draws[i].temperature = generate_temperature(run->options, q->sample);
    }
    TRY(sampler_draw(run->sampler, g->draws, (size_t)g->n_draws));
    for (int i = 0; i < g->n_draws; i++) {
        Sequence *q = &g->sequences[g->drawers[i]];
        TRY(continuation_add(&q->text, g->tokenizer, g->draws[i].token, g->draws[i].logprob, run->options,
                             (size_t)g->options.max_sequence,
                             (size_t)q->prompt * (size_t)run->samples + (size_t)q->sample, &reason, &finished));
        if (finished) TRY(finish(g, run, g->drawers[i], reason));
    }
    g->n_draws = 0;
    return OK;
}

/* ---- one step: the batch, and its forward pass ---- */

/* Tokens [*n_cached, *n_cached + take) of a slot; the last is sampled from where `sample`. */
static int add_rows(Generator *g, TapeBatch *batch, int slot, const int32_t *tokens, size_t *n_cached, int take,
                    bool sample) {
    TRY(kv_cache_extend(g->cache, slot, (int)*n_cached, (int)*n_cached + take));
    for (int i = 0; i < take; i++, batch->n_tokens++) {
        g->ids[batch->n_tokens] = tokens[*n_cached + (size_t)i];
        g->positions[batch->n_tokens] = (int32_t)*n_cached + i;
        g->slots[batch->n_tokens] = slot;
    }
    *n_cached += (size_t)take;
    g->segment_start[++batch->n_segments] = batch->n_tokens;
    if (!sample) return OK;
    g->last_rows[batch->n_samples] = batch->n_tokens - 1;
    g->sampled[batch->n_samples++] = slot;
    return OK;
}

/* Sequences that decode, then whole chunks of prompts as far as there is room. */
static int fill_batch(Generator *g, TapeBatch *batch) {
    *batch =
        (TapeBatch){.tokens = g->ids, .positions = g->positions, .slots = g->slots, .segment_start = g->segment_start};
    g->segment_start[0] = 0;
    for (int s = 0; s < g->options.max_batch; s++) {
        Sequence *q = &g->sequences[s];
        if (q->prompt != IDLE && q->prefix == NONE)
            TRY(add_rows(g, batch, s, q->text.tokens.ids, &q->n_cached, 1, true));
    }
    for (int i = 0; i <= g->options.max_batch; i++) {
        Prefix *p = &g->prefixes[i];
        size_t left = p->prompt == IDLE ? 0 : p->tokens.n - p->n_cached;
        int take = left < PREFILL_CHUNK ? (int)left : PREFILL_CHUNK;
        if (take > 0 && take <= g->capacity - batch->n_tokens)
            TRY(add_rows(g, batch, prefix_slot(g, i), p->tokens.ids, &p->n_cached, take, (size_t)take == left));
    }
    return OK;
}

/* The prompt's last row of logits is there: those who wait for it begin. */
static int prefix_ready(Generator *g, int prefix, const float *logits) {
    if (g->prefixes[prefix].more) memcpy(g->first_logits, logits, (size_t)g->model->shape.vocab_size * sizeof *logits);
    for (int s = 0; s < g->options.max_batch; s++) {
        const Sequence *q = &g->sequences[s];
        if (q->prompt != IDLE && q->prefix == prefix) TRY(start_sequence(g, s, logits));
    }
    return OK;
}

static int step(Generator *g) {
    TapeBatch batch;
    TRY(fill_batch(g, &batch));
    g->n_computed += (size_t)batch.n_tokens;
    TRY(tape_bind(g->tape, 0, &batch));
    tape_bind_input(0, g->last, g->last_rows);
    TRY(tape_forward(g->tape, 0));
    const float *logits = tape_value(g->tape, 0, g->logits);
    for (int i = 0; i < batch.n_samples; i++, logits += g->model->shape.vocab_size) {
        if (g->sampled[i] < g->options.max_batch)
            add_draw(g, g->sampled[i], logits);
        else
            TRY(prefix_ready(g, g->sampled[i] - g->options.max_batch, logits));
    }
    return OK;
}

/* ---- the run ---- */

/* After an error, prompts that were computed stay where `keep` says so. */
static void abandon(Generator *g) {
    for (int s = 0; s < g->options.max_batch; s++) {
        Sequence *q = &g->sequences[s];
        bool kept = q->prompt == IDLE || (g->options.keep && q->prefix == NONE && q->text.n_prompt > 0 &&
                                          keep_cache(g, s, q->text.n_prompt) == OK);
        if (!kept) g->kept[s].n = 0;
        if (!kept) kv_cache_truncate(g->cache, s, 0);
        sequence_clear(q);
    }
    for (int p = 0; p <= g->options.max_batch; p++) prefix_clear(g, p);
    g->n_draws = 0;
}

int generator_run(Generator *g, const TokenList *prompts, size_t n, const GenerateOptions *options, Generation *out) {
    int rc = OK, samples = options->samples > 0 ? options->samples : 1;
    size_t total = n * (size_t)samples;
    Run run = {.prompts = prompts, .n = n, .options = options, .out = out, .samples = samples, .open = NONE};
    TRY(sampler_new(&run.sampler, g->model->shape.vocab_size, options->sampler));
    for (size_t i = 0; i < total; i++) out[i] = (Generation){0};
    while (run.n_finished < total) {
        TRY_TO(done, deal_slots(g, &run));
        if (g->n_draws == 0) TRY_TO(done, step(g));
        TRY_TO(done, take_draws(g, &run));
    }
done:
    if (rc != OK) abandon(g);
    for (size_t i = 0; i < total && rc != OK; i++) generation_free(&out[i]);
    sampler_free(run.sampler);
    return rc;
}
