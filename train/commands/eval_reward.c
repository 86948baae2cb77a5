/* cria eval reward: a reward model's report card on pairs it has not seen; one for each score of its head. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "data/chat/preference.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "train/console/cli.h"
#include "train/commands/cmd_eval.h"
#include "train/files/model_file.h"
#include "train/files/model_template.h"
#include "train/console/new_file.h"
#include "train/console/progress.h"
#include "train/answers/reward_pairs.h"

typedef struct {
    const char *tokenizer, *base, *template_name, *columns, *overlong, *scores, *precision;
    int64_t worst, context;
    bool json, skip_errors;
} Arguments;

/* What is said of one score. */
typedef struct {
    RewardPairs *pairs;
    RewardCard card;
    Text remarks;
    size_t *worst_first;
} Part;

typedef struct {
    const Arguments *arguments;
    Config *config; /* of the template alone */
    ModelFile file;
    ModelTemplate model_template;
    ChatColumns columns;
    const char *names[HF_MAX_LABELS];
    RewardPairs pairs[HF_MAX_LABELS]; /* about each score */
    Part parts[HF_MAX_LABELS];
    int n; /* scores */
} Report;

/* ---- printing ---- */

static void print_share(const char *name, Proportion p) {
    printf("  %-22s %6.2f %%  [%.2f, %.2f]  of %lld\n", name, 100 * p.share, 100 * p.low, 100 * p.high, (long long)p.n);
}

static void print_worst(const Part *part, size_t wanted) {
    for (size_t i = 0; i < part->pairs->n && i < wanted; i++) {
        size_t at = part->worst_first[i];
        const RewardPair *pair = &part->pairs->pairs[at];
        const RewardPlace *place = &part->pairs->places[at];
        if (pair->reward[0] > pair->reward[1]) break;
        if (i == 0) printf("worst pairs\n");
        printf("  %s:%lld\n    prompt            %s\n    chosen   %8.3f %s\n    rejected %8.3f %s\n", place->path,
               (long long)place->line, place->prompt, pair->reward[0], place->answer[0], pair->reward[1],
               place->answer[1]);
    }
}

static void print_card(const Part *part, size_t worst) {
    const RewardCard *card = &part->card;
    printf("accuracy, with its 95 %% interval\n");
    print_share("all pairs", card->accuracy);
    for (int s = N_STRENGTHS - 1; s >= 0; s--)
        if (card->by_strength[s].n > 0 && (s > 0 || card->by_strength[s].n < card->accuracy.n))
            print_share(strength_name((Strength)s), card->by_strength[s]);
    printf("loss %.4f  margin %.4f  rewards %.4f ± %.4f, from %.4f to %.4f\n", card->loss, card->margin, card->mean,
           card->deviation, card->least, card->most);
    printf("calibration (error %.4f): the probability of the answer it ranks first, and how often it is the chosen "
           "one\n",
           card->calibration_error);
    for (int b = 0; b < CALIBRATION_BINS; b++) {
        char name[32];
        snprintf(name, sizeof name, "%.1f to %.1f: %.3f", 0.5 + 0.1 * b, 0.6 + 0.1 * b, card->bins[b].predicted);
        if (card->bins[b].observed.n > 0) print_share(name, card->bins[b].observed);
    }
    printf("length: correlation with reward %.3f (by rank %.3f), of their differences in a pair %.3f\n",
           card->length_pearson, card->length_spearman, card->difference_pearson);
    print_share("longer is chosen", card->longer_chosen);
    print_share("longer is ranked first", card->longer_preferred);
    fputs(part->remarks.bytes ? part->remarks.bytes : "", stdout);
    print_worst(part, worst);
}

static void print_cards(const Report *report) {
    for (int i = 0; i < report->n; i++) {
        if (report->n > 1) printf("%s%s\n", i > 0 ? "\n" : "", report->names[i]);
        if (report->pairs[i].n > 0)
            print_card(&report->parts[i], (size_t)report->arguments->worst);
        else
            printf("  no pair is about it\n");
    }
}

