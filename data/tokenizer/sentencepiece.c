/* Reads a SentencePiece model file: a protocol-buffers message (sentencepiece_model.proto, ModelProto):
 *
 *   1 repeated piece      {1 piece: text, 2 score: float, 3 type: enum}
 *   2 trainer_spec        {3 model_type, 24 treat_whitespace_as_suffix, 35 byte_fallback, 44 unk_surface,
 *                          46 bos_piece, 47 eos_piece, …}
 *   3 normalizer_spec     {2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5
 * escape_whitespaces} 5 denormalizer_spec   {2 precompiled_charsmap}
 *
 * On the wire a message is fields of (number << 3 | type) as a varint and then a varint (type 0), 8 bytes (1), a length
 * and bytes (2) or 4 bytes (5). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/internal.h"
#include "model/core/error.h"

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
enum { MODEL_UNIGRAM = 1, MODEL_BPE = 2 };

typedef struct {
    const unsigned char *at, *end;
    const unsigned char *start; /* of the file, for messages */
} Wire;

typedef struct {
    uint32_t number, type;
    uint64_t value;             /* varint, 32 or 64 bits */
    const unsigned char *bytes; /* type WIRE_BYTES, with `value` their number */
} Field;

static int read_varint(Wire *wire, uint64_t *value) {
    *value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (wire->at == wire->end)
            FAIL(ERR_REFUSED, "the model ends inside a number at byte %td", wire->at - wire->start);
        unsigned char byte = *wire->at++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return OK;
    }
    FAIL(ERR_REFUSED, "a number of more than ten bytes at byte %td", wire->at - wire->start);
}

static int read_fixed(Wire *wire, int n_bytes, uint64_t *value) {
    *value = 0;
    if (wire->end - wire->at < n_bytes)
        FAIL(ERR_REFUSED, "the model ends inside a field at byte %td", wire->at - wire->start);
    for (int i = 0; i < n_bytes; i++) *value |= (uint64_t)*wire->at++ << (8 * i);
    return OK;
}

static int read_field(Wire *wire, Field *field) {
    uint64_t key;
    TRY(read_varint(wire, &key));
    *field = (Field){.number = (uint32_t)(key >> 3), .type = key & 7};
    if (key >> 32 || field->number == 0)
        FAIL(ERR_REFUSED, "not a SentencePiece model: field number %llu at byte %td", (unsigned long long)(key >> 3),
             wire->at - wire->start);
    switch (field->type) {
    case WIRE_VARINT:
        return read_varint(wire, &field->value);
    case WIRE_64:
        return read_fixed(wire, 8, &field->value);
    case WIRE_32:
        return read_fixed(wire, 4, &field->value);
    case WIRE_BYTES:
        TRY(read_varint(wire, &field->value));
        if (field->value > (uint64_t)(wire->end - wire->at))
            FAIL(ERR_REFUSED, "field %u at byte %td claims %llu bytes, %td are left", field->number,
                 wire->at - wire->start, (unsigned long long)field->value, wire->end - wire->at);
        field->bytes = wire->at;
        wire->at += field->value;
        return OK;
    default:
        FAIL(ERR_REFUSED, "not a SentencePiece model: wire type %u at byte %td", field->type, wire->at - wire->start);
    }
}

static Wire inner(const Wire *wire, const Field *field) {
    return (Wire){field->bytes, field->bytes + field->value, wire->start};
}

static float as_float(uint64_t bits) {
    uint32_t low = (uint32_t)bits;
    float value;
    memcpy(&value, &low, sizeof value);
    return value;
}

/* ---- the parts ----------------------------------------------------------------------------------------------------
 */

typedef struct {
    Field unk_surface, bos_piece, eos_piece;
    bool byte_fallback, whitespace_as_suffix;
    uint64_t model_type;
} Trainer;

