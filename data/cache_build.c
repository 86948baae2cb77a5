/* Making a token cache: records are read in batches of a bounded number of bytes, encoded by all threads, and their ids
 * appended to a temporary file; tables and header follow, then fsync and rename. Memory: a batch, its ids, and eight
 * bytes per document. */
#include "data/cache_format.h"
#include "data/source.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "model/core/threads.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PROGRESS_SECONDS = 10, OPEN_ATTEMPTS = 100, MOST_REPORTED = 10 /* records of each kind, one by one */ };

typedef struct {
    char *bytes; /* texts one after the other */
    size_t used, capacity;
    size_t begin[CACHE_BATCH_RECORDS]; /* of each text in `bytes`: the array may move as it grows */
    const char *texts[CACHE_BATCH_RECORDS];
    size_t sizes[CACHE_BATCH_RECORDS];
    TokenList ids[CACHE_BATCH_RECORDS];
    EncodedRecord *encoded; /* [CACHE_BATCH_RECORDS] with an encoder, instead of ids */
    struct {
        const char *path;
        int64_t line, number;
    } place[CACHE_BATCH_RECORDS]; /* with an encoder */
    size_t n;
} Batch;

typedef struct {
    const CacheOptions *options;
    CacheHeader header;
    char *temporary;
    int fd;
    unsigned char *chunk; /* [CACHE_CHUNK] ids on their way to the file */
    size_t chunk_used;
    uint64_t *start; /* of documents [n_documents + 1] */
    size_t start_capacity;
    uint64_t *second; /* [n_documents], with marks, of an encoder whose samples have them */
    size_t second_capacity;
    SampleMark *marks;
    size_t marks_capacity;
    uint32_t *crcs;
    size_t crcs_capacity;
    Batch *batch;
    RecordCounts counts; /* with an encoder */
    time_t begun, reported;
} Build;

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static int write_all(const Build *build, const void *bytes, size_t n) {
    for (size_t done = 0; done < n;) {
        ssize_t written = write(build->fd, (const char *)bytes + done, n - done);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) FAIL(ERR_FAILED, "%s: write: %s", build->temporary, strerror(errno));
        done += (size_t)written;
    }
    return OK;
}

/* Room for element n of a growing array (*array is a pointer of any type, hence memcpy). */
static int reserve(void *array, size_t *capacity, size_t n, size_t element) {
    if (n < *capacity) return OK;
    size_t wanted = 2 * n + 1024;
    void *memory;
    memcpy(&memory, array, sizeof memory);
    memory = wanted < SIZE_MAX / element ? realloc(memory, wanted * element) : NULL;
    if (!memory) FAIL(ERR_FAILED, "out of memory: a table of %zu elements", wanted);
    memcpy(array, &memory, sizeof memory);
    *capacity = wanted;
    return OK;
}

static int write_chunk(Build *build) {
    if (build->chunk_used == 0) return OK;
    size_t n = build->header.n_chunks;
    TRY(reserve(&build->crcs, &build->crcs_capacity, n, sizeof *build->crcs));
    build->crcs[n] = crc32c(0, build->chunk, build->chunk_used);
    build->header.n_chunks++;
    TRY(write_all(build, build->chunk, build->chunk_used));
    build->chunk_used = 0;
    return OK;
}

static int add_mark(Build *build, const EncodedSample *sample) {
    size_t d = build->header.n_documents;
    TRY(reserve(&build->second, &build->second_capacity, d, sizeof *build->second));
    TRY(reserve(&build->marks, &build->marks_capacity, d, sizeof *build->marks));
    build->second[d] = build->header.n_tokens + sample->second;
    build->marks[d] = sample->mark;
    return OK;
}

