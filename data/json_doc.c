/* One pass over a copy of the text, which NULs follow, so that nothing looks beyond its end. A container that is not
 * closed yet keeps its parent's place in `span`. */
#include "data/json_doc.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/text.h"

enum {
    PADDING = 8,              /* NULs behind the text: a word is read at a time */
    FEW_MEMBERS = 16,         /* compared each with each */
    SAFE_DIGITS = 300,        /* an integer of so many is within a double's range */
    MAX_KEPT_BYTES = 1 << 24, /* what a giant text left behind is given back */
    MAX_KEPT_NODES = 1 << 19
};
#define NO_PARENT SIZE_MAX

typedef struct {
    JsonDoc *doc;
    const char *source; /* the text as it was given */
    char *at;           /* in the copy */
    size_t size, open;  /* `open`: the innermost container */
    int depth;
} Reader;

/* ---- errors -------------------------------------------------------------------------------------------------------
 */

/* At a place in the copy, which is the same one in the text. */
static int refuse(const Reader *reader, const char *place, const char *what) {
    size_t offset = (size_t)(place - reader->doc->bytes), line = 1, column = 1;
    for (size_t i = 0; i < offset && i < reader->size; i++) {
        unsigned char c = (unsigned char)reader->source[i];
        line += c == '\n';
        column = c == '\n' ? 1 : column + ((c & 0xc0) != 0x80);
    }
    if (line > 1) FAIL(ERR_REFUSED, "%s (its line %zu, column %zu)", what, line, column);
    FAIL(ERR_REFUSED, "%s (column %zu)", what, column);
}

static bool at_end(const Reader *reader, const char *place) {
    return place == reader->doc->bytes + reader->size;
}

static int refuse_byte(const Reader *reader, const char *place, const char *why) {
    char what[128];
    snprintf(what, sizeof what, "byte 0x%02x %s", (unsigned char)*place, why);
    return refuse(reader, place, what);
}

static int refuse_character(const Reader *reader, const char *place, const char *expected) {
    char what[128];
    unsigned char c = (unsigned char)*place;
    if (at_end(reader, place))
        snprintf(what, sizeof what, "the text ends where %s is expected", expected);
    else if (c > ' ' && c < 0x7f)
        snprintf(what, sizeof what, "'%c' was found where %s is expected", c, expected);
    else
        snprintf(what, sizeof what, "byte 0x%02x was found where %s is expected", c, expected);
    return refuse(reader, place, what);
}

/* ---- nodes --------------------------------------------------------------------------------------------------------
 */

static int add_node(Reader *reader, JsonNodeType type, const char *bytes, size_t size) {
    JsonDoc *doc = reader->doc;
    if (doc->n_nodes == doc->node_capacity) {
        size_t capacity = 2 * doc->node_capacity + 64;
        JsonNode *grown = realloc(doc->nodes, capacity * sizeof *grown);
        if (!grown) FAIL(ERR_FAILED, "out of memory for %zu values of JSON", capacity);
        doc->nodes = grown;
        doc->node_capacity = capacity;
    }
    doc->nodes[doc->n_nodes++] = (JsonNode){.bytes = bytes, .size = size, .span = 1, .type = type};
    return OK;
}

static int open_container(Reader *reader, JsonNodeType type) {
    TRY(add_node(reader, type, NULL, 0));
    reader->depth++;
    size_t index = reader->doc->n_nodes - 1;
    reader->doc->nodes[index].span = reader->open;
    reader->open = index;
    reader->at++;
    return OK;
}

static int compare_keys(const JsonNode *a, const JsonNode *b) {
    if (a->size != b->size) return a->size < b->size ? -1 : 1;
    return memcmp(a->bytes, b->bytes, a->size);
}

/* Equal keys in the order of the text. */
static int compare_members(const void *a, const void *b) {
    const JsonNode *x = *(const JsonNode *const *)a, *y = *(const JsonNode *const *)b;
    int order = compare_keys(x, y);
    return order != 0 ? order : (x > y) - (x < y);
}

