/* What the tokenizer tests share: where real data is, and short cuts. */
#ifndef CRIA_TESTS_TOKENIZER_DATA_H
#define CRIA_TESTS_TOKENIZER_DATA_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/tokenizer.h"
#include "model/core/file.h"
#include "tests/check_main.h"

#define SHARED "../shared/data/"
#define LLAMA2 SHARED "tokenizers/llama2/tokenizer.model"
#define LLAMA2_JSON SHARED "tokenizers/llama2/tokenizer.json"
#define LLAMA3 SHARED "tokenizers/llama3/tokenizer.model"
#define OPENLLAMA SHARED "tokenizers/openllama/tokenizer.model"
#define STORIES SHARED "stories260K/tok512.bin"
#define SHAKESPEARE SHARED "text/tinyshakespeare.txt"

#define SKIP_UNLESS(path)                                       \
    do {                                                        \
        if (!file_exists(path)) {                               \
            printf("skipped: %s needs %s\n", __func__, (path)); \
            return;                                             \
        }                                                       \
    } while (0)

static inline Tokenizer *tokenizer_of(const char *path) {
    Tokenizer *t = NULL;
    CHECK_OK(tokenizer_load(&t, path));
    return t;
}

static inline TokenList encoded(const Tokenizer *t, const char *text, size_t size, int flags) {
    TokenList list = {0};
    CHECK_OK(tokenizer_encode(t, text, size, flags, &list));
    return list;
}

/* decode(encode(text)) is `text`; returns the number of tokens. */
static inline size_t check_round_trip(const Tokenizer *t, const char *text, size_t size) {
    TokenList list = encoded(t, text, size, 0);
    char *back;
    size_t back_size, n = list.n;
    CHECK_OK(tokenizer_decode(t, list.ids, list.n, false, &back, &back_size));
    size_t same = 0;
    while (same < size && same < back_size && text[same] == back[same]) same++;
    ck_assert_msg(same == size && back_size == size, "%zu bytes came back as %zu, different from byte %zu on: '%.20s'",
                  size, back_size, same, back + same);
    free(back);
    token_list_free(&list);
    return n;
}

static inline void check_ids(const Tokenizer *t, const char *text, int flags, size_t n, const int32_t *ids) {
    TokenList list = encoded(t, text, strlen(text), flags);
    bool same = list.n == n;
    for (size_t i = 0; same && i < n; i++) same = list.ids[i] == ids[i];
    char found[512] = "";
    for (size_t i = 0; i < list.n && strlen(found) < 480; i++) snprintf(found + strlen(found), 32, " %d", list.ids[i]);
    ck_assert_msg(same, "'%s' became%s", text, found);
    token_list_free(&list);
}
#define CHECK_IDS(t, text, flags, ...) \
    check_ids((t), (text), (flags), sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t), (int32_t[]){__VA_ARGS__})

/* llama.cpp's vectors: texts, each followed by a separator line; a line of ids for each. How many match, of how many.
 */
static inline int matching_vectors(const Tokenizer *t, const char *inputs, const char *outputs, int *n_texts) {
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char *in, *out;
    size_t in_size, out_size;
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
    return matching;
}

#endif
