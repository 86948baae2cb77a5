/* What lint finds in one record by itself, on any thread; lint.c puts records in order and compares them. */
#ifndef CRIA_DATA_CHAT_LINT_RECORD_H
#define CRIA_DATA_CHAT_LINT_RECORD_H

#include "data/chat/lint.h"
#include "data/chat/pairs.h"
#include "model/core/text.h"

typedef struct {
    LintKind kind;
    size_t text; /* offset of a NUL-terminated text in `texts` */
} LintFinding;

typedef struct {
    const char *path;
    int64_t line, number; /* as Record has them */
    size_t begin, size;   /* its bytes, in `bytes` */
    bool is_record;       /* false: damage of the file, whose text is the one finding */
    bool kept, dropped, truncated;
    size_t first, n;         /* findings */
    size_t before_duplicate; /* of these, those that come before that it is a duplicate */
    uint64_t hash;           /* of its ids; 0: it has none */
    size_t length;           /* tokens, before truncation */
    uint64_t tokens, learned;
} LintedRecord;

/* Records on their way from the reader to the report. */
typedef struct {
    Text bytes, texts;
    LintedRecord *records;
    size_t n, capacity;
    LintFinding *findings;
    size_t n_findings, findings_capacity;
} LintBatch; /* {0} is empty; lint_batch_free */

int lint_batch_add(LintBatch *batch, LintedRecord record);
/* A finding of the record that is being looked at, the last one that has any. */
int lint_batch_find(LintBatch *batch, LintedRecord *record, LintKind kind, const char *text);
void lint_batch_clear(LintBatch *batch);
void lint_batch_free(LintBatch *batch);

/* Looks at one record; `scratch` is the thread's. */
int lint_record(LintBatch *batch, LintedRecord *record, const ChatTemplate *chat, const LintOptions *options,
                PairTokens *scratch);

#endif
