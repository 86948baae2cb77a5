/* The loader as training sees it: every token once per epoch whatever the ranks and micro-batches, any step at any
 * time, segments and targets by hand, validation, the mix. */
#include <math.h>

#include "data/loader.h"
#include "model/core/philox.h"
#include "model/core/text.h"
#include "tests/data_fixture.h"

static Tokenizer *tokenizer;

static void setup(void) {
    fixture_setup();
    CHECK_OK(tokenizer_load(&tokenizer, "bytes"));
}
static void teardown(void) {
    tokenizer_free(tokenizer);
    fixture_teardown();
}

static LoaderOptions loader_options(const SourceOptions *sources, int n_sources) {
    return (LoaderOptions){.sources = sources,
                           .n_sources = n_sources,
                           .cache = fixture_path("cache"),
                           .fail_on_error = true,
                           .context = 16,
                           .tokens_per_batch = 100,
                           .tokens_per_microbatch = 32,
                           .seed = 1,
                           .n_ranks = 1};
}

/* JSONL of n documents of 0..longest letters. */
static const char *write_corpus(const char *name, int n, int longest) {
    Text lines = {0};
    PhiloxKey key = philox_key((uint64_t)n, PHILOX_TEST, (uint32_t)longest, 0);
    for (uint64_t d = 0, k = 0; d < (uint64_t)n; d++) {
        text_puts(&lines, "{\"text\": \"");
        uint64_t length = philox_below(key, d, (uint64_t)longest + 1);
        for (uint64_t i = 0; i < length; i++, k++)
            text_printf(&lines, "%c", 'a' + (char)philox_below(key, 1000000 + k, 26));
        text_puts(&lines, "\"}\n");
    }
    const char *path = fixture_write(name, lines.bytes, lines.length);
    text_free(&lines);
    return path;
}

/* ---- what a step holds, written out ----------------------------------------------------------------------------- */

/* One line per token: sample, source, whether a segment begins, position, token, target, weight. Independent of how the
 * step was cut into micro-batches. */
static void show_step(Text *text, const StepBatch *batch, int tokens_per_microbatch, double *weight, int64_t *tokens) {
    for (int m = 0; m < batch->n_micro; m++) {
        const MicroBatch *micro = &batch->micro[m];
        ck_assert_int_ge(micro->n_tokens, 1);
        ck_assert_int_le(micro->n_tokens, tokens_per_microbatch);
        ck_assert_int_eq(micro->segment_start[0], 0);
        ck_assert_int_eq(micro->segment_start[micro->n_segments], micro->n_tokens);
        for (int s = 0; s < micro->n_samples; s++)
            text_printf(text, "sample %llx\n", (unsigned long long)micro->sample_id[s]);
        for (int s = 0; s < micro->n_segments; s++) {
            text_printf(text, "segment of %d\n", micro->source[s]);
            ck_assert_int_lt(micro->segment_start[s], micro->segment_start[s + 1]);
            for (int t = micro->segment_start[s]; t < micro->segment_start[s + 1]; t++) {
                ck_assert_int_eq(micro->positions[t], t - micro->segment_start[s]);
                ck_assert(micro->weights[t] == 1.0f || micro->weights[t] == 0.0f);
                bool has_next_here = t + 1 < micro->segment_start[s + 1];
                if (has_next_here) ck_assert_int_eq(micro->targets[t], micro->tokens[t + 1]);
                if (has_next_here) ck_assert(micro->weights[t] == 1.0f);
                text_printf(text, "%d %d %g\n", micro->tokens[t], micro->targets[t], (double)micro->weights[t]);
                *weight += (double)micro->weights[t];
                ++*tokens;
            }
        }
    }
}

/* Samples come before a micro-batch's segments in the above; sorted apart, the cut no longer shows. */
static char *without_cut(const Text *text) {
    Text samples = {0}, rest = {0};
    for (char *line = text->bytes; line && *line; line = strchr(line, '\n') + 1) {
        size_t n = (size_t)(strchr(line, '\n') + 1 - line);
        text_append(*line == 's' && line[1] == 'a' ? &samples : &rest, line, n);
    }
    text_append(&samples, rest.bytes, rest.length);
    text_free(&rest);
    return samples.bytes;
}

