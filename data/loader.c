/* The loader: sources opened and split, the mixed order cut into steps, a step planned and filled.
 *
 *   sequence k of the mixed order   is number q = mix_count(source, k) of source = mix_source(k)
 *   number q of a source            is sequence q - first(epoch) of the epoch it falls in
 *   step s                          is sequences s·n … s·n + n-1, n = max(1, floor(tokens_per_batch / context))
 *   rank r of R                     has sequences floor(n·r/R) … floor(n·(r+1)/R)-1 of these
 *
 * Each is computed, not remembered, so any step can be asked for. What is kept per source: its plans of the last two
 * epochs touched (a step may lie across two). */
#include "data/loader.h"
#include "data/batch.h"
#include "data/cache.h"
#include "data/order.h"
#include "data/packing.h"
#include "model/core/error.h"
#include "model/core/philox.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_PLANS = 2, SAMPLE_NUMBER_BITS = 40 };

static const int64_t MAX_SEQUENCES = (int64_t)1 << 56; /* that sums of them stay far from overflow */

typedef struct {
    char *name;
    TokenCache cache;
    uint64_t cut[3]; /* a source of one document: training part, validation part */
    uint32_t *train_documents, *validation_documents;
    DocumentSet train, validation;
    int64_t train_tokens, validation_tokens;
    EpochPlan validation_plan;
    EpochPlan plans[N_PLANS];
    int64_t plan_epoch[N_PLANS]; /* -1: none */
    int newest_plan;
    int64_t *epoch_first; /* [n_epochs_known + 1]: number of each epoch's first sequence (best fit) */
    size_t n_epochs_known;
} Source;

struct Loader {
    LoaderOptions options; /* its sources' pointers are not kept */
    Source *sources;
    int n_sources;
    Source *own_validation; /* from validation_sources; NULL where validation is split off */
    int n_own_validation;
    Mix mix;
    int64_t sequences_per_step, sequences_per_epoch, n_validation_sequences, skipped;
    uint64_t fingerprint;
    SequenceList list;
    BatchMemory memory;
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

/* ---- a source --------------------------------------------------------------------------------------------------- */

static void source_free(Source *source) {
    for (int i = 0; i < N_PLANS; i++) plan_free(&source->plans[i]);
    plan_free(&source->validation_plan);
    free(source->epoch_first);
    free(source->train_documents);
    free(source->validation_documents);
    token_cache_close(&source->cache);
    free(source->name);
}

/* One document: its last share is validation, by tokens. */
static int cut_document(Source *source, double share) {
    int64_t n = source->cache.n_tokens, n_train = (int64_t)floor((double)n * (1.0 - share));
    if (n_train == n && share > 0) n_train--;
    if (n_train < 1) n_train = 1;
    source->train_documents = calloc(1, sizeof *source->train_documents);
    source->validation_documents = calloc(1, sizeof *source->validation_documents);
    if (!source->train_documents || !source->validation_documents) FAIL(ERR_FAILED, "out of memory");
    source->cut[1] = (uint64_t)n_train;
    source->cut[2] = (uint64_t)n;
    source->validation_documents[0] = 1;
    source->train = (DocumentSet){source->cut, source->train_documents, 1};
    source->validation = (DocumentSet){source->cut, source->validation_documents, n_train < n};
    return OK;
}

static int split_source(Source *source, double share, uint64_t seed, int index) {
    uint32_t n_train, n_validation, n = (uint32_t)source->cache.n_documents;
    if (n == 1) return cut_document(source, share);
    TRY(order_split(&source->train_documents, &n_train, &source->validation_documents, &n_validation, n, share, seed,
                    index));
    source->train = (DocumentSet){source->cache.start, source->train_documents, n_train};
    source->validation = (DocumentSet){source->cache.start, source->validation_documents, n_validation};
    return OK;
}

static int64_t count_tokens(const DocumentSet *set) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < set->n_documents; i++)
        sum += set->start[set->documents[i] + 1] - set->start[set->documents[i]];
    return (int64_t)sum;
}

static int open_source(Source *source, const SourceOptions *wanted, const LoaderOptions *options,
                       const Tokenizer *tokenizer) {
    for (int i = 0; i < N_PLANS; i++) source->plan_epoch[i] = -1;
    source->name = strdup(wanted->name && *wanted->name ? wanted->name : path_base(wanted->path));
    if (!source->name) FAIL(ERR_FAILED, "out of memory");
    int flags = (options->add_bos && tokenizer_bos(tokenizer) >= 0 ? TOKENIZE_BOS : 0) |
                (options->add_eos && tokenizer_eos(tokenizer) >= 0 ? TOKENIZE_EOS : 0);
    CacheOptions cache = {.directory = options->cache,
                          .name = source->name,
                          .source = wanted,
                          .tokenizer = tokenizer,
                          .flags = flags,
                          .fail_on_error = options->fail_on_error};
    return token_cache_open(&source->cache, &cache);
}

static bool documents_are_apart(const LoaderOptions *options) {
    return options->packing == PACKING_BEST_FIT || options->document_mask;
}

