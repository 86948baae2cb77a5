/* A tokenizer with more special tokens at the end of its vocabulary. A SentencePiece model is a protobuf message, whose
 * repeated field `pieces` may go on at its end (protobuf's encoding: field 1, length-delimited; in it piece = 1, score
 * = 2, type = 3); every other kind is written as tokenizer.json with the tokens among `added_tokens`. */
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/json.h"
#include "model/core/error.h"

static void put_varint(Text *out, size_t value) {
    for (; value >= 0x80; value >>= 7) text_append(out, &(char){(char)(value | 0x80)}, 1);
    text_append(out, &(char){(char)value}, 1);
}

static void put_piece(Text *out, const char *name) {
    static const char score[] = {0x15, 0, 0, 0, 0}, type[] = {0x18, PIECE_CONTROL}; /* 0 as fp32; a varint */
    Text piece = {0};
    text_puts(&piece, "\x0a");
    put_varint(&piece, strlen(name));
    text_puts(&piece, name);
    text_append(&piece, score, sizeof score);
    text_append(&piece, type, sizeof type);
    text_puts(out, "\x0a");
    put_varint(out, piece.length);
    text_append(out, piece.bytes, piece.length);
    out->failed |= piece.failed;
    text_free(&piece);
}

static int extend_sentencepiece(const Tokenizer *t, const char *const *names, size_t n, Text *out) {
    text_append(out, t->source, t->source_size);
    for (size_t i = 0; i < n; i++) put_piece(out, names[i]);
    return text_check(out);
}

static int add_tokens(json_t *root, int first_id, const char *const *names, size_t n) {
    json_t *added = json_object_get(root, "added_tokens");
    if (!json_is_array(added)) {
        added = json_array();
        json_object_set_new(root, "added_tokens", added);
    }
    for (size_t i = 0; i < n; i++) {
        json_t *token = json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", first_id + (int)i, "content", names[i],
                                  "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1);
        if (json_array_append_new(added, token) != 0) FAIL(ERR_FAILED, "out of memory");
    }
    return OK;
}

static int extend_json(const Tokenizer *t, const char *const *names, size_t n, Text *out) {
    int rc = OK;
    Text made = {0};
    char *dumped = NULL;
    json_t *root = NULL;
    bool has_source = t->format == FORMAT_JSON;
    if (!has_source) TRY_TO(done, tokenizer_to_json(t, &made));
    root = json_loadb(has_source ? t->source : made.bytes, has_source ? t->source_size : made.length, JSON_ALLOW_NUL,
                      NULL);
    if (!root) FAIL_TO(done, ERR_REFUSED, "tokenizer %s cannot be extended as a tokenizer.json", t->source_name);
    TRY_TO(done, add_tokens(root, t->n_pieces, names, n));
    dumped = json_dumps(root, JSON_INDENT(1));
    if (!dumped) FAIL_TO(done, ERR_FAILED, "out of memory");
    text_puts(out, dumped);
    TRY_TO(done, text_check(out));
done:
    json_decref(root);
    free(dumped);
    text_free(&made);
    return rc;
}

/* What must not have changed. */
static int check(const Tokenizer *before, const Tokenizer *after, const char *const *names, size_t n) {
    bool same = after->n_pieces == before->n_pieces + (int)n && after->bos == before->bos && after->eos == before->eos;
    for (size_t i = 0; i < n && same; i++) same = tokenizer_special(after, names[i]) == before->n_pieces + (int)i;
    if (!same) FAIL(ERR_REFUSED, "tokenizer %s cannot take the special token %s", before->source_name, names[0]);
    return OK;
}

int tokenizer_extend(Tokenizer **out, const Tokenizer *t, const char *const *names, size_t n) {
    Text bytes = {0};
    bool is_model = t->format == FORMAT_SENTENCEPIECE;
    *out = NULL;
    for (size_t i = 0; i < n; i++)
        if (!*names[i] || tokenizer_special(t, names[i]) >= 0)
            FAIL(ERR_USAGE, "'%s' is no new special token: it is empty, or there already", names[i]);
    int rc = is_model ? extend_sentencepiece(t, names, n, &bytes) : extend_json(t, names, n, &bytes);
    if (rc == OK)
        rc = tokenizer_load_memory(out, is_model ? t->source_name : "tokenizer.json", bytes.bytes, bytes.length);
    text_free(&bytes);
    if (rc == OK) rc = check(t, *out, names, n);
    if (rc == OK) return OK;
    tokenizer_free(*out);
    *out = NULL;
    return rc;
}
