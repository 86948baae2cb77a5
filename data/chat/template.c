/* Compiling a template: its texts, with placeholders filled in, are taken apart at special tokens' names. */
#include "data/chat/template.h"

#include <stdlib.h>
#include <string.h>

#include "data/chat/template_parts.h"
#include "model/core/error.h"
#include "model/core/philox.h"

enum { LONGEST_SPECIAL = 64 };

/* ---- words --------------------------------------------------------------------------------------------------------
 */

int overlong_parse(Overlong *policy, const char *word) {
    static const char *const words[] = {"fail", "drop", "truncate-left", "truncate-right"};
    for (int i = 0; i < 4; i++)
        if (strcmp(words[i], word) == 0) {
            *policy = (Overlong)i;
            return OK;
        }
    FAIL(ERR_USAGE, "overlong is '%s'; expected one of: fail, drop, truncate-left, truncate-right", word);
}

bool chat_list_has(const char *list, const char *name, size_t size) {
    for (const char *at = list; at && *at;) {
        size_t n = strcspn(at, ",");
        if (n == size && memcmp(at, name, n) == 0) return true;
        at += n + (at[n] == ',');
    }
    return false;
}

/* What Python's str.isspace holds for: Unicode 16's Zs, and bidirectional types WS, B and S. */
static bool is_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

ChatText chat_trim(const ChatTemplate *chat, ChatText text) {
    if (!chat->spec->trim || !text.bytes) return text;
    uint32_t code;
    int n;
    while (text.size > 0 && (n = utf8_decode(text.bytes, text.size, &code)) > 0 && is_space(code)) {
        text.bytes += n;
        text.size -= (size_t)n;
    }
    while (text.size > 0) {
        size_t start = text.size - 1; /* of the last character: continuation bytes are 10xxxxxx */
        while (start > 0 && ((unsigned char)text.bytes[start] & 0xc0) == 0x80) start--;
        n = utf8_decode(text.bytes + start, text.size - start, &code);
        if (n == 0 || start + (size_t)n != text.size || !is_space(code)) break;
        text.size = start;
    }
    return text;
}

/* ---- parts --------------------------------------------------------------------------------------------------------
 */

static void parts_free(ChatParts *parts) {
    text_free(&parts->source);
    free(parts->parts);
    *parts = (ChatParts){0};
}

static int parts_add(ChatParts *parts, ChatPart part) {
    ChatPart *last = parts->n > 0 ? &parts->parts[parts->n - 1] : NULL;
    if (last && last->id < 0 && part.id < 0 && last->text + last->size == part.text) {
        last->size += part.size;
        return OK;
    }
    ChatPart *grown = realloc(parts->parts, (parts->n + 1) * sizeof *grown);
    if (!grown) FAIL(ERR_FAILED, "out of memory");
    parts->parts = grown;
    grown[parts->n++] = part;
    return OK;
}

/* Appends what announces built-in tools: Meta's 3.1 template, with `builtin_tools`. */
static void append_environment(const ChatTemplate *chat, Text *out) {
    if (!chat->builtin_tools) return;
    text_puts(out, "Environment: ipython\nTools: ");
    const char *between = "";
    for (const char *at = chat->builtin_tools; *at;) {
        size_t n = strcspn(at, ",");
        if (n > 0 && !(n == strlen("code_interpreter") && memcmp(at, "code_interpreter", n) == 0)) {
            text_printf(out, "%s%.*s", between, (int)n, at);
            between = ", ";
        }
        at += n + (at[n] == ',');
    }
    text_puts(out, "\n\n");
}

