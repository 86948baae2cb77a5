/* YAML nodes and texts -> the fields of a Config, checked against the option table. Every message names the place and
 * the key, what was found and what was expected. */
#include "configs/values.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/core/error.h"

enum { EXPECTED_SIZE = 256, FOUND_SIZE = 96 };

static int mismatch(const char *where, const Option *option, const YamlNode *node) {
    char expected[EXPECTED_SIZE], found[FOUND_SIZE];
    option_expected(option, expected, sizeof expected);
    yaml_describe(node, found, sizeof found);
    if (option->type == OPTION_CHOICE && node->kind == YAML_SCALAR) {
        const char *names[16];
        char buffers[16][32];
        size_t n = 0;
        for (; n < 16 && *option_choice_name(option, (int)n, buffers[n], sizeof buffers[n]); n++) names[n] = buffers[n];
        const char *nearest = text_nearest(node->text, names, n);
        if (nearest)
            FAIL(ERR_USAGE, "%s: %s: found %s; did you mean '%s'? (%s)", where, option->key, found, nearest, expected);
    }
    FAIL(ERR_USAGE, "%s: %s: found %s, expected %s%s%s", where, option->key, found, expected,
         *option->unit ? ", in " : "", option->unit);
}

static int parse_number(double *value, const Option *option, const YamlNode *node, const char *where) {
    if (node->quoted || !text_parse_double(node->text, value) || !isfinite(*value) || !option_in_range(option, *value))
        return mismatch(where, option, node);
    return OK;
}

static int parse_int(int64_t *value, const Option *option, const YamlNode *node, const char *where) {
    if (node->quoted || !text_parse_int(node->text, value) || !option_in_range(option, (double)*value))
        return mismatch(where, option, node);
    return OK;
}

static int parse_bool(bool *value, const Option *option, const YamlNode *node, const char *where) {
    bool yes = strcmp(node->text, "true") == 0, no = strcmp(node->text, "false") == 0;
    if (node->quoted || (!yes && !no)) return mismatch(where, option, node);
    *value = yes;
    return OK;
}

static int copy_text(const char **out, Arena *arena, const char *text) {
    *out = arena_strdup(arena, text);
    if (!*out) FAIL(ERR_FAILED, "out of memory for a text of %zu bytes", strlen(text));
    return OK;
}

static int set_strings(ConfigStrings *out, const Option *option, const YamlNode *node, Arena *arena,
                       const char *where) {
    ConfigStrings list = {0};
    const YamlNode *first = node->kind == YAML_SEQUENCE ? node->children : node;
    list.n = node->kind == YAML_SEQUENCE ? node->n_children : 1;
    ARENA_TRY(list.items, arena, list.n);
    for (size_t i = 0; i < list.n; i++, first = first->next) {
        if (first->kind != YAML_SCALAR || yaml_is_null(first)) return mismatch(where, option, node);
        TRY(copy_text(&list.items[i], arena, first->text));
    }
    *out = list;
    return OK;
}

static const Option *find_source_key(const char *key) {
    for (size_t i = 0; i < source_table_length; i++)
        if (strcmp(source_table[i].key, key) == 0) return &source_table[i];
    return NULL;
}

static int set_source(ConfigSource *source, const Option *option, const YamlNode *node, Arena *arena,
                      const char *name) {
    char where[WHERE_SIZE];
    bool seen[16] = {false};
    value_where(where, name, node->line, node->column);
    TRY(source_defaults(source, arena));
    if (node->kind == YAML_SCALAR && !yaml_is_null(node)) {
        TRY(copy_text(&source->path, arena, node->text));
    } else if (node->kind == YAML_MAPPING) {
        for (const YamlNode *entry = node->children; entry; entry = entry->next) {
            value_where(where, name, entry->key_line, entry->key_column);
            const Option *key = find_source_key(entry->key);
            if (!key) {
                const char *names[16];
                for (size_t i = 0; i < source_table_length; i++) names[i] = source_table[i].key;
                const char *nearest = text_nearest(entry->key, names, source_table_length);
                FAIL(ERR_USAGE,
                     "%s: %s: a source has no key '%s'%s%s%s (keys: path, name, field, weight, columns, objective, "
                     "separator)",
                     where, option->key, entry->key, nearest ? "; did you mean '" : "", nearest ? nearest : "",
                     nearest ? "'?" : "");
            }
            bool *twice = &seen[key - source_table];
            if (*twice) FAIL(ERR_USAGE, "%s: %s: '%s' is given twice", where, option->key, entry->key);
            *twice = true;
            value_where(where, name, entry->line, entry->column);
            TRY(value_set(source, key, entry, arena, name, where));
        }
    }
    value_where(where, name, node->line, node->column);
    if (!*source->path) FAIL(ERR_USAGE, "%s: %s: a source needs a path", where, option->key);
    return OK;
}

