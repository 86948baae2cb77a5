/* train/rounds: what stages refer to, their configs and seeds, and the records by which a resumed run knows what is
 * finished, what has changed, and what it did not make. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/core/file.h"
#include "model/kernels/kernels.h"
#include "tests/check_main.h"
#include "train/rounds/record.h"
#include "train/rounds/report.h"

static char folder[64];

static void enter(void) {
    snprintf(folder, sizeof folder, "/tmp/cria-test-rounds-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(chdir(folder), 0);
}

static void leave(void) {
    ck_assert_int_eq(chdir("/"), 0);
    CHECK_OK(directory_remove(folder));
}

static void write_text(const char *path, const char *text) {
    CHECK_OK(directory_make_parent(path));
    CHECK_OK(file_write_atomic(path, text, strlen(text)));
}

static const char shared[] = "output: out\n"
                             "model: {base: start}\n"
                             "optim: {lr: 0.5}\n"
                             "rejection: {samples: 3}\n"
                             "preferences: {per_batch: 4}\n";

/* The shared options, these stages, and so many rounds; *rc is of rounds_make. */
static int make(Rounds *rounds, const char *stages, const char *count) {
    Text text = {0};
    *rounds = (Rounds){0};
    text_printf(&text, "%sstages:\n%s", shared, stages);
    write_text("r.yaml", text.bytes);
    text_free(&text);
    CHECK_OK(config_new(&rounds->config));
    int rc = rounds_load(rounds->config, "r.yaml", rounds);
    if (rc == OK) rc = config_set(rounds->config, "rounds.count", count, "argument 1");
    return rc == OK ? rounds_make(rounds) : rc;
}

static void refuses(const char *stages, const char *part) {
    Rounds rounds;
    CHECK_ERROR(make(&rounds, stages, "2"), ERR_USAGE, part);
    rounds_free(&rounds);
}

#define RECORDS "  - {stage: best, run: rejection, rejection: {prompts: p.txt}}\n"
#define JUDGE "  - {stage: judge, run: reward, data: {train: p.jsonl}}\n"

START_TEST(a_stage_begins_from_the_newest_policy) {
    enter();
    Rounds rounds;
    CHECK_OK(make(&rounds,
                  "  - {stage: first, run: sft, last_round: 1, data: {train: a}}\n" JUDGE RECORDS
                  "  - {stage: tune, run: dpo, data: {train: a}, dpo: {reference: \"{start}\"}}\n",
                  "2"));
    static const char *const bases[] = {"start",
                                        "out/round-1/first",
                                        "out/round-1/first",
                                        "out/round-1/first",
                                        "out/round-1/tune",
                                        "out/round-1/tune",
                                        "out/round-1/tune"};
    ck_assert_uint_eq(rounds.n_stages, 7);
    for (size_t i = 0; i < 7; i++) ck_assert_str_eq(rounds.stages[i].config->model_base, bases[i]);
    ck_assert_str_eq(rounds.stages[3].config->dpo_reference, "start");
    ck_assert_str_eq(rounds.stages[6].config->dpo_reference, "out/round-1/tune");
    ck_assert_str_eq(rounds.stages[6].symbolic->dpo_reference, "{output}/round-1/tune");
    ck_assert_str_eq(rounds.stages[6].folder, "out/round-2/tune");
    rounds_free(&rounds);
    leave();
}
END_TEST

