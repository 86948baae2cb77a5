/* See encoder.h. */
#include "data/encoder.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

void encoded_record_free(EncodedRecord *record) {
    token_list_free(&record->ids);
    free(record->weights);
    free(record->text);
    *record = (EncodedRecord){0};
}

int encoded_record_tell(EncodedRecord *record, RecordOutcome outcome, const char *text) {
    free(record->text);
    record->outcome = outcome;
    record->text = strdup(text);
    if (!record->text) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

int encoded_record_append(EncodedRecord *record, const int32_t *ids, const float *weights, size_t n) {
    size_t before = record->ids.n;
    TRY(token_list_append(&record->ids, ids, n));
    float *grown = realloc(record->weights, record->ids.n * sizeof *grown);
    if (!grown) FAIL(ERR_FAILED, "out of memory");
    record->weights = grown;
    memcpy(grown + before, weights, n * sizeof *grown);
    return OK;
}