static int find_repeated(const JsonNode *object, const JsonNode **repeated) {
    const JsonNode **keys = malloc(object->size * sizeof *keys), *key = json_node_first(object);
    if (!keys) FAIL(ERR_FAILED, "out of memory for an object of %zu members", object->size);
    for (size_t i = 0; i < object->size; i++, key = json_node_next(key + 1)) keys[i] = key;
    qsort(keys, object->size, sizeof(const JsonNode *), compare_members);
    for (size_t i = 1; i < object->size; i++)
        if (compare_keys(keys[i - 1], keys[i]) == 0 && (!*repeated || keys[i] < *repeated)) *repeated = keys[i];
    free(keys);
    return OK;
}

static int check_keys(const Reader *reader, const JsonNode *object) {
    const JsonNode *repeated = NULL;
    if (object->size > FEW_MEMBERS) {
        TRY(find_repeated(object, &repeated));
    } else {
        const JsonNode *end = json_node_end(object);
        for (const JsonNode *b = json_node_first(object); b < end && !repeated; b = json_node_next(b + 1))
            for (const JsonNode *a = json_node_first(object); a < b && !repeated; a = json_node_next(a + 1))
                if (compare_keys(a, b) == 0) repeated = b;
    }
    return repeated ? refuse(reader, repeated->bytes - 1, "duplicate key") : OK;
}

static int close_container(Reader *reader) {
    JsonDoc *doc = reader->doc;
    JsonNode *node = &doc->nodes[reader->open];
    reader->depth--;
    reader->at++;
    size_t parent = node->span;
    node->span = doc->n_nodes - reader->open;
    reader->open = parent;
    return node->type == NODE_OBJECT ? check_keys(reader, node) : OK;
}

/* ---- strings ------------------------------------------------------------------------------------------------------
 */

/* The first byte from p on that is not plain: a quote, a backslash, a control character, or not ASCII. */
static inline char *skip_plain(char *p) {
    const uint64_t ones = UINT64_MAX / 255, tops = ones * 0x80;
    for (;; p += sizeof ones) {
        uint64_t word;
        memcpy(&word, p, sizeof word);
        uint64_t quote = word ^ ones * '"', slash = word ^ ones * '\\';
        uint64_t found = (word - ones * ' ') | (quote - ones) | (slash - ones) | word;
        if ((found & tops) != 0) break; /* perhaps: a borrow may come from a byte that was found */
    }
    while ((unsigned char)*p >= ' ' && (unsigned char)*p < 0x80 && *p != '"' && *p != '\\') p++;
    return p;
}

