/* Conversations as training sees them: what chat_render gives for each record, one segment a record, whatever the
 * packing, micro-batches and ranks; what is left out is counted; nothing learned is an error. */
#include <math.h>

#include "data/chat/encode.h"
#include "data/loader.h"
#include "model/core/error.h"
#include "model/core/text.h"
#include "tests/data_fixture.h"

#define CHAT_TOKENIZER "tests/golden/tokenizer_chat.json"

static Tokenizer *tokenizer;
static ChatTemplate *chat;
static ChatEncoder encoder;
static SourceOptions source;

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

static void set_encoder(TrainOn train_on, size_t context, Overlong overlong) {
    chat_encoder_init(
        &encoder, &(ChatEncoderOptions){.chat = chat, .train_on = train_on, .context = context, .overlong = overlong});
}

static LoaderOptions options_for(const char *path, int context, Packing packing) {
    source = (SourceOptions){.path = path, .weight = 1, .encoder = &encoder.base};
    return (LoaderOptions){.sources = &source,
                           .n_sources = 1,
                           .cache = fixture_path("cache"),
                           .fail_on_error = true,
                           .packing = packing,
                           .document_mask = true,
                           .context = context,
                           .tokens_per_batch = 4 * context,
                           .tokens_per_microbatch = 2 * context,
                           .seed = 3,
                           .n_ranks = 1};
}

/* n records with one to three turns each; the number of the record is in its first message. */
static const char *write_records(const char *name, int n, bool as_array) {
    Text lines = {0};
    text_puts(&lines, as_array ? "[" : "");
    for (int i = 0; i < n; i++) {
        text_printf(&lines, "{\"messages\": [{\"role\": \"user\", \"content\": \"record %d\"}", i);
        for (int turn = 0; turn <= i % 3; turn++) {
            if (turn) text_puts(&lines, ", {\"role\": \"user\", \"content\": \"and then\"}");
            text_printf(&lines, ", {\"role\": \"assistant\", \"content\": \"answer %d of %d\"%s}", turn, i,
                        i % 4 == 3 && turn == 0 ? ", \"weight\": 0.25" : "");
        }
        text_puts(&lines, as_array && i + 1 < n ? "]},\n" : "]}\n");
    }
    text_puts(&lines, as_array ? "]" : "");
    const char *path = fixture_write(name, lines.bytes, lines.length);
    text_free(&lines);
    return path;
}

/* What record i of write_records is, as "id:weight id:weight …", each weight its own token's. */
static void expect_record(Text *out, int i, TrainOn mode) {
    Conversation conversation = {0};
    ChatTokens tokens = {0};
    char *bytes;
    size_t size;
    CHECK_OK(file_read(&bytes, &size, fixture_path("records.jsonl"), 0));
    char *rest = bytes, *line = NULL;
    for (int k = 0; k <= i; k++) line = strsep(&rest, "\n");
    CHECK_OK(conversation_parse(&conversation, line, strlen(line), NULL));
    CHECK_OK(chat_render(chat, &conversation, mode, &tokens));
    for (size_t t = 0; t < tokens.n; t++)
        text_printf(out, "%d:%g ", tokens.ids[t], t > 0 ? (double)tokens.weights[t] : 0);
    free(bytes);
    conversation_free(&conversation);
    chat_tokens_free(&tokens);
}

/* The same, of a segment; the weight beside a token is that of the token before it, whose target it is. */
static void show_segment(Text *out, const MicroBatch *micro, int s) {
    int begin = micro->segment_start[s], end = micro->segment_start[s + 1];
    for (int t = begin; t < end; t++) {
        ck_assert_int_eq(micro->positions[t], t - begin);
        text_printf(out, "%d:%g ", micro->tokens[t], t > begin ? (double)micro->weights[t - 1] : 0);
        if (t > begin) ck_assert_int_eq(micro->targets[t - 1], micro->tokens[t]);
    }
    ck_assert(micro->weights[end - 1] == 0);
}

