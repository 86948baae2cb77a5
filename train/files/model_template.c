/* See model_template.h. */
#include "train/files/model_template.h"

#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"

void model_template_free(ModelTemplate *model_template) {
    chat_template_free(model_template->chat);
    saved_template_free(&model_template->saved);
    *model_template = (ModelTemplate){0};
}

/* ---- written in the config ---- */

static bool is_written(const Config *c) {
    const char *const texts[] = {c->template_begin,           c->template_system_before,  c->template_system_after,
                                 c->template_user_before,     c->template_user_after,     c->template_assistant_before,
                                 c->template_assistant_after, c->template_assistant_stop, c->template_tool_before,
                                 c->template_tool_after};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (*texts[i]) return true;
    return false;
}

static bool is_unnamed(const Config *c) {
    return !*c->template_name || strcmp(c->template_name, "from-model") == 0;
}

static ChatTemplateRole optional_role(const char *before, const char *after) {
    return *before || *after ? (ChatTemplateRole){before, after, NULL} : (ChatTemplateRole){0};
}

static const char *or_null(const char *text) {
    return *text ? text : NULL;
}

static int read_written(ChatTemplateSpec *spec, const Config *c) {
    if (chat_template_spec(c->template_name))
        return config_fail(c, OPTION_template_name,
                           "%s is a template that cria knows, and the config writes texts of its own; give that one "
                           "another name, or none",
                           c->template_name);
    *spec =
        (ChatTemplateSpec){.name = is_unnamed(c) ? "custom" : c->template_name,
                           .begin = c->template_begin,
                           .role = {[CHAT_SYSTEM] = optional_role(c->template_system_before, c->template_system_after),
                                    [CHAT_USER] = {c->template_user_before, c->template_user_after, NULL},
                                    [CHAT_ASSISTANT] = {c->template_assistant_before, c->template_assistant_after,
                                                        c->template_assistant_stop},
                                    [CHAT_TOOL] = optional_role(c->template_tool_before, c->template_tool_after)},
                           .trim = c->template_trim,
                           .system_in_user = c->template_system_in_user,
                           .default_system = or_null(c->template_default_system)};
    if (spec->system_in_user && !spec->role[CHAT_SYSTEM].before)
        return config_fail(c, OPTION_template_system_in_user, "the template has no template.system.before and .after");
    return OK;
}

/* ---- choosing ---- */

static int find_named(ChatTemplateSpec *spec, const Config *c) {
    size_t n;
    const char *const *names = chat_template_names(&n);
    const ChatTemplateSpec *found = chat_template_spec(c->template_name);
    if (found) {
        *spec = *found;
        return OK;
    }
    const char *nearest = text_nearest(c->template_name, names, n);
    return config_fail(c, OPTION_template_name,
                       "there is no template '%s'%s%s%s; known: llama2, llama3, llama3.1, llama3.2, alpaca, chatml, "
                       "plain; one of your own needs template.user.before and so on",
                       c->template_name, nearest ? "; did you mean '" : "", nearest ? nearest : "",
                       nearest ? "'?" : "");
}

#define HOW_TO_WRITE                                                                                                   \
    "name a known one (template.name=llama3, say: llama2, llama3, llama3.1, llama3.2, alpaca, chatml, plain), or "     \
    "write it in the config: template: {user: {before: \"…\", after: \"…\"}, assistant: {before: \"…\", after: " \
    "\"…\", stop: \"…\"}} ('cria help options' explains them)"

static int read_own(ModelTemplate *m, const char *jinja, const char *model, const Tokenizer *tokenizer) {
    bool found;
    if (!jinja) FAIL(ERR_USAGE, "%s has no chat template; " HOW_TO_WRITE, model);
    TRY(saved_template_read(&m->saved, &found, jinja, tokenizer));
    if (!found) FAIL(ERR_REFUSED, "%s: its chat template is none that cria knows; " HOW_TO_WRITE, model);
    m->spec = m->saved.spec;
    m->options = m->saved.options;
    return OK;
}

static bool has_date(const ChatTemplateSpec *spec) {
    bool found = spec->begin && strstr(spec->begin, "{date}");
    for (int r = 0; r < N_CHAT_ROLES && !found; r++)
        found = (spec->role[r].before && strstr(spec->role[r].before, "{date}")) ||
                (spec->role[r].after && strstr(spec->role[r].after, "{date}"));
    return found;
}

int model_template_choose(ModelTemplate *m, const Config *c, const char *jinja, const char *model,
                          const Tokenizer *tokenizer) {
    *m = (ModelTemplate){0};
    if (is_written(c))
        TRY(read_written(&m->spec, c));
    else if (is_unnamed(c))
        TRY(read_own(m, jinja, model, tokenizer));
    else
        TRY(find_named(&m->spec, c));
    if (*c->template_date) m->options.date = c->template_date;
    if (*c->template_date && !has_date(&m->spec))
        log_warning("template.date has no effect: template %s has no date", m->spec.name);
    if (*c->template_builtin_tools) m->options.builtin_tools = c->template_builtin_tools;
    return OK;
}

int model_template_extend(const ModelTemplate *m, const Config *c, const Tokenizer *tokenizer, Tokenizer **extended) {
    char **names;
    size_t n;
    *extended = NULL;
    TRY(chat_spec_missing(&m->spec, c->template_tokens.items, c->template_tokens.n, tokenizer, &names, &n));
    int rc = n > 0 ? tokenizer_extend(extended, tokenizer, (const char *const *)names, n) : OK;
    names_free(names, n);
    return rc;
}

void model_template_tell_growth(const ModelTemplate *m, const Tokenizer *tokenizer, const Tokenizer *extended) {
    int before = tokenizer_vocab_size(tokenizer), after = tokenizer_vocab_size(extended);
    Text list = {0};
    for (int32_t id = before; id < after; id++)
        text_printf(&list, "%s%s", id > before ? ", " : "", tokenizer_name(extended, id));
    log_info("template %s needs tokens that the tokenizer lacks: %s; the vocabulary grows from %d to %d", m->spec.name,
             list.bytes ? list.bytes : "", before, after);
    text_free(&list);
}

int model_template_open(ModelTemplate *m, const Tokenizer *tokenizer) {
    return chat_template_new(&m->chat, &m->spec, &m->options, tokenizer);
}
