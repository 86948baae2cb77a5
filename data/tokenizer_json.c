#include "data/tokenizer_internal.h"
#include "model/core/error.h"
int tokenizer_read_json(Tokenizer *t, const char *bytes, size_t size) {
    (void)t, (void)bytes, (void)size;
    FAIL(ERR_REFUSED, "tokenizer.json is not read yet");
}
