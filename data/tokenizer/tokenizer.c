/* Loading a tokenizer of any kind, and what can be asked of it. Encoding, decoding, the formats and export are in the
 * other tokenizer_*.c files. */
#include "data/tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/internal.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/philox.h"

static const size_t LARGEST_FILE = (size_t)1 << 30;

/* ---- lists of ids -------------------------------------------------------------------------------------------------
 */

int token_list_reserve(TokenList *list, size_t n) {
    if (list->capacity - list->n >= n) return OK;
    size_t capacity = list->capacity + list->capacity / 2 + n + 16;
    int32_t *ids = capacity > SIZE_MAX / sizeof *ids ? NULL : realloc(list->ids, capacity * sizeof *ids);
    if (!ids) FAIL(ERR_FAILED, "out of memory for %zu token ids", capacity);
    list->ids = ids;
    list->capacity = capacity;
    return OK;
}

int token_list_append(TokenList *list, const int32_t *ids, size_t n) {
    TRY(token_list_reserve(list, n));
    if (n > 0) memcpy(list->ids + list->n, ids, n * sizeof *ids);
    list->n += n;
    return OK;
}

void token_list_free(TokenList *list) {
    free(list->ids);
    *list = (TokenList){0};
}

/* ---- loading ------------------------------------------------------------------------------------------------------
 */

void tokenizer_free(Tokenizer *t) {
    if (!t) return;
    free(t->source_name);
    free(t->source);
    free(t->pieces);
    text_free(&t->pool);
    free(t->codes.hash);
    free(t->codes.id);
    free(t->words.hash);
    free(t->words.id);
    bpe_table_free(&t->merges);
    splitter_free(t->splitter);
    neighbours_free(&t->neighbours);
    normalizer_free(&t->normalizer);
    trie_free(&t->user);
    trie_free(&t->special);
    trie_free(&t->added);
    free(t->unknown_surface);
    free(t->split_pattern);
    free(t);
}

int tokenizer_read_bytes(Tokenizer *t) {
    t->kind = KIND_BYTES;
    t->format = FORMAT_BUILT_IN;
    t->byte_level = true;
    for (int byte = 0; byte < 256; byte++) TRY(tokenizer_add_piece(t, &(char){(char)byte}, 1, PIECE_NORMAL, 0));
    t->bos = t->n_pieces;
    TRY(tokenizer_add_piece(t, "<|begin_of_text|>", strlen("<|begin_of_text|>"), PIECE_CONTROL, 0));
    t->eos = t->n_pieces;
    TRY(tokenizer_add_piece(t, "<|end_of_text|>", strlen("<|end_of_text|>"), PIECE_CONTROL, 0));
    TRY(tokenizer_index(t));
    return bpe_table_init(&t->merges, 0);
}

static int read_by_contents(Tokenizer *t, const char *name, const char *bytes, size_t size) {
    size_t blank = 0;
    if (strcmp(name, "bytes") == 0 && size == 0) return tokenizer_read_bytes(t);
    while (blank < size && strchr(" \t\r\n", bytes[blank]) && bytes[blank]) blank++;
    if (blank < size && bytes[blank] == '{') return tokenizer_read_json(t, bytes, size);
    if (tokenizer_looks_llama2c(bytes, size)) return tokenizer_read_llama2c(t, bytes, size);
    if (tokenizer_looks_tiktoken(bytes, size)) return tokenizer_read_tiktoken(t, bytes, size);
    if (size > 2 && bytes[0] == '\n') return tokenizer_read_sentencepiece(t, bytes, size);
    FAIL(ERR_REFUSED,
         "the contents are of no known kind; expected a SentencePiece model, tiktoken ranks, a tokenizer.json "
         "or llama2.c's tokenizer.bin");
}

/* Special names, and what cuts a text before it is merged. */
int tokenizer_finish(Tokenizer *t) {
    for (int id = 0; id < t->n_pieces; id++) {
        if (t->pieces[id].type == PIECE_CONTROL || t->pieces[id].type == PIECE_UNKNOWN)
            TRY(trie_add(&t->special, piece_bytes(t, id), t->pieces[id].length, id));
        else if (t->pieces[id].type == PIECE_USER)
            TRY(trie_add(&t->user, piece_bytes(t, id), t->pieces[id].length, id));
    }
    if (t->byte_level) return splitter_new(&t->splitter, t->split_pattern);
    return neighbours_build(&t->neighbours, t);
}

