/* Reads texts a few megabytes at a time, counts their words on all threads, learns the merges, and writes it all as a
 * tokenizer.json, which is then loaded like any other. */
#include "data/tokenizer/train.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/bpe_train.h"
#include "data/source.h"
#include "data/tokenizer/json.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/threads.h"

enum { BATCH_BYTES = 32 << 20, UNIT_BYTES = 256 << 10, N_BYTES = 256, LARGEST_VOCAB = 1 << 24, LONGEST_TOKEN = 1024 };

/* ---- counting -----------------------------------------------------------------------------------------------------
 */

typedef struct {
    size_t begin, end;
} Unit; /* of the batch's text: no word crosses from one to the next */

typedef struct {
    const TokenizerTrainOptions *options;
    Splitter *splitter;
    Text batch;
    Unit *units;
    size_t n_units, units_capacity;
    WordCounts *by_thread;
    int n_threads;
    int rc; /* of a thread that failed */
    WordCounts all;
} Counter;

static int add_unit(Counter *counter, size_t begin, size_t end) {
    if (begin == end) return OK;
    if (counter->n_units == counter->units_capacity) {
        size_t capacity = counter->units_capacity ? counter->units_capacity * 2 : 1024;
        Unit *units = realloc(counter->units, capacity * sizeof *units);
        if (!units) FAIL(ERR_FAILED, "out of memory");
        counter->units = units;
        counter->units_capacity = capacity;
    }
    counter->units[counter->n_units++] = (Unit){begin, end};
    return OK;
}

/* Adds a text, cut where every piece of Llama 3's pattern ends: behind a line end that something visible follows. */
static int add_text(Counter *counter, const char *text, size_t size) {
    size_t begin = counter->batch.length, end = begin + size;
    text_append(&counter->batch, text, size);
    TRY(text_check(&counter->batch));
    while (end - begin > UNIT_BYTES) {
        const char *bytes = counter->batch.bytes;
        size_t cut = begin + UNIT_BYTES;
        while (cut < end && !(bytes[cut - 1] == '\n' && isgraph((unsigned char)bytes[cut]))) cut++;
        TRY(add_unit(counter, begin, cut));
        begin = cut;
    }
    return add_unit(counter, begin, end);
}

static int count_unit(const Counter *counter, const Unit *unit, WordCounts *counts) {
    SplitPass pass;
    int rc = OK;
    const char *text = counter->batch.bytes + unit->begin;
    TRY(split_begin(&pass, counter->splitter, text, unit->end - unit->begin));
    while (pass.at < pass.size && rc == OK) {
        size_t start = pass.at;
        rc = split_next(&pass);
        if (rc == OK) rc = word_counts_add(counts, text + start, pass.at - start, 1);
    }
    split_end(&pass);
    return rc;
}

static void count_units(void *context, size_t begin, size_t end, int thread) {
    Counter *counter = context;
    int rc = OK;
    for (size_t i = begin; i < end && rc == OK; i++)
        rc = count_unit(counter, &counter->units[i], &counter->by_thread[thread]);
#pragma omp critical(tokenizer_train_count)
    if (rc != OK) counter->rc = rc;
}

static int count_batch(Counter *counter) {
    parallel_for(counter->n_units, 1, count_units, counter);
    counter->batch.length = 0;
    counter->n_units = 0;
    if (counter->rc != OK) FAIL(counter->rc, "out of memory while counting words");
    return OK;
}

static int total_size(char *const *paths, size_t n, uint64_t *total) {
    *total = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t size;
        TRY(file_size(&size, paths[i]));
        *total += size;
    }
    return OK;
}

static int count_files(Counter *counter, char *const *paths, size_t n_paths) {
    const TokenizerTrainOptions *options = counter->options;
    RecordReader *reader;
    uint64_t total;
    TRY(total_size(paths, n_paths, &total));
    TRY(records_open(&reader, &(RecordOptions){.paths = paths,
                                               .n_paths = n_paths,
                                               .field = options->field,
                                               .fail_on_error = options->fail_on_error}));
    int rc = OK;
    for (bool found = true; found && rc == OK;) {
        Record record;
        rc = records_next(reader, &record, &found);
        if (rc == OK && found) rc = add_text(counter, record.text, record.size);
        if (rc == OK && (!found || counter->batch.length >= BATCH_BYTES)) {
            rc = count_batch(counter);
            if (options->progress)
                options->progress(options->context, TRAIN_READING, records_bytes_read(reader), total);
        }
    }
    if (rc == OK && records_skipped(reader) > 0)
        log_warning("%lld records were left out", (long long)records_skipped(reader));
    records_close(reader);
    return rc;
}

static int add_files(char ***files, size_t *n_files, const char *path) {
    char **found;
    size_t n;
    TRY(source_files(&found, &n, path));
    char **all = realloc(*files, (*n_files + n) * sizeof *all);
    if (!all) {
        names_free(found, n);
        FAIL(ERR_FAILED, "out of memory");
    }
    memcpy(all + *n_files, found, n * sizeof *all);
    free(found); /* the names are now in the other list */
    *files = all;
    *n_files += n;
    return OK;
}

