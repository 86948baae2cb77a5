/* What a tokenizer.json does to a text before its model and to tokens after it. Two families are understood:
 *
 *   byte-level   pre_tokenizer: [Split by a regular expression,] ByteLevel;   decoder: ByteLevel
 *   characters   normalizer: Replace " {2,}" and the like, Prepend, Replace " " by U+2581 — or pre_tokenizer:
 * Metaspace; decoder: Replace, ByteFallback, Fuse, Strip — or Metaspace
 *
 * Anything else is refused by its name. */
#include <stdio.h>
#include <string.h>

#include "data/tokenizer/json.h"
#include "model/core/error.h"

#define META_SPACE "\xe2\x96\x81"

/* A step, or the steps of a Sequence whose list is under `list_key`. */
typedef int (*StepReader)(Tokenizer *t, const json_t *step, const char *type, const char *path);

static int read_steps(Tokenizer *t, const json_t *step, const char *path, const char *list_key, StepReader reader) {
    const char *type;
    TRY(json_string_at(step, path, "type", &type));
    if (strcmp(type, "Sequence") != 0) return reader(t, step, type, path);
    const json_t *list = json_object_get(step, list_key), *item;
    size_t index;
    TRY(json_only_keys(step, path, (const char *const[]){"type", list_key, NULL}));
    if (!json_is_array(list)) FAIL(ERR_REFUSED, "%s.%s: expected a list", path, list_key);
    json_array_foreach(list, index, item) {
        char inner[128];
        snprintf(inner, sizeof inner, "%s.%s[%zu]", path, list_key, index);
        TRY(json_string_at(item, inner, "type", &type));
        TRY(reader(t, item, type, inner));
    }
    return OK;
}

static int refuse_type(const char *path, const char *type) {
    FAIL(ERR_REFUSED, "%s: '%s' is not supported here", path, type);
}

static bool is_string(const json_t *object, const char *key, const char *value) {
    const char *found = json_string_value(json_object_get(object, key));
    return found && strcmp(found, value) == 0;
}

/* ---- normalizer ---------------------------------------------------------------------------------------------------
 */

static int read_replace(Tokenizer *t, const json_t *step, const char *path) {
    Normalizer *normalizer = &t->normalizer;
    const json_t *pattern = json_object_get(step, "pattern");
    TRY(json_only_keys(step, path, (const char *const[]){"type", "pattern", "content", NULL}));
    bool spaces_left = !normalizer->escape_whitespaces;
    if (spaces_left && is_string(pattern, "String", " ") && is_string(step, "content", META_SPACE))
        normalizer->escape_whitespaces = true;
    /* the two that tokenizer_export writes for remove_extra_whitespaces, in this order */
    else if (spaces_left && normalizer->prefix == PREFIX_NEVER && is_string(pattern, "Regex", NORMALIZE_ENDS_REGEX) &&
             is_string(step, "content", ""))
        normalizer->strips_ends = true;
    else if (spaces_left && normalizer->strips_ends && normalizer->prefix == PREFIX_NEVER &&
             is_string(pattern, "Regex", NORMALIZE_RUNS_REGEX) && is_string(step, "content", " "))
        normalizer->remove_extra_whitespaces = true;
    else
        FAIL(ERR_REFUSED, "%s: this replacement is not supported; expected \" \" by \"" META_SPACE "\"", path);
    return OK;
}

static int read_normalizer_step(Tokenizer *t, const json_t *step, const char *type, const char *path) {
    if (strcmp(type, "Replace") == 0) return read_replace(t, step, path);
    if (strcmp(type, "Prepend") != 0) return refuse_type(path, type);
    TRY(json_only_keys(step, path, (const char *const[]){"type", "prepend", NULL}));
    if (!is_string(step, "prepend", META_SPACE) || t->normalizer.prefix != PREFIX_NEVER)
        FAIL(ERR_REFUSED, "%s.prepend: expected \"" META_SPACE "\", once", path);
    t->normalizer.prefix = PREFIX_ALWAYS;
    return OK;
}

/* ---- pre_tokenizer ------------------------------------------------------------------------------------------------
 */