START_TEST(lists_name_stages_of_earlier_rounds) {
    enter();
    Rounds rounds;
    CHECK_OK(make(&rounds,
                  "  - {stage: best, run: rejection, rejection: {prompts: \"p-{round}.txt\", earlier: "
                  "[\"{best@earlier}\", more]}}\n"
                  "  - {stage: tune, run: sft, data: {train: [{path: \"{best@all}/sft.jsonl\", weight: 2}, "
                  "\"own-{round}.jsonl\"]}}\n"
                  "  - {stage: dpo, run: dpo, data: {train: \"{best@1}/pairs.jsonl\"}}\n",
                  "3"));
    const Config *best = rounds.stages[6].config, *tune = rounds.stages[7].config;
    ck_assert_str_eq(best->rejection_prompts, "p-3.txt");
    ck_assert_uint_eq(best->rejection_earlier.n, 3);
    ck_assert_str_eq(best->rejection_earlier.items[1], "out/round-2/best");
    ck_assert_str_eq(best->rejection_earlier.items[2], "more");
    ck_assert_uint_eq(rounds.stages[0].config->rejection_earlier.n, 1);
    ck_assert_uint_eq(tune->data_train.n, 4);
    ck_assert_str_eq(tune->data_train.items[2].path, "out/round-3/best/sft.jsonl");
    ck_assert_double_eq(tune->data_train.items[2].weight, 2);
    ck_assert_str_eq(tune->data_train.items[3].path, "own-3.jsonl");
    ck_assert_str_eq(rounds.stages[8].config->data_train.items[0].path, "out/round-1/best/pairs.jsonl");
    rounds_free(&rounds);
    leave();
}
END_TEST

START_TEST(a_stage_has_the_shared_options_that_it_reads) {
    enter();
    Rounds rounds;
    CHECK_OK(make(&rounds, "  - {stage: sft, run: sft, data: {train: a}, optim: {lr: 0.25}}\n" JUDGE, "2"));
    const Config *sft = rounds.stages[0].config, *judge = rounds.stages[1].config;
    ck_assert_double_eq(sft->optim_lr, 0.25);
    ck_assert_double_eq(judge->optim_lr, 0.5);
    ck_assert_int_eq(sft->preferences_per_batch, 0); /* it would take conversations for pairs */
    ck_assert_int_eq(judge->preferences_per_batch, 4);
    ck_assert(!config_is_set(sft, OPTION_rejection_samples));
    ck_assert_int_eq(sft->seed, 1);
    ck_assert_int_eq(rounds.stages[2].config->seed, 2);
    ck_assert_str_eq(sft->output, "out/round-1/sft");
    rounds_free(&rounds);
    leave();
}
END_TEST

/* What is written for a stage is what it is. */
START_TEST(a_stage_is_written_with_what_was_set_alone) {
    enter();
    Rounds rounds;
    Text text = {0}, again = {0};
    Config *read;
    CHECK_OK(make(
        &rounds,
        "  - {stage: sft, run: sft, data: {train: [{path: 'a \"b', weight: 3}]}, template: {name: \"x\\ny\"}}\n", "1"));
    CHECK_OK(config_write_set(rounds.stages[0].config, &text));
    CHECK_OK(config_new(&read));
    CHECK_OK(config_parse(read, "sft.yaml", text.bytes, text.length));
    for (int id = 0; id < OPTION_COUNT; id++)
        ck_assert_int_eq(config_is_set(read, (OptionId)id), config_is_set(rounds.stages[0].config, (OptionId)id));
    CHECK_OK(config_write_set(read, &again));
    ck_assert_str_eq(text.bytes, again.bytes);
    ck_assert_ptr_null(strstr(text.bytes, "train_on"));
    text_free(&text);
    text_free(&again);
    config_free(read);
    rounds_free(&rounds);
    leave();
}
END_TEST

