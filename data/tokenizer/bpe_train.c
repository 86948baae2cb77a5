/* Counts of pairs are kept up to date: a merge touches only the words its pair occurs in. A pair's count only falls
 * after its symbols exist, so the heap may hold counts that are too high: a pair that comes to the top with an old
 * count goes back with the true one. */
#include "data/tokenizer/bpe_train.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/bpe.h"
#include "model/core/error.h"

enum { N_BYTES = 256 };

typedef struct {
    uint32_t left, right;
    int64_t count;
    uint32_t *words; /* that have, or once had, this pair */
    uint32_t n_words, capacity;
} Pair;

typedef struct {
    int64_t count;
    uint32_t pair;
} HeapEntry;

typedef struct {
    const BpeTrainOptions *options;
    const WordCounts *counts;
    uint32_t *symbols; /* of all words, each at its bytes' offset */
    uint32_t *lengths; /* symbols of each word */
    uint32_t *n_bytes; /* of each symbol */
    Pair *pairs;
    size_t n_pairs, pairs_capacity;
    uint32_t *slots; /* open addressing: 1 + index of a pair */
    size_t n_slots;
    HeapEntry *heap;
    size_t n_heap, heap_capacity;
} Trainer;

/* ---- pairs --------------------------------------------------------------------------------------------------------
 */

static size_t pair_slot(const Trainer *trainer, uint32_t left, uint32_t right) {
    size_t slot = (size_t)(bpe_hash(left, right) >> 20) & (trainer->n_slots - 1);
    for (; trainer->slots[slot]; slot = (slot + 1) & (trainer->n_slots - 1)) {
        const Pair *pair = &trainer->pairs[trainer->slots[slot] - 1];
        if (pair->left == left && pair->right == right) break;
    }
    return slot;
}

static int grow_pairs(Trainer *trainer) {
    size_t capacity = trainer->pairs_capacity ? trainer->pairs_capacity * 2 : 1 << 14, n_slots = capacity * 2;
    if (capacity >= UINT32_MAX / 2) FAIL(ERR_REFUSED, "more than %zu different pairs", trainer->n_pairs);
    Pair *pairs = realloc(trainer->pairs, capacity * sizeof *pairs);
    if (pairs) trainer->pairs = pairs;
    uint32_t *slots = calloc(n_slots, sizeof *slots);
    if (!pairs || !slots) {
        free(slots);
        FAIL(ERR_FAILED, "out of memory for %zu pairs", capacity);
    }
    trainer->pairs_capacity = capacity;
    free(trainer->slots);
    trainer->slots = slots;
    trainer->n_slots = n_slots;
    for (size_t i = 0; i < trainer->n_pairs; i++)
        slots[pair_slot(trainer, pairs[i].left, pairs[i].right)] = (uint32_t)i + 1;
    return OK;
}

/* Finds or makes the pair. */
static int pair_at(Trainer *trainer, uint32_t left, uint32_t right, uint32_t *index) {
    if (trainer->n_pairs == trainer->pairs_capacity) TRY(grow_pairs(trainer));
    size_t slot = pair_slot(trainer, left, right);
    if (!trainer->slots[slot]) {
        trainer->pairs[trainer->n_pairs] = (Pair){.left = left, .right = right};
        trainer->slots[slot] = (uint32_t)++trainer->n_pairs;
    }
    *index = trainer->slots[slot] - 1;
    return OK;
}

static int pair_occurs_in(Pair *pair, uint32_t word) {
    if (pair->n_words > 0 && pair->words[pair->n_words - 1] == word) return OK;
    if (pair->n_words == pair->capacity) {
        uint32_t capacity = pair->capacity ? pair->capacity * 2 : 4;
        uint32_t *words = capacity > pair->capacity ? realloc(pair->words, capacity * sizeof *words) : NULL;
        if (!words) FAIL(ERR_FAILED, "out of memory");
        pair->words = words;
        pair->capacity = capacity;
    }
    pair->words[pair->n_words++] = word;
    return OK;
}

/* ---- the heap: the most frequent first, then the smaller symbols ----------------------------------------------------
 */

static bool goes_before(const Trainer *trainer, HeapEntry a, HeapEntry b) {
    if (a.count != b.count) return a.count > b.count;
    const Pair *x = &trainer->pairs[a.pair], *y = &trainer->pairs[b.pair];
    return x->left != y->left ? x->left < y->left : x->right < y->right;
}

static int heap_push(Trainer *trainer, uint32_t pair) {
    if (trainer->n_heap == trainer->heap_capacity) {
        size_t capacity = trainer->heap_capacity ? trainer->heap_capacity * 2 : 1 << 14;
        HeapEntry *heap = realloc(trainer->heap, capacity * sizeof *heap);
        if (!heap) FAIL(ERR_FAILED, "out of memory");
        trainer->heap = heap;
        trainer->heap_capacity = capacity;
    }
    HeapEntry entry = {trainer->pairs[pair].count, pair};
    size_t at = trainer->n_heap++;
    for (; at > 0 && goes_before(trainer, entry, trainer->heap[(at - 1) / 2]); at = (at - 1) / 2)
        trainer->heap[at] = trainer->heap[(at - 1) / 2];
    trainer->heap[at] = entry;
    return OK;
}

static HeapEntry heap_pop(Trainer *trainer) {
    HeapEntry top = trainer->heap[0], last = trainer->heap[--trainer->n_heap];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < trainer->n_heap; at = child) {
        if (child + 1 < trainer->n_heap && goes_before(trainer, trainer->heap[child + 1], trainer->heap[child]))
            child++;
        if (!goes_before(trainer, trainer->heap[child], last)) break;
        trainer->heap[at] = trainer->heap[child];
    }
    trainer->heap[at] = last;
    return top;
}

