/* Preference records: every form by what it means, what is refused and why; and pairs as training sees them: both
 * answers of a pair in one micro-batch, marks beside them, whatever ranks and micro-batches. */
#include <math.h>

#include "data/chat/pairs.h"
#include "data/loader.h"
#include "model/core/error.h"
#include "model/core/philox.h"
#include "model/core/text.h"
#include "tests/data_fixture.h"

#define CHAT_TOKENIZER "tests/golden/tokenizer_chat.json"

static Tokenizer *tokenizer;
static ChatTemplate *chat;

static void setup(void) {
    fixture_setup();
    CHECK_OK(tokenizer_load(&tokenizer, CHAT_TOKENIZER));
    CHECK_OK(chat_template_new(&chat, chat_template_spec("llama3"), NULL, tokenizer));
}
static void teardown(void) {
    chat_template_free(chat);
    tokenizer_free(tokenizer);
    fixture_teardown();
}

/* ---- records ---------------------------------------------------------------------------------------------------- */

/* "user:Hi | assistant:yes | assistant:no", the prompt's messages joined by ';'; the error's text where it is refused.
 */
static char *meaning(const char *json, const char *columns) {
    Preference p = {0};
    ChatColumns renamed = {0};
    Text out = {0};
    if (columns) CHECK_OK(chat_columns_parse(&renamed, columns));
    if (preference_parse(&p, json, strlen(json), &renamed) != OK) {
        text_puts(&out, error_text());
        error_clear();
    } else {
        for (size_t i = 0; i < p.n_prompt; i++)
            text_printf(&out, "%s%s:%s", i ? ";" : "", chat_role_name(p.all.messages[p.first_prompt + i].role),
                        p.all.messages[p.first_prompt + i].text.bytes);
        for (size_t a = 0; a < p.n_answers; a++) {
            text_puts(&out, " | ");
            for (size_t i = p.first[a]; i < p.end[a]; i++)
                text_printf(&out, "%s%s:%s", i > p.first[a] ? ";" : "", chat_role_name(p.all.messages[i].role),
                            p.all.messages[i].text.bytes);
        }
        if (p.mark.strength) text_printf(&out, " %s", strength_name((Strength)p.mark.strength));
        if (!isnan(p.mark.margin)) text_printf(&out, " %g", (double)p.mark.margin);
        if (p.objective) text_printf(&out, " about %s", p.objective->bytes);
        if (p.kind == PREFERENCE_LABEL) text_puts(&out, p.mark.is_good ? " good" : " bad");
        if (p.kind == PREFERENCE_NONE) text_puts(&out, "none");
    }
    preference_free(&p);
    chat_columns_free(&renamed);
    return out.bytes;
}

static void expect(const char *json, const char *columns, const char *expected) {
    char *found = meaning(json, columns);
    ck_assert_msg(strstr(found, expected) == found, "%s\n  found    %s\n  expected %s", json, found, expected);
    free(found);
}

/* What the pair is about, or what is wrong with that. */
static void expect_objective(const char *more, PairObjectives objectives, int expected, const char *error) {
    char json[256];
    int found;
    Preference p = {0};
    snprintf(json, sizeof json, "{\"prompt\": \"Hi\", \"chosen\": \"yes\", \"rejected\": \"no\"%s}", more);
    CHECK_OK(preference_parse(&p, json, strlen(json), NULL));
    if (error)
        CHECK_ERROR(pair_objective(&found, &objectives, &p), ERR_REFUSED, error);
    else
        CHECK_OK(pair_objective(&found, &objectives, &p));
    if (!error) ck_assert_int_eq(found, expected);
    preference_free(&p);
}

