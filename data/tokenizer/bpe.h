/* Byte-pair encoding (Sennrich et al., 2016, arXiv:1508.07909): neighbouring symbols are joined, the best pair first
 * and of equal ones the leftmost, until no pair of neighbours is in the table. SentencePiece, tiktoken and Hugging Face
 * differ only in what a symbol is and in how the table is made.
 *
 * A symbol is a 32-bit number: a token id, or a character that is no token (symbol_of_code), or a stray byte of
 * malformed UTF-8 (symbol_of_byte). */
#ifndef CRIA_DATA_BPE_H
#define CRIA_DATA_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BPE_NO_TOKEN = -1 };
#define BPE_RAW_CODE 0x80000000u
#define BPE_RAW_BYTE 0xc0000000u
#define BPE_NO_RANK UINT32_MAX

static inline uint32_t symbol_of_code(uint32_t code) {
    return BPE_RAW_CODE | code;
}
static inline uint32_t symbol_of_byte(unsigned char byte) {
    return BPE_RAW_BYTE | byte;
}
static inline bool symbol_is_token(uint32_t symbol) {
    return symbol < BPE_RAW_CODE;
}

/* One rule: left and right become `token`; a smaller rank goes first. */
typedef struct {
    uint32_t left, right, rank, token;
} BpePair;

typedef struct {
    BpePair *slots; /* open addressing, at most half full; empty slots have rank BPE_NO_RANK */
    unsigned shift; /* 64 - log2(number of slots) */
    size_t n_slots, n_pairs;
} BpeTable;

int bpe_table_init(BpeTable *table, size_t n_pairs);
void bpe_table_free(BpeTable *table);
/* Adds a pair; of several for the same symbols the first stays. False where it was there. The table never grows. */
bool bpe_table_add(BpeTable *table, BpePair pair);

static inline uint64_t bpe_hash(uint32_t left, uint32_t right) {
    uint64_t key = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15ull;
    return (key ^ key >> 29) * 0xbf58476d1ce4e5b9ull;
}

static inline const BpePair *bpe_find(const BpeTable *table, uint32_t left, uint32_t right) {
    size_t slot = (size_t)(bpe_hash(left, right) >> table->shift);
    for (;; slot = (slot + 1) & (table->n_slots - 1)) {
        const BpePair *pair = &table->slots[slot];
        if (pair->rank == BPE_NO_RANK || (pair->left == left && pair->right == right)) return pair;
    }
}

/* Joins the n symbols of one word in place and sets *n to what is left. Cost n log n. */
int bpe_merge(const BpeTable *table, uint32_t *symbols, size_t *n);

/* The same, noting for every token the first pair that was ever a candidate for it: SentencePiece takes pieces of type
 * UNUSED apart again that way. first_seen has an element for each token, NULL at the start. */
int bpe_merge_traced(const BpeTable *table, uint32_t *symbols, size_t *n, const BpePair **first_seen);

#endif
