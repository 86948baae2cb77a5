/* The command: see rejection.h. */
#include "train/sampling/rejection.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/clock.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "train/sampling/answering.h"
#include "train/console/cli.h"
#include "train/commands.h"
#include "train/console/interrupt.h"
#include "train/console/output_folder.h"
#include "train/console/progress.h"

typedef struct {
    Config *config;
    Answering answering;
    Scorer *scorer;
    json_t **earlier; /* [rejection.earlier] as rejection_best_answers */
    size_t n_earlier;
    RejectionLog log;
    int lock;
    Generator *generator;
    GenerateOptions how;
    Generation *generations; /* [chunk × samples] */
    TokenList *tokens;       /* [prompts] */
    Progress progress;
    size_t n_before, n_chunk; /* answers of whole chunks; of this one so far */
    uint64_t n_tokens;
    double begun;
} Rejection;

static int samples_of(const Rejection *r) {
    return (int)r->config->rejection_samples;
}

/* ---- prompts ---- */

/* A prompt that came before is left out. */
static int drop_duplicates(Prompts *prompts) {
    size_t kept = 0, dropped = 0;
    json_t *seen = json_object();
    bool whole = seen;
    for (size_t i = 0; i < prompts->n && whole; i++) {
        char *key = prompts->items[i].prompt ? rejection_key(prompts->items[i].prompt) : NULL;
        bool again = key && json_object_get(seen, key);
        whole = key && (again || json_object_set_new(seen, key, json_true()) == 0);
        free(key);
        Prompt prompt = prompts->items[i]; /* what is dropped goes to the end */
        if (again) dropped++;
        if (again || kept == i) {
            kept += !again;
            continue;
        }
        prompts->items[i] = prompts->items[kept];
        prompts->items[kept++] = prompt;
    }
    json_decref(seen);
    if (!whole) FAIL(ERR_REFUSED, "a prompt is not UTF-8 text, or memory is out");
    prompts_truncate(prompts, kept);
    if (dropped > 0) log_info("prompts that are repetitions of earlier ones, and left out: %zu", dropped);
    return OK;
}

static int read_prompts(Rejection *r) {
    Answering *a = &r->answering;
    int limit = a->file.model->rotary.n_positions;
    TRY(prompts_read(&a->prompts, &a->how, r->config->rejection_prompts));
    TRY(drop_duplicates(&a->prompts));
    if (r->config->rejection_overlong == OVERLONG_DROP) prompts_drop_overlong(&a->prompts, (size_t)limit);
    if (a->prompts.n == 0) FAIL(ERR_REFUSED, "%s: no prompt is left", r->config->rejection_prompts);
    r->tokens = calloc(a->prompts.n, sizeof *r->tokens);
    if (!r->tokens) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < a->prompts.n; i++) {
        r->tokens[i] = a->prompts.items[i].tokens;
        if (r->tokens[i].n >= (size_t)limit)
            FAIL(ERR_REFUSED,
                 "%s has %zu tokens, and the model's context is %d: no room for an answer (rejection.overlong: drop "
                 "leaves it out)",
                 prompt_place(&a->prompts.items[i]), r->tokens[i].n, limit);
    }
    return OK;
}

/* ---- what the run depends on ---- */

static uint64_t hash_start(const void *values, size_t size, uint64_t hash) {
    enum { MOST = 1 << 16 };
    return values ? hash_bytes(values, size < MOST ? size : MOST, hash) : hash;
}

/* Of the beginning of every parameter, as it is computed with. */
static uint64_t hash_model(const Llama *model) {
    uint64_t hash = HASH_START;
    for (int i = 0; i < model->n_weights; i++) {
        const Weight *w = model->weights[i];
        const void *values = w->forward ? (const void *)w->forward : w->value ? w->value : w->stored.view[0];
        hash = hash_start(values, weight_elements(w) * sizeof(bf16), hash);
        for (int v = 0; w->adapter && v < w->adapter->n; v++) {
            const Weight *b = &w->adapter->views[v].b;
            hash = hash_start(b->value, weight_elements(b) * sizeof *b->value, hash);
        }
    }
    return hash;
}

