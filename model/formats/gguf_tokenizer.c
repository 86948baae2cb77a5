/* See gguf_tokenizer.h. */
#include "model/formats/gguf_tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/split.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "model/formats/gguf.h"
#include "model/formats/gguf_file.h"
#include "model/formats/named_file.h"

/* llama.cpp's names of the split patterns that are known here; the first of a pattern and flag is written. */
static const struct {
    const char *name, *pattern;
    bool whole_words;
} splits[] = {
    {"llama-bpe", SPLIT_LLAMA3, true},  {"llama3", SPLIT_LLAMA3, true}, {"llama-v3", SPLIT_LLAMA3, true},
    {"smaug-bpe", SPLIT_LLAMA3, false}, {"gpt-2", SPLIT_GPT2, false},
};
enum { N_SPLITS = sizeof splits / sizeof *splits };

/* ---- reading ---- */

typedef struct {
    GgufText *tokens, *merges;
    int32_t *types;
    float *scores;
    size_t n_merges;
} Lists;

static void lists_free(Lists *lists) {
    free(lists->tokens);
    free(lists->merges);
    free(lists->types);
    free(lists->scores);
}

static bool is(GgufText text, const char *word) {
    return text.length == strlen(word) && memcmp(text.bytes, word, text.length) == 0;
}

static int read_split(TokenizerArrays *a, const GgufHead *head) {
    GgufText pre = {"default", 7};
    TRY(gguf_get_text(&pre, head, "tokenizer.ggml.pre"));
    for (size_t i = 0; i < N_SPLITS; i++)
        if (is(pre, splits[i].name)) {
            a->split_pattern = splits[i].pattern;
            a->whole_words = splits[i].whole_words;
            return OK;
        }
    FAIL(ERR_REFUSED, "'tokenizer.ggml.pre' is '%.*s'; llama-bpe, smaug-bpe and gpt-2 are known", (int)pre.length,
         pre.bytes);
}

static int check_length(const char *key, size_t found, size_t n) {
    if (found == n) return OK;
    FAIL(ERR_REFUSED, "'%s' has %zu items for %zu tokens", key, found, n);
}

/* Rows that gguf_put_tokenizer, or llama.cpp's converter, has called [PADn]. */
static size_t without_padding(const Lists *lists, size_t n) {
    char name[32];
    for (; n > 0; n--) {
        snprintf(name, sizeof name, "[PAD%zu]", n - 1);
        if (lists->types[n - 1] != TOKEN_UNUSED || !is(lists->tokens[n - 1], name)) break;
    }
    return n;
}

static int read_lists(TokenizerArrays *a, Lists *lists, const GgufHead *head) {
    size_t n;
    TRY(gguf_get_ints(&lists->types, &n, head, "tokenizer.ggml.token_type"));
    TRY(check_length("tokenizer.ggml.token_type", n, a->n));
    if (a->byte_level) {
        TRY(gguf_get_texts(&lists->merges, &lists->n_merges, head, "tokenizer.ggml.merges"));
        TRY(read_split(a, head));
    } else {
        TRY(gguf_get_floats(&lists->scores, &n, head, "tokenizer.ggml.scores"));
        TRY(check_length("tokenizer.ggml.scores", n, a->n));
    }
    a->n = without_padding(lists, a->n);
    return OK;
}

static int read_id(int32_t *out, const GgufHead *head, const char *key, size_t n) {
    int64_t id = -1;
    TRY(gguf_get_int(&id, head, key, 0, (int64_t)n - 1));
    *out = (int32_t)id;
    return OK;
}

/* The same places in the file, as data/tokenizer calls them; malloc'd. */
static int as_token_texts(TokenText **out, const GgufText *texts, size_t n) {
    *out = calloc(n + 1, sizeof **out);
    if (!*out) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < n; i++) (*out)[i] = (TokenText){texts[i].bytes, texts[i].length};
    return OK;
}

static int make(Tokenizer **tokenizer, TokenizerArrays *a, Lists *lists, const GgufHead *head) {
    int rc = OK;
    TokenText *tokens = NULL, *merges = NULL;
    TRY(read_lists(a, lists, head));
    TRY(read_id(&a->bos, head, "tokenizer.ggml.bos_token_id", a->n));
    TRY(read_id(&a->eos, head, "tokenizer.ggml.eos_token_id", a->n));
    TRY(gguf_get_bool(&a->space_prefix, head, "tokenizer.ggml.add_space_prefix"));
    TRY(gguf_get_bool(&a->remove_extra_whitespaces, head, "tokenizer.ggml.remove_extra_whitespaces"));
    TRY_TO(done, as_token_texts(&tokens, lists->tokens, a->n));
    TRY_TO(done, as_token_texts(&merges, lists->merges, lists->n_merges));
    a->tokens = tokens;
    a->merges = merges;
    a->n_merges = lists->n_merges;
    a->types = lists->types;
    a->scores = lists->scores;
    TRY_TO(done, tokenizer_from_arrays(tokenizer, a));
done:
    free(tokens);
    free(merges);
    return rc;
}

