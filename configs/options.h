/* The one table of options: every room's options.def, collected. A row is
 *
 *   OPTION(field, key, type, default, range, unit, on resume, help, source)
 *
 *   field      of struct Config (config.h), the key with '_' for '.'
 *   type       BOOL INT REAL STRING PATH CHOICE STRINGS SOURCES
 *   default    as text; "" is the empty text or list
 *   range      comparisons that must all hold, ">= 0 < 1"; for CHOICE the names, "fail|skip", in the order of the
 *              enum that the number becomes; on a SOURCES row it says that a number, a share, will do too
 *   on resume  MAY_CHANGE: a resumed run may have another value; FIXED: it is refused
 *   help       one line; source: the paper a default or a method comes from, or ""
 *
 * The parser, --help, the saved config and the comparison on resume all read this table and nothing else. */
#ifndef CRIA_CONFIGS_OPTIONS_H
#define CRIA_CONFIGS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    OPTION_BOOL,    /* bool */
    OPTION_INT,     /* int64_t; 1_000, 1e6 and 64k (powers of 1024) will do */
    OPTION_REAL,    /* double, finite */
    OPTION_STRING,  /* const char *, UTF-8, never NULL */
    OPTION_PATH,    /* the same; relative to the working directory */
    OPTION_CHOICE,  /* int: index of the name */
    OPTION_STRINGS, /* ConfigStrings */
    OPTION_SOURCES, /* ConfigSources */
} OptionType;

typedef struct {
    const char *key; /* "optim.lr" */
    OptionType type;
    const char *default_text, *range, *unit;
    bool may_change; /* on resume */
    const char *help, *source;
    size_t offset; /* of the field */
} Option;

typedef enum {
#define OPTION(field, key, type, default_text, range, unit, resume, help, source) OPTION_##field,
#include "configs/all_options.def"
#undef OPTION
    OPTION_COUNT,
} OptionId;

extern const Option option_table[OPTION_COUNT];

/* The keys of one entry of a SOURCES list; offsets are in ConfigSource. */
extern const Option source_table[];
extern const size_t source_table_length;

/* Index in a CHOICE's names, or -1. Name number `index` into `out`, "" beyond the last. */
int option_choice_index(const Option *option, const char *name);
const char *option_choice_name(const Option *option, int index, char *out, size_t size);

/* Whether `value` is within the range column; a malformed range is false (and a test). */
bool option_in_range(const Option *option, double value);

/* "a number > 0 and <= 1", "fail or skip": what a value of this option looks like. */
const char *option_expected(const Option *option, char *out, size_t size);

#endif