/* ---- learning -----------------------------------------------------------------------------------------------------
 */

/* Adds `sign` times the word's count to its pairs; notes the word with those that have the symbol `fresh` (with all
 * where it is 0: no merge makes symbol 0). */
static int count_word(Trainer *trainer, uint32_t word, int sign, uint32_t fresh) {
    const uint32_t *symbols = trainer->symbols + trainer->counts->words[word].offset;
    for (uint32_t i = 0; i + 1 < trainer->lengths[word]; i++) {
        uint32_t index;
        TRY(pair_at(trainer, symbols[i], symbols[i + 1], &index));
        trainer->pairs[index].count += sign * trainer->counts->words[word].count;
        if (sign > 0 && (fresh == 0 || symbols[i] == fresh || symbols[i + 1] == fresh))
            TRY(pair_occurs_in(&trainer->pairs[index], word));
    }
    return OK;
}

static bool rewrite_word(Trainer *trainer, uint32_t word, uint32_t left, uint32_t right, uint32_t made) {
    uint32_t *symbols = trainer->symbols + trainer->counts->words[word].offset;
    uint32_t n = trainer->lengths[word], kept = 0;
    for (uint32_t i = 0; i < n; kept++) {
        bool here = i + 1 < n && symbols[i] == left && symbols[i + 1] == right;
        symbols[kept] = here ? made : symbols[i];
        i += here ? 2 : 1;
    }
    trainer->lengths[word] = kept;
    return kept < n;
}

static bool has_pair(const Trainer *trainer, uint32_t word, uint32_t left, uint32_t right) {
    const uint32_t *symbols = trainer->symbols + trainer->counts->words[word].offset;
    for (uint32_t i = 0; i + 1 < trainer->lengths[word]; i++)
        if (symbols[i] == left && symbols[i + 1] == right) return true;
    return false;
}

static int apply_merge(Trainer *trainer, uint32_t pair, uint32_t made) {
    uint32_t left = trainer->pairs[pair].left, right = trainer->pairs[pair].right;
    uint32_t *words = trainer->pairs[pair].words, n_words = trainer->pairs[pair].n_words;
    size_t first_new = trainer->n_pairs;
    trainer->pairs[pair].words = NULL;
    trainer->pairs[pair].n_words = trainer->pairs[pair].capacity = 0;
    int rc = OK;
    for (uint32_t i = 0; i < n_words && rc == OK; i++) {
        if (!has_pair(trainer, words[i], left, right)) continue;
        rc = count_word(trainer, words[i], -1, made);
        rewrite_word(trainer, words[i], left, right, made);
        if (rc == OK) rc = count_word(trainer, words[i], 1, made);
    }
    free(words);
    /* only pairs with the new symbol can be new */
    for (size_t i = first_new; i < trainer->n_pairs && rc == OK; i++) rc = heap_push(trainer, (uint32_t)i);
    return rc;
}

static int learn(Trainer *trainer, BpeMerge *merges, size_t *n) {
    const BpeTrainOptions *options = trainer->options;
    *n = 0;
    while (*n < options->n_merges && trainer->n_heap > 0) {
        HeapEntry top = heap_pop(trainer);
        const Pair *pair = &trainer->pairs[top.pair];
        if (pair->count < options->min_count || pair->count <= 0) continue;
        if (pair->count != top.count) {
            TRY(heap_push(trainer, top.pair));
            continue;
        }
        uint32_t length = trainer->n_bytes[pair->left] + trainer->n_bytes[pair->right];
        if (length > options->longest_token) continue;
        uint32_t made = (uint32_t)(N_BYTES + *n);
        merges[(*n)++] = (BpeMerge){pair->left, pair->right};
        trainer->n_bytes[made] = length;
        TRY(apply_merge(trainer, top.pair, made));
        if (options->progress) options->progress(options->context, *n, options->n_merges);
    }
    return OK;
}

static int prepare(Trainer *trainer) {
    const WordCounts *counts = trainer->counts;
    size_t n_symbols = N_BYTES + trainer->options->n_merges;
    trainer->symbols = malloc((counts->bytes.length + 1) * sizeof *trainer->symbols);
    trainer->lengths = malloc((counts->n + 1) * sizeof *trainer->lengths);
    trainer->n_bytes = malloc(n_symbols * sizeof *trainer->n_bytes);
    if (!trainer->symbols || !trainer->lengths || !trainer->n_bytes) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < counts->bytes.length; i++) trainer->symbols[i] = (unsigned char)counts->bytes.bytes[i];
    for (size_t i = 0; i < counts->n; i++) trainer->lengths[i] = counts->words[i].length;
    for (size_t i = 0; i < N_BYTES; i++) trainer->n_bytes[i] = 1;
    for (size_t i = 0; i < counts->n; i++) TRY(count_word(trainer, (uint32_t)i, 1, 0));
    for (size_t i = 0; i < trainer->n_pairs; i++) TRY(heap_push(trainer, (uint32_t)i));
    return OK;
}

int bpe_train(const WordCounts *counts, const BpeTrainOptions *options, BpeMerge *merges, size_t *n) {
    Trainer trainer = {.options = options, .counts = counts};
    int rc = prepare(&trainer);
    if (rc == OK) rc = learn(&trainer, merges, n);
    for (size_t i = 0; i < trainer.n_pairs; i++) free(trainer.pairs[i].words);
    free(trainer.pairs);
    free(trainer.slots);
    free(trainer.heap);
    free(trainer.symbols);
    free(trainer.lengths);
    free(trainer.n_bytes);
    return rc;
}
