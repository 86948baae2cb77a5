/* One source as the loader sees it: its tokens (from the cache), which documents are for training and which for
 * validation, and the plans of its epochs. */
#ifndef CRIA_DATA_CORPUS_H
#define CRIA_DATA_CORPUS_H

#include <stddef.h>
#include <stdint.h>

#include "data/cache.h"
#include "data/loader.h"
#include "data/packing.h"

enum { CORPUS_PLANS = 2 /* of the last epochs touched: a step may lie across two */ };

typedef struct {
    const LoaderOptions *options; /* the loader's; must outlive the corpus */
    int index;                    /* among the training sources: what its orders are drawn for */
    char *name;
    TokenCache cache;
    int64_t first_sample; /* of its documents, among those of all sources */
    uint64_t cut[3];      /* a source of one document: training part, validation part */
    uint32_t *train_documents, *validation_documents;
    DocumentSet train, validation;
    int64_t train_tokens, validation_tokens;
    EpochPlan validation_plan;
    EpochPlan plans[CORPUS_PLANS];
    int64_t plan_epoch[CORPUS_PLANS]; /* -1: none */
    int newest_plan;
    int64_t *epoch_first; /* [n_epochs_known + 1]: number of each epoch's first sequence (best fit) */
    size_t n_epochs_known;
} Corpus; /* {0} may be closed */

/* A source to train on, with the share `validation` of it held out. */
int corpus_open_train(Corpus *corpus, const SourceOptions *source, const LoaderOptions *options, int index,
                      double validation, const Tokenizer *tokenizer);
/* A source that is validation altogether. */
int corpus_open_validation(Corpus *corpus, const SourceOptions *source, const LoaderOptions *options,
                           const Tokenizer *tokenizer);
void corpus_close(Corpus *corpus);

/* Where each document's second segment begins; NULL: none has one. */
const uint64_t *corpus_second(const Corpus *corpus);

/* The plan of an epoch of the training documents; the corpus's, until two other epochs were asked for. */
int corpus_epoch(Corpus *corpus, int64_t epoch, const EpochPlan **plan);

/* The epoch that holds sequence `number` of the source, counted through all epochs, and which of the epoch's it is.
 * With best-fit packing the first question about an epoch costs the plans of all before it. */
int corpus_find(Corpus *corpus, int64_t number, int64_t *epoch, int64_t *within);

#endif