START_TEST(what_cannot_be_meant_is_refused_with_its_place) {
    enter();
    refuses("  - {stage: a, run: sft, data: {train: \"{best}/sft.jsonl\"}}\n", "there is no stage 'best'");
    refuses(RECORDS "  - {stage: a, run: sft, data: {train: \"{bets}/sft.jsonl\"}}\n", "did you mean 'best'?");
    refuses("  - {stage: a, run: sft, data: {train: \"{best}/sft.jsonl\"}}\n" RECORDS,
            "r.yaml:7:40: data.train: {best}: in round 1 that stage has not run before 'a'");
    refuses(RECORDS "  - {stage: a, run: sft, data: {train: \"{best}\"}}\n", "{best}/sft.jsonl and {best}/pairs.jsonl");
    refuses(RECORDS "  - {stage: a, run: sft, data: {train: \"{best}/other\"}}\n", "sft.jsonl and pairs.jsonl");
    refuses(RECORDS "  - {stage: a, run: sft, data: {train: \"x/{best}/sft.jsonl\"}}\n", "begins the path");
    refuses(RECORDS "  - {stage: a, run: sft, data: {train: \"{best/sft.jsonl\"}}\n", "begins the path");
    refuses(JUDGE "  - {stage: a, run: sft, data: {train: \"{judge}/sft.jsonl\"}}\n",
            "makes a reward model; needed here: records");
    refuses(JUDGE "  - {stage: a, run: sft, model: {base: \"{judge}\"}, data: {train: x}}\n",
            "needed here: a language model");
    refuses(RECORDS "  - {stage: a, run: rejection, rejection: {prompts: \"{best@all}/sft.jsonl\"}}\n",
            "here one is needed");
    refuses(RECORDS "  - {stage: a, run: sft, data: {train: \"{best@first}/sft.jsonl\"}}\n",
            "earlier, all, or the number");
    refuses(RECORDS "  - {stage: a, run: sft, data: {train: \"{best@2}/sft.jsonl\"}}\n", "has not run before");
    refuses("  - {stage: policy, run: sft, data: {train: x}}\n", "this name means something else");
    refuses("  - {stage: A, run: sft, data: {train: x}}\n", "lower-case letters");
    refuses("  - {stage: ../a, run: sft, data: {train: x}}\n", "lower-case letters");
    refuses("  - {stage: a, run: rounds}\n", "a stage runs one of sft, reward");
    refuses("  - {stage: a, run: sft, output: x}\n", "leave out output");
    refuses("  - {stage: a, run: sft, optim: {lr: 1, lr: 2}}\n", "given twice");
    refuses("  - {stage: a, run: sft, models: [b]}\n", "are merge's");
    refuses("  - {stage: a, run: merge}\n", "needs models");
    refuses("  - {stage: a, run: merge, models: [b], optim: {lr: 1}}\n", "merge has no 'optim'");
    refuses("  - {stage: a, run: merge, models: [b], weights: [x]}\n", "numbers are expected");
    refuses("  - {stage: a, run: sft, first_round: 0}\n", "from 1");
    refuses("  - {stage: a, run: sft, first_round: 3, last_round: 2}\n", "is after last_round");
    refuses("  - {stage: a, run: sft, first_round: 2, data: {train: x}}\n", "round 1 has no stage");
    refuses("  - [stage, a]\n", "a stage is a mapping");
    refuses("  - {run: sft}\n", "has no name");
    refuses("  - {stage: a}\n", "does not say what it runs");
    refuses("  []\n", "a list of stages is expected");
    leave();
}
END_TEST

/* Before their files are looked for. */
START_TEST(every_recipe_of_rounds_passes_the_rules) {
    static const char *const recipes[] = {"configs/rounds_llama2.yaml", "configs/rounds_llama3.yaml"};
    CHECK_OK(kernels_select("auto")); /* which precision: auto asks */
    for (int r = 0; r < 2; r++) {
        Rounds rounds = {0};
        CHECK_OK(config_new(&rounds.config));
        CHECK_OK(rounds_load(rounds.config, recipes[r], &rounds));
        CHECK_OK(rounds_make(&rounds));
        ck_assert_uint_ge(rounds.n_stages, 22);
        for (size_t i = 0; i < rounds.n_stages; i++) {
            const Stage *training = rounds.stages[i].spec->command->training;
            if (training) CHECK_OK(run_check_config(training, rounds.stages[i].config));
        }
        rounds_free(&rounds);
    }
}
END_TEST

/* ---- the report ---- */

/* The rules find this in a stage's figures, or nothing where `part` is "". */
static void remarks(const char *stage, const char *part) {
    Text text = {0};
    json_t *object = json_loads(stage, 0, NULL);
    ck_assert_msg(object != NULL, "%s", stage);
    report_remarks(object, &text);
    const char *found = text.bytes ? text.bytes : "";
    ck_assert_msg(*part ? strstr(found, part) != NULL : *found == '\0', "'%s' is not in: %s", part, found);
    text_free(&text);
    json_decref(object);
}

#define EVAL(reward, length, correlation, kl)                                                            \
    "{\"policy\": {\"reward\": " reward ", \"reward_error\": 0.1, \"completions/mean_length\": " length  \
    ", \"completions/clipped_ratio\": 0, \"length_correlation\": " correlation ", \"objective/kl\": " kl \
    "}, \"reference\": {\"reward\": 1, \"reward_error\": 0.1, \"completions/mean_length\": 20}}"
