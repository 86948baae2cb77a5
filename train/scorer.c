/* See scorer.h: the rules. */
#include "train/scorer.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/text.h"

typedef struct Rule Rule;
struct Rule {
    Scorer base;
    double (*holds)(const Rule *rule, const ScoredAnswer *answer); /* 0, 1, or NaN */
    char *text;
    int64_t number;
};

static double contains(const Rule *rule, const ScoredAnswer *answer) {
    return answer->size > 0 && memmem(answer->text, answer->size, rule->text, strlen(rule->text)) != NULL;
}

static double is_short(const Rule *rule, const ScoredAnswer *answer) {
    return answer->finished && answer->n_ids - answer->n_prompt <= rule->number;
}

/* The last number in a text, "1,234.50" and "-3" among them. */
static bool last_number(const char *text, size_t n, double *number) {
    size_t end = n;
    while (end > 0 && !isdigit((unsigned char)text[end - 1])) end--;
    if (end == 0) return false;
    size_t begin = end;
    while (begin > 0 && (isdigit((unsigned char)text[begin - 1]) || text[begin - 1] == ',' || text[begin - 1] == '.'))
        begin--;
    bool negative = begin > 0 && text[begin - 1] == '-' && (begin == 1 || !isalnum((unsigned char)text[begin - 2]));
    char digits[64];
    size_t kept = 0;
    for (size_t i = begin; i < end && kept + 1 < sizeof digits; i++)
        if (text[i] != ',') digits[kept++] = text[i];
    digits[kept] = '\0';
    char *rest;
    *number = strtod(digits, &rest) * (negative ? -1 : 1);
    return rest != digits && isfinite(*number);
}

static double same_number(const Rule *rule, const ScoredAnswer *answer) {
    double wanted, found;
    const json_t *own = answer->prompt->answer;
    (void)rule;
    if (!own || !last_number(json_string_value(own), json_string_length(own), &wanted)) return NAN;
    return last_number(answer->text, answer->size, &found) && found == wanted;
}

static void trim(const char **text, size_t *n) {
    while (*n > 0 && isspace((unsigned char)(*text)[*n - 1])) (*n)--;
    for (; *n > 0 && isspace((unsigned char)**text); (*n)--) (*text)++;
}

static double is_exact(const Rule *rule, const ScoredAnswer *answer) {
    (void)rule;
    if (!answer->prompt->answer) return NAN;
    const char *wanted = json_string_value(answer->prompt->answer), *found = answer->text;
    size_t n_wanted = json_string_length(answer->prompt->answer), n_found = answer->size;
    trim(&wanted, &n_wanted);
    trim(&found, &n_found);
    return n_wanted == n_found && memcmp(wanted, found, n_wanted) == 0;
}

static int score(Scorer *base, const ScoredAnswer *answers, size_t n, double *scores) {
    const Rule *rule = (const Rule *)base;
    for (size_t i = 0; i < n; i++) scores[i] = rule->holds(rule, &answers[i]);
    return OK;
}

static void rule_free(Scorer *base) {
    Rule *rule = (Rule *)base;
    free(rule->text);
    free(rule);
}

/* "contains:TEXT": what follows the name, where `text` is a rule of that name. */
static const char *argument_of(const char *text, const char *name) {
    size_t n = strlen(name);
    return strncmp(text, name, n) == 0 && text[n] == ':' && text[n + 1] ? text + n + 1 : NULL;
}

static int parse(Rule *rule, const char *text) {
    const char *argument;
    if ((argument = argument_of(text, "contains"))) {
        rule->holds = contains;
        rule->text = strdup(argument);
        if (!rule->text) FAIL(ERR_FAILED, "out of memory");
    } else if ((argument = argument_of(text, "short")) && text_parse_int(argument, &rule->number) && rule->number > 0) {
        rule->holds = is_short;
    } else if (strcmp(text, "number") == 0) {
        rule->holds = same_number;
    } else if (strcmp(text, "exact") == 0) {
        rule->holds = is_exact;
    } else {
        FAIL(ERR_USAGE, "'%s' is no rule; contains:TEXT, short:TOKENS, number and exact are", text);
    }
    return OK;
}

int scorer_rule_new(Scorer **scorer, const char *text) {
    Rule *rule = calloc(1, sizeof *rule);
    *scorer = NULL;
    if (!rule) FAIL(ERR_FAILED, "out of memory");
    rule->base = (Scorer){.name = "rule", .score = score, .free = rule_free};
    int rc = parse(rule, text);
    if (rc == OK)
        *scorer = &rule->base;
    else
        rule_free(&rule->base);
    return rc;
}
