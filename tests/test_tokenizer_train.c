/* A learned tokenizer: the merges are those of the rule, the same for any number of threads, and everything comes back.
 */
#include "data/tokenizer/bpe_train.h"
#include "data/tokenizer/train.h"
#include "model/core/log.h"
#include "model/core/philox.h"
#include "model/core/text.h"
#include "model/core/threads.h"
#include "tests/tokenizer_data.h"

/* Words of few letters, so that counts tie and pairs overlap. */
static void make_counts(WordCounts *counts, uint32_t round) {
    PhiloxKey key = philox_key(8, PHILOX_TEST, round, 0);
    uint64_t draw = 0;
    for (int i = 0; i < 60; i++) {
        char word[12];
        size_t length = 1 + philox_below(key, draw++, sizeof word);
        for (size_t k = 0; k < length; k++) word[k] = "abc"[philox_below(key, draw++, 3)];
        CHECK_OK(word_counts_add(counts, word, length, 1 + (int64_t)philox_below(key, draw++, 5)));
    }
}

/* The rule as it is said: count all pairs anew for every merge. */
static void check_by_the_rule(const WordCounts *counts, const BpeMerge *merges, size_t n_merges) {
    enum { MOST = 300 };
    static int64_t count[MOST][MOST];
    uint32_t *symbols = malloc(counts->bytes.length * sizeof *symbols), *lengths = malloc(counts->n * sizeof *lengths);
    for (size_t i = 0; i < counts->bytes.length; i++) symbols[i] = (unsigned char)counts->bytes.bytes[i];
    for (size_t w = 0; w < counts->n; w++) lengths[w] = counts->words[w].length;
    for (size_t m = 0; m < n_merges; m++) {
        memset(count, 0, sizeof count);
        for (size_t w = 0; w < counts->n; w++)
            for (uint32_t i = 0; i + 1 < lengths[w]; i++)
                count[symbols[counts->words[w].offset + i]][symbols[counts->words[w].offset + i + 1]] +=
                    counts->words[w].count;
        uint32_t left = 0, right = 0;
        for (uint32_t a = 0; a < MOST; a++)
            for (uint32_t b = 0; b < MOST; b++)
                if (count[a][b] > count[left][right]) {
                    left = a;
                    right = b;
                }
        ck_assert_msg(merges[m].left == left && merges[m].right == right, "merge %zu is (%u, %u), by the rule (%u, %u)",
                      m, merges[m].left, merges[m].right, left, right);
        for (size_t w = 0; w < counts->n; w++) {
            uint32_t *word = symbols + counts->words[w].offset, kept = 0;
            for (uint32_t i = 0; i < lengths[w]; kept++) {
                bool here = i + 1 < lengths[w] && word[i] == left && word[i + 1] == right;
                word[kept] = here ? 256 + (uint32_t)m : word[i];
                i += here ? 2 : 1;
            }
            lengths[w] = kept;
        }
    }
    free(symbols);
    free(lengths);
}

START_TEST(merges_are_learned_by_the_rule) {
    for (uint32_t round = 0; round < 10; round++) {
        WordCounts counts = {0};
        BpeMerge merges[40];
        size_t n;
        make_counts(&counts, round);
        CHECK_OK(
            bpe_train(&counts, &(BpeTrainOptions){.n_merges = 40, .min_count = 1, .longest_token = 100}, merges, &n));
        ck_assert_uint_eq(n, 40);
        check_by_the_rule(&counts, merges, n);
        word_counts_free(&counts);
    }
}
END_TEST

START_TEST(counts_and_lengths_bound_what_is_learned) {
    WordCounts counts = {0};
    BpeMerge merges[10];
    size_t n;
    CHECK_OK(word_counts_add(&counts, "abab", 4, 2));
    CHECK_OK(word_counts_add(&counts, "xy", 2, 1));
    CHECK_OK(bpe_train(&counts, &(BpeTrainOptions){.n_merges = 10, .min_count = 2, .longest_token = 2}, merges, &n));
    ck_assert_uint_eq(n, 1); /* ab; ba counts 2 at first but 0 after that; abab is too long; xy too rare */
    word_counts_free(&counts);
}
END_TEST

