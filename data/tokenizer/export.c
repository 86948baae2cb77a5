/* Writing a tokenizer as a Hugging Face directory. A tokenizer.json that was read is copied; one for any other source
 * is made, unless it could not say the same (SentencePiece with a table of replacements, user-defined or unused
 * pieces): then tokenizer.model speaks for itself.
 *
 * In tokenizer.json every merge has a rank of its own, while the merges of one piece (and pieces of one score) are
 * equal in tiktoken and SentencePiece; they are written in the order transformers' converter gives them. */
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/json.h"
#include "model/core/error.h"
#include "model/core/file.h"

/* ---- JSON text ----------------------------------------------------------------------------------------------------
 */

static void put_string(Text *out, const char *bytes, size_t n) {
    text_puts(out, "\"");
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '"' || c == '\\')
            text_printf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            text_printf(out, "\\u%04x", c);
        else
            text_append(out, bytes + i, 1);
    }
    text_puts(out, "\"");
}

/* A piece as tokenizer.json spells it. */
static void put_piece(Text *out, const Tokenizer *t, int32_t id) {
    Text name = {0};
    if (t->byte_level && t->pieces[id].type == PIECE_NORMAL)
        byte_level_spell(piece_bytes(t, id), t->pieces[id].length, &name);
    else
        tokenizer_piece_name(t, id, &name);
    put_string(out, name.bytes, name.length);
    out->failed |= name.failed;
    text_free(&name);
}

static void put_flag(Text *out, const char *key, bool value) {
    text_printf(out, "\"%s\": %s", key, value ? "true" : "false");
}

/* ---- the parts of tokenizer.json ----------------------------------------------------------------------------------
 */

static bool is_special(const Tokenizer *t, int32_t id) {
    return t->pieces[id].type == PIECE_CONTROL || t->pieces[id].type == PIECE_UNKNOWN;
}

static void put_added_tokens(Text *out, const Tokenizer *t) {
    bool first = true;
    text_puts(out, "  \"added_tokens\": [");
    for (int32_t id = 0; id < t->n_pieces; id++) {
        if (!is_special(t, id)) continue;
        text_printf(out, "%s\n    {\"id\": %d, \"content\": ", first ? "" : ",", id);
        put_piece(out, t, id);
        text_puts(out, ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, "
                       "\"special\": true}");
        first = false;
    }
    text_puts(out, "\n  ],\n");
}

static void put_regex_replace(Text *out, const char *regex, const char *content) {
    text_puts(out, "    {\"type\": \"Replace\", \"pattern\": {\"Regex\": ");
    put_string(out, regex, strlen(regex));
    text_printf(out, "}, \"content\": \"%s\"},\n", content);
}

static void put_character_pipeline(Text *out, const Tokenizer *t) {
    bool prefix = t->normalizer.prefix != PREFIX_NEVER;
    text_puts(out, "  \"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [\n");
    if (t->normalizer.remove_extra_whitespaces) {
        put_regex_replace(out, NORMALIZE_ENDS_REGEX, "");
        put_regex_replace(out, NORMALIZE_RUNS_REGEX, " ");
    }
    if (prefix) text_puts(out, "    {\"type\": \"Prepend\", \"prepend\": \"\xe2\x96\x81\"},\n");
    text_puts(out, "    {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\xe2\x96\x81\"}]},\n"
                   "  \"pre_tokenizer\": null,\n"
                   "  \"decoder\": {\"type\": \"Sequence\", \"decoders\": [\n"
                   "    {\"type\": \"Replace\", \"pattern\": {\"String\": \"\xe2\x96\x81\"}, \"content\": \" \"},\n"
                   "    {\"type\": \"ByteFallback\"},\n    {\"type\": \"Fuse\"}");
    if (t->strip_prefix) text_puts(out, ",\n    {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}");
    text_puts(out, "]},\n");
}

static void put_byte_pipeline(Text *out, const Tokenizer *t) {
    static const char byte_level[] = "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
                                     "\"use_regex\": false}";
    text_puts(out, "  \"normalizer\": null,\n  \"pre_tokenizer\": ");
    if (t->split_pattern) {
        text_puts(out,
                  "{\"type\": \"Sequence\", \"pretokenizers\": [\n    {\"type\": \"Split\", \"pattern\": {\"Regex\": ");
        put_string(out, t->split_pattern, strlen(t->split_pattern));
        text_printf(out, "}, \"behavior\": \"Isolated\", \"invert\": false},\n    %s]},\n", byte_level);
    } else {
        text_printf(out, "%s,\n", byte_level);
    }
    text_puts(out, "  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, "
                   "\"use_regex\": true},\n");
}