static int load(Tokenizer *t, const char *name, const void *bytes, size_t size) {
    if (size > LARGEST_FILE)
        FAIL(ERR_REFUSED, "%zu bytes are too many for a tokenizer; the limit is %zu", size, LARGEST_FILE);
    t->source_name = strdup(name);
    t->source = malloc(size + 1);
    if (!t->source_name || !t->source) FAIL(ERR_FAILED, "out of memory");
    if (size > 0) memcpy(t->source, bytes, size);
    t->source[size] = 0;
    t->source_size = size;
    t->fingerprint = hash_bytes(bytes, size, hash_bytes(name, strlen(name), HASH_START));
    t->bos = t->eos = t->unknown = BPE_NO_TOKEN;
    memset(t->byte_id, 0xff, sizeof t->byte_id);
    memset(t->ascii_id, 0xff, sizeof t->ascii_id);
    TRY(read_by_contents(t, name, t->source, size));
    return tokenizer_finish(t);
}

int tokenizer_load_memory(Tokenizer **tokenizer, const char *name, const void *bytes, size_t size) {
    Tokenizer *t = calloc(1, sizeof *t);
    if (!t) FAIL(ERR_FAILED, "out of memory");
    int rc = load(t, name, bytes, size);
    if (rc != OK) {
        tokenizer_free(t);
        return error_context(rc, "tokenizer %s", name);
    }
    *tokenizer = t;
    return OK;
}

static int load_file(Tokenizer **tokenizer, const char *path) {
    char *bytes;
    size_t size;
    TRY(file_read(&bytes, &size, path, LARGEST_FILE));
    int rc = tokenizer_load_memory(tokenizer, path_base(path), bytes, size);
    free(bytes);
    return rc == OK ? OK : error_context(rc, "%s", path);
}

int tokenizer_load(Tokenizer **tokenizer, const char *path) {
    static const char *const names[] = {"tokenizer.json", "tokenizer.model", "tokenizer.bin"};
    if (strcmp(path, "bytes") == 0) return tokenizer_load_memory(tokenizer, path, "", 0);
    if (!directory_exists(path)) return load_file(tokenizer, path);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *file = path_join(path, names[i]);
        if (!file) FAIL(ERR_FAILED, "out of memory");
        bool there = file_exists(file);
        int rc = there ? load_file(tokenizer, file) : OK;
        free(file);
        if (there) return rc;
    }
    FAIL(ERR_REFUSED, "%s holds no tokenizer: looked for tokenizer.json, tokenizer.model and tokenizer.bin", path);
}

/* ---- questions ----------------------------------------------------------------------------------------------------
 */

const char *tokenizer_source_name(const Tokenizer *t) {
    return t->source_name;
}
const void *tokenizer_source(const Tokenizer *t, size_t *size) {
    *size = t->source_size;
    return t->source;
}
uint64_t tokenizer_fingerprint(const Tokenizer *t) {
    return t->fingerprint;
}
const char *tokenizer_kind(const Tokenizer *t) {
    static const char *const names[] = {
        [KIND_BYTES] = "bytes",
        [KIND_BYTE_LEVEL] = "byte-level",
        [KIND_TIKTOKEN] = "tiktoken",
        [KIND_SENTENCEPIECE] = "sentencepiece",
    };
    return names[t->kind];
}
int tokenizer_vocab_size(const Tokenizer *t) {
    return t->n_pieces;
}
int tokenizer_first_difference(const Tokenizer *a, const Tokenizer *b) {
    for (int32_t id = 0; id < a->n_pieces && id < b->n_pieces; id++) {
        size_t size_a, size_b;
        const char *text_a = tokenizer_piece(a, -1, id, &size_a), *text_b = tokenizer_piece(b, -1, id, &size_b);
        if (size_a != size_b || memcmp(text_a, text_b, size_a) != 0) return id;
    }
    return -1;
}
int32_t tokenizer_bos(const Tokenizer *t) {
    return t->bos;
}
int32_t tokenizer_eos(const Tokenizer *t) {
    return t->eos;
}

int32_t tokenizer_special(const Tokenizer *t, const char *text) {
    int32_t id;
    size_t length = strlen(text);
    return length > 0 && trie_longest(&t->special, text, length, &id) == length ? id : BPE_NO_TOKEN;
}

const char *tokenizer_name(const Tokenizer *t, int32_t id) {
    if (id < 0 || id >= t->n_pieces) return NULL;
    PieceType type = (PieceType)t->pieces[id].type;
    return type == PIECE_CONTROL || type == PIECE_UNKNOWN ? piece_bytes(t, id) : NULL;
}

void tokenizer_piece_name(const Tokenizer *t, int32_t id, Text *out) {
    const Piece *piece = &t->pieces[id];
    const char *bytes = piece_bytes(t, id);
    if (piece->type == PIECE_BYTE) {
        text_printf(out, "<0x%02X>", (unsigned char)bytes[0]);
    } else if (t->byte_level || !t->normalizer.escape_whitespaces || piece->type == PIECE_CONTROL) {
        text_append(out, bytes, piece->length);
    } else {
        for (size_t i = 0; i < piece->length; i++)
            bytes[i] == ' ' ? text_puts(out, "\xe2\x96\x81") : text_append(out, bytes + i, 1);
    }
}
