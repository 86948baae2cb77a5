/* Damaged tokenizer files: truncated anywhere, bits and bytes changed. Each is a clear error or a tokenizer that still
 * works; none a crash (run under ASan and UBSan by `make asan`). */
#include "model/core/philox.h"
#include "tests/tokenizer_data.h"

enum { N_MUTATIONS = 300 };

static const char some_text[] =
    "ba da 12 <tool>\xef\xac\x81 \xe2\x91\xa0 <s>\n\n  it's \xff\xe6\xbc\xa2 aaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

static int n_loaded, n_refused;

static void try_bytes(const char *name, const char *bytes, size_t size) {
    Tokenizer *t;
    error_clear();
    if (tokenizer_load_memory(&t, name, bytes, size) != OK) {
        ck_assert_str_ne(error_text(), "");
        n_refused++;
        return;
    }
    n_loaded++;
    TokenList list = {0};
    char *text;
    size_t n;
    if (tokenizer_encode(t, some_text, sizeof some_text - 1, TOKENIZE_SPECIAL, &list) == OK &&
        tokenizer_decode(t, list.ids, list.n, true, &text, &n) == OK)
        free(text);
    token_list_free(&list);
    tokenizer_free(t);
}

static void damage(const char *path) {
    char *bytes;
    size_t size;
    CHECK_OK(file_read(&bytes, &size, path, 0));
    PhiloxKey key = philox_key(1, PHILOX_TEST, (uint32_t)hash_bytes(path, strlen(path), HASH_START), 0);
    uint64_t draw = 0;
    n_loaded = n_refused = 0;
    for (int i = 0; i < check_rounds(N_MUTATIONS); i++) {
        char *copy = malloc(size + 1);
        size_t n = size;
        memcpy(copy, bytes, size);
        if (i % 3 == 0) n = philox_below(key, draw++, size);
        uint64_t n_changes = i % 3 == 0 ? 0 : 1 + philox_below(key, draw++, 4);
        for (uint64_t k = 0; k < n_changes; k++) {
            /* half of the changes near the ends, where lengths, flags and headers are */
            size_t at = philox_below(key, draw++, i % 2 ? size : size < 200 ? size : 200);
            if (i % 4 == 0) at = size - 1 - at;
            if (i % 3 == 1)
                copy[at] = (char)(copy[at] ^ 1 << philox_below(key, draw++, 8));
            else
                copy[at] = (char)philox_below(key, draw++, 256);
        }
        /* exactly as large, so that ASan sees a step too far */
        char *exact = malloc(n > 0 ? n : 1);
        memcpy(exact, copy, n);
        try_bytes(path_base(path), exact, n);
        free(exact);
        free(copy);
    }
    printf("%s: %d refused, %d still loaded\n", path, n_refused, n_loaded);
    ck_assert_int_gt(n_refused, N_MUTATIONS / 10);
    free(bytes);
}

START_TEST(damaged_sentencepiece_models) {
    damage("tests/golden/tokenizer_rules.model");
    damage("tests/golden/tokenizer_llama.model");
    damage("tests/golden/tokenizer_unused.model");
}
END_TEST

START_TEST(damaged_tokenizer_jsons) {
    damage("tests/golden/tokenizer_metaspace.json");
    damage("tests/golden/tokenizer_gpt2.json");
    damage("tests/golden/tokenizer_llama3.json");
}
END_TEST

START_TEST(damaged_tiktoken_ranks) {
    damage("tests/golden/tokenizer_ranks.tiktoken");
}
END_TEST

START_TEST(damaged_llama2c_tokenizers) {
    SKIP_UNLESS(STORIES);
    damage(STORIES);
}
END_TEST

CHECK_MAIN("tokenizer damage", damaged_sentencepiece_models, damaged_tokenizer_jsons, damaged_tiktoken_ranks,
           damaged_llama2c_tokenizers)