START_TEST(a_pair_is_about_what_its_record_says_else_about_what_is_usual) {
    static const char *const names[] = {"helpfulness", "safety"};
    PairObjectives two = {names, 2, -1}, usual = {names, 2, 1}, one = {.n = 0};
    expect_objective(", \"objective\": \"safety\"", two, 1, NULL);
    expect_objective(", \"objective\": \"helpfulness\"", usual, 0, NULL);
    expect_objective("", usual, 1, NULL);
    expect_objective(", \"objective\": null", usual, 1, NULL);
    expect_objective(", \"objective\": \"honesty\"", one, 0, NULL); /* means something else */
    expect_objective("", two, 0, "no \"objective\", and its source none; expected one of helpfulness, safety");
    expect_objective(", \"objective\": \"Safety\"", usual, 0, "'Safety'; expected one of helpfulness, safety");
    expect_objective(", \"objective\": 1", two, 0, "expected one of helpfulness, safety");
}
END_TEST

START_TEST(every_form_of_a_preference_is_read_by_its_keys) {
    expect("{\"prompt\": \"Hi\", \"chosen\": \"yes\", \"rejected\": \"no\"}", NULL,
           "user:Hi | assistant:yes | assistant:no");
    expect("{\"q\": \"Hi\", \"good\": \"yes\", \"bad\": \"no\"}", "prompt=q,chosen=good,rejected=bad",
           "user:Hi | assistant:yes | assistant:no");
    expect("{\"prompt\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"Hi\"}], "
           "\"chosen\": [{\"role\": \"assistant\", \"content\": \"yes\"}], \"rejected\": [{\"role\": \"assistant\", "
           "\"content\": \"no\"}], \"strength\": \"slightly better\", \"margin\": 0.5}",
           NULL, "system:s;user:Hi | assistant:yes | assistant:no slightly 0.5");
    expect("{\"prompt\": \"Hi\", \"chosen\": \"yes\", \"rejected\": \"no\", \"objective\": \"safety\"}", NULL,
           "user:Hi | assistant:yes | assistant:no about safety");
    expect("{\"prompt\": \"Hi\", \"chosen\": \"yes\", \"rejected\": \"no\", \"aspect\": \"safety\"}",
           "objective=aspect", "user:Hi | assistant:yes | assistant:no about safety");
    /* an implicit prompt: what the lists have in common, but for the last message */
    expect("{\"chosen\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"a\"}], "
           "\"rejected\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}",
           NULL, "user:Hi | assistant:a | assistant:b");
    expect("{\"chosen\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"a\"}], "
           "\"rejected\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}",
           NULL, "user:Hi | assistant:a | assistant:a");
    /* UltraFeedback: a prompt, and answers that contain it */
    expect("{\"prompt\": \"Hi\", \"chosen\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", "
           "\"content\": \"a\"}], \"rejected\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", "
           "\"content\": \"b\"}]}",
           NULL, "user:Hi | assistant:a | assistant:b");
    /* hh-rlhf */
    expect("{\"chosen\": \"\\n\\nHuman: Hi\\n\\nAssistant: Hm?\\n\\nHuman: So\\n\\nAssistant: yes\\n\\nsir\", "
           "\"rejected\": \"\\n\\nHuman: Hi\\n\\nAssistant: Hm?\\n\\nHuman: So\\n\\nAssistant:\"}",
           NULL, "user:Hi;assistant:Hm?;user:So | assistant:yes\n\nsir | assistant:");
    expect("{\"prompt\": \"\\n\\nHuman: Hi\\n\\nAssistant:\", \"chosen\": \"a\", \"rejected\": \"b\"}", NULL,
           "user:Hi | assistant:a | assistant:b");
    /* ShareGPT with single messages, Alpaca's instruction */
    expect("{\"conversations\": [{\"from\": \"human\", \"value\": \"Hi\"}], \"chosen\": {\"from\": \"gpt\", \"value\": "
           "\"a\"}, \"rejected\": {\"from\": \"gpt\", \"value\": \"b\"}, \"strength\": \"significantly\"}",
           NULL, "user:Hi | assistant:a | assistant:b significantly");
    expect("{\"instruction\": \"Hi\", \"system\": \"s\", \"chosen\": \"a\", \"rejected\": \"b\"}", NULL,
           "system:s;user:Hi | assistant:a | assistant:b");
    /* ranked: edited > chosen > rejected */
    expect("{\"prompt\": \"Hi\", \"chosen\": \"b\", \"rejected\": \"c\", \"edited\": \"a\"}", NULL,
           "user:Hi | assistant:a | assistant:b | assistant:c");
    /* labelled */
    expect("{\"prompt\": \"Hi\", \"completion\": \"yes\", \"label\": true}", NULL, "user:Hi | assistant:yes good");
    expect("{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": "
           "\"no\"}], \"label\": 0}",
           NULL, "user:Hi | assistant:no bad");
    expect("{\"prompt\": \"Hi\", \"completion\": \"yes\", \"label\": \"spam\"}", NULL, "none");
}
END_TEST