/* All of a step over all ranks, ranks in order, as text; checks the sums. */
static char *whole_step(LoaderOptions options, int n_ranks, int tokens_per_microbatch, int64_t step, bool validation) {
    Text text = {0};
    double weight = 0, total_weight = 0;
    int64_t tokens = 0, total_tokens = 0;
    options.n_ranks = n_ranks;
    options.tokens_per_microbatch = tokens_per_microbatch;
    int fewest = INT32_MAX, most = 0;
    for (options.rank = 0; options.rank < n_ranks; options.rank++) {
        Loader *loader;
        StepBatch batch;
        CHECK_OK(loader_open(&loader, &options, tokenizer));
        CHECK_OK(validation ? loader_validation_step(loader, step, &batch) : loader_step(loader, step, &batch));
        show_step(&text, &batch, tokens_per_microbatch, &weight, &tokens);
        int samples = 0;
        for (int m = 0; m < batch.n_micro; m++) samples += batch.micro[m].n_samples;
        fewest = samples < fewest ? samples : fewest;
        most = samples > most ? samples : most;
        if (options.rank == 0) {
            total_weight = batch.total_weight;
            total_tokens = batch.total_tokens;
        }
        ck_assert(batch.total_weight == total_weight && batch.total_tokens == total_tokens);
        loader_free(loader);
    }
    ck_assert_int_le(most - fewest, 1);
    ck_assert_double_eq(weight, total_weight);
    ck_assert_int_eq(tokens, total_tokens);
    char *whole = without_cut(&text);
    text_free(&text);
    return whole;
}

typedef struct {
    Packing packing;
    bool mask;
} Way;
static const Way ways[] = {{PACKING_STREAM, false}, {PACKING_STREAM, true}, {PACKING_BEST_FIT, true}};
enum { N_WAYS = sizeof ways / sizeof *ways };

START_TEST(steps_do_not_depend_on_ranks_or_micro_batches) {
    setup();
    SourceOptions sources[2] = {{.path = write_corpus("a.jsonl", 40, 30), .weight = 2},
                                {.path = write_corpus("b.jsonl", 25, 60), .weight = 1}};
    LoaderOptions options = loader_options(sources, 2);
    options.validation = 0.2;
    options.add_eos = true;
    for (int w = 0; w < N_WAYS; w++) {
        options.packing = ways[w].packing;
        options.document_mask = ways[w].mask;
        for (int64_t step = 0; step < 40; step += step < 3 ? 1 : 12)
            for (int validation = 0; validation < 2; validation++) {
                if (validation && step > 2) continue;
                char *one = whole_step(options, 1, 16, step, validation);
                for (int n_ranks = 1; n_ranks <= 8; n_ranks += n_ranks < 4 ? 1 : 4)
                    for (int micro = 16; micro <= 200; micro = 2 * micro + 5) {
                        char *other = whole_step(options, n_ranks, micro, step, validation);
                        ck_assert_str_eq(one, other);
                        free(other);
                    }
                free(one);
            }
    }
    teardown();
}
END_TEST