/* The special token that begins at `at`: the longest name. *size 0: none. */
static int special_at(const ChatTemplate *chat, const char *at, int32_t *id, size_t *size) {
    char name[LONGEST_SPECIAL + 1];
    size_t room = strnlen(at, LONGEST_SPECIAL);
    *size = 0;
    if (strncmp(at, "{bos}", 5) == 0 || strncmp(at, "{eos}", 5) == 0) {
        *id = at[1] == 'b' ? chat->bos : chat->eos;
        *size = 5;
        if (*id < 0 && at[1] == 'e')
            FAIL(ERR_REFUSED, "template %s ends an answer with EOS, and the tokenizer has none", chat->spec->name);
        return OK;
    }
    for (size_t n = room; n > 1; n--) {
        memcpy(name, at, n);
        name[n] = '\0';
        *id = tokenizer_special(chat->tokenizer, name);
        if (*id < 0) continue;
        *size = n;
        return OK;
    }
    const char *end = at[0] == '<' && at[1] == '|' ? strstr(at, "|>") : NULL;
    if (end && strcspn(at, " \n") > (size_t)(end - at))
        FAIL(ERR_REFUSED,
             "template %s needs the special token %.*s, which the tokenizer does not have; choose another template, or "
             "a tokenizer with it",
             chat->spec->name, (int)(end + 2 - at), at);
    return OK;
}

static int compile(const ChatTemplate *chat, const char *text, ChatParts *parts) {
    for (;;) {
        const char *date = strstr(text, "{date}"), *environment = strstr(text, "{environment}");
        if (!date && !environment) break;
        bool is_date = date && (!environment || date < environment);
        const char *at = is_date ? date : environment;
        text_append(&parts->source, text, (size_t)(at - text));
        if (is_date)
            text_puts(&parts->source, chat->date);
        else
            append_environment(chat, &parts->source);
        text = at + strlen(is_date ? "{date}" : "{environment}");
    }
    text_puts(&parts->source, text);
    TRY(text_check(&parts->source));
    const char *at = parts->source.bytes;
    while (*at) {
        ChatPart part = {.id = -1, .text = at, .size = 1};
        size_t size;
        int32_t id;
        TRY(special_at(chat, at, &id, &size));
        bool is_absent = size > 0 && id < 0; /* {bos} of a tokenizer without one */
        if (size > 0) part = (ChatPart){.id = id, .text = at, .size = size};
        if (!is_absent) TRY(parts_add(parts, part));
        at += part.size;
    }
    return OK;
}

static int find_stop(ChatTemplate *chat) {
    const ChatTemplateRole *spec = &chat->spec->role[CHAT_ASSISTANT];
    ChatTemplatePart *role = &chat->role[CHAT_ASSISTANT];
    ChatParts stop = {0};
    int rc = compile(chat, spec->stop ? spec->stop : "", &stop);
    bool is_token = rc == OK && stop.n == 1 && stop.parts[0].id >= 0;
    int32_t id = is_token ? stop.parts[0].id : -1;
    parts_free(&stop);
    TRY(rc);
    if (!is_token)
        FAIL(ERR_REFUSED, "template %s: the assistant's stop is '%s', not one special token of the tokenizer",
             chat->spec->name, spec->stop ? spec->stop : "");
    if (id == chat->bos)
        FAIL(ERR_REFUSED,
             "template %s: the assistant's stop %s is BOS, which is never learned; an answer would never end",
             chat->spec->name, spec->stop);
    for (role->stop_part = 0; role->stop_part < role->after.n; role->stop_part++)
        if (role->after.parts[role->stop_part].id == id) return OK;
    FAIL(ERR_REFUSED, "template %s: the assistant's stop %s is not in its `after`, '%s'; an answer would never end",
         chat->spec->name, spec->stop, spec->after);
}

static int compile_role(ChatTemplate *chat, ChatRole r) {
    const ChatTemplateRole *spec = &chat->spec->role[r];
    ChatTemplatePart *role = &chat->role[r];
    role->present = spec->before || spec->after;
    if (!role->present) return OK;
    TRY(compile(chat, spec->before ? spec->before : "", &role->before));
    TRY(compile(chat, spec->after ? spec->after : "", &role->after));
    if (r != CHAT_ASSISTANT) return OK;
    const ChatPart *last = role->before.n > 0 ? &role->before.parts[role->before.n - 1] : NULL;
    role->answer_part = last && last->id < 0 ? last->size : 0;
    while (role->answer_part > 0 && last->text[role->answer_part - 1] == ' ') role->answer_part--;
    return find_stop(chat);
}

