/* What a loader will hold in memory, before it is opened: nothing is tokenised or written. Sizes come from the token
 * cache where there is one, else from a sample of the text; both are given as what they are. */
#ifndef CRIA_DATA_ESTIMATE_H
#define CRIA_DATA_ESTIMATE_H

#include <stdbool.h>
#include <stdint.h>

#include "data/loader.h"

typedef struct {
    int64_t documents, tokens; /* of all sources, validation included; 0 where nothing is known */
    bool sampled;              /* these were guessed from the beginnings of the files */
    uint64_t order_bytes;      /* the split, and the plans of the epochs that are held at once */
    uint64_t step_bytes;       /* one step's sequences and micro-batches on the rank with most */
    uint64_t tokenising_bytes; /* while a cache is made; given back before training. 0 where all caches are there */
} LoaderEstimate;

/* `options` as for loader_open, with n_sources 0 where the data is not known. `tokenizer` may be NULL (then a token is
 * taken to be four bytes). `tokens_wanted`: what the run will consume; 0: one epoch. A source that is absent is
 * ERR_REFUSED. */
int loader_estimate(LoaderEstimate *estimate, const LoaderOptions *options, const Tokenizer *tokenizer,
                    int64_t tokens_wanted);

/* The most tokens that a micro-batch of these options can have: no more than its rank's part of a step. */
int loader_largest_microbatch(int64_t tokens_per_batch, int tokens_per_microbatch, int context, int n_ranks);

#endif
