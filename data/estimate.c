/* The arithmetic of the loader's own allocations: corpus.c and packing.c (12 bytes a document and plan, or 8 a piece
 * and a sequence), batch.c (a step), cache_build.c (a batch of records and its ids). */
#include "data/estimate.h"

#include <stdlib.h>

#include "data/batch.h"
#include "data/cache.h"
#include "data/cache_format.h"
#include "data/input.h"
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

/* Tokens of `size` bytes of text: a part of at most SAMPLE_BYTES is encoded and stands for the rest. */
static int count_tokens(double *tokens, const Tokenizer *tokenizer, const char *text, size_t size, int flags) {
    *tokens = (double)size / BYTES_PER_TOKEN + 1;
    if (!tokenizer || size == 0) return OK;
    TokenList ids = {0};
    size_t part = size < SAMPLE_BYTES ? size : SAMPLE_BYTES;
    int rc = tokenizer_encode(tokenizer, text, part, flags, &ids);
    if (rc == OK) *tokens = (double)ids.n * ((double)size / (double)part);
    token_list_free(&ids);
    return rc;
}

/* Documents that are whole files, which may be larger than memory: the beginning of the first one is read. */
static int sample_files(SourceSize *size, const Tokenizer *tokenizer, int flags, char *const *files, size_t n_files,
                        double largest, double on_disk) {
    int rc = OK;
    Input *input = NULL;
    size_t text = 0;
    double tokens;
    char *bytes = malloc(SAMPLE_BYTES);
    if (!bytes) FAIL(ERR_FAILED, "out of memory");
    TRY_TO(done, input_open(&input, files[0]));
    for (size_t n = 1; n > 0 && text < SAMPLE_BYTES; text += n)
        TRY_TO(done, input_read(input, bytes + text, SAMPLE_BYTES - text, &n));
    TRY_TO(done, count_tokens(&tokens, tokenizer, bytes, text, flags));
    double seen = (double)input_position(input), expansion = seen > 0 ? (double)text / seen : 1;
    size->documents = (double)n_files;
    size->text_bytes = on_disk * expansion;
    size->largest_record = largest * expansion;
    size->tokens = text > 0 ? tokens * size->text_bytes / (double)text : 0;
done:
    if (rc != OK) error_context(rc, "%s", files[0]);
    input_close(input);
    free(bytes);
    return rc;
}

/* Documents of which a file holds many: the first ones are read. */
static int sample_records(SourceSize *size, const SourceOptions *source, const Tokenizer *tokenizer, int flags,
                          char *const *files, size_t n_files, double on_disk) {
    int rc = OK;
    RecordReader *reader = NULL;
    double documents = 0, text = 0, tokens = 0;
    bool found = true;
    TRY_TO(done, records_open(&reader, &(RecordOptions){.paths = files,
                                                        .n_paths = n_files,
                                                        .field = source->field,
                                                        .separator = source->separator,
                                                        .whole = source->encoder != NULL}));
    while (text < SAMPLE_BYTES) {
        Record record;
        double more;
        TRY_TO(done, records_next(reader, &record, &found));
        if (!found) break;
        TRY_TO(done, count_tokens(&more, tokenizer, record.text, record.size, flags));
        documents++;
        tokens += more;
        text += (double)record.size;
        if ((double)record.size > size->largest_record) size->largest_record = (double)record.size;
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

/* Reads the beginning, and scales what it says by the files' sizes. */
static int sample_source(SourceSize *size, const SourceOptions *source, const Tokenizer *tokenizer, int flags,
                         char *const *files, size_t n_files) {
    double on_disk = 0, largest = 0;
    bool has_records = source->encoder || (source->separator && *source->separator);
    for (size_t i = 0; i < n_files; i++) {
        uint64_t bytes;
        TRY(file_size(&bytes, files[i]));
        on_disk += (double)bytes;
        if ((double)bytes > largest) largest = (double)bytes;
        has_records |= source_is_jsonl(files[i]);
    }
    if (has_records) return sample_records(size, source, tokenizer, flags, files, n_files, on_disk);
    return sample_files(size, tokenizer, flags, files, n_files, largest, on_disk);
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

/* As cache_build.c and the encoder hold it: the reader's record, a batch's texts and their ids, of 4 bytes and half as
 * much again for room to grow; a long text's ids exist twice more while its parts are put together. */
static double tokenising_bytes(const SourceSize *size) {
    enum { ID = sizeof(int32_t), LIST = 48 /* of a record: its list and its place in the heap */, TABLES = 1 << 20 };
    if (size->cached || size->documents == 0) return 0;
    double mean = size->text_bytes / size->documents, text = size->text_bytes;
    if (text > CACHE_BATCH_BYTES) text = CACHE_BATCH_BYTES;
    if (text > CACHE_BATCH_RECORDS * mean) text = CACHE_BATCH_RECORDS * mean;
    if (text < size->largest_record) text = size->largest_record;
    double per_byte = size->text_bytes > 0 ? size->tokens / size->text_bytes : 0;
    double ids = 1.5 * ID * text * per_byte + 2 * ID * size->largest_record * per_byte;
    double chunk = size->tokens * ID < CACHE_CHUNK ? size->tokens * ID : CACHE_CHUNK;
    return size->largest_record + text + ids + LIST * (mean > 0 ? text / mean : 0) + chunk + TABLES +
           size->documents * sizeof(uint64_t);
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
    double segments = options->packing != PACKING_STREAM || options->document_mask ? runs : sequences;
    int per_micro = options->tokens_per_microbatch / options->context;
    double micros = sequences / per_micro + 1;
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
