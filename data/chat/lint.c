/* One pass over the records by all threads, told in the order of the files. Duplicates are found by a 64-bit hash of
 * the ids in an open-addressing table that keeps, for every record, its hash, file and line. */
#include "data/chat/lint.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "data/chat/lint_record.h"
#include "data/source.h"
#include "model/core/error.h"
#include "model/core/threads.h"

enum { BATCH_BYTES = 128 * 1024, BATCH_RECORDS = 4096, BATCHES_PER_THREAD = 2 };

static const LintRow rows[] = {
#define ERROR true
#define WARNING false
#define LINT(name, severity, label, help) {#name, label, help, severity},
    LINT_KINDS
#undef LINT
#undef ERROR
#undef WARNING
};

const LintRow *lint_row(LintKind kind) {
    return &rows[kind];
}

typedef struct {
    uint64_t hash; /* 0: empty */
    int64_t line;
    size_t path;
} Seen;

typedef struct {
    LintBatch batch;
    uint64_t number; /* of the batch, from 0 */
    bool is_free, is_done;
} Slot;

typedef struct {
    const ChatTemplate *chat;
    const LintOptions *options;
    LintResult *result;
    Seen *seen;
    size_t n_slots, n_seen;
    /* under `reading` */
    pthread_mutex_t reading;
    RecordReader *reader;
    uint64_t next_read;
    bool at_end;
    /* under `ordering` */
    pthread_mutex_t ordering;
    pthread_cond_t freed;
    Slot *slots;
    size_t n_batches;
    uint64_t next_told;
    int rc; /* of the first thread that failed */
    char error[1024];
} Lint;

/* ---- duplicates ---------------------------------------------------------------------------------------------------
 */

static Seen *find_slot(Seen *seen, size_t n_slots, uint64_t hash) {
    size_t at = hash & (n_slots - 1);
    while (seen[at].hash && seen[at].hash != hash) at = (at + 1) & (n_slots - 1);
    return &seen[at];
}

static int grow_seen(Lint *lint) {
    size_t n_slots = lint->n_slots > 0 ? 2 * lint->n_slots : 1024;
    Seen *seen = calloc(n_slots, sizeof *seen);
    if (!seen) FAIL(ERR_FAILED, "out of memory after %zu records", lint->n_seen);
    for (size_t i = 0; i < lint->n_slots; i++)
        if (lint->seen[i].hash) *find_slot(seen, n_slots, lint->seen[i].hash) = lint->seen[i];
    free(lint->seen);
    lint->seen = seen;
    lint->n_slots = n_slots;
    return OK;
}

static size_t path_index(const Lint *lint, const char *path) {
    size_t i = 0;
    while (i + 1 < lint->options->n_paths && lint->options->paths[i] != path) i++;
    return i;
}

/* ---- in order -----------------------------------------------------------------------------------------------------
 */

static void tell(Lint *lint, const LintedRecord *record, LintKind kind, const char *text) {
    lint->result->count[kind]++;
    bool is_error = rows[kind].is_error && (kind != LINT_overlong || lint->options->overlong == OVERLONG_FAIL);
    lint->result->has_errors = lint->result->has_errors || is_error;
    if (!lint->options->report) return;
    char number[RECORD_NUMBER_SIZE];
    Text whole = {0};
    text_printf(&whole, "%s%s", record_number_text(number, record->number), text);
    lint->options->report(lint->options->report_context, kind, record->path, record->line,
                          whole.bytes ? whole.bytes : text);
    text_free(&whole);
}

static int tell_duplicate(Lint *lint, const LintedRecord *record) {
    char text[512];
    if (record->hash == 0) return OK;
    if (2 * lint->n_seen >= lint->n_slots) TRY(grow_seen(lint));
    Seen *slot = find_slot(lint->seen, lint->n_slots, record->hash);
    if (!slot->hash) {
        *slot = (Seen){record->hash, record->line, path_index(lint, record->path)};
        lint->n_seen++;
        return OK;
    }
    snprintf(text, sizeof text, "the same tokens as %s:%lld", lint->options->paths[slot->path], (long long)slot->line);
    tell(lint, record, LINT_duplicate, text);
    return OK;
}

static void note_length(LintResult *result, const LintedRecord *record) {
    int bin = 0;
    while (bin + 1 < LINT_BINS && record->length >> (bin + 1)) bin++;
    result->bins[bin]++;
    if (record->length <= result->longest) return;
    result->longest = record->length;
    result->longest_path = record->path;
    result->longest_line = record->line;
}

static int tell_record(Lint *lint, const LintBatch *batch, const LintedRecord *record) {
    LintResult *result = lint->result;
    const LintFinding *findings = batch->findings + record->first;
    if (record->hash) note_length(result, record);
    for (size_t i = 0; i <= record->n; i++) {
        if (i == record->before_duplicate) TRY(tell_duplicate(lint, record));
        if (i < record->n) tell(lint, record, findings[i].kind, batch->texts.bytes + findings[i].text);
    }
    result->records += record->is_record;
    result->kept += record->kept;
    result->dropped += record->dropped;
    result->truncated += record->truncated;
    result->bytes += record->size;
    result->tokens += record->tokens;
    result->learned += record->learned;
    return OK;
}

static int tell_batch(Lint *lint, const LintBatch *batch) {
    for (size_t i = 0; i < batch->n; i++) TRY(tell_record(lint, batch, &batch->records[i]));
    return OK;
}

