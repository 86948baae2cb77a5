/* The tables between a model file and encoding: pieces by their bytes, characters, merges that follow from the pieces,
 * and which characters are ever neighbours inside a piece. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/internal.h"
#include "model/core/error.h"

enum { LONGEST_PIECE = 1 << 12, MOST_PIECES = 1 << 26 };

/* ---- pieces -------------------------------------------------------------------------------------------------------
 */

int tokenizer_add_piece(Tokenizer *t, const void *bytes, size_t length, PieceType type, float score) {
    if (length > LONGEST_PIECE)
        FAIL(ERR_REFUSED, "token %d is %zu bytes long; the limit is %d", t->n_pieces, length, LONGEST_PIECE);
    if (t->n_pieces >= MOST_PIECES) FAIL(ERR_REFUSED, "more than %d tokens", MOST_PIECES);
    if (t->n_pieces == t->capacity) {
        int capacity = t->capacity ? t->capacity * 2 : 1024;
        Piece *pieces = realloc(t->pieces, (size_t)capacity * sizeof *pieces);
        if (!pieces) FAIL(ERR_FAILED, "out of memory for %d tokens", capacity);
        t->pieces = pieces;
        t->capacity = capacity;
    }
    t->pieces[t->n_pieces++] =
        (Piece){.offset = t->pool.length, .length = (uint32_t)length, .type = (uint8_t)type, .score = score};
    text_append(&t->pool, bytes, length);
    text_append(&t->pool, "", 1); /* so that a name can be given out as a C string */
    return text_check(&t->pool);
}

/* A polynomial in the bytes, so that the hashes of all prefixes and suffixes of a piece come from one pass. */
static const uint64_t HASH_BASE = 0x9e3779b97f4a7c15ull;
static uint64_t hash_start(void) {
    return 1;
}
static inline uint64_t hash_step(uint64_t hash, char byte) {
    return hash * HASH_BASE + (unsigned char)byte + 1;
}
static inline uint32_t hash_finish(uint64_t hash) {
    hash ^= hash >> 32;
    return (uint32_t)((hash * 0xd6e8feb86659fd93ull) >> 32);
}

static int id_table_init(IdTable *table, size_t n) {
    size_t n_slots = 16;
    while (n_slots < n * 2 + 2) n_slots *= 2;
    *table = (IdTable){.n_slots = n_slots, .hash = malloc(n_slots * 4), .id = malloc(n_slots * 4)};
    if (!table->hash || !table->id) FAIL(ERR_FAILED, "out of memory for %zu tokens", n);
    memset(table->id, 0xff, n_slots * 4);
    return OK;
}

static void id_table_add(IdTable *table, uint32_t hash, int32_t id) {
    size_t slot = hash & (table->n_slots - 1);
    while (table->id[slot] != BPE_NO_TOKEN) slot = (slot + 1) & (table->n_slots - 1);
    table->hash[slot] = hash;
    table->id[slot] = id;
    table->n++;
}

static int32_t find_hashed(const Tokenizer *t, uint32_t hash, const char *bytes, size_t length) {
    const IdTable *table = &t->words;
    for (size_t slot = hash & (table->n_slots - 1);; slot = (slot + 1) & (table->n_slots - 1)) {
        int32_t id = table->id[slot];
        if (id == BPE_NO_TOKEN) return id;
        if (table->hash[slot] == hash && t->pieces[id].length == length &&
            memcmp(piece_bytes(t, id), bytes, length) == 0)
            return id;
    }
}

int32_t tokenizer_find(const Tokenizer *t, const char *bytes, size_t length) {
    uint64_t hash = hash_start();
    for (size_t i = 0; i < length; i++) hash = hash_step(hash, bytes[i]);
    return find_hashed(t, hash_finish(hash), bytes, length);
}

static uint32_t code_hash(uint32_t code) {
    return code * 0x9e3779b1u;
}

uint32_t tokenizer_code_symbol(const Tokenizer *t, uint32_t code) {
    if (code < 128) return t->ascii_id[code] >= 0 ? (uint32_t)t->ascii_id[code] : symbol_of_code(code);
    uint32_t hash = code_hash(code);
    for (size_t slot = hash & (t->codes.n_slots - 1);; slot = (slot + 1) & (t->codes.n_slots - 1)) {
        if (t->codes.id[slot] == BPE_NO_TOKEN) return symbol_of_code(code);
        if (t->codes.hash[slot] == hash) return (uint32_t)t->codes.id[slot]; /* an odd multiplier loses nothing */
    }
}