/* Four hexadecimal digits; -1 where they are not. */
static int read_hex(const char *p) {
    int value = 0;
    for (int i = 0; i < 4; i++) {
        int c = (unsigned char)p[i], lower = c | 0x20;
        int digit = c >= '0' && c <= '9' ? c - '0' : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* What \u at `at` stands for, into `out`, which lies behind it. */
static int read_unicode_escape(Reader *reader, char **out, bool is_key) {
    int code = read_hex(reader->at + 2), low = -1;
    char *place = reader->at;
    if (code < 0) return refuse(reader, place, "\\u without four hexadecimal digits");
    reader->at += 6;
    if (code >= 0xd800 && code < 0xdc00 && reader->at[0] == '\\' && reader->at[1] == 'u')
        low = read_hex(reader->at + 2);
    if (low >= 0xdc00 && low < 0xe000) {
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        reader->at += 6;
    }
    if (code >= 0xd800 && code < 0xe000) return refuse(reader, place, "half of a surrogate pair");
    if (code == 0 && is_key) return refuse(reader, place, "U+0000 in a key");
    *out += utf8_encode(*out, (uint32_t)code);
    return OK;
}

static int read_escape(Reader *reader, char **out, bool is_key) {
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    char c = reader->at[1];
    if (c == 'u') return read_unicode_escape(reader, out, is_key);
    const char *letter = c ? strchr(letters, c) : NULL;
    if (!letter) return refuse(reader, reader->at, "a backslash with nothing that it may escape");
    *(*out)++ = meanings[letter - letters];
    reader->at += 2;
    return OK;
}

/* UTF-8 of more than one byte; anything else that is not plain is an error. */
static int read_character(Reader *reader, char **out) {
    uint32_t code;
    char *at = reader->at;
    unsigned char c = (unsigned char)*at;
    if (c < 0x80 && at_end(reader, at)) return refuse(reader, at, "the text ends within a string");
    if (c == '\n') return refuse(reader, at, "a line ends within a string");
    if (c < 0x80) return refuse_byte(reader, at, "in a string: a control character is written \\u00XX");
    int n = utf8_decode(at, reader->size - (size_t)(at - reader->doc->bytes), &code);
    if (n == 0) return refuse_byte(reader, at, "is not UTF-8");
    memmove(*out, at, (size_t)n);
    *out += n;
    reader->at += n;
    return OK;
}

static int read_string(Reader *reader, bool is_key) {
    char *begin = ++reader->at, *out = begin;
    for (;;) {
        char *end = skip_plain(reader->at);
        size_t n = (size_t)(end - reader->at);
        if (out != reader->at) memmove(out, reader->at, n);
        out += n;
        reader->at = end;
        if (*end == '"') break;
        if (*end == '\\')
            TRY(read_escape(reader, &out, is_key));
        else
            TRY(read_character(reader, &out));
    }
    reader->at++;
    *out = '\0';
    return add_node(reader, NODE_STRING, begin, (size_t)(out - begin));
}

/* ---- other values -------------------------------------------------------------------------------------------------
 */

static char *skip_digits(char *p) {
    while (*p >= '0' && *p <= '9') p++;
    return p;
}

static int read_number(Reader *reader) {
    char *begin = reader->at, *digits = begin + (*begin == '-'), *at = skip_digits(digits);
    if (at == digits) return refuse_character(reader, at, "a digit");
    if (*digits == '0' && at > digits + 1) return refuse(reader, begin, "a number that begins with 0");
    bool is_real = false;
    if (*at == '.') {
        char *fraction = at + 1;
        is_real = true;
        if ((at = skip_digits(fraction)) == fraction) return refuse_character(reader, at, "a digit");
    }
    if (*at == 'e' || *at == 'E') {
        char *exponent = at + 1 + (at[1] == '+' || at[1] == '-');
        is_real = true;
        if ((at = skip_digits(exponent)) == exponent) return refuse_character(reader, at, "a digit");
    }
    size_t size = (size_t)(at - begin);
    if ((is_real || size > SAFE_DIGITS) && isinf(strtod(begin, NULL)))
        return refuse(reader, begin, "a number that is too large");
    reader->at = at;
    return add_node(reader, is_real ? NODE_REAL : NODE_INTEGER, begin, size);
}

static int read_word(Reader *reader) {
    static const struct {
        const char *word;
        JsonNodeType type;
    } words[] = {{"null", NODE_NULL}, {"true", NODE_TRUE}, {"false", NODE_FALSE}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i].word);
        if (strncmp(reader->at, words[i].word, n) != 0) continue;
        reader->at += n;
        return add_node(reader, words[i].type, NULL, 0);
    }
    return refuse_character(reader, reader->at, "a value");
}

/* ---- the whole ----------------------------------------------------------------------------------------------------
 */

static inline void skip_space(Reader *reader) {
    while (*reader->at == ' ' || *reader->at == '\n' || *reader->at == '\t' || *reader->at == '\r') reader->at++;
}

/* A value; of a container its beginning. */
static int read_value(Reader *reader) {
    char c = *reader->at;
    if (reader->depth == JSON_DOC_DEPTH) return refuse(reader, reader->at, "more than 2048 values within each other");
    if (c == '"') return read_string(reader, false);
    if (c == '{') return open_container(reader, NODE_OBJECT);
    if (c == '[') return open_container(reader, NODE_ARRAY);
    if (c == '-' || (c >= '0' && c <= '9')) return read_number(reader);
    return read_word(reader);
}