static json_t *share_json(Proportion p) {
    return json_pack("{s:f, s:f, s:f, s:I}", "share", p.share, "low", p.low, "high", p.high, "n", (json_int_t)p.n);
}

static json_t *pair_json(const RewardPair *pair, const RewardPlace *place) {
    json_t *object =
        json_pack("{s:s%, s:I, s:f, s:f, s:I, s:I}", "file", place->path, strlen(place->path), "line",
                  (json_int_t)place->line, "chosen", pair->reward[0], "rejected", pair->reward[1], "chosen_tokens",
                  (json_int_t)pair->length[0], "rejected_tokens", (json_int_t)pair->length[1]);
    if (object && pair->strength != STRENGTH_UNKNOWN)
        json_object_set_new(object, "strength", json_string(strength_name(pair->strength)));
    return object;
}

static json_t *strengths_json(const RewardCard *card) {
    json_t *object = json_object();
    for (int s = 1; s < N_STRENGTHS; s++)
        if (card->by_strength[s].n > 0)
            json_object_set_new(object, strength_name((Strength)s), share_json(card->by_strength[s]));
    return object;
}

static json_t *calibration_json(const RewardCard *card) {
    json_t *list = json_array();
    for (int b = 0; b < CALIBRATION_BINS; b++) {
        if (card->bins[b].observed.n == 0) continue;
        json_array_append_new(list, json_pack("{s:f, s:o}", "predicted", card->bins[b].predicted, "observed",
                                              share_json(card->bins[b].observed)));
    }
    return list;
}

static json_t *worst_json(const Part *part, size_t wanted) {
    json_t *list = json_array();
    for (size_t i = 0; i < part->pairs->n && i < wanted; i++) {
        size_t at = part->worst_first[i];
        const RewardPlace *place = &part->pairs->places[at];
        if (part->pairs->pairs[at].reward[0] > part->pairs->pairs[at].reward[1]) break;
        json_t *object = pair_json(&part->pairs->pairs[at], place);
        if (!object) continue; /* a path that is not UTF-8 */
        json_object_set_new(object, "prompt", json_string(place->prompt));
        json_object_set_new(object, "chosen_text", json_string(place->answer[0]));
        json_object_set_new(object, "rejected_text", json_string(place->answer[1]));
        json_array_append_new(list, object);
    }
    return list;
}

static json_t *remarks_json(const Part *part) {
    json_t *list = json_array();
    for (const char *line = part->remarks.bytes, *end; line && (end = strchr(line, '\n')); line = end + 1)
        json_array_append_new(list, json_stringn(line, (size_t)(end - line)));
    return list;
}

static json_t *card_json(const Part *part, size_t worst) {
    const RewardCard *card = &part->card;
    json_t *root =
        json_pack("{s:I, s:o, s:o, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o, s:{s:f, s:f, s:f, s:o, s:o}, s:o}", "pairs",
                  (json_int_t)part->pairs->n, "accuracy", share_json(card->accuracy), "accuracy_by_strength",
                  strengths_json(card), "loss", card->loss, "margin", card->margin, "mean_reward", card->mean,
                  "std_reward", card->deviation, "min_reward", card->least, "max_reward", card->most,
                  "calibration_error", card->calibration_error, "calibration", calibration_json(card), "length",
                  "pearson", card->length_pearson, "spearman", card->length_spearman, "difference_pearson",
                  card->difference_pearson, "longer_is_chosen", share_json(card->longer_chosen), "longer_is_preferred",
                  share_json(card->longer_preferred), "worst", worst_json(part, worst));
    if (root) json_object_set_new(root, "remarks", remarks_json(part));
    return root;
}