static json_t *hex(uint64_t hash) {
    char text[24];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
    return json_string(text);
}

static json_t *option_value(const Config *config, OptionId id) {
    Text text = {0};
    json_t *value = config_value_text(config, id, &text) == OK ? json_string(text.bytes) : NULL;
    text_free(&text);
    return value;
}

static json_t *make_header(const Rejection *r) {
    static const OptionId options[] = {
        OPTION_generate_temperature, OPTION_rejection_temperature_to, OPTION_generate_top_k,
        OPTION_generate_top_p,       OPTION_generate_min_p,           OPTION_generate_repetition_penalty,
        OPTION_generate_stop,        OPTION_generate_max_new_tokens,  OPTION_generate_seed,
        OPTION_rejection_samples,    OPTION_rejection_chunk,          OPTION_rejection_reward,
        OPTION_rejection_word,       OPTION_rejection_length,         OPTION_rejection_pattern,
        OPTION_rejection_program,    OPTION_rejection_model};
    static const OptionId optional[] = {OPTION_rejection_head, OPTION_rejection_safety_model,
                                        OPTION_rejection_safety_head}; /* named where they are given */
    uint64_t prompts = HASH_START;
    const Prompts *all = &r->answering.prompts;
    for (size_t i = 0; i < all->n; i++)
        prompts = hash_bytes(all->items[i].tokens.ids, all->items[i].tokens.n * sizeof(int32_t), prompts);
    json_t *header = json_pack("{s:s, s:i, s:s, s:o, s:I, s:o}", "cria", "rejection", "format", 1, "precision",
                               dtype_name(llama_inference_dtype(r->answering.file.model)), "model",
                               hex(hash_model(r->answering.file.model)), "number of prompts", (json_int_t)all->n,
                               "set of prompts", hex(prompts));
    for (size_t i = 0; header && i < sizeof options / sizeof *options; i++)
        json_object_set_new(header, option_table[options[i]].key, option_value(r->config, options[i]));
    for (size_t i = 0; header && i < sizeof optional / sizeof *optional; i++)
        if (config_is_set(r->config, optional[i]))
            json_object_set_new(header, option_table[optional[i]].key, option_value(r->config, optional[i]));
    uint64_t earlier = HASH_START;
    for (size_t i = 0; i < r->n_earlier; i++) {
        char *text = rejection_key(r->earlier[i]);
        if (text) earlier = hash_bytes(text, strlen(text), earlier);
        free(text);
    }
    if (header) json_object_set_new(header, "set of earlier answers", hex(earlier));
    return header;
}

/* ---- a chunk ---- */

/* Between tokens and between sequences. */
static int check_interrupt(void) {
    if (interrupt_requested()) FAIL(ERR_INTERRUPTED, "interrupted");
    return OK;
}

static int piece_came(void *context, size_t sequence, const char *bytes, size_t n) {
    (void)context, (void)sequence, (void)bytes, (void)n;
    return check_interrupt();
}

static int answer_came(void *context, size_t sequence, const Generation *generation) {
    Rejection *r = context;
    char details[64], number[32];
    (void)sequence;
    r->n_chunk++;
    r->n_tokens += generation->tokens.n;
    if (progress_due(&r->progress)) {
        double speed = (double)r->n_tokens / (clock_seconds() - r->begun);
        snprintf(details, sizeof details, "%s tok/s", text_thousands(number, (uint64_t)speed));
        progress_update(&r->progress, (int64_t)(r->n_before + r->n_chunk), details);
    }
    return check_interrupt();
}