START_TEST(what_is_no_preference_is_refused_with_its_reason) {
    expect("{\"prompt\": \"Hi\", \"chosen\": \"yes\"}", NULL, "no \"rejected\"");
    expect("{\"prompt\": \"Hi\", \"chosen\": \"yes\", \"rejected\": null}", NULL, "no \"rejected\"");
    expect("{\"chosen\": \"yes\", \"rejected\": \"no\"}", NULL, "no prompt");
    expect("{\"prompt\": \"Hi\", \"chosen\": 5, \"rejected\": \"no\"}", NULL, "\"chosen\" is a number");
    expect("{\"prompt\": \"Hi\", \"chosen\": [], \"rejected\": \"no\"}", NULL, "\"chosen\" is empty");
    expect("{\"chosen\": [{\"role\": \"user\", \"content\": \"A\"}, {\"role\": \"assistant\", \"content\": \"a\"}], "
           "\"rejected\": [{\"role\": \"user\", \"content\": \"B\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}",
           NULL, "different prompts: message 1 of \"chosen\" is the user's");
    expect("{\"prompt\": \"Hi\", \"chosen\": [{\"role\": \"user\", \"content\": \"A\"}], \"rejected\": \"no\"}", NULL,
           "\"chosen\" has no answer");
    expect("{\"prompt\": \"Hi\", \"chosen\": \"a\", \"rejected\": \"b\", \"strength\": \"very\"}", NULL,
           "\"strength\" is 'very'; expected significantly, better");
    expect("{\"prompt\": \"Hi\", \"chosen\": \"a\", \"rejected\": \"b\", \"margin\": \"1\"}", NULL,
           "\"margin\" is no number");
    expect("{\"text\": \"Hi\", \"label\": true}", NULL, "a text has no prompt");
    expect("[1]", NULL, "an array was found");
}
END_TEST

/* A good record with a few of its bytes changed, cut away or doubled. */
static size_t damage(char *out, const char *record, int round) {
    PhiloxKey key = philox_key(11, PHILOX_TEST, (uint32_t)round, 0);
    size_t n = strlen(record);
    memcpy(out, record, n);
    for (uint64_t i = 0; i <= (uint64_t)round % 3; i++) {
        size_t at = philox_below(key, 4 * i, n), kind = philox_below(key, 4 * i + 1, 3);
        size_t length = 1 + philox_below(key, 4 * i + 2, 12);
        if (at + length > n) length = n - at;
        if (kind == 0) out[at] = (char)(32 + philox_below(key, 4 * i + 3, round % 2 ? 224 : 95));
        if (kind == 1) memmove(out + at, out + at + length, n - at - length);
        if (kind == 2) memmove(out + at + length, out + at, n - at);
        n = kind == 1 ? n - length : kind == 2 ? n + length : n;
        if (n == 0) return 0;
    }
    return n;
}

