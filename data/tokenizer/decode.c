/* Ids to text. Tokens are bytes, so a stream of them may break inside a character; whoever shows it must wait. */
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/internal.h"
#include "model/core/error.h"

/* What an id is written as, before the prefix space is considered. */
static const char *surface(const Tokenizer *t, int32_t id, bool keep_special, size_t *size) {
    const Piece *piece = &t->pieces[id];
    *size = 0;
    if (piece->type == PIECE_CONTROL && !keep_special) return "";
    if (piece->type == PIECE_UNKNOWN && t->unknown_surface) {
        *size = strlen(t->unknown_surface);
        return t->unknown_surface;
    }
    if (piece->type == PIECE_UNKNOWN && !keep_special) return "";
    *size = piece->length;
    return piece_bytes(t, id);
}

static bool is_text_piece(const Piece *piece) {
    return piece->type != PIECE_CONTROL && piece->type != PIECE_UNKNOWN && piece->type != PIECE_BYTE;
}

static int check_id(const Tokenizer *t, int32_t id) {
    if (id >= 0 && id < t->n_pieces) return OK;
    FAIL(ERR_REFUSED, "token id %d is outside the vocabulary of %d", id, t->n_pieces);
}

int tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t n, bool keep_special, char **text, size_t *size) {
    Text out = {0};
    int rc = OK;
    bool stripped = !t->strip_prefix;
    text_append(&out, "", 0);
    for (size_t i = 0; i < n; i++) {
        size_t length;
        TRY_TO(fail, check_id(t, ids[i]));
        const char *bytes = surface(t, ids[i], keep_special, &length);
        if (!stripped && out.length == 0 && length > 0 && bytes[0] == ' ' && is_text_piece(&t->pieces[ids[i]])) {
            bytes++;
            length--;
            stripped = !t->strip_all;
        }
        text_append(&out, bytes, length);
    }
    TRY_TO(fail, text_check(&out));
    if (!out.bytes) out.bytes = calloc(1, 1);
    if (!out.bytes) FAIL_TO(fail, ERR_FAILED, "out of memory");
    *text = out.bytes;
    *size = out.length;
    return OK;
fail:
    text_free(&out);
    return rc;
}

const char *tokenizer_piece(const Tokenizer *t, int32_t previous, int32_t id, size_t *size) {
    *size = 0;
    if (id < 0 || id >= t->n_pieces) return "";
    const char *bytes = surface(t, id, false, size);
    bool at_start = previous < 0 || previous == t->bos;
    if (at_start && t->strip_prefix && *size > 0 && bytes[0] == ' ' && is_text_piece(&t->pieces[id])) {
        bytes++;
        --*size;
    }
    return bytes;
}