START_TEST(any_step_may_be_asked_for_at_any_time) {
    setup();
    SourceOptions sources[2] = {{.path = write_corpus("a.jsonl", 40, 30), .weight = 2},
                                {.path = write_corpus("b.jsonl", 3, 20), .weight = 1}}; /* many epochs */
    LoaderOptions options = loader_options(sources, 2);
    options.add_bos = true;
    enum { STEPS = 60 };
    for (int w = 0; w < N_WAYS; w++) {
        options.packing = ways[w].packing;
        options.document_mask = ways[w].mask;
        Loader *forward, *jumping;
        CHECK_OK(loader_open(&forward, &options, tokenizer));
        CHECK_OK(loader_open(&jumping, &options, tokenizer));
        char *steps[STEPS];
        for (int order = 0; order < 2; order++)
            for (int i = 0; i < STEPS; i++) {
                int step = order == 0 ? i : (int)(i * 37 + 59) % STEPS;
                Text text = {0};
                StepBatch batch;
                double weight = 0;
                int64_t tokens = 0;
                CHECK_OK(loader_step(order == 0 ? forward : jumping, step, &batch));
                show_step(&text, &batch, options.tokens_per_microbatch, &weight, &tokens);
                if (order == 0) {
                    steps[i] = text.bytes;
                    continue;
                }
                ck_assert_str_eq(text.bytes, steps[step]);
                text_free(&text);
            }
        for (int i = 0; i < STEPS; i++) free(steps[i]);
        StepBatch batch;
        CHECK_ERROR(loader_step(forward, -1, &batch), ERR_FAILED, "step -1");
        CHECK_ERROR(loader_step(forward, INT64_MAX, &batch), ERR_FAILED, "step 9223372036854775807");
        CHECK_ERROR(loader_validation_step(forward, 0, &batch), ERR_FAILED, "there are 0");
        if (ways[w].packing == PACKING_STREAM) CHECK_OK(loader_step(forward, (int64_t)1 << 50, &batch));
        loader_free(forward);
        loader_free(jumping);
    }
    teardown();
}
END_TEST

/* Counts of every byte as input and as target over `n_sequences` sequences of one source. */
static void count_tokens(Loader *loader, int64_t n_steps, int64_t inputs[258], int64_t targets[258]) {
    memset(inputs, 0, 258 * sizeof *inputs);
    memset(targets, 0, 258 * sizeof *targets);
    for (int64_t step = 0; step < n_steps; step++) {
        StepBatch batch;
        CHECK_OK(loader_step(loader, step, &batch));
        for (int m = 0; m < batch.n_micro; m++)
            for (int t = 0; t < batch.micro[m].n_tokens; t++) {
                inputs[batch.micro[m].tokens[t]]++;
                targets[batch.micro[m].targets[t]] += batch.micro[m].weights[t] != 0.0f;
            }
    }
}

START_TEST(every_training_token_comes_once_per_epoch) {
    setup();
    /* 256 different bytes in 24 documents: each token can be told from all others */
    char bytes[256], name[32];
    for (int b = 0; b < 256; b++) bytes[b] = (char)b;
    for (int d = 0, at = 0; d < 24; d++) {
        int n = d == 23 ? 256 - at : 1 + d * 7 % 20;
        snprintf(name, sizeof name, "d/%02d.txt", d);
        fixture_write(name, bytes + at, (size_t)n);
        at += n;
    }
    SourceOptions source = {.path = fixture_path("d"), .weight = 1};
    LoaderOptions options = loader_options(&source, 1);
    options.context = 8;
    options.tokens_per_batch = 8; /* a step is a sequence, so that an epoch is a whole number of steps */
    for (int w = 0; w < N_WAYS; w++) {
        options.packing = ways[w].packing;
        options.document_mask = ways[w].mask;
        Loader *loader;
        int64_t inputs[258], targets[258];
        CHECK_OK(loader_open(&loader, &options, tokenizer));
        ck_assert_int_eq(loader_tokens(loader, 0), 256);
        ck_assert_int_eq(loader_tokens(loader, -1), 256);
        ck_assert_int_eq(loader_documents(loader, 0), 24);
        count_tokens(loader, loader_steps_per_epoch(loader), inputs, targets);
        for (int b = 0, at = 0, d = 0; b < 256; b++) {
            bool is_first = b == at;
            if (is_first) at += d == 23 ? 256 : 1 + d * 7 % 20, d++;
            ck_assert_int_eq(inputs[b], 1);
            ck_assert_int_eq(targets[b], ways[w].packing == PACKING_STREAM && !ways[w].mask ? 1 : !is_first);
        }
        loader_free(loader);
    }
    teardown();
}
END_TEST

/* ---- by hand ---------------------------------------------------------------------------------------------------- */

