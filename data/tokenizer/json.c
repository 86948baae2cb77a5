/* Reads Hugging Face's tokenizer.json: the vocabulary, merges and added tokens (tokenizers 0.22, its BPE model's
 * serialisation); what comes before and after the model is in tokenizer_json_pipeline.c.
 *
 *   {"added_tokens": [{"id", "content", "special", …}], "normalizer", "pre_tokenizer", "post_processor", "decoder",
 *    "model": {"type": "BPE", "vocab": {spelling: id}, "merges": ["a b" or ["a", "b"], …], …}} */
#include "data/tokenizer/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

int json_only_keys(const json_t *object, const char *path, const char *const *keys) {
    const char *key;
    json_t *value;
    if (!json_is_object(object)) FAIL(ERR_REFUSED, "%s: expected an object", path);
    json_object_foreach((json_t *)object, key, value) {
        size_t i = 0;
        while (keys[i] && strcmp(keys[i], key) != 0) i++;
        if (!keys[i]) FAIL(ERR_REFUSED, "%s.%s: this key is not known, so what it asks for cannot be done", path, key);
    }
    return OK;
}

int json_string_at(const json_t *object, const char *path, const char *key, const char **value) {
    *value = json_string_value(json_object_get(object, key));
    if (!*value) FAIL(ERR_REFUSED, "%s.%s: expected a string", path, key);
    return OK;
}

int json_flag_at(const json_t *object, const char *path, const char *key, bool otherwise, bool *value) {
    const json_t *found = json_object_get(object, key);
    *value = found && !json_is_null(found) ? json_is_true(found) : otherwise;
    if (found && !json_is_null(found) && !json_is_boolean(found))
        FAIL(ERR_REFUSED, "%s.%s: expected true or false", path, key);
    return OK;
}

/* ---- the tokens ---------------------------------------------------------------------------------------------------
 */

typedef struct {
    const char *name;
    size_t length;
    const json_t *added; /* its entry in added_tokens, or NULL */
} Entry;

typedef struct {
    Entry *entries; /* by id */
    size_t n;
} Vocabulary;

static int place_entry(Vocabulary *vocabulary, const char *path, const char *name, size_t length, const json_t *number,
                       const json_t *added) {
    json_int_t id = json_is_integer(number) ? json_integer_value(number) : -1;
    if (id < 0 || (size_t)id >= vocabulary->n)
        FAIL(ERR_REFUSED, "%s: the id of '%s' is not between 0 and %zu: ids count from 0 without gaps", path, name,
             vocabulary->n - 1);
    Entry *entry = &vocabulary->entries[id];
    if (entry->name && !(added && entry->length == length && memcmp(entry->name, name, length) == 0))
        FAIL(ERR_REFUSED, "%s: '%s' and '%s' have the same id %lld", path, entry->name, name, (long long)id);
    *entry = (Entry){name, length, added};
    return OK;
}

static int check_added(const Tokenizer *t, const json_t *token, const char *path) {
    static const char *const keys[] = {"id",     "content",    "single_word", "lstrip",
                                       "rstrip", "normalized", "special",     NULL};
    static const char *const unsupported[] = {"single_word", "lstrip", "rstrip"};
    bool value, special;
    TRY(json_only_keys(token, path, keys));
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++) {
        TRY(json_flag_at(token, path, unsupported[i], false, &value));
        if (value) FAIL(ERR_REFUSED, "%s.%s: true is not supported", path, unsupported[i]);
    }
    TRY(json_flag_at(token, path, "special", false, &special));
    TRY(json_flag_at(token, path, "normalized", false, &value));
    /* special tokens are looked for in the text as it stands, whatever this says; it matters to the others alone */
    if (value && !special && !t->byte_level)
        FAIL(ERR_REFUSED, "%s.normalized: true is not supported for a token that is not special", path);
    return OK;
}

/* Ids may not have gaps, so there are as many as different ids: those of the model and those added behind them. */
static int count_entries(const json_t *vocab, const json_t *added, size_t *n) {
    size_t index;
    const json_t *token;
    *n = json_object_size(vocab);
    size_t in_model = *n;
    json_array_foreach(added, index, token) {
        json_int_t id = json_integer_value(json_object_get(token, "id"));
        if (id >= (json_int_t)in_model) ++*n;
    }
    if (*n == 0) FAIL(ERR_REFUSED, "model.vocab: it is empty");
    return OK;
}

static int collect(const Tokenizer *t, Vocabulary *vocabulary, const json_t *vocab, const json_t *added) {
    const char *key, *content;
    json_t *value;
    size_t index;
    json_object_foreach((json_t *)vocab, key, value)
        TRY(place_entry(vocabulary, "model.vocab", key, strlen(key), value, NULL));
    json_array_foreach(added, index, value) {
        char path[64];
        snprintf(path, sizeof path, "added_tokens[%zu]", index);
        TRY(check_added(t, value, path));
        TRY(json_string_at(value, path, "content", &content));
        size_t length = json_string_length(json_object_get(value, "content"));
        if (length == 0) FAIL(ERR_REFUSED, "%s.content: it is empty", path);
        TRY(place_entry(vocabulary, path, content, length, json_object_get(value, "id"), value));
    }
    for (size_t id = 0; id < vocabulary->n; id++)
        if (!vocabulary->entries[id].name) FAIL(ERR_REFUSED, "model.vocab: no token has the id %zu", id);
    return OK;
}