/* Of several scores, a card for each. */
static int print_json(const Report *report) {
    json_t *root = json_object(), *cards = json_object();
    size_t worst = (size_t)report->arguments->worst, n = 0;
    for (int i = 0; i < report->n; i++) n += report->pairs[i].n;
    bool whole = root && cards && json_object_set_new(root, "pairs", json_integer((json_int_t)n)) == 0;
    whole = whole && json_object_set_new(root, "dropped", json_integer((json_int_t)report->pairs->dropped)) == 0 &&
            json_object_set_new(root, "malformed", json_integer((json_int_t)report->pairs->malformed)) == 0;
    for (int i = 0; i < report->n && whole; i++)
        if (report->pairs[i].n > 0)
            whole = json_object_set_new(cards, report->names[i], card_json(&report->parts[i], worst)) == 0;
    if (whole && report->n == 1) whole = json_object_update(root, json_object_get(cards, report->names[0])) == 0;
    if (whole && report->n > 1) whole = json_object_set(root, "objectives", cards) == 0;
    if (whole) {
        json_dumpf(root, stdout, 0);
        printf("\n");
    }
    json_decref(cards);
    json_decref(root);
    if (!whole) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

static int add_scores(const Report *report, int part, Text *text) {
    const RewardPairs *pairs = &report->pairs[part];
    for (size_t i = 0; i < pairs->n; i++) {
        json_t *object = pair_json(&pairs->pairs[i], &pairs->places[i]);
        if (object && report->n > 1) json_object_set_new(object, "objective", json_string(report->names[part]));
        char *line = object ? json_dumps(object, 0) : NULL;
        json_decref(object);
        if (!line) FAIL(ERR_FAILED, "%s: the name is not UTF-8", pairs->places[i].path);
        text_printf(text, "%s\n", line);
        free(line);
    }
    return OK;
}

/* Every pair's rewards, a JSON object a line. */
static int write_scores(const Report *report) {
    int rc = OK;
    Text text = {0};
    NewFile file = {0};
    if (!report->arguments->scores) return OK;
    for (int i = 0; i < report->n; i++) TRY_TO(done, add_scores(report, i, &text));
    TRY_TO(done, text_check(&text));
    TRY_TO(done, new_file_begin(&file, report->arguments->scores));
    TRY_TO(done, file_write_atomic(file.path, text.bytes, text.length));
    TRY_TO(done, new_file_commit(&file));
done:
    new_file_abandon(&file);
    text_free(&text);
    return rc;
}

/* ---- scoring ---- */

static int parse_precision(InferencePrecision *precision, const char *word) {
    static const char *const names[] = {[INFERENCE_AUTO] = "auto", [INFERENCE_F32] = "fp32", [INFERENCE_BF16] = "bf16"};
    for (int i = INFERENCE_AUTO; i <= INFERENCE_BF16; i++) {
        *precision = (InferencePrecision)i;
        if (strcmp(word, names[i]) == 0) return OK;
    }
    FAIL(ERR_USAGE, "--precision: found '%s', expected auto, fp32 or bf16", word);
}

static int open_model(Report *report, const char *path) {
    const Arguments *arguments = report->arguments;
    ModelFileOptions options = {
        .head = HEAD_SCORE, .tokenizer = arguments->tokenizer, .need_tokenizer = true, .base = arguments->base};
    TRY(parse_precision(&options.inference, arguments->precision));
    TRY(model_file_open(&report->file, path, options));
    TRY(config_new(&report->config));
    TRY(config_set_text(report->config, OPTION_template_name,
                        arguments->template_name ? arguments->template_name : "from-model"));
    TRY(model_template_choose(&report->model_template, report->config, report->file.chat_template, report->file.path,
                              report->file.tokenizer));
    return model_template_open(&report->model_template, report->file.tokenizer);
}

/* "safety=FILE": its pairs are about that score, unless their records say. */
static const char *split_word(const Report *report, const char *word, int *usual) {
    *usual = report->n == 1 ? 0 : -1;
    for (int i = 0; i < report->n; i++) {
        size_t n = strlen(report->names[i]);
        if (strncmp(word, report->names[i], n) != 0 || word[n] != '=') continue;
        *usual = i;
        return word + n + 1;
    }
    return word;
}

/* What pairs may be about; a single score without a name is asked of none. */
static PairObjectives name_scores(Report *report) {
    const HfLabels *labels = &report->file.config.labels;
    report->n = labels->n;
    for (int i = 0; i < labels->n; i++) report->names[i] = labels->names[i];
    return (PairObjectives){.names = report->names,
                            .n = labels->n == 1 && hf_labels_are_unnamed(labels) ? 0 : labels->n};
}

static int read_pairs(Report *report, char *const *words, int n) {
    const Arguments *arguments = report->arguments;
    RewardPairs *pairs = report->pairs;
    int limit = report->file.model->rotary.n_positions;
    size_t found = 0;
    RewardPairsOptions options = {.chat = report->model_template.chat,
                                  .columns = &report->columns,
                                  .objectives = name_scores(report),
                                  .skip_errors = arguments->skip_errors};
    if (arguments->context > limit) FAIL(ERR_USAGE, "--context: the model was made for %d tokens at most", limit);
    options.context = arguments->context > 0 ? (size_t)arguments->context : (size_t)limit;
    TRY(overlong_parse(&options.overlong, arguments->overlong));
    if (arguments->columns) TRY(chat_columns_parse(&report->columns, arguments->columns));
    for (int i = 0; i < n; i++) {
        const char *path = split_word(report, words[i], &options.objectives.usual);
        TRY(reward_pairs_read(pairs, path, &options));
    }
    for (int i = 0; i < report->n; i++) found += pairs[i].n;
    if (found == 0)
        FAIL(ERR_REFUSED, "there is no pair to be scored%s",
             pairs->dropped > 0 ? ": all were too long, or their answers equal" : "");
    if (pairs->malformed > 0) log_warning("%zu malformed records were skipped", pairs->malformed);
    if (pairs->dropped > 0) log_warning("%zu records were left out: too long, or their answers equal", pairs->dropped);
    return OK;
}

static void show_progress(void *context, size_t done) {
    progress_update(context, (int64_t)done, "");
}

/* rewards[2 · n, the head's rows], of which the pairs take row `part`. */
static int take_rewards(RewardPairs *pairs, const float *rewards, int part, int rows) {
    for (size_t i = 0; i < 2 * pairs->n; i++) {
        const RewardPlace *place = &pairs->places[i / 2];
        float reward = rewards[i * (size_t)rows + (size_t)part];
        if (!isfinite(reward))
            FAIL(ERR_REFUSED, "%s:%lld: the %s answer's reward is %g: the model's numbers are broken", place->path,
                 (long long)place->line, i % 2 ? "rejected" : "chosen", (double)reward);
        pairs->pairs[i / 2].reward[i % 2] = (double)reward;
    }
    return OK;
}

static int score_part(Report *report, RewardScorer *scorer, int part) {
    RewardPairs *pairs = &report->pairs[part];
    Progress progress;
    if (pairs->n == 0) return OK;
    float *rewards = calloc(2 * pairs->n * (size_t)report->n, sizeof *rewards);
    if (!rewards) FAIL(ERR_FAILED, "out of memory");
    progress_begin(&progress, "scoring", "answers", 0, (int64_t)(2 * pairs->n));
    int rc = reward_scorer_score(scorer, pairs->texts, 2 * pairs->n, rewards, show_progress, &progress);
    progress_end(&progress);
    if (rc == OK) rc = take_rewards(pairs, rewards, part, report->n);
    free(rewards);
    return rc;
}

static int score(Report *report) {
    enum { BATCH = 4096 };
    RewardScorer *scorer;
    TRY(reward_scorer_new(&scorer, report->file.model, BATCH, llama_inference_dtype(report->file.model)));
    int rc = OK;
    for (int i = 0; i < report->n && rc == OK; i++) rc = score_part(report, scorer, i);
    reward_scorer_free(scorer);
    return rc;
}

static int make_part(Part *part, RewardPairs *pairs) {
    part->pairs = pairs;
    if (pairs->n == 0) return OK;
    TRY(reward_card(&part->card, pairs->pairs, pairs->n));
    reward_remarks(&part->remarks, &part->card);
    TRY(text_check(&part->remarks));
    part->worst_first = calloc(pairs->n, sizeof *part->worst_first);
    if (!part->worst_first) FAIL(ERR_FAILED, "out of memory");
    reward_worst_first(part->worst_first, pairs->pairs, pairs->n);
    return OK;
}

static int make_report(Report *report, char *const *words, int n) {
    if (report->arguments->scores) TRY(new_file_check(report->arguments->scores));
    TRY(open_model(report, words[0]));
    TRY(read_pairs(report, words + 1, n - 1));
    TRY(score(report));
    for (int i = 0; i < report->n; i++) TRY(make_part(&report->parts[i], &report->pairs[i]));
    TRY(write_scores(report));
    if (report->arguments->json) return print_json(report);
    print_cards(report);
    return OK;
}

static void report_free(Report *report) {
    for (int i = 0; i < report->n; i++) {
        free(report->parts[i].worst_first);
        text_free(&report->parts[i].remarks);
        reward_pairs_free(&report->pairs[i]);
    }
    chat_columns_free(&report->columns);
    model_template_free(&report->model_template);
    config_free(report->config);
    model_file_close(&report->file);
}

int eval_reward_command(int argc, char **argv) {
    Arguments arguments = {.worst = 5, .overlong = "fail", .precision = "auto"};
    const Flag flags[] = {
        {"worst", 'n', FLAG_INT, &arguments.worst, "N", ">= 0", "wrongly ranked pairs shown, the worst first (5)"},
        {"scores", 'o', FLAG_TEXT, &arguments.scores, "FILE.jsonl", "", "write every pair's rewards to a new file"},
        {"context", 'c', FLAG_INT, &arguments.context, "N", ">= 2", "tokens at most (the model's)"},
        {"overlong", 0, FLAG_TEXT, &arguments.overlong, "POLICY", "",
         "longer pairs: fail, drop, truncate-left or truncate-right (default fail)"},
        {"columns", 0, FLAG_TEXT, &arguments.columns, "A=B,...", "", "columns of other names: chosen=better"},
        {"template", 0, FLAG_TEXT, &arguments.template_name, "NAME", "", "instead of the model's own"},
        {"tokenizer", 't', FLAG_TEXT, &arguments.tokenizer, "FILE", "", "instead of the model's own"},
        {"base", 0, FLAG_TEXT, &arguments.base, "MODEL", "", MODEL_FILE_BASE_HELP},
        {"precision", 0, FLAG_TEXT, &arguments.precision, "WHAT", "",
         "auto (bf16 where the model was made in it), fp32 or bf16"},
        {"skip-errors", 0, FLAG_SWITCH, &arguments.skip_errors, "", "", "leave malformed records out, counted"},
        {"json", 0, FLAG_SWITCH, &arguments.json, "", "", "print one JSON object"},
    };
    CliSpec spec = {
        .usage = "MODEL PAIRS... [flags]",
        .about = "Scores both answers of every pair (JSONL or a JSON array: prompt, chosen, rejected) with a\n"
                 "reward model: how often the chosen one is ranked first, by strength of preference; how\n"
                 "well its probabilities are calibrated; whether it rewards length; the worst pairs. Of a model\n"
                 "with several scores, each for the pairs that are about it: those whose record names it as\n"
                 "\"objective\", or that are given as NAME=PAIRS (safety=held-out.jsonl).",
        .flags = flags,
        .n_flags = sizeof flags / sizeof *flags,
        .min_words = 2,
        .max_words = 64};
    CliResult cli;
    TRY(cli_parse(&cli, &spec, argc, argv));
    if (cli.helped) return OK;
    Report report = {.arguments = &arguments};
    int rc = make_report(&report, cli.words, cli.n_words);
    report_free(&report);
    return rc;
}
