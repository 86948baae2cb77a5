/* The reader of records' JSON beside Jansson: of cases by hand, of generated texts and of damaged ones it takes those
 * that Jansson takes, and says the same values. What it refuses has a line and a column. */
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "data/json_doc.h"
#include "model/core/error.h"
#include "model/core/philox.h"
#include "model/core/text.h"
#include "tests/check_main.h"

/* ---- the same values ------------------------------------------------------------------------------------------------
 */

static bool same_value(const JsonNode *node, const json_t *value);

static bool same_object(const JsonNode *node, const json_t *object) {
    if (node->type != NODE_OBJECT || node->size != json_object_size(object)) return false;
    const JsonNode *key = json_node_first(node);
    void *at = json_object_iter((json_t *)(uintptr_t)object); /* in the order of the text */
    for (; at; at = json_object_iter_next((json_t *)(uintptr_t)object, at), key = json_node_next(key + 1)) {
        if (strcmp(json_object_iter_key(at), key->bytes) != 0 || strlen(key->bytes) != key->size) return false;
        if (!same_value(key + 1, json_object_iter_value(at))) return false;
        if (node->size < 100 && json_node_member(node, key->bytes) != key + 1) return false;
    }
    return key == json_node_end(node);
}

static bool same_array(const JsonNode *node, const json_t *array) {
    if (node->type != NODE_ARRAY || node->size != json_array_size(array)) return false;
    const JsonNode *element = json_node_first(node);
    for (size_t i = 0; i < node->size; i++, element = json_node_next(element))
        if (!same_value(element, json_array_get(array, i)) || json_node_element(node, i) != element) return false;
    return element == json_node_end(node);
}

static bool same_value(const JsonNode *node, const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return same_object(node, value);
    case JSON_ARRAY:
        return same_array(node, value);
    case JSON_STRING:
        return node->type == NODE_STRING && node->size == json_string_length(value) && !node->bytes[node->size] &&
               memcmp(node->bytes, json_string_value(value), node->size) == 0;
    case JSON_INTEGER:
        return node->type == NODE_INTEGER && strtoll(node->bytes, NULL, 10) == json_integer_value(value);
    case JSON_REAL: /* Jansson was asked for reals where an integer has more than 64 bits */
        return json_node_is_number(node) && json_node_number(node) == json_real_value(value);
    case JSON_TRUE:
        return node->type == NODE_TRUE;
    case JSON_FALSE:
        return node->type == NODE_FALSE;
    default:
        return node->type == NODE_NULL;
    }
}

static json_t *read_by_jansson(const char *json, size_t size) {
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY;
    json_error_t where;
    json_t *value = json_loadb(json, size, flags, &where);
    if (!value && json_error_code(&where) == json_error_numeric_overflow)
        value = json_loadb(json, size, flags | JSON_DECODE_INT_AS_REAL, &where);
    return value;
}

/* Whether both take it. */
static bool check(JsonDoc *doc, const char *json, size_t size) {
    char *copy = malloc(size ? size : 1); /* no NUL follows: who reads on is caught by the sanitizer */
    memcpy(copy, json, size);
    /* a NUL behind the value is the end to Jansson; JSON has none */
    json_t *value = memchr(copy, 0, size) ? NULL : read_by_jansson(copy, size);
    int rc = json_doc_read(doc, copy, size);
    if ((rc == OK) != (value != NULL) || (value && !same_value(doc->nodes, value)))
        ck_abort_msg("Jansson %s, and json_doc %s%s: %.*s", value ? "takes it" : "refuses it",
                     rc == OK ? "takes it" : "refuses it: ", rc == OK ? "" : error_text(), (int)size, json);
    if (rc != OK) ck_assert_ptr_nonnull(strstr(error_text(), "column "));
    error_clear();
    json_decref(value);
    free(copy);
    return rc == OK;
}

/* ---- by hand --------------------------------------------------------------------------------------------------------
 */

