/* A command's arguments: words, --flags, key=value options, and --help. A command describes what it takes:
 *
 *     const char *prompt = "";
 *     bool json = false;
 *     const Flag flags[] = {
 *         {"prompt", 'p', FLAG_TEXT, &prompt, "TEXT", "", "what the text begins with"},
 *         {"json", 0, FLAG_SWITCH, &json, "", "", "print one JSON object"},
 *     };
 *     CliResult cli;
 *     TRY(cli_parse(&cli, &(CliSpec){.usage = "MODEL [flags]", .about = "…", .flags = flags, .n_flags = 2,
 *                                    .min_words = 1, .max_words = 1}, argc, argv));
 *     if (cli.helped) return OK;
 *     … cli.words[0] …
 */
#ifndef CRIA_TRAIN_CLI_H
#define CRIA_TRAIN_CLI_H

#include <stdbool.h>
#include <stddef.h>

#include "configs/config.h"

typedef enum {
    FLAG_SWITCH, /* bool: true when given */
    FLAG_INT,    /* int64_t */
    FLAG_REAL,   /* double */
    FLAG_TEXT,   /* const char *, into argv */
    FLAG_OPTION, /* another name for --NAME of `section`: {"max-new-tokens", 'n', FLAG_OPTION, NULL, "N", "", "…"} */
} FlagKind;

typedef struct {
    const char *name; /* "prompt" is --prompt */
    char letter;      /* 'p' is -p; 0: none */
    FlagKind kind;
    void *value;          /* left alone when the flag is absent */
    const char *argument; /* "TEXT", for the help */
    const char *range;    /* numbers: as in the option table, ">= 1"; "" or NULL: any */
    const char *help;     /* one line */
} Flag;

typedef struct {
    const char *usage; /* what follows the command's name: "MODEL [flags]" */
    const char *about; /* a line or a few */
    const Flag *flags;
    size_t n_flags;
    int min_words, max_words;
    /* With a config, key=value arguments are taken, and --top-k 5 means SECTION.top_k=5 (or top_k=5). */
    Config *config;
    bool config_file; /* word 0, where there is one, is a YAML file, read before arguments are applied */
    int (*load)(Config *config, const char *path, void *context); /* reads it instead of config_load; may be NULL */
    void *load_context;
    const char *section;  /* "generate"; NULL: none */
    const char *sections; /* what --help lists, as config_help; NULL: all */
} CliSpec;

typedef struct {
    char **words; /* in order, within argv (which is rearranged) */
    int n_words;
    bool helped; /* --help was asked for and has been printed */
} CliResult;

/* A command that is several: `cria data lint`. */
typedef struct {
    const char *verb;
    int (*run)(int argc, char **argv); /* argv[0] is "data lint" */
} CliVerb;
/* Runs the verb that argv[1] names; --help prints `help`. argv[0] is the command's name. */
int cli_run_verb(const CliVerb *verbs, size_t n, const char *help, int argc, char **argv);

/* Errors are ERR_USAGE and name the argument. argv[0] is the command's name; "--" ends flags; "-" is a word. */
int cli_parse(CliResult *result, const CliSpec *spec, int argc, char **argv);

#endif
