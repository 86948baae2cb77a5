/* A tokenizer to plain arrays (arrays.h). */
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/arrays.h"
#include "data/tokenizer/internal.h"
#include "data/tokenizer/json.h"
#include "model/core/error.h"

/* ---- spelling ---- */

static void spell(const Tokenizer *t, int32_t id, Text *out) {
    if (t->byte_level && t->pieces[id].type == PIECE_NORMAL)
        byte_level_spell(piece_bytes(t, id), t->pieces[id].length, out);
    else
        tokenizer_piece_name(t, id, out);
}

/* Tokens that stand in raw text whatever surrounds them. */
static bool is_added(const Tokenizer *t, int32_t id) {
    int32_t found;
    size_t length = t->pieces[id].length;
    return trie_longest(&t->added, piece_bytes(t, id), length, &found) == length && found == id;
}

static int type_of(const Tokenizer *t, int32_t id, int32_t *type) {
    *type = t->pieces[id].type;
    if (*type != PIECE_UNREACHABLE) return OK;
    *type = PIECE_USER;
    if (is_added(t, id)) return OK;
    FAIL(ERR_REFUSED, "token %d, '%.*s', only decodes: it has a space where texts have U+2581; this cannot be written",
         id, (int)t->pieces[id].length, piece_bytes(t, id));
}

/* All texts in one pool first, which moves while it grows: `offsets` has n + 1 places. */
static int settle(Text *pool, const size_t *offsets, size_t n, Arena *arena, TokenText *texts) {
    char *bytes;
    TRY(text_check(pool));
    ARENA_TRY(bytes, arena, pool->length + 1);
    if (pool->length) memcpy(bytes, pool->bytes, pool->length);
    for (size_t i = 0; i < n; i++) texts[i] = (TokenText){bytes + offsets[i], offsets[i + 1] - offsets[i]};
    return OK;
}

static int fill_tokens(const Tokenizer *t, Arena *arena, TokenizerArrays *a) {
    Text pool = {0};
    TokenText *tokens;
    int32_t *types;
    size_t *offsets;
    a->n = (size_t)t->n_pieces;
    ARENA_TRY(tokens, arena, a->n);
    ARENA_TRY(types, arena, a->n);
    ARENA_TRY(offsets, arena, a->n + 1);
    for (int32_t id = 0; id < t->n_pieces; id++) TRY(type_of(t, id, &types[id]));
    for (int32_t id = 0; id < t->n_pieces; id++) {
        spell(t, id, &pool);
        offsets[id + 1] = pool.length;
    }
    int rc = settle(&pool, offsets, a->n, arena, tokens);
    text_free(&pool);
    a->tokens = tokens;
    a->types = types;
    return rc;
}

static int by_bytes(const void *a, const void *b) {
    const TokenText *x = *(const TokenText *const *)a, *y = *(const TokenText *const *)b;
    int order = memcmp(x->bytes, y->bytes, x->length < y->length ? x->length : y->length);
    return order ? order : x->length < y->length ? -1 : x->length > y->length;
}

/* Readers find tokens by their spelling, so that no two may have the same. */
static int check_distinct(const TokenizerArrays *a) {
    int rc = OK;
    const TokenText **order = malloc((a->n + 1) * sizeof *order);
    if (!order) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < a->n; i++) order[i] = &a->tokens[i];
    qsort(order, a->n, sizeof *order, by_bytes);
    for (size_t i = 1; i < a->n && rc == OK; i++)
        if (by_bytes(&order[i - 1], &order[i]) == 0)
            rc = error_set(ERR_REFUSED, __FILE__, __LINE__, "tokens %td and %td are spelled alike: '%.*s'",
                           order[i - 1] - a->tokens, order[i] - a->tokens, (int)order[i]->length, order[i]->bytes);
    free(order);
    return rc;
}

/* ---- merges ---- */

static int fill_merges(const Tokenizer *t, Arena *arena, TokenizerArrays *a) {
    BpePair *pairs;
    size_t n, *offsets;
    TokenText *merges;
    Text pool = {0};
    ARENA_TRY(merges, arena, t->merges.n_pairs);
    ARENA_TRY(offsets, arena, t->merges.n_pairs + 1);
    TRY(tokenizer_sorted_merges(t, &pairs, &n));
    for (size_t i = 0; i < n; i++) {
        spell(t, (int32_t)pairs[i].left, &pool);
        text_puts(&pool, " ");
        spell(t, (int32_t)pairs[i].right, &pool);
        offsets[i + 1] = pool.length;
    }
    free(pairs);
    int rc = settle(&pool, offsets, n, arena, merges);
    text_free(&pool);
    a->merges = merges;
    a->n_merges = n;
    a->split_pattern = t->split_pattern;
    return rc;
}

