/* One value at a time: from YAML into a field, and back. What the files of configs/ share; nobody else includes it. */
#ifndef CRIA_CONFIGS_VALUES_H
#define CRIA_CONFIGS_VALUES_H

#include "configs/config.h"
#include "configs/yaml.h"
#include "model/core/arena.h"

struct ConfigPrivate {
    Arena arena;                     /* texts, lists, positions */
    const char *where[OPTION_COUNT]; /* where it was set; NULL: the default */
};

enum { WHERE_SIZE = 512 };
/* "name:line:column", or the name alone when line is 0 (an argument). */
void value_where(char out[WHERE_SIZE], const char *name, int line, int column);

/* Sets the option's field in `base` (the Config, or a ConfigSource) from a node. `name` is the file's, for positions
 * inside lists; `where` the place of this value. */
int value_set(void *base, const Option *option, const YamlNode *node, Arena *arena, const char *name,
              const char *where);
int value_default(void *base, const Option *option, Arena *arena);
int source_defaults(ConfigSource *source, Arena *arena);

/* Appends the value as YAML on one line. */
void value_write(const Option *option, const void *base, Text *out);

#endif