static int read_trainer(Wire wire, Trainer *trainer) {
    Field field;
    while (wire.at < wire.end) {
        TRY(read_field(&wire, &field));
        if (field.number == 3 && field.type == WIRE_VARINT) trainer->model_type = field.value;
        if (field.number == 24 && field.type == WIRE_VARINT) trainer->whitespace_as_suffix = field.value != 0;
        if (field.number == 35 && field.type == WIRE_VARINT) trainer->byte_fallback = field.value != 0;
        if (field.number == 44 && field.type == WIRE_BYTES) trainer->unk_surface = field;
        if (field.number == 46 && field.type == WIRE_BYTES) trainer->bos_piece = field;
        if (field.number == 47 && field.type == WIRE_BYTES) trainer->eos_piece = field;
    }
    return OK;
}

static int read_normalizer(Wire wire, Normalizer *normalizer) {
    Field field, table = {0};
    while (wire.at < wire.end) {
        TRY(read_field(&wire, &field));
        if (field.number == 2 && field.type == WIRE_BYTES) table = field;
        if (field.number == 3 && field.type == WIRE_VARINT)
            normalizer->prefix = field.value ? PREFIX_ALWAYS : PREFIX_NEVER;
        if (field.number == 4 && field.type == WIRE_VARINT) normalizer->remove_extra_whitespaces = field.value != 0;
        if (field.number == 5 && field.type == WIRE_VARINT) normalizer->escape_whitespaces = field.value != 0;
    }
    return normalizer_set_table(normalizer, (const char *)table.bytes, (size_t)table.value);
}