#define JUDGED(accuracy, n) \
    "{\"figures\": {\"eval_accuracy\": {\"last\": " accuracy "}, \"eval_samples\": {\"last\": " n "}}}"
#define STATISTICS(distinct, pairs, earlier)                                                                    \
    "{\"statistics\": {\"prompts\": 10, \"answers\": 40, \"distinct_answers\": " distinct ", \"pairs\": " pairs \
    ", \"best_from_earlier\": " earlier "}}"

START_TEST(figures_are_told_in_words) {
    remarks("{}", "");
    remarks("{\"stage\": \"a\", \"figures\": {\"eval_loss\": {\"least\": 1, \"last\": 1.04}}}", "");
    remarks("{\"stage\": \"a\", \"figures\": {\"eval_loss\": {\"least\": 1, \"last\": 1.06}}}", "{a}/best");
    remarks("{\"figures\": {\"eval_accuracy\": {\"last\": 0.5}}}", "it ranks 50 % of the held-out pairs");
    remarks("{\"figures\": {\"eval_accuracy\": {\"last\": 0.6}}}", "");
    remarks(JUDGED("0.6", "30"), "");
    remarks(JUDGED("0.54", "100"), "54 % of the 100 held-out pairs rightly, little more than by chance");
    remarks(JUDGED("0.4", "100"), "no more than by chance");
    remarks(JUDGED("0.9", "29"), "90 %, is of 29 pairs, too few to tell it from chance");
    remarks(JUDGED("0", "1"), "is of 1 pair, too few");
    remarks("{\"figures\": {\"eval_samples\": {\"last\": 1}}}", "");
    remarks("{\"steps\": 1, \"figures\": {}}", "it took 1 step, which changes little");
    remarks("{\"steps\": 4, \"figures\": {}}", "it took 4 steps");
    remarks("{\"steps\": 5, \"figures\": {}}", "");
    remarks(STATISTICS("30", "8", "2"), "");
    remarks(STATISTICS("10", "8", "2"), "only 25 % of the answers differ");
    remarks(STATISTICS("30", "2", "2"), "for 80 % of the prompts");
    remarks(STATISTICS("30", "8", "7"), "to 70 % of the prompts are of earlier rounds");
    remarks(EVAL("1.2", "20", "0", "3"), "");
    remarks(EVAL("0.8", "20", "0", "3"), ""); /* within two standard errors of the difference, 0.14 */
    remarks(EVAL("0.7", "20", "0", "3"), "fell from 1 to 0.7");
    remarks(EVAL("1.2", "20", "0", "12"), "12 nats an answer");
    remarks(EVAL("1.2", "30", "0.7", "3"), "the reward rose with length");
    remarks(EVAL("1.2", "30", "0.3", "3"), "");
    remarks("{\"policy\": {\"completions/clipped_ratio\": 0.75}}", "75 % of the answers did not end");
}
END_TEST

static void has(const Text *text, const char *part) {
    ck_assert_msg(strstr(text->bytes, part) != NULL, "'%s' is not in:\n%s", part, text->bytes);
}

/* A round with a stage of a kind each; its measured reward rose by `rise`. */
static void report_of(Text *out, const char *rise, const char *remark) {
    Text json = {0};
    Config *config;
    CHECK_OK(config_new(&config));
    CHECK_OK(config_set(config, "rounds.count", "2", "test"));
    Rounds rounds = {.config = config, .n_stages = 4};
    text_printf(&json,
                "[{\"round\": 1, \"stages\": ["
                "{\"stage\": \"tune\", \"run\": \"sft\", \"steps\": 1, \"figures\": {\"loss\": {\"n\": 1, "
                "\"first\": 2, \"last\": 2}}, \"remarks\": [%s]},"
                "{\"stage\": \"best\", \"run\": \"rejection\", \"statistics\": {\"mean_score\": 1.5, "
                "\"mean_best\": 2.5, \"by_k\": [{}, {}, {}]}, \"remarks\": []},"
                "{\"stage\": \"measure\", \"run\": \"eval\", \"remarks\": [], \"policy\": {\"reward\": %s, "
                "\"reward_error\": 0.3, \"objective/kl\": 3.25}, \"reference\": {\"reward\": 1, \"reward_error\": "
                "0.4}}]}]",
                remark, rise);
    json_t *all = json_loads(json.bytes, 0, NULL);
    ck_assert_ptr_nonnull(all);
    CHECK_OK(report_text(all, &rounds, out));
    json_decref(all);
    text_free(&json);
    config_free(config);
}

