/* A config: one field per row of the option table, filled from defaults, then a YAML file, then key=value arguments.
 *
 *     Config *config;
 *     TRY(config_new(&config));
 *     TRY_TO(done, config_load(config, "a.yaml"));
 *     TRY_TO(done, config_override(config, argv + 2, argc - 2, 2));
 *     TRY_TO(done, config_check(config));
 *     … config->optim_lr … config->data_train.items[0].path …
 *
 * Fields may be assigned (what a command resolves — the preset's width, the tokenizer's vocabulary — belongs in the
 * saved config); texts with config_set_text. The field's C type follows from the row's, so a wrong use does not
 * compile.
 */
#ifndef CRIA_CONFIGS_CONFIG_H
#define CRIA_CONFIGS_CONFIG_H

#include "configs/options.h"
#include "model/core/text.h"

typedef bool ConfigBOOL;
typedef int64_t ConfigINT;
typedef double ConfigREAL;
typedef const char *ConfigSTRING;
typedef const char *ConfigPATH;
typedef int ConfigCHOICE;

typedef struct {
    const char **items;
    size_t n;
} ConfigStrings;
typedef ConfigStrings ConfigSTRINGS;

typedef struct {
#define OPTION(...)
#define SOURCE(field, type, default_text, range, unit, help) Config##type field;
#include "configs/all_options.def"
#undef SOURCE
#undef OPTION
} ConfigSource;

typedef struct {
    ConfigSource *items;
    size_t n;
    double share; /* where a number was given instead of sources (then n is 0) */
} ConfigSources;
typedef ConfigSources ConfigSOURCES;

typedef struct ConfigPrivate ConfigPrivate;

typedef struct Config {
#define OPTION(field, key, type, ...) Config##type field;
#include "configs/all_options.def"
#undef OPTION
    ConfigPrivate *hidden;
} Config;

int config_new(Config **config); /* every option at its default */
void config_free(Config *config);

/* Errors are ERR_USAGE and name file, line, column and key. */
int config_load(Config *config, const char *path);
int config_parse(Config *config, const char *name, const char *bytes, size_t size);
/* The entries of a mapping (yaml.h) that was read from the file `name`. */
struct YamlNode;
int config_apply(Config *config, const struct YamlNode *mapping, const char *name);
/* One option as `from` has it, with where that was set. */
int config_copy_option(Config *config, const Config *from, OptionId id);

/* key=value arguments; a later one wins. Lists are written as in YAML: stop=["\n\n","END"]; a plain text is one entry.
 * first_position: the number of args[0] on the command line, for messages (argv's own index: the command is 1). */
int config_override(Config *config, char *const *args, int n, int first_position);
/* One key; `where` is named in messages ("argument 3", "--temperature"). */
int config_set(Config *config, const char *key, const char *value, const char *where);
bool config_has_key(const char *key);
/* Whether the first part of the option's key is among `sections`, words with spaces between them; NULL: all are. */
bool config_in_sections(OptionId id, const char *sections);
int config_set_text(Config *config, OptionId id, const char *text); /* a STRING or PATH field, copied */

/* The rules between keys: run length given once, micro-batch at least the context, supported precision, … */
int config_check(const Config *config);
/* ERR_USAGE where this option was left empty (text or list) or at 0. */
int config_require(const Config *config, OptionId id);

/* Whether the file or an argument set it; where ("a.yaml:12:3", "argument 2", "default"). */
bool config_is_set(const Config *config, OptionId id);
const char *config_where(const Config *config, OptionId id);
/* An ERR_USAGE that begins with where this option was set, and its key. */
int config_fail(const Config *config, OptionId id, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* YAML with every key in the table's order; reading it gives an equal config. */
/* Its first line says what wrote it: CONFIG_WRITTEN …CONFIG_COMMAND and the command whose run it is of. */
int config_write(const Config *config, const char *command, Text *out);
int config_write_set(const Config *config, Text *out); /* those alone that were set, without a heading */
int config_save(const Config *config, const char *command, const char *path); /* atomically */
#define CONFIG_WRITTEN "# written by cria "
#define CONFIG_COMMAND " of cria "
/* One option's value as it would be written, on one line; for messages. */
int config_value_text(const Config *config, OptionId id, Text *out);

/* The options in which two configs differ, one line each, "optim.lr: 0.0003 before, 0.0001 now": those a resumed run
 * may change, and those it may not. Each Text is appended to; either may be NULL. *n_fixed counts the latter. */
int config_diff(const Config *before, const Config *now, Text *may_change, Text *fixed, size_t *n_fixed);
/* ERR_USAGE, with the differences, where a run begun with `before` may not be resumed with `now`; the allowed
 * differences are logged. */
int config_check_resume(const Config *before, const Config *now);
/* Likewise of a run whose config was saved at `path`. */
int config_check_saved(const char *path, const Config *now);

/* The part of --help that lists options, from the table: default, range, unit, help, source. `sections`: NULL for
 * all, or the wanted first parts of keys and the keys without a section, separated by spaces ("output seed model"). */
void config_help(Text *out, const char *sections);

#endif