static int add_sampled(json_t *answers, const Rejection *r, const Generation *g, int k) {
    json_t *answer = json_pack("{s:o, s:f, s:I, s:f, s:s}", "text", answer_text(g->text, g->text_size), "temperature",
                               generate_temperature(&r->how, k), "tokens", (json_int_t)g->tokens.n, "logprob",
                               g->logprob, "finish_reason", finish_reason_name(g->reason));
    if (!answer || json_array_append_new(answers, answer) != 0) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

/* The best of earlier rounds compete. */
static int add_earlier(json_t *answers, const Rejection *r, const Prompt *prompt) {
    char *key = rejection_key(prompt->prompt);
    if (!key) FAIL(ERR_FAILED, "out of memory");
    for (size_t e = 0; e < r->n_earlier; e++) {
        json_t *text = json_object_get(r->earlier[e], key);
        TokenList tokens = {0};
        if (!text) continue;
        int rc = tokenizer_encode(r->answering.file.tokenizer, json_string_value(text), json_string_length(text), 0,
                                  &tokens);
        if (rc == OK)
            json_array_append_new(answers, json_pack("{s:O, s:I, s:s}", "text", text, "tokens", (json_int_t)tokens.n,
                                                     "from", r->config->rejection_earlier.items[e]));
        token_list_free(&tokens);
        if (rc != OK) {
            free(key);
            return rc;
        }
    }
    free(key);
    return OK;
}

/* One object for each prompt of the chunk: its answers, without scores. */
static int collect(json_t *lines, const Rejection *r, size_t first, size_t n) {
    int K = samples_of(r);
    for (size_t i = 0; i < n; i++) {
        const Prompt *prompt = &r->answering.prompts.items[first + i];
        json_t *answers = json_array();
        json_t *line = json_pack("{s:I, s:O, s:o}", "index", (json_int_t)first + (json_int_t)i, "prompt",
                                 prompt->prompt, "answers", answers);
        if (!line || json_array_append_new(lines, line) != 0) FAIL(ERR_FAILED, "out of memory");
        for (int k = 0; k < K; k++) TRY(add_sampled(answers, r, &r->generations[i * (size_t)K + (size_t)k], k));
        TRY(add_earlier(answers, r, prompt));
    }
    return OK;
}

static size_t list_answers(ScoredAnswer *list, const json_t *lines, const Rejection *r, size_t first) {
    size_t n = 0, i, k;
    json_t *line, *answer;
    json_array_foreach(lines, i, line) {
        json_array_foreach(json_object_get(line, "answers"), k, answer) {
            const json_t *text = json_object_get(answer, "text");
            list[n++] = (ScoredAnswer){.prompt = &r->answering.prompts.items[first + i],
                                       .index = (int64_t)first + (int64_t)i,
                                       .text = json_string_value(text),
                                       .size = json_string_length(text),
                                       .n_tokens = (size_t)json_integer_value(json_object_get(answer, "tokens"))};
        }
    }
    return n;
}

static int score_chunk(json_t *lines, const Rejection *r, size_t first) {
    int rc = OK;
    size_t most = json_array_size(lines) * ((size_t)samples_of(r) + r->n_earlier), at = 0, i, k;
    ScoredAnswer *list = calloc(most, sizeof *list);
    double *scores = calloc(most, sizeof *scores);
    json_t *line, *answer;
    if (!list || !scores) FAIL_TO(done, ERR_FAILED, "out of memory");
    size_t n = list_answers(list, lines, r, first);
    TRY_TO(done, r->scorer->score(r->scorer, list, n, scores));
    json_array_foreach(lines, i, line) {
        json_array_foreach(json_object_get(line, "answers"), k, answer) {
            json_object_set_new(answer, "score", json_real(scores[at++]));
        }
    }
done:
    free(list);
    free(scores);
    return rc;
}

static int print_lines(Text *out, const json_t *lines) {
    size_t i;
    json_t *line;
    json_array_foreach(lines, i, line) {
        char *text = json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(9));
        if (!text) FAIL(ERR_FAILED, "out of memory");
        text_puts(out, text);
        text_puts(out, "\n");
        free(text);
    }
    return text_check(out);
}

static int run_chunk(Rejection *r, size_t first, size_t n) {
    int rc = OK;
    size_t K = (size_t)samples_of(r);
    json_t *lines = json_array();
    Text text = {0};
    r->n_before = first * K;
    r->n_chunk = 0;
    r->how.first_prompt = (uint32_t)first;
    TRY_TO(done, generator_run(r->generator, r->tokens + first, n, &r->how, r->generations));
    TRY_TO(done, collect(lines, r, first, n));
    TRY_TO(done, score_chunk(lines, r, first));
    TRY_TO(done, print_lines(&text, lines));
    TRY_TO(done, rejection_log_append(&r->log, &text, n));
done:
    for (size_t i = 0; i < n * K; i++) generation_free(&r->generations[i]);
    json_decref(lines);
    text_free(&text);
    return rc;
}

