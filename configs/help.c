/* --help, from the option table. */
#include <string.h>

#include "configs/config.h"

/* Whether `word` (n bytes) is among the space-separated words of `list`; NULL lists everything. */
static bool listed(const char *list, const char *word, size_t n) {
    if (!list) return true;
    for (const char *at = list; *at;) {
        size_t length = strcspn(at, " ");
        if (length == n && memcmp(at, word, n) == 0) return true;
        at += length + (at[length] == ' ');
    }
    return false;
}

bool config_in_sections(OptionId id, const char *sections) {
    const char *key = option_table[id].key;
    return listed(sections, key, strcspn(key, "."));
}

static void describe(const Option *option, const char *indent, Text *out) {
    char expected[256];
    text_printf(out, "%s%s: %s%s%s", indent, option->key, option_expected(option, expected, sizeof expected),
                *option->unit ? ", " : "", option->unit);
    if (*option->default_text) text_printf(out, "; default %s", option->default_text);
    text_printf(out, "\n%s    %s\n", indent, option->help);
    if (*option->source) text_printf(out, "%s    [%s]\n", indent, option->source);
}

void config_help(Text *out, const char *sections) {
    const char *current = "";
    size_t current_length = 0;
    text_puts(out, "Options, as 'section: {key: value}' in CONFIG.yaml or section.key=value on the command line.\n"
                   "Numbers take 1e6, 1_000 and (whole ones) 64k = 65536.\n");
    for (int with_section = 0; with_section < 2; with_section++)
        for (size_t i = 0; i < OPTION_COUNT; i++) {
            const Option *option = &option_table[i];
            size_t n = strcspn(option->key, ".");
            bool has_section = option->key[n] == '.';
            if (has_section != (with_section == 1) || !config_in_sections((OptionId)i, sections)) continue;
            size_t length = has_section ? n : 0;
            if (length != current_length || memcmp(option->key, current, length) != 0 || out->length == 0)
                text_printf(out, "\n%.*s\n", (int)n, option->key);
            else if (!has_section && !*current)
                text_puts(out, "\n");
            current = option->key;
            current_length = length;
            describe(option, "  ", out);
            if (option->type != OPTION_SOURCES || *option->range) continue;
            for (size_t k = 0; k < source_table_length; k++) describe(&source_table[k], "      ", out);
        }
}
