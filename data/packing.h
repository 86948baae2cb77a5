/* One epoch of one set of documents, cut into sequences of at most `context` tokens.
 *
 * PACKING_STREAM: the documents in their order are one circle of N tokens; sequence i is the `context` tokens from
 * phase + i·context on (the last sequence is what remains), each token's target the next one on the circle. So every
 * token is an input once and a target once. Without wrap-around the circle is a line: its last token has no target.
 * With a document mask each document's part is a segment of its own, and a document's last token has no target.
 *
 * PACKING_BEST_FIT: documents are cut into pieces of `context` (the last is shorter) and the pieces of every
 * PACKING_WINDOW documents packed, longest first, each into the sequence that it fills best. Every piece is a segment.
 * A piece's last token has the document's next token as its target, the document's last token has none.
 *
 * PACKING_ALONE: the same pieces, each a sequence.
 *
 * Memory: twelve bytes per document (stream), or eight per piece and per sequence (best fit). */
#ifndef CRIA_DATA_PACKING_H
#define CRIA_DATA_PACKING_H

#include <stdbool.h>
#include <stdint.h>

#include "data/loader.h"
#include "model/core/philox.h"

enum { PACKING_WINDOW = 8192 };

/* Some documents of a source; document d is tokens start[d] … start[d+1]-1 of it. */
typedef struct {
    const uint64_t *start;
    const uint32_t *documents;
    uint32_t n_documents;
    const uint64_t *second; /* where each document's second segment begins; NULL: none has one. Such a document is never
                               cut: none is longer than the context, and the packing is none of a stream */
} DocumentSet;

typedef struct {
    Packing packing;
    bool document_mask; /* stream packing */
    int context;
    bool shuffle;                   /* else: documents and sequences in their own order, phase 0, a line */
    PhiloxKey documents, sequences; /* the orders' keys, where shuffled */
    uint64_t phase;                 /* any number; taken modulo min(context, N) */
} PlanOptions;

typedef struct {
    uint32_t document, piece; /* tokens piece·context … of the document */
} Piece;

typedef struct {
    PlanOptions options;
    const uint64_t *start, *second;
    uint32_t *order; /* [n_documents]: documents as they come in this epoch */
    uint32_t n_documents;
    int64_t n_tokens, n_sequences;
    uint64_t *stream_start; /* stream: [n_documents + 1], where each begins on the circle */
    Piece *pieces;          /* best fit: sequence i is pieces first_piece[i] … first_piece[i+1]-1 */
    uint64_t *first_piece;
    size_t pieces_capacity, sequences_capacity;
} EpochPlan;

int plan_make(EpochPlan *plan, const DocumentSet *set, const PlanOptions *options);
void plan_free(EpochPlan *plan);

/* Consecutive tokens of the source. The target of all but the last is the token after it; `next` is where the last
 * one's target is, or -1 where it has none. */
typedef struct {
    int64_t first, next;
    int32_t n;
    bool begins_segment;
} Run;

typedef struct {
    Run *runs;
    size_t n, capacity;
} RunList; /* {0} is empty */

/* Appends the one or two segments of a document that is not cut. */
int runs_add_document(RunList *runs, const uint64_t *start, const uint64_t *second, uint32_t document);

/* Appends one segment: the first part of a document and the second part of another, at most `longest` tokens. */
int runs_add_mismatched(RunList *runs, const uint64_t *start, const uint64_t *second, uint32_t document, uint32_t other,
                        int64_t longest);

/* Appends the runs of sequence 0 <= index < n_sequences of the epoch; *n_tokens and *n_targets (those that count) are
 * its sums. */
int plan_sequence(const EpochPlan *plan, int64_t index, RunList *runs, int *n_tokens, int *n_targets);

#endif
