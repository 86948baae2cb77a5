/* A Config as YAML, and two Configs compared. Texts are always double-quoted with YAML 1.2's escapes, so that no value
 * can be taken for a number, a null or syntax; reals have as many digits as it takes to read the same double. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "configs/config.h"
#include "configs/values.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"

static void write_quoted(const char *text, Text *out) {
    size_t length = strlen(text);
    text_puts(out, "\"");
    for (size_t i = 0; i < length;) {
        uint32_t code;
        int n = utf8_decode(text + i, length - i, &code);
        if (n == 0) { /* cannot be written as YAML; values are checked when they are set */
            code = 0xfffd;
            n = 1;
            text_puts(out, "\\ufffd");
        } else if (code == '"' || code == '\\') {
            text_printf(out, "\\%c", (char)code);
        } else if (code == '\n') {
            text_puts(out, "\\n");
        } else if (code == '\t') {
            text_puts(out, "\\t");
        } else if (code < 0x20 || (code >= 0x7f && code < 0xa0)) {
            text_printf(out, "\\x%02x", (unsigned)code);
        } else if (code == 0x2028 || code == 0x2029 || code == 0xfeff || code == 0xfffe || code == 0xffff) {
            text_printf(out, "\\u%04x", (unsigned)code);
        } else {
            text_append(out, text + i, (size_t)n);
        }
        i += (size_t)n;
    }
    text_puts(out, "\"");
}

static void write_real(double value, Text *out) {
    char digits[40];
    for (int precision = 6; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        double again = strtod(digits, NULL);
        if (again == value) break;
    }
    text_puts(out, digits);
}

static void write_source(const ConfigSource *source, Text *out) {
    for (size_t i = 0; i < source_table_length; i++) {
        text_printf(out, "%s%s: ", i ? ", " : "{", source_table[i].key);
        value_write(&source_table[i], source, out);
    }
    text_puts(out, "}");
}

void value_write(const Option *option, const void *base, Text *out) {
    const void *field = (const char *)base + option->offset;
    char name[64];
    switch (option->type) {
    case OPTION_BOOL:
        text_puts(out, *(const bool *)field ? "true" : "false");
        break;
    case OPTION_INT:
        text_printf(out, "%lld", (long long)*(const int64_t *)field);
        break;
    case OPTION_REAL:
        write_real(*(const double *)field, out);
        break;
    case OPTION_STRING:
    case OPTION_PATH:
        write_quoted(*(const char *const *)field, out);
        break;
    case OPTION_CHOICE:
        text_puts(out, option_choice_name(option, *(const int *)field, name, sizeof name));
        break;
    case OPTION_STRINGS: {
        const ConfigStrings *list = field;
        text_puts(out, "[");
        for (size_t i = 0; i < list->n; i++) {
            if (i) text_puts(out, ", ");
            write_quoted(list->items[i], out);
        }
        text_puts(out, "]");
        break;
    }
    case OPTION_SOURCES: {
        const ConfigSources *list = field;
        if (list->n == 0 && *option->range) {
            write_real(list->share, out);
            break;
        }
        text_puts(out, "[");
        for (size_t i = 0; i < list->n; i++) {
            if (i) text_puts(out, ", ");
            write_source(&list->items[i], out);
        }
        text_puts(out, "]");
        break;
    }
    }
}

/* Options without a section come first, then each section as the table has it; "model.rope_scaling.factor" opens
 * "model:" and "rope_scaling:" where the previous key had not. */
static void write_option(const Config *config, const Option *option, const char *previous, Text *out) {
    const char *key = option->key;
    int indent = 0;
    for (const char *dot; (dot = strchr(key, '.')) != NULL; key = dot + 1, indent += 2) {
        size_t n = (size_t)(dot + 1 - option->key);
        if (strncmp(previous, option->key, n) != 0)
            text_printf(out, "%s%*s%.*s:\n", indent ? "" : "\n", indent, "", (int)(dot - key), key);
    }
    text_printf(out, "%*s%s: ", indent, "", key);
    value_write(option, config, out);
    text_puts(out, "\n");
}

static int write_options(const Config *config, bool only_set, Text *out) {
    const char *previous = "";
    for (int with_section = 0; with_section < 2; with_section++)
        for (size_t i = 0; i < OPTION_COUNT; i++) {
            const Option *option = &option_table[i];
            if ((strchr(option->key, '.') != NULL) != (with_section == 1)) continue;
            if (only_set && !config_is_set(config, (OptionId)i)) continue;
            write_option(config, option, previous, out);
            previous = option->key;
        }
    return text_check(out);
}

int config_write(const Config *config, const char *command, Text *out) {
    text_printf(out, CONFIG_WRITTEN "%s: every option of this run" CONFIG_COMMAND "%s\n", CRIA_VERSION, command);
    return write_options(config, false, out);
}

int config_write_set(const Config *config, Text *out) {
    return write_options(config, true, out);
}

int config_save(const Config *config, const char *command, const char *path) {
    Text text = {0};
    int rc = OK;
    TRY_TO(done, config_write(config, command, &text));
    TRY_TO(done, file_write_atomic(path, text.bytes, text.length));
done:
    text_free(&text);
    return rc;
}

int config_value_text(const Config *config, OptionId id, Text *out) {
    value_write(&option_table[id], config, out);
    return text_check(out);
}

int config_diff(const Config *before, const Config *now, Text *may_change, Text *fixed, size_t *n_fixed) {
    Text old_value = {0}, new_value = {0};
    int rc = OK;
    *n_fixed = 0;
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        const Option *option = &option_table[i];
        text_clear(&old_value);
        text_clear(&new_value);
        value_write(option, before, &old_value);
        value_write(option, now, &new_value);
        TRY_TO(done, text_check(&old_value));
        TRY_TO(done, text_check(&new_value));
        if (strcmp(old_value.bytes, new_value.bytes) == 0) continue;
        Text *out = option->may_change ? may_change : fixed;
        *n_fixed += !option->may_change;
        if (out) text_printf(out, "%s: %s before, %s now\n", option->key, old_value.bytes, new_value.bytes);
    }
done:
    text_free(&old_value);
    text_free(&new_value);
    return rc;
}

static void log_lines(const char *title, char *lines) {
    for (char *next; *lines; lines = next) {
        next = lines + strcspn(lines, "\n");
        if (*next) *next++ = '\0';
        log_info("%s %s", title, lines);
    }
}

int config_check_resume(const Config *before, const Config *now) {
    Text may_change = {0}, fixed = {0};
    size_t n_fixed;
    int rc = OK;
    TRY_TO(done, config_diff(before, now, &may_change, &fixed, &n_fixed));
    if (n_fixed)
        FAIL_TO(done, ERR_USAGE,
                "this run was begun with another config; resuming may not change:\n%sset it back, or choose another "
                "output folder",
                fixed.bytes);
    TRY_TO(done, text_check(&may_change));
    if (may_change.bytes) log_lines("resuming with", may_change.bytes);
done:
    text_free(&may_change);
    text_free(&fixed);
    return rc;
}

int config_check_saved(const char *path, const Config *now) {
    Config *before;
    TRY(config_new(&before));
    int rc = config_load(before, path);
    if (rc == OK) rc = config_check_resume(before, now);
    config_free(before);
    return rc;
}
