/* Plain arrays to a tokenizer, through the file that says the same: a SentencePiece model for scores
 * (sentencepiece.c has the fields), a tokenizer.json for merges. So there is one reader for each kind, and what was
 * made can be stored and exported like any other. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/arrays.h"
#include "model/core/error.h"
#include "model/core/text.h"

static bool valid_id(const TokenizerArrays *a, int32_t id) {
    return id >= 0 && (size_t)id < a->n;
}

static int32_t type_of(const TokenizerArrays *a, size_t id) {
    bool begins_or_ends = (int64_t)id == a->bos || (int64_t)id == a->eos; /* some converters call these normal */
    return begins_or_ends && a->types[id] == TOKEN_NORMAL ? TOKEN_CONTROL : a->types[id];
}

/* ---- scores: protocol buffers ---- */

enum { WIRE_VARINT = 0, WIRE_BYTES = 2, WIRE_32 = 5 };
enum { PIECES = 1, TRAINER = 2, NORMALIZER = 3 };                                           /* of ModelProto */
enum { PIECE_TEXT = 1, PIECE_SCORE = 2, PIECE_KIND = 3 };                                   /* of SentencePiece */
enum { MODEL_TYPE = 3, BYTE_FALLBACK = 35, BOS_PIECE = 46, EOS_PIECE = 47, MODEL_BPE = 2 }; /* of TrainerSpec */
enum { DUMMY_PREFIX = 3, EXTRA_WHITESPACES = 4, ESCAPE_WHITESPACES = 5 };                   /* of NormalizerSpec */

static void put_varint(Text *out, uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_append(out, &(char){(char)(value | 0x80)}, 1);
    text_append(out, &(char){(char)value}, 1);
}

static void put_number(Text *out, unsigned field, uint64_t value) {
    put_varint(out, field << 3 | WIRE_VARINT);
    put_varint(out, value);
}

static void put_bytes(Text *out, unsigned field, const char *bytes, size_t length) {
    put_varint(out, field << 3 | WIRE_BYTES);
    put_varint(out, length);
    text_append(out, bytes, length);
}

static void put_float(Text *out, unsigned field, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_varint(out, field << 3 | WIRE_32);
    for (int i = 0; i < 4; i++) text_append(out, &(char){(char)(bits >> 8 * i & 0xff)}, 1);
}

static void put_message(Text *out, unsigned field, Text *message) {
    put_bytes(out, field, message->bytes, message->length);
    out->failed |= message->failed;
    text_clear(message);
}

static void put_token_name(Text *out, unsigned field, const TokenizerArrays *a, int32_t id) {
    if (valid_id(a, id))
        put_bytes(out, field, a->tokens[id].bytes, a->tokens[id].length);
    else
        put_bytes(out, field, "", 0); /* no piece has this name: there is none */
}

static void put_sentencepiece(Text *out, const TokenizerArrays *a) {
    Text part = {0};
    size_t n_bytes = 0;
    for (size_t id = 0; id < a->n; id++) {
        n_bytes += a->types[id] == TOKEN_BYTE;
        put_bytes(&part, PIECE_TEXT, a->tokens[id].bytes, a->tokens[id].length);
        put_float(&part, PIECE_SCORE, a->scores[id]);
        put_number(&part, PIECE_KIND, (uint64_t)type_of(a, id));
        put_message(out, PIECES, &part);
    }
    put_number(&part, MODEL_TYPE, MODEL_BPE);
    put_number(&part, BYTE_FALLBACK, n_bytes == 256);
    put_token_name(&part, BOS_PIECE, a, a->bos);
    put_token_name(&part, EOS_PIECE, a, a->eos);
    put_message(out, TRAINER, &part);
    put_number(&part, DUMMY_PREFIX, a->space_prefix);
    put_number(&part, EXTRA_WHITESPACES, a->remove_extra_whitespaces);
    put_number(&part, ESCAPE_WHITESPACES, 1);
    put_message(out, NORMALIZER, &part);
    text_free(&part);
}

/* ---- merges: JSON ---- */

static bool is_added(int32_t type) {
    return type != TOKEN_NORMAL;
}

/* Normal tokens first, added ones behind, as in Llama 3: then the added ones need not stand in the vocabulary. */
static bool added_are_last(const TokenizerArrays *a) {
    size_t id = 0;
    while (id < a->n && !is_added(type_of(a, id))) id++;
    while (id < a->n && is_added(type_of(a, id))) id++;
    return id == a->n;
}

static int put_vocabulary(json_t *vocab, json_t *added, const TokenizerArrays *a) {
    bool apart = added_are_last(a);
    size_t expected = 0;
    for (size_t id = 0; id < a->n; id++) {
        const TokenText *token = &a->tokens[id];
        int32_t type = type_of(a, id);
        json_t *text = json_stringn(token->bytes, token->length);
        if (!text || token->length == 0 || memchr(token->bytes, 0, token->length)) {
            json_decref(text);
            FAIL(ERR_REFUSED, "token %zu is empty, or not UTF-8", id);
        }
        if (!apart || !is_added(type)) {
            json_object_set_new(vocab, json_string_value(text), json_integer((json_int_t)id));
            if (json_object_size(vocab) != ++expected) {
                json_decref(text);
                FAIL(ERR_REFUSED, "token %zu, '%.*s', is spelled like an earlier one", id, (int)token->length,
                     token->bytes);
            }
        }
        if (is_added(type))
            json_array_append_new(added, json_pack("{s:I, s:O, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)id,
                                                   "content", text, "single_word", 0, "lstrip", 0, "rstrip", 0,
                                                   "normalized", 0, "special", (int)(type != TOKEN_USER)));
        json_decref(text);
    }
    return OK;
}

