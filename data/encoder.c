/* See encoder.h. */
#include "data/encoder.h"

#include <stdlib.h>

void encoded_record_free(EncodedRecord *record) {
    token_list_free(&record->ids);
    free(record->weights);
    free(record->text);
    *record = (EncodedRecord){0};
}