/* A micro-batch's segments as "tokens>targets" with a dot for a target of weight 0. */
static const char *show_micro(const MicroBatch *micro) {
    static char text[512];
    int used = 0;
    for (int s = 0; s < micro->n_segments; s++) {
        for (int t = micro->segment_start[s]; t < micro->segment_start[s + 1]; t++)
            text[used++] = micro->tokens[t] < 256 ? (char)micro->tokens[t] : micro->tokens[t] == 256 ? '<' : '>';
        text[used++] = '=';
        for (int t = micro->segment_start[s]; t < micro->segment_start[s + 1]; t++)
            text[used++] = micro->weights[t] == 0.0f  ? '.'
                           : micro->targets[t] == 256 ? '<'
                           : micro->targets[t] == 257 ? '>'
                                                      : (char)micro->targets[t];
        text[used++] = ' ';
    }
    text[used] = '\0';
    return text;
}

START_TEST(validation_is_in_order_and_as_computed_by_hand) {
    setup();
    SourceOptions train = {.path = fixture_text("t.txt", "training text"), .weight = 1};
    SourceOptions held_out[2] = {{.path = fixture_text("v.txt", "abcdef|gh|i"), .weight = 1, .separator = "|"},
                                 {.path = fixture_text("w.txt", "xyz"), .name = "w", .weight = 1}};
    LoaderOptions options = loader_options(&train, 1);
    options.validation_sources = held_out;
    options.n_validation_sources = 2;
    options.add_bos = options.add_eos = true;
    options.context = 6;
    options.tokens_per_batch = 12;
    options.tokens_per_microbatch = 12;
    static const char *const expected[N_WAYS][3] = {
        {"<abcde=abcdef f><gh>=><gh>< ", "<i>=i>. <xyz>=xyz>. ", NULL},
        {"<abcde=abcdef f>=>. <gh>=gh>. ", "<i>=i>. <xyz>=xyz>. ", NULL},
        /* pieces <abcde, f>, <gh>, <i>: <gh> opens a sequence that f> fills */
        {"<abcde=abcdef f>=>. <gh>=gh>. ", "<i>=i>. <xyz>=xyz>. ", NULL},
    };
    for (int w = 0; w < N_WAYS; w++) {
        Loader *loader;
        options.packing = ways[w].packing;
        options.document_mask = ways[w].mask;
        CHECK_OK(loader_open(&loader, &options, tokenizer));
        ck_assert_int_eq(loader_validation_tokens(loader), 8 + 4 + 3 + 5);
        ck_assert_int_eq(loader_tokens(loader, -1), 15); /* nothing is split off */
        ck_assert_int_eq(loader_n_validation_sources(loader), 2);
        ck_assert_str_eq(loader_validation_source_name(loader, 0), "v.txt");
        ck_assert_str_eq(loader_validation_source_name(loader, 1), "w");
        ck_assert_int_eq(loader_validation_steps(loader), 2);
        for (int64_t step = 0; step < 2; step++) {
            StepBatch batch;
            CHECK_OK(loader_validation_step(loader, step, &batch));
            ck_assert_int_eq(batch.n_micro, 1);
            ck_assert_str_eq(show_micro(&batch.micro[0]), expected[w][step]);
            if (step == 1) ck_assert_int_eq(batch.micro[0].source[batch.micro[0].n_segments - 1], 1);
        }
        loader_free(loader);
    }
    teardown();
}
END_TEST

START_TEST(one_document_is_split_by_tokens_like_nanogpt) {
    setup();
    char text[1000];
    for (int i = 0; i < 1000; i++) text[i] = (char)('a' + i % 26);
    memcpy(text + 900, "VALIDATION", 10);
    SourceOptions source = {.path = fixture_write("one.txt", text, 1000), .weight = 1};
    LoaderOptions options = loader_options(&source, 1);
    options.validation = 0.1;
    Loader *loader;
    StepBatch batch;
    CHECK_OK(loader_open(&loader, &options, tokenizer));
    ck_assert_int_eq(loader_tokens(loader, 0), 900);
    ck_assert_int_eq(loader_validation_tokens(loader), 100);
    CHECK_OK(loader_validation_step(loader, 0, &batch));
    ck_assert_int_eq(memcmp(show_micro(&batch.micro[0]), "VALIDATION", 10), 0);
    for (int64_t step = 0; step < 3 * loader_steps_per_epoch(loader); step++) {
        CHECK_OK(loader_step(loader, step, &batch));
        for (int m = 0; m < batch.n_micro; m++)
            for (int t = 0; t < batch.micro[m].n_tokens; t++) ck_assert_int_ge(batch.micro[m].tokens[t], 'a');
    }
    loader_free(loader);
    teardown();
}
END_TEST

