/* The arithmetic of the loader's own allocations: corpus.c and packing.c (12 bytes a document and plan, or 8 a piece
 * and a sequence), batch.c (a step), cache_build.c (a batch of records and its ids). */
#include "data/estimate.h"

#include <stdlib.h>

#include "data/batch.h"
#include "data/cache.h"
#include "data/cache_format.h"
#include "data/packing.h"
#include "data/source.h"
#include "model/core/error.h"
#include "model/core/file.h"

enum {
    SAMPLE_BYTES = 1 << 20, /* of text, read from the first files */
    BYTES_PER_TOKEN = 4,    /* of English in a vocabulary of some 32,000: where there is no tokenizer to ask */
};

/* One source as far as it is known. */
typedef struct {
    double documents, tokens, text_bytes, largest_record;
    bool cached;
} SourceSize;

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

static int sample_tokens(double *tokens, const Tokenizer *tokenizer, const Record *record, int flags) {
    *tokens += (double)record->size / BYTES_PER_TOKEN + 1;
    if (!tokenizer) return OK;
    TokenList ids = {0};
    size_t size = record->size < SAMPLE_BYTES ? record->size : SAMPLE_BYTES;
    while (size > 0 && size < record->size && ((unsigned char)record->text[size] & 0xC0) == 0x80) size--; /* UTF-8 */
    int rc = tokenizer_encode(tokenizer, record->text, size, flags, &ids);
    if (rc == OK && size > 0) {
        *tokens -= (double)record->size / BYTES_PER_TOKEN + 1;
        *tokens += (double)ids.n * ((double)record->size / (double)size);
    }
    token_list_free(&ids);
    return rc;
}

/* Reads the first records, and scales what they say by the files' sizes. */
static int sample_source(SourceSize *size, const SourceOptions *source, const Tokenizer *tokenizer, int flags,
                         char **files, size_t n_files) {
    int rc = OK;
    RecordReader *reader = NULL;
    double on_disk = 0, documents = 0, text = 0, tokens = 0;
    bool found = true;
    for (size_t i = 0; i < n_files; i++) {
        uint64_t bytes;
        TRY(file_size(&bytes, files[i]));
        on_disk += (double)bytes;
    }
    TRY_TO(done, records_open(&reader, &(RecordOptions){files, n_files, source->field, source->separator, false}));
    while (text < SAMPLE_BYTES) {
        Record record;
        TRY_TO(done, records_next(reader, &record, &found));
        if (!found) break;
        documents++;
        text += (double)record.size;
        if ((double)record.size > size->largest_record) size->largest_record = (double)record.size;
        TRY_TO(done, sample_tokens(&tokens, tokenizer, &record, flags));
    }
    /* The reader is ahead of what it has handed out by a buffer at most; compressed bytes are counted as compressed. */
    double seen = (double)records_bytes_read(reader), scale = found && seen > 0 && on_disk > seen ? on_disk / seen : 1;
    size->documents = documents * scale;
    size->text_bytes = text * scale;
    size->tokens = tokens * scale;
done:
    records_close(reader);
    return rc;
}

static int size_source(SourceSize *size, const SourceOptions *source, const LoaderOptions *options,
                       const Tokenizer *tokenizer) {
    int rc = OK;
    char **files;
    size_t n_files;
    *size = (SourceSize){.cached = false};
    bool bos = options->add_bos && tokenizer && tokenizer_bos(tokenizer) >= 0;
    bool eos = options->add_eos && tokenizer && tokenizer_eos(tokenizer) >= 0;
    int flags = (bos ? TOKENIZE_BOS : 0) | (eos ? TOKENIZE_EOS : 0);
    if (tokenizer) {
        int64_t documents = 0, tokens = 0;
        CacheOptions cache = {.directory = options->cache,
                              .name = source->name && *source->name ? source->name : path_base(source->path),
                              .source = source,
                              .tokenizer = tokenizer,
                              .flags = flags};
        TRY(token_cache_peek(&size->cached, &documents, &tokens, &cache));
        size->documents = (double)documents;
        size->tokens = (double)tokens;
        if (size->cached) return OK;
    }
    TRY(source_files(&files, &n_files, source->path));
    rc = sample_source(size, source, tokenizer, flags, files, n_files);
    names_free(files, n_files);
    return rc;
}

/* ---- bytes ------------------------------------------------------------------------------------------------------ */

