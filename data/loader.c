/* The loader: sources opened and split, the mixed order cut into steps, a step planned and filled.
 *
 *   sequence k of the mixed order   is number q = mix_count(source, k) of source = mix_source(k)
 *   number q of a source            is sequence q - first(epoch) of the epoch it falls in
 *   step s                          is sequences s·n … s·n + n-1, n = max(1, floor(tokens_per_batch / context))
 *   rank r of R                     has sequences floor(n·r/R) … floor(n·(r+1)/R)-1 of these
 *
 * Each is computed, not remembered, so any step can be asked for. */
#include "data/loader.h"
#include "data/batch.h"
#include "data/corpus.h"
#include "data/order.h"
#include "model/core/error.h"
#include "model/core/philox.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLE_NUMBER_BITS = 40 };

static const int64_t MAX_SEQUENCES = (int64_t)1 << 56; /* that sums of them stay far from overflow */

struct Loader {
    LoaderOptions options; /* its sources' pointers are not kept */
    Corpus *sources;
    int n_sources;
    Corpus *own_validation; /* from validation_sources; NULL where validation is split off */
    int n_own_validation;
    int64_t n_samples; /* documents of all sources */
    Mix mix;
    int64_t sequences_per_step, sequences_per_epoch, n_validation_sequences, skipped;
    uint64_t fingerprint;
    bool has_weights;              /* every training source's cache has them */
    SequenceList list, mismatched; /* the step's, and of labelled answers each with another's answer */
    BatchMemory memory, mismatched_memory;
};

/* ---- options ---------------------------------------------------------------------------------------------------- */

static int check_sources(const SourceOptions *sources, int n, const char *key) {
    for (int i = 0; i < n; i++) {
        if (!sources[i].path || !*sources[i].path) FAIL(ERR_USAGE, "data.%s: source %d has no path", key, i);
        if (!(sources[i].weight > 0) || isinf(sources[i].weight))
            FAIL(ERR_USAGE, "data.%s: %s: weight is %g; expected a number above 0 (to leave a source out, remove it)",
                 key, sources[i].path, sources[i].weight);
    }
    return OK;
}