START_TEST(a_report_says_what_came_of_it_and_what_to_look_at) {
    Text text = {0};
    report_of(&text, "2.1", "");
    has(&text, "3 of 4 stages of 2 rounds are finished; the same command goes on");
    has(&text, "The best of 3 answers to a prompt earned 2.5, the mean of all 1.5.");
    has(&text, "the reward went from 1 to 2.1, a gain (the difference's standard error is 0.5), 3.25 nats");
    has(&text, "Nothing: no stage said that something was wrong");
    has(&text, "| 1 step; loss 2 |");
    text_clear(&text);
    report_of(&text, "1.9", "\"step 30: the loss\"");
    has(&text, "from 1 to 1.9, which may be chance");
    has(&text, "- round 1, tune: step 30: the loss\n");
    text_clear(&text);
    report_of(&text, "-0.1", "");
    has(&text, "to -0.1, a loss");
    text_free(&text);
}
END_TEST

/* ---- records ---- */

static RoundState state_of(const RoundStage *stage) {
    RoundState state;
    CHECK_OK(record_read(stage, &state));
    return state;
}

/* A run whose only stage reads a.jsonl, recorded as begun or finished. */
static void make_recorded(Rounds *rounds, const char *stages, bool finished) {
    write_text("a.jsonl", "one\n");
    write_text("start/weights", "1");
    CHECK_OK(make(rounds, stages, "1"));
    CHECK_OK(record_write(&rounds->stages[0], finished));
    CHECK_OK(directory_make(rounds->stages[0].folder));
}

#define TUNE(lr) "  - {stage: tune, run: sft, data: {train: a.jsonl}, optim: {lr: " lr "}}\n"

START_TEST(a_finished_stage_is_known) {
    enter();
    Rounds rounds;
    make_recorded(&rounds, TUNE("0.1"), true);
    ck_assert(state_of(&rounds.stages[0]).finished);
    CHECK_OK(record_write(&rounds.stages[0], false));
    RoundState state = state_of(&rounds.stages[0]);
    ck_assert(state.begun && !state.finished);
    rounds_free(&rounds);
    leave();
}
END_TEST

START_TEST(what_a_finished_stage_was_made_with_may_not_change) {
    enter();
    Rounds rounds, other;
    RoundState state;
    make_recorded(&rounds, TUNE("0.1"), true);
    CHECK_OK(make(&other, TUNE("0.2"), "1"));
    CHECK_ERROR(record_read(&other.stages[0], &state), ERR_REFUSED, "optim.lr: 0.1 then, 0.2 now");
    rounds_free(&other);
    CHECK_OK(make(&other, "  - {stage: tune, run: sft, data: {train: a.jsonl}, optim: {lr: 0.1, clip: 2}}\n", "1"));
    CHECK_ERROR(record_read(&other.stages[0], &state), ERR_REFUSED, "optim.clip: left out then, 2 now");
    rounds_free(&other);
    CHECK_OK(make(
        &other, "  - {stage: tune, run: sft, data: {train: a.jsonl}, optim: {lr: 0.1}, train: {log_every: 9}}\n", "1"));
    ck_assert(state_of(&other.stages[0]).finished); /* without effect */
    rounds_free(&other);
    CHECK_OK(make(&other, "  - {stage: tune, run: dpo, data: {train: a.jsonl}}\n", "1"));
    CHECK_ERROR(record_read(&other.stages[0], &state), ERR_REFUSED, "was made by cria sft");
    rounds_free(&other);
    write_text("a.jsonl", "two\n");
    CHECK_ERROR(record_read(&rounds.stages[0], &state), ERR_REFUSED, "a.jsonl has changed since");
    ck_assert_int_eq(unlink("a.jsonl"), 0);
    ck_assert(state_of(&rounds.stages[0]).finished); /* what is gone is not needed any more */
    write_text("start/weights", "2");
    CHECK_ERROR(record_read(&rounds.stages[0], &state), ERR_REFUSED, "start has changed since");
    rounds_free(&rounds);
    leave();
}
END_TEST