/* `weights`: NULL, or one a token, where the cache has them. */
static int add_document(Build *build, const int32_t *ids, const float *weights, size_t n) {
    CacheHeader *header = &build->header;
    if (n == 0) return OK; /* nothing to learn from */
    if (header->n_documents == UINT32_MAX)
        FAIL(ERR_REFUSED, "more than %u documents in one source; make two sources of it", UINT32_MAX);
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= header->vocab_size)
            FAIL(ERR_FAILED, "the tokenizer gave id %d; its vocabulary has %u", ids[i], header->vocab_size);
        if (weights) {
            WeightedId both = {(uint32_t)ids[i], weights[i]};
            memcpy(build->chunk + build->chunk_used, &both, sizeof both);
        } else if (header->bytes_per_id == 2) {
            uint16_t narrow = (uint16_t)ids[i];
            memcpy(build->chunk + build->chunk_used, &narrow, sizeof narrow);
        } else {
            memcpy(build->chunk + build->chunk_used, &ids[i], sizeof ids[i]);
        }
        build->chunk_used += header->bytes_per_id;
        if (build->chunk_used == CACHE_CHUNK) TRY(write_chunk(build));
    }
    header->n_tokens += n;
    header->n_documents++;
    TRY(reserve(&build->start, &build->start_capacity, header->n_documents, sizeof *build->start));
    build->start[header->n_documents] = header->n_tokens;
    return OK;
}

static int write_table(Build *build, const void *table, size_t size) {
    if (size == 0) return OK;
    build->header.tables_crc = crc32c(build->header.tables_crc, table, size);
    return write_all(build, table, size);
}

static int write_tables(Build *build, const FileStamp *stamps) {
    CacheHeader *header = &build->header;
    static const char zeros[8];
    TRY(write_chunk(build));
    size_t ragged = (size_t)(header->n_tokens * header->bytes_per_id % 8);
    if (ragged) TRY(write_all(build, zeros, 8 - ragged));
    size_t n = header->n_documents, n_marks = header->samples == SAMPLE_DOCUMENT ? 0 : n;
    TRY(write_table(build, build->start, (n + 1) * sizeof *build->start));
    TRY(write_table(build, build->second, n_marks * sizeof *build->second));
    TRY(write_table(build, build->marks, n_marks * sizeof *build->marks));
    TRY(write_table(build, stamps, header->n_files * sizeof *stamps));
    TRY(write_table(build, build->crcs, header->n_chunks * sizeof *build->crcs));
    header->header_crc = crc32c(0, header, offsetof(CacheHeader, header_crc));
    if (lseek(build->fd, 0, SEEK_SET) != 0) FAIL(ERR_FAILED, "%s: lseek: %s", build->temporary, strerror(errno));
    return write_all(build, header, sizeof *header);
}

/* ---- tokenising ------------------------------------------------------------------------------------------------- */

static int batch_add(Batch *batch, const Record *record) {
    if (batch->capacity - batch->used < record->size) {
        size_t wanted = batch->used + record->size;
        wanted = wanted < CACHE_BATCH_BYTES ? CACHE_BATCH_BYTES : wanted;
        char *grown = realloc(batch->bytes, wanted);
        if (!grown)
            FAIL(ERR_FAILED, "%s:%lld: out of memory: a record of %zu bytes", record->path, (long long)record->line,
                 record->size);
        batch->bytes = grown;
        batch->capacity = wanted;
    }
    if (record->size) memcpy(batch->bytes + batch->used, record->text, record->size);
    batch->begin[batch->n] = batch->used;
    batch->place[batch->n].path = record->path;
    batch->place[batch->n].line = record->line;
    batch->place[batch->n].number = record->number;
    batch->sizes[batch->n++] = record->size;
    batch->used += record->size;
    return OK;
}

static void batch_clear(Batch *batch) {
    for (size_t i = 0; i < batch->n; i++) token_list_free(&batch->ids[i]);
    memset(batch->ids, 0, batch->n * sizeof *batch->ids);
    for (size_t i = 0; batch->encoded && i < batch->n; i++) encoded_record_free(&batch->encoded[i]);
    batch->n = batch->used = 0;
    if (batch->capacity > 2 * (size_t)CACHE_BATCH_BYTES) { /* a giant record's room is given back */
        free(batch->bytes);
        batch->bytes = NULL;
        batch->capacity = 0;
    }
}