/* Hugging Face tokenizers of Llama put BOS in front unless told otherwise. */
static void put_template(Text *out, const Tokenizer *t) {
    if (t->bos < 0) {
        text_puts(out, "  \"post_processor\": null,\n");
        return;
    }
    Text bos = {0};
    put_piece(&bos, t, t->bos);
    text_puts(out, "  \"post_processor\": {\"type\": \"TemplateProcessing\",\n    \"single\": [");
    text_printf(out,
                "{\"SpecialToken\": {\"id\": %s, \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}],\n",
                bos.bytes);
    text_printf(out,
                "    \"pair\": [{\"SpecialToken\": {\"id\": %s, \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", "
                "\"type_id\": 0}}, "
                "{\"SpecialToken\": {\"id\": %s, \"type_id\": 1}}, {\"Sequence\": {\"id\": \"B\", \"type_id\": 1}}],\n",
                bos.bytes, bos.bytes);
    text_printf(out, "    \"special_tokens\": {%s: {\"id\": %s, \"ids\": [%d], \"tokens\": [%s]}}},\n", bos.bytes,
                bos.bytes, t->bos, bos.bytes);
    out->failed |= bos.failed;
    text_free(&bos);
}

static int by_rank_then_halves(const void *a, const void *b) {
    const BpePair *x = a, *y = b;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    return x->right < y->right ? -1 : x->right > y->right;
}

int tokenizer_sorted_merges(const Tokenizer *t, BpePair **pairs, size_t *n) {
    *n = 0;
    *pairs = malloc((t->merges.n_pairs + 1) * sizeof **pairs);
    if (!*pairs) FAIL(ERR_FAILED, "out of memory for %zu merges", t->merges.n_pairs);
    for (size_t i = 0; i < t->merges.n_slots; i++)
        if (t->merges.slots[i].rank != BPE_NO_RANK) (*pairs)[(*n)++] = t->merges.slots[i];
    qsort(*pairs, *n, sizeof **pairs, by_rank_then_halves);
    return OK;
}

static int put_merges(Text *out, const Tokenizer *t) {
    size_t n;
    BpePair *pairs;
    TRY(tokenizer_sorted_merges(t, &pairs, &n));
    text_puts(out, "    \"merges\": [");
    for (size_t i = 0; i < n; i++) {
        text_puts(out, i > 0 ? ",\n      [" : "\n      [");
        put_piece(out, t, (int32_t)pairs[i].left);
        text_puts(out, ", ");
        put_piece(out, t, (int32_t)pairs[i].right);
        text_puts(out, "]");
    }
    text_puts(out, "\n    ]\n");
    free(pairs);
    return OK;
}

