/* Reads tiktoken's rank files: a line "BASE64 RANK" for each token, ranks 0, 1, 2, …; the rank is the id and the order
 * of merging. Llama 3's 256 special tokens follow (llama-models, tokenizer.py of Llama 3): two that begin and end a
 * text, the chat markers, and reserved ones in between. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/internal.h"
#include "model/core/error.h"

enum { N_SPECIAL = 256, LONGEST_LINE = 8192 };

/* Llama 3's named special tokens by their place after the ranks; those between are <|reserved_special_token_N|>. */
static const struct {
    int place;
    const char *name;
} named[] = {
    {0, "<|begin_of_text|>"}, {1, "<|end_of_text|>"}, {6, "<|start_header_id|>"},
    {7, "<|end_header_id|>"}, {9, "<|eot_id|>"},
};

static int base64_digit(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Decodes n characters (RFC 4648 section 4); false where they are not base64. */
static bool base64_decode(const char *text, size_t n, char *out, size_t *length) {
    *length = 0;
    if (n == 0 || n % 4 != 0) return false;
    for (size_t i = 0; i < n; i += 4) {
        int digit[4], kept = 4;
        if (i + 4 == n && text[i + 3] == '=') kept = text[i + 2] == '=' ? 2 : 3;
        for (int k = 0; k < 4; k++)
            if ((digit[k] = k < kept ? base64_digit(text[i + (size_t)k]) : 0) < 0) return false;
        uint32_t bits = (uint32_t)(digit[0] << 18 | digit[1] << 12 | digit[2] << 6 | digit[3]);
        for (int k = 0; k < kept - 1; k++) out[(*length)++] = (char)(bits >> (16 - 8 * k));
    }
    return true;
}

/* "BASE64 RANK" without its line end. */
static bool parse_line(const char *line, size_t n, char *out, size_t *length, int64_t *rank) {
    const char *space = memchr(line, ' ', n);
    size_t digits = space ? n - (size_t)(space - line) - 1 : 0;
    if (digits == 0 || digits > 9 || n > LONGEST_LINE) return false;
    *rank = 0;
    for (size_t i = 0; i < digits; i++) {
        if (space[1 + i] < '0' || space[1 + i] > '9') return false;
        *rank = *rank * 10 + (space[1 + i] - '0');
    }
    return base64_decode(line, (size_t)(space - line), out, length);
}

static size_t line_length(const char *bytes, size_t size) {
    const char *end = memchr(bytes, '\n', size);
    size_t n = end ? (size_t)(end - bytes) : size;
    return n > 0 && bytes[n - 1] == '\r' ? n - 1 : n;
}

bool tokenizer_looks_tiktoken(const char *bytes, size_t size) {
    char token[LONGEST_LINE];
    size_t length;
    int64_t rank;
    return parse_line(bytes, line_length(bytes, size), token, &length, &rank);
}

int tokenizer_add_special(Tokenizer *t, int n) {
    int reserved = 0;
    size_t next = 0;
    for (int place = 0; place < n; place++) {
        char name[64];
        if (next < sizeof named / sizeof *named && named[next].place == place)
            snprintf(name, sizeof name, "%s", named[next++].name);
        else
            snprintf(name, sizeof name, "<|reserved_special_token_%d|>", reserved++);
        TRY(tokenizer_add_piece(t, name, strlen(name), PIECE_CONTROL, 0));
    }
    return OK;
}

int tokenizer_read_tiktoken(Tokenizer *t, const char *bytes, size_t size) {
    char token[LONGEST_LINE];
    size_t length, line = 1;
    int64_t rank;
    t->kind = KIND_TIKTOKEN;
    t->format = FORMAT_TIKTOKEN;
    t->byte_level = t->whole_words = true;
    for (size_t at = 0; at < size; line++) {
        const char *end = memchr(bytes + at, '\n', size - at);
        size_t n = line_length(bytes + at, size - at);
        if (n > 0) {
            if (!parse_line(bytes + at, n, token, &length, &rank))
                FAIL(ERR_REFUSED, "line %zu: expected a token in base64, a space and its rank", line);
            if (rank != t->n_pieces)
                FAIL(ERR_REFUSED, "line %zu: found rank %lld, expected %d: ranks count up from 0", line,
                     (long long)rank, t->n_pieces);
            TRY(tokenizer_add_piece(t, token, length, PIECE_NORMAL, 0));
        }
        at = end ? (size_t)(end - bytes) + 1 : size;
    }
    t->bos = t->n_pieces;
    t->eos = t->n_pieces + 1;
    TRY(tokenizer_add_special(t, N_SPECIAL));
    TRY(tokenizer_index(t));
    for (int byte = 0; byte < 256; byte++)
        if (t->byte_id[byte] < 0) FAIL(ERR_REFUSED, "there is no token for the byte 0x%02X", byte);
    t->split_pattern = strdup(SPLIT_LLAMA3);
    if (!t->split_pattern) FAIL(ERR_FAILED, "out of memory");
    return tokenizer_derive_merges(t);
}
