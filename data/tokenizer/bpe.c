/* The two ways of merging: short words by looking over all pairs each time (n² of a tiny n, no memory), long ones with
 * a heap over a linked list (n log n). Both give the same result: the least rank first, then the leftmost. */
#include "data/tokenizer/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

enum { SHORT_WORD = 48 };

int bpe_table_init(BpeTable *table, size_t n_pairs) {
    unsigned bits = 4;
    while (((size_t)1 << bits) < n_pairs * 2 + 2) bits++;
    size_t n_slots = (size_t)1 << bits;
    *table = (BpeTable){.shift = 64 - bits, .n_slots = n_slots, .slots = malloc(n_slots * sizeof(BpePair))};
    if (!table->slots) FAIL(ERR_FAILED, "out of memory for %zu BPE merges", n_pairs);
    memset(table->slots, 0xff, n_slots * sizeof(BpePair)); /* every rank BPE_NO_RANK */
    return OK;
}

void bpe_table_free(BpeTable *table) {
    free(table->slots);
    *table = (BpeTable){0};
}

bool bpe_table_add(BpeTable *table, BpePair pair) {
    BpePair *slot = (BpePair *)bpe_find(table, pair.left, pair.right);
    if (slot->rank != BPE_NO_RANK || (table->n_pairs + 1) * 2 > table->n_slots) return false;
    *slot = pair;
    table->n_pairs++;
    return true;
}

/* ---- short words --------------------------------------------------------------------------------------------------
 */

static size_t merge_short(const BpeTable *table, uint32_t *symbols, size_t n) {
    uint32_t rank[SHORT_WORD], token[SHORT_WORD];
    for (size_t i = 0; i + 1 < n; i++) {
        const BpePair *pair = bpe_find(table, symbols[i], symbols[i + 1]);
        rank[i] = pair->rank;
        token[i] = pair->token;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == BPE_NO_RANK) break;
        symbols[best] = token[best];
        n--; /* symbol best+1 and the pair that began with it go */
        for (size_t i = best + 1; i < n; i++) {
            symbols[i] = symbols[i + 1];
            if (i + 1 < n) {
                rank[i] = rank[i + 1];
                token[i] = token[i + 1];
            }
        }
        if (best > 0) {
            const BpePair *pair = bpe_find(table, symbols[best - 1], symbols[best]);
            rank[best - 1] = pair->rank;
            token[best - 1] = pair->token;
        }
        if (best + 1 < n) {
            const BpePair *pair = bpe_find(table, symbols[best], symbols[best + 1]);
            rank[best] = pair->rank;
            token[best] = pair->token;
        }
    }
    return n;
}

/* ---- long words ---------------------------------------------------------------------------------------------------
 */

/* Symbols are nodes of a doubly linked list, named by their first position. A heap entry is rank << 32 | position; it
 * is stale when the pair that begins at its position now has another rank, or none. */
typedef struct {
    uint32_t *symbols, *previous, *next, *rank, *token;
    uint64_t *heap;
    size_t n_heap;
    const BpePair **first_seen; /* by token, or NULL */
} LongWord;

static void heap_push(LongWord *word, uint64_t entry) {
    size_t at = word->n_heap++;
    while (at > 0 && word->heap[(at - 1) / 2] > entry) {
        word->heap[at] = word->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    word->heap[at] = entry;
}

static uint64_t heap_pop(LongWord *word) {
    uint64_t top = word->heap[0], last = word->heap[--word->n_heap];
    size_t at = 0, n = word->n_heap;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= n) break;
        if (child + 1 < n && word->heap[child + 1] < word->heap[child]) child++;
        if (word->heap[child] >= last) break;
        word->heap[at] = word->heap[child];
        at = child;
    }
    word->heap[at] = last;
    return top;
}

static void look_at_pair(const BpeTable *table, LongWord *word, uint32_t left, uint32_t end) {
    uint32_t right = word->next[left];
    word->rank[left] = BPE_NO_RANK;
    if (right == end) return;
    const BpePair *pair = bpe_find(table, word->symbols[left], word->symbols[right]);
    word->rank[left] = pair->rank;
    word->token[left] = pair->token;
    if (pair->rank == BPE_NO_RANK) return;
    heap_push(word, (uint64_t)pair->rank << 32 | left);
    if (word->first_seen && !word->first_seen[pair->token]) word->first_seen[pair->token] = pair;
}

static size_t merge_long(const BpeTable *table, LongWord *word, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        word->previous[i] = i - 1;
        word->next[i] = i + 1;
    }
    for (uint32_t i = 0; i < n; i++) look_at_pair(table, word, i, n);
    while (word->n_heap > 0) {
        uint64_t entry = heap_pop(word);
        uint32_t left = (uint32_t)entry;
        if (word->rank[left] != (uint32_t)(entry >> 32)) continue;
        uint32_t gone = word->next[left], after = word->next[gone];
        word->symbols[left] = word->token[left];
        word->rank[gone] = BPE_NO_RANK;
        word->next[left] = after;
        if (after < n) word->previous[after] = left;
        if (left > 0) look_at_pair(table, word, word->previous[left], n);
        look_at_pair(table, word, left, n);
    }
    size_t kept = 0;
    for (uint32_t i = 0; i < n; i = word->next[i]) word->symbols[kept++] = word->symbols[i];
    return kept;
}

int bpe_merge(const BpeTable *table, uint32_t *symbols, size_t *n) {
    if (*n > SHORT_WORD) return bpe_merge_traced(table, symbols, n, NULL);
    *n = merge_short(table, symbols, *n);
    return OK;
}

int bpe_merge_traced(const BpeTable *table, uint32_t *symbols, size_t *n, const BpePair **first_seen) {
    if (*n == 0) return OK;
    if (*n >= BPE_NO_RANK)
        FAIL(ERR_REFUSED, "a run of %zu characters without a break is too long to tokenize; the limit is 4294967294",
             *n);
    /* each merge looks at two pairs, so the heap sees n + 2n entries at most */
    size_t count = *n;
    char *memory = malloc(count * (4 * sizeof(uint32_t) + 3 * sizeof(uint64_t)));
    if (!memory) FAIL(ERR_FAILED, "out of memory for a word of %zu characters", count);
    LongWord word = {.symbols = symbols, .heap = (uint64_t *)memory, .first_seen = first_seen};
    word.previous = (uint32_t *)(word.heap + 3 * count);
    word.next = word.previous + count;
    word.rank = word.next + count;
    word.token = word.rank + count;
    *n = merge_long(table, &word, (uint32_t)count);
    free(memory);
    return OK;
}
