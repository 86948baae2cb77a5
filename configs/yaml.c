/* libfyaml's events -> a tree. The bytes are checked first (size, UTF-8, no control characters), so that every error
 * has a line and a column of ours, and the depth is bounded here, on a stack of fixed size. */
#include "configs/yaml.h"

#include <libfyaml.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/text.h"

typedef struct {
    Arena *arena;
    const char *name;
    struct fy_diag *diag; /* collects libfyaml's messages, which it would print itself */
    struct fy_parser *parser;
    YamlNode *root;
    YamlNode *open[YAML_MAX_DEPTH]; /* containers not yet closed, outermost first */
    YamlNode *last[YAML_MAX_DEPTH]; /* the latest entry of each */
    int depth;
    const char *key; /* of the entry to come, when a mapping is open */
    int key_line, key_column;
    int documents;
} Builder;

/* libfyaml 0.7.12 leaks memory on nine and more doubled quotes in a row in a single-quoted text. */
enum { MOST_QUOTES = 8 };

static int check_bytes(const char *name, const char *bytes, size_t size) {
    if (size > YAML_MAX_BYTES)
        FAIL(ERR_USAGE, "%s: %zu bytes; a config has at most %d. Is this the right file?", name, size, YAML_MAX_BYTES);
    int line = 1, column = 1, length, quotes = 0;
    for (size_t i = 0; i < size; i += (size_t)length) {
        uint32_t code;
        length = utf8_decode(bytes + i, size - i, &code);
        if (length == 0)
            FAIL(ERR_USAGE, "%s:%d:%d: byte 0x%02x is not valid UTF-8; save the file as UTF-8", name, line, column,
                 (unsigned)(unsigned char)bytes[i]);
        bool space = code == '\t' || code == '\n' || code == '\r';
        if ((code < 0x20 && !space) || (code >= 0x7f && code < 0xa0 && code != 0x85) || code == 0xfffe ||
            code == 0xffff)
            FAIL(ERR_USAGE, "%s:%d:%d: control character U+%04X; a config is plain text", name, line, column,
                 (unsigned)code);
        quotes = code == '\'' ? quotes + 1 : 0;
        if (quotes > MOST_QUOTES)
            FAIL(ERR_USAGE, "%s:%d:%d: a run of single quotes; write this text in double quotes", name, line, column);
        column++;
        if (code == '\n') {
            line++;
            column = 1;
        }
    }
    return OK;
}

static int refuse(const Builder *builder, int line, int column, const char *what) {
    FAIL(ERR_USAGE, "%s:%d:%d: %s", builder->name, line, column, what);
}

/* A tab that indents is YAML's commonest trap; libfyaml's words for it vary with the place. */
static bool tab_indents(const char *bytes, size_t size, int line, int *column) {
    size_t at = 0;
    for (int l = 1; l < line && at < size; at++) l += bytes[at] == '\n';
    for (*column = 1; at < size && (bytes[at] == ' ' || bytes[at] == '\t'); at++, ++*column)
        if (bytes[at] == '\t') return true;
    return false;
}

static int syntax_error(const Builder *builder, const char *bytes, size_t size) {
    void *previous = NULL;
    const struct fy_diag_error *error = fy_diag_errors_iterate(builder->diag, &previous);
    int line = error && error->line > 0 ? error->line : 1, column = error && error->column > 0 ? error->column : 1;
    int tab_column;
    const char *message = error && error->msg ? error->msg : "not valid YAML";
    if (tab_indents(bytes, size, line, &tab_column)) {
        message = "the line is indented with a tab; YAML allows spaces only";
        column = tab_column;
    }
    return refuse(builder, line, column, message);
}

static int copy_text(const Builder *builder, const char **out, struct fy_token *token, int line, int column) {
    size_t length = 0;
    const char *text = token ? fy_token_get_text(token, &length) : "";
    if (!text) length = 0;
    if (length && memchr(text, '\0', length)) return refuse(builder, line, column, "the text contains a NUL character");
    char *copy;
    ARENA_TRY(copy, builder->arena, length + 1);
    if (length) memcpy(copy, text, length);
    *out = copy;
    return OK;
}

/* Puts a node under the innermost open container, or at the root. */
static int attach(Builder *builder, YamlNode *node) {
    if (builder->depth == 0) {
        builder->root = node;
        return OK;
    }
    int top = builder->depth - 1;
    YamlNode *parent = builder->open[top];
    if (parent->kind == YAML_MAPPING) {
        node->key = builder->key;
        node->key_line = builder->key_line;
        node->key_column = builder->key_column;
        builder->key = NULL;
    }
    if (builder->last[top])
        builder->last[top]->next = node;
    else
        parent->children = node;
    builder->last[top] = node;
    parent->n_children++;
    return OK;
}

static bool wants_key(const Builder *builder) {
    return builder->depth > 0 && builder->open[builder->depth - 1]->kind == YAML_MAPPING && !builder->key;
}

static int add_scalar(Builder *builder, const struct fy_event_scalar_data *scalar, int line, int column) {
    const char *text = NULL;
    enum fy_scalar_style style = scalar->value ? fy_token_scalar_style(scalar->value) : FYSS_PLAIN;
    if (style == FYSS_SINGLE_QUOTED || style == FYSS_DOUBLE_QUOTED) column--; /* libfyaml's mark is behind the quote */
    TRY(copy_text(builder, &text, scalar->value, line, column));
    if (wants_key(builder)) {
        if (strcmp(text, "<<") == 0) return refuse(builder, line, column, "merge keys ('<<') are not supported here");
        for (const char *at = text; *at; at++)
            if ((unsigned char)*at < 0x20) return refuse(builder, line, column, "a key must be a plain word");
        builder->key = text;
        builder->key_line = line;
        builder->key_column = column;
        return OK;
    }
    YamlNode *node;
    ARENA_TRY(node, builder->arena, 1);
    *node = (YamlNode){.kind = YAML_SCALAR, .line = line, .column = column, .text = text};
    node->quoted = style != FYSS_PLAIN;
    return attach(builder, node);
}