static const char *make_corpus(char folder[static 64]) {
    static char path[128];
    PhiloxKey key = philox_key(9, PHILOX_TEST, 0, 0);
    Text text = {0};
    strcpy(folder, "/tmp/cria-tokenizer-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    for (uint64_t i = 0; i < 60000; i++) {
        static const char *const parts[] = {"ba", "do", "ke", "li", "mu",       " ",
                                            " ",  "\n", ", ", "12", "\xc3\xa9", "it's "};
        text_puts(&text, parts[philox_below(key, 2 * i, 12) * philox_below(key, 2 * i + 1, 12) / 12]);
        if (i % 50 == 0) text_puts(&text, ".\n");
    }
    for (int i = 0; i < 5; i++) { /* enough for several units of counting */
        Text twice = {0};
        text_append(&twice, text.bytes, text.length);
        text_append(&text, twice.bytes, twice.length);
        text_free(&twice);
    }
    snprintf(path, sizeof path, "%s/corpus.txt", folder);
    CHECK_OK(file_write_atomic(path, text.bytes, text.length));
    text_free(&text);
    return path;
}

START_TEST(a_learned_tokenizer_is_the_same_for_any_number_of_threads) {
    char folder[64];
    const char *path = make_corpus(folder);
    TokenizerTrainOptions options = TOKENIZER_TRAIN_DEFAULTS;
    options.vocab_size = 400;
    Tokenizer *t[2];
    for (int i = 0; i < 2; i++) {
        threads_init(i == 0 ? 1 : 3);
        CHECK_OK(tokenizer_train(&t[i], &path, 1, &options));
    }
    ck_assert(tokenizer_fingerprint(t[0]) == tokenizer_fingerprint(t[1]));
    ck_assert_int_eq(tokenizer_vocab_size(t[0]), 400);
    ck_assert_int_eq(tokenizer_bos(t[0]), 384);
    ck_assert_int_eq(tokenizer_special(t[0], "<|eot_id|>"), 393);
    char *text;
    size_t size;
    CHECK_OK(file_read(&text, &size, path, 0));
    size_t n = check_round_trip(t[0], text, size);
    ck_assert_uint_lt(n, size / 2);
    free(text);
    check_round_trip(t[0], "never seen: \xff\xf0\x9f\xa6\x99\r\n\t", 20);
    CHECK_OK(tokenizer_export(t[0], folder));
    Tokenizer *again = tokenizer_of(folder);
    ck_assert(tokenizer_fingerprint(again) == tokenizer_fingerprint(t[0]));
    tokenizer_free(again);
    tokenizer_free(t[0]);
    tokenizer_free(t[1]);
    CHECK_OK(directory_remove(folder));
}
END_TEST

START_TEST(wrong_wishes_are_refused) {
    Tokenizer *t;
    const char *path = "tests/test_tokenizer_train.c";
    TokenizerTrainOptions options = TOKENIZER_TRAIN_DEFAULTS;
    options.vocab_size = 270;
    CHECK_ERROR(tokenizer_train(&t, &path, 1, &options), ERR_USAGE, "vocabulary of 270");
    options.vocab_size = 300;
    options.n_special = 1;
    CHECK_ERROR(tokenizer_train(&t, &path, 1, &options), ERR_USAGE, "special");
    options.n_special = 2;
    path = "/nonexistent/*.txt";
    ck_assert_int_ne(tokenizer_train(&t, &path, 1, &options), OK);
}
END_TEST

START_TEST(too_little_text_gives_fewer_tokens) {
    char folder[] = "/tmp/cria-tokenizer-XXXXXX", path[128];
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/small.jsonl", folder);
    CHECK_OK(file_write_atomic(path, "{\"text\": \"aaaa aaaa\"}\n", 22));
    const char *paths = path;
    TokenizerTrainOptions options = TOKENIZER_TRAIN_DEFAULTS;
    Tokenizer *t;
    log_set_level(LOG_ERROR);
    CHECK_OK(tokenizer_train(&t, &paths, 1, &options));
    /* (a, a), (aa, aa) occur twice; ( , aaaa) once */
    ck_assert_int_eq(tokenizer_vocab_size(t), 256 + 2 + 16);
    CHECK_IDS(t, "aaaa aaaa", 0, 257, 32, 257);
    tokenizer_free(t);
    CHECK_OK(directory_remove(folder));
}
END_TEST

CHECK_MAIN("tokenizer train", merges_are_learned_by_the_rule, counts_and_lengths_bound_what_is_learned,
           a_learned_tokenizer_is_the_same_for_any_number_of_threads, wrong_wishes_are_refused,
           too_little_text_gives_fewer_tokens)
