/* Opening, splitting and planning one source. */
#include "data/corpus.h"
#include "data/order.h"
#include "model/core/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void corpus_close(Corpus *corpus) {
    for (int i = 0; i < CORPUS_PLANS; i++) plan_free(&corpus->plans[i]);
    plan_free(&corpus->validation_plan);
    free(corpus->epoch_first);
    free(corpus->train_documents);
    free(corpus->validation_documents);
    token_cache_close(&corpus->cache);
    free(corpus->name);
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static int open_cache(Corpus *corpus, const SourceOptions *source, const LoaderOptions *options,
                      const Tokenizer *tokenizer) {
    for (int i = 0; i < CORPUS_PLANS; i++) corpus->plan_epoch[i] = -1;
    corpus->options = options;
    corpus->name = strdup(source->name && *source->name ? source->name : path_base(source->path));
    if (!corpus->name) FAIL(ERR_FAILED, "out of memory");
    int flags = (options->add_bos && tokenizer_bos(tokenizer) >= 0 ? TOKENIZE_BOS : 0) |
                (options->add_eos && tokenizer_eos(tokenizer) >= 0 ? TOKENIZE_EOS : 0);
    CacheOptions cache = {.directory = options->cache,
                          .name = corpus->name,
                          .source = source,
                          .tokenizer = tokenizer,
                          .flags = flags,
                          .fail_on_error = options->fail_on_error};
    return token_cache_open(&corpus->cache, &cache);
}

const uint64_t *corpus_second(const Corpus *corpus) {
    return corpus->cache.samples == SAMPLE_PAIR ? corpus->cache.second : NULL;
}

/* One document: its last share is validation, by tokens. */
static int cut_document(Corpus *corpus, double share) {
    int64_t n = corpus->cache.n_tokens, n_train = (int64_t)floor((double)n * (1.0 - share));
    if (n_train == n && share > 0) n_train--;
    if (n_train < 1) n_train = 1;
    corpus->train_documents = calloc(1, sizeof *corpus->train_documents);
    corpus->validation_documents = calloc(1, sizeof *corpus->validation_documents);
    if (!corpus->train_documents || !corpus->validation_documents) FAIL(ERR_FAILED, "out of memory");
    corpus->cut[1] = (uint64_t)n_train;
    corpus->cut[2] = (uint64_t)n;
    corpus->validation_documents[0] = 1;
    corpus->train = (DocumentSet){corpus->cut, corpus->train_documents, 1, NULL};
    corpus->validation = (DocumentSet){corpus->cut, corpus->validation_documents, n_train < n, NULL};
    return OK;
}

static int split(Corpus *corpus, double share) {
    uint32_t n_train, n_validation, n = (uint32_t)corpus->cache.n_documents;
    if (n == 1 && !token_cache_has_weights(&corpus->cache)) return cut_document(corpus, share);
    TRY(order_split(&corpus->train_documents, &n_train, &corpus->validation_documents, &n_validation, n, share,
                    corpus->options->seed, corpus->index));
    corpus->train = (DocumentSet){corpus->cache.start, corpus->train_documents, n_train, corpus_second(corpus)};
    corpus->validation =
        (DocumentSet){corpus->cache.start, corpus->validation_documents, n_validation, corpus_second(corpus)};
    return OK;
}

static int64_t count_tokens(const DocumentSet *set) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < set->n_documents; i++)
        sum += set->start[set->documents[i] + 1] - set->start[set->documents[i]];
    return (int64_t)sum;
}

static int plan_validation(Corpus *corpus) {
    const LoaderOptions *options = corpus->options;
    corpus->validation_tokens = count_tokens(&corpus->validation);
    PlanOptions wanted = {
        .packing = options->packing, .document_mask = options->document_mask, .context = options->context};
    return plan_make(&corpus->validation_plan, &corpus->validation, &wanted);
}