static int open_container(Builder *builder, YamlKind kind, int line, int column) {
    if (wants_key(builder)) return refuse(builder, line, column, "a key must be a plain word, not a list or mapping");
    if (builder->depth == YAML_MAX_DEPTH)
        FAIL(ERR_USAGE, "%s:%d:%d: nested more than %d deep", builder->name, line, column, YAML_MAX_DEPTH);
    YamlNode *node;
    ARENA_TRY(node, builder->arena, 1);
    *node = (YamlNode){.kind = kind, .line = line, .column = column};
    TRY(attach(builder, node));
    builder->open[builder->depth] = node;
    builder->last[builder->depth++] = NULL;
    return OK;
}

static int take_event(Builder *builder, struct fy_event *event) {
    const struct fy_mark *mark = fy_event_start_mark(event);
    int line = mark ? mark->line + 1 : 1, column = mark ? mark->column + 1 : 1;
    if (event->type == FYET_ALIAS || fy_event_get_anchor_token(event))
        return refuse(builder, line, column,
                      "anchors and aliases (&name, *name) are not supported; write the value out "
                      "(in quotes, if it is meant to begin with & or *)");
    if (fy_event_get_tag_token(event))
        return refuse(builder, line, column, "tags (!name) are not supported; write the plain value");
    switch (event->type) {
    case FYET_DOCUMENT_START:
        if (builder->documents++ > 0)
            return refuse(builder, line, column, "a second document begins here ('---'); a config is one document");
        return OK;
    case FYET_SCALAR:
        return add_scalar(builder, &event->scalar, line, column);
    case FYET_SEQUENCE_START:
        return open_container(builder, YAML_SEQUENCE, line, column);
    case FYET_MAPPING_START:
        return open_container(builder, YAML_MAPPING, line, column);
    case FYET_SEQUENCE_END:
    case FYET_MAPPING_END:
        if (builder->depth > 0) builder->depth--;
        return OK;
    default:
        return OK;
    }
}

static int take_events(Builder *builder, const char *bytes, size_t size) {
    struct fy_event *event;
    while ((event = fy_parser_parse(builder->parser)) != NULL) {
        int rc = take_event(builder, event);
        fy_parser_event_free(builder->parser, event);
        TRY(rc);
    }
    if (fy_parser_get_stream_error(builder->parser)) return syntax_error(builder, bytes, size);
    return OK;
}

int yaml_parse(YamlNode **root, Arena *arena, const char *name, const char *bytes, size_t size) {
    *root = NULL;
    TRY(check_bytes(name, bytes, size));
    struct fy_diag_cfg quiet;
    fy_diag_cfg_default(&quiet);
    quiet.fp = NULL;
    Builder builder = {.arena = arena, .name = name, .diag = fy_diag_create(&quiet)};
    struct fy_parse_cfg options = {.flags = FYPCF_QUIET | FYPCF_DEFAULT_VERSION_1_2 | FYPCF_JSON_NONE,
                                   .diag = builder.diag};
    if (builder.diag) {
        fy_diag_set_collect_errors(builder.diag, true);
        builder.parser = fy_parser_create(&options);
    }
    int rc = OK;
    if (!builder.parser)
        rc = error_set(ERR_FAILED, __FILE__, __LINE__, "%s: libfyaml could not start (out of memory?)", name);
    else if (size && fy_parser_set_string(builder.parser, bytes, size) != 0)
        rc = refuse(&builder, 1, 1, "libfyaml could not read it");
    else if (size)
        rc = take_events(&builder, bytes, size);
    if (builder.parser) fy_parser_destroy(builder.parser);
    if (builder.diag) fy_diag_destroy(builder.diag);
    if (rc == OK) *root = builder.root;
    return rc;
}

bool yaml_is_null(const YamlNode *node) {
    if (node->kind != YAML_SCALAR || node->quoted) return false;
    const char *text = node->text;
    return strcmp(text, "") == 0 || strcmp(text, "~") == 0 || strcmp(text, "null") == 0 || strcmp(text, "Null") == 0 ||
           strcmp(text, "NULL") == 0;
}

/* 'text', shortened, on one line. */
static void quote(const char *text, char *out, size_t size) {
    enum { LONGEST = 60 };
    size_t used = 1, length = strlen(text);
    uint32_t code;
    if (size < 16) return;
    out[0] = '\'';
    for (size_t i = 0, n; i < length; i += n) {
        n = (size_t)utf8_decode(text + i, length - i, &code);
        if (n == 0) n = 1; /* not from a file: those are checked */
        if (i >= LONGEST || used + n + 5 > size) {
            memcpy(out + used, "...", 3);
            used += 3;
            break;
        }
        for (size_t k = 0; k < n; k++) out[used++] = (char)((unsigned char)text[i + k] < 0x20 ? ' ' : text[i + k]);
    }
    out[used++] = '\'';
    out[used] = '\0';
}

const char *yaml_describe(const YamlNode *node, char *out, size_t size) {
    if (node->kind == YAML_MAPPING)
        snprintf(out, size, "a section with %zu keys", node->n_children);
    else if (node->kind == YAML_SEQUENCE)
        snprintf(out, size, "a list of %zu", node->n_children);
    else if (yaml_is_null(node))
        snprintf(out, size, "nothing");
    else
        quote(node->text, out, size);
    return out;
}