int gguf_tokenizer(Tokenizer **tokenizer, const NamedFile *file) {
    const GgufHead *head = &((const GgufFile *)file->state)->head;
    GgufText model = {"none", 4};
    TokenizerArrays arrays = {.space_prefix = true};
    Lists lists = {0};
    *tokenizer = NULL;
    TRY(gguf_get_text(&model, head, "tokenizer.ggml.model"));
    if (is(model, "none") || is(model, "no_vocab")) return OK;
    arrays.byte_level = is(model, "gpt2");
    if (!arrays.byte_level && !is(model, "llama"))
        FAIL(ERR_REFUSED, "%s: 'tokenizer.ggml.model' is '%.*s'; llama and gpt2 are known", file->path,
             (int)model.length, model.bytes);
    int rc = gguf_get_texts(&lists.tokens, &arrays.n, head, "tokenizer.ggml.tokens");
    if (rc == OK) rc = make(tokenizer, &arrays, &lists, head);
    lists_free(&lists);
    return rc == OK ? OK : error_context(rc, "%s: its tokenizer", file->path);
}

/* ---- writing ---- */

/* [PADn] for the rows from `n` on. */
static int pad(TokenizerArrays *a, size_t n, Arena *arena) {
    enum { NAME = 32 };
    static const float PAD_SCORE = -10000.0f; /* as llama.cpp's converter has it */
    TokenText *tokens;
    int32_t *types;
    float *scores;
    char *names;
    ARENA_TRY(tokens, arena, n);
    ARENA_TRY(types, arena, n);
    ARENA_TRY(scores, arena, n);
    ARENA_TRY(names, arena, (n - a->n) * NAME);
    memcpy(tokens, a->tokens, a->n * sizeof *tokens);
    memcpy(types, a->types, a->n * sizeof *types);
    if (a->scores) memcpy(scores, a->scores, a->n * sizeof *scores);
    for (size_t i = a->n; i < n; i++, names += NAME) {
        snprintf(names, NAME, "[PAD%zu]", i);
        tokens[i] = (TokenText){names, strlen(names)};
        types[i] = TOKEN_UNUSED;
        scores[i] = PAD_SCORE;
    }
    a->tokens = tokens;
    a->types = types;
    if (a->scores) a->scores = scores;
    a->n = n;
    return OK;
}

static int put_split(GgufOutput *out, const TokenizerArrays *a) {
    for (size_t i = 0; i < N_SPLITS; i++) {
        bool fits = a->n_merges == 0 || /* bytes stay bytes, whatever splits the text */
                    (a->split_pattern && strcmp(a->split_pattern, splits[i].pattern) == 0 &&
                     (a->whole_words == splits[i].whole_words || splits[i].pattern != splits[0].pattern));
        if (!fits) continue;
        gguf_put_value_text(out, "tokenizer.ggml.pre", splits[i].name);
        return OK;
    }
    FAIL(ERR_REFUSED,
         "it splits texts by %s%.100s; llama.cpp knows patterns by name, of which Llama 3's and GPT-2's are "
         "known here",
         a->split_pattern ? "the pattern " : "no pattern", a->split_pattern ? a->split_pattern : "");
}

static void put_id(GgufOutput *out, const char *key, int32_t id, size_t n) {
    if (id >= 0 && (size_t)id < n) gguf_put_value_u32(out, key, (uint32_t)id);
}

static int put_arrays(GgufOutput *out, const TokenizerArrays *a) {
    gguf_put_value_text(out, "tokenizer.ggml.model", a->byte_level ? "gpt2" : "llama");
    if (a->byte_level)
        TRY(put_split(out, a));
    else
        gguf_put_value_text(out, "tokenizer.ggml.pre", "default");
    gguf_put_texts(out, "tokenizer.ggml.tokens", a->tokens, a->n);
    if (a->scores) gguf_put_f32s(out, "tokenizer.ggml.scores", a->scores, a->n);
    gguf_put_i32s(out, "tokenizer.ggml.token_type", a->types, a->n);
    if (a->byte_level) gguf_put_texts(out, "tokenizer.ggml.merges", a->merges, a->n_merges);
    if (!a->byte_level) gguf_put_value_bool(out, "tokenizer.ggml.add_space_prefix", a->space_prefix);
    if (a->remove_extra_whitespaces) {
        gguf_put_value_bool(out, "tokenizer.ggml.remove_extra_whitespaces", true);
        log_warning("this tokenizer takes white space away at the ends of a text and in runs; llama.cpp's does not");
    }
    return OK;
}

int gguf_put_tokenizer(GgufOutput *out, const Tokenizer *tokenizer, int n_rows, bool add_bos) {
    Arena arena = {0};
    TokenizerArrays a;
    int rc = OK;
    int32_t unknown;
    size_t rows = (size_t)n_rows;
    TRY_TO(done, tokenizer_to_arrays(tokenizer, &arena, &a, &unknown));
    if (a.n > rows) a.n = rows;
    if (a.n < rows) TRY_TO(done, pad(&a, rows, &arena));
    TRY_TO(done, put_arrays(out, &a));
    put_id(out, "tokenizer.ggml.bos_token_id", a.bos, rows);
    put_id(out, "tokenizer.ggml.unknown_token_id", unknown, rows);
    gguf_put_value_bool(out, "tokenizer.ggml.add_bos_token", add_bos && a.bos >= 0);
    gguf_put_value_bool(out, "tokenizer.ggml.add_eos_token", false);
done:
    arena_free(&arena);
    return rc == OK ? OK : error_context(rc, "its tokenizer");
}
