/* The part of YAML 1.2 a config needs, as a tree that knows where each node stands: block and flow mappings and
 * sequences, plain and quoted scalars. Parsed with libfyaml. Anchors, aliases, merge keys, tags and further documents
 * are refused: a config has no use for them, and hostile files do. */
#ifndef CRIA_CONFIGS_YAML_H
#define CRIA_CONFIGS_YAML_H

#include <stdbool.h>
#include <stddef.h>

#include "model/core/arena.h"

enum { YAML_MAX_BYTES = 1 << 20, YAML_MAX_DEPTH = 16 };

typedef enum { YAML_SCALAR, YAML_SEQUENCE, YAML_MAPPING } YamlKind;

typedef struct YamlNode YamlNode;
struct YamlNode {
    YamlKind kind;
    int line, column; /* from 1 */
    const char *text; /* scalars: NUL-terminated UTF-8, no NUL inside */
    bool quoted;      /* scalars: "3" rather than 3 */
    const char *key;  /* in a mapping: this entry's key, and where that stands */
    int key_line, key_column;
    YamlNode *children; /* first of the sequence's or mapping's entries */
    YamlNode *next;     /* next entry of the same parent */
    size_t n_children;
};

/* The one document in `bytes`; *root is NULL when it is empty. Nodes live in the arena. Errors (ERR_USAGE) begin with
 * "name:line:column: ". */
int yaml_parse(YamlNode **root, Arena *arena, const char *name, const char *bytes, size_t size);

/* "", "null", "~" unquoted: a key without a value. */
bool yaml_is_null(const YamlNode *node);

/* "a mapping", "a list", "'text'", for messages; into the caller's buffer. */
const char *yaml_describe(const YamlNode *node, char *out, size_t size);

#endif