static int set_sources(ConfigSources *out, const Option *option, const YamlNode *node, Arena *arena, const char *name,
                       const char *where) {
    ConfigSources list = {0};
    double number;
    if (node->kind == YAML_SCALAR && !node->quoted && text_parse_double(node->text, &number)) {
        if (!*option->range) return mismatch(where, option, node);
        TRY(parse_number(&list.share, option, node, where));
        *out = list;
        return OK;
    }
    if (yaml_is_null(node)) return mismatch(where, option, node);
    const YamlNode *first = node->kind == YAML_SEQUENCE ? node->children : node;
    list.n = node->kind == YAML_SEQUENCE ? node->n_children : 1;
    ARENA_TRY(list.items, arena, list.n);
    for (size_t i = 0; i < list.n; i++, first = first->next)
        TRY(set_source(&list.items[i], option, first, arena, name));
    *out = list;
    return OK;
}

int value_set(void *base, const Option *option, const YamlNode *node, Arena *arena, const char *name,
              const char *where) {
    void *field = (char *)base + option->offset;
    bool list = option->type == OPTION_STRINGS || option->type == OPTION_SOURCES;
    if (!list && (node->kind != YAML_SCALAR || yaml_is_null(node))) return mismatch(where, option, node);
    if (option->type == OPTION_STRINGS && (node->kind == YAML_MAPPING || yaml_is_null(node)))
        return mismatch(where, option, node);
    switch (option->type) {
    case OPTION_BOOL:
        return parse_bool(field, option, node, where);
    case OPTION_INT:
        return parse_int(field, option, node, where);
    case OPTION_REAL:
        return parse_number(field, option, node, where);
    case OPTION_STRING:
    case OPTION_PATH:
        return copy_text(field, arena, node->text);
    case OPTION_CHOICE: {
        int index = option_choice_index(option, node->text);
        if (index < 0) return mismatch(where, option, node);
        *(int *)field = index;
        return OK;
    }
    case OPTION_STRINGS:
        return set_strings(field, option, node, arena, where);
    case OPTION_SOURCES:
        return set_sources(field, option, node, arena, name, where);
    }
    FAIL(ERR_FAILED, "%s: unknown option type %d", option->key, (int)option->type);
}

int value_default(void *base, const Option *option, Arena *arena) {
    void *field = (char *)base + option->offset;
    const char *text = option->default_text;
    if (!*text && option->type == OPTION_STRINGS) {
        *(ConfigStrings *)field = (ConfigStrings){0};
        return OK;
    }
    if (!*text && option->type == OPTION_SOURCES) {
        *(ConfigSources *)field = (ConfigSources){0};
        return OK;
    }
    if (!*text && (option->type == OPTION_STRING || option->type == OPTION_PATH)) {
        *(const char **)field = "";
        return OK;
    }
    YamlNode node = {.kind = YAML_SCALAR, .text = text};
    return value_set(base, option, &node, arena, "default", "default");
}

int source_defaults(ConfigSource *source, Arena *arena) {
    for (size_t i = 0; i < source_table_length; i++) TRY(value_default(source, &source_table[i], arena));
    return OK;
}

void value_where(char out[WHERE_SIZE], const char *name, int line, int column) {
    if (line > 0)
        snprintf(out, WHERE_SIZE, "%s:%d:%d", name, line, column);
    else
        snprintf(out, WHERE_SIZE, "%s", name);
}