static int copy_options(ChatTemplate *chat, const ChatTemplateOptions *options) {
    const char *tools = options ? options->builtin_tools : NULL;
    chat->date = strdup(options && options->date ? options->date : CHAT_DATE);
    if (!chat->date) FAIL(ERR_FAILED, "out of memory");
    if (strpbrk(chat->date, "\r\n'\\<"))
        FAIL(ERR_USAGE, "date '%s': expected a date as in " CHAT_DATE ", without quotes and newlines", chat->date);
    if (!tools) return OK;
    if (!chat->spec->call_tag) FAIL(ERR_USAGE, "template %s has no built-in tools; llama3.1 has", chat->spec->name);
    if (strpbrk(tools, "\r\n'\\< {}")) FAIL(ERR_USAGE, "built-in tools '%s': expected names with commas", tools);
    chat->builtin_tools = strdup(tools);
    if (!chat->builtin_tools) FAIL(ERR_FAILED, "out of memory");
    chat->call_tag = tokenizer_special(chat->tokenizer, chat->spec->call_tag);
    chat->call_stop = tokenizer_special(chat->tokenizer, chat->spec->call_stop);
    if (chat->call_tag < 0 || chat->call_stop < 0)
        FAIL(
            ERR_REFUSED,
            "built-in tools need the special tokens %s and %s, which the tokenizer does not have; take Llama 3.1's, or "
            "add them (template.tokens)",
            chat->spec->call_tag, chat->spec->call_stop);
    return OK;
}

int chat_template_new(ChatTemplate **out, const ChatTemplateSpec *spec, const ChatTemplateOptions *options,
                      const Tokenizer *tokenizer) {
    int rc = OK;
    *out = NULL;
    ChatTemplate *chat = calloc(1, sizeof *chat);
    if (!chat) FAIL(ERR_FAILED, "out of memory");
    *chat = (ChatTemplate){.spec = spec,
                           .tokenizer = tokenizer,
                           .bos = tokenizer_bos(tokenizer),
                           .eos = tokenizer_eos(tokenizer),
                           .call_tag = -1,
                           .call_stop = -1};
    TRY_TO(fail, copy_options(chat, options));
    TRY_TO(fail, compile(chat, spec->begin ? spec->begin : "", &chat->begin));
    for (ChatRole r = 0; r < N_CHAT_ROLES; r++) TRY_TO(fail, compile_role(chat, r));
    if (!chat->role[CHAT_USER].present || !chat->role[CHAT_ASSISTANT].present)
        FAIL_TO(fail, ERR_REFUSED, "template %s: the roles user and assistant are needed", spec->name);
    *out = chat;
    return OK;
fail:
    chat_template_free(chat);
    return rc;
}

void chat_template_free(ChatTemplate *chat) {
    if (!chat) return;
    parts_free(&chat->begin);
    for (ChatRole r = 0; r < N_CHAT_ROLES; r++) {
        parts_free(&chat->role[r].before);
        parts_free(&chat->role[r].after);
    }
    free(chat->date);
    free(chat->builtin_tools);
    free(chat);
}

static uint64_t hash_text(const char *text, uint64_t hash) {
    bool there = text != NULL;
    hash = hash_bytes(&there, 1, hash);
    return text ? hash_bytes(text, strlen(text) + 1, hash) : hash;
}

uint64_t chat_template_hash(const ChatTemplate *chat) {
    const ChatTemplateSpec *spec = chat->spec;
    const bool flags[] = {spec->trim, spec->system_in_user, spec->always_system, spec->tool_json, spec->tool_calls};
    const char *texts[] = {spec->begin,        spec->default_system, spec->default_system_input,
                           spec->input_before, spec->call_tag,       spec->call_stop,
                           chat->date,         chat->builtin_tools};
    uint64_t hash = hash_bytes(flags, sizeof flags, HASH_START);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) hash = hash_text(texts[i], hash);
    for (ChatRole r = 0; r < N_CHAT_ROLES; r++) {
        hash = hash_text(spec->role[r].before, hash);
        hash = hash_text(spec->role[r].after, hash);
        hash = hash_text(spec->role[r].stop, hash);
    }
    return hash;
}

size_t chat_template_stops(const ChatTemplate *chat, int32_t stops[2]) {
    const ChatTemplatePart *role = &chat->role[CHAT_ASSISTANT];
    size_t n = 0;
    stops[n++] = role->after.parts[role->stop_part].id;
    if (chat->call_stop >= 0) stops[n++] = chat->call_stop;
    return n;
}