static int open_train_source(Loader *loader, int index, const SourceOptions *wanted, const Tokenizer *tokenizer) {
    const LoaderOptions *options = &loader->options;
    Source *source = &loader->sources[index];
    TRY(open_source(source, wanted, options, tokenizer));
    TRY(split_source(source, loader->own_validation ? 0 : options->validation, options->seed, index));
    source->train_tokens = count_tokens(&source->train);
    source->validation_tokens = count_tokens(&source->validation);
    if (source->train_tokens < 2 ||
        (documents_are_apart(options) && source->train_tokens == (int64_t)source->train.n_documents))
        FAIL(ERR_REFUSED, "%s: nothing to learn from: no training document has more than one token", wanted->path);
    return OK;
}

static int open_validation_source(Source *source, const SourceOptions *wanted, const LoaderOptions *options,
                                  const Tokenizer *tokenizer) {
    TRY(open_source(source, wanted, options, tokenizer));
    uint32_t n = (uint32_t)source->cache.n_documents;
    source->validation_documents = malloc((size_t)n * sizeof *source->validation_documents);
    if (!source->validation_documents) FAIL(ERR_FAILED, "out of memory: the order of %u documents", n);
    for (uint32_t i = 0; i < n; i++) source->validation_documents[i] = i;
    source->validation = (DocumentSet){source->cache.start, source->validation_documents, n};
    source->validation_tokens = source->cache.n_tokens;
    return OK;
}

/* ---- epochs of a source ----------------------------------------------------------------------------------------- */

static int epoch_plan(Loader *loader, int index, int64_t epoch, const EpochPlan **plan) {
    Source *source = &loader->sources[index];
    const LoaderOptions *options = &loader->options;
    int slot = source->newest_plan;
    if (source->plan_epoch[slot] != epoch) slot = (slot + 1) % N_PLANS;
    if (source->plan_epoch[slot] != epoch) {
        PhiloxKey phase = order_key(options->seed, index, ORDER_PHASE, epoch);
        PlanOptions wanted = {.packing = options->packing,
                              .document_mask = options->document_mask,
                              .context = options->context,
                              .shuffle = true,
                              .documents = order_key(options->seed, index, ORDER_DOCUMENTS, epoch),
                              .sequences = order_key(options->seed, index, ORDER_SEQUENCES, epoch),
                              .phase = philox_u64(phase, 0)};
        plan_free(&source->plans[slot]);
        source->plan_epoch[slot] = -1;
        TRY(plan_make(&source->plans[slot], &source->train, &wanted));
        source->plan_epoch[slot] = epoch;
    }
    source->newest_plan = slot;
    *plan = &source->plans[slot];
    return OK;
}

/* Learns how many sequences one more epoch has. Best fit only: the number depends on the epoch's order. */
static int learn_epoch(Loader *loader, int index) {
    Source *source = &loader->sources[index];
    size_t n = source->n_epochs_known;
    const EpochPlan *plan;
    TRY(epoch_plan(loader, index, (int64_t)n, &plan));
    int64_t *grown = realloc(source->epoch_first, (n + 2) * sizeof *grown);
    if (!grown) FAIL(ERR_FAILED, "out of memory");
    source->epoch_first = grown;
    if (n == 0) grown[0] = 0;
    grown[n + 1] = grown[n] + plan->n_sequences;
    source->n_epochs_known++;
    return OK;
}

/* The epoch that holds sequence `number` of a source, and which of the epoch's sequences it is. */
static int find_epoch(Loader *loader, int index, int64_t number, int64_t *epoch, int64_t *within) {
    Source *source = &loader->sources[index];
    if (loader->options.packing == PACKING_STREAM) { /* the same number in every epoch */
        int64_t context = loader->options.context, n = (source->train_tokens + context - 1) / context;
        *epoch = number / n;
        *within = number % n;
        return OK;
    }
    while (source->n_epochs_known == 0 || source->epoch_first[source->n_epochs_known] <= number)
        TRY(learn_epoch(loader, index));
    size_t low = 0, high = source->n_epochs_known;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (source->epoch_first[middle] <= number)
            low = middle;
        else
            high = middle;
    }
    *epoch = (int64_t)low;
    *within = number - source->epoch_first[low];
    return OK;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static const Source *validation_set(const Loader *loader, int *n) {
    *n = loader->own_validation ? loader->n_own_validation : loader->n_sources;
    return loader->own_validation ? loader->own_validation : loader->sources;
}

static int plan_validation(Loader *loader) {
    int n;
    Source *set = loader->own_validation ? loader->own_validation : loader->sources;
    validation_set(loader, &n);
    PlanOptions options = {.packing = loader->options.packing,
                           .document_mask = loader->options.document_mask,
                           .context = loader->options.context};
    for (int i = 0; i < n; i++) {
        TRY(plan_make(&set[i].validation_plan, &set[i].validation, &options));
        loader->n_validation_sequences += set[i].validation_plan.n_sequences;
    }
    return OK;
}