START_TEST(awkward_texts_are_taken_and_refused_as_by_jansson) {
    static const char *const texts[] = {"",
                                        " ",
                                        "{}",
                                        "[]",
                                        "{\"a\":1}",
                                        "{\"a\":1,}",
                                        "[1,]",
                                        "[,1]",
                                        "[1 2]",
                                        "{\"a\" 1}",
                                        "{\"a\":}",
                                        "{a:1}",
                                        "{'a':1}",
                                        "{\"a\":1,\"a\":2}",
                                        "{\"a\":1,\"\\u0061\":2}",
                                        "{\"\":1,\"\":2}",
                                        "{\"a\\u0000\":1}",
                                        "[\"a\\u0000b\"]",
                                        "{} {}",
                                        "{}x",
                                        "0",
                                        "-0",
                                        "-",
                                        "01",
                                        "-01",
                                        "1.",
                                        ".5",
                                        "1.5",
                                        "1e5",
                                        "1e",
                                        "1e+",
                                        "1E-5",
                                        "1e400",
                                        "-1e400",
                                        "1e-400",
                                        "+1",
                                        "0x10",
                                        "9223372036854775807",
                                        "9223372036854775808",
                                        "-9223372036854775809",
                                        "123456789012345678901234567890",
                                        "NaN",
                                        "Infinity",
                                        "true",
                                        "tru",
                                        "truex",
                                        "nulll",
                                        "True",
                                        "\"\\ud83e\\udd99\"",
                                        "\"\\ud83e\"",
                                        "\"\\ud83ex\"",
                                        "\"\\ud83e\\u0041\"",
                                        "\"\\udd99\"",
                                        "\"\\u12\"",
                                        "\"\\u12g4\"",
                                        "\"\\U1234\"",
                                        "\"\\x41\"",
                                        "\"\\\"",
                                        "\"\\",
                                        "\"",
                                        "\"a",
                                        "\"\t\"",
                                        "\"\n\"",
                                        "\"\x7f\"",
                                        "\"\xc3\xa9\"",
                                        "\"\xc3\"",
                                        "\"\xc0\x80\"",
                                        "\"\xed\xa0\x80\"",
                                        "\"\xf4\x90\x80\x80\"",
                                        "\"\xf0\x9f\xa6\x99\"",
                                        "\"\xff\"",
                                        "\xc3\xa9",
                                        "\xef\xbb\xbf{}",
                                        "[\"\\/\\b\\f\\n\\r\\t\\\"\\\\\"]",
                                        "\f{}",
                                        "{}\r\n\t ",
                                        "/* no */ {}",
                                        "[1]// no",
                                        "[[[]]]",
                                        "[[[]]",
                                        "[}",
                                        "{]",
                                        "[\"12345678\", \"1234567\", \"123456789\\n12345678\", \"\xc3\xa9"
                                        "1234567\xe2\x82\xac\"]"};
    JsonDoc doc = {0};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) check(&doc, texts[i], strlen(texts[i]));
    check(&doc, "[\"a\0b\"]", 7);
    check(&doc, "[1]\0", 4);
    check(&doc, "\0", 1);
    json_doc_free(&doc);
}
END_TEST

static void nest(Text *out, int depth, const char *innermost) {
    text_clear(out);
    for (int i = 0; i < depth; i++) text_puts(out, i % 2 ? "{\"a\":" : "[");
    text_puts(out, innermost);
    for (int i = depth; i-- > 0;) text_puts(out, i % 2 ? "}" : "]");
}

START_TEST(depth_ends_where_janssons_does) {
    JsonDoc doc = {0};
    Text text = {0};
    for (int depth = JSON_DOC_DEPTH - 3; depth < JSON_DOC_DEPTH + 3; depth++) {
        nest(&text, depth, depth % 2 ? "1" : "{}");
        ck_assert_int_eq(check(&doc, text.bytes, text.length), depth < JSON_DOC_DEPTH);
    }
    nest(&text, 1000000, "");
    ck_assert(!check(&doc, text.bytes, text.length));
    text_free(&text);
    json_doc_free(&doc);
}
END_TEST

START_TEST(large_objects_with_a_key_twice_are_refused) {
    JsonDoc doc = {0};
    for (int twice = 0; twice < 2; twice++) {
        Text text = {0};
        for (int i = 0; i < 100000; i++)
            text_printf(&text, "%c\"k%d\":%d", i ? ',' : '{', twice && i == 77777 ? 5 : i, i);
        text_puts(&text, "}");
        ck_assert_int_eq(check(&doc, text.bytes, text.length), !twice);
        text_free(&text);
    }
    json_doc_free(&doc);
}
END_TEST

START_TEST(errors_have_line_and_column) {
    static const struct {
        const char *json, *message;
    } bad[] = {{"{\"a\": 1,}", "'}' was found where a key in quotes is expected (column 9)"},
               {"{\"caf\xc3\xa9\": tru}", "'t' was found where a value is expected (column 10)"},
               {"{\n  \"a\": 1\n  \"b\": 2\n}", "'\"' was found where ',' or '}' is expected (its line 3, column 3)"},
               {"{\"a\": \"x", "the text ends within a string (column 9)"},
               {"{\"a\": \"x\ny\"}", "a line ends within a string (column 9)"},
               {"{\"a\": [1, 2}", "'}' was found where ',' or ']' is expected (column 12)"},
               {"{\"a\": 1, \"b\": 2, \"a\": 3}", "duplicate key (column 18)"},
               {"{\"a\": \"\\ud800\"}", "half of a surrogate pair (column 8)"},
               {"{\"a\": 1} x", "'x' was found where the end is expected (column 10)"}};
    JsonDoc doc = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_ERROR(json_doc_read(&doc, bad[i].json, strlen(bad[i].json)), ERR_REFUSED, bad[i].message);
    json_doc_free(&doc);
}
END_TEST