/* ---- the run ---- */

static const char command_name[] = "rejection";

static int settle_config(const Rejection *r, bool resuming) {
    char *path = path_join(r->config->output, "config.yaml");
    if (!path) FAIL(ERR_FAILED, "out of memory");
    int rc = resuming ? config_check_saved(path, r->config) : OK;
    if (rc == OK) rc = config_save(r->config, command_name, path);
    free(path);
    return rc;
}

static int open_log(Rejection *r) {
    char *path = path_join(r->config->output, REJECTION_SAMPLES);
    json_t *header = make_header(r);
    int rc = path && header ? OK : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    if (rc == OK)
        rc = rejection_log_open(&r->log, path, header, (size_t)r->config->rejection_chunk, r->answering.prompts.n);
    free(path);
    json_decref(header);
    return rc;
}

static int read_earlier(Rejection *r) {
    r->n_earlier = r->config->rejection_earlier.n;
    r->earlier = calloc(r->n_earlier + 1, sizeof *r->earlier);
    if (!r->earlier) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < r->n_earlier; i++)
        TRY(rejection_best_answers(r->config->rejection_earlier.items[i], &r->earlier[i]));
    return OK;
}

static int prepare(Rejection *r) {
    const Config *config = r->config;
    bool resuming, own = !*config->tokenizer_path || strcmp(config->tokenizer_path, "from-model") == 0;
    TRY(config_require(config, OPTION_output));
    TRY(config_require(config, OPTION_model_base));
    TRY(config_require(config, OPTION_rejection_prompts));
    TRY(answering_scorer(&r->scorer, config));
    TRY(output_folder_check(config->output, command_name, &resuming));
    TRY(answering_open(
        &r->answering, config,
        &(AnsweringOptions){.model = config->model_base,
                            .tokenizer = own ? NULL : config->tokenizer_path,
                            .chat = (AnswerChat)config->rejection_chat,
                            .columns = config->rejection_columns,
                            .chat_option = "name one (template.name) and leave rejection.chat at auto"}));
    TRY(read_prompts(r));
    TRY(read_earlier(r));
    TRY(output_folder_lock(config->output, &r->lock));
    TRY(settle_config(r, resuming));
    return open_log(r);
}

static int allocate(Rejection *r) {
    const Prompts *prompts = &r->answering.prompts;
    int64_t chunk = r->config->rejection_chunk, batch = r->config->rejection_max_batch, K = samples_of(r);
    if (chunk > (int64_t)prompts->n) chunk = (int64_t)prompts->n;
    if (batch > chunk * K) batch = chunk * K;
    r->generations = calloc((size_t)(chunk * K), sizeof *r->generations);
    if (!r->generations) FAIL(ERR_FAILED, "out of memory");
    r->how = answering_generate_options(&r->answering, r->config);
    r->how.samples = (int)K;
    r->how.temperature_to = r->config->rejection_temperature_to;
    r->how.emit = piece_came;
    r->how.finished = answer_came;
    r->how.context = r;
    return generator_new(
        &r->generator, r->answering.file.model, r->answering.file.tokenizer,
        (GeneratorOptions){.max_batch = (int)batch, .max_sequence = answering_longest(&r->answering, r->config)});
}

static int sample_all(Rejection *r) {
    size_t n = r->answering.prompts.n, chunk = (size_t)r->config->rejection_chunk;
    int rc = OK;
    if (r->log.n == n) return OK;
    TRY(allocate(r));
    if (r->log.n > 0) log_info("going on behind prompt %zu of %zu", r->log.n, n);
    interrupt_install("stopping (again: at once) …\n");
    progress_begin(&r->progress, "sampling", "answers", (int64_t)(r->log.n * (size_t)samples_of(r)),
                   (int64_t)(n * (size_t)samples_of(r)));
    r->begun = clock_seconds();
    while (r->log.n < n && rc == OK) rc = run_chunk(r, r->log.n, n - r->log.n < chunk ? n - r->log.n : chunk);
    progress_end(&r->progress);
    interrupt_restore();
    if (rc == ERR_INTERRUPTED)
        FAIL(ERR_INTERRUPTED, "interrupted: %zu of %zu prompts are done; the same command goes on", r->log.n, n);
    return rc;
}