START_TEST(damaged_records_are_read_or_refused) {
    static const char *const records[] = {
        "{\"prompt\": \"Hi\", \"chosen\": \"yes\", \"rejected\": \"no\", \"edited\": [], \"margin\": 1}",
        "{\"chosen\": \"\\n\\nHuman: Hi\\n\\nAssistant: a\", \"rejected\": \"\\n\\nHuman: Hi\\n\\nAssistant: b\"}",
        "{\"chosen\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"a\"}], "
        "\"rejected\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}",
        "{\"conversations\": [{\"from\": \"human\", \"value\": \"Hi\"}], \"chosen\": {\"from\": \"gpt\", \"value\": "
        "\"a\"}, \"rejected\": {\"from\": \"gpt\", \"value\": \"b\"}, \"strength\": \"slightly\"}",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"no\"}], "
        "\"label\": true}"};
    enum { N = sizeof records / sizeof *records };
    PairTokens pair = {0};
    int n_read = 0, n_rounds = check_rounds(5000);
    setup();
    for (int round = 0; round < n_rounds; round++) {
        char bytes[512];
        size_t n = damage(bytes, records[round % N], round);
        int rc = preference_parse(&pair.preference, bytes, n, NULL);
        if (rc == OK && pair.preference.kind != PREFERENCE_NONE) rc = pair_render(&pair, chat, round % 2);
        ck_assert(rc == OK || rc == ERR_REFUSED);
        if (rc != OK || pair.preference.kind == PREFERENCE_NONE) continue;
        pair_fit(&pair, 32, (Overlong)(round % 4));
        n_read++;
    }
    ck_assert_int_gt(n_read, n_rounds / 100);
    pair_tokens_free(&pair);
    teardown();
}
END_TEST

/* ---- pairs in the loader ---------------------------------------------------------------------------------------- */

static PairEncoder encoder;
static SourceOptions source;

static LoaderOptions options_for(const char *path, SampleKind samples, int context, bool mask_stop) {
    pair_encoder_init(&encoder, &(PairOptions){.chat = chat,
                                               .samples = samples,
                                               .context = (size_t)context,
                                               .overlong = OVERLONG_TRUNCATE_LEFT,
                                               .mask_stop = mask_stop});
    source = (SourceOptions){.path = path, .weight = 1, .encoder = &encoder.base};
    return (LoaderOptions){.sources = &source,
                           .n_sources = 1,
                           .cache = fixture_path("cache"),
                           .fail_on_error = true,
                           .packing = PACKING_ALONE,
                           .document_mask = true,
                           .context = 2 * context,
                           .tokens_per_batch = 4 * 2 * context,
                           .tokens_per_microbatch = 2 * context,
                           .seed = 3,
                           .n_ranks = 1};
}

/* Records 0 … n-1; the margin is the record's number. Every fifth is ranked: three pairs. */
static const char *write_pairs(int n) {
    Text lines = {0};
    for (int i = 0; i < n; i++) {
        text_printf(&lines, "{\"prompt\": \"question %d\", \"chosen\": \"%.*s good\", \"rejected\": \"bad %d\"", i,
                    i % 7, "longer", i);
        if (i % 5 == 4) text_printf(&lines, ", \"edited\": \"the best %d\"", i);
        text_printf(&lines, ", \"margin\": %d}\n", i);
    }
    const char *path = fixture_write("pairs.jsonl", lines.bytes, lines.length);
    text_free(&lines);
    return path;
}

static void add_segment(Text *out, const MicroBatch *micro, int s) {
    for (int t = micro->segment_start[s]; t < micro->segment_start[s + 1]; t++) {
        ck_assert_int_eq(micro->positions[t], t - micro->segment_start[s]);
        if (t + 1 < micro->segment_start[s + 1]) ck_assert_int_eq(micro->targets[t], micro->tokens[t + 1]);
        text_printf(out, "%d:%g ", micro->tokens[t], (double)micro->weights[t]);
    }
}

/* One line a sample: its number, margin, and both segments, in the order of the step. */
static void show(Text *out, const StepBatch *batch, double *weight, double *first_weight) {
    for (int m = 0; m < batch->n_micro; m++) {
        const MicroBatch *micro = &batch->micro[m];
        ck_assert_int_eq(micro->n_segments, 2 * micro->n_samples);
        for (int s = 0; s < micro->n_samples; s++) {
            text_printf(out, "%lld margin %g: ", (long long)micro->sample[s], (double)micro->marks[s].margin);
            add_segment(out, micro, 2 * s);
            text_puts(out, "| ");
            add_segment(out, micro, 2 * s + 1);
            text_puts(out, "\n");
        }
        for (int s = 0; s < micro->n_segments; s++)
            for (int t = micro->segment_start[s]; t < micro->segment_start[s + 1]; t++) {
                *weight += (double)micro->weights[t];
                if (s % 2 == 0) *first_weight += (double)micro->weights[t];
            }
    }
}