/* ---- generated ------------------------------------------------------------------------------------------------------
 */

enum { GENERATED = 30000, DAMAGED_OF_EACH = 8 };

static uint64_t state;
static size_t below(size_t n) { /* of Philox's stream: the same texts in every run */
    state++;
    return (size_t)(hash_bytes(&state, sizeof state, HASH_START) >> 11) % n;
}

static void put_space(Text *out) {
    static const char *const spaces[] = {"", "", "", " ", "\n", "\t \r\n"};
    text_puts(out, spaces[below(6)]);
}

static void put_string(Text *out) {
    static const char *const parts[] = {
        "a",       "bc d",    "0123456789",     "\\n",     "\\\"",     "\\\\",         "\\/",
        "\\u0041", "\\u00e9", "\\ud83e\\udd99", "\\u20ac", "\xc3\xa9", "\xe4\xbd\xa0", "\xf0\x9f\xa6\x99",
        "\x7f",    "{}[]:,",  "\\b\\f\\r\\t"};
    text_puts(out, "\"");
    for (size_t n = below(6); n > 0; n--) text_puts(out, parts[below(sizeof parts / sizeof *parts)]);
    text_puts(out, "\"");
}

static void put_number(Text *out) {
    static const char *const numbers[] = {
        "0", "-0", "7", "-12", "1.5", "-0.25", "1e3", "2E-7", "3.25e+10", "12345678901234567890", "1e308"};
    text_puts(out, numbers[below(sizeof numbers / sizeof *numbers)]);
}

static void put_value(Text *out, int depth) {
    size_t kind = below(depth > 0 ? 8 : 5);
    put_space(out);
    if (kind >= 5) {
        bool is_object = kind > 5;
        text_puts(out, is_object ? "{" : "[");
        for (size_t i = 0, n = below(5); i < n; i++) {
            if (i > 0) text_puts(out, ",");
            put_space(out);
            if (is_object) text_printf(out, "\"k%zu\"", below(10) == 0 ? 0 : i);
            if (is_object) put_space(out);
            if (is_object) text_puts(out, ":");
            put_value(out, depth - 1);
        }
        put_space(out);
        text_puts(out, is_object ? "}" : "]");
    } else if (kind >= 3) {
        put_string(out);
    } else if (kind == 2) {
        put_number(out);
    } else {
        static const char *const words[] = {"null", "true", "false"};
        text_puts(out, words[below(3)]);
    }
    put_space(out);
}

/* A byte or a few changed, taken out, put in or doubled. */
static void damage(Text *text) {
    static const char likely[] = "\"\\{}[]:,0123456789eE+-.tfnu \n\t\x01\x80\xc3\xed\xf4\xff";
    if (text->length == 0) return;
    size_t at = below(text->length), n = 1 + below(3);
    if (n > text->length - at) n = text->length - at;
    char *bytes = text->bytes;
    switch (below(4)) {
    case 0:
        bytes[at] = likely[below(sizeof likely)];
        break;
    case 1:
        bytes[at] = (char)below(256);
        break;
    case 2:
        memmove(bytes + at, bytes + at + n, text->length - at - n);
        text->length -= n;
        break;
    default: {
        char piece[4];
        memcpy(piece, bytes + at, n);
        text_append(text, piece, n); /* room */
        bytes = text->bytes;
        memmove(bytes + at + n, bytes + at, text->length - at - n);
        memcpy(bytes + at, piece, n);
    }
    }
}

START_TEST(generated_and_damaged_texts_are_read_as_by_jansson) {
    JsonDoc doc = {0};
    Text text = {0}, broken = {0};
    size_t taken = 0, taken_damaged = 0;
    for (int i = 0; i < GENERATED; i++) {
        text_clear(&text);
        put_value(&text, 4);
        taken += check(&doc, text.bytes, text.length);
        for (int k = 0; k < DAMAGED_OF_EACH; k++) {
            text_clear(&broken);
            text_append(&broken, text.bytes, text.length);
            for (size_t n = 1 + below(2); n > 0; n--) damage(&broken);
            taken_damaged += check(&doc, broken.bytes, broken.length);
        }
    }
    ck_assert_uint_gt(taken, GENERATED / 2); /* both kinds of both were seen */
    ck_assert_uint_lt(taken, GENERATED);
    ck_assert_uint_gt(taken_damaged, GENERATED);
    ck_assert_uint_lt(taken_damaged, GENERATED * DAMAGED_OF_EACH / 2);
    text_free(&text);
    text_free(&broken);
    json_doc_free(&doc);
}
END_TEST

CHECK_MAIN("JSON of records", awkward_texts_are_taken_and_refused_as_by_jansson, depth_ends_where_janssons_does,
           large_objects_with_a_key_twice_are_refused, errors_have_line_and_column,
           generated_and_damaged_texts_are_read_as_by_jansson)