/* One epoch's plan of so many documents and tokens. */
static double plan_bytes(const LoaderOptions *options, double documents, double tokens) {
    if (options->packing == PACKING_STREAM) return documents * (sizeof(uint32_t) + sizeof(uint64_t));
    double pieces = documents + tokens / options->context, sequences = tokens / options->context + 1;
    return pieces * sizeof(Piece) + sequences * sizeof(uint64_t);
}

/* The split's lists, the validation plan, and one or two epochs' plans. */
static double order_bytes(const LoaderOptions *options, const SourceSize *size, bool training, bool several_epochs) {
    double held_out = training ? options->validation : 1;
    double bytes =
        size->documents * sizeof(uint32_t) + plan_bytes(options, held_out * size->documents, held_out * size->tokens);
    if (!training) return bytes;
    double kept = 1 - held_out, plans = several_epochs ? 2 : 1;
    return bytes + plans * plan_bytes(options, kept * size->documents, kept * size->tokens);
}

/* As cache_build.c and the encoder hold it: the reader's record, the batch's texts, and ids of 4 bytes, three times
 * over while long texts are encoded in parts. */
static double tokenising_bytes(const SourceSize *size) {
    enum { BATCH_TEXT = 16 << 20, TABLES = 1 << 20, ID_COPIES = 3 };
    if (size->cached) return 0;
    double text = size->text_bytes < BATCH_TEXT ? size->text_bytes : BATCH_TEXT;
    if (size->largest_record > text) text = size->largest_record;
    double tokens = size->text_bytes > 0 ? text * size->tokens / size->text_bytes : 0;
    double chunk = size->tokens * 4 < CACHE_CHUNK ? size->tokens * 4 : CACHE_CHUNK;
    return size->largest_record + text + ID_COPIES * 4 * tokens + chunk + TABLES + size->documents * sizeof(uint64_t);
}

static int64_t sequences_per_step(int64_t tokens_per_batch, int context) {
    return tokens_per_batch < context ? 1 : tokens_per_batch / context;
}

int loader_largest_microbatch(int64_t tokens_per_batch, int tokens_per_microbatch, int context, int n_ranks) {
    int64_t sequences = (sequences_per_step(tokens_per_batch, context) + n_ranks - 1) / n_ranks;
    int64_t most = sequences * context;
    return most < tokens_per_microbatch ? (int)most : tokens_per_microbatch;
}

static double step_bytes(const LoaderOptions *options, double mean_document) {
    double sequences =
        (double)(sequences_per_step(options->tokens_per_batch, options->context) + options->n_ranks - 1) /
        options->n_ranks;
    sequences = (double)(int64_t)sequences;
    double tokens = sequences * options->context;
    double runs = sequences + (mean_document > 0 ? tokens / mean_document : 0);
    double segments = options->packing == PACKING_BEST_FIT || options->document_mask ? runs : sequences;
    double per_micro = (double)(options->tokens_per_microbatch / options->context), micros = sequences / per_micro + 1;
    return (double)batch_memory_bytes((size_t)tokens, (size_t)segments, (size_t)sequences, (size_t)micros) +
           sequences * sizeof(Sequence) + runs * sizeof(Run);
}

int loader_estimate(LoaderEstimate *estimate, const LoaderOptions *options, const Tokenizer *tokenizer,
                    int64_t tokens_wanted) {
    *estimate = (LoaderEstimate){0};
    double documents = 0, tokens = 0, order = 0, tokenising = 0, weights = 0;
    for (int s = 0; s < options->n_sources; s++) weights += options->sources[s].weight;
    for (int s = 0; s < options->n_sources + options->n_validation_sources; s++) {
        bool training = s < options->n_sources;
        const SourceOptions *source =
            training ? &options->sources[s] : &options->validation_sources[s - options->n_sources];
        SourceSize size;
        TRY(size_source(&size, source, options, tokenizer));
        double wanted = training ? (double)tokens_wanted * source->weight / weights : 0;
        order += order_bytes(options, &size, training, wanted > size.tokens);
        double making = tokenising_bytes(&size);
        if (making > tokenising) tokenising = making; /* one source after the other */
        documents += size.documents;
        tokens += size.tokens;
        estimate->sampled |= !size.cached;
    }
    estimate->documents = (int64_t)documents;
    estimate->tokens = (int64_t)tokens;
    estimate->order_bytes = (uint64_t)order;
    estimate->tokenising_bytes = (uint64_t)tokenising;
    estimate->step_bytes = (uint64_t)step_bytes(options, documents > 0 ? tokens / documents : 0);
    return OK;
}
