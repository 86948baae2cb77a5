/* See saved.h. */
#include "data/chat/saved.h"

#include <stdlib.h>
#include <string.h>

#include "data/chat/template_parts.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/philox.h"

#define COMMENT_BEGIN "{#- cria "
#define COMMENT_END " -#}\n"

/* Every text and flag of a spec, once: for writing, reading and looking through them. */
#define SPEC_TEXTS(FIELD) \
    FIELD(name)           \
    FIELD(begin) FIELD(default_system) FIELD(default_system_input) FIELD(input_before) FIELD(call_tag) FIELD(call_stop)
#define SPEC_FLAGS(FIELD) FIELD(trim) FIELD(system_in_user) FIELD(always_system) FIELD(tool_json) FIELD(tool_calls)

void saved_template_free(SavedTemplate *saved) {
    json_decref(saved->root);
    *saved = (SavedTemplate){0};
}

/* ---- writing ------------------------------------------------------------------------------------------------------
 */

static void set_text(json_t *object, const char *key, const char *text) {
    if (text) json_object_set_new(object, key, json_string(text));
}

static json_t *spec_json(const ChatTemplate *chat) {
    const ChatTemplateSpec *spec = chat->spec;
    json_t *root = json_object(), *roles = json_object();
#define PUT(field) set_text(root, #field, spec->field);
    SPEC_TEXTS(PUT)
#undef PUT
    for (ChatRole r = 0; r < N_CHAT_ROLES; r++) {
        const ChatTemplateRole *role = &spec->role[r];
        if (!role->before && !role->after) continue;
        json_t *object = json_object();
        set_text(object, "before", role->before ? role->before : "");
        set_text(object, "after", role->after ? role->after : "");
        set_text(object, "stop", role->stop);
        json_object_set_new(roles, chat_role_name(r), object);
    }
    json_object_set_new(root, "roles", roles);
#define PUT(field) \
    if (spec->field) json_object_set_new(root, #field, json_true());
    SPEC_FLAGS(PUT)
#undef PUT
    set_text(root, "date", chat->date);
    set_text(root, "builtin_tools", chat->builtin_tools);
    return root;
}

int chat_template_save(const ChatTemplate *chat, Text *out) {
    json_t *root = spec_json(chat);
    char *json = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    if (!json) FAIL(ERR_FAILED, "out of memory");
    text_puts(out, COMMENT_BEGIN);
    for (const char *at = json; *at; at++) /* the comment must not end inside it */
        *at == '#' ? text_puts(out, "\\u0023") : text_append(out, at, 1);
    free(json);
    text_puts(out, COMMENT_END);
    return chat_template_jinja(chat, out);
}

/* ---- reading ------------------------------------------------------------------------------------------------------
 */

static const char *get_text(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

static void read_spec(SavedTemplate *saved) {
    const json_t *root = saved->root, *roles = json_object_get(root, "roles");
#define GET(field) saved->spec.field = get_text(root, #field);
    SPEC_TEXTS(GET)
#undef GET
#define GET(field) saved->spec.field = json_is_true(json_object_get(root, #field));
    SPEC_FLAGS(GET)
#undef GET
    for (ChatRole r = 0; r < N_CHAT_ROLES; r++) {
        const json_t *role = json_object_get(roles, chat_role_name(r));
        saved->spec.role[r] =
            (ChatTemplateRole){get_text(role, "before"), get_text(role, "after"), get_text(role, "stop")};
    }
    if (!saved->spec.name) saved->spec.name = "saved";
    saved->options = (ChatTemplateOptions){get_text(root, "date"), get_text(root, "builtin_tools")};
}

/* Whether the template gives this Jinja text, but for white space at its end. */
static int check_jinja(bool *same, const SavedTemplate *saved, const char *jinja, const Tokenizer *tokenizer) {
    ChatTemplate *chat;
    Text text = {0};
    TRY(chat_template_new(&chat, &saved->spec, &saved->options, tokenizer));
    int rc = chat_template_jinja(chat, &text);
    size_t n = strlen(jinja);
    while (n > 0 && strchr(" \n", jinja[n - 1])) n--;
    while (text.length > 0 && strchr(" \n", text.bytes[text.length - 1])) text.length--;
    *same = rc == OK && n == text.length && memcmp(jinja, text.bytes, n) == 0;
    text_free(&text);
    chat_template_free(chat);
    return rc;
}

static int read_comment(SavedTemplate *saved, bool *found, const char *jinja, const Tokenizer *tokenizer) {
    const char *begin = jinja + strlen(COMMENT_BEGIN), *end = strstr(begin, " -#}");
    json_t *root = end ? json_loadb(begin, (size_t)(end - begin), JSON_REJECT_DUPLICATES, NULL) : NULL;
    if (!json_is_object(root)) {
        json_decref(root);
        return OK;
    }
    saved->root = root;
    read_spec(saved);
    end += strlen(" -#}");
    int rc = check_jinja(found, saved, end + (*end == '\n'), tokenizer);
    if (rc != ERR_REFUSED) return rc;
    error_clear(); /* it was changed, or is another tokenizer's */
    return OK;
}

/* ---- texts of others ----------------------------------------------------------------------------------------------
 */

/* A text's hash, where a newline may be written as one or as the two characters of its escape, and white space at the
 * end does not count. */
static uint64_t hash_jinja(const char *jinja) {
    uint64_t hash = HASH_START;
    size_t n = strlen(jinja);
    while (n > 0 && strchr(" \n\r", jinja[n - 1])) n--;
    for (size_t i = 0; i < n; i++) {
        bool escape = jinja[i] == '\\' && i + 1 < n && jinja[i + 1] == 'n';
        char c = jinja[i];
        if (escape) c = '\n';
        hash = hash_bytes(&c, 1, hash);
        i += escape;
    }
    return hash;
}

static const struct {
    uint64_t hash;
    const char *name;
    bool trim; /* as it does, where the template of that name does otherwise */
} known[] = {
    {0x57ddc41ac0e907e2, "llama3.1", true}, /* meta-llama/Llama-3.1-8B-Instruct, and 3.3's */
    {0x3ccef62a6f1c8bfd, "llama3.2", true}, /* meta-llama/Llama-3.2-3B-Instruct */
    {0x0b6bf77303b77f46, "llama3", true},   /* meta-llama/Meta-Llama-3-8B-Instruct */
    {0x01f2cf43e9770f3f, "llama3", true},   /* its first form, which always asks for an answer */
    {0x47a109f21daca463, "llama2", true},   /* meta-llama/Llama-2-7b-chat-hf */
    {0xe1dd10b12ba2b58d, "chatml", false},  /* what many models have, from transformers' documentation */
};

static int read_known(SavedTemplate *saved, bool *found, const char *jinja, const Tokenizer *tokenizer) {
    uint64_t hash = hash_jinja(jinja);
    size_t n;
    const char *const *names = chat_template_names(&n);
    for (size_t i = 0; i < sizeof known / sizeof *known && !*found; i++) {
        if (known[i].hash != hash) continue;
        saved->spec = *chat_template_spec(known[i].name);
        saved->spec.trim = known[i].trim;
        *found = true;
    }
    for (size_t i = 0; i < n && !*found; i++) { /* cria's own, without its comment */
        saved->spec = *chat_template_spec(names[i]);
        if (check_jinja(found, saved, jinja, tokenizer) != OK) error_clear();
    }
    return OK;
}

int saved_template_read(SavedTemplate *saved, bool *found, const char *jinja, const Tokenizer *tokenizer) {
    *saved = (SavedTemplate){0};
    *found = false;
    bool commented = text_starts_with(jinja, COMMENT_BEGIN);
    int rc = commented ? read_comment(saved, found, jinja, tokenizer) : read_known(saved, found, jinja, tokenizer);
    if (rc != OK || !*found) saved_template_free(saved);
    return rc;
}

/* ---- tokens that are missing --------------------------------------------------------------------------------------
 */

static int add_name(char ***names, size_t *n, const char *name, size_t size) {
    for (size_t i = 0; i < *n; i++)
        if (strlen((*names)[i]) == size && memcmp((*names)[i], name, size) == 0) return OK;
    char **grown = realloc(*names, (*n + 1) * sizeof *grown), *copy = strndup(name, size);
    if (grown) *names = grown;
    if (!grown || !copy) {
        free(copy);
        FAIL(ERR_FAILED, "out of memory");
    }
    grown[(*n)++] = copy;
    return OK;
}

static int find_missing(const char *text, const Tokenizer *tokenizer, char ***names, size_t *n) {
    for (const char *at = text; at && (at = strstr(at, "<|")) != NULL;) {
        const char *end = strstr(at, "|>");
        if (!end || strcspn(at, " \n") < (size_t)(end - at)) {
            at += 2;
            continue;
        }
        char *name = strndup(at, (size_t)(end + 2 - at));
        if (!name) FAIL(ERR_FAILED, "out of memory");
        int rc = tokenizer_special(tokenizer, name) < 0 ? add_name(names, n, name, strlen(name)) : OK;
        free(name);
        TRY(rc);
        at = end + 2;
    }
    return OK;
}

static int find_all_missing(const ChatTemplateSpec *spec, const char *const *extra, size_t n_extra,
                            const Tokenizer *tokenizer, char ***names, size_t *n) {
    TRY(find_missing(spec->begin, tokenizer, names, n));
    for (ChatRole r = 0; r < N_CHAT_ROLES; r++) {
        TRY(find_missing(spec->role[r].before, tokenizer, names, n));
        TRY(find_missing(spec->role[r].after, tokenizer, names, n));
        TRY(find_missing(spec->role[r].stop, tokenizer, names, n));
    }
    for (size_t i = 0; i < n_extra; i++)
        if (tokenizer_special(tokenizer, extra[i]) < 0) TRY(add_name(names, n, extra[i], strlen(extra[i])));
    return OK;
}

int chat_spec_missing(const ChatTemplateSpec *spec, const char *const *extra, size_t n_extra,
                      const Tokenizer *tokenizer, char ***names, size_t *n) {
    *names = NULL;
    *n = 0;
    int rc = find_all_missing(spec, extra, n_extra, tokenizer, names, n);
    if (rc == OK) return OK;
    names_free(*names, *n);
    *names = NULL;
    *n = 0;
    return rc;
}
