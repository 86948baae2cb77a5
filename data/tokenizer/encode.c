/* Text to ids: special tokens where asked for, then words (pieces of a split pattern, or stretches between characters
 * that are neighbours in no token), each through a small cache or the merging.
 *
 * The cache belongs to one call, to one thread of tokenizer_encode_many, or to a TextEncoder, whose cache grows with
 * what it has seen. A line of it is a cache line of the machine: a word of up to 24 bytes and its ids, up to 8. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/internal.h"
#include "model/core/error.h"
#include "model/core/threads.h"

enum {
    KEY_WORDS = 3,
    KEY_BYTES = 8 * KEY_WORDS,
    CACHED_IDS = 8,
    LARGEST_CACHE = 1 << 16, /* lines */
    SMALLEST_CACHE = 64,
    BYTES_PER_LINE = 8, /* of text */
    SMALLEST_CACHED_TEXT = 1024,
    WORDS_AHEAD = 16
};
/* A space without a piece of its own is the three bytes of U+2581. */
enum { IDS_PER_BYTE = 3 };
#define NO_CODE UINT32_MAX

typedef struct {
    uint64_t key[KEY_WORDS]; /* the word's bytes, and zeros */
    int32_t ids[CACHED_IDS];
    uint32_t length, n; /* n = 0: empty */
} CachedWord;
_Static_assert(sizeof(CachedWord) == 64, "a cached word is one cache line");

typedef struct {
    const char *word; /* NULL: none */
    size_t size;
    CachedWord *line; /* the first of its two; NULL: too long for the cache */
    uint64_t key[KEY_WORDS];
} PendingWord;

typedef struct TextEncoder {
    const Tokenizer *t;
    PendingWord pending[WORDS_AHEAD]; /* a ring */
    unsigned next_pending;
    CachedWord *cache; /* NULL: none */
    size_t mask;       /* of the pairs of lines */
    uint32_t *symbols;
    size_t symbols_capacity;
    Text normal;
    const BpePair **first_seen; /* with UNUSED pieces only */
    size_t stretch_start;       /* in the output: unknown tokens are not fused across it */
    uint64_t bytes_seen;        /* by a TextEncoder */
} Encoder;

/* ---- the cache ----------------------------------------------------------------------------------------------------
 */

/* The n (at most 8) bytes at p, as the low bytes of a number. */
static inline uint64_t load_bytes(const char *p, size_t n) {
    uint64_t value = 0;
    uint32_t first, last;
    if (n >= 8) {
        memcpy(&value, p, 8);
    } else if (n >= 4) { /* two loads that may overlap */
        memcpy(&first, p, 4);
        memcpy(&last, p + n - 4, 4);
        value = first | (uint64_t)last << (8 * (n - 4));
    } else {
        for (size_t i = n; i-- > 0;) value = value << 8 | (unsigned char)p[i];
    }
    return value;
}

static inline size_t hash_key(const uint64_t key[KEY_WORDS], size_t size) {
    uint64_t hash = (key[0] ^ size) * 0xbf58476d1ce4e5b9ull;
    hash = ((hash ^ hash >> 32) + key[1]) * 0x94d049bb133111ebull;
    hash = ((hash ^ hash >> 29) + key[2]) * 0x9e3779b97f4a7c15ull;
    return (size_t)(hash >> 32);
}

static inline size_t load_key(const char *word, size_t size, uint64_t key[KEY_WORDS]) {
    key[0] = load_bytes(word, size);
    key[1] = size > 8 ? load_bytes(word + 8, size - 8) : 0;
    key[2] = size > 16 ? load_bytes(word + 16, size - 16) : 0;
    return hash_key(key, size);
}

/* The words that it holds stay. */
static int grow_cache(Encoder *encoder, size_t n_lines) {
    CachedWord *lines, *old = encoder->cache;
    if (posix_memalign((void **)&lines, 64, n_lines * sizeof *lines) != 0) FAIL(ERR_FAILED, "out of memory");
    memset(lines, 0, n_lines * sizeof *lines);
    size_t n_old = old ? 2 * (encoder->mask + 1) : 0, mask = n_lines / 2 - 1;
    for (size_t i = n_old; i-- > 0;) { /* the later line of a pair first: the other is the newer word */
        if (old[i].n == 0) continue;
        CachedWord *pair = &lines[2 * (hash_key(old[i].key, old[i].length) & mask)];
        pair[1] = pair[0];
        pair[0] = old[i];
    }
    free(old);
    encoder->cache = lines;
    encoder->mask = mask;
    return OK;
}

