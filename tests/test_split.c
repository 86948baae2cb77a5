/* The scan by hand cuts where PCRE2 cuts; merging with a heap joins what merging by hand joins. */
#include "data/tokenizer/bpe.h"
#include "data/tokenizer/split.h"
#include "data/tokenizer/trie.h"
#include "model/core/philox.h"
#include "model/core/text.h"
#include "tests/tokenizer_data.h"

static void check_same_cuts(const Splitter *hand, const Splitter *regex, const char *text, size_t size) {
    SplitPass a, b;
    CHECK_OK(split_begin(&a, hand, text, size));
    CHECK_OK(split_begin(&b, regex, text, size));
    while (a.at < size) {
        size_t start = a.at;
        CHECK_OK(split_next(&a));
        CHECK_OK(split_next(&b));
        ck_assert_msg(a.at == b.at && a.at > start, "from byte %zu: by hand to %zu, PCRE2 to %zu: '%.40s'", start, a.at,
                      b.at, text + start);
    }
    split_end(&a);
    split_end(&b);
}

START_TEST(the_scan_by_hand_cuts_where_pcre2_cuts) {
    static const char *const parts[] = {
        " ",        "  ",           "\n",        "\r\n",     "\t", "'s",           "'S",
        "'re",      "'LL",          "'\xc5\xbf", "'",        "a",  "Bc",           "\xc3\xa9",
        "1",        "22",           "\xc2\xbd",  ".",        "!?", "\xe6\xbc\xa2", "\xf0\x9f\xa6\x99",
        "\xc2\xa0", "\xe2\x80\xa8", "\xcc\x81",  "\xc2\x85", "'d", "x'm"};
    PhiloxKey key = philox_key(5, PHILOX_TEST, 0, 0);
    Splitter *hand, *regex;
    CHECK_OK(splitter_new(&hand, SPLIT_LLAMA3));
    CHECK_OK(splitter_new_regex(&regex, SPLIT_LLAMA3));
    for (uint64_t i = 0; i < 1000; i++) {
        Text text = {0};
        uint64_t n = 1 + philox_below(key, i << 20, 40);
        for (uint64_t k = 1; k <= n; k++)
            text_puts(&text, parts[philox_below(key, i << 20 | k, sizeof parts / sizeof *parts)]);
        check_same_cuts(hand, regex, text.bytes, text.length);
        text_free(&text);
    }
    splitter_free(hand);
    splitter_free(regex);
}
END_TEST

START_TEST(real_text_is_cut_where_pcre2_cuts) {
    SKIP_UNLESS(SHARED "text/11-0.txt");
    static const char *const files[] = {SHARED "text/wikitext2_test.txt", SHARED "text/11-0.txt"};
    Splitter *hand, *regex;
    CHECK_OK(splitter_new(&hand, SPLIT_LLAMA3));
    CHECK_OK(splitter_new_regex(&regex, SPLIT_LLAMA3));
    for (size_t i = 0; i < 2; i++) {
        char *text;
        size_t size;
        CHECK_OK(file_read(&text, &size, files[i], 0));
        check_same_cuts(hand, regex, text, size);
        free(text);
    }
    splitter_free(hand);
    splitter_free(regex);
}
END_TEST

START_TEST(pieces_cover_malformed_text) {
    static const char text[] = "ab\xff\xfe c\xe6\xbc\x01\xf0\x9f";
    const char *patterns[] = {SPLIT_LLAMA3, SPLIT_GPT2, "b"};
    for (size_t i = 0; i < 3; i++) {
        Splitter *splitter;
        SplitPass pass;
        CHECK_OK(splitter_new(&splitter, patterns[i]));
        CHECK_OK(split_begin(&pass, splitter, text, sizeof text - 1));
        while (pass.at < pass.size) {
            size_t start = pass.at;
            CHECK_OK(split_next(&pass));
            ck_assert_uint_gt(pass.at, start);
        }
        ck_assert_uint_eq(pass.at, sizeof text - 1);
        split_end(&pass);
        splitter_free(splitter);
    }
}
END_TEST

/* The rule as it is said: the least rank, then the leftmost, until nothing can be joined. */
static size_t merge_as_said(const BpeTable *table, uint32_t *symbols, size_t n) {
    for (;;) {
        size_t best = n;
        uint32_t rank = BPE_NO_RANK, token = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            const BpePair *pair = bpe_find(table, symbols[i], symbols[i + 1]);
            if (pair->rank >= rank) continue;
            best = i;
            rank = pair->rank;
            token = pair->token;
        }
        if (best == n) return n;
        symbols[best] = token;
        memmove(symbols + best + 1, symbols + best + 2, (n - best - 2) * sizeof *symbols);
        n--;
    }
}

START_TEST(merging_short_and_long_words_follows_the_rule) {
    PhiloxKey key = philox_key(6, PHILOX_TEST, 0, 0);
    uint64_t draw = 0;
    for (int round = 0; round < 200; round++) {
        BpeTable table;
        uint32_t symbols[400], said[400];
        CHECK_OK(bpe_table_init(&table, 60));
        for (uint32_t token = 3; token < 40; token++) { /* few symbols, and ranks that repeat: many ties */
            bpe_table_add(&table, (BpePair){(uint32_t)philox_below(key, draw, token),
                                            (uint32_t)philox_below(key, draw + 1, token),
                                            (uint32_t)philox_below(key, draw + 2, 20), token});
            draw += 3;
        }
        size_t n = 1 + philox_below(key, draw++, round % 2 ? 400 : 48), n_said = n;
        for (size_t i = 0; i < n; i++) symbols[i] = said[i] = (uint32_t)philox_below(key, draw++, 3);
        CHECK_OK(bpe_merge(&table, symbols, &n));
        n_said = merge_as_said(&table, said, n_said);
        ck_assert_uint_eq(n, n_said);
        ck_assert(memcmp(symbols, said, n * sizeof *said) == 0);
        bpe_table_free(&table);
    }
}
END_TEST

START_TEST(a_trie_finds_the_longest_string) {
    Trie trie = {0};
    int32_t value = -1;
    ck_assert_uint_eq(trie_longest(&trie, "ab", 2, &value), 0);
    CHECK_OK(trie_add(&trie, "ab", 2, 1));
    CHECK_OK(trie_add(&trie, "abcd", 4, 2));
    CHECK_OK(trie_add(&trie, "b", 1, 3));
    CHECK_OK(trie_add(&trie, "ab", 2, 4));
    ck_assert_uint_eq(trie_longest(&trie, "abcx", 4, &value), 2);
    ck_assert_int_eq(value, 1);
    ck_assert_uint_eq(trie_longest(&trie, "abcdx", 5, &value), 4);
    ck_assert_int_eq(value, 2);
    ck_assert_uint_eq(trie_longest(&trie, "abcd", 3, &value), 2);
    ck_assert_uint_eq(trie_longest(&trie, "a", 1, &value), 0);
    ck_assert_uint_eq(trie_longest(&trie, "", 0, &value), 0);
    trie_free(&trie);
}
END_TEST

CHECK_MAIN("split", the_scan_by_hand_cuts_where_pcre2_cuts, real_text_is_cut_where_pcre2_cuts,
           pieces_cover_malformed_text, merging_short_and_long_words_follows_the_rule, a_trie_finds_the_longest_string)