static void report(const json_t *s, const Rejection *r) {
    const json_t *by_k = json_object_get(s, "by_k");
    size_t last = json_array_size(by_k);
    double seconds = clock_seconds() - r->begun;
    if (r->n_tokens > 0) log_info("%.0f tokens/s while sampling", (double)r->n_tokens / seconds);
    log_info("%lld prompts, %lld answers (%lld distinct): mean score %.4g, of the best %.4g",
             (long long)json_integer_value(json_object_get(s, "prompts")),
             (long long)json_integer_value(json_object_get(s, "answers")),
             (long long)json_integer_value(json_object_get(s, "distinct_answers")),
             json_number_value(json_object_get(s, "mean_score")), json_number_value(json_object_get(s, "mean_best")));
    for (size_t k = 1; k <= last; k = k * 2 <= last || k == last ? k * 2 : last) {
        const json_t *row = json_array_get(by_k, k - 1);
        log_info("best of %-5zu maximum %8.4g   median %8.4g", k, json_number_value(json_object_get(row, "maximum")),
                 json_number_value(json_object_get(row, "median")));
    }
    log_info("%s: sft.jsonl has %lld records, pairs.jsonl %lld", r->config->output,
             (long long)json_integer_value(json_object_get(s, "sft_records")),
             (long long)json_integer_value(json_object_get(s, "pairs")));
    double best = json_number_value(json_object_get(s, "mean_best"));
    if (samples_of(r) > 1 && best <= json_number_value(json_object_get(s, "mean_worst")))
        log_warning("all answers to a prompt score the same, whatever the prompt: those kept are no better than the "
                    "others. Raise generate.temperature or rejection.samples, or look at rejection.reward");
}

static int run(Rejection *r, bool json) {
    json_t *statistics = NULL;
    TRY(prepare(r));
    TRY(sample_all(r));
    TRY(rejection_write_results(r->config->output,
                                (RejectionRules){.least_score = r->config->rejection_least_score,
                                                 .samples = samples_of(r),
                                                 .keep = (int)r->config->rejection_keep},
                                &statistics));
    report(statistics, r);
    if (json) {
        json_dumpf(statistics, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
        printf("\n");
    }
    json_decref(statistics);
    return OK;
}

static void rejection_free(Rejection *r) {
    generator_free(r->generator);
    free(r->generations);
    free(r->tokens);
    for (size_t i = 0; r->earlier && i < r->n_earlier; i++) json_decref(r->earlier[i]);
    free(r->earlier);
    scorer_free(r->scorer);
    rejection_log_close(&r->log);
    output_folder_unlock(r->lock);
    answering_close(&r->answering);
    config_free(r->config);
}

int command_rejection(int argc, char **argv) {
    int rc = OK;
    bool json = false;
    CliResult cli;
    const Flag flags[] = {{"json", 0, FLAG_SWITCH, &json, "", "", "print the statistics as one JSON object"}};
    Rejection r = {.lock = -1, .log = {.fd = -1}};
    TRY(config_new(&r.config));
    CliSpec spec = {
        .usage = "CONFIG.yaml [key=value …]",
        .about = "Has a model answer every prompt many times, scores the answers and keeps the best: as records\n"
                 "for `cria sft`, and with the worst as preference pairs. Goes on where it was stopped.",
        .flags = flags,
        .n_flags = sizeof flags / sizeof *flags,
        .min_words = 0,
        .max_words = 1,
        .config = r.config,
        .config_file = true,
        .section = "rejection",
        .sections = REJECTION_SECTIONS};
    TRY_TO(done, cli_parse(&cli, &spec, argc, argv));
    if (!cli.helped) TRY_TO(done, run(&r, json));
done:
    rejection_free(&r);
    return rc;
}