static int put_model(Text *out, const Tokenizer *t) {
    text_puts(out, "  \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": ");
    if (t->unknown >= 0)
        put_piece(out, t, t->unknown);
    else
        text_puts(out, "null");
    text_puts(out, ", \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null,\n    ");
    put_flag(out, "fuse_unk", t->fuse_unknown);
    text_puts(out, ", ");
    put_flag(out, "byte_fallback", t->byte_fallback);
    text_puts(out, ", ");
    put_flag(out, "ignore_merges", t->whole_words);
    text_puts(out, ",\n    \"vocab\": {");
    bool first = true;
    for (int32_t id = 0; id < t->n_pieces; id++) {
        if (t->byte_level && is_special(t, id)) continue; /* Llama 3's stand in added_tokens alone */
        text_puts(out, first ? "\n      " : ",\n      ");
        put_piece(out, t, id);
        text_printf(out, ": %d", id);
        first = false;
    }
    text_puts(out, "\n    },\n");
    TRY(put_merges(out, t));
    text_puts(out, "  }\n");
    return OK;
}

int tokenizer_to_json(const Tokenizer *t, Text *out) {
    text_puts(out, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n");
    put_added_tokens(out, t);
    if (t->byte_level)
        put_byte_pipeline(out, t);
    else
        put_character_pipeline(out, t);
    put_template(out, t);
    TRY(put_model(out, t));
    text_puts(out, "}\n");
    return text_check(out);
}

/* ---- the other files ----------------------------------------------------------------------------------------------
 */

static void put_named(Text *out, const Tokenizer *t, const char *key, int32_t id) {
    if (id < 0) return;
    text_printf(out, ",\n  \"%s\": ", key);
    put_piece(out, t, id);
}

static void put_named_tokens(Text *out, const Tokenizer *t) {
    put_named(out, t, "bos_token", t->bos);
    put_named(out, t, "eos_token", t->eos);
    put_named(out, t, "unk_token", t->unknown);
}

static void put_config(Text *out, const Tokenizer *t) {
    bool llama_class = t->format == FORMAT_SENTENCEPIECE;
    text_printf(out, "{\n  \"tokenizer_class\": \"%s\",\n", llama_class ? "LlamaTokenizer" : "PreTrainedTokenizerFast");
    if (llama_class) text_puts(out, "  \"add_bos_token\": true,\n  \"add_eos_token\": false,\n  \"legacy\": true,\n");
    text_puts(
        out,
        "  \"clean_up_tokenization_spaces\": false,\n  \"model_input_names\": [\"input_ids\", \"attention_mask\"]");
    put_named_tokens(out, t);
    text_puts(out, "\n}\n");
}

static void put_special_map(Text *out, const Tokenizer *t) {
    Text tokens = {0};
    put_named_tokens(&tokens, t);
    text_puts(out, "{");
    text_puts(out, tokens.length > 0 ? tokens.bytes + 1 : ""); /* without the first comma */
    text_puts(out, "\n}\n");
    out->failed |= tokens.failed;
    text_free(&tokens);
}

static bool is_utf8(const char *bytes, size_t size) {
    uint32_t code;
    for (int n; size > 0; bytes += n, size -= (size_t)n)
        if ((n = utf8_decode(bytes, size, &code)) == 0) return false;
    return true;
}

/* A tokenizer.json can say what this tokenizer does. */
static bool can_be_json(const Tokenizer *t) {
    for (int32_t id = 0; id < t->n_pieces; id++)
        if (is_special(t, id) && !is_utf8(piece_bytes(t, id), t->pieces[id].length)) return false;
    if (t->byte_level) return true;
    if (t->normalizer.n_units > 0 || !t->normalizer.escape_whitespaces || t->has_unused) return false;
    for (int32_t id = 0; id < t->n_pieces; id++)
        if (t->pieces[id].type == PIECE_USER || t->pieces[id].type == PIECE_UNREACHABLE) return false;
    for (size_t i = 0; i < t->merges.n_slots; i++) /* a half that is no token */
        if (t->merges.slots[i].rank != BPE_NO_RANK &&
            !(symbol_is_token(t->merges.slots[i].left) && symbol_is_token(t->merges.slots[i].right)))
            return false;
    return true;
}

static int write_file(const char *directory, const char *name, const void *bytes, size_t size) {
    char *path = path_join(directory, name);
    if (!path) FAIL(ERR_FAILED, "out of memory");
    int rc = file_write_atomic(path, bytes, size);
    free(path);
    return rc;
}

static int write_text(const char *directory, const char *name, Text *text) {
    int rc = text_check(text);
    if (rc == OK) rc = write_file(directory, name, text->bytes, text->length);
    text_free(text);
    return rc;
}

int tokenizer_export(const Tokenizer *t, const char *directory) {
    Text json = {0}, config = {0}, special = {0};
    bool has_model = t->format == FORMAT_SENTENCEPIECE || t->format == FORMAT_TIKTOKEN;
    TRY(directory_make(directory));
    if (has_model) TRY(write_file(directory, "tokenizer.model", t->source, t->source_size));
    if (t->format == FORMAT_JSON) {
        TRY(write_file(directory, "tokenizer.json", t->source, t->source_size));
    } else if (can_be_json(t)) {
        int rc = tokenizer_to_json(t, &json);
        if (rc != OK) text_free(&json);
        TRY(rc);
        TRY(write_text(directory, "tokenizer.json", &json));
    } else if (!has_model) {
        FAIL(ERR_REFUSED, "tokenizer %s has tokens that a tokenizer.json cannot express", t->source_name);
    }
    put_config(&config, t);
    TRY(write_text(directory, "tokenizer_config.json", &config));
    put_special_map(&special, t);
    return write_text(directory, "special_tokens_map.json", &special);
}
