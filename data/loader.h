/* From sources of text to the micro-batches of a step. Plain arrays out; nothing here has heard of a model.
 *
 * documents (source.c, input.c) -> tokenised once into a cache (cache.c, cache_build.c) -> train/validation split, and
 * a seeded shuffle per epoch (corpus.c, order.c) -> packing into sequences of at most `context` tokens (packing.c)
 * -> mix of sources, steps of tokens_per_batch, this rank's sequences (loader.c) -> micro-batches of at most
 * tokens_per_microbatch tokens (batch.c).
 *
 * Everything up to "steps" is a function of (seed, cached lengths, options above), never of ranks, micro-batches or
 * threads; the state is the step number.
 */
#ifndef CRIA_DATA_LOADER_H
#define CRIA_DATA_LOADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/encoder.h"
#include "data/tokenizer/tokenizer.h"

/* One flat run of tokens (DESIGN: a batch). Arrays of n_tokens except segment_start (n_segments + 1). */
typedef struct {
    int n_tokens, n_segments, n_samples;
    int32_t *tokens, *targets; /* targets[t] is the next token of the segment; its weight is 0 where there is none */
    int32_t *positions;        /* restart at 0 in every segment */
    float *weights;            /* of each token's loss; 0 = not learned */
    int32_t *segment_start;
    int32_t *source;     /* [n_segments] index into the sources, for per-source losses */
    uint64_t *segment;   /* [n_segments] what it is, however it is packed: source << 40 | its first token there */
    uint64_t *sample_id; /* [n_samples] for reports: source << 40 | number in that source */
    int64_t step;        /* of training, that it is part of */
    /* Of samples that are one document each (PACKING_ALONE). Pairs: sample s is segments 2s and 2s+1, the better answer
     * first. */
    int64_t *sample;   /* [n_samples] the document's number among all of the loader's: 0 … loader_n_samples - 1 */
    SampleMark *marks; /* [n_samples] */
} MicroBatch;

typedef struct {
    const char *path;      /* file, glob or directory; plain text (.txt) or JSONL, optionally .gz or .zst */
    const char *name;      /* for metrics; default: base name of path; a later one of the same name gets #2, … */
    const char *field;     /* JSONL: the key that holds the text; default "text" */
    double weight;         /* share of the mix (tokens); relative */
    const char *separator; /* plain text: what ends a document; NULL: a file is one document */
    const RecordEncoder
        *encoder; /* of records that are more than text, which is then JSONL or a JSON array; NULL: text */
} SourceOptions;

typedef enum {
    PACKING_STREAM,
    PACKING_BEST_FIT,
    PACKING_ALONE, /* a sequence is a document, or a piece of one of `context` tokens */
} Packing;

typedef struct {
    const SourceOptions *sources;
    int n_sources;
    const SourceOptions *validation_sources; /* given explicitly; else split off */
    int n_validation_sources;
    double validation;     /* share of each source's documents split off, 0…1; a source that is one document is cut by
                              tokens instead: its last `validation` share */
    const char *cache;     /* directory for token caches */
    bool fail_on_error;    /* on_error: fail | skip */
    bool add_bos, add_eos; /* to every document, where the tokenizer has such a token */
    Packing packing;
    bool document_mask; /* stream packing: documents in one sequence are separate segments (else one segment) */
    int context;        /* tokens of a sequence, at most */
    int64_t tokens_per_batch;
    int tokens_per_microbatch; /* at least context */
    uint64_t seed;
    int rank, n_ranks;
} LoaderOptions;

typedef struct Loader Loader;

int loader_open(Loader **loader, const LoaderOptions *options, const Tokenizer *tokenizer);
void loader_free(Loader *loader);

int loader_n_sources(const Loader *loader);
const char *loader_source_name(const Loader *loader, int source);
int64_t loader_tokens(const Loader *loader, int source);    /* training tokens in one epoch of it; -1: all sources */
int64_t loader_documents(const Loader *loader, int source); /* training documents, likewise */
int64_t loader_validation_tokens(const Loader *loader);
/* The sources that MicroBatch.source of a validation step counts: the training sources where validation is split off,
 * the validation_sources where they are given. */
int loader_n_validation_sources(const Loader *loader);
const char *loader_validation_source_name(const Loader *loader, int source);
int64_t loader_skipped_records(const Loader *loader);
/* What encoders have said of the records of all sources, those for validation too. */
RecordCounts loader_record_counts(const Loader *loader);
/* Steps after which as many sequences were taken as one epoch of every source holds (the sources themselves pass at the
 * pace of their weights). */
int64_t loader_steps_per_epoch(const Loader *loader);
uint64_t loader_fingerprint(const Loader *loader); /* changes when the order or the data would */

/* This rank's micro-batches of step 0, 1, 2, …; valid until the next call. total_weight is Σ of weights over all
 * ranks' micro-batches of the step, total_tokens the tokens likewise. Any step may be asked for at any time. A rank may
 * have no micro-batch (fewer sequences than ranks); total_weight may be 0 where documents are kept apart and every
 * token of a small step ends its document. A step of encoded records in which nothing has a weight is refused. */
typedef struct {
    MicroBatch *micro;
    int n_micro;
    double total_weight;
    double first_weight; /* of it, what the first segments of pairs have: the better answers */
    int64_t total_tokens, total_samples;
    /* Of labelled answers: each sample's prompt with the answer to another prompt (the document before it; cut to half
     * of the context), one segment a sample: what KTO estimates a divergence from. Not in the sums above. */
    MicroBatch *mismatched;
    int n_mismatched;
} StepBatch;
int loader_step(Loader *loader, int64_t step, StepBatch *batch);

/* Every document of every source once, those for validation too, in their order, cut into steps likewise: for what is
 * computed once before training (reference log-probabilities). Of encoded records only. A labelled sample is followed,
 * as a second segment, by its prompt with the answer to another. */
int64_t loader_n_samples(const Loader *loader);
int64_t loader_pass_steps(const Loader *loader);
int loader_pass_step(Loader *loader, int64_t index, StepBatch *batch);

/* The validation set in a fixed order, once, cut likewise: 0 <= index < loader_validation_steps(). */
int64_t loader_validation_steps(const Loader *loader);
int loader_validation_step(Loader *loader, int64_t index, StepBatch *batch);

#endif