static size_t cache_lines(uint64_t text_size) {
    size_t lines = SMALLEST_CACHE;
    while (lines < LARGEST_CACHE && lines < text_size / BYTES_PER_LINE) lines *= 2;
    return lines;
}

static int encoder_init(Encoder *encoder, const Tokenizer *t, size_t size) {
    *encoder = (Encoder){.t = t};
    if (t->has_unused) {
        encoder->first_seen = calloc((size_t)t->n_pieces, sizeof *encoder->first_seen);
        if (!encoder->first_seen) FAIL(ERR_FAILED, "out of memory");
    }
    if (size < SMALLEST_CACHED_TEXT || t->kind == KIND_BYTES) return OK;
    return grow_cache(encoder, cache_lines(size));
}

static void encoder_free(Encoder *encoder) {
    free(encoder->cache);
    free(encoder->symbols);
    free(encoder->first_seen);
    text_free(&encoder->normal);
}

static int reserve_symbols(Encoder *encoder, size_t n) {
    if (n <= encoder->symbols_capacity) return OK;
    size_t capacity = n + n / 2 + 64;
    uint32_t *symbols = realloc(encoder->symbols, capacity * sizeof *symbols);
    if (!symbols) FAIL(ERR_FAILED, "out of memory for a word of %zu bytes", n);
    encoder->symbols = symbols;
    encoder->symbols_capacity = capacity;
    return OK;
}

/* ---- one word -----------------------------------------------------------------------------------------------------
 */

/* The symbols a word begins as: its bytes, or its characters. */
static size_t first_symbols(const Tokenizer *t, const char *word, size_t size, uint32_t *symbols) {
    size_t n = 0;
    if (t->byte_level) {
        for (; n < size; n++) symbols[n] = (uint32_t)t->byte_id[(unsigned char)word[n]];
        return n;
    }
    for (size_t at = 0; at < size;) {
        uint32_t code;
        int32_t id;
        size_t user = trie_is_empty(&t->user) ? 0 : trie_longest(&t->user, word + at, size - at, &id);
        int length = utf8_decode(word + at, size - at, &code);
        if (user > 0) {
            symbols[n++] = (uint32_t)id;
            at += user;
        } else if (length > 0) {
            symbols[n++] = tokenizer_code_symbol(t, code);
            at += (size_t)length;
        } else {
            symbols[n++] = symbol_of_byte((unsigned char)word[at++]);
        }
    }
    return n;
}

static void emit(TokenList *out, int32_t id) {
    out->ids[out->n++] = id;
}

static int emit_unknown(const Tokenizer *t, const char *bytes, int n, size_t word_start, TokenList *out) {
    if (t->byte_fallback && t->normalizer.escape_whitespaces && n == 1 && bytes[0] == ' ') {
        bytes = "\xe2\x96\x81"; /* what the model sees for a space */
        n = 3;
    }
    if (t->byte_fallback) {
        for (int i = 0; i < n; i++) emit(out, t->byte_id[(unsigned char)bytes[i]]);
        return OK;
    }
    if (t->unknown < 0)
        FAIL(ERR_REFUSED, "the tokenizer has no token for '%.*s', and none for what is unknown", n, bytes);
    if (!t->fuse_unknown || out->n == word_start || out->ids[out->n - 1] != t->unknown) emit(out, t->unknown);
    return OK;
}

