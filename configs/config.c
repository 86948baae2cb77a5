/* Filling a Config: defaults, a YAML file, key=value arguments. */
#include "configs/config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "configs/values.h"
#include "model/core/error.h"
#include "model/core/file.h"

enum { KEY_SIZE = 256 };

int config_new(Config **out) {
    *out = NULL;
    Config *config = calloc(1, sizeof *config);
    ConfigPrivate *hidden = calloc(1, sizeof *hidden);
    if (!config || !hidden) {
        free(config);
        free(hidden);
        FAIL(ERR_FAILED, "out of memory for a config");
    }
    config->hidden = hidden;
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        int rc = value_default(config, &option_table[i], &hidden->arena);
        if (rc != OK) {
            config_free(config);
            return error_trace(rc, __FILE__, __LINE__);
        }
    }
    *out = config;
    return OK;
}

void config_free(Config *config) {
    if (!config) return;
    arena_free(&config->hidden->arena);
    free(config->hidden);
    free(config);
}

static const Option *find_option(const char *key) {
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if (strcmp(option_table[i].key, key) == 0) return &option_table[i];
    return NULL;
}

bool config_has_key(const char *key) {
    return find_option(key) != NULL;
}

/* Whether options exist under "key.": "model", "model.rope_scaling". */
static bool is_section(const char *key) {
    size_t n = strlen(key);
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if (strncmp(option_table[i].key, key, n) == 0 && option_table[i].key[n] == '.') return true;
    return false;
}

static const char *last_part(const char *key) {
    const char *dot = strrchr(key, '.');
    return dot ? dot + 1 : key;
}

/* The option or section the user may have meant: a near spelling, else the same last word in another section. */
static bool suggest(const char *key, char out[KEY_SIZE]) {
    enum { MOST = 3 * OPTION_COUNT };
    char sections[MOST][64];
    const char *names[MOST];
    size_t n = 0;
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        names[n++] = option_table[i].key;
        for (const char *dot = option_table[i].key; n < MOST && (dot = strchr(dot, '.')) != NULL; dot++) {
            snprintf(sections[n], sizeof sections[n], "%.*s", (int)(dot - option_table[i].key), option_table[i].key);
            names[n] = sections[n];
            n++;
        }
    }
    const char *nearest = text_nearest(key, names, n);
    for (size_t i = 0; !nearest && i < OPTION_COUNT; i++)
        if (strcmp(last_part(option_table[i].key), last_part(key)) == 0) nearest = option_table[i].key;
    if (nearest) snprintf(out, KEY_SIZE, "%s", nearest);
    return nearest != NULL;
}

/* " (optim has: lr, beta1, …)" for an unknown key in a known section. */
static void list_section(const char *key, Text *out) {
    int n = (int)(last_part(key) - key);
    if (n == 0) return;
    const char *separator = "";
    text_printf(out, " (%.*s has: ", n - 1, key);
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if (strncmp(option_table[i].key, key, (size_t)n) == 0) {
            text_printf(out, "%s%s", separator, option_table[i].key + n);
            separator = ", ";
        }
    text_puts(out, ")");
}

static int unknown_key(const char *where, const char *key) {
    char nearest[KEY_SIZE];
    if (suggest(key, nearest))
        FAIL(ERR_USAGE, "%s: there is no option '%.200s'; did you mean '%s'?", where, key, nearest);
    char section[KEY_SIZE];
    snprintf(section, sizeof section, "%.*s", last_part(key) > key ? (int)(last_part(key) - key) - 1 : 0, key);
    Text keys = {0};
    if (is_section(section)) list_section(key, &keys);
    error_set(ERR_USAGE, __FILE__, __LINE__, "%s: there is no option '%.200s'%s; 'cria help options' lists all", where,
              key, keys.bytes ? keys.bytes : "");
    text_free(&keys);
    return ERR_USAGE;
}

static int set_option(Config *config, const Option *option, const YamlNode *node, const char *name, const char *where) {
    ConfigPrivate *hidden = config->hidden;
    TRY(value_set(config, option, node, &hidden->arena, name, where));
    const char *copy = arena_strdup(&hidden->arena, where);
    if (!copy) FAIL(ERR_FAILED, "out of memory for the place of %s", option->key);
    hidden->where[option - option_table] = copy;
    return OK;
}

static int check_not_twice(const YamlNode *section, const YamlNode *entry, const char *name, const char *key) {
    for (const YamlNode *earlier = section->children; earlier != entry; earlier = earlier->next)
        if (strcmp(earlier->key, entry->key) == 0)
            FAIL(ERR_USAGE, "%s:%d:%d: '%.200s' is given twice; the first is in line %d", name, entry->key_line,
                 entry->key_column, key, earlier->key_line);
    return OK;
}

