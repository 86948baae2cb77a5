/* What the files of the tokenizer share. A reader of a file format fills in pieces, flags and the merge table through
 * the builder functions; encoding and decoding know nothing of formats.
 *
 * Inside, the text of a SentencePiece model has ' ' where the model has U+2581 (the model cannot tell them apart), so
 * that most text needs no rewriting before it is encoded or after it is decoded. */
#ifndef CRIA_DATA_TOKENIZER_INTERNAL_H
#define CRIA_DATA_TOKENIZER_INTERNAL_H

#include "data/tokenizer/bpe.h"
#include "data/tokenizer/normalize.h"
#include "data/tokenizer/split.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokenizer/trie.h"
#include "model/core/text.h"

typedef enum { KIND_BYTES, KIND_BYTE_LEVEL, KIND_TIKTOKEN, KIND_SENTENCEPIECE } TokenizerKind;
/* How it was read: what can be exported by copying. */
typedef enum { FORMAT_BUILT_IN, FORMAT_TIKTOKEN, FORMAT_SENTENCEPIECE, FORMAT_LLAMA2C, FORMAT_JSON } TokenizerFormat;

/* The numbers of SentencePiece's ModelProto.SentencePiece.Type. */
typedef enum {
    PIECE_NORMAL = 1,
    PIECE_UNKNOWN = 2,
    PIECE_CONTROL = 3, /* special: written and matched only where asked for */
    PIECE_USER = 4,    /* matched before anything else, never merged */
    PIECE_UNUSED = 5,  /* takes part in merging, then is taken apart again */
    PIECE_BYTE = 6,
    PIECE_UNREACHABLE, /* only decodes: no text leads to it */
} PieceType;

typedef struct {
    size_t offset; /* into Tokenizer.pool */
    uint32_t length;
    uint8_t type;
    float score; /* SentencePiece: the higher, the sooner merged */
} Piece;

/* Open addressing from a piece's bytes, or from a character, to an id. */
typedef struct {
    uint32_t *hash;
    int32_t *id; /* BPE_NO_TOKEN where empty */
    size_t n_slots, n;
} IdTable;

/* Which characters stand side by side in some piece; a text may be cut everywhere else. */
typedef struct {
    uint8_t ascii[128][128];
    uint64_t *slots; /* 1 + (left << 32 | right); 0 = empty */
    size_t n_slots, n;
} NeighbourSet;

struct Tokenizer {
    char *source_name;
    char *source;
    size_t source_size;
    uint64_t fingerprint;
    TokenizerKind kind;
    TokenizerFormat format;

    Piece *pieces;
    int n_pieces, capacity;
    Text pool;
    int32_t bos, eos, unknown;
    int32_t byte_id[256];  /* byte-level: each byte's token; else the byte-fallback pieces; BPE_NO_TOKEN where absent */
    int32_t ascii_id[128]; /* character-level */
    IdTable codes;         /* character-level: code point (as `hash`) -> id, above ASCII */
    IdTable words;         /* bytes -> id, of the pieces that merging can give */
    BpeTable merges;
    bool byte_level;    /* symbols begin as bytes, else as characters */
    bool byte_fallback; /* a character without a piece becomes its bytes' pieces */
    bool fuse_unknown;  /* several unknown characters in a row are one token */
    bool whole_words;   /* a word that is a piece is taken as it is, without merging */
    bool has_unused;
    Splitter *splitter;      /* byte-level */
    NeighbourSet neighbours; /* character-level */
    Normalizer normalizer;
    Trie user;             /* pieces of type USER, in normalised text (SentencePiece) */
    Trie special;          /* CONTROL pieces */
    Trie added;            /* tokens matched in raw text before anything else (tokenizer.json, "special": false) */
    char *unknown_surface; /* what an unknown token is decoded to */
    bool cut_at_spaces;    /* no piece is joined to a space behind it (Metaspace with split) */
    bool strip_prefix;     /* decoding drops the space that encoding put in front */
    bool strip_all;        /* … and any further ones (remove_extra_whitespaces) */
    char *split_pattern;
};

/* ---- for readers of formats ---- */

/* A reader sets the flags, adds the pieces in the order of their ids, calls tokenizer_index, then makes the merges. */
int tokenizer_add_piece(Tokenizer *t, const void *bytes, size_t length, PieceType type, float score);
/* The tables from bytes and characters to ids. Two normal pieces of the same bytes are an error. */
int tokenizer_index(Tokenizer *t);
/* The merges that follow from the pieces: every way to cut a piece into two symbols; rank by id (tiktoken), or by
 * score, equal scores alike (SentencePiece). */
int tokenizer_derive_merges(Tokenizer *t);
/* What follows from all of it: called by the loader, last. */
int tokenizer_finish(Tokenizer *t);

/* The first n of Llama 3's 256 special tokens: BOS and EOS, and from the tenth on the chat markers. */
int tokenizer_add_special(Tokenizer *t, int n);

int tokenizer_read_bytes(Tokenizer *t);
int tokenizer_read_tiktoken(Tokenizer *t, const char *bytes, size_t size);
int tokenizer_read_sentencepiece(Tokenizer *t, const char *bytes, size_t size);
int tokenizer_read_llama2c(Tokenizer *t, const char *bytes, size_t size);
int tokenizer_read_json(Tokenizer *t, const char *bytes, size_t size);
bool tokenizer_looks_tiktoken(const char *bytes, size_t size);
bool tokenizer_looks_llama2c(const char *bytes, size_t size);

/* ---- for all ---- */

static inline const char *piece_bytes(const Tokenizer *t, int32_t id) {
    return t->pool.bytes + t->pieces[id].offset;
}
/* The piece as its model writes it: U+2581 for ' ', <0x0A> for a byte. Appended to `out`. */
void tokenizer_piece_name(const Tokenizer *t, int32_t id, Text *out);
/* The id of a normal piece by its bytes; BPE_NO_TOKEN where there is none. */
int32_t tokenizer_find(const Tokenizer *t, const char *bytes, size_t length);
/* The merges in the order of their ranks, malloc'd; those of equal rank in the order that transformers' converter gives
 * them. */
int tokenizer_sorted_merges(const Tokenizer *t, BpePair **pairs, size_t *n);
/* The symbol a character begins as. */
uint32_t tokenizer_code_symbol(const Tokenizer *t, uint32_t code);

int neighbours_build(NeighbourSet *set, const Tokenizer *t);
void neighbours_free(NeighbourSet *set);
bool neighbours_has_wide(const NeighbourSet *set, uint32_t left, uint32_t right);
static inline bool neighbours_has(const NeighbourSet *set, uint32_t left, uint32_t right) {
    return (left | right) < 128 ? set->ascii[left][right] != 0 : neighbours_has_wide(set, left, right);
}

/* Room for n more ids. */
int token_list_reserve(TokenList *list, size_t n);

#endif
