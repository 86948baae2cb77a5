/* Encoding and decoding: the published conformance vectors, counts on known texts, round trips, special tokens. */
#include "tests/tokenizer_data.h"

/* ---- llama.cpp's vectors: texts, each followed by a separator line; a line of ids for each
 * --------------------------- */

static int count_matching_vectors(const char *model, const char *inputs, const char *outputs, int *n_texts) {
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char *in, *out;
    size_t in_size, out_size;
    Tokenizer *t = tokenizer_of(model);
    CHECK_OK(file_read(&in, &in_size, inputs, 0));
    CHECK_OK(file_read(&out, &out_size, outputs, 0));
    int matching = 0;
    *n_texts = 0;
    char *text = in, *line = out;
    for (bool more = true; more;) { /* the last text is what follows the last separator: nothing, and no ids */
        char *end = strstr(text, separator), *line_end = strchr(line, '\n');
        more = end != NULL;
        if (!end) end = in + in_size;
        ck_assert_int_eq(more, line_end != NULL);
        if (!line_end) line_end = out + out_size;
        TokenList list = encoded(t, text, (size_t)(end - text), 0);
        size_t n = 0;
        bool same = true;
        while (line < line_end) {
            char *next;
            long id = strtol(line, &next, 10);
            if (next == line || next > line_end) break;
            same = same && n < list.n && list.ids[n] == id;
            n++;
            line = next;
        }
        matching += same && n == list.n;
        if (!same || n != list.n) printf("vector %d differs: '%.*s'\n", *n_texts, (int)(end - text), text);
        ++*n_texts;
        token_list_free(&list);
        line = line_end + 1;
        text = end + strlen(separator);
    }
    free(in);
    free(out);
    tokenizer_free(t);
    return matching;
}

START_TEST(llama3_gives_the_published_ids) {
    SKIP_UNLESS(LLAMA3);
    int n, matching = count_matching_vectors(LLAMA3, SHARED "tokenizers/vectors/ggml-vocab-llama-bpe.gguf.inp",
                                             SHARED "tokenizers/vectors/ggml-vocab-llama-bpe.gguf.out", &n);
    ck_assert_int_eq(n, 47);
    ck_assert_int_eq(matching, 47);
}
END_TEST

START_TEST(llama2_gives_the_published_ids) {
    SKIP_UNLESS(LLAMA2);
    int n, matching = count_matching_vectors(LLAMA2, SHARED "tokenizers/vectors/ggml-vocab-llama-spm.gguf.inp",
                                             SHARED "tokenizers/vectors/ggml-vocab-llama-spm.gguf.out", &n);
    ck_assert_int_eq(n, 47);
    ck_assert_int_eq(matching, 47);
}
END_TEST

START_TEST(tinyshakespeare_has_the_known_number_of_tokens) {
    SKIP_UNLESS(SHAKESPEARE);
    char *text;
    size_t size;
    CHECK_OK(file_read(&text, &size, SHAKESPEARE, 0));
    Tokenizer *llama2 = tokenizer_of(LLAMA2), *llama3 = tokenizer_of(LLAMA3);
    ck_assert_uint_eq(check_round_trip(llama2, text, size), 368633);
    ck_assert_uint_eq(check_round_trip(llama3, text, size), 301768);
    tokenizer_free(llama2);
    tokenizer_free(llama3);
    free(text);
}
END_TEST

START_TEST(bytes_are_their_own_ids) {
    Tokenizer *t = tokenizer_of("bytes");
    ck_assert_int_eq(tokenizer_vocab_size(t), 258);
    ck_assert_int_eq(tokenizer_bos(t), 256);
    ck_assert_int_eq(tokenizer_eos(t), 257);
    CHECK_IDS(t, "a\n\xff", TOKENIZE_BOS | TOKENIZE_EOS, 256, 97, 10, 255, 257);
    check_round_trip(t, "a\0b", 3);
    tokenizer_free(t);
}
END_TEST

CHECK_MAIN("tokenizer", llama3_gives_the_published_ids, llama2_gives_the_published_ids,
           tinyshakespeare_has_the_known_number_of_tokens, bytes_are_their_own_ids)