static int check_options(const LoaderOptions *options) {
    if (options->n_sources < 1) FAIL(ERR_USAGE, "data.train: no source of text was given");
    TRY(check_sources(options->sources, options->n_sources, "train"));
    TRY(check_sources(options->validation_sources, options->n_validation_sources, "validation"));
    if (!options->cache || !*options->cache) FAIL(ERR_USAGE, "data.cache: no folder was given for the token caches");
    if (!(options->validation >= 0 && options->validation < 1))
        FAIL(ERR_USAGE, "data.validation is %g; expected a share from 0 to below 1", options->validation);
    if (options->context < 1) FAIL(ERR_USAGE, "train.context is %d; expected at least 1", options->context);
    if (options->tokens_per_batch < 1)
        FAIL(ERR_USAGE, "train.tokens_per_batch is %lld; expected at least 1", (long long)options->tokens_per_batch);
    if (options->tokens_per_microbatch < options->context)
        FAIL(ERR_USAGE, "train.tokens_per_microbatch is %d; expected at least train.context, %d",
             options->tokens_per_microbatch, options->context);
    if (options->n_ranks < 1 || options->rank < 0 || options->rank >= options->n_ranks)
        FAIL(ERR_FAILED, "rank %d of %d", options->rank, options->n_ranks);
    return OK;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static const Corpus *validation_set(const Loader *loader, int *n) {
    *n = loader->own_validation ? loader->n_own_validation : loader->n_sources;
    return loader->own_validation ? loader->own_validation : loader->sources;
}

/* Shares of tokens become shares of sequences by the sequences' mean length. */
static int plan_mix(Loader *loader, const SourceOptions *wanted) {
    double *shares = calloc((size_t)loader->n_sources, sizeof *shares);
    int rc = OK;
    if (!shares) FAIL(ERR_FAILED, "out of memory");
    for (int i = 0; i < loader->n_sources; i++) {
        const EpochPlan *plan;
        TRY_TO(done, corpus_epoch(&loader->sources[i], 0, &plan));
        shares[i] = wanted[i].weight * (double)plan->n_sequences / (double)plan->n_tokens;
        loader->sequences_per_epoch += plan->n_sequences;
    }
    TRY_TO(done, mix_init(&loader->mix, shares, loader->n_sources, loader->options.seed));
done:
    free(shares);
    return rc;
}

static void take_fingerprint(Loader *loader, const SourceOptions *wanted) {
    const LoaderOptions *o = &loader->options;
    uint64_t hash = HASH_START, validation_bits;
    memcpy(&validation_bits, &o->validation, sizeof validation_bits);
    uint64_t numbers[] = {o->seed,
                          validation_bits,
                          (uint64_t)o->packing,
                          (uint64_t)o->document_mask,
                          (uint64_t)o->context,
                          (uint64_t)loader->sequences_per_step};
    hash = hash_bytes(numbers, sizeof numbers, hash);
    for (int i = 0; i < loader->n_sources; i++) {
        hash = hash_bytes(&loader->sources[i].cache.fingerprint, sizeof(uint64_t), hash);
        hash = hash_bytes(&wanted[i].weight, sizeof wanted[i].weight, hash);
    }
    for (int i = 0; i < loader->n_own_validation; i++)
        hash = hash_bytes(&loader->own_validation[i].cache.fingerprint, sizeof(uint64_t), hash);
    loader->fingerprint = hash;
}

/* A metric is named after its source: where several have one name (a/x.jsonl, b/x.jsonl) the later ones are numbered.
 */
static int number_equal_names(Corpus *sources, int n) {
    for (int i = 1; i < n; i++) {
        size_t length = strlen(sources[i].name);
        for (int other = 0, number = 2; other < i; other++) {
            char *name;
            if (strcmp(sources[other].name, sources[i].name) != 0) continue;
            if (asprintf(&name, "%.*s#%d", (int)length, sources[i].name, number++) < 0)
                FAIL(ERR_FAILED, "out of memory");
            free(sources[i].name);
            sources[i].name = name;
            other = -1; /* that name may be taken too */
        }
    }
    return OK;
}

static void number_samples(Loader *loader, Corpus *corpus) {
    corpus->first_sample = loader->n_samples;
    loader->n_samples += corpus->cache.n_documents;
}

static int open_all(Loader *loader, const LoaderOptions *options, const Tokenizer *tokenizer) {
    TRY(check_options(options));
    loader->sources = calloc((size_t)options->n_sources, sizeof *loader->sources);
    if (!loader->sources) FAIL(ERR_FAILED, "out of memory");
    if (options->n_validation_sources > 0) {
        loader->own_validation = calloc((size_t)options->n_validation_sources, sizeof *loader->own_validation);
        if (!loader->own_validation) FAIL(ERR_FAILED, "out of memory");
    }
    while (loader->n_sources < options->n_sources) {
        int i = loader->n_sources++;
        TRY(corpus_open_train(&loader->sources[i], &options->sources[i], &loader->options, i,
                              loader->own_validation ? 0 : options->validation, tokenizer));
        loader->skipped += loader->sources[i].cache.n_skipped;
        number_samples(loader, &loader->sources[i]);
        loader->has_weights = (i == 0 || loader->has_weights) && token_cache_has_weights(&loader->sources[i].cache);
    }
    while (loader->n_own_validation < options->n_validation_sources) {
        int i = loader->n_own_validation++;
        TRY(corpus_open_validation(&loader->own_validation[i], &options->validation_sources[i], &loader->options,
                                   tokenizer));
        loader->skipped += loader->own_validation[i].cache.n_skipped;
        number_samples(loader, &loader->own_validation[i]);
    }
    loader->sequences_per_step = options->tokens_per_batch / options->context;
    if (loader->sequences_per_step < 1) loader->sequences_per_step = 1;
    if (loader->sequences_per_step > INT32_MAX)
        FAIL(ERR_USAGE, "train.tokens_per_batch: %lld sequences in a step", (long long)loader->sequences_per_step);
    TRY(number_equal_names(loader->sources, loader->n_sources));
    TRY(number_equal_names(loader->own_validation, loader->n_own_validation));
    int n_validation;
    const Corpus *validation = validation_set(loader, &n_validation);
    for (int i = 0; i < n_validation; i++) loader->n_validation_sequences += validation[i].validation_plan.n_sequences;
    TRY(plan_mix(loader, options->sources));
    take_fingerprint(loader, options->sources);
    return OK;
}

int loader_open(Loader **out, const LoaderOptions *options, const Tokenizer *tokenizer) {
    *out = NULL;
    Loader *loader = calloc(1, sizeof *loader);
    if (!loader) FAIL(ERR_FAILED, "out of memory");
    loader->options = *options;
    loader->options.sources = loader->options.validation_sources = NULL;
    int rc = open_all(loader, options, tokenizer);
    loader->options.cache = NULL;
    if (rc != OK) {
        loader_free(loader);
        return error_trace(rc, __FILE__, __LINE__);
    }
    *out = loader;
    return OK;
}

void loader_free(Loader *loader) {
    if (!loader) return;
    for (int i = 0; i < loader->n_sources; i++) corpus_close(&loader->sources[i]);
    for (int i = 0; i < loader->n_own_validation; i++) corpus_close(&loader->own_validation[i]);
    free(loader->sources);
    free(loader->own_validation);
    mix_free(&loader->mix);
    sequence_list_free(&loader->list);
    sequence_list_free(&loader->mismatched);
    batch_memory_free(&loader->memory);
    batch_memory_free(&loader->mismatched_memory);
    free(loader);
}

/* ---- questions -------------------------------------------------------------------------------------------------- */

int loader_n_sources(const Loader *loader) {
    return loader->n_sources;
}
const char *loader_source_name(const Loader *loader, int source) {
    return loader->sources[source].name;
}
int loader_n_validation_sources(const Loader *loader) {
    int n;
    validation_set(loader, &n);
    return n;
}
const char *loader_validation_source_name(const Loader *loader, int source) {
    int n;
    return validation_set(loader, &n)[source].name;
}

int64_t loader_tokens(const Loader *loader, int source) {
    int64_t sum = 0;
    for (int i = 0; i < loader->n_sources; i++)
        if (source < 0 || source == i) sum += loader->sources[i].train_tokens;
    return sum;
}

int64_t loader_documents(const Loader *loader, int source) {
    int64_t sum = 0;
    for (int i = 0; i < loader->n_sources; i++)
        if (source < 0 || source == i) sum += loader->sources[i].train.n_documents;
    return sum;
}

int64_t loader_validation_tokens(const Loader *loader) {
    int n;
    const Corpus *set = validation_set(loader, &n);
    int64_t sum = 0;
    for (int i = 0; i < n; i++) sum += set[i].validation_tokens;
    return sum;
}

int64_t loader_skipped_records(const Loader *loader) {
    return loader->skipped;
}
static void add_counts(RecordCounts *sum, const Corpus *sources, int n) {
    for (int i = 0; i < n; i++)
        for (int k = 0; k < N_RECORD_OUTCOMES; k++) sum->n[k] += sources[i].cache.counts.n[k];
}
RecordCounts loader_record_counts(const Loader *loader) {
    RecordCounts sum = {{0}};
    add_counts(&sum, loader->sources, loader->n_sources);
    add_counts(&sum, loader->own_validation, loader->n_own_validation);
    return sum;
}
uint64_t loader_fingerprint(const Loader *loader) {
    return loader->fingerprint;
}

int64_t loader_steps_per_epoch(const Loader *loader) {
    return (loader->sequences_per_epoch + loader->sequences_per_step - 1) / loader->sequences_per_step;
}
int64_t loader_validation_steps(const Loader *loader) {
    return (loader->n_validation_sequences + loader->sequences_per_step - 1) / loader->sequences_per_step;
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

static bool is_mine(const LoaderOptions *options, int64_t i, int64_t n) {
    return i >= n * options->rank / options->n_ranks && i < n * (options->rank + 1) / options->n_ranks;
}

static uint64_t sample_id(int source, int64_t number) {
    return (uint64_t)source << SAMPLE_NUMBER_BITS | ((uint64_t)number & (((uint64_t)1 << SAMPLE_NUMBER_BITS) - 1));
}

/* The weights of the targets of a run's tokens. */
static double weight_of(const TokenCache *cache, const Run *run) {
    double sum = token_cache_weight_sum(cache, run->first + 1, run->n - 1);
    return run->next >= 0 ? sum + token_cache_weight_sum(cache, run->next, 1) : sum;
}

/* The runs of a labelled document's prompt with the answer of the document before it. */
static int append_mismatched(const Loader *loader, RunList *runs, const TokenCache *cache, int64_t document,
                             int *n_tokens) {
    int64_t n = cache->n_documents, other = (document + n - 1) % n;
    size_t had = runs->n;
    TRY(runs_add_mismatched(runs, cache->start, cache->second, (uint32_t)document, (uint32_t)other,
                            loader->options.context / 2));
    for (*n_tokens = 0; had < runs->n; had++) *n_tokens += runs->runs[had].n;
    return OK;
}

static int add_mismatched(Loader *loader, Sequence sequence, int64_t document) {
    SequenceList *list = &loader->mismatched;
    sequence.first_run = list->runs.n;
    TRY(append_mismatched(loader, &list->runs, sequence.cache, document, &sequence.n_tokens));
    sequence.end_run = list->runs.n;
    return sequence_list_add(list, sequence);
}

/* Adds a sequence, whose runs are the list's last, to the step: its sums on every rank, its runs only on the one whose
 * it is. */
static int add_sequence(Loader *loader, StepBatch *batch, Sequence sequence, int n_targets, bool is_mine) {
    SequenceList *list = &loader->list;
    double weight = n_targets;
    sequence.end_run = list->runs.n;
    if (token_cache_has_weights(sequence.cache)) {
        weight = 0;
        for (size_t r = sequence.first_run; r < sequence.end_run; r++)
            weight += weight_of(sequence.cache, &list->runs.runs[r]);
        batch->first_weight += weight_of(sequence.cache, &list->runs.runs[sequence.first_run]);
    }
    batch->total_tokens += sequence.n_tokens;
    batch->total_weight += weight;
    batch->total_samples++;
    if (sequence.n_tokens > loader->options.tokens_per_microbatch)
        FAIL(ERR_FAILED, "a sample of %d tokens; a micro-batch holds %d", sequence.n_tokens,
             loader->options.tokens_per_microbatch);
    if (is_mine) return sequence_list_add(list, sequence);
    list->runs.n = sequence.first_run;
    return OK;
}

/* The step's micro-batches. */
static int fill(Loader *loader, StepBatch *batch) {
    StepBatch mismatched = {0};
    int most = loader->options.tokens_per_microbatch;
    TRY(batch_fill(batch, &loader->memory, &loader->list, most));
    if (loader->mismatched.n == 0) return OK;
    TRY(batch_fill(&mismatched, &loader->mismatched_memory, &loader->mismatched, most));
    batch->mismatched = mismatched.micro;
    batch->n_mismatched = mismatched.n_micro;
    return OK;
}

/* The sequence of that number of a plan. */
static int add_planned(Loader *loader, StepBatch *batch, const EpochPlan *plan, int64_t within, Sequence sequence,
                       bool is_mine) {
    int n_targets;
    sequence.first_run = loader->list.runs.n;
    TRY(plan_sequence(plan, within, &loader->list.runs, &sequence.n_tokens, &n_targets));
    if (is_mine && sequence.cache->samples == SAMPLE_LABELLED) {
        int64_t first = loader->list.runs.runs[sequence.first_run].first;
        TRY(add_mismatched(loader, sequence, token_cache_document(sequence.cache, first)));
    }
    return add_sequence(loader, batch, sequence, n_targets, is_mine);
}

/* A whole document. */
static int add_document(Loader *loader, StepBatch *batch, const Corpus *corpus, int source, int64_t document,
                        bool is_mine) {
    const TokenCache *cache = &corpus->cache;
    Sequence sequence = {.cache = cache,
                         .source = source,
                         .id = sample_id(source, document),
                         .first_sample = corpus->first_sample,
                         .first_run = loader->list.runs.n,
                         .n_tokens = (int)(cache->start[document + 1] - cache->start[document])};
    TRY(runs_add_document(&loader->list.runs, cache->start, corpus_second(corpus), (uint32_t)document));
    if (cache->samples == SAMPLE_LABELLED) {
        int more;
        TRY(append_mismatched(loader, &loader->list.runs, cache, document, &more));
        sequence.n_tokens += more;
    }
    return add_sequence(loader, batch, sequence, sequence.n_tokens - 1, is_mine);
}

static int add_train_sequence(Loader *loader, StepBatch *batch, int source, int64_t number, bool mine) {
    int64_t epoch = 0, within = 0;
    const EpochPlan *plan;
    TRY(corpus_find(&loader->sources[source], number, &epoch, &within));
    TRY(corpus_epoch(&loader->sources[source], epoch, &plan));
    Sequence sequence = {.cache = &loader->sources[source].cache,
                         .source = source,
                         .id = sample_id(source, number),
                         .first_sample = loader->sources[source].first_sample};
    return add_planned(loader, batch, plan, within, sequence, mine);
}

int loader_step(Loader *loader, int64_t step, StepBatch *batch) {
    int rc = OK;
    int64_t n = loader->sequences_per_step;
    *batch = (StepBatch){0};
    sequence_list_clear(&loader->list);
    sequence_list_clear(&loader->mismatched);
    if (step < 0 || step > MAX_SEQUENCES / n - 1) FAIL(ERR_FAILED, "step %lld was asked of the data", (long long)step);
    int64_t *next = calloc((size_t)loader->n_sources, sizeof *next); /* number of each source's next sequence */
    if (!next) FAIL(ERR_FAILED, "out of memory");
    for (int s = 0; s < loader->n_sources; s++) next[s] = mix_count(&loader->mix, s, step * n);
    for (int64_t i = 0; i < n; i++) {
        int source = mix_source(&loader->mix, step * n + i);
        TRY_TO(done, add_train_sequence(loader, batch, source, next[source]++, is_mine(&loader->options, i, n)));
    }
    if (loader->has_weights && !(batch->total_weight > 0))
        FAIL_TO(done, ERR_REFUSED,
                "step %lld has not one token that is learned: all weights of its records are 0; look at them with "
                "'cria data show', and at sft.train_on",
                (long long)step);
    TRY_TO(done, fill(loader, batch));
    for (int m = 0; m < batch->n_micro; m++) batch->micro[m].step = step;
done:
    free(next);
    return rc;
}

int loader_validation_step(Loader *loader, int64_t index, StepBatch *batch) {
    int n_sources;
    const Corpus *set = validation_set(loader, &n_sources);
    int64_t before = 0;
    *batch = (StepBatch){0};
    sequence_list_clear(&loader->list);
    sequence_list_clear(&loader->mismatched);
    if (index < 0 || index >= loader_validation_steps(loader))
        FAIL(ERR_FAILED, "validation step %lld was asked for; there are %lld", (long long)index,
             (long long)loader_validation_steps(loader));
    int64_t first = index * loader->sequences_per_step, n = loader->n_validation_sequences - first;
    n = n < loader->sequences_per_step ? n : loader->sequences_per_step;
    for (int s = 0; s < n_sources; s++) {
        const EpochPlan *plan = &set[s].validation_plan;
        int64_t begin = first > before ? first - before : 0;
        int64_t end = first + n - before < plan->n_sequences ? first + n - before : plan->n_sequences;
        for (int64_t within = begin; within < end; within++) {
            Sequence sequence = {
                .cache = &set[s].cache, .source = s, .id = sample_id(s, within), .first_sample = set[s].first_sample};
            bool mine = is_mine(&loader->options, before + within - first, n);
            TRY(add_planned(loader, batch, plan, within, sequence, mine));
        }
        before += plan->n_sequences;
    }
    return fill(loader, batch);
}

/* ---- every document once ------------------------------------------------------------------------------------------
 */

int64_t loader_n_samples(const Loader *loader) {
    return loader->n_samples;
}
int64_t loader_pass_steps(const Loader *loader) {
    return (loader->n_samples + loader->sequences_per_step - 1) / loader->sequences_per_step;
}

static const Corpus *find_corpus(const Loader *loader, int64_t sample, int *index) {
    int n = loader->n_sources + loader->n_own_validation;
    const Corpus *corpus = NULL;
    for (*index = 0; *index < n; ++*index) {
        corpus =
            *index < loader->n_sources ? &loader->sources[*index] : &loader->own_validation[*index - loader->n_sources];
        if (sample < corpus->first_sample + corpus->cache.n_documents) break;
    }
    return corpus;
}

int loader_pass_step(Loader *loader, int64_t index, StepBatch *batch) {
    int64_t per_step = loader->sequences_per_step, first = index * per_step, n = loader->n_samples - first;
    *batch = (StepBatch){0};
    sequence_list_clear(&loader->list);
    sequence_list_clear(&loader->mismatched);
    if (index < 0 || index >= loader_pass_steps(loader))
        FAIL(ERR_FAILED, "step %lld of a pass over the data was asked for", (long long)index);
    n = n < per_step ? n : per_step;
    for (int64_t i = 0; i < n; i++) {
        int source;
        const Corpus *corpus = find_corpus(loader, first + i, &source);
        TRY(add_document(loader, batch, corpus, source, first + i - corpus->first_sample,
                         is_mine(&loader->options, i, n)));
    }
    return fill(loader, batch);
}
