/* Reads llama2.c's tokenizer.bin (its tokenizer.py): an int32, the longest piece; then for each token a float32 score,
 * an int32 length and its bytes, all little-endian. Tokens 0, 1, 2 are unknown, BOS, EOS; 3 to 258 the bytes; spaces
 * are written as spaces. Texts get a space in front, and of white space nothing is removed. */
#include <math.h>
#include <string.h>

#include "data/tokenizer/internal.h"
#include "model/core/error.h"

enum { HEADER = 4, RECORD = 8, N_SPECIAL = 3, FIRST_NORMAL = N_SPECIAL + 256 };

static uint32_t read_u32(const char *bytes) {
    const unsigned char *p = (const unsigned char *)bytes;
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* The records fill the file exactly, no piece is longer than the header says, and there are bytes. */
bool tokenizer_looks_llama2c(const char *bytes, size_t size) {
    size_t at = HEADER, n = 0;
    if (size < HEADER) return false;
    uint32_t longest = read_u32(bytes);
    for (; size - at >= RECORD; n++) {
        uint32_t length = read_u32(bytes + at + 4);
        at += RECORD;
        if (length > size - at || (n >= FIRST_NORMAL && length > longest)) return false;
        at += length;
    }
    return at == size && n >= FIRST_NORMAL;
}

int tokenizer_read_llama2c(Tokenizer *t, const char *bytes, size_t size) {
    t->kind = KIND_SENTENCEPIECE;
    t->format = FORMAT_LLAMA2C;
    t->byte_fallback = t->fuse_unknown = true;
    t->normalizer = (Normalizer){.prefix = PREFIX_ALWAYS, .escape_whitespaces = true};
    t->strip_prefix = true;
    t->unknown = 0;
    t->bos = 1;
    t->eos = 2;
    for (size_t at = HEADER; at < size;) {
        uint32_t score_bits = read_u32(bytes + at), length = read_u32(bytes + at + 4);
        int id = t->n_pieces;
        float score;
        memcpy(&score, &score_bits, sizeof score);
        if (isnan(score)) FAIL(ERR_REFUSED, "token %d has no score: NaN", id);
        at += RECORD;
        if (id == 0) {
            TRY(tokenizer_add_piece(t, "<unk>", 5, PIECE_UNKNOWN, score));
        } else if (id < N_SPECIAL) { /* the file has them with line ends around, for display */
            TRY(tokenizer_add_piece(t, id == 1 ? "<s>" : "</s>", id == 1 ? 3 : 4, PIECE_CONTROL, score));
        } else if (id < FIRST_NORMAL) {
            t->byte_id[id - N_SPECIAL] = id;
            TRY(tokenizer_add_piece(t, &(char){(char)(id - N_SPECIAL)}, 1, PIECE_BYTE, score));
        } else if (length == 0) {
            FAIL(ERR_REFUSED, "token %d is empty", id);
        } else {
            TRY(tokenizer_add_piece(t, bytes + at, length, PIECE_NORMAL, score));
        }
        at += length;
    }
    TRY(tokenizer_index(t));
    return tokenizer_derive_merges(t);
}