/* Shares of tokens become shares of sequences by the sequences' mean length. */
static int plan_mix(Loader *loader, const SourceOptions *wanted) {
    double *shares = calloc((size_t)loader->n_sources, sizeof *shares);
    int rc = OK;
    if (!shares) FAIL(ERR_FAILED, "out of memory");
    for (int i = 0; i < loader->n_sources; i++) {
        const EpochPlan *plan;
        TRY_TO(done, epoch_plan(loader, i, 0, &plan));
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
        TRY(open_train_source(loader, i, &options->sources[i], tokenizer));
        loader->skipped += loader->sources[i].cache.n_skipped;
    }
    while (loader->n_own_validation < options->n_validation_sources) {
        int i = loader->n_own_validation++;
        TRY(open_validation_source(&loader->own_validation[i], &options->validation_sources[i], options, tokenizer));
        loader->skipped += loader->own_validation[i].cache.n_skipped;
    }
    loader->sequences_per_step = options->tokens_per_batch / options->context;
    if (loader->sequences_per_step < 1) loader->sequences_per_step = 1;
    if (loader->sequences_per_step > INT32_MAX)
        FAIL(ERR_USAGE, "train.tokens_per_batch: %lld sequences in a step", (long long)loader->sequences_per_step);
    TRY(plan_validation(loader));
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
    for (int i = 0; i < loader->n_sources; i++) source_free(&loader->sources[i]);
    for (int i = 0; i < loader->n_own_validation; i++) source_free(&loader->own_validation[i]);
    free(loader->sources);
    free(loader->own_validation);
    mix_free(&loader->mix);
    sequence_list_free(&loader->list);
    batch_memory_free(&loader->memory);
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
    const Source *set = validation_set(loader, &n);
    int64_t sum = 0;
    for (int i = 0; i < n; i++) sum += set[i].validation_tokens;
    return sum;
}

int64_t loader_skipped_records(const Loader *loader) {
    return loader->skipped;
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

/* Adds a sequence to the step: its sums on every rank, its runs only on the one whose it is. */
static int add_sequence(Loader *loader, StepBatch *batch, const EpochPlan *plan, int64_t within, Sequence sequence,
                        bool is_mine) {
    SequenceList *list = &loader->list;
    int n_targets;
    sequence.first_run = list->runs.n;
    TRY(plan_sequence(plan, within, &list->runs, &sequence.n_tokens, &n_targets));
    sequence.end_run = list->runs.n;
    batch->total_tokens += sequence.n_tokens;
    batch->total_weight += n_targets;
    if (is_mine) return sequence_list_add(list, sequence);
    list->runs.n = sequence.first_run;
    return OK;
}

static bool is_mine(const LoaderOptions *options, int64_t i, int64_t n) {
    return i >= n * options->rank / options->n_ranks && i < n * (options->rank + 1) / options->n_ranks;
}

static uint64_t sample_id(int source, int64_t number) {
    return (uint64_t)source << SAMPLE_NUMBER_BITS | ((uint64_t)number & (((uint64_t)1 << SAMPLE_NUMBER_BITS) - 1));
}

static int add_train_sequence(Loader *loader, StepBatch *batch, int source, int64_t number, bool mine) {
    int64_t epoch = 0, within = 0;
    const EpochPlan *plan;
    TRY(find_epoch(loader, source, number, &epoch, &within));
    TRY(epoch_plan(loader, source, epoch, &plan));
    Sequence sequence = {.cache = &loader->sources[source].cache, .source = source, .id = sample_id(source, number)};
    return add_sequence(loader, batch, plan, within, sequence, mine);
}

int loader_step(Loader *loader, int64_t step, StepBatch *batch) {
    int rc = OK;
    int64_t n = loader->sequences_per_step;
    *batch = (StepBatch){0};
    sequence_list_clear(&loader->list);
    if (step < 0 || step > MAX_SEQUENCES / n - 1) FAIL(ERR_FAILED, "step %lld was asked of the data", (long long)step);
    int64_t *next = calloc((size_t)loader->n_sources, sizeof *next); /* number of each source's next sequence */
    if (!next) FAIL(ERR_FAILED, "out of memory");
    for (int s = 0; s < loader->n_sources; s++) next[s] = mix_count(&loader->mix, s, step * n);
    for (int64_t i = 0; i < n; i++) {
        int source = mix_source(&loader->mix, step * n + i);
        TRY_TO(done, add_train_sequence(loader, batch, source, next[source]++, is_mine(&loader->options, i, n)));
    }
    TRY_TO(done, batch_fill(batch, &loader->memory, &loader->list, loader->options.tokens_per_microbatch));
done:
    free(next);
    return rc;
}

int loader_validation_step(Loader *loader, int64_t index, StepBatch *batch) {
    int n_sources;
    const Source *set = validation_set(loader, &n_sources);
    int64_t before = 0;
    *batch = (StepBatch){0};
    sequence_list_clear(&loader->list);
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
            Sequence sequence = {.cache = &set[s].cache, .source = s, .id = sample_id(s, within)};
            bool mine = is_mine(&loader->options, before + within - first, n);
            TRY(add_sequence(loader, batch, plan, within, sequence, mine));
        }
        before += plan->n_sequences;
    }
    return batch_fill(batch, &loader->memory, &loader->list, loader->options.tokens_per_microbatch);
}