static int count_words(Counter *counter, const char *const *paths, size_t n_paths) {
    counter->n_threads = threads_count();
    counter->by_thread = calloc((size_t)counter->n_threads, sizeof *counter->by_thread);
    if (!counter->by_thread) FAIL(ERR_FAILED, "out of memory");
    TRY(splitter_new(&counter->splitter, SPLIT_LLAMA3));
    char **files = NULL;
    size_t n_files = 0;
    int rc = OK;
    for (size_t i = 0; i < n_paths && rc == OK; i++) rc = add_files(&files, &n_files, paths[i]);
    if (rc == OK) rc = count_files(counter, files, n_files);
    names_free(files, n_files);
    TRY(rc);
    for (int i = 0; i < counter->n_threads; i++) {
        TRY(word_counts_merge(&counter->all, &counter->by_thread[i]));
        word_counts_free(&counter->by_thread[i]);
    }
    return OK;
}

static void counter_free(Counter *counter) {
    for (int i = 0; i < counter->n_threads && counter->by_thread; i++) word_counts_free(&counter->by_thread[i]);
    free(counter->by_thread);
    word_counts_free(&counter->all);
    text_free(&counter->batch);
    free(counter->units);
    splitter_free(counter->splitter);
}

/* ---- making the tokenizer -----------------------------------------------------------------------------------------
 */

static int add_learned(Tokenizer *t, const BpeMerge *merges, size_t n) {
    char token[LONGEST_TOKEN];
    TRY(bpe_table_init(&t->merges, n));
    for (uint32_t i = 0; i < n; i++) {
        const Piece *left = &t->pieces[merges[i].left], *right = &t->pieces[merges[i].right];
        uint32_t length = left->length + right->length;
        memcpy(token, t->pool.bytes + left->offset, left->length);
        memcpy(token + left->length, t->pool.bytes + right->offset, right->length);
        TRY(tokenizer_add_piece(t, token, length, PIECE_NORMAL, 0));
        bpe_table_add(&t->merges, (BpePair){merges[i].left, merges[i].right, i, N_BYTES + i});
    }
    return OK;
}

/* The tokenizer.json of what was learned. */
static int describe(Tokenizer *t, const BpeMerge *merges, size_t n, int n_special, Text *json) {
    t->kind = KIND_BYTE_LEVEL;
    t->byte_level = true;
    t->unknown = BPE_NO_TOKEN;
    t->split_pattern = strdup(SPLIT_LLAMA3);
    if (!t->split_pattern) FAIL(ERR_FAILED, "out of memory");
    for (int byte = 0; byte < N_BYTES; byte++) TRY(tokenizer_add_piece(t, &(char){(char)byte}, 1, PIECE_NORMAL, 0));
    TRY(add_learned(t, merges, n));
    t->bos = t->n_pieces;
    t->eos = t->n_pieces + 1;
    TRY(tokenizer_add_special(t, n_special));
    return tokenizer_to_json(t, json);
}

static int make_tokenizer(Tokenizer **tokenizer, const BpeMerge *merges, size_t n, int n_special) {
    Text json = {0};
    Tokenizer *learned = calloc(1, sizeof *learned);
    if (!learned) FAIL(ERR_FAILED, "out of memory");
    int rc = describe(learned, merges, n, n_special, &json);
    if (rc == OK) rc = tokenizer_load_memory(tokenizer, "tokenizer.json", json.bytes, json.length);
    tokenizer_free(learned);
    text_free(&json);
    return rc;
}

static int check_options(const TokenizerTrainOptions *options) {
    if (options->n_special < 2 || options->n_special > 256)
        FAIL(ERR_USAGE, "%d special tokens: expected 2 to 256", options->n_special);
    if (options->vocab_size < N_BYTES + options->n_special || options->vocab_size > LARGEST_VOCAB)
        FAIL(ERR_USAGE, "a vocabulary of %d: expected %d (the bytes and %d special tokens) to %d", options->vocab_size,
             N_BYTES + options->n_special, options->n_special, LARGEST_VOCAB);
    if (options->max_token_bytes < 2 || options->max_token_bytes > LONGEST_TOKEN)
        FAIL(ERR_USAGE, "tokens of up to %d bytes: expected 2 to %d", options->max_token_bytes, LONGEST_TOKEN);
    return OK;
}

static void report_merging(void *context, size_t done, size_t wanted) {
    const TokenizerTrainOptions *options = context;
    if (options->progress) options->progress(options->context, TRAIN_MERGING, done, wanted);
}

int tokenizer_train(Tokenizer **tokenizer, const char *const *paths, size_t n_paths,
                    const TokenizerTrainOptions *options) {
    Counter counter = {.options = options};
    TRY(check_options(options));
    size_t wanted = (size_t)(options->vocab_size - N_BYTES - options->n_special), n = 0;
    int rc = OK;
    BpeMerge *merges = malloc((wanted + 1) * sizeof *merges);
    if (!merges) FAIL(ERR_FAILED, "out of memory");
    TRY_TO(out, count_words(&counter, paths, n_paths));
    if (counter.all.n == 0)
        FAIL_TO(out, ERR_REFUSED, "%s%s: no text in it", paths[0], n_paths > 1 ? " and the others" : "");
    BpeTrainOptions train = {.n_merges = wanted,
                             .min_count = options->min_count,
                             .longest_token = (uint32_t)options->max_token_bytes,
                             .progress = report_merging,
                             .context = (void *)(uintptr_t)options};
    TRY_TO(out, bpe_train(&counter.all, &train, merges, &n));
    if (n < wanted)
        log_warning("the text holds pairs for %zu tokens only, %zu were asked for: the vocabulary has %zu", n, wanted,
                    N_BYTES + n + (size_t)options->n_special);
    rc = make_tokenizer(tokenizer, merges, n, options->n_special);
out:
    counter_free(&counter);
    free(merges);
    return rc;
}