static int read_key(Reader *reader) {
    if (*reader->at != '"') return refuse_character(reader, reader->at, "a key in quotes");
    TRY(read_string(reader, true));
    skip_space(reader);
    if (*reader->at != ':') return refuse_character(reader, reader->at, "':'");
    reader->at++;
    skip_space(reader);
    return OK;
}

/* In the innermost container, the next member or element, or the container's end. */
static int read_within(Reader *reader) {
    JsonNode *open = &reader->doc->nodes[reader->open];
    bool is_object = open->type == NODE_OBJECT;
    if (*reader->at == (is_object ? '}' : ']')) return close_container(reader);
    if (open->size > 0) {
        if (*reader->at != ',') return refuse_character(reader, reader->at, is_object ? "',' or '}'" : "',' or ']'");
        reader->at++;
        skip_space(reader);
    }
    open->size++;
    if (is_object) TRY(read_key(reader));
    return read_value(reader);
}

static int read_document(Reader *reader) {
    skip_space(reader);
    TRY(read_value(reader));
    for (;;) {
        skip_space(reader);
        if (reader->open == NO_PARENT) break;
        TRY(read_within(reader));
    }
    return at_end(reader, reader->at) ? OK : refuse_character(reader, reader->at, "the end");
}

static int copy_text(JsonDoc *doc, const char *json, size_t size) {
    if (doc->capacity > MAX_KEPT_BYTES || doc->node_capacity > MAX_KEPT_NODES) json_doc_free(doc);
    if (!doc->bytes || doc->capacity < size + PADDING) {
        size_t capacity = size + size / 2 + PADDING;
        free(doc->bytes);
        doc->bytes = malloc(capacity);
        doc->capacity = doc->bytes ? capacity : 0;
        if (!doc->bytes) FAIL(ERR_FAILED, "out of memory for %zu bytes of JSON", size);
    }
    if (size > 0) memcpy(doc->bytes, json, size);
    memset(doc->bytes + size, 0, PADDING);
    doc->n_nodes = 0;
    return OK;
}

int json_doc_read(JsonDoc *doc, const char *json, size_t size) {
    TRY(copy_text(doc, json, size));
    Reader reader = {.doc = doc, .source = json, .at = doc->bytes, .size = size, .open = NO_PARENT};
    return read_document(&reader);
}

void json_doc_free(JsonDoc *doc) {
    free(doc->bytes);
    free(doc->nodes);
    doc->bytes = NULL;
    doc->nodes = NULL;
    doc->capacity = doc->n_nodes = doc->node_capacity = 0;
}

/* ---- asking -------------------------------------------------------------------------------------------------------
 */

const char *json_node_type_name(const JsonNode *node) {
    static const char *const names[] = {"null",     "false",    "true",     "a number",
                                        "a number", "a string", "an array", "an object"};
    return node ? names[node->type] : "nothing";
}

size_t json_node_count(const JsonNode *node) {
    return json_node_is(node, NODE_ARRAY) || json_node_is(node, NODE_OBJECT) ? node->size : 0;
}

const JsonNode *json_node_member(const JsonNode *object, const char *key) {
    if (!json_node_is(object, NODE_OBJECT)) return NULL;
    size_t size = strlen(key);
    const JsonNode *end = json_node_end(object);
    for (const JsonNode *at = json_node_first(object); at < end; at = json_node_next(at + 1))
        if (at->size == size && memcmp(at->bytes, key, size) == 0) return at + 1;
    return NULL;
}

const JsonNode *json_node_element(const JsonNode *array, size_t index) {
    if (!json_node_is(array, NODE_ARRAY) || index >= array->size) return NULL;
    const JsonNode *at = json_node_first(array);
    for (size_t i = 0; i < index; i++) at = json_node_next(at);
    return at;
}

double json_node_number(const JsonNode *node) {
    return json_node_is_number(node) ? strtod(node->bytes, NULL) : 0;
}