static int refuse_denormalizer(Wire wire) {
    Field field;
    while (wire.at < wire.end) {
        TRY(read_field(&wire, &field));
        if (field.number == 2 && field.type == WIRE_BYTES && field.value > 0)
            FAIL(ERR_REFUSED, "denormalizer_spec: rules for rewriting decoded text are not supported");
    }
    return OK;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* "<0x0A>" -> 10; -1 for anything else. */
static int byte_piece(const char *text, size_t length) {
    if (length != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    int high = hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* Pieces as the file has them; U+2581 becomes ' ' where the normaliser says that it stands for one. */
static int add_piece(Tokenizer *t, const Field *text, float score, uint64_t type) {
    const char *bytes = (const char *)text->bytes;
    size_t length = (size_t)text->value;
    int id = t->n_pieces;
    if (type < PIECE_NORMAL || type > PIECE_BYTE)
        FAIL(ERR_REFUSED, "piece %d has type %llu; known are 1 to 6", id, (unsigned long long)type);
    if (length == 0) FAIL(ERR_REFUSED, "piece %d is empty", id);
    if (isnan(score)) FAIL(ERR_REFUSED, "piece %d ('%.*s') has no score: NaN", id, (int)length, bytes);
    if (type == PIECE_BYTE) {
        int byte = byte_piece(bytes, length);
        if (byte < 0)
            FAIL(ERR_REFUSED, "piece %d is of type BYTE and reads '%.*s'; expected <0x00> to <0xFF>", id, (int)length,
                 bytes);
        if (t->byte_id[byte] >= 0) FAIL(ERR_REFUSED, "pieces %d and %d are both byte %d", t->byte_id[byte], id, byte);
        t->byte_id[byte] = id;
        return tokenizer_add_piece(t, &(char){(char)byte}, 1, PIECE_BYTE, score);
    }
    if (type == PIECE_UNKNOWN) {
        if (t->unknown >= 0) FAIL(ERR_REFUSED, "pieces %d and %d are both of type UNKNOWN", t->unknown, id);
        t->unknown = id;
    }
    if (type == PIECE_CONTROL || type == PIECE_UNKNOWN || !t->normalizer.escape_whitespaces)
        return tokenizer_add_piece(t, bytes, length, (PieceType)type, score);
    Text plain = {0};
    bool literal_space = memchr(bytes, ' ', length) != NULL;
    text_escape_meta_space(&plain, bytes, length);
    int rc = text_check(&plain);
    /* a literal space never reaches the merging, where every space is U+2581: such a piece only decodes */
    if (rc == OK)
        rc = tokenizer_add_piece(t, plain.bytes, plain.length, literal_space ? PIECE_UNREACHABLE : (PieceType)type,
                                 score);
    text_free(&plain);
    return rc;
}

static int read_pieces(Tokenizer *t, Wire wire) {
    Field field, part;
    while (wire.at < wire.end) {
        TRY(read_field(&wire, &field));
        if (field.number != 1 || field.type != WIRE_BYTES) continue;
        Wire piece = inner(&wire, &field);
        Field text = {0};
        float score = 0;
        uint64_t type = PIECE_NORMAL;
        while (piece.at < piece.end) {
            TRY(read_field(&piece, &part));
            if (part.number == 1 && part.type == WIRE_BYTES) text = part;
            if (part.number == 2 && part.type == WIRE_32) score = as_float(part.value);
            if (part.number == 3 && part.type == WIRE_VARINT) type = part.value;
        }
        TRY(add_piece(t, &text, score, type));
    }
    return OK;
}

/* The control piece of this name; BPE_NO_TOKEN where there is none. */
static int32_t control_piece(const Tokenizer *t, const Field *name, const char *otherwise) {
    const char *bytes = name->bytes ? (const char *)name->bytes : otherwise;
    size_t length = name->bytes ? (size_t)name->value : strlen(otherwise);
    for (int id = 0; id < t->n_pieces; id++)
        if (t->pieces[id].type == PIECE_CONTROL && t->pieces[id].length == length &&
            memcmp(piece_bytes(t, id), bytes, length) == 0)
            return id;
    return BPE_NO_TOKEN;
}

static int check_byte_fallback(const Tokenizer *t) {
    for (int byte = 0; byte < 256 && t->byte_fallback; byte++)
        if (t->byte_id[byte] < 0) FAIL(ERR_REFUSED, "byte_fallback is on, but there is no piece <0x%02X>", byte);
    if (!t->byte_fallback && t->unknown < 0) FAIL(ERR_REFUSED, "no piece is of type UNKNOWN");
    return OK;
}

int tokenizer_read_sentencepiece(Tokenizer *t, const char *bytes, size_t size) {
    Wire file = {(const unsigned char *)bytes, (const unsigned char *)bytes + size, (const unsigned char *)bytes};
    Trainer trainer = {.model_type = MODEL_UNIGRAM};
    Field field;
    t->kind = KIND_SENTENCEPIECE;
    t->format = FORMAT_SENTENCEPIECE;
    t->fuse_unknown = true;
    t->normalizer = (Normalizer){.prefix = PREFIX_ALWAYS, .remove_extra_whitespaces = true, .escape_whitespaces = true};
    for (Wire wire = file; wire.at < wire.end;) { /* the specs stand behind the pieces, which depend on them */
        TRY(read_field(&wire, &field));
        if (field.type != WIRE_BYTES) continue;
        if (field.number == 2) TRY(read_trainer(inner(&wire, &field), &trainer));
        if (field.number == 3) TRY(read_normalizer(inner(&wire, &field), &t->normalizer));
        if (field.number == 5) TRY(refuse_denormalizer(inner(&wire, &field)));
    }
    if (trainer.model_type != MODEL_BPE)
        FAIL(ERR_REFUSED, "trainer_spec.model_type is %llu%s; only BPE (2) models are supported",
             (unsigned long long)trainer.model_type, trainer.model_type == MODEL_UNIGRAM ? " (unigram)" : "");
    if (trainer.whitespace_as_suffix)
        FAIL(ERR_REFUSED, "trainer_spec.treat_whitespace_as_suffix is on; only models with it off are supported");
    t->byte_fallback = trainer.byte_fallback;
    TRY(read_pieces(t, file));
    TRY(check_byte_fallback(t));
    t->bos = control_piece(t, &trainer.bos_piece, "<s>");
    t->eos = control_piece(t, &trainer.eos_piece, "</s>");
    t->unknown_surface = trainer.unk_surface.bytes
                             ? strndup((const char *)trainer.unk_surface.bytes, (size_t)trainer.unk_surface.value)
                             : strdup(" \xe2\x81\x87 ");
    if (!t->unknown_surface) FAIL(ERR_FAILED, "out of memory");
    t->strip_all = t->normalizer.remove_extra_whitespaces;
    t->strip_prefix = t->strip_all || t->normalizer.prefix != PREFIX_NEVER;
    TRY(tokenizer_index(t));
    return tokenizer_derive_merges(t);
}