/* Merging alone makes every token of its own bytes: then it is all one whether a word that is a token is looked up. */
static int reachable_by_merging(const Tokenizer *t, bool *all) {
    size_t longest = 0;
    for (int32_t id = 0; id < t->n_pieces; id++)
        if (t->pieces[id].length > longest) longest = t->pieces[id].length;
    uint32_t *symbols = malloc((longest + 1) * sizeof *symbols);
    if (!symbols) FAIL(ERR_FAILED, "out of memory");
    int rc = OK;
    *all = true;
    for (int32_t id = 0; id < t->n_pieces && *all && rc == OK; id++) {
        size_t n = t->pieces[id].length;
        if (t->pieces[id].type != PIECE_NORMAL) continue;
        for (size_t i = 0; i < n; i++) symbols[i] = (uint32_t)t->byte_id[(unsigned char)piece_bytes(t, id)[i]];
        rc = bpe_merge(&t->merges, symbols, &n);
        *all = n == 1 && symbols[0] == (uint32_t)id;
    }
    free(symbols);
    return rc;
}

/* ---- scores ---- */

/* From a tokenizer.json, which ranks merges and has no scores: a token's is minus the rank of its first merge. */
static int scores_from_merges(const Tokenizer *t, float *scores) {
    BpePair *pairs;
    size_t n;
    TRY(tokenizer_sorted_merges(t, &pairs, &n));
    float next = 0;
    for (size_t i = 0; i < n; i++)
        if (scores[pairs[i].token] == 0) scores[pairs[i].token] = next -= 1;
    free(pairs);
    return OK;
}

/* Ranks as scores must give the same merges in the same order, but for those of one token, among which the leftmost
 * in the text goes first. */
static int check_scores(const Tokenizer *t, const TokenizerArrays *a) {
    Tokenizer *again;
    BpePair *pairs;
    size_t n;
    uint32_t last = 0;
    TRY(tokenizer_from_arrays(&again, a));
    int rc = tokenizer_sorted_merges(t, &pairs, &n);
    bool same = rc == OK && n == again->merges.n_pairs;
    for (size_t i = 0; i < n && same; i++) {
        const BpePair *pair = bpe_find(&again->merges, pairs[i].left, pairs[i].right);
        same = pair->rank != BPE_NO_RANK && pair->token == pairs[i].token && pair->rank >= last;
        last = pair->rank;
    }
    if (rc == OK) free(pairs);
    tokenizer_free(again);
    TRY(rc);
    if (!same)
        FAIL(ERR_REFUSED, "its merges do not follow from scores of its tokens, which is all that can be written here");
    return OK;
}

static int fill_scores(const Tokenizer *t, Arena *arena, TokenizerArrays *a) {
    float *scores;
    ARENA_TRY(scores, arena, a->n);
    a->scores = scores;
    a->space_prefix = t->normalizer.prefix != PREFIX_NEVER;
    a->remove_extra_whitespaces = t->normalizer.remove_extra_whitespaces;
    if (t->normalizer.n_units > 0)
        FAIL(ERR_REFUSED,
             "it replaces characters by a table (SentencePiece's normalizer), which cannot be written here");
    if (!t->normalizer.escape_whitespaces)
        FAIL(ERR_REFUSED, "it keeps spaces as they are (escape_whitespaces off), which cannot be written here");
    for (size_t id = 0; id < a->n; id++) scores[id] = t->pieces[id].score;
    if (t->format != FORMAT_JSON) return OK;
    TRY(scores_from_merges(t, scores));
    return check_scores(t, a);
}

int tokenizer_to_arrays(const Tokenizer *t, Arena *arena, TokenizerArrays *a, int32_t *unknown) {
    *a = (TokenizerArrays){.byte_level = t->byte_level, .bos = t->bos, .eos = t->eos};
    *unknown = t->unknown;
    TRY(fill_tokens(t, arena, a));
    TRY(check_distinct(a));
    if (!t->byte_level) return fill_scores(t, arena, a);
    TRY(fill_merges(t, arena, a));
    a->whole_words = t->whole_words;
    return t->whole_words ? OK : reachable_by_merging(t, &a->whole_words);
}
