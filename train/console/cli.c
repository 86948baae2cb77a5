/* See cli.h. One pass sorts the arguments; the config file is read; then the options are applied in their order. */
#include "train/console/cli.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

enum { NAME_SIZE = 96, MOST_NAMES = 256 };

typedef struct {
    char key[NAME_SIZE];
    const char *value;
    char where[NAME_SIZE + 4]; /* "--top-k"; "": an argument, by position */
    int position;
} Setting;

typedef struct {
    const CliSpec *spec;
    const char *command;
    Setting *settings; /* options to apply once the config file is read */
    size_t n_settings;
} Parser;

static void print_help(const CliSpec *spec, const char *command) {
    printf("usage: cria %s %s\n\n%s\n", command, spec->usage, spec->about);
    if (spec->n_flags) printf("\n");
    for (size_t i = 0; i < spec->n_flags; i++) {
        const Flag *flag = &spec->flags[i];
        char name[NAME_SIZE], letter[8] = "";
        if (flag->letter) snprintf(letter, sizeof letter, "-%c, ", flag->letter);
        snprintf(name, sizeof name, "%s--%s %s", letter, flag->name, flag->argument ? flag->argument : "");
        printf("  %-28s %s\n", name, flag->help);
    }
    if (!spec->config) return;
    Text options = {0};
    config_help(&options, spec->sections);
    if (spec->section) printf("\nOptions of %s may also be written as flags: --some-key VALUE.\n", spec->section);
    printf("\n%s", options.bytes ? options.bytes : "");
    text_free(&options);
}

/* The option that --name stands for: SECTION.name or name, with '_' for '-'. */
static bool option_of_flag(const CliSpec *spec, const char *name, char key[NAME_SIZE]) {
    if (!spec->config || strlen(name) > NAME_SIZE / 2) return false;
    for (int with_section = 1; with_section >= 0; with_section--) {
        if (with_section && !spec->section) continue;
        snprintf(key, NAME_SIZE, "%s%s%s", with_section ? spec->section : "", with_section ? "." : "", name);
        for (char *at = key; *at; at++)
            if (*at == '-') *at = '_';
        if (config_has_key(key)) return true;
    }
    return false;
}

static int unknown_flag(const Parser *parser, const char *name) {
    const CliSpec *spec = parser->spec;
    const char *names[MOST_NAMES];
    char spelled[MOST_NAMES][NAME_SIZE];
    size_t n = 0, prefix = spec->section ? strlen(spec->section) + 1 : 0;
    for (; n < spec->n_flags && n < MOST_NAMES; n++) names[n] = spec->flags[n].name;
    for (size_t i = 0; spec->config && spec->section && i < OPTION_COUNT && n < MOST_NAMES; i++) {
        const char *key = option_table[i].key;
        if (strncmp(key, spec->section, prefix - 1) != 0 || key[prefix - 1] != '.') continue;
        snprintf(spelled[n], NAME_SIZE, "%s", key + prefix);
        for (char *at = spelled[n]; *at; at++)
            if (*at == '_') *at = '-';
        names[n] = spelled[n];
        n++;
    }
    const char *nearest = text_nearest(name, names, n);
    if (nearest)
        FAIL(ERR_USAGE, "cria %s: there is no flag '--%s'; did you mean '--%s'?", parser->command, name, nearest);
    FAIL(ERR_USAGE, "cria %s: there is no flag '%s%s'; 'cria help %s' lists them", parser->command,
         strlen(name) == 1 ? "-" : "--", name, parser->command);
}

static int set_number(const Flag *flag, const char *shown, const char *text) {
    const Option range = {.type = flag->kind == FLAG_INT ? OPTION_INT : OPTION_REAL,
                          .range = flag->range ? flag->range : ""};
    char expected[128];
    int64_t whole = 0;
    double real = 0;
    bool good = flag->kind == FLAG_INT ? text_parse_int(text, &whole) : text_parse_double(text, &real);
    if (flag->kind == FLAG_INT) real = (double)whole;
    if (!good || !isfinite(real) || !option_in_range(&range, real))
        FAIL(ERR_USAGE, "%s: found '%s', expected %s", shown, text, option_expected(&range, expected, sizeof expected));
    if (flag->kind == FLAG_INT)
        *(int64_t *)flag->value = whole;
    else
        *(double *)flag->value = real;
    return OK;
}

static void add_setting(Parser *parser, const char *key, const char *value, const char *where, int position) {
    Setting *setting = &parser->settings[parser->n_settings++];
    snprintf(setting->key, sizeof setting->key, "%s", key);
    snprintf(setting->where, sizeof setting->where, "%s", where);
    setting->value = value;
    setting->position = position;
}