static char *epoch(LoaderOptions options, int n_ranks, int tokens_per_microbatch) {
    Text out = {0};
    int64_t steps = 1;
    options.n_ranks = n_ranks;
    options.tokens_per_microbatch = tokens_per_microbatch;
    for (int64_t step = 0; step < steps; step++) {
        double weight = 0, first_weight = 0, total = 0, first_total = 0;
        for (options.rank = 0; options.rank < n_ranks; options.rank++) {
            Loader *loader;
            StepBatch batch;
            CHECK_OK(loader_open(&loader, &options, tokenizer));
            steps = loader_steps_per_epoch(loader);
            CHECK_OK(loader_step(loader, step, &batch));
            show(&out, &batch, &weight, &first_weight);
            total = batch.total_weight;
            first_total = batch.first_weight;
            ck_assert_int_eq(batch.total_samples, 4);
            loader_free(loader);
        }
        ck_assert_double_eq(weight, total);
        ck_assert_double_eq(first_weight, first_total);
    }
    return out.bytes;
}

START_TEST(both_answers_of_a_pair_share_a_micro_batch_whatever_the_ranks) {
    setup();
    LoaderOptions options = options_for(write_pairs(30), SAMPLE_PAIR, 64, false);
    char *whole = epoch(options, 1, 8192);
    for (int ranks = 1; ranks <= 3; ranks++) {
        char *parts = epoch(options, ranks, 128);
        ck_assert_str_eq(whole, parts);
        free(parts);
    }
    free(whole);
    teardown();
}
END_TEST

START_TEST(pairs_are_what_the_records_say_and_ranked_answers_are_three) {
    setup();
    LoaderOptions options = options_for(write_pairs(10), SAMPLE_PAIR, 64, false);
    Loader *loader;
    StepBatch batch;
    Text found = {0}, expected = {0};
    double weight = 0, first_weight = 0;
    CHECK_OK(loader_open(&loader, &options, tokenizer));
    ck_assert_int_eq(loader_n_samples(loader), 8 + 2 * 3);
    for (int64_t step = 0; step < loader_pass_steps(loader); step++) {
        CHECK_OK(loader_pass_step(loader, step, &batch));
        show(&found, &batch, &weight, &first_weight);
    }
    PairTokens pair = {0};
    char *bytes;
    size_t size;
    CHECK_OK(file_read(&bytes, &size, source.path, 0));
    char *rest = bytes, *line;
    int number = 0;
    while ((line = strsep(&rest, "\n")) && *line) {
        CHECK_OK(preference_parse(&pair.preference, line, strlen(line), NULL));
        CHECK_OK(pair_render(&pair, chat, false));
        size_t n = pair.preference.n_answers;
        for (size_t a = 0; a < n; a++)
            for (size_t b = a + 1; b < n; b++) {
                const ChatTokens *sides[] = {&pair.tokens[a], &pair.tokens[b]};
                bool is_own = b + 1 == n && a + 2 == n;
                text_printf(&expected, "%d margin %g: ", number++, is_own ? (double)pair.preference.mark.margin : NAN);
                for (int side = 0; side < 2; side++) {
                    for (size_t t = 0; t < sides[side]->n; t++)
                        text_printf(&expected, "%d:%g ", sides[side]->ids[t],
                                    t + 1 < sides[side]->n ? (double)sides[side]->weights[t + 1] : 0);
                    text_puts(&expected, side == 0 ? "| " : "\n");
                }
            }
    }
    ck_assert_str_eq(found.bytes, expected.bytes);
    text_free(&found);
    text_free(&expected);
    free(bytes);
    pair_tokens_free(&pair);
    loader_free(loader);
    teardown();
}
END_TEST