/* ---- records that are more than text ---------------------------------------------------------------------------- */

typedef struct {
    const RecordEncoder *encoder;
    Batch *batch;
    int rc; /* the first error of any thread, whose text is in its record */
} Encoding;

static void encode_part(void *context, size_t begin, size_t end, int thread) {
    (void)thread;
    Encoding *encoding = context;
    Batch *batch = encoding->batch;
    void *scratch = NULL;
    for (size_t i = begin; i < end; i++) {
        EncodedRecord *out = &batch->encoded[i];
        int rc = encoding->encoder->encode(encoding->encoder, &scratch, batch->texts[i], batch->sizes[i], out);
        if (rc == OK) continue;
        free(out->text);
        out->text = strdup(error_text()); /* errors are each thread's own */
        int none = OK;
        __atomic_compare_exchange_n(&encoding->rc, &none, rc, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
        break;
    }
    encoding->encoder->free_scratch(scratch);
}

static bool is_refused(const Build *build, RecordOutcome outcome) {
    return outcome == RECORD_REFUSED || (outcome == RECORD_BAD && build->options->fail_on_error);
}

/* One warning a record, up to a number of each kind; all are counted. */
static void report_record(Build *build, size_t i) {
    const EncodedRecord *record = &build->batch->encoded[i];
    static const char *const doing[N_RECORD_OUTCOMES] = {
        [RECORD_DROPPED] = "left out: ", [RECORD_MASKED] = "left out: ", [RECORD_BAD] = "left out: "};
    int64_t n = ++build->counts.n[record->outcome];
    if (record->outcome == RECORD_KEPT || n > MOST_REPORTED) return;
    bool refused = is_refused(build, record->outcome);
    char number[RECORD_NUMBER_SIZE];
    log_warning("%s:%lld: %s%s%s", build->batch->place[i].path, (long long)build->batch->place[i].line,
                record_number_text(number, build->batch->place[i].number),
                refused || !doing[record->outcome] ? "" : doing[record->outcome], record->text ? record->text : "");
    if (n == MOST_REPORTED)
        log_warning("further records of this kind are only counted; 'cria data lint' names them all");
}

static int add_record(Build *build, const EncodedRecord *record) {
    if (record->outcome != RECORD_KEPT && record->outcome != RECORD_TRUNCATED) return OK;
    if (build->header.samples == SAMPLE_DOCUMENT)
        return add_document(build, record->ids.ids, record->weights, record->ids.n);
    for (size_t i = 0, first = 0; i < record->n_samples; first += record->samples[i++].n) {
        TRY(add_mark(build, &record->samples[i]));
        TRY(add_document(build, record->ids.ids + first, record->weights + first, record->samples[i].n));
    }
    return OK;
}

static int batch_encode_records(Build *build) {
    Batch *batch = build->batch;
    Encoding encoding = {.encoder = build->options->source->encoder, .batch = batch};
    parallel_for(batch->n, 1, encode_part, &encoding);
    for (size_t i = 0; i < batch->n && encoding.rc != OK; i++)
        if (batch->encoded[i].text && batch->encoded[i].ids.n == 0)
            FAIL(encoding.rc, "%s:%lld: %s", batch->place[i].path, (long long)batch->place[i].line,
                 batch->encoded[i].text);
    TRY(encoding.rc);
    for (size_t i = 0; i < batch->n; i++) {
        report_record(build, i);
        TRY(add_record(build, &batch->encoded[i]));
    }
    batch_clear(batch);
    return OK;
}

/* All records have been seen; whether they may be used. */
static int settle_counts(Build *build) {
    const RecordCounts *counts = &build->counts;
    CacheHeader *header = &build->header;
    int64_t refused = counts->n[RECORD_REFUSED] + (build->options->fail_on_error ? counts->n[RECORD_BAD] : 0);
    if (refused > 0)
        FAIL(
            ERR_REFUSED,
            "%s: %lld of its records cannot be trained on, as named above; correct or remove them (data.on_error: "
            "skip leaves malformed ones out, overlong: drop or truncate-left in their section those that are too long)",
            build->options->source->path, (long long)refused);
    header->n_skipped = (uint64_t)counts->n[RECORD_BAD];
    header->n_truncated = (uint64_t)counts->n[RECORD_TRUNCATED];
    header->n_dropped = (uint64_t)counts->n[RECORD_DROPPED];
    header->n_masked = (uint64_t)counts->n[RECORD_MASKED];
    if (header->n_documents == 0)
        FAIL(ERR_REFUSED,
             "%s: nothing to learn from: of %lld records none is kept (%lld malformed, %lld too long, %lld in which "
             "nothing is learned)",
             build->options->source->path,
             (long long)(counts->n[RECORD_BAD] + counts->n[RECORD_DROPPED] + counts->n[RECORD_MASKED]),
             (long long)counts->n[RECORD_BAD], (long long)counts->n[RECORD_DROPPED],
             (long long)counts->n[RECORD_MASKED]);
    return OK;
}

/* ---- all of them ------------------------------------------------------------------------------------------------ */

static int batch_encode(Build *build) {
    Batch *batch = build->batch;
    for (size_t i = 0; i < batch->n; i++) batch->texts[i] = batch->bytes ? batch->bytes + batch->begin[i] : "";
    if (batch->encoded) return batch_encode_records(build);
    int rc = tokenizer_encode_many(build->options->tokenizer, batch->texts, batch->sizes, batch->n,
                                   build->options->flags, batch->ids);
    if (rc != OK) error_context(rc, "tokenising %s", build->options->source->path);
    TRY(rc);
    for (size_t i = 0; i < batch->n; i++) TRY(add_document(build, batch->ids[i].ids, NULL, batch->ids[i].n));
    batch_clear(batch);
    return OK;
}

static void report_progress(Build *build, const RecordReader *reader) {
    time_t now = time(NULL);
    if (now - build->reported < PROGRESS_SECONDS) return;
    build->reported = now;
    char documents[32], tokens[32], bytes[32];
    log_info("tokenising %s: %s documents, %s tokens, %s read, %.1f MB/s", build->options->name,
             text_thousands(documents, build->header.n_documents), text_thousands(tokens, build->header.n_tokens),
             text_bytes(bytes, records_bytes_read(reader)),
             (double)records_bytes_read(reader) / 1e6 / (double)(now - build->begun));
}

static int tokenise(Build *build, RecordReader *reader) {
    Batch *batch = build->batch;
    for (;;) {
        Record record;
        bool found;
        TRY(records_next(reader, &record, &found));
        if (found) TRY(batch_add(batch, &record));
        if (!found || batch->used >= CACHE_BATCH_BYTES || batch->n == CACHE_BATCH_RECORDS) {
            TRY(batch_encode(build));
            report_progress(build, reader);
        }
        if (!found) break;
    }
    build->counts.n[RECORD_BAD] += records_skipped(reader);
    if (batch->encoded) return settle_counts(build);
    build->header.n_skipped = (uint64_t)records_skipped(reader);
    if (build->header.n_documents == 0)
        FAIL(ERR_REFUSED, "%s: no text in it (%lld bad records were skipped)", build->options->source->path,
             (long long)build->header.n_skipped);
    return OK;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

/* A temporary file that no other process, on this machine or another, has: its creation is exclusive. */
static int open_temporary(Build *build, const char *path) {
    for (int attempt = 0; attempt < OPEN_ATTEMPTS; attempt++) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        free(build->temporary);
        build->temporary = NULL;
        if (asprintf(&build->temporary, "%s.tmp-%ld-%ld%09ld", path, (long)getpid(), (long)now.tv_sec, now.tv_nsec) <
            0) {
            build->temporary = NULL;
            FAIL(ERR_FAILED, "out of memory");
        }
        build->header.built = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
        build->fd = open(build->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (build->fd >= 0) return OK;
        if (errno != EEXIST) break;
    }
    int code = errno;
    char *name = build->temporary;
    build->temporary = NULL; /* not ours to remove */
    error_set(ERR_FAILED, __FILE__, __LINE__, "%s: open for writing: %s", name, strerror(code));
    free(name);
    return ERR_FAILED;
}

static int build_start(Build *build, const char *path) {
    build->chunk = malloc(CACHE_CHUNK);
    build->batch = calloc(1, sizeof *build->batch);
    if (!build->chunk || !build->batch) FAIL(ERR_FAILED, "out of memory");
    if (build->options->source->encoder) {
        build->batch->encoded = calloc(CACHE_BATCH_RECORDS, sizeof *build->batch->encoded);
        if (!build->batch->encoded) FAIL(ERR_FAILED, "out of memory");
    }
    TRY(reserve(&build->start, &build->start_capacity, 0, sizeof *build->start));
    build->start[0] = 0;
    TRY(open_temporary(build, path));
    CacheHeader blank = {0};
    return write_all(build, &blank, sizeof blank); /* the true one comes last */
}

static void build_free(Build *build) {
    if (build->fd >= 0) close(build->fd);
    if (build->temporary) unlink(build->temporary);
    if (build->batch) {
        batch_clear(build->batch);
        free(build->batch->bytes);
        free(build->batch->encoded);
    }
    free(build->temporary);
    free(build->chunk);
    free(build->batch);
    free(build->start);
    free(build->second);
    free(build->marks);
    free(build->crcs);
}

static int commit(Build *build, const char *path) {
    int fd = build->fd;
    build->fd = -1;
    TRY(file_sync_and_close(fd, build->temporary));
    TRY(file_rename(build->temporary, path));
    free(build->temporary);
    build->temporary = NULL;
    return OK;
}

int token_cache_build(const char *path, const CacheOptions *options, char *const *files, size_t n_files, uint64_t key) {
    int rc = OK;
    const SourceOptions *source = options->source;
    RecordReader *reader = NULL;
    Build build = {.options = options, .fd = -1, .begun = time(NULL), .reported = time(NULL)};
    uint32_t vocab_size = (uint32_t)tokenizer_vocab_size(options->tokenizer);
    memcpy(build.header.magic, CACHE_MAGIC, sizeof build.header.magic);
    build.header.version = CACHE_VERSION;
    build.header.bytes_per_id = vocab_size <= (uint32_t)UINT16_MAX + 1 ? sizeof(uint16_t) : sizeof(int32_t);
    if (source->encoder) {
        build.header.bytes_per_id = sizeof(WeightedId);
        build.header.samples = (uint32_t)source->encoder->samples;
    }
    build.header.vocab_size = vocab_size;
    build.header.key = key;
    build.header.n_files = n_files;
    TRY_TO(done, build_start(&build, path));
    TRY_TO(done, records_open(&reader, &(RecordOptions){.paths = files,
                                                        .n_paths = n_files,
                                                        .field = source->field,
                                                        .separator = source->separator,
                                                        .fail_on_error = options->fail_on_error,
                                                        .whole = source->encoder != NULL}));
    TRY_TO(done, tokenise(&build, reader));
    TRY_TO(done, write_tables(&build, records_stamps(reader)));
    TRY_TO(done, commit(&build, path));
    char documents[32], tokens[32];
    log_info("tokenised %s: %s document%s, %s tokens%s", options->name,
             text_thousands(documents, build.header.n_documents), build.header.n_documents == 1 ? "" : "s",
             text_thousands(tokens, build.header.n_tokens), build.header.n_skipped ? "; bad records were skipped" : "");
done:
    records_close(reader);
    build_free(&build);
    return rc;
}
