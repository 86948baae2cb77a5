/* A template as Jinja, as transformers renders it: {{- and -}} everywhere, so that no line end of the Jinja text itself
 * is output. `messages` is a list of {role, content[, tool_calls]}; date_string may be given. */
#include <string.h>

#include "data/chat/template.h"
#include "data/chat/template_parts.h"
#include "model/core/error.h"

static void append_quoted(Text *out, const char *bytes, size_t size) {
    text_puts(out, "'");
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] == '\n')
            text_puts(out, "\\n");
        else if (bytes[i] == '\t')
            text_puts(out, "\\t");
        else if (bytes[i] == '\'' || bytes[i] == '\\')
            text_printf(out, "\\%c", bytes[i]);
        else
            text_append(out, bytes + i, 1);
    }
    text_puts(out, "'");
}

/* The last `less` bytes are left out. */
static void append_parts(Text *out, const ChatTemplate *chat, const ChatParts *parts, bool has_date, size_t less) {
    const char *between = "{{- ";
    for (size_t i = 0; i < parts->n; i++) {
        const ChatPart *part = &parts->parts[i];
        size_t size = part->size - (i + 1 == parts->n ? less : 0);
        if (size == 0) continue;
        text_puts(out, between);
        between = " ~ ";
        const char *date = has_date && part->id < 0 ? memmem(part->text, size, chat->date, strlen(chat->date)) : NULL;
        if (part->id >= 0 && part->id == chat->bos) {
            text_puts(out, "bos_token");
        } else if (part->id >= 0 && memcmp(part->text, "{eos}", 5) == 0) {
            text_puts(out, "eos_token");
        } else if (date) {
            const char *rest = date + strlen(chat->date);
            append_quoted(out, part->text, (size_t)(date - part->text));
            text_puts(out, " ~ date_string ~ ");
            append_quoted(out, rest, size - (size_t)(rest - part->text));
        } else {
            append_quoted(out, part->text, size);
        }
    }
    if (*between != '{') text_puts(out, " }}");
}

static void append_content(Text *out, const ChatTemplate *chat, const char *value) {
    text_printf(out, "{{- %s%s }}", value, chat->spec->trim ? " | trim" : "");
}

static bool has_date(const ChatTemplate *chat, ChatRole role) {
    const char *before = chat->spec->role[role].before;
    return before && strstr(before, "{date}");
}

static void append_system(Text *out, const ChatTemplate *chat) {
    const ChatTemplatePart *role = &chat->role[CHAT_SYSTEM];
    append_parts(out, chat, &role->before, has_date(chat, CHAT_SYSTEM), 0);
    append_content(out, chat, "system");
    append_parts(out, chat, &role->after, false, 0);
}

/* Sets `system` and `turns`, and shows the system message where it has a place of its own. */
static void append_head(Text *out, const ChatTemplate *chat) {
    const ChatTemplateSpec *spec = chat->spec;
    if (has_date(chat, CHAT_SYSTEM)) {
        text_puts(out, "{%- if date_string is not defined %}{%- set date_string = ");
        append_quoted(out, chat->date, strlen(chat->date));
        text_puts(out, " %}{%- endif %}");
    }
    append_parts(out, chat, &chat->begin, false, 0);
    text_puts(out, "{%- if messages and messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
                   "{%- set turns = messages[1:] %}{%- else %}{%- set system = ");
    if (spec->default_system || spec->always_system)
        append_quoted(out, spec->default_system ? spec->default_system : "",
                      spec->default_system ? strlen(spec->default_system) : 0);
    else
        text_puts(out, "none");
    text_puts(out, " %}{%- set turns = messages %}{%- endif %}\n");
    if (!chat->role[CHAT_SYSTEM].present)
        text_puts(out, "{%- if system is not none %}{{- raise_exception('there is no system role') }}{%- endif %}\n");
    else if (!spec->system_in_user) {
        text_puts(out, "{%- if system is not none %}");
        append_system(out, chat);
        text_puts(out, "{%- endif %}\n");
    }
}