START_TEST(a_run_that_is_moved_keeps_what_is_finished) {
    enter();
    Rounds rounds, moved;
    make_recorded(&rounds, TUNE("0.1") JUDGE, true);
    CHECK_OK(record_write(&rounds.stages[1], true));
    CHECK_OK(directory_make(rounds.stages[1].folder));
    ck_assert_int_eq(rename("out", "elsewhere"), 0);
    moved = (Rounds){0};
    CHECK_OK(config_new(&moved.config));
    CHECK_OK(rounds_load(moved.config, "r.yaml", &moved));
    CHECK_OK(config_set(moved.config, "output", "elsewhere", "argument 1"));
    CHECK_OK(rounds_make(&moved));
    ck_assert(state_of(&moved.stages[0]).finished && state_of(&moved.stages[1]).finished);
    rounds_free(&moved);
    rounds_free(&rounds);
    leave();
}
END_TEST

START_TEST(what_the_run_did_not_make_is_refused) {
    enter();
    Rounds rounds;
    RoundState state;
    make_recorded(&rounds, TUNE("0.1"), true);
    CHECK_OK(directory_remove(rounds.stages[0].folder));
    CHECK_ERROR(record_read(&rounds.stages[0], &state), ERR_REFUSED, "is gone");
    CHECK_OK(directory_make(rounds.stages[0].folder));
    ck_assert_int_eq(unlink(rounds.stages[0].record), 0);
    CHECK_ERROR(record_read(&rounds.stages[0], &state), ERR_REFUSED, "this run did not make it");
    static const char *const records[] = {"",
                                          "{",
                                          "[]",
                                          "{}",
                                          "{\"cria\": \"rounds\"}",
                                          "{\"cria\": 1, \"stage\": []}",
                                          "{\"cria\": \"rounds\", \"stage\": \"a\", \"run\": \"sft\", \"state\": 1, "
                                          "\"options\": {}, \"inputs\": {}}"};
    for (size_t i = 0; i < sizeof records / sizeof *records; i++) {
        write_text(rounds.stages[0].record, records[i]);
        CHECK_ERROR(record_read(&rounds.stages[0], &state), ERR_REFUSED, "round-1/tune.json");
    }
    rounds_free(&rounds);
    leave();
}
END_TEST

/* A merge appears whole: killed before its record was written, it is done. */
START_TEST(a_merge_that_is_there_is_finished_but_for_its_record) {
    enter();
    Rounds rounds, other;
    RoundState state;
    make_recorded(&rounds, "  - {stage: mean, run: merge, models: [start, start]}\n", false);
    state = state_of(&rounds.stages[0]);
    ck_assert(state.finished && !state.recorded);
    CHECK_OK(make(&other, "  - {stage: mean, run: merge, models: [start, start], weights: [0.1, 0.9]}\n", "1"));
    CHECK_ERROR(record_read(&other.stages[0], &state), ERR_REFUSED, "weights: left out then, 0.1,0.9 now");
    rounds_free(&other);
    CHECK_OK(directory_remove(rounds.stages[0].folder));
    state = state_of(&rounds.stages[0]);
    ck_assert(state.begun && !state.finished);
    rounds_free(&rounds);
    leave();
}
END_TEST

CHECK_MAIN("rounds", figures_are_told_in_words, a_report_says_what_came_of_it_and_what_to_look_at,
           every_recipe_of_rounds_passes_the_rules, a_stage_begins_from_the_newest_policy,
           lists_name_stages_of_earlier_rounds, a_stage_has_the_shared_options_that_it_reads,
           a_stage_is_written_with_what_was_set_alone, what_cannot_be_meant_is_refused_with_its_place,
           a_finished_stage_is_known, what_a_finished_stage_was_made_with_may_not_change,
           a_run_that_is_moved_keeps_what_is_finished, what_the_run_did_not_make_is_refused,
           a_merge_that_is_there_is_finished_but_for_its_record)
