/* JSON (RFC 8259) as records have it: one text becomes a flat array of nodes, in the order of the text. Strings are
 * decoded where they stand in one copy of the text; numbers stay as they are written until somebody asks.
 *
 * Refused, with line and column: whatever the grammar does not allow (a byte order mark, control characters in strings,
 * anything behind the value), text that is not UTF-8, halves of surrogate pairs, a key that an object has twice or that
 * has U+0000 in it, a number beyond a double's range, more than JSON_DOC_DEPTH values within each other. */
#ifndef CRIA_DATA_JSON_DOC_H
#define CRIA_DATA_JSON_DOC_H

#include <stdbool.h>
#include <stddef.h>

enum { JSON_DOC_DEPTH = 2048 };

typedef enum {
    NODE_NULL,
    NODE_FALSE,
    NODE_TRUE,
    NODE_INTEGER, /* a number without fraction and exponent */
    NODE_REAL,
    NODE_STRING,
    NODE_ARRAY,
    NODE_OBJECT
} JsonNodeType;

/* Of an object every member is two nodes, the key's (a string) and the value's. */
typedef struct {
    const char
        *bytes;  /* a string's, followed by a NUL; a number as it is written, followed by what is no part of one */
    size_t size; /* bytes; of an array the elements, of an object the members */
    size_t span; /* nodes that the value takes: its own, and all within */
    JsonNodeType type;
} JsonNode;

typedef struct {
    char *bytes; /* the copy */
    size_t capacity;
    JsonNode *nodes; /* nodes[0] is the whole */
    size_t n_nodes, node_capacity;
} JsonDoc; /* {0} is empty; may be read into again; json_doc_free */

/* ERR_REFUSED: "… (column 17)" or "… (its line 3, column 17)", counted in characters from 1. */
int json_doc_read(JsonDoc *doc, const char *json, size_t size);
void json_doc_free(JsonDoc *doc);

const char *json_node_type_name(const JsonNode *node); /* "an object", "a string", "null" … */

/* All of these take NULL, which is no value of any type. */
static inline bool json_node_is(const JsonNode *node, JsonNodeType type) {
    return node && node->type == type;
}
static inline bool json_node_is_number(const JsonNode *node) {
    return json_node_is(node, NODE_INTEGER) || json_node_is(node, NODE_REAL);
}
/* Elements or members; 0 of anything else. */
size_t json_node_count(const JsonNode *node);
/* An object's value by its key; NULL where it is absent, or the node is no object. */
const JsonNode *json_node_member(const JsonNode *object, const char *key);
/* An array's element; NULL beyond its end. */
const JsonNode *json_node_element(const JsonNode *array, size_t index);
double json_node_number(const JsonNode *node); /* 0 of anything else */

/* The nodes within a container one after another, keys and values alike: from json_node_first to json_node_end. */
static inline const JsonNode *json_node_first(const JsonNode *container) {
    return container + 1;
}
static inline const JsonNode *json_node_next(const JsonNode *node) {
    return node + node->span;
}
static inline const JsonNode *json_node_end(const JsonNode *container) {
    return container + container->span;
}

#endif
