/* Small tokenizers of every kind give the ids of the libraries they belong to (tests/golden/tokenizer_files.py),
 * survive export, and what a tokenizer.json asks for and is not done is refused by its key. */
#include <jansson.h>

#include "tests/tokenizer_data.h"

static const char *const kinds[] = {"tokenizer_rules.model",    "tokenizer_llama.model", "tokenizer_unused.model",
                                    "tokenizer_metaspace.json", "tokenizer_gpt2.json",   "tokenizer_llama3.json",
                                    "tokenizer_ranks.tiktoken"};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

static Tokenizer *golden(const char *name) {
    char path[256];
    snprintf(path, sizeof path, "tests/golden/%s", name);
    return tokenizer_of(path);
}

static json_t *expected_file(void) {
    json_error_t error;
    json_t *file = json_load_file("tests/golden/tokenizers_expected.json", JSON_ALLOW_NUL, &error);
    ck_assert_msg(file != NULL, "tokenizers_expected.json: %s", error.text);
    return file;
}

/* Hugging Face matches special tokens in any text; the others' ids were made without. */
static int flags_of(const char *name) {
    return strstr(name, ".json") ? TOKENIZE_SPECIAL : 0;
}

static void check_golden(const Tokenizer *t, const char *name, const json_t *file) {
    const json_t *texts = json_object_get(file, "texts"), *all = json_object_get(json_object_get(file, "ids"), name);
    size_t n = json_array_size(texts);
    ck_assert_uint_gt(n, 40);
    ck_assert_uint_eq(json_array_size(all), n);
    for (size_t i = 0; i < n; i++) {
        const json_t *text = json_array_get(texts, i), *ids = json_array_get(all, i);
        TokenList list = encoded(t, json_string_value(text), json_string_length(text), flags_of(name));
        bool same = list.n == json_array_size(ids);
        for (size_t k = 0; same && k < list.n; k++) same = json_integer_value(json_array_get(ids, k)) == list.ids[k];
        ck_assert_msg(same, "%s, text %zu: '%s'", name, i, json_string_value(text));
        token_list_free(&list);
    }
}

START_TEST(every_kind_gives_the_ids_of_its_own_library) {
    json_t *file = expected_file();
    for (size_t i = 0; i < N_KINDS; i++) {
        Tokenizer *t = golden(kinds[i]);
        check_golden(t, kinds[i], file);
        tokenizer_free(t);
    }
    json_decref(file);
}
END_TEST

START_TEST(an_exported_tokenizer_gives_the_same_ids) {
    static const char *const exported[] = {"tokenizer_llama.model", "tokenizer_metaspace.json", "tokenizer_llama3.json",
                                           "tokenizer_ranks.tiktoken"};
    char folder[] = "/tmp/cria-tokenizer-XXXXXX", path[256];
    ck_assert_ptr_nonnull(mkdtemp(folder));
    json_t *file = expected_file();
    for (size_t i = 0; i < sizeof exported / sizeof *exported; i++) {
        Tokenizer *t = golden(exported[i]);
        CHECK_OK(directory_remove(folder));
        CHECK_OK(tokenizer_export(t, folder));
        tokenizer_free(t);
        t = tokenizer_of(folder);
        ck_assert_str_eq(tokenizer_source_name(t), "tokenizer.json");
        check_golden(t, exported[i], file);
        tokenizer_free(t);
        snprintf(path, sizeof path, "%s/tokenizer_config.json", folder);
        ck_assert(file_exists(path));
        snprintf(path, sizeof path, "%s/special_tokens_map.json", folder);
        ck_assert(file_exists(path));
    }
    json_decref(file);
    CHECK_OK(directory_remove(folder));
}
END_TEST

/* A table of replacements or user-defined pieces cannot be said in a tokenizer.json: the model itself is exported. */
START_TEST(what_a_tokenizer_json_cannot_say_is_exported_as_the_model) {
    char folder[] = "/tmp/cria-tokenizer-XXXXXX";
    ck_assert_ptr_nonnull(mkdtemp(folder));
    json_t *file = expected_file();
    Tokenizer *t = golden("tokenizer_rules.model");
    CHECK_OK(tokenizer_export(t, folder));
    tokenizer_free(t);
    t = tokenizer_of(folder);
    ck_assert_str_eq(tokenizer_source_name(t), "tokenizer.model");
    check_golden(t, "tokenizer_rules.model", file);
    tokenizer_free(t);
    json_decref(file);
    CHECK_OK(directory_remove(folder));
}
END_TEST

START_TEST(a_tokenizer_can_be_made_again_from_its_source) {
    json_t *file = expected_file();
    for (size_t i = 0; i < N_KINDS; i++) {
        Tokenizer *t = golden(kinds[i]), *again;
        size_t size;
        const void *source = tokenizer_source(t, &size);
        CHECK_OK(tokenizer_load_memory(&again, tokenizer_source_name(t), source, size));
        ck_assert(tokenizer_fingerprint(t) == tokenizer_fingerprint(again));
        tokenizer_free(t);
        check_golden(again, kinds[i], file);
        tokenizer_free(again);
    }
    json_decref(file);
}
END_TEST

