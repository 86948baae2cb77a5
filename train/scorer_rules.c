/* Rewards by rule. */
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "model/core/error.h"
#include "model/core/text.h"
#include "train/scorer.h"

typedef struct {
    Scorer scorer;
    RewardKind kind;
    const char *word;
    double length;
    pcre2_code *pattern;
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

static int score_number(const ScoredAnswer *answer, double *score) {
    double wanted, found;
    const json_t *own = answer->prompt->answer;
    if (!own || !final_number(json_string_value(own), json_string_length(own), &wanted))
        FAIL(ERR_REFUSED,
             "prompt %lld has no answer with a number in it; rejection.reward: number wants records with a completion "
             "(GSM8K's: rejection.columns: prompt=question,completion=answer)",
             (long long)answer->index);
    *score = final_number(answer->text, answer->size, &found) && found == wanted;
    return OK;
}

static int score_regex(const Rule *rule, const ScoredAnswer *answer, double *score) {
    int rc =
        pcre2_match(rule->pattern, (PCRE2_SPTR)answer->text, answer->size, 0, PCRE2_NO_UTF_CHECK, rule->match, NULL);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
        FAIL(ERR_REFUSED, "rejection.pattern: an answer to prompt %lld takes it too many steps (PCRE2 error %d)",
             (long long)answer->index, rc);
    *score = rc >= 0;
    return OK;
}

static int score_one(const Rule *rule, const ScoredAnswer *answer, double *score) {
    switch (rule->kind) {
    case REWARD_CONTAINS:
        *score = contains(answer, rule->word);
        return OK;
    case REWARD_LENGTH:
        *score = -fabs((double)answer->n_tokens - rule->length);
        return OK;
    case REWARD_REGEX:
        return score_regex(rule, answer, score);
    default:
        return score_number(answer, score);
    }
}

static int score_all(Scorer *scorer, const ScoredAnswer *answers, size_t n, double *scores) {
    for (size_t i = 0; i < n; i++) TRY(score_one((const Rule *)scorer, &answers[i], &scores[i]));
    return OK;
}

static void rule_free(Scorer *scorer) {
    Rule *rule = (Rule *)scorer;
    pcre2_match_data_free(rule->match);
    pcre2_code_free(rule->pattern);
    free(rule);
}

static int compile(Rule *rule, const Config *config) {
    int code;
    PCRE2_SIZE at;
    PCRE2_UCHAR message[160] = "";
    rule->pattern =
        pcre2_compile((PCRE2_SPTR)config->rejection_pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &at, NULL);
    if (!rule->pattern) {
        pcre2_get_error_message(code, message, sizeof message);
        return config_fail(config, OPTION_rejection_pattern, "%s, at character %zu", (const char *)message, at + 1);
    }
    rule->match = pcre2_match_data_create_from_pattern(rule->pattern, NULL);
    if (!rule->match) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

int scorer_from_config(Scorer **scorer, const Config *config) {
    RewardKind kind = (RewardKind)config->rejection_reward;
    *scorer = NULL;
    if (kind == REWARD_CONTAINS) TRY(config_require(config, OPTION_rejection_word));
    if (kind == REWARD_REGEX) TRY(config_require(config, OPTION_rejection_pattern));
    if (kind == REWARD_PROGRAM) {
        TRY(config_require(config, OPTION_rejection_program));
        return scorer_program_new(scorer, config->rejection_program, config->rejection_timeout);
    }
    Rule *rule = calloc(1, sizeof *rule);
    if (!rule) FAIL(ERR_FAILED, "out of memory");
    *rule = (Rule){.scorer = {score_all, rule_free},
                   .kind = kind,
                   .word = config->rejection_word,
                   .length = (double)config->rejection_length};
    int rc = kind == REWARD_REGEX ? compile(rule, config) : OK;
    if (rc == OK)
        *scorer = &rule->scorer;
    else
        rule_free(&rule->scorer);
    return rc;
}

void scorer_free(Scorer *scorer) {
    if (scorer) scorer->free(scorer);
}