/* Merging can give this piece. */
static bool is_mergeable(const Piece *piece) {
    return piece->type == PIECE_NORMAL || piece->type == PIECE_UNUSED;
}

static void index_characters(Tokenizer *t) {
    for (int id = 0; id < t->n_pieces; id++) {
        const Piece *piece = &t->pieces[id];
        uint32_t code;
        if (!is_mergeable(piece)) continue;
        if (t->byte_level) {
            if (piece->length == 1) t->byte_id[(unsigned char)*piece_bytes(t, id)] = id;
        } else if (piece->length <= 4 && utf8_decode(piece_bytes(t, id), piece->length, &code) == (int)piece->length) {
            if (code < 128)
                t->ascii_id[code] = id;
            else if (tokenizer_code_symbol(t, code) == symbol_of_code(code))
                id_table_add(&t->codes, code_hash(code), id);
        }
    }
}

int tokenizer_index(Tokenizer *t) {
    TRY(id_table_init(&t->words, (size_t)t->n_pieces));
    TRY(id_table_init(&t->codes, (size_t)t->n_pieces));
    for (int id = 0; id < t->n_pieces; id++) {
        const Piece *piece = &t->pieces[id];
        if (piece->type == PIECE_UNUSED) t->has_unused = true;
        if (!is_mergeable(piece)) continue;
        uint64_t hash = hash_start();
        for (size_t i = 0; i < piece->length; i++) hash = hash_step(hash, piece_bytes(t, id)[i]);
        int32_t other = find_hashed(t, hash_finish(hash), piece_bytes(t, id), piece->length);
        if (other != BPE_NO_TOKEN)
            FAIL(ERR_REFUSED, "tokens %d and %d are the same: '%.*s'", other, id, (int)piece->length,
                 piece_bytes(t, id));
        id_table_add(&t->words, hash_finish(hash), id);
    }
    index_characters(t);
    return OK;
}

/* ---- merges that follow from the pieces ---------------------------------------------------------------------------
 */

typedef struct {
    BpePair *pairs;
    size_t n, capacity;
} PairList;

static int pair_list_add(PairList *list, BpePair pair) {
    if (list->n == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 65536;
        BpePair *pairs = realloc(list->pairs, capacity * sizeof *pairs);
        if (!pairs) FAIL(ERR_FAILED, "out of memory for %zu merges", capacity);
        list->pairs = pairs;
        list->capacity = capacity;
    }
    list->pairs[list->n++] = pair;
    return OK;
}

/* The symbol these bytes are, as a half of a merge: a piece, or a character that is none. */
static bool half_symbol(const Tokenizer *t, uint32_t hash, const char *bytes, size_t length, uint32_t *symbol) {
    uint32_t code;
    int32_t id = find_hashed(t, hash, bytes, length);
    if (id != BPE_NO_TOKEN) {
        *symbol = (uint32_t)id;
        return true;
    }
    if (t->byte_level || length > 4 || utf8_decode(bytes, length, &code) != (int)length) return false;
    *symbol = symbol_of_code(code);
    return true;
}

static bool continues_character(const Tokenizer *t, char byte) {
    return !t->byte_level && ((unsigned char)byte & 0xc0) == 0x80;
}

static int derive_from_piece(const Tokenizer *t, int32_t id, uint32_t rank, uint64_t *prefix, PairList *list) {
    const char *bytes = piece_bytes(t, id);
    size_t length = t->pieces[id].length;
    prefix[0] = hash_start();
    for (size_t i = 0; i < length; i++) prefix[i + 1] = hash_step(prefix[i], bytes[i]);
    uint64_t power = 1; /* HASH_BASE to the suffix's length */
    for (size_t cut = length; cut-- > 1;) {
        power *= HASH_BASE;
        BpePair pair = {.rank = rank, .token = (uint32_t)id};
        if (continues_character(t, bytes[cut])) continue;
        /* a suffix's hash is what is left when the prefix's part is taken away, begun anew */
        uint64_t suffix = prefix[length] - (prefix[cut] - hash_start()) * power;
        if (half_symbol(t, hash_finish(suffix), bytes + cut, length - cut, &pair.right) &&
            half_symbol(t, hash_finish(prefix[cut]), bytes, cut, &pair.left))
            TRY(pair_list_add(list, pair));
    }
    return OK;
}

typedef struct {
    float score;
    int32_t id;
} ScoredPiece;