/* Adds every segment of the step; returns the sum of their weights. */
static double collect(const StepBatch *batch, char **segments, int *n) {
    double weight = 0;
    for (int m = 0; m < batch->n_micro; m++)
        for (int s = 0; s < batch->micro[m].n_segments; s++) {
            Text text = {0};
            const MicroBatch *micro = &batch->micro[m];
            show_segment(&text, micro, s);
            segments[(*n)++] = text.bytes;
            for (int t = micro->segment_start[s]; t < micro->segment_start[s + 1]; t++)
                weight += (double)micro->weights[t];
        }
    return weight;
}

static int compare(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

enum { N_RECORDS = 37 };

/* One epoch's segments, sorted. */
static int collect_epoch(const LoaderOptions *wanted, char **segments) {
    int n = 0;
    int64_t steps = 0;
    for (int rank = 0; rank < wanted->n_ranks; rank++) {
        LoaderOptions options = *wanted;
        Loader *loader;
        options.rank = rank;
        CHECK_OK(loader_open(&loader, &options, tokenizer));
        steps = loader_steps_per_epoch(loader);
        loader_free(loader);
    }
    for (int64_t step = 0; step < steps; step++) {
        double weight = 0, total = 0;
        for (int rank = 0; rank < wanted->n_ranks; rank++) {
            LoaderOptions options = *wanted;
            Loader *loader;
            StepBatch batch;
            options.rank = rank;
            CHECK_OK(loader_open(&loader, &options, tokenizer)); /* any step may be the first */
            CHECK_OK(loader_step(loader, step, &batch));
            weight += collect(&batch, segments, &n);
            total = batch.total_weight;
            loader_free(loader);
        }
        ck_assert_double_eq_tol(weight, total, 1e-9);
    }
    qsort(segments, (size_t)n, sizeof *segments, compare);
    return n;
}

static void check_epoch(const LoaderOptions *options, TrainOn mode) {
    char *segments[4 * N_RECORDS], *expected[N_RECORDS];
    int n = collect_epoch(options, segments);
    for (int i = 0; i < N_RECORDS; i++) {
        Text text = {0};
        expect_record(&text, i, mode);
        expected[i] = text.bytes;
    }
    qsort(expected, N_RECORDS, sizeof *expected, compare);
    /* the last step may go on into the next epoch: every record is there, none with other weights */
    for (int i = 0, k = 0; i < N_RECORDS; i++) {
        while (k < n && strcmp(segments[k], expected[i]) < 0) ck_assert_str_eq(segments[k++], expected[i ? i - 1 : 0]);
        ck_assert_int_lt(k, n);
        ck_assert_str_eq(segments[k], expected[i]);
        k++;
    }
    for (int i = 0; i < n; i++) free(segments[i]);
    for (int i = 0; i < N_RECORDS; i++) free(expected[i]);
}

START_TEST(every_record_is_one_segment_with_its_own_weights) {
    setup();
    const char *path = write_records("records.jsonl", N_RECORDS, false);
    for (TrainOn mode = TRAIN_ON_ALL; mode <= TRAIN_ON_LAST; mode++)
        for (Packing packing = PACKING_BEST_FIT; packing <= PACKING_ALONE; packing++) {
            set_encoder(mode, 160, OVERLONG_FAIL);
            LoaderOptions options = options_for(path, 160, packing);
            check_epoch(&options, mode);
        }
    teardown();
}
END_TEST

START_TEST(ranks_and_micro_batches_share_the_same_segments) {
    setup();
    const char *path = write_records("records.jsonl", N_RECORDS, false);
    set_encoder(TRAIN_ON_ASSISTANT, 160, OVERLONG_FAIL);
    for (int ranks = 1; ranks <= 3; ranks += 2)
        for (int micro = 160; micro <= 640; micro *= 4) {
            LoaderOptions options = options_for(path, 160, PACKING_BEST_FIT);
            options.n_ranks = ranks;
            options.tokens_per_microbatch = micro;
            check_epoch(&options, TRAIN_ON_ASSISTANT);
        }
    teardown();
}
END_TEST

START_TEST(an_array_and_a_compressed_file_give_what_jsonl_gives) {
    setup();
    write_records("records.jsonl", N_RECORDS, false);
    set_encoder(TRAIN_ON_LAST, 160, OVERLONG_FAIL);
    LoaderOptions options = options_for(write_records("array.json", N_RECORDS, true), 160, PACKING_BEST_FIT);
    check_epoch(&options, TRAIN_ON_LAST);
    options = options_for(write_records("packed.jsonl.gz", N_RECORDS, false), 160, PACKING_BEST_FIT);
    check_epoch(&options, TRAIN_ON_LAST);
    teardown();
}
END_TEST

START_TEST(a_step_of_records_alone_holds_so_many_records) {
    setup();
    const char *path = write_records("records.jsonl", N_RECORDS, false);
    Loader *loader;
    StepBatch batch;
    set_encoder(TRAIN_ON_ASSISTANT, 160, OVERLONG_FAIL);
    LoaderOptions options = options_for(path, 160, PACKING_ALONE);
    CHECK_OK(loader_open(&loader, &options, tokenizer));
    CHECK_OK(loader_step(loader, 0, &batch));
    int n = 0;
    for (int m = 0; m < batch.n_micro; m++) n += batch.micro[m].n_segments;
    ck_assert_int_eq(n, 4);
    ck_assert_int_eq((int)loader_steps_per_epoch(loader), (N_RECORDS + 3) / 4);
    loader_free(loader);
    teardown();
}
END_TEST

/* ---- what is left out ------------------------------------------------------------------------------------------- */

#define GOOD "{\"prompt\": \"a question\", \"completion\": \"an answer\"}\n"
#define MASKED "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n"
#define LONG                                                                                                      \
    "{\"prompt\": \"one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen\", " \
    "\"completion\": \"one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen\"}\n"
#define BROKEN "{\"prompt\": \"a\"}\n"

static RecordCounts counts_of(const LoaderOptions *options, int64_t *documents) {
    Loader *loader;
    CHECK_OK(loader_open(&loader, options, tokenizer));
    RecordCounts counts = loader_record_counts(loader);
    *documents = loader_documents(loader, -1);
    loader_free(loader);
    return counts;
}

START_TEST(records_left_out_are_counted_also_from_the_cache) {
    setup();
    const char *path = fixture_text("r.jsonl", GOOD LONG MASKED GOOD BROKEN MASKED);
    for (Overlong policy = OVERLONG_DROP; policy <= OVERLONG_TRUNCATE_RIGHT; policy++) {
        set_encoder(TRAIN_ON_ASSISTANT, 64, policy);
        LoaderOptions options = options_for(path, 64, PACKING_BEST_FIT);
        options.fail_on_error = false;
        for (int again = 0; again < 2; again++) {
            int64_t documents;
            RecordCounts counts = counts_of(&options, &documents);
            bool cut = policy == OVERLONG_TRUNCATE_LEFT, lost = policy == OVERLONG_TRUNCATE_RIGHT; /* with its answer */
            ck_assert_int_eq(documents, cut ? 3 : 2);
            ck_assert_int_eq(counts.n[RECORD_DROPPED], policy == OVERLONG_DROP);
            ck_assert_int_eq(counts.n[RECORD_TRUNCATED], cut);
            ck_assert_int_eq(counts.n[RECORD_MASKED], 2 + lost);
            ck_assert_int_eq(counts.n[RECORD_BAD], 1);
        }
    }
    teardown();
}
END_TEST

static void check_refused(const char *path, Overlong policy, const char *text) {
    Loader *loader;
    set_encoder(TRAIN_ON_ASSISTANT, 64, policy);
    LoaderOptions options = options_for(path, 64, PACKING_BEST_FIT);
    CHECK_ERROR(loader_open(&loader, &options, tokenizer), ERR_REFUSED, text);
}

START_TEST(bad_and_overlong_records_are_refused_with_their_number) {
    setup();
    check_refused(fixture_text("bad.jsonl", GOOD BROKEN BROKEN GOOD), OVERLONG_FAIL, "2 of its records");
    check_refused(fixture_text("long.jsonl", GOOD LONG GOOD), OVERLONG_FAIL, "1 of its records");
    check_refused(fixture_text("roles.jsonl", GOOD "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}\n"),
                  OVERLONG_FAIL, "1 of its records");
    teardown();
}
END_TEST

START_TEST(data_in_which_nothing_is_learned_is_refused) {
    setup();
    check_refused(fixture_text("masked.jsonl", MASKED MASKED), OVERLONG_FAIL, "nothing to learn from");
    check_refused(fixture_text("zero.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": "
                                             "\"assistant\", \"content\": \"b\", \"train\": false}]}\n"),
                  OVERLONG_FAIL, "nothing to learn from");
    teardown();
}
END_TEST

/* Every record is kept, with nothing to learn in it: what an encoder with a defect would give. */
static int encode_silence(const RecordEncoder *self, void **scratch, const char *bytes, size_t size,
                          EncodedRecord *out) {
    (void)self, (void)scratch, (void)bytes, (void)size;
    const int32_t ids[] = {1, 2, 3};
    *out = (EncodedRecord){.weights = calloc(3, sizeof *out->weights)};
    return token_list_append(&out->ids, ids, 3);
}

START_TEST(a_step_without_a_learned_token_stops) {
    setup();
    Loader *loader;
    StepBatch batch;
    RecordEncoder silence = {.key = 1, .encode = encode_silence, .free_scratch = free};
    LoaderOptions options = options_for(fixture_text("s.jsonl", GOOD GOOD), 64, PACKING_BEST_FIT);
    source.encoder = &silence;
    CHECK_OK(loader_open(&loader, &options, tokenizer));
    CHECK_ERROR(loader_step(loader, 0, &batch), ERR_REFUSED, "not one token that is learned");
    loader_free(loader);
    teardown();
}
END_TEST

START_TEST(another_mask_template_or_column_is_another_cache) {
    setup();
    const char *path = write_records("records.jsonl", 5, false);
    uint64_t fingerprints[6];
    ChatColumns columns;
    ChatTemplate *other;
    CHECK_OK(chat_columns_parse(&columns, "completion=answer"));
    CHECK_OK(chat_template_new(&other, chat_template_spec("chatml"), NULL, tokenizer));
    const ChatEncoderOptions rows[6] = {
        {.chat = chat, .train_on = TRAIN_ON_ASSISTANT, .context = 160},
        {.chat = chat, .train_on = TRAIN_ON_LAST, .context = 160},
        {.chat = other, .train_on = TRAIN_ON_ASSISTANT, .context = 160},
        {.chat = chat, .train_on = TRAIN_ON_ASSISTANT, .context = 100},
        {.chat = chat, .columns = &columns, .train_on = TRAIN_ON_ASSISTANT, .context = 160},
        {.chat = chat, .train_on = TRAIN_ON_ASSISTANT, .context = 160, .mask_stop = true}};
    for (int i = 0; i < 6; i++) {
        chat_encoder_init(&encoder, &rows[i]);
        fingerprints[i] = encoder.base.key;
        for (int k = 0; k < i; k++) ck_assert(fingerprints[k] != fingerprints[i]);
    }
    Loader *loader;
    uint64_t of_data[2];
    for (int i = 0; i < 2; i++) {
        chat_encoder_init(&encoder, &rows[i]);
        LoaderOptions options = options_for(path, 160, PACKING_BEST_FIT);
        CHECK_OK(loader_open(&loader, &options, tokenizer));
        of_data[i] = loader_fingerprint(loader);
        loader_free(loader);
    }
    ck_assert(of_data[0] != of_data[1]); /* the weights are part of the data */
    chat_template_free(other);
    chat_columns_free(&columns);
    teardown();
}
END_TEST

START_TEST(validation_is_split_by_records) {
    setup();
    const char *path = write_records("records.jsonl", N_RECORDS, false);
    Loader *loader;
    StepBatch batch;
    set_encoder(TRAIN_ON_ASSISTANT, 160, OVERLONG_FAIL);
    LoaderOptions options = options_for(path, 160, PACKING_BEST_FIT);
    options.validation = 0.2;
    CHECK_OK(loader_open(&loader, &options, tokenizer));
    ck_assert_int_eq(loader_documents(loader, -1), N_RECORDS - 7);
    int n = 0;
    char *segments[N_RECORDS];
    double weight = 0, total = 0;
    for (int64_t v = 0; v < loader_validation_steps(loader); v++) {
        CHECK_OK(loader_validation_step(loader, v, &batch));
        weight += collect(&batch, segments, &n);
        total += batch.total_weight;
    }
    ck_assert_int_eq(n, 7);
    ck_assert_double_eq_tol(weight, total, 1e-9);
    for (int i = 0; i < n; i++) free(segments[i]);
    loader_free(loader);
    options = options_for(fixture_text("one.jsonl", GOOD), 160, PACKING_BEST_FIT);
    options.validation = 0.2;
    CHECK_OK(loader_open(&loader, &options, tokenizer)); /* one record is not cut in two */
    ck_assert_int_eq((int)loader_validation_tokens(loader), 0);
    loader_free(loader);
    teardown();
}
END_TEST

START_TEST(a_masked_stop_is_not_learned_and_all_else_is) {
    setup();
    EncodedRecord record[2];
    int32_t stops[2];
    size_t n_stops = chat_template_stops(chat, stops), masked = 0;
    for (int i = 0; i < 2; i++) {
        void *scratch = NULL;
        chat_encoder_init(
            &encoder,
            &(ChatEncoderOptions){.chat = chat, .train_on = TRAIN_ON_ASSISTANT, .context = 100, .mask_stop = i == 1});
        CHECK_OK(encoder.base.encode(&encoder.base, &scratch, GOOD, strlen(GOOD), &record[i]));
        encoder.base.free_scratch(scratch);
        ck_assert_uint_eq(record[i].ids.n, record[0].ids.n);
    }
    for (size_t t = 0; t < record[0].ids.n; t++) {
        bool is_stop = false;
        for (size_t k = 0; k < n_stops; k++) is_stop = is_stop || record[0].ids.ids[t] == stops[k];
        ck_assert_int_eq(record[0].ids.ids[t], record[1].ids.ids[t]);
        ck_assert(record[1].weights[t] == (is_stop ? 0 : record[0].weights[t]));
        masked += is_stop && record[0].weights[t] > 0;
    }
    ck_assert_uint_ge(masked, 1);
    for (int i = 0; i < 2; i++) encoded_record_free(&record[i]);
    teardown();
}
END_TEST

CHECK_MAIN("conversations", every_record_is_one_segment_with_its_own_weights,
           ranks_and_micro_batches_share_the_same_segments, an_array_and_a_compressed_file_give_what_jsonl_gives,
           a_step_of_records_alone_holds_so_many_records, records_left_out_are_counted_also_from_the_cache,
           bad_and_overlong_records_are_refused_with_their_number, data_in_which_nothing_is_learned_is_refused,
           a_step_without_a_learned_token_stops, another_mask_template_or_column_is_another_cache,
           validation_is_split_by_records, a_masked_stop_is_not_learned_and_all_else_is)
