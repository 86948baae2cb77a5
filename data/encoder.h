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

/* How much better the first answer of a pair is, in the words of Touvron et al. 2023b, section 3.2.1. */
typedef enum {
    STRENGTH_UNKNOWN,
    STRENGTH_NEGLIGIBLE,
    STRENGTH_SLIGHT,
    STRENGTH_BETTER,
    STRENGTH_SIGNIFICANT,
    N_STRENGTHS
} Strength;

/* What is known of a sample besides its tokens. */
typedef struct {
    float margin;       /* of a pair, as a number; NaN: not given */
    uint8_t strength;   /* of a pair: a Strength */
    uint8_t is_good;    /* of a labelled answer: 1 or 0 */
    uint16_t objective; /* of a pair: which of several it is about (data/chat/pairs.h); else 0 */
} SampleMark;

/* What a record's samples are. */
typedef enum {
    SAMPLE_DOCUMENT, /* one segment, no mark */
    SAMPLE_PAIR,     /* two segments, the better answer first; a mark */
    SAMPLE_LABELLED, /* one segment, in two parts: the prompt, and from `second` on the answer; a mark */
} SampleKind;

/* One of the samples of a record. */
typedef struct {
    size_t n;      /* tokens, after those of the samples before it */
    size_t second; /* of these, where the second segment or part begins: 0 < second < n */
    SampleMark mark;
} EncodedSample;
enum { RECORD_SAMPLES = 3 }; /* at most: the pairs among three answers */

/* weights[i] is the weight of the loss of predicting token i; the first is 0, since nothing foretells it; so is the
 * first of a second segment. */
typedef struct {
    TokenList ids;
    float *weights; /* [ids.n], malloc'd */
    EncodedSample samples[RECORD_SAMPLES];
    size_t n_samples; /* 0 with SAMPLE_DOCUMENT: all of it is one */
    RecordOutcome outcome;
    char *text;  /* what is to be told, malloc'd; NULL: nothing */
} EncodedRecord; /* {0} is empty; encoded_record_free */
void encoded_record_free(EncodedRecord *record);
/* The outcome and its text, in place of any before. */
int encoded_record_tell(EncodedRecord *record, RecordOutcome outcome, const char *text);
/* n tokens more; weights as above. */
int encoded_record_append(EncodedRecord *record, const int32_t *ids, const float *weights, size_t n);

typedef struct RecordEncoder RecordEncoder;
struct RecordEncoder {
    SampleKind samples;
    uint64_t key; /* of all that the result depends on but the record's bytes and the tokenizer */
    /* Called by several threads at once. Each hands in its own *scratch, NULL at first. A record that cannot be used is
     * an outcome; an error is one of the machine. */
    int (*encode)(const RecordEncoder *self, void **scratch, const char *bytes, size_t size, EncodedRecord *out);
    void (*free_scratch)(void *scratch);
};

#endif