/* Appends what a merged symbol stands for; `out` has room for IDS_PER_BYTE of the word. */
static int emit_symbol(const Encoder *encoder, uint32_t symbol, size_t word_start, TokenList *out) {
    const Tokenizer *t = encoder->t;
    char bytes[4] = {0};
    if (symbol == (uint32_t)BPE_NO_TOKEN) FAIL(ERR_REFUSED, "the tokenizer has no token for one of the text's bytes");
    if (symbol_is_token(symbol) && t->pieces[symbol].type != PIECE_UNUSED) {
        emit(out, (int32_t)symbol);
        return OK;
    }
    if (symbol_is_token(symbol)) {
        const BpePair *parts = encoder->first_seen ? encoder->first_seen[symbol] : NULL;
        if (!parts) /* a single character: as if there were no such piece */
            return emit_unknown(t, piece_bytes(t, (int32_t)symbol), (int)t->pieces[symbol].length, word_start, out);
        TRY(emit_symbol(encoder, parts->left, word_start, out));
        return emit_symbol(encoder, parts->right, word_start, out);
    }
    if (symbol >= BPE_RAW_BYTE) {
        bytes[0] = (char)(symbol & 0xff);
        return emit_unknown(t, bytes, 1, word_start, out);
    }
    return emit_unknown(t, bytes, utf8_encode(bytes, symbol & ~BPE_RAW_CODE), word_start, out);
}

static int merge_word(Encoder *encoder, const char *word, size_t size, TokenList *out) {
    const Tokenizer *t = encoder->t;
    if (t->whole_words) {
        int32_t id = tokenizer_find(t, word, size);
        if (id != BPE_NO_TOKEN) {
            emit(out, id);
            return OK;
        }
    }
    TRY(reserve_symbols(encoder, size));
    size_t n = first_symbols(t, word, size, encoder->symbols), start = out->n;
    if (encoder->first_seen) {
        memset(encoder->first_seen, 0, (size_t)t->n_pieces * sizeof *encoder->first_seen);
        TRY(bpe_merge_traced(&t->merges, encoder->symbols, &n, encoder->first_seen));
    } else {
        TRY(bpe_merge(&t->merges, encoder->symbols, &n));
    }
    for (size_t i = 0; i < n; i++) TRY(emit_symbol(encoder, encoder->symbols[i], start, out));
    return OK;
}

static inline bool holds(const CachedWord *line, const PendingWord *word) {
    return line->key[0] == word->key[0] && line->key[1] == word->key[1] && line->key[2] == word->key[2] &&
           line->length == word->size && line->n > 0;
}

/* Unknown tokens are fused across words, too. */
static void fuse_at(const Encoder *encoder, size_t at, TokenList *out) {
    const Tokenizer *t = encoder->t;
    if (!t->fuse_unknown || t->unknown < 0 || at == encoder->stretch_start || at >= out->n) return;
    if (out->ids[at] != t->unknown || out->ids[at - 1] != t->unknown) return;
    memmove(out->ids + at, out->ids + at + 1, (out->n - at - 1) * sizeof *out->ids);
    out->n--;
}

static int finish_word(Encoder *encoder, const PendingWord *pending, TokenList *out) {
    CachedWord *line = pending->line;
    TRY(token_list_reserve(out, IDS_PER_BYTE * pending->size + CACHED_IDS));
    size_t start = out->n;
    if (line && !holds(line, pending) && holds(line + 1, pending)) line++;
    if (line && holds(line, pending)) {
        memcpy(out->ids + start, line->ids, sizeof line->ids);
        out->n += line->n;
    } else {
        TRY(merge_word(encoder, pending->word, pending->size, out));
        size_t n = out->n - start;
        if (line && n <= CACHED_IDS) {
            line[1] = line[0];
            memcpy(line->key, pending->key, sizeof line->key);
            memcpy(line->ids, out->ids + start, n * sizeof *line->ids);
            line->length = (uint32_t)pending->size;
            line->n = (uint32_t)n;
        }
    }
    fuse_at(encoder, start, out);
    return OK;
}

/* Most of the time goes into waiting for lines of the cache: they are asked for a few words ahead. */
static int encode_word(Encoder *encoder, const char *word, size_t size, TokenList *out) {
    if (!encoder->cache) return finish_word(encoder, &(PendingWord){.word = word, .size = size}, out);
    PendingWord *pending = &encoder->pending[encoder->next_pending++ % WORDS_AHEAD];
    if (pending->word) TRY(finish_word(encoder, pending, out));
    pending->word = word;
    pending->size = size;
    pending->line = NULL;
    if (size > KEY_BYTES) return OK;
    pending->line = &encoder->cache[2 * (load_key(word, size, pending->key) & encoder->mask)];
    __builtin_prefetch(pending->line);
    __builtin_prefetch(pending->line + 1);
    return OK;
}