START_TEST(validation_documents_are_never_trained_on) {
    setup();
    char name[32], text[32];
    for (int d = 0; d < 20; d++) { /* document d is five times one letter of its own */
        snprintf(name, sizeof name, "d/%02d.txt", d);
        memset(text, 'a' + d, 5);
        fixture_write(name, text, 5);
    }
    SourceOptions source = {.path = fixture_path("d"), .weight = 1};
    LoaderOptions options = loader_options(&source, 1);
    options.validation = 0.25;
    Loader *loader;
    StepBatch batch;
    int64_t inputs[258], targets[258];
    CHECK_OK(loader_open(&loader, &options, tokenizer));
    ck_assert_int_eq(loader_validation_tokens(loader), 25);
    count_tokens(loader, 3 * loader_steps_per_epoch(loader), inputs, targets);
    int held_out = 0;
    for (int64_t step = 0; step < loader_validation_steps(loader); step++) {
        CHECK_OK(loader_validation_step(loader, step, &batch));
        for (int m = 0; m < batch.n_micro; m++)
            for (int t = 0; t < batch.micro[m].n_tokens; t++, held_out++)
                ck_assert_int_eq(inputs[batch.micro[m].tokens[t]], 0);
    }
    ck_assert_int_eq(held_out, 25);
    loader_free(loader);
    teardown();
}
END_TEST

/* ---- the mix, the memory, the fingerprint ----------------------------------------------------------------------- */

START_TEST(the_mix_follows_the_weights_in_tokens) {
    setup();
    SourceOptions sources[3] = {{.path = write_corpus("a.jsonl", 300, 100), .weight = 0.7},
                                {.path = write_corpus("b.jsonl", 20, 40), .weight = 0.2},
                                {.path = write_corpus("c.jsonl", 50, 10), .weight = 0.1}};
    LoaderOptions options = loader_options(sources, 3);
    options.tokens_per_batch = 320;
    for (int w = 0; w < N_WAYS; w++) {
        options.packing = ways[w].packing;
        options.document_mask = ways[w].mask;
        Loader *loader;
        double tokens[3] = {0}, total = 0;
        CHECK_OK(loader_open(&loader, &options, tokenizer));
        enum { STEPS = 500 };
        for (int64_t step = 0; step < STEPS; step++) {
            StepBatch batch;
            CHECK_OK(loader_step(loader, step, &batch));
            for (int m = 0; m < batch.n_micro; m++)
                for (int s = 0; s < batch.micro[m].n_segments; s++) {
                    int n = batch.micro[m].segment_start[s + 1] - batch.micro[m].segment_start[s];
                    tokens[batch.micro[m].source[s]] += n;
                    total += n;
                }
        }
        /* the order is off by at most 1 + log2(10000) sequences of 16 tokens; best fit fills epochs a little unlike */
        double bound = 16 * (1 + log2(STEPS * 20)) / total + (ways[w].packing == PACKING_BEST_FIT ? 0.002 : 0);
        for (int s = 0; s < 3; s++)
            ck_assert_msg(fabs(tokens[s] / total - sources[s].weight) < bound, "way %d: source %d has %.4f", w, s,
                          tokens[s] / total);
        loader_free(loader);
    }
    teardown();
}
END_TEST