/* ---- threads ------------------------------------------------------------------------------------------------------
 * Each reads a batch, looks at it, and tells all batches whose turn it is. */

static void note_failure(Lint *lint, int rc) {
    if (lint->rc != OK) return;
    lint->rc = rc;
    snprintf(lint->error, sizeof lint->error, "%s", error_text());
}

static Slot *take_slot(Lint *lint) {
    Slot *slot = NULL;
    pthread_mutex_lock(&lint->ordering);
    while (!slot && lint->rc == OK) {
        for (size_t i = 0; i < lint->n_batches && !slot; i++)
            if (lint->slots[i].is_free) slot = &lint->slots[i];
        if (!slot) pthread_cond_wait(&lint->freed, &lint->ordering);
    }
    if (slot) slot->is_free = false;
    pthread_mutex_unlock(&lint->ordering);
    return slot;
}

static int read_some(Lint *lint, LintBatch *batch) {
    while (batch->bytes.length < BATCH_BYTES && batch->n < BATCH_RECORDS && !lint->at_end) {
        Record record;
        bool found;
        int rc = records_next(lint->reader, &record, &found);
        LintedRecord linted = {
            .path = record.path, .line = record.line, .number = record.number, .begin = batch->bytes.length};
        if (rc == ERR_REFUSED) { /* the file's bytes, not one record: the text says where */
            TRY(lint_batch_find(batch, &linted, LINT_malformed, error_text()));
            error_clear();
            TRY(lint_batch_add(batch, linted));
            continue;
        }
        TRY(rc);
        lint->at_end = !found;
        if (!found) break;
        linted.is_record = true;
        linted.size = record.size;
        text_append(&batch->bytes, record.text, record.size);
        TRY(text_check(&batch->bytes));
        TRY(lint_batch_add(batch, linted));
    }
    return OK;
}

static int read_slot(Lint *lint, Slot *slot) {
    pthread_mutex_lock(&lint->reading);
    slot->number = lint->next_read++;
    int rc = read_some(lint, &slot->batch);
    lint->at_end = lint->at_end || rc != OK;
    pthread_mutex_unlock(&lint->reading);
    return rc;
}

static int look_at(const Lint *lint, LintBatch *batch, PairTokens *scratch) {
    for (size_t i = 0; i < batch->n; i++)
        if (batch->records[i].is_record)
            TRY(lint_record(batch, &batch->records[i], lint->chat, lint->options, scratch));
    return OK;
}

static Slot *next_told(Lint *lint) {
    for (size_t i = 0; i < lint->n_batches; i++)
        if (lint->slots[i].is_done && lint->slots[i].number == lint->next_told) return &lint->slots[i];
    return NULL;
}

static void finish_slot(Lint *lint, Slot *slot, int rc) {
    pthread_mutex_lock(&lint->ordering);
    slot->is_done = true;
    if (rc != OK) note_failure(lint, rc);
    for (Slot *next; lint->rc == OK && (next = next_told(lint)) != NULL; lint->next_told++) {
        rc = tell_batch(lint, &next->batch);
        if (rc != OK) note_failure(lint, rc);
        lint_batch_clear(&next->batch);
        next->is_done = false;
        next->is_free = true;
    }
    pthread_cond_broadcast(&lint->freed);
    pthread_mutex_unlock(&lint->ordering);
}

static void work(void *context, size_t begin, size_t end, int thread) {
    Lint *lint = context;
    PairTokens scratch = {0};
    Slot *slot;
    bool more = true;
    (void)begin, (void)end, (void)thread;
    while (more && (slot = take_slot(lint)) != NULL) {
        int rc = read_slot(lint, slot);
        more = slot->batch.n > 0 && rc == OK;
        if (rc == OK) rc = look_at(lint, &slot->batch, &scratch);
        finish_slot(lint, slot, rc);
    }
    pair_tokens_free(&scratch);
}

static int run(Lint *lint) {
    size_t n_threads = (size_t)threads_count();
    lint->n_batches = BATCHES_PER_THREAD * n_threads;
    lint->slots = calloc(lint->n_batches, sizeof *lint->slots);
    if (!lint->slots) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < lint->n_batches; i++) lint->slots[i].is_free = true;
    pthread_mutex_init(&lint->reading, NULL);
    pthread_mutex_init(&lint->ordering, NULL);
    pthread_cond_init(&lint->freed, NULL);
    parallel_for(n_threads, 1, work, lint);
    pthread_cond_destroy(&lint->freed);
    pthread_mutex_destroy(&lint->ordering);
    pthread_mutex_destroy(&lint->reading);
    if (lint->rc != OK) FAIL(lint->rc, "%s", lint->error);
    return OK;
}

int data_lint(const ChatTemplate *chat, const LintOptions *options, LintResult *result) {
    Lint lint = {.chat = chat, .options = options, .result = result};
    *result = (LintResult){0};
    TRY(records_open(
        &lint.reader,
        &(RecordOptions){.paths = options->paths, .n_paths = options->n_paths, .fail_on_error = true, .whole = true}));
    int rc = run(&lint);
    records_close(lint.reader);
    for (size_t i = 0; lint.slots && i < lint.n_batches; i++) lint_batch_free(&lint.slots[i].batch);
    free(lint.slots);
    free(lint.seen);
    return rc;
}
