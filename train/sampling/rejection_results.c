/* From samples.jsonl to records and statistics: see rejection.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/output.h"
#include "train/sampling/rejection.h"

typedef struct {
    RejectionRules rules;
    Output sft, pairs;
    double *scores;           /* [answers of a prompt] */
    double *maxima, *medians; /* [samples] sums over prompts, by number of answers */
    int64_t prompts, answers, distinct, written, n_pairs, from_earlier;
    double score_sum, best_sum, worst_sum;
} Results;

double expected_order(const double *scores, int n, int k, int m) {
    double sum = 0, all = lgamma(n + 1.0) - lgamma(k + 1.0) - lgamma(n - k + 1.0);
    for (int i = m; i <= n - k + m; i++) {
        double below = lgamma(i) - lgamma(m) - lgamma(i - m + 1.0);
        double above = lgamma(n - i + 1.0) - lgamma(k - m + 1.0) - lgamma(n - i - k + m + 1.0);
        sum += exp(below + above - all) * scores[i - 1];
    }
    return sum;
}

static double expected_median(const double *scores, int n, int k) {
    if (k % 2 == 1) return expected_order(scores, n, k, (k + 1) / 2);
    return 0.5 * (expected_order(scores, n, k, k / 2) + expected_order(scores, n, k, k / 2 + 1));
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double score_of(const json_t *answer) {
    return json_number_value(json_object_get(answer, "score"));
}
static const char *text_of(const json_t *answer) {
    const char *text = json_string_value(json_object_get(answer, "text"));
    return text ? text : "";
}

static int check_line(const json_t *line, const json_t **answers) {
    size_t i;
    json_t *answer;
    *answers = json_object_get(line, "answers");
    bool good = json_array_size(*answers) > 0 && json_object_get(line, "prompt");
    json_array_foreach(*answers, i, answer) {
        good = good && json_is_string(json_object_get(answer, "text"));
        good = good && json_is_number(json_object_get(answer, "score"));
    }
    if (!good) FAIL(ERR_REFUSED, "it has no prompt and answers with text and score");
    return OK;
}

/* The first of the best. */
static const json_t *best_of(const json_t *answers) {
    size_t i;
    const json_t *best = json_array_get(answers, 0);
    json_t *answer;
    json_array_foreach(answers, i, answer) {
        if (score_of(answer) > score_of(best)) best = answer;
    }
    return best;
}

/* ---- records ---- */

static int write_line(Output *output, json_t *object) {
    char *text = object ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(object);
    if (!text) FAIL(ERR_FAILED, "out of memory");
    int rc = output_write(output, text, strlen(text));
    free(text);
    return rc == OK ? output_write(output, "\n", 1) : rc;
}

static json_t *assistant(const char *text) {
    return json_pack("{s:s, s:s}", "role", "assistant", "content", text);
}

static json_t *sft_record(const json_t *line, const json_t *best) {
    json_t *prompt = json_object_get(line, "prompt"), *messages;
    if (!json_is_array(prompt))
        return json_pack("{s:O, s:s, s:f}", "prompt", prompt, "completion", text_of(best), "score", score_of(best));
    messages = json_copy(prompt);
    if (messages) json_array_append_new(messages, assistant(text_of(best)));
    return json_pack("{s:o, s:f}", "messages", messages, "score", score_of(best));
}

static json_t *side(const json_t *prompt, const json_t *answer) {
    return json_is_array(prompt) ? json_pack("[o]", assistant(text_of(answer))) : json_string(text_of(answer));
}

static json_t *pair_record(const json_t *line, const json_t *best, const json_t *worst) {
    json_t *prompt = json_object_get(line, "prompt");
    return json_pack("{s:O, s:o, s:o, s:f, s:f}", "prompt", prompt, "chosen", side(prompt, best), "rejected",
                     side(prompt, worst), "score_chosen", score_of(best), "score_rejected", score_of(worst));
}

/* ---- a prompt ---- */

static int64_t count_distinct(const json_t *answers) {
    json_t *seen = json_object(), *answer;
    size_t i;
    json_array_foreach(answers, i, answer) {
        if (!json_object_get(answer, "from")) json_object_set_new(seen, text_of(answer), json_true());
    }
    int64_t n = (int64_t)json_object_size(seen);
    json_decref(seen);
    return n;
}

/* Statistics are of this round's own answers. */
static int count(Results *r, const json_t *answers) {
    int n = 0;
    size_t i;
    json_t *answer;
    json_array_foreach(answers, i, answer) {
        if (json_object_get(answer, "from")) continue;
        if (n == r->rules.samples) FAIL(ERR_REFUSED, "it has more than %d answers of this round", n);
        r->scores[n++] = score_of(answer);
        r->score_sum += score_of(answer);
    }
    if (n != r->rules.samples) FAIL(ERR_REFUSED, "it has %d answers of this round, not %d", n, r->rules.samples);
    qsort(r->scores, (size_t)n, sizeof *r->scores, ascending);
    for (int k = 1; k <= n; k++) {
        r->maxima[k - 1] += expected_order(r->scores, n, k, k);
        r->medians[k - 1] += expected_median(r->scores, n, k);
    }
    r->answers += n;
    r->distinct += count_distinct(answers);
    return OK;
}

/* Answers by score, the best first; equals in their order. */
typedef struct {
    const json_t *answer;
    double score;
    size_t place;
} Ranked;

static int better_first(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->place < y->place ? -1 : x->place > y->place;
}

/* The distinct answers, ranked; *n of them. The caller frees. */
static int rank(Ranked **out, size_t *n, const json_t *answers) {
    size_t i;
    json_t *answer, *seen = json_object();
    Ranked *ranked = calloc(json_array_size(answers), sizeof *ranked);
    bool whole = seen && ranked;
    *n = 0;
    json_array_foreach(answers, i, answer) {
        if (!whole || json_object_get(seen, text_of(answer))) continue;
        whole = json_object_set_new(seen, text_of(answer), json_true()) == 0;
        ranked[(*n)++] = (Ranked){answer, score_of(answer), i};
    }
    json_decref(seen);
    *out = ranked;
    if (!whole) FAIL(ERR_FAILED, "out of memory");
    qsort(ranked, *n, sizeof *ranked, better_first);
    return OK;
}

/* The k-th best, alone and with the k-th worst. */
static int write_ranked(Results *r, const json_t *line, const Ranked *ranked, size_t n) {
    for (size_t k = 0; k < n && k < (size_t)r->rules.keep; k++) {
        const Ranked *best = &ranked[k], *worst = &ranked[n - 1 - k];
        if (best->score < r->rules.least_score) break;
        TRY(write_line(&r->sft, sft_record(line, best->answer)));
        r->written++;
        if (best->score <= worst->score) continue;
        TRY(write_line(&r->pairs, pair_record(line, best->answer, worst->answer)));
        r->n_pairs++;
    }
    return OK;
}

static int take_prompt(void *context, const json_t *line) {
    Results *r = context;
    const json_t *answers;
    Ranked *ranked;
    size_t n;
    TRY(check_line(line, &answers));
    TRY(count(r, answers));
    int rc = rank(&ranked, &n, answers);
    if (rc == OK) {
        r->prompts++;
        r->best_sum += ranked[0].score;
        r->worst_sum += ranked[n - 1].score;
        r->from_earlier += json_object_get(ranked[0].answer, "from") != NULL;
        rc = write_ranked(r, line, ranked, n);
    }
    free(ranked);
    return rc;
}

/* ---- all ---- */

static json_t *statistics_of(const Results *r) {
    json_t *by_k = json_array();
    double n = r->prompts > 0 ? (double)r->prompts : 1;
    for (int k = 1; k <= r->rules.samples; k++)
        json_array_append_new(by_k, json_pack("{s:i, s:f, s:f}", "k", k, "maximum", r->maxima[k - 1] / n, "median",
                                              r->medians[k - 1] / n));
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:o}", "prompts", (json_int_t)r->prompts, "answers",
                     (json_int_t)r->answers, "distinct_answers", (json_int_t)r->distinct, "sft_records",
                     (json_int_t)r->written, "pairs", (json_int_t)r->n_pairs, "best_from_earlier",
                     (json_int_t)r->from_earlier, "mean_score",
                     r->answers > 0 ? r->score_sum / (double)r->answers : 0.0, "mean_best", r->best_sum / n,
                     "mean_worst", r->worst_sum / n, "by_k", by_k);
}

