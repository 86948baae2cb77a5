/* How a record becomes tokens where it is more than a text: conversations, for one (data/chat/encode.h). The cache
 * knows no more of them than this. */
#ifndef CRIA_DATA_ENCODER_H
#define CRIA_DATA_ENCODER_H

#include <stddef.h>
#include <stdint.h>

#include "data/tokenizer/tokenizer.h"

typedef enum {
    RECORD_KEPT,
    RECORD_TRUNCATED, /* kept, shorter than it was */
    RECORD_DROPPED,   /* left out: it is too long */
    RECORD_MASKED,    /* left out: no token of it would be learned */
    RECORD_BAD,       /* malformed: refused, or left out where on_error says so */
    RECORD_REFUSED,   /* always refused */
    N_RECORD_OUTCOMES
} RecordOutcome;

/* Counts of what happened to the records of a source, besides being kept. */
typedef struct {
    int64_t n[N_RECORD_OUTCOMES];
} RecordCounts;

/* weights[i] is the weight of the loss of predicting token i; the first is 0, since nothing foretells it. */
typedef struct {
    TokenList ids;
    float *weights; /* [ids.n], malloc'd */
    RecordOutcome outcome;
    char *text;  /* what is to be told, malloc'd; NULL: nothing */
} EncodedRecord; /* {0} is empty; encoded_record_free */
void encoded_record_free(EncodedRecord *record);

typedef struct RecordEncoder RecordEncoder;
struct RecordEncoder {
    uint64_t key; /* of all that the result depends on but the record's bytes and the tokenizer */
    /* Called by several threads at once. Each hands in its own *scratch, NULL at first. A record that cannot be used is
     * an outcome; an error is one of the machine. */
    int (*encode)(const RecordEncoder *self, void **scratch, const char *bytes, size_t size, EncodedRecord *out);
    void (*free_scratch)(void *scratch);
};

#endif