/* The flag argv[*at], "--name", "--name=value" or "-n", with its value from the next argument where it needs one. */
static int take_flag(Parser *parser, int argc, char **argv, int *at) {
    const CliSpec *spec = parser->spec;
    const char *argument = argv[*at], *value = NULL, *equals = strchr(argument, '=');
    bool is_long = argument[1] == '-';
    char name[NAME_SIZE], shown[NAME_SIZE + 3], key[NAME_SIZE];
    size_t length = is_long && equals ? (size_t)(equals - argument - 2) : strlen(argument) - (is_long ? 2 : 1);
    snprintf(name, sizeof name, "%.*s", (int)(length < NAME_SIZE ? length : NAME_SIZE), argument + (is_long ? 2 : 1));
    snprintf(shown, sizeof shown, "%s%s", is_long ? "--" : "-", name);
    if (is_long && equals) value = equals + 1;
    const Flag *flag = NULL;
    for (size_t i = 0; i < spec->n_flags && !flag; i++)
        if (is_long ? strcmp(spec->flags[i].name, name) == 0 : name[1] == '\0' && spec->flags[i].letter == name[0])
            flag = &spec->flags[i];
    if (flag && flag->kind == FLAG_SWITCH) {
        if (value) FAIL(ERR_USAGE, "%s is a switch and takes no value", shown);
        *(bool *)flag->value = true;
        return OK;
    }
    bool option = flag ? flag->kind == FLAG_OPTION && option_of_flag(spec, flag->name, key)
                       : is_long && option_of_flag(spec, name, key);
    if (!flag && !option) return unknown_flag(parser, name);
    if (!value) {
        if (*at + 1 >= argc)
            FAIL(ERR_USAGE, "%s needs a value: %s", shown, flag && flag->argument ? flag->argument : "VALUE");
        value = argv[++*at];
    }
    if (option)
        add_setting(parser, key, value, shown, 0);
    else if (flag->kind == FLAG_TEXT)
        *(const char **)flag->value = value;
    else if (flag->kind == FLAG_OPTION)
        FAIL(ERR_FAILED, "%s names no option", shown);
    else
        TRY(set_number(flag, shown, value));
    return OK;
}

/* "optim.lr=1": a key is lower-case letters, digits, '_' and '.'. */
static bool looks_like_setting(const char *argument) {
    const char *at = argument;
    while (islower((unsigned char)*at) || isdigit((unsigned char)*at) || *at == '_' || *at == '.') at++;
    return *at == '=' && at != argument;
}

static int take_setting(Parser *parser, const char *argument, int position) {
    char key[NAME_SIZE];
    size_t length = (size_t)(strchr(argument, '=') - argument);
    if (length >= sizeof key) FAIL(ERR_USAGE, "argument %d: a key of %zu letters", position, length);
    snprintf(key, sizeof key, "%.*s", (int)length, argument);
    add_setting(parser, key, argument + length + 1, "", position);
    return OK;
}

static int apply(const Parser *parser, const CliResult *result) {
    Config *config = parser->spec->config;
    const CliSpec *spec = parser->spec;
    if (spec->config_file && result->n_words > 0)
        TRY(spec->load ? spec->load(config, result->words[0], spec->load_context)
                       : config_load(config, result->words[0]));
    for (size_t i = 0; i < parser->n_settings; i++) {
        const Setting *setting = &parser->settings[i];
        char where[2 * NAME_SIZE + 64];
        if (*setting->where)
            snprintf(where, sizeof where, "%s", setting->where);
        else
            snprintf(where, sizeof where, "argument %d (%s=%.80s)", setting->position, setting->key, setting->value);
        TRY(config_set(config, setting->key, setting->value, where));
    }
    return OK;
}

static int take_all(Parser *parser, CliResult *result, int argc, char **argv) {
    const CliSpec *spec = parser->spec;
    bool flags_end = false;
    for (int at = 1; at < argc; at++) {
        char *argument = argv[at];
        if (!flags_end && strcmp(argument, "--") == 0)
            flags_end = true;
        else if (!flags_end && argument[0] == '-' && argument[1] != '\0')
            TRY(take_flag(parser, argc, argv, &at));
        else if (!flags_end && spec->config && looks_like_setting(argument))
            TRY(take_setting(parser, argument, at + 1)); /* counting from cria itself, as a shell's user does */
        else
            result->words[result->n_words++] = argument; /* never beyond `at` */
    }
    if (result->n_words < spec->min_words || result->n_words > spec->max_words)
        FAIL(ERR_USAGE, "cria %s: %s%s%s; usage: cria %s %s", parser->command,
             result->n_words < spec->min_words ? "something is missing" : "what is '",
             result->n_words < spec->min_words ? "" : result->words[spec->max_words],
             result->n_words < spec->min_words ? "" : "'?", parser->command, spec->usage);
    if (spec->config) TRY(apply(parser, result));
    return OK;
}

int cli_parse(CliResult *result, const CliSpec *spec, int argc, char **argv) {
    *result = (CliResult){.words = argv + 1};
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help(spec, argv[0]);
            result->helped = true;
            return OK;
        }
    Parser parser = {.spec = spec, .command = argv[0], .settings = calloc((size_t)argc, sizeof(Setting))};
    if (!parser.settings) FAIL(ERR_FAILED, "out of memory for %d arguments", argc);
    int rc = take_all(&parser, result, argc, argv);
    free(parser.settings);
    return rc;
}

static void list_verbs(Text *out, const CliVerb *verbs, size_t n) {
    for (size_t i = 0; i < n; i++) text_printf(out, "%s'%s'", i == 0 ? "" : i + 1 < n ? ", " : " or ", verbs[i].verb);
}

int cli_run_verb(const CliVerb *verbs, size_t n, const char *help, int argc, char **argv) {
    const char *found = argc > 1 ? argv[1] : "";
    if (strcmp(found, "--help") == 0 || strcmp(found, "-h") == 0) {
        fputs(help, stdout);
        return OK;
    }
    for (size_t i = 0; i < n; i++) {
        char name[32];
        if (strcmp(found, verbs[i].verb) != 0) continue;
        snprintf(name, sizeof name, "%s %s", argv[0], found);
        argv[1] = name;
        return verbs[i].run(argc - 1, argv + 1);
    }
    Text expected = {0};
    list_verbs(&expected, verbs, n);
    error_set(ERR_USAGE, __FILE__, __LINE__, "cria %s: expected %s%s%s", argv[0], expected.bytes,
              argc > 1 ? ", found " : "", found);
    text_free(&expected);
    return ERR_USAGE;
}
