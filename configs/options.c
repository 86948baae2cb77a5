/* The table itself, and what its text columns mean. */
#include "configs/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "configs/config.h"

enum { FIXED = false, MAY_CHANGE = true };

const Option option_table[OPTION_COUNT] = {
#define OPTION(field, key, type, default_text, range, unit, resume, help, source) \
    [OPTION_##field] = {key, OPTION_##type, default_text, range, unit, resume, help, source, offsetof(Config, field)},
#include "configs/all_options.def"
#undef OPTION
};

const Option source_table[] = {
#define OPTION(...)
#define SOURCE(field, type, default_text, range, unit, help) \
    {#field, OPTION_##type, default_text, range, unit, false, help, "", offsetof(ConfigSource, field)},
#include "configs/all_options.def"
#undef SOURCE
#undef OPTION
};
const size_t source_table_length = sizeof source_table / sizeof *source_table;

int option_choice_index(const Option *option, const char *name) {
    size_t length = strlen(name);
    int index = 0;
    for (const char *at = option->range; *at; index++) {
        size_t n = strcspn(at, "|");
        if (n == length && memcmp(at, name, n) == 0) return index;
        at += n + (at[n] == '|');
    }
    return -1;
}

const char *option_choice_name(const Option *option, int index, char *out, size_t size) {
    const char *at = option->range;
    for (; index > 0 && *at; index--) {
        size_t n = strcspn(at, "|");
        at += n + (at[n] == '|');
    }
    snprintf(out, size, "%.*s", index < 0 ? 0 : (int)strcspn(at, "|"), at);
    return out;
}

/* One comparison, ">= 0", off the front of *at. */
static bool take_comparison(const char **at, char *operation, bool *or_equal, double *bound) {
    *operation = *(*at)++;
    *or_equal = **at == '=';
    if (*or_equal) ++*at;
    char *end;
    *bound = strtod(*at, &end);
    bool good = (*operation == '<' || *operation == '>') && end != *at;
    *at = end;
    while (**at == ' ') ++*at;
    return good;
}

bool option_in_range(const Option *option, double value) {
    for (const char *at = option->range; *at;) {
        char operation;
        bool or_equal;
        double bound;
        if (!take_comparison(&at, &operation, &or_equal, &bound)) return false;
        bool holds = (operation == '<' ? value < bound : value > bound);
        /* the bounds are exact: equality is meant */
        if (!holds && !(or_equal && !(value < bound) && !(value > bound))) return false;
    }
    return true;
}

static void describe_range(const Option *option, char *out, size_t size) {
    size_t used = 0;
    out[0] = '\0';
    for (const char *at = option->range; *at && used + 1 < size; at++) {
        bool next = (*at == '<' || *at == '>') && at != option->range;
        int n = snprintf(out + used, size - used, "%s%c", next ? "and " : "", *at);
        used += n > 0 ? (size_t)n : 0;
    }
}

const char *option_expected(const Option *option, char *out, size_t size) {
    static const char *const nouns[] = {
        [OPTION_BOOL] = "true or false",
        [OPTION_INT] = "a whole number",
        [OPTION_REAL] = "a number",
        [OPTION_STRING] = "a text",
        [OPTION_PATH] = "a path",
        [OPTION_CHOICE] = "one of ",
        [OPTION_STRINGS] = "a list of texts",
        [OPTION_SOURCES] = "a path or a list of paths or sources",
    };
    const char *noun = nouns[option->type];
    char range[160];
    describe_range(option, range, sizeof range);
    if (option->type == OPTION_CHOICE) {
        size_t used = (size_t)snprintf(out, size, "%s", noun);
        for (const char *at = option->range; *at && used < size; at++) {
            int n = *at == '|' ? snprintf(out + used, size - used, ", ") : snprintf(out + used, size - used, "%c", *at);
            used += n > 0 ? (size_t)n : 0;
        }
    } else if (option->type == OPTION_SOURCES) {
        snprintf(out, size, "%s%s%s", *range ? "a share " : "", range,
                 *range ? ", or a path or a list of paths or sources" : noun);
    } else {
        snprintf(out, size, "%s%s%s", noun, *range ? " " : "", range);
    }
    return out;
}