/* The entries of a mapping whose keys begin with `prefix` ("" or "model."). As deep as the YAML tree: bounded there. */
static int load_section(Config *config, const YamlNode *section, const char *prefix, const char *name) {
    for (const YamlNode *entry = section->children; entry; entry = entry->next) {
        char key[KEY_SIZE], where[WHERE_SIZE], found[96];
        value_where(where, name, entry->key_line, entry->key_column);
        int length = snprintf(key, sizeof key, "%s%s", prefix, entry->key);
        if (length < 0 || (size_t)length >= sizeof key) FAIL(ERR_USAGE, "%s: a key of %d bytes", where, length);
        const Option *option = find_option(key);
        if (!option && !is_section(key)) return unknown_key(where, key);
        TRY(check_not_twice(section, entry, name, key));
        if (option) {
            value_where(where, name, entry->line, entry->column);
            TRY(set_option(config, option, entry, name, where));
        } else if (entry->kind == YAML_MAPPING) {
            char deeper[KEY_SIZE + 1];
            snprintf(deeper, sizeof deeper, "%s.", key);
            TRY(load_section(config, entry, deeper, name));
        } else if (!yaml_is_null(entry)) {
            Text keys = {0};
            strncat(key, ".", sizeof key - strlen(key) - 1);
            list_section(key, &keys);
            key[strlen(key) - 1] = '\0';
            error_set(ERR_USAGE, __FILE__, __LINE__, "%s: '%s' is a section, not %s%s", where, key,
                      yaml_describe(entry, found, sizeof found), keys.bytes ? keys.bytes : "");
            text_free(&keys);
            return ERR_USAGE;
        }
    }
    return OK;
}

int config_apply(Config *config, const YamlNode *mapping, const char *name) {
    return load_section(config, mapping, "", name);
}

int config_parse(Config *config, const char *name, const char *bytes, size_t size) {
    Arena arena = {0};
    YamlNode *root;
    int rc = OK;
    TRY_TO(done, yaml_parse(&root, &arena, name, bytes, size));
    if (!root || yaml_is_null(root)) goto done; /* empty: all defaults */
    if (root->kind != YAML_MAPPING)
        FAIL_TO(done, ERR_USAGE, "%s:%d:%d: a config is a mapping, 'key: value' lines; this is %s", name, root->line,
                root->column, root->kind == YAML_SEQUENCE ? "a list" : "a single text");
    TRY_TO(done, load_section(config, root, "", name));
done:
    arena_free(&arena);
    return rc;
}

int config_load(Config *config, const char *path) {
    char *bytes;
    size_t size;
    if (file_read(&bytes, &size, path, YAML_MAX_BYTES) != OK) return error_context(ERR_USAGE, "reading the config");
    int rc = config_parse(config, path, bytes, size);
    free(bytes);
    return rc;
}

int config_set(Config *config, const char *key, const char *value, const char *where) {
    const Option *option = find_option(key);
    if (!option && is_section(key))
        FAIL(ERR_USAGE, "%s: '%s' is a section; name one of its keys, as in optim.lr=1e-3", where, key);
    if (!option) return unknown_key(where, key);
    size_t length = strlen(value);
    uint32_t code;
    for (size_t i = 0, n; i < length; i += n)
        if ((n = (size_t)utf8_decode(value + i, length - i, &code)) == 0)
            FAIL(ERR_USAGE, "%s: %s: the value is not valid UTF-8", where, key);
    bool list = option->type == OPTION_STRINGS || option->type == OPTION_SOURCES;
    if (!list || (*value != '[' && *value != '{')) {
        bool text = option->type == OPTION_STRING || option->type == OPTION_PATH || option->type == OPTION_STRINGS;
        YamlNode node = {.kind = YAML_SCALAR, .text = value, .quoted = text};
        return set_option(config, option, &node, where, where);
    }
    Arena arena = {0};
    YamlNode *root;
    int rc = OK;
    TRY_TO(done, yaml_parse(&root, &arena, where, value, length));
    TRY_TO(done, set_option(config, option, root, where, where));
done:
    arena_free(&arena);
    return rc;
}

int config_copy_option(Config *config, const Config *from, OptionId id) {
    const Option *option = &option_table[id];
    Arena arena = {0};
    YamlNode *root;
    Text text = {0};
    int rc = OK;
    TRY_TO(done, config_value_text(from, id, &text));
    TRY_TO(done, yaml_parse(&root, &arena, option->key, text.bytes, text.length));
    TRY_TO(done, set_option(config, option, root, option->key, config_where(from, id)));
done:
    text_free(&text);
    arena_free(&arena);
    return rc;
}

int config_override(Config *config, char *const *args, int n, int first_position) {
    for (int i = 0; i < n; i++) {
        char where[WHERE_SIZE], key[KEY_SIZE];
        const char *equals = strchr(args[i], '=');
        snprintf(where, sizeof where, "argument %d (%.200s)", first_position + i, args[i]);
        if (!equals) FAIL(ERR_USAGE, "%s: expected key=value, as in optim.lr=1e-3", where);
        snprintf(key, sizeof key, "%.*s", (int)(equals - args[i] > KEY_SIZE ? KEY_SIZE : equals - args[i]), args[i]);
        TRY(config_set(config, key, equals + 1, where));
    }
    return OK;
}

int config_set_text(Config *config, OptionId id, const char *text) {
    const Option *option = &option_table[id];
    if (option->type != OPTION_STRING && option->type != OPTION_PATH)
        FAIL(ERR_FAILED, "%s is not a text option", option->key);
    YamlNode node = {.kind = YAML_SCALAR, .text = text, .quoted = true};
    TRY(value_set(config, option, &node, &config->hidden->arena, "", ""));
    return OK;
}

bool config_is_set(const Config *config, OptionId id) {
    return config->hidden->where[id] != NULL;
}

const char *config_where(const Config *config, OptionId id) {
    return config->hidden->where[id] ? config->hidden->where[id] : "default";
}

int config_fail(const Config *config, OptionId id, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    FAIL(ERR_USAGE, "%s: %s: %s", config_where(config, id), option_table[id].key, text);
}