static int finish_words(Encoder *encoder, TokenList *out) {
    for (int i = 0; i < WORDS_AHEAD; i++) {
        PendingWord *pending = &encoder->pending[encoder->next_pending++ % WORDS_AHEAD];
        if (pending->word) TRY(finish_word(encoder, pending, out));
        pending->word = NULL;
    }
    return OK;
}

/* ---- a stretch of text without special tokens ---------------------------------------------------------------------
 */

static int encode_byte_level(Encoder *encoder, const char *text, size_t size, TokenList *out) {
    SplitPass pass;
    TRY(split_begin(&pass, encoder->t->splitter, text, size));
    int rc = OK;
    while (pass.at < size && rc == OK) {
        size_t start = pass.at;
        rc = split_next(&pass);
        if (rc == OK) rc = encode_word(encoder, text + start, pass.at - start, out);
    }
    split_end(&pass);
    return rc == OK ? finish_words(encoder, out) : rc;
}

/* Two characters that are neighbours in no piece can never be joined, so the text is cut between them. */
static int encode_characters(Encoder *encoder, const char *text, size_t size, TokenList *out) {
    const Tokenizer *t = encoder->t;
    bool has_user = !trie_is_empty(&t->user);
    uint32_t left = NO_CODE, code;
    size_t start = 0, at = 0;
    while (at < size) {
        int32_t id;
        size_t user = has_user ? trie_longest(&t->user, text + at, size - at, &id) : 0;
        int length = 1;
        code = (unsigned char)text[at];
        if (code >= 0x80 && (length = utf8_decode(text + at, size - at, &code)) == 0) {
            code = NO_CODE; /* a stray byte: a word of its own */
            length = 1;
        }
        if (t->cut_at_spaces && code == ' ') left = NO_CODE;
        bool joined = user == 0 && left != NO_CODE && code != NO_CODE && neighbours_has(&t->neighbours, left, code);
        if (!joined && at > start) {
            TRY(encode_word(encoder, text + start, at - start, out));
            start = at;
        }
        left = code;
        at += (size_t)length;
        if (user > 0) {
            TRY(finish_words(encoder, out));
            TRY(token_list_append(out, &id, 1));
            at += user - (size_t)length;
            start = at;
            left = NO_CODE;
        }
    }
    if (at > start) TRY(encode_word(encoder, text + start, at - start, out));
    return finish_words(encoder, out);
}

static int encode_stretch(Encoder *encoder, const char *text, size_t size, StretchPlace place, TokenList *out) {
    const Tokenizer *t = encoder->t;
    encoder->stretch_start = out->n;
    if (size == 0) return OK;
    if (t->byte_level) return encode_byte_level(encoder, text, size, out);
    encoder->normal.length = 0;
    TRY(normalizer_apply(&t->normalizer, &t->user, text, size, place, &encoder->normal));
    if (encoder->normal.length == 0) return OK;
    if (!t->has_unused) return encode_characters(encoder, encoder->normal.bytes, encoder->normal.length, out);
    TRY(token_list_reserve(out, IDS_PER_BYTE *
                                    encoder->normal.length)); /* the whole text is one word: see bpe_merge_traced */
    return merge_word(encoder, encoder->normal.bytes, encoder->normal.length, out);
}

/* ---- a text -------------------------------------------------------------------------------------------------------
 */

static size_t special_at(const Tokenizer *t, const char *text, size_t size, int flags, int32_t *id) {
    int32_t special;
    size_t added = trie_longest(&t->added, text, size, id);
    if (!(flags & TOKENIZE_SPECIAL)) return added;
    size_t length = trie_longest(&t->special, text, size, &special);
    if (length <= added) return added;
    *id = special;
    return length;
}