static int begin(Output *output, const char *folder, const char *name) {
    char *path = path_join(folder, name);
    if (!path) FAIL(ERR_FAILED, "out of memory");
    int rc = output_begin(output, path);
    free(path);
    return rc;
}

static int write_statistics(const char *folder, const json_t *statistics) {
    char *path = path_join(folder, "statistics.json"),
         *text = json_dumps(statistics, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    int rc = path && text ? file_write_atomic(path, text, strlen(text))
                          : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    free(path);
    free(text);
    return rc;
}

int rejection_write_results(const char *folder, RejectionRules rules, json_t **statistics) {
    int rc = OK;
    Results r = {.rules = rules, .sft = {.fd = -1}, .pairs = {.fd = -1}};
    char *samples = path_join(folder, REJECTION_SAMPLES);
    r.scores = calloc(3 * (size_t)rules.samples, sizeof *r.scores);
    *statistics = NULL;
    if (!samples || !r.scores) FAIL_TO(done, ERR_FAILED, "out of memory");
    r.maxima = r.scores + rules.samples;
    r.medians = r.maxima + rules.samples;
    TRY_TO(done, begin(&r.sft, folder, "sft.jsonl"));
    TRY_TO(done, begin(&r.pairs, folder, "pairs.jsonl"));
    TRY_TO(done, rejection_log_read(samples, take_prompt, &r));
    TRY_TO(done, output_commit(&r.sft));
    TRY_TO(done, output_commit(&r.pairs));
    *statistics = statistics_of(&r);
    if (!*statistics) FAIL_TO(done, ERR_FAILED, "out of memory");
    TRY_TO(done, write_statistics(folder, *statistics));
done:
    output_abandon(&r.sft);
    output_abandon(&r.pairs);
    free(samples);
    free(r.scores);
    return rc;
}

/* ---- earlier rounds ---- */

char *rejection_key(const json_t *prompt) {
    return json_dumps(prompt, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);
}

static int take_best(void *context, const json_t *line) {
    const json_t *answers;
    TRY(check_line(line, &answers));
    char *key = rejection_key(json_object_get(line, "prompt"));
    bool set = key && json_object_set(context, key, json_object_get(best_of(answers), "text")) == 0;
    free(key);
    if (!set) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

int rejection_best_answers(const char *folder, json_t **best) {
    char *path = path_join(folder, REJECTION_SAMPLES);
    *best = json_object();
    int rc = path && *best ? rejection_log_read(path, take_best, *best)
                           : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    free(path);
    return rc == OK ? OK : error_context(rc, "rejection.earlier: %s is not the folder of a round", folder);
}