static int fallback_byte(const char *name, size_t length) {
    unsigned byte;
    char check[8];
    if (length != 6 || sscanf(name, "<0x%2X>", &byte) != 1) return -1;
    snprintf(check, sizeof check, "<0x%02X>", byte);
    return strcmp(check, name) == 0 ? (int)byte : -1;
}

/* From the file's spelling to bytes; see tokenizer_internal.h. */
static int unspell(const Tokenizer *t, const char *name, size_t length, Text *out, PieceType *type) {
    out->length = 0;
    if (t->byte_level) {
        if (!byte_level_unspell(name, length, out))
            FAIL(ERR_REFUSED, "model.vocab: '%s' is not spelled as byte-level tokens are", name);
    } else if (t->normalizer.escape_whitespaces) {
        if (memchr(name, ' ', length)) *type = PIECE_UNREACHABLE; /* a text's spaces are U+2581 by then */
        text_escape_meta_space(out, name, length);
    } else {
        text_append(out, name, length);
    }
    return text_check(out);
}

static int add_entry(Tokenizer *t, const Entry *entry, const char *unknown, Text *scratch) {
    PieceType type = PIECE_NORMAL;
    int id = t->n_pieces, byte = t->byte_fallback ? fallback_byte(entry->name, entry->length) : -1;
    bool special = json_is_true(json_object_get(entry->added, "special"));
    if (unknown && strcmp(unknown, entry->name) == 0) {
        t->unknown = id;
        return tokenizer_add_piece(t, entry->name, entry->length, PIECE_UNKNOWN, 0);
    }
    if (entry->added && !special) TRY(trie_add(&t->added, entry->name, entry->length, id));
    if (entry->added)
        return tokenizer_add_piece(t, entry->name, entry->length, special ? PIECE_CONTROL : PIECE_UNREACHABLE, 0);
    if (byte >= 0) {
        t->byte_id[byte] = id;
        return tokenizer_add_piece(t, &(char){(char)byte}, 1, PIECE_BYTE, 0);
    }
    if (entry->length == 0) FAIL(ERR_REFUSED, "model.vocab: token %d is empty", id);
    TRY(unspell(t, entry->name, entry->length, scratch, &type));
    return tokenizer_add_piece(t, scratch->bytes, scratch->length, type, 0);
}

static int read_tokens(Tokenizer *t, const json_t *model, const json_t *added) {
    const json_t *vocab = json_object_get(model, "vocab");
    const char *unknown = json_string_value(json_object_get(model, "unk_token"));
    Vocabulary vocabulary = {0};
    Text scratch = {0};
    int rc = OK;
    if (!json_is_object(vocab)) FAIL(ERR_REFUSED, "model.vocab: expected an object of tokens and ids");
    if (added && !json_is_array(added)) FAIL(ERR_REFUSED, "added_tokens: expected a list");
    TRY(count_entries(vocab, added, &vocabulary.n));
    vocabulary.entries = calloc(vocabulary.n, sizeof *vocabulary.entries);
    if (!vocabulary.entries) FAIL(ERR_FAILED, "out of memory");
    TRY_TO(out, collect(t, &vocabulary, vocab, added));
    for (size_t id = 0; id < vocabulary.n; id++) TRY_TO(out, add_entry(t, &vocabulary.entries[id], unknown, &scratch));
    if (unknown && t->unknown < 0) FAIL_TO(out, ERR_REFUSED, "model.unk_token: '%s' is not in the vocabulary", unknown);
    for (int byte = 0; byte < 256 && t->byte_fallback; byte++)
        if (t->byte_id[byte] < 0)
            FAIL_TO(out, ERR_REFUSED, "model.byte_fallback: true, but there is no token <0x%02X>", byte);
out:
    text_free(&scratch);
    free(vocabulary.entries);
    return rc;
}

/* ---- the merges ---------------------------------------------------------------------------------------------------
 */

/* "a b", or ["a", "b"]. */
static bool merge_halves(const json_t *merge, const char *half[2], size_t length[2]) {
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        for (size_t i = 0; i < 2; i++) {
            half[i] = json_string_value(json_array_get(merge, i));
            if (!half[i]) return false;
            length[i] = json_string_length(json_array_get(merge, i));
        }
        return true;
    }
    half[0] = json_string_value(merge);
    const char *space = half[0] ? strchr(half[0], ' ') : NULL;
    if (!space || strchr(space + 1, ' ')) return false;
    half[1] = space + 1;
    length[0] = (size_t)(space - half[0]);
    length[1] = strlen(half[1]);
    return true;
}