static int encode_text(Encoder *encoder, const char *text, size_t size, int flags, TokenList *out) {
    const Tokenizer *t = encoder->t;
    if (flags & TOKENIZE_BOS) {
        if (t->bos < 0) FAIL(ERR_USAGE, "tokenizer %s has no BOS token", t->source_name);
        TRY(token_list_append(out, &t->bos, 1));
    }
    size_t start = 0;
    StretchPlace place = flags & TOKENIZE_AFTER_TEXT    ? STRETCH_AFTER_TEXT
                         : flags & TOKENIZE_AFTER_TOKEN ? STRETCH_AFTER_TOKEN
                                                        : STRETCH_FIRST;
    bool has_tokens = !trie_is_empty(&t->added) || ((flags & TOKENIZE_SPECIAL) && !trie_is_empty(&t->special));
    for (size_t at = 0; has_tokens && at < size;) {
        int32_t id;
        size_t length = special_at(t, text + at, size - at, flags, &id);
        if (length > 0) {
            TRY(encode_stretch(encoder, text + start, at - start, place, out));
            TRY(token_list_append(out, &id, 1));
            start = at + length;
            place = STRETCH_AFTER_TOKEN;
        }
        at += length > 0 ? length : 1;
    }
    TRY(encode_stretch(encoder, text + start, size - start, place, out));
    if (flags & TOKENIZE_EOS) {
        if (t->eos < 0) FAIL(ERR_USAGE, "tokenizer %s has no EOS token", t->source_name);
        TRY(token_list_append(out, &t->eos, 1));
    }
    return OK;
}

int tokenizer_encode(const Tokenizer *t, const char *text, size_t size, int flags, TokenList *out) {
    Encoder encoder;
    int rc = encoder_init(&encoder, t, size);
    if (rc == OK) rc = encode_text(&encoder, text, size, flags, out);
    encoder_free(&encoder);
    return rc;
}

int text_encoder_new(TextEncoder **encoder, const Tokenizer *tokenizer) {
    *encoder = malloc(sizeof **encoder);
    if (!*encoder) FAIL(ERR_FAILED, "out of memory");
    int rc = encoder_init(*encoder, tokenizer, 0);
    if (rc == OK) return OK;
    text_encoder_free(*encoder);
    *encoder = NULL;
    return rc;
}

void text_encoder_free(TextEncoder *encoder) {
    if (encoder) encoder_free(encoder);
    free(encoder);
}

int text_encoder_encode(TextEncoder *encoder, const char *text, size_t size, int flags, TokenList *out) {
    encoder->bytes_seen += size;
    size_t wanted = cache_lines(encoder->bytes_seen), lines = encoder->cache ? 2 * (encoder->mask + 1) : 0;
    if (wanted > lines && encoder->t->kind != KIND_BYTES) TRY(grow_cache(encoder, wanted));
    memset(encoder->pending, 0, sizeof encoder->pending); /* what a text that failed left behind */
    return encode_text(encoder, text, size, flags, out);
}

/* ---- many texts ---------------------------------------------------------------------------------------------------
 */

typedef struct {
    const Tokenizer *t;
    const char *const *texts;
    const size_t *sizes;
    int flags;
    TokenList *out;
    int rc; /* of the lowest text that failed, at `failed` */
    size_t failed;
    char error[1024];
} Many;

static void encode_part(void *context, size_t begin, size_t end, int thread) {
    Many *many = context;
    Encoder encoder;
    size_t bytes = 0, i = begin;
    (void)thread;
    for (size_t k = begin; k < end; k++) bytes += many->sizes[k];
    int rc = encoder_init(&encoder, many->t, bytes);
    for (; rc == OK && i < end; i++)
        rc = encode_text(&encoder, many->texts[i], many->sizes[i], many->flags, &many->out[i]);
    encoder_free(&encoder);
    if (rc == OK) return;
#pragma omp critical(tokenizer_encode_many)
    if (many->rc == OK || i < many->failed) {
        many->rc = rc;
        many->failed = i;
        snprintf(many->error, sizeof many->error, "%s", error_text());
    }
}

int tokenizer_encode_many(const Tokenizer *t, const char *const *texts, const size_t *sizes, size_t n, int flags,
                          TokenList *out) {
    Many many = {.t = t, .texts = texts, .sizes = sizes, .flags = flags, .out = out};
    parallel_for(n, 1, encode_part, &many);
    if (many.rc != OK) FAIL(many.rc, "%s", many.error);
    return OK;
}