START_TEST(a_steps_memory_is_used_again) {
    setup();
    SourceOptions source = {.path = write_corpus("a.jsonl", 100, 100), .weight = 1};
    LoaderOptions options = loader_options(&source, 1);
    Loader *loader;
    StepBatch first, later;
    CHECK_OK(loader_open(&loader, &options, tokenizer));
    CHECK_OK(loader_step(loader, 0, &first));
    const int32_t *tokens = first.micro[0].tokens;
    for (int64_t step = 1; step < 20; step++) {
        CHECK_OK(loader_step(loader, step, &later));
        ck_assert_ptr_eq(later.micro[0].tokens, tokens);
    }
    loader_free(loader);
    teardown();
}
END_TEST

static uint64_t fingerprint(const LoaderOptions *options) {
    Loader *loader;
    CHECK_OK(loader_open(&loader, options, tokenizer));
    uint64_t value = loader_fingerprint(loader);
    loader_free(loader);
    return value;
}

START_TEST(the_fingerprint_changes_with_data_and_order_and_nothing_else) {
    setup();
    SourceOptions sources[2] = {{.path = write_corpus("a.jsonl", 50, 30), .weight = 1},
                                {.path = write_corpus("b.jsonl", 20, 30), .weight = 1}};
    LoaderOptions options = loader_options(sources, 2), other = options;
    uint64_t base = fingerprint(&options);
    other.rank = 1;
    other.n_ranks = 3;
    other.tokens_per_microbatch = 64;
    other.cache = fixture_path("elsewhere");
    ck_assert_uint_eq(fingerprint(&other), base);
    rename(sources[0].path, fixture_path("moved.jsonl"));
    sources[0].path = fixture_path("moved.jsonl");
    ck_assert_uint_eq(fingerprint(&options), base); /* it is what the files hold */
#define CHECK_CHANGES(field, value)                   \
    do {                                              \
        other = options;                              \
        other.field = (value);                        \
        ck_assert_uint_ne(fingerprint(&other), base); \
    } while (0)
    CHECK_CHANGES(seed, 2);
    CHECK_CHANGES(validation, 0.1);
    CHECK_CHANGES(packing, PACKING_BEST_FIT);
    CHECK_CHANGES(document_mask, true);
    CHECK_CHANGES(context, 8);
    CHECK_CHANGES(tokens_per_batch, 400);
    CHECK_CHANGES(add_eos, true);
    CHECK_CHANGES(n_sources, 1);
    sources[1].weight = 1.5;
    ck_assert_uint_ne(fingerprint(&options), base);
    teardown();
}
END_TEST

START_TEST(wrong_options_say_which_key) {
    setup();
    SourceOptions source = {.path = write_corpus("a.jsonl", 50, 30), .weight = 1};
    LoaderOptions good = loader_options(&source, 1), options;
    Loader *loader;
#define CHECK_REFUSED(field, value, part)                                        \
    do {                                                                         \
        options = good;                                                          \
        options.field = (value);                                                 \
        CHECK_ERROR(loader_open(&loader, &options, tokenizer), ERR_USAGE, part); \
        ck_assert_ptr_null(loader);                                              \
    } while (0)
    CHECK_REFUSED(n_sources, 0, "data.train");
    CHECK_REFUSED(validation, 1.0, "data.validation");
    CHECK_REFUSED(validation, NAN, "data.validation");
    CHECK_REFUSED(cache, NULL, "data.cache");
    CHECK_REFUSED(context, 0, "train.context");
    CHECK_REFUSED(tokens_per_batch, 0, "train.tokens_per_batch");
    CHECK_REFUSED(tokens_per_microbatch, 15, "train.tokens_per_microbatch");
    source.weight = 0;
    CHECK_REFUSED(seed, 1, "weight is 0");
    source = (SourceOptions){.path = fixture_text("b.txt", "a|b|c"), .weight = 1, .separator = "|"};
    options = good;
    options.document_mask = true;
    CHECK_ERROR(loader_open(&loader, &options, tokenizer), ERR_REFUSED, "nothing to learn from");
    teardown();
}
END_TEST

/* ---- real text -------------------------------------------------------------------------------------------------- */