static int count_records(const char *path, SampleKind samples, int context, bool mask_stop, RecordCounts *counts,
                         int64_t *n) {
    LoaderOptions options = options_for(path, samples, context, mask_stop);
    Loader *loader;
    options.fail_on_error = false;
    int rc = loader_open(&loader, &options, tokenizer);
    if (rc != OK) return rc;
    *counts = loader_record_counts(loader);
    *n = loader_n_samples(loader);
    loader_free(loader);
    return OK;
}

START_TEST(equal_answers_and_answers_that_do_not_fit_are_left_out_and_counted) {
    setup();
    const char *path = fixture_text(
        "bad.jsonl", "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n"
                     "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"b\"}\n"
                     "{\"prompt\": \"a\", \"chosen\": \"b\"}\n"
                     "{\"prompt\": \"a\", \"completion\": \"b\", \"label\": true}\n"
                     "{\"prompt\": \"a\", \"chosen\": \"\", \"rejected\": \"c\"}\n"
                     "{\"prompt\": \"a\", \"chosen\": \"0123456789 0123456789 0123456789 0123456789 0123456789\", "
                     "\"rejected\": \"c\"}\n"
                     "{\"prompt\": \"a rather long prompt, of which the beginning may go away\", \"chosen\": \"b\", "
                     "\"rejected\": \"c\"}\n");
    RecordCounts counts;
    int64_t n;
    CHECK_OK(count_records(path, SAMPLE_PAIR, 48, false, &counts, &n));
    ck_assert_int_eq(n, 3); /* the first, the empty answer (its stop is learned), the long prompt */
    ck_assert_int_eq(counts.n[RECORD_MASKED], 1);
    ck_assert_int_eq(counts.n[RECORD_BAD], 2);
    ck_assert_int_eq(counts.n[RECORD_DROPPED], 1);
    ck_assert_int_eq(counts.n[RECORD_TRUNCATED], 1);
    CHECK_OK(count_records(path, SAMPLE_PAIR, 48, true, &counts, &n));
    ck_assert_int_eq(n, 2); /* without its stop an empty answer has nothing */
    CHECK_OK(count_records(path, SAMPLE_LABELLED, 48, false, &counts, &n));
    ck_assert_int_eq(n, 1);
    ck_assert_int_eq(counts.n[RECORD_BAD], 6);
    teardown();
}
END_TEST

START_TEST(a_prompt_cut_from_the_left_is_cut_alike_for_both_answers) {
    setup();
    PairTokens pair = {0};
    const char *json = "{\"prompt\": \"zero one two three four five six seven\", \"chosen\": \"a longer answer\", "
                       "\"rejected\": \"no\"}";
    CHECK_OK(preference_parse(&pair.preference, json, strlen(json), NULL));
    CHECK_OK(pair_render(&pair, chat, false));
    size_t longest = pair_longest(&pair), live[2] = {pair.tokens[0].n_live, pair.tokens[1].n_live};
    ck_assert(pair_fit(&pair, longest - 5, OVERLONG_TRUNCATE_LEFT));
    ck_assert_uint_eq(pair_longest(&pair), longest - 5);
    size_t prompt = pair.tokens[0].n - live[0];
    ck_assert_uint_eq(pair.tokens[1].n - live[1], prompt);
    ck_assert_mem_eq(pair.tokens[0].ids, pair.tokens[1].ids, prompt * sizeof(int32_t));
    ck_assert(pair.tokens[0].n_live == live[0] && pair.tokens[1].n_live == live[1]);
    ck_assert(!pair_fit(&pair, live[0] - 1, OVERLONG_TRUNCATE_LEFT));
    pair_tokens_free(&pair);
    teardown();
}
END_TEST

CHECK_MAIN("preferences", a_pair_is_about_what_its_record_says_else_about_what_is_usual,
           every_form_of_a_preference_is_read_by_its_keys, what_is_no_preference_is_refused_with_its_reason,
           damaged_records_are_read_or_refused, both_answers_of_a_pair_share_a_micro_batch_whatever_the_ranks,
           pairs_are_what_the_records_say_and_ranked_answers_are_three,
           equal_answers_and_answers_that_do_not_fit_are_left_out_and_counted,
           a_prompt_cut_from_the_left_is_cut_alike_for_both_answers)
