/* Children are a list of siblings; only the root has a table, since nearly every place in a text fails there. */
#include "data/tokenizer/trie.h"

#include <stdlib.h>

#include "model/core/error.h"

static int node_new(Trie *trie, unsigned char byte, uint32_t *made) {
    if (trie->n == trie->capacity) {
        uint32_t capacity = trie->capacity ? trie->capacity * 2 : 64;
        TrieNode *nodes = capacity > trie->capacity ? realloc(trie->nodes, (size_t)capacity * sizeof *nodes) : NULL;
        if (!nodes) FAIL(ERR_FAILED, "out of memory for a trie of %u nodes", trie->n);
        trie->nodes = nodes;
        trie->capacity = capacity;
    }
    trie->nodes[trie->n] = (TrieNode){.value = -1, .byte = byte};
    *made = trie->n++;
    return OK;
}

int trie_add(Trie *trie, const char *bytes, size_t length, int32_t value) {
    uint32_t at = 0;
    if (length == 0) return OK;
    if (trie->n == 0) TRY(node_new(trie, 0, &at));
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        uint32_t child = i == 0 ? trie->first[byte] : trie->nodes[at].child;
        while (child && trie->nodes[child].byte != byte) child = trie->nodes[child].sibling;
        if (!child) {
            TRY(node_new(trie, byte, &child));
            if (i == 0) {
                trie->first[byte] = child;
            } else {
                trie->nodes[child].sibling = trie->nodes[at].child;
                trie->nodes[at].child = child;
            }
        }
        at = child;
    }
    if (trie->nodes[at].value < 0) trie->nodes[at].value = value;
    return OK;
}

void trie_free(Trie *trie) {
    free(trie->nodes);
    *trie = (Trie){0};
}

size_t trie_longest(const Trie *trie, const char *text, size_t size, int32_t *value) {
    size_t longest = 0;
    uint32_t at = size > 0 ? trie->first[(unsigned char)text[0]] : 0;
    for (size_t i = 1; at; i++) {
        if (trie->nodes[at].value >= 0) {
            longest = i;
            *value = trie->nodes[at].value;
        }
        if (i == size) break;
        unsigned char byte = (unsigned char)text[i];
        at = trie->nodes[at].child;
        while (at && trie->nodes[at].byte != byte) at = trie->nodes[at].sibling;
    }
    return longest;
}