static int by_score(const void *a, const void *b) {
    const ScoredPiece *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* rank[id]: the higher the score the smaller, equal for equal scores; by id where ids are the ranks. */
static int rank_pieces(const Tokenizer *t, uint32_t *rank) {
    if (t->byte_level) {
        for (int id = 0; id < t->n_pieces; id++) rank[id] = (uint32_t)id;
        return OK;
    }
    ScoredPiece *order = malloc((size_t)t->n_pieces * sizeof *order);
    if (!order) FAIL(ERR_FAILED, "out of memory");
    int n = 0;
    for (int id = 0; id < t->n_pieces; id++)
        if (is_mergeable(&t->pieces[id])) order[n++] = (ScoredPiece){t->pieces[id].score, id};
    qsort(order, (size_t)n, sizeof *order, by_score);
    uint32_t next = 0;
    for (int i = 0; i < n; i++) {
        if (i > 0 && order[i].score < order[i - 1].score) next++;
        rank[order[i].id] = next;
    }
    free(order);
    return OK;
}

int tokenizer_derive_merges(Tokenizer *t) {
    int rc = OK;
    PairList list = {0};
    uint32_t *rank = calloc((size_t)t->n_pieces + 1, sizeof *rank);
    uint64_t *prefix = malloc((LONGEST_PIECE + 1) * sizeof *prefix);
    if (!rank || !prefix) FAIL_TO(out, ERR_FAILED, "out of memory");
    TRY_TO(out, rank_pieces(t, rank));
    for (int id = 0; id < t->n_pieces; id++)
        if (is_mergeable(&t->pieces[id])) TRY_TO(out, derive_from_piece(t, id, rank[id], prefix, &list));
    TRY_TO(out, bpe_table_init(&t->merges, list.n));
    for (size_t i = 0; i < list.n; i++) bpe_table_add(&t->merges, list.pairs[i]);
out:
    free(list.pairs);
    free(prefix);
    free(rank);
    return rc;
}

/* ---- neighbours ---------------------------------------------------------------------------------------------------
 */

static size_t neighbour_slot(const NeighbourSet *set, uint32_t left, uint32_t right) {
    uint64_t key = ((uint64_t)left << 32 | right) + 1;
    size_t slot = (size_t)(bpe_hash(left, right) >> 20) & (set->n_slots - 1);
    while (set->slots[slot] != 0 && set->slots[slot] != key) slot = (slot + 1) & (set->n_slots - 1);
    return slot;
}

bool neighbours_has_wide(const NeighbourSet *set, uint32_t left, uint32_t right) {
    return set->slots[neighbour_slot(set, left, right)] != 0;
}

static int neighbours_grow(NeighbourSet *set) {
    NeighbourSet larger = {.n_slots = set->n_slots ? set->n_slots * 2 : 4096};
    larger.slots = calloc(larger.n_slots, sizeof *larger.slots);
    if (!larger.slots) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < set->n_slots; i++) {
        if (set->slots[i] == 0) continue;
        uint64_t pair = set->slots[i] - 1;
        larger.slots[neighbour_slot(&larger, (uint32_t)(pair >> 32), (uint32_t)pair)] = set->slots[i];
    }
    free(set->slots);
    set->slots = larger.slots;
    set->n_slots = larger.n_slots;
    return OK;
}

int neighbours_build(NeighbourSet *set, const Tokenizer *t) {
    TRY(neighbours_grow(set));
    for (int id = 0; id < t->n_pieces; id++) {
        const Piece *piece = &t->pieces[id];
        if (!is_mergeable(piece)) continue;
        const char *bytes = piece_bytes(t, id);
        uint32_t left = 0, right;
        for (size_t at = 0; at < piece->length;) {
            int n = utf8_decode(bytes + at, piece->length - at, &right);
            if (n == 0) FAIL(ERR_REFUSED, "token %d is not UTF-8", id);
            if (at > 0 && left < 128 && right < 128) {
                set->ascii[left][right] = 1;
            } else if (at > 0) {
                if (set->n * 2 + 2 > set->n_slots) TRY(neighbours_grow(set));
                size_t slot = neighbour_slot(set, left, right);
                set->n += set->slots[slot] == 0;
                set->slots[slot] = ((uint64_t)left << 32 | right) + 1;
            }
            left = right;
            at += (size_t)n;
        }
    }
    return OK;
}

void neighbours_free(NeighbourSet *set) {
    free(set->slots);
    *set = (NeighbourSet){0};
}