static int put_merges(json_t *merges, const TokenizerArrays *a) {
    for (size_t i = 0; i < a->n_merges; i++) {
        const TokenText *merge = &a->merges[i];
        json_t *text = json_stringn(merge->bytes, merge->length);
        if (!text) FAIL(ERR_REFUSED, "merge %zu is not UTF-8", i);
        if (json_array_append_new(merges, text) != 0) FAIL(ERR_FAILED, "out of memory");
    }
    return OK;
}

static json_t *pre_tokenizer(const TokenizerArrays *a) {
    json_t *bytes = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1,
                              "use_regex", 0);
    if (!a->split_pattern) return bytes;
    return json_pack("{s:s, s:[{s:s, s:{s:s}, s:s, s:b}, o]}", "type", "Sequence", "pretokenizers", "type", "Split",
                     "pattern", "Regex", a->split_pattern, "behavior", "Isolated", "invert", 0, bytes);
}

/* BOS in front of every text, as Llama's tokenizers have it. */
static json_t *post_processor(const TokenizerArrays *a) {
    if (!valid_id(a, a->bos)) return json_null();
    const TokenText *bos = &a->tokens[a->bos];
    json_t *special = json_object(), *name = json_stringn(bos->bytes, bos->length);
    if (name)
        json_object_set_new(special, json_string_value(name),
                            json_pack("{s:O, s:[i], s:[O]}", "id", name, "ids", (int)a->bos, "tokens", name));
    json_t *out = json_pack(
        "{s:s, s:[{s:{s:O, s:i}}, {s:{s:s, s:i}}], s:[{s:{s:O, s:i}}, {s:{s:s, s:i}}, {s:{s:O, s:i}}, {s:{s:s, s:i}}], "
        "s:o}",
        "type", "TemplateProcessing", "single", "SpecialToken", "id", name, "type_id", 0, "Sequence", "id", "A",
        "type_id", 0, "pair", "SpecialToken", "id", name, "type_id", 0, "Sequence", "id", "A", "type_id", 0,
        "SpecialToken", "id", name, "type_id", 1, "Sequence", "id", "B", "type_id", 1, "special_tokens", special);
    json_decref(name);
    return out;
}

static int make_json(json_t **root, const TokenizerArrays *a) {
    json_t *vocab = json_object(), *merges = json_array(), *added = json_array();
    *root = json_pack("{s:s, s:n, s:n, s:o, s:n, s:o, s:o, s:{s:s, s:b, s:b, s:b}, s:{s:s, s:n, s:n, s:n, s:n, s:b, "
                      "s:b, s:b, s:o, s:o}}",
                      "version", "1.0", "truncation", "padding", "added_tokens", added, "normalizer", "pre_tokenizer",
                      pre_tokenizer(a), "post_processor", post_processor(a), "decoder", "type", "ByteLevel",
                      "add_prefix_space", 1, "trim_offsets", 1, "use_regex", 1, "model", "type", "BPE", "dropout",
                      "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0,
                      "ignore_merges", (int)a->whole_words, "vocab", vocab, "merges", merges);
    if (!*root) FAIL(ERR_FAILED, "out of memory");
    TRY(put_vocabulary(vocab, added, a));
    TRY(put_merges(merges, a));
    return OK;
}

static int load_json(Tokenizer **tokenizer, const TokenizerArrays *a) {
    json_t *root = NULL;
    char *text = NULL;
    int rc = make_json(&root, a);
    if (rc == OK && !(text = json_dumps(root, JSON_INDENT(1))))
        rc = error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    json_decref(root);
    if (rc == OK) rc = tokenizer_load_memory(tokenizer, "tokenizer.json", text, strlen(text));
    free(text);
    return rc;
}

static int load_sentencepiece(Tokenizer **tokenizer, const TokenizerArrays *a) {
    Text model = {0};
    put_sentencepiece(&model, a);
    int rc = text_check(&model);
    if (rc == OK) rc = tokenizer_load_memory(tokenizer, "tokenizer.model", model.bytes, model.length);
    text_free(&model);
    return rc;
}

int tokenizer_from_arrays(Tokenizer **tokenizer, const TokenizerArrays *a) {
    if (a->n == 0) FAIL(ERR_REFUSED, "it has no tokens");
    for (size_t id = 0; id < a->n; id++)
        if (a->types[id] < TOKEN_NORMAL || a->types[id] > TOKEN_BYTE)
            FAIL(ERR_REFUSED, "token %zu has type %d; known are 1 to 6", id, (int)a->types[id]);
    return a->byte_level ? load_json(tokenizer, a) : load_sentencepiece(tokenizer, a);
}