static int read_merge(Tokenizer *t, const json_t *merge, size_t index, Text *scratch) {
    const char *half[2];
    size_t length[2], cut = 0;
    int32_t id[2];
    PieceType type = PIECE_NORMAL;
    if (!merge_halves(merge, half, length))
        FAIL(ERR_REFUSED, "model.merges[%zu]: expected \"a b\" or [\"a\", \"b\"]", index);
    scratch[1].length = 0;
    for (int i = 0; i < 2; i++) {
        TRY(unspell(t, half[i], length[i], &scratch[0], &type));
        id[i] = tokenizer_find(t, scratch[0].bytes ? scratch[0].bytes : "", scratch[0].length);
        if (id[i] < 0)
            FAIL(ERR_REFUSED, "model.merges[%zu]: '%.*s' is not in the vocabulary", index, (int)length[i], half[i]);
        text_append(&scratch[1], scratch[0].bytes, scratch[0].length);
        if (i == 0) cut = scratch[1].length;
    }
    TRY(text_check(&scratch[1]));
    int32_t token = tokenizer_find(t, scratch[1].bytes, scratch[1].length);
    if (token < 0 || cut == 0)
        FAIL(ERR_REFUSED, "model.merges[%zu]: '%.*s%.*s' is not in the vocabulary", index, (int)length[0], half[0],
             (int)length[1], half[1]);
    bpe_table_add(&t->merges, (BpePair){(uint32_t)id[0], (uint32_t)id[1], (uint32_t)index, (uint32_t)token});
    return OK;
}

static int read_merges(Tokenizer *t, const json_t *merges) {
    Text scratch[2] = {{0}, {0}};
    int rc = OK;
    size_t n = json_array_size(merges);
    if (!json_is_array(merges)) FAIL(ERR_REFUSED, "model.merges: expected a list");
    if (n >= BPE_NO_RANK) FAIL(ERR_REFUSED, "model.merges: %zu are too many", n);
    TRY(bpe_table_init(&t->merges, n));
    for (size_t i = n; i-- > 0 && rc == OK;) /* of equal ones the last counts, and the table keeps what came first */
        rc = read_merge(t, json_array_get(merges, i), i, scratch);
    text_free(&scratch[0]);
    text_free(&scratch[1]);
    return rc;
}

/* ---- the whole ----------------------------------------------------------------------------------------------------
 */

static int read_model_flags(Tokenizer *t, const json_t *model) {
    static const char *const keys[] = {"type",
                                       "dropout",
                                       "unk_token",
                                       "continuing_subword_prefix",
                                       "end_of_word_suffix",
                                       "fuse_unk",
                                       "byte_fallback",
                                       "ignore_merges",
                                       "vocab",
                                       "merges",
                                       NULL};
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type;
    TRY(json_only_keys(model, "model", keys));
    TRY(json_string_at(model, "model", "type", &type));
    if (strcmp(type, "BPE") != 0) FAIL(ERR_REFUSED, "model.type: '%s' is not supported, only BPE is", type);
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0)
        FAIL(ERR_REFUSED, "model.dropout: random merging is not supported; expected null");
    for (size_t i = 0; i < 2; i++) {
        const json_t *affix = json_object_get(model, affixes[i]);
        if (affix && !json_is_null(affix) && (!json_is_string(affix) || json_string_length(affix) > 0))
            FAIL(ERR_REFUSED, "model.%s: it is not supported; expected null", affixes[i]);
    }
    TRY(json_flag_at(model, "model", "fuse_unk", false, &t->fuse_unknown));
    TRY(json_flag_at(model, "model", "byte_fallback", false, &t->byte_fallback));
    TRY(json_flag_at(model, "model", "ignore_merges", false, &t->whole_words));
    if (t->byte_level && t->byte_fallback)
        FAIL(ERR_REFUSED, "model.byte_fallback: true makes no sense with a ByteLevel pre_tokenizer");
    return OK;
}

static int read_root(Tokenizer *t, const json_t *root) {
    static const char *const keys[] = {"version",       "truncation",     "padding", "added_tokens", "normalizer",
                                       "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    static const char *const must_be_null[] = {"truncation", "padding"};
    TRY(json_only_keys(root, "tokenizer", keys));
    for (size_t i = 0; i < 2; i++) {
        const json_t *value = json_object_get(root, must_be_null[i]);
        if (value && !json_is_null(value))
            FAIL(ERR_REFUSED, "%s: texts are encoded whole and unpadded; set it to null", must_be_null[i]);
    }
    const json_t *model = json_object_get(root, "model");
    TRY(tokenizer_json_pipeline(t, root));
    TRY(read_model_flags(t, model));
    TRY(read_tokens(t, model, json_object_get(root, "added_tokens")));
    TRY(tokenizer_index(t));
    TRY(read_merges(t, json_object_get(model, "merges")));
    return tokenizer_json_template(t, root);
}

int tokenizer_read_json(Tokenizer *t, const char *bytes, size_t size) {
    json_error_t error;
    t->format = FORMAT_JSON;
    json_t *root = json_loadb(bytes, size, JSON_ALLOW_NUL, &error);
    if (!root) FAIL(ERR_REFUSED, "line %d, column %d: %s", error.line, error.column, error.text);
    int rc = read_root(t, root);
    json_decref(root);
    return rc;
}