/* ---- tokenizer.json: understood or refused
 * --------------------------------------------------------------------------- */

#define MODEL(more) \
    "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [\"a b\"]" more "}"
#define BYTE_LEVEL "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, "

static void check_refused(const char *json, const char *part) {
    Tokenizer *t;
    CHECK_ERROR(tokenizer_load_memory(&t, "tokenizer.json", json, strlen(json)), ERR_REFUSED, part);
}

START_TEST(a_tokenizer_json_is_understood_or_refused_by_key) {
    Tokenizer *t;
    const char *good = "{" BYTE_LEVEL MODEL("") "}";
    CHECK_OK(tokenizer_load_memory(&t, "tokenizer.json", good, strlen(good)));
    CHECK_IDS(t, "abba", 0, 2, 1, 0);
    TokenList list = {0};
    CHECK_ERROR(tokenizer_encode(t, "abc", 3, 0, &list), ERR_REFUSED, "no token");
    token_list_free(&list);
    tokenizer_free(t);
    check_refused("{" BYTE_LEVEL MODEL("") ", \"novelty\": 1}", "novelty");
    check_refused("{" BYTE_LEVEL MODEL(", \"dropout\": 0.1") "}", "model.dropout");
    check_refused("{" BYTE_LEVEL MODEL(", \"end_of_word_suffix\": \"</w>\"") "}", "model.end_of_word_suffix");
    check_refused("{" BYTE_LEVEL MODEL(", \"swing\": true") "}", "model.swing");
    check_refused("{" BYTE_LEVEL MODEL("") ", \"truncation\": {\"max_length\": 5}}", "truncation");
    check_refused("{" BYTE_LEVEL MODEL("") ", \"normalizer\": {\"type\": \"NFC\"}}", "NFC");
    check_refused("{\"pre_tokenizer\": {\"type\": \"Digits\"}, " MODEL("") "}", "Digits");
    check_refused("{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true}, " MODEL("") "}",
                  "pre_tokenizer.add_prefix_space");
    check_refused("{\"model\": {\"type\": \"Unigram\", \"vocab\": []}, \"decoder\": {\"type\": \"Fuse\"}}", "Unigram");
    check_refused("{" MODEL("") "}", "decoder");
    check_refused("{" BYTE_LEVEL MODEL("") ", \"decoder\": {\"type\": \"WordPiece\"}}", "WordPiece");
    check_refused("{" BYTE_LEVEL MODEL("") ", \"post_processor\": {\"type\": \"BertProcessing\"}}", "BertProcessing");
    check_refused("{" BYTE_LEVEL MODEL("") ", \"added_tokens\": [{\"id\": 3, \"content\": \"<x>\", \"lstrip\": true}]}",
                  "added_tokens[0].lstrip");
    check_refused("{" BYTE_LEVEL MODEL("") ", \"added_tokens\": [{\"id\": 9, \"content\": \"<x>\"}]}", "<x>");
    check_refused("{" BYTE_LEVEL "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [\"a c\"]}}",
                  "model.merges[0]");
    check_refused("{" BYTE_LEVEL "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 0}, \"merges\": []}}",
                  "'b'");
    check_refused("{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": "
                  "{\"Regex\": \"(\"}, \"behavior\": \"Isolated\", \"invert\": false}, {\"type\": \"ByteLevel\", "
                  "\"add_prefix_space\": false, \"use_regex\": false}]}, " MODEL("") "}",
                  "split pattern");
    check_refused("{\"model\": ", "line 1");
}
END_TEST

START_TEST(other_files_are_refused_with_a_reason) {
    Tokenizer *t;
    CHECK_ERROR(tokenizer_load_memory(&t, "x", "hello", 5), ERR_REFUSED, "no known kind");
    CHECK_ERROR(tokenizer_load_memory(&t, "x", "", 0), ERR_REFUSED, "no known kind");
    CHECK_ERROR(tokenizer_load_memory(&t, "x", "IQ== 0\nIg== 2\n", 14), ERR_REFUSED, "line 2");
    CHECK_ERROR(tokenizer_load_memory(&t, "x", "IQ== 0\nIg== 1\n", 14), ERR_REFUSED, "byte 0x00");
    CHECK_ERROR(tokenizer_load(&t, "tests/golden"), ERR_REFUSED, "holds no tokenizer");
    ck_assert_int_ne(tokenizer_load(&t, "/nonexistent/tokenizer.model"), OK);
}
END_TEST

CHECK_MAIN("tokenizer kinds", every_kind_gives_the_ids_of_its_own_library, an_exported_tokenizer_gives_the_same_ids,
           what_a_tokenizer_json_cannot_say_is_exported_as_the_model, a_tokenizer_can_be_made_again_from_its_source,
           a_tokenizer_json_is_understood_or_refused_by_key, other_files_are_refused_with_a_reason)