/* The calls: with built-in tools their own form and end. */
static void append_call(Text *out, const ChatTemplate *chat) {
    static const char json[] = "{{- '{\"name\": \"' ~ call.name ~ '\", \"parameters\": ' }}{{- call.arguments | tojson "
                               "}}{{- '}' }}";
    text_puts(out, "{%- set call = message['tool_calls'][0].function %}");
    if (!chat->builtin_tools) {
        text_puts(out, json);
        return;
    }
    text_puts(out, "{%- if call.name in ");
    append_quoted(out, chat->builtin_tools, strlen(chat->builtin_tools));
    text_puts(out, ".split(',') %}{{- ");
    append_quoted(out, chat->spec->call_tag, strlen(chat->spec->call_tag));
    text_puts(out, " ~ call.name ~ '.call(' }}{%- for key, value in call.arguments | items %}{{- key ~ '=\"' ~ value ~ "
                   "'\"' }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ')' }}{%- else %}");
    text_puts(out, json);
    text_puts(out, "{%- endif %}");
}

static void append_assistant(Text *out, const ChatTemplate *chat) {
    const ChatTemplatePart *role = &chat->role[CHAT_ASSISTANT];
    text_puts(out, "{%- elif message['role'] == 'assistant' %}");
    append_parts(out, chat, &role->before, false, 0);
    if (chat->spec->tool_calls) {
        text_puts(out, "{%- if message['tool_calls'] is defined and message['tool_calls'] %}");
        append_call(out, chat);
        if (chat->builtin_tools) {
            text_puts(out, "{{- ");
            append_quoted(out, chat->spec->call_stop, strlen(chat->spec->call_stop));
            text_puts(out, " }}");
        } else {
            append_parts(out, chat, &role->after, false, 0);
        }
        text_puts(out, "{%- else %}");
    }
    append_content(out, chat, "message['content']");
    append_parts(out, chat, &role->after, false, 0);
    if (chat->spec->tool_calls) text_puts(out, "{%- endif %}");
    text_puts(out, "\n");
}

static void append_tool(Text *out, const ChatTemplate *chat) {
    const ChatTemplatePart *role = &chat->role[CHAT_TOOL];
    if (!role->present) return;
    text_puts(out, "{%- elif message['role'] == 'tool' or message['role'] == 'ipython' %}");
    append_parts(out, chat, &role->before, false, 0);
    if (chat->spec->tool_json)
        text_puts(out, "{{- message['content'] | tojson }}");
    else
        append_content(out, chat, "message['content']");
    append_parts(out, chat, &role->after, false, 0);
    text_puts(out, "\n");
}

int chat_template_jinja(const ChatTemplate *chat, Text *out) {
    const ChatTemplatePart *user = &chat->role[CHAT_USER], *assistant = &chat->role[CHAT_ASSISTANT];
    append_head(out, chat);
    text_puts(out, "{%- for message in turns %}{%- if message['role'] == 'user' %}");
    append_parts(out, chat, &user->before, false, 0);
    if (chat->spec->system_in_user) {
        text_puts(out, "{%- if loop.first and system is not none %}");
        append_system(out, chat);
        text_puts(out, "{%- endif %}");
    }
    append_content(out, chat, "message['content']");
    append_parts(out, chat, &user->after, false, 0);
    text_puts(out, "\n");
    append_assistant(out, chat);
    append_tool(out, chat);
    text_puts(out, "{%- else %}{{- raise_exception('there is no role ' ~ message['role']) }}{%- endif %}{%- endfor %}\n"
                   "{%- if add_generation_prompt %}");
    const ChatPart *last = assistant->before.n > 0 ? &assistant->before.parts[assistant->before.n - 1] : NULL;
    append_parts(out, chat, &assistant->before, false, last && last->id < 0 ? last->size - assistant->answer_part : 0);
    text_puts(out, "{%- endif %}\n");
    return text_check(out);
}