static int read_metaspace(const json_t *step, const char *path, PrefixScheme *prefix, bool *split) {
    bool old_style;
    TRY(json_only_keys(
        step, path,
        (const char *const[]){"type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep", NULL}));
    if (!is_string(step, "replacement", META_SPACE))
        FAIL(ERR_REFUSED, "%s.replacement: expected \"" META_SPACE "\"", path);
    TRY(json_flag_at(step, path, "split", true, split));
    TRY(json_flag_at(step, path, "add_prefix_space", true, &old_style));
    *prefix = old_style ? PREFIX_ALWAYS : PREFIX_NEVER;
    if (!json_object_get(step, "prepend_scheme")) return OK;
    if (is_string(step, "prepend_scheme", "always"))
        *prefix = PREFIX_ALWAYS;
    else if (is_string(step, "prepend_scheme", "first"))
        *prefix = PREFIX_FIRST;
    else if (is_string(step, "prepend_scheme", "never"))
        *prefix = PREFIX_NEVER;
    else
        FAIL(ERR_REFUSED, "%s.prepend_scheme: expected always, first or never", path);
    return OK;
}

static int set_pattern(Tokenizer *t, const char *pattern, const char *path) {
    if (t->split_pattern) FAIL(ERR_REFUSED, "%s: a second split is not supported", path);
    t->split_pattern = strdup(pattern);
    if (!t->split_pattern) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

static int read_split(Tokenizer *t, const json_t *step, const char *path) {
    const json_t *pattern = json_object_get(step, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    bool invert;
    TRY(json_only_keys(step, path, (const char *const[]){"type", "pattern", "behavior", "invert", NULL}));
    TRY(json_flag_at(step, path, "invert", false, &invert));
    if (t->byte_level) FAIL(ERR_REFUSED, "%s: a Split after ByteLevel is not supported", path);
    if (!regex) FAIL(ERR_REFUSED, "%s.pattern: only a Regex is supported", path);
    if (!is_string(step, "behavior", "Isolated")) FAIL(ERR_REFUSED, "%s.behavior: only Isolated is supported", path);
    if (invert) FAIL(ERR_REFUSED, "%s.invert: true is not supported", path);
    return set_pattern(t, regex, path);
}

static int read_pre_tokenizer_step(Tokenizer *t, const json_t *step, const char *type, const char *path) {
    bool flag;
    if (strcmp(type, "Split") == 0) return read_split(t, step, path);
    if (strcmp(type, "ByteLevel") == 0) {
        TRY(json_only_keys(step, path,
                           (const char *const[]){"type", "add_prefix_space", "trim_offsets", "use_regex", NULL}));
        if (t->byte_level) FAIL(ERR_REFUSED, "%s: a second ByteLevel is not supported", path);
        TRY(json_flag_at(step, path, "add_prefix_space", true, &flag));
        if (flag) FAIL(ERR_REFUSED, "%s.add_prefix_space: true is not supported", path);
        TRY(json_flag_at(step, path, "use_regex", true, &flag));
        if (flag) TRY(set_pattern(t, SPLIT_GPT2, path));
        t->byte_level = true;
        return OK;
    }
    if (strcmp(type, "Metaspace") != 0 || t->byte_level || t->split_pattern) return refuse_type(path, type);
    if (t->normalizer.escape_whitespaces) FAIL(ERR_REFUSED, "%s: spaces were already replaced by the normalizer", path);
    TRY(read_metaspace(step, path, &t->normalizer.prefix, &t->cut_at_spaces));
    t->normalizer.escape_whitespaces = t->normalizer.prefix_unless_there = true;
    return OK;
}

/* ---- decoder ------------------------------------------------------------------------------------------------------
 */

static int read_character_decoder_step(Tokenizer *t, const json_t *step, const char *type, const char *path) {
    PrefixScheme prefix;
    bool split;
    if (strcmp(type, "ByteFallback") == 0 || strcmp(type, "Fuse") == 0) return OK;
    if (strcmp(type, "Replace") == 0) {
        if (!is_string(json_object_get(step, "pattern"), "String", META_SPACE) || !is_string(step, "content", " "))
            FAIL(ERR_REFUSED, "%s: expected \"" META_SPACE "\" by \" \"", path);
        return OK;
    }
    if (strcmp(type, "Strip") == 0) {
        json_int_t start = json_integer_value(json_object_get(step, "start"));
        if (!is_string(step, "content", " ") || json_integer_value(json_object_get(step, "stop")) != 0 || start < 0 ||
            start > 1)
            FAIL(ERR_REFUSED, "%s: expected one space at the start to be stripped", path);
        t->strip_prefix = start == 1;
        return OK;
    }
    if (strcmp(type, "Metaspace") != 0) return refuse_type(path, type);
    TRY(read_metaspace(step, path, &prefix, &split));
    t->strip_prefix = prefix != PREFIX_NEVER;
    return OK;
}

static int read_byte_decoder_step(Tokenizer *t, const json_t *step, const char *type, const char *path) {
    (void)t, (void)step;
    return strcmp(type, "ByteLevel") == 0 ? OK : refuse_type(path, type);
}

static const json_t *part(const json_t *root, const char *key) {
    const json_t *value = json_object_get(root, key);
    return json_is_null(value) ? NULL : value;
}

int tokenizer_json_pipeline(Tokenizer *t, const json_t *root) {
    const json_t *normalizer = part(root, "normalizer"), *pre = part(root, "pre_tokenizer"),
                 *decoder = part(root, "decoder");
    if (normalizer) TRY(read_steps(t, normalizer, "normalizer", "normalizers", read_normalizer_step));
    if (t->normalizer.strips_ends != t->normalizer.remove_extra_whitespaces)
        FAIL(ERR_REFUSED,
             "normalizer: spaces at the ends are removed but runs of spaces are not; this is not supported");
    if (pre) TRY(read_steps(t, pre, "pre_tokenizer", "pretokenizers", read_pre_tokenizer_step));
    t->kind = t->byte_level ? KIND_BYTE_LEVEL : KIND_SENTENCEPIECE;
    if (t->byte_level && normalizer)
        FAIL(ERR_REFUSED, "normalizer: not supported with a ByteLevel pre_tokenizer; expected null");
    if (!t->byte_level && t->split_pattern)
        FAIL(ERR_REFUSED, "pre_tokenizer: Split is supported only with ByteLevel after it");
    if (t->byte_level) return decoder ? read_steps(t, decoder, "decoder", "decoders", read_byte_decoder_step) : OK;
    if (!decoder) FAIL(ERR_REFUSED, "decoder: null joins tokens with spaces; expected Metaspace, or Replace and Fuse");
    return read_steps(t, decoder, "decoder", "decoders", read_character_decoder_step);
}

/* ---- post_processor -----------------------------------------------------------------------------------------------
 */

/* One special token at most before the text and one behind it. */
static int read_template(Tokenizer *t, const json_t *step, const char *path) {
    const json_t *single = json_object_get(step, "single"), *item;
    size_t index;
    bool text_seen = false;
    TRY(json_only_keys(step, path, (const char *const[]){"type", "single", "pair", "special_tokens", NULL}));
    if (!json_is_array(single)) FAIL(ERR_REFUSED, "%s.single: expected a list", path);
    json_array_foreach(single, index, item) {
        const char *name = json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
        int32_t *place = text_seen ? &t->eos : &t->bos, id = BPE_NO_TOKEN;
        if (!name && json_object_get(item, "Sequence") && !text_seen) {
            text_seen = true;
            continue;
        }
        for (int i = 0; i < t->n_pieces && name; i++)
            if (t->pieces[i].type == PIECE_CONTROL && t->pieces[i].length == strlen(name) &&
                memcmp(piece_bytes(t, i), name, strlen(name)) == 0)
                id = i;
        if (id < 0 || *place >= 0)
            FAIL(ERR_REFUSED, "%s.single[%zu]: expected at most one special token on each side of the text", path,
                 index);
        *place = id;
    }
    return OK;
}

static int read_post_processor_step(Tokenizer *t, const json_t *step, const char *type, const char *path) {
    if (strcmp(type, "ByteLevel") == 0) return OK; /* it moves offsets, not ids */
    return strcmp(type, "TemplateProcessing") == 0 ? read_template(t, step, path) : refuse_type(path, type);
}

/* Where no template says which tokens begin and end a text, the names that Llama and GPT tokenizers use do. */
static int32_t by_name(const Tokenizer *t, const char *const *names) {
    for (; *names; names++)
        for (int id = t->n_pieces; id-- > 0;)
            if (t->pieces[id].type == PIECE_CONTROL && t->pieces[id].length == strlen(*names) &&
                memcmp(piece_bytes(t, id), *names, strlen(*names)) == 0)
                return id;
    return BPE_NO_TOKEN;
}

int tokenizer_json_template(Tokenizer *t, const json_t *root) {
    const json_t *post = part(root, "post_processor");
    if (post) TRY(read_steps(t, post, "post_processor", "processors", read_post_processor_step));
    if (t->bos < 0) t->bos = by_name(t, (const char *const[]){"<|begin_of_text|>", "<s>", NULL});
    if (t->eos < 0) t->eos = by_name(t, (const char *const[]){"<|end_of_text|>", "</s>", "<|endoftext|>", NULL});
    return OK;
}
