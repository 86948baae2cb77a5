/* A template as Ollama's Modelfile has it: Go's text/template over .System and .Messages (ollama's docs/template.md).
 * Special tokens stand by their names, which Ollama reads as tokens in a template. The first BOS is left out: the
 * model's file asks for it already. Texts are not trimmed, and tools' calls are not shown. */
#include <string.h>

#include "data/chat/template.h"
#include "data/chat/template_parts.h"
#include "model/core/error.h"

/* Go's template text has no way to say {{, and a Modelfile's none to say """. */
static int append_text(Text *out, const char *text, size_t size) {
    if (memmem(text, size, "{{", 2) || memmem(text, size, "\"\"\"", 3))
        FAIL(ERR_REFUSED, "a template with {{ or \"\"\" in its texts cannot be one of Ollama's");
    text_append(out, text, size);
    return OK;
}

static int append_token(Text *out, const ChatTemplate *chat, int32_t id) {
    const char *name = tokenizer_name(chat->tokenizer, id);
    return name ? append_text(out, name, strlen(name)) : OK;
}

/* `less`: bytes of the last part that are left out. `begins`: these may be the first of a conversation. */
static int append_parts(Text *out, const ChatTemplate *chat, const ChatParts *parts, size_t less, bool begins) {
    for (size_t i = 0; i < parts->n; i++) {
        const ChatPart *part = &parts->parts[i];
        bool is_first_bos = begins && i == 0 && part->id == chat->bos && part->id >= 0;
        if (is_first_bos) text_puts(out, "{{ if not $first }}");
        if (part->id >= 0)
            TRY(append_token(out, chat, part->id));
        else
            TRY(append_text(out, part->text, part->size - (i + 1 == parts->n ? less : 0)));
        if (is_first_bos) text_puts(out, "{{ end }}");
    }
    return OK;
}

static int append_message(Text *out, const ChatTemplate *chat, const ChatTemplatePart *role, const char *content,
                          bool begins) {
    TRY(append_parts(out, chat, &role->before, 0, begins));
    text_puts(out, content);
    return append_parts(out, chat, &role->after, 0, false);
}

/* What begins every conversation, and the system message of one that has none. */
static int append_head(Text *out, const ChatTemplate *chat) {
    const ChatTemplateSpec *spec = chat->spec;
    ChatParts begin = chat->begin;
    bool begins_with_bos = begin.n > 0 && begin.parts[0].id >= 0 && begin.parts[0].id == chat->bos;
    if (begins_with_bos) {
        begin.parts++;
        begin.n--;
    }
    TRY(append_parts(out, chat, &begin, 0, false));
    const char *system = spec->default_system ? spec->default_system : spec->always_system ? "" : NULL;
    if (!system || !chat->role[CHAT_SYSTEM].present || spec->system_in_user) return OK;
    text_puts(out, "{{ if not .System }}");
    TRY(append_parts(out, chat, &chat->role[CHAT_SYSTEM].before, 0, false));
    TRY(append_text(out, system, strlen(system)));
    TRY(append_parts(out, chat, &chat->role[CHAT_SYSTEM].after, 0, false));
    text_puts(out, "{{ end }}");
    return OK;
}

static int append_user(Text *out, const ChatTemplate *chat) {
    const ChatTemplatePart *role = &chat->role[CHAT_USER];
    text_puts(out, "{{ if eq .Role \"user\" }}");
    TRY(append_parts(out, chat, &role->before, 0, chat->begin.n == 0));
    if (chat->spec->system_in_user) {
        text_puts(out, "{{ if and $first $.System }}");
        TRY(append_message(out, chat, &chat->role[CHAT_SYSTEM], "{{ $.System }}", false));
        text_puts(out, "{{ end }}");
    }
    text_puts(out, "{{ .Content }}");
    TRY(append_parts(out, chat, &role->after, 0, false));
    text_puts(out, "{{ $first = false }}");
    return OK;
}

int chat_template_ollama(const ChatTemplate *chat, Text *out) {
    const ChatTemplatePart *assistant = &chat->role[CHAT_ASSISTANT], *system = &chat->role[CHAT_SYSTEM];
    const ChatTemplatePart *tool = &chat->role[CHAT_TOOL];
    const ChatPart *last = assistant->before.n > 0 ? &assistant->before.parts[assistant->before.n - 1] : NULL;
    text_puts(out, "{{ $first := true }}");
    TRY(append_head(out, chat));
    text_puts(out, "{{ range .Messages }}");
    TRY(append_user(out, chat));
    text_puts(out, "{{ else if eq .Role \"assistant\" }}");
    TRY(append_message(out, chat, assistant, "{{ .Content }}", false));
    if (system->present && !chat->spec->system_in_user) {
        text_puts(out, "{{ else if eq .Role \"system\" }}");
        TRY(append_message(out, chat, system, "{{ .Content }}", false));
    }
    if (tool->present) {
        text_puts(out, "{{ else if eq .Role \"tool\" }}");
        TRY(append_message(out, chat, tool, "{{ .Content }}", false));
    }
    text_puts(out, "{{ end }}{{ end }}");
    TRY(append_parts(out, chat, &assistant->before, last && last->id < 0 ? last->size - assistant->answer_part : 0,
                     false));
    return text_check(out);
}
