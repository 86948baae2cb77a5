/* A byte trie over a few strings, for the longest one that begins at a place in a text. */
#ifndef CRIA_DATA_TRIE_H
#define CRIA_DATA_TRIE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t child, sibling; /* 0 = none */
    int32_t value;           /* -1 = none ends here */
    unsigned char byte;
} TrieNode;

typedef struct {
    TrieNode *nodes; /* node 0 is the root */
    uint32_t n, capacity;
    uint32_t first[256]; /* the root's children */
} Trie;                  /* {0} is empty */

int trie_add(Trie *trie, const char *bytes, size_t length, int32_t value); /* the first of equal strings stays */
void trie_free(Trie *trie);
/* Length of the longest string that begins at `text`, its value in *value; 0 where none does. */
size_t trie_longest(const Trie *trie, const char *text, size_t size, int32_t *value);
static inline bool trie_is_empty(const Trie *trie) {
    return trie->n == 0;
}

#endif