static const char *const shakespeare = "../shared/data/text/tinyshakespeare.txt";
static const char *const redpajama = "../shared/data/text/redpajama";

START_TEST(tinyshakespeare_is_split_as_in_nanogpt) {
    if (!file_exists(shakespeare)) {
        printf("skipped: %s is absent\n", shakespeare);
        return;
    }
    setup();
    SourceOptions source = {.path = shakespeare, .weight = 1};
    LoaderOptions options = loader_options(&source, 1);
    options.validation = 0.1;
    options.context = 64;
    options.tokens_per_batch = options.tokens_per_microbatch = 768;
    Loader *loader;
    CHECK_OK(loader_open(&loader, &options, tokenizer));
    ck_assert_int_eq(loader_tokens(loader, 0), 1003854); /* nanoGPT, data/shakespeare_char: train.bin, val.bin */
    ck_assert_int_eq(loader_validation_tokens(loader), 111540);
    StepBatch batch;
    double weight = 0;
    for (int64_t step = 0; step < loader_validation_steps(loader); step++) {
        CHECK_OK(loader_validation_step(loader, step, &batch));
        weight += batch.total_weight;
    }
    ck_assert_double_eq(weight, 111539);
    CHECK_OK(loader_step(loader, 0, &batch));
    ck_assert_int_eq(batch.total_tokens, 768);
    loader_free(loader);
    teardown();
}
END_TEST

START_TEST(the_seven_sources_of_redpajama_are_mixed) {
    if (!directory_exists(redpajama)) {
        printf("skipped: %s is absent\n", redpajama);
        return;
    }
    setup();
    /* Llama 1's mix (Touvron et al. 2023, table 1) */
    static const struct {
        const char *folder;
        double weight;
    } parts[] = {{"cc", 67},    {"c4-rp", 15},  {"github", 4.5},     {"wiki", 4.5},
                 {"book", 4.5}, {"arxiv", 2.5}, {"stackexchange", 2}};
    SourceOptions sources[7] = {0};
    char paths[7][128];
    for (int i = 0; i < 7; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/%s", redpajama, parts[i].folder);
        sources[i] = (SourceOptions){.path = paths[i], .weight = parts[i].weight};
    }
    LoaderOptions options = loader_options(sources, 7);
    options.context = 256;
    options.tokens_per_batch = options.tokens_per_microbatch = 16384;
    options.validation = 0.05;
    options.add_bos = options.add_eos = options.document_mask = true;
    Loader *loader;
    CHECK_OK(loader_open(&loader, &options, tokenizer));
    double tokens[7] = {0}, total = 0;
    for (int64_t step = 0; step < 100; step++) {
        StepBatch batch;
        CHECK_OK(loader_step(loader, step, &batch));
        for (int m = 0; m < batch.n_micro; m++)
            for (int s = 0; s < batch.micro[m].n_segments; s++) {
                int n = batch.micro[m].segment_start[s + 1] - batch.micro[m].segment_start[s];
                tokens[batch.micro[m].source[s]] += n;
                total += n;
            }
    }
    for (int i = 0; i < 7; i++) {
        ck_assert_str_eq(loader_source_name(loader, i), parts[i].folder);
        ck_assert_double_lt(fabs(tokens[i] / total - parts[i].weight / 100), 256 * (1 + log2(6400)) / total);
    }
    loader_free(loader);
    teardown();
}
END_TEST

CHECK_MAIN("loader", steps_do_not_depend_on_ranks_or_micro_batches, any_step_may_be_asked_for_at_any_time,
           every_training_token_comes_once_per_epoch, validation_is_in_order_and_as_computed_by_hand,
           one_document_is_split_by_tokens_like_nanogpt, validation_documents_are_never_trained_on,
           the_mix_follows_the_weights_in_tokens, a_steps_memory_is_used_again,
           the_fingerprint_changes_with_data_and_order_and_nothing_else, wrong_options_say_which_key,
           tinyshakespeare_is_split_as_in_nanogpt, the_seven_sources_of_redpajama_are_mixed)