int corpus_open_train(Corpus *corpus, const SourceOptions *source, const LoaderOptions *options, int index,
                      double validation, const Tokenizer *tokenizer) {
    corpus->index = index;
    TRY(open_cache(corpus, source, options, tokenizer));
    TRY(split(corpus, validation));
    corpus->train_tokens = count_tokens(&corpus->train);
    bool apart = options->packing != PACKING_STREAM || options->document_mask;
    if (corpus->train_tokens < 2 || (apart && corpus->train_tokens == (int64_t)corpus->train.n_documents))
        FAIL(ERR_REFUSED, "%s: nothing to learn from: no training document has more than one token", source->path);
    return plan_validation(corpus);
}

int corpus_open_validation(Corpus *corpus, const SourceOptions *source, const LoaderOptions *options,
                           const Tokenizer *tokenizer) {
    TRY(open_cache(corpus, source, options, tokenizer));
    uint32_t n = (uint32_t)corpus->cache.n_documents;
    corpus->validation_documents = malloc((size_t)n * sizeof *corpus->validation_documents);
    if (!corpus->validation_documents) FAIL(ERR_FAILED, "out of memory: the order of %u documents", n);
    for (uint32_t i = 0; i < n; i++) corpus->validation_documents[i] = i;
    corpus->validation = (DocumentSet){corpus->cache.start, corpus->validation_documents, n, corpus_second(corpus)};
    return plan_validation(corpus);
}

/* ---- epochs ----------------------------------------------------------------------------------------------------- */

int corpus_epoch(Corpus *corpus, int64_t epoch, const EpochPlan **plan) {
    const LoaderOptions *options = corpus->options;
    int slot = corpus->newest_plan;
    if (corpus->plan_epoch[slot] != epoch) slot = (slot + 1) % CORPUS_PLANS;
    if (corpus->plan_epoch[slot] != epoch) {
        PhiloxKey phase = order_key(options->seed, corpus->index, ORDER_PHASE, epoch);
        PlanOptions wanted = {.packing = options->packing,
                              .document_mask = options->document_mask,
                              .context = options->context,
                              .shuffle = true,
                              .documents = order_key(options->seed, corpus->index, ORDER_DOCUMENTS, epoch),
                              .sequences = order_key(options->seed, corpus->index, ORDER_SEQUENCES, epoch),
                              .phase = philox_u64(phase, 0)};
        plan_free(&corpus->plans[slot]);
        corpus->plan_epoch[slot] = -1;
        TRY(plan_make(&corpus->plans[slot], &corpus->train, &wanted));
        corpus->plan_epoch[slot] = epoch;
    }
    corpus->newest_plan = slot;
    *plan = &corpus->plans[slot];
    return OK;
}

/* Learns how many sequences one more epoch has. Best fit only: the number depends on the epoch's order. */
static int learn_epoch(Corpus *corpus) {
    size_t n = corpus->n_epochs_known;
    const EpochPlan *plan = NULL;
    TRY(corpus_epoch(corpus, (int64_t)n, &plan));
    int64_t *grown = realloc(corpus->epoch_first, (n + 2) * sizeof *grown);
    if (!grown) FAIL(ERR_FAILED, "out of memory");
    corpus->epoch_first = grown;
    if (n == 0) grown[0] = 0;
    grown[n + 1] = grown[n] + plan->n_sequences;
    corpus->n_epochs_known++;
    return OK;
}

int corpus_find(Corpus *corpus, int64_t number, int64_t *epoch, int64_t *within) {
    if (corpus->options->packing == PACKING_STREAM) { /* the same number in every epoch */
        int64_t context = corpus->options->context, n = (corpus->train_tokens + context - 1) / context;
        *epoch = number / n;
        *within = number % n;
        return OK;
    }
    while (corpus->n_epochs_known == 0 || corpus->epoch_first[corpus->n_epochs_known] <= number)
        TRY(learn_epoch(corpus));
    size_t low = 0, high = corpus->n_epochs_known;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (corpus->epoch_first[middle] <= number)
            low = middle;
        else
            high = middle;
    }
    *epoch = (int64_t)low;
    *within = number - corpus->epoch_first[low];
    return OK;
}
