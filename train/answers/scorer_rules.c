/* Rewards by rule. */
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "model/core/error.h"
#include "model/core/text.h"
#include "train/answers/scorer.h"

typedef struct {
    Scorer scorer;
    ScorerOptions options;
    pcre2_code *compiled;
    pcre2_match_data *match;
} Rule;

static bool in_word(char c) {
    return isalnum((unsigned char)c) || (unsigned char)c >= 0x80 || c == '_';
}

/* A whole word, ASCII letters in either case. */
static bool contains(const ScoredAnswer *answer, const char *word) {
    size_t n = strlen(word);
    for (size_t i = 0; i + n <= answer->size; i++) {
        bool begins = i == 0 || !in_word(answer->text[i - 1]) || !in_word(word[0]);
        bool ends = i + n == answer->size || !in_word(answer->text[i + n]) || !in_word(word[n - 1]);
        if (begins && ends && strncasecmp(answer->text + i, word, n) == 0) return true;
    }
    return false;
}

bool final_number(const char *text, size_t size, double *number) {
    const char *mark = memmem(text, size, "####", 4), *begin = mark ? mark + 4 : text, *end = text + size;
    bool found = false;
    for (const char *p = begin; p < end; p++) {
        if (!isdigit((unsigned char)*p)) continue;
        char digits[64];
        size_t n = 0;
        const char *before = p - 1;
        if (before >= begin && *before == '$') before--;
        if (before >= begin && *before == '-') digits[n++] = '-';
        for (; p < end && n + 1 < sizeof digits; p++) {
            bool inner = (*p == ',' || *p == '.') && p + 1 < end && isdigit((unsigned char)p[1]);
            if (!isdigit((unsigned char)*p) && !inner) break;
            if (*p != ',') digits[n++] = *p;
        }
        digits[n] = '\0';
        found = text_parse_double(digits, number) || found;
        if (mark && found) return true; /* the first behind the mark */
        p--;
    }
    return found;
}

static int score_number(const Rule *rule, const ScoredAnswer *answer, double *score) {
    double wanted, found;
    const json_t *own = answer->prompt->answer;
    if (!own || !final_number(json_string_value(own), json_string_length(own), &wanted))
        FAIL(ERR_REFUSED,
             "prompt %lld has no answer with a number in it; %s.reward: number wants records with a completion "
             "(columns of GSM8K: prompt=question,completion=answer)",
             (long long)answer->index, rule->options.section);
    *score = final_number(answer->text, answer->size, &found) && found == wanted;
    return OK;
}

static int score_regex(const Rule *rule, const ScoredAnswer *answer, double *score) {
    int rc =
        pcre2_match(rule->compiled, (PCRE2_SPTR)answer->text, answer->size, 0, PCRE2_NO_UTF_CHECK, rule->match, NULL);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
        FAIL(ERR_REFUSED, "%s.pattern: an answer to prompt %lld takes it too many steps (PCRE2 error %d)",
             rule->options.section, (long long)answer->index, rc);
    *score = rc >= 0;
    return OK;
}

static int score_one(const Rule *rule, const ScoredAnswer *answer, double *score) {
    switch (rule->options.kind) {
    case REWARD_CONTAINS:
        *score = contains(answer, rule->options.word);
        return OK;
    case REWARD_LENGTH:
        *score = -fabs((double)answer->n_tokens - rule->options.length);
        return OK;
    case REWARD_REGEX:
        return score_regex(rule, answer, score);
    default:
        return score_number(rule, answer, score);
    }
}

static int score_all(Scorer *scorer, const ScoredAnswer *answers, size_t n, double *scores) {
    for (size_t i = 0; i < n; i++) TRY(score_one((const Rule *)scorer, &answers[i], &scores[i]));
    return OK;
}

static void rule_free(Scorer *scorer) {
    Rule *rule = (Rule *)scorer;
    pcre2_match_data_free(rule->match);
    pcre2_code_free(rule->compiled);
    free(rule);
}

static int compile(Rule *rule) {
    int code;
    PCRE2_SIZE at;
    PCRE2_UCHAR message[160] = "";
    rule->compiled =
        pcre2_compile((PCRE2_SPTR)rule->options.pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &at, NULL);
    if (!rule->compiled) {
        pcre2_get_error_message(code, message, sizeof message);
        FAIL(ERR_USAGE, "%s.pattern: %s, at character %zu", rule->options.section, (const char *)message, at + 1);
    }
    rule->match = pcre2_match_data_create_from_pattern(rule->compiled, NULL);
    if (!rule->match) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

static int require(const ScorerOptions *options, const char *name, const char *value) {
    if (*value) return OK;
    FAIL(ERR_USAGE, "%s.%s is needed with this %s.reward", options->section, name, options->section);
}

int scorer_new(Scorer **scorer, const ScorerOptions *options) {
    *scorer = NULL;
    if (options->kind == REWARD_CONTAINS) TRY(require(options, "word", options->word));
    if (options->kind == REWARD_REGEX) TRY(require(options, "pattern", options->pattern));
    if (options->kind == REWARD_PROGRAM) {
        TRY(require(options, "program", options->program));
        return scorer_program_new(scorer, options);
    }
    if (options->kind == REWARD_MODEL) {
        TRY(require(options, "model", options->model));
        return scorer_model_new(scorer, options);
    }
    Rule *rule = calloc(1, sizeof *rule);
    if (!rule) FAIL(ERR_FAILED, "out of memory");
    *rule = (Rule){.scorer = {score_all, rule_free}, .options = *options};
    int rc = options->kind == REWARD_REGEX ? compile(rule) : OK;
    if (rc == OK)
        *scorer = &rule->scorer;
    else
        rule_free(&rule->scorer);
    return rc;
}

json_t *answer_text(const char *bytes, size_t size) {
    Text text = {0};
    uint32_t code;
    for (size_t i = 0; i < size;) {
        int n = utf8_decode(bytes + i, size - i, &code);
        bool good = n > 0 && code != 0;
        text_append(&text, good ? bytes + i : "\xef\xbf\xbd", good ? (size_t)n : 3);
        i += n > 0 ? (size_t)n : 1;
    }
    json_t *string = text.failed ? NULL : json_stringn(text.bytes ? text.bytes : "", text.length);
    text_free(&text);
    return string;
}

void scorer_free(Scorer *scorer) {
    if (scorer) scorer->free(scorer);
}
