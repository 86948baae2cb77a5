/* cria generate: continues prompts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "model/core/clock.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "train/sampling/answering.h"
#include "train/console/cli.h"
#include "train/commands.h"
#include "train/console/progress.h"

typedef struct {
    const char *prompt, *prompt_file, *tokenizer, *base, *columns;
    int64_t samples, max_batch, max_sequence;
    bool json, jsonl, no_bos, chat;
} Arguments;

/* What one call of the command works with. */
typedef struct {
    const Arguments *arguments;
    const Config *config;
    Answering answering;
    size_t n; /* generations: prompts × samples */
    Generation *generations;
    size_t n_printed, n_done; /* with --jsonl, lines so far; sequences that are complete */
    uint64_t n_tokens;        /* in them */
    double begun;
    bool streaming; /* one text, as it comes, and no progress */
    Progress progress;
} Generating;

static int read_prompts(Generating *g) {
    const Arguments *a = g->arguments;
    const char *prompt = a->prompt ? a->prompt : "";
    Answering *answering = &g->answering;
    if (a->prompt_file) return prompts_read(&answering->prompts, &answering->how, a->prompt_file);
    return prompts_add_text(&answering->prompts, &answering->how, prompt, strlen(prompt));
}

static int stream(void *context, size_t sequence, const char *bytes, size_t n) {
    (void)context, (void)sequence;
    if (fwrite(bytes, 1, n, stdout) != n || fflush(stdout) != 0) FAIL(ERR_FAILED, "writing to standard output failed");
    return OK;
}

/* ---- output ---- */

/* Null where the bytes are not valid UTF-8: the ids say it all. */
static json_t *text_or_null(const char *text, size_t size) {
    json_t *string = json_stringn(text, size);
    return string ? string : json_null();
}

static json_t *generation_json(const Prompt *prompt, const Generation *generation) {
    json_t *ids = json_array(), *logprobs = json_array();
    for (size_t t = 0; t < generation->tokens.n; t++)
        json_array_append_new(ids, json_integer(generation->tokens.ids[t]));
    for (size_t t = 0; t < generation->n_logprobs; t++)
        json_array_append_new(logprobs, json_real((double)generation->logprobs[t]));
    return json_pack("{s:O?, s:o, s:o, s:o, s:s, s:f}", "prompt", prompt->prompt, "text",
                     text_or_null(generation->text, generation->text_size), "tokens", ids, "logprobs", logprobs,
                     "finish_reason", finish_reason_name(generation->reason), "logprob", generation->logprob);
}

static const Prompt *prompt_of(const Generating *g, size_t sequence) {
    return &g->answering.prompts.items[sequence / (size_t)g->arguments->samples];
}

static int print_json(const Generating *g, double seconds) {
    json_t *list = json_array();
    int rc = 0;
    for (size_t i = 0; i < g->n && rc == 0; i++)
        rc = json_array_append_new(list, generation_json(prompt_of(g, i), &g->generations[i]));
    json_t *root = json_pack("{s:o, s:I, s:f, s:s}", "generations", list, "tokens", (json_int_t)g->n_tokens,
                             "tokens_per_second", (double)g->n_tokens / seconds, "precision",
                             dtype_name(llama_inference_dtype(g->answering.file.model)));
    if (rc == 0 && root) json_dumpf(root, stdout, JSON_REAL_PRECISION(9));
    json_decref(root);
    if (rc != 0 || !root) FAIL(ERR_FAILED, "out of memory for %zu texts as JSON", g->n);
    printf("\n");
    return OK;
}

/* One line: which prompt, which sample, and the generation. */
static int print_line(const Generating *g, size_t sequence) {
    size_t samples = (size_t)g->arguments->samples;
    json_t *line =
        json_pack("{s:I, s:I}", "index", (json_int_t)(sequence / samples), "sample", (json_int_t)(sequence % samples));
    json_t *rest = generation_json(prompt_of(g, sequence), &g->generations[sequence]);
    bool made = line && rest && json_object_update(line, rest) == 0;
    char *text = made ? json_dumps(line, JSON_REAL_PRECISION(9) | JSON_COMPACT) : NULL;
    json_decref(line);
    json_decref(rest);
    if (!text) FAIL(ERR_FAILED, "out of memory for a text as JSON");
    bool written = printf("%s\n", text) > 0 && fflush(stdout) == 0;
    free(text);
    if (!written) FAIL(ERR_FAILED, "writing to standard output failed");
    return OK;
}

static void print_texts(const Generating *g) {
    for (size_t i = 0; i < g->n; i++) {
        const Prompt *prompt = prompt_of(g, i);
        if (i) printf("\n---\n");
        if (!g->answering.chat.chat && prompt->text) fwrite(prompt->text, 1, prompt->size, stdout);
        fwrite(g->generations[i].text, 1, g->generations[i].text_size, stdout);
    }
    printf("\n");
}

/* ---- the run ---- */

/* Lines are printed in order, each as soon as those before it are there. A generation that is not has no text. */
static int finished(void *context, size_t sequence, const Generation *generation) {
    Generating *g = context;
    char details[64], number[32];
    (void)sequence;
    g->n_done++;
    g->n_tokens += generation->tokens.n;
    if (!g->streaming && progress_due(&g->progress)) {
        snprintf(details, sizeof details, "%s tok/s",
                 text_thousands(number, (uint64_t)((double)g->n_tokens / (clock_seconds() - g->begun))));
        progress_update(&g->progress, (int64_t)g->n_done, details);
    }
    for (; g->arguments->jsonl && g->n_printed < g->n && g->generations[g->n_printed].text; g->n_printed++)
        TRY(print_line(g, g->n_printed));
    return OK;
}

static GenerateOptions options_from(Generating *g) {
    GenerateOptions options = answering_generate_options(&g->answering, g->config);
    options.samples = (int)g->arguments->samples;
    options.emit = g->streaming ? stream : NULL;
    options.finished = finished;
    options.context = g;
    return options;
}

static int sequence_length(const Generating *g) {
    int64_t wanted = g->arguments->max_sequence, limit = g->answering.file.model->rotary.n_positions;
    if (wanted == 0) return answering_longest(&g->answering, g->config);
    return (int)(wanted < limit ? wanted : limit);
}

static int print_all(const Generating *g, double seconds) {
    if (g->arguments->json) return print_json(g, seconds);
    if (g->arguments->jsonl) return OK;
    if (!g->streaming)
        print_texts(g);
    else if (isatty(STDOUT_FILENO)) /* a pipe or a file gets the text and nothing else */
        printf("\n");
    return OK;
}

/* A prompt leaves room for a token in a sequence. */
static int check_prompts(const Generating *g) {
    size_t longest = (size_t)sequence_length(g);
    bool has_bos = tokenizer_bos(g->answering.file.tokenizer) >= 0;
    for (size_t i = 0; i < g->answering.prompts.n; i++) {
        const Prompt *prompt = &g->answering.prompts.items[i];
        if (prompt->tokens.n == 0 && !has_bos)
            FAIL(ERR_USAGE, "%s is empty, and this tokenizer has no BOS to begin with", prompt_place(prompt));
        if (prompt->tokens.n >= longest)
            FAIL(ERR_REFUSED, "%s has %zu tokens; with max_sequence %zu there is no room for an answer",
                 prompt_place(prompt), prompt->tokens.n, longest);
    }
    return OK;
}

static int generate(Generating *g) {
    int rc = OK;
    const Arguments *a = g->arguments;
    Generator *generator = NULL;
    size_t samples = (size_t)a->samples;
    TRY(check_prompts(g));
    g->n = g->answering.prompts.n * samples;
    g->generations = calloc(g->n + 1, sizeof *g->generations);
    TokenList *tokens = calloc(g->answering.prompts.n + 1, sizeof *tokens);
    if (!g->generations || !tokens) FAIL_TO(done, ERR_FAILED, "out of memory");
    for (size_t i = 0; i < g->answering.prompts.n; i++) tokens[i] = g->answering.prompts.items[i].tokens;
    int64_t batch = (int64_t)g->n < a->max_batch ? (int64_t)g->n : a->max_batch;
    g->streaming = g->n == 1 && !a->json && !a->jsonl;
    GenerateOptions options = options_from(g);
    TRY_TO(done, generator_new(&generator, g->answering.file.model, g->answering.file.tokenizer,
                               (GeneratorOptions){.max_batch = (int)batch, .max_sequence = (int)sequence_length(g)}));
    if (g->streaming && !a->chat)
        TRY_TO(done, stream(NULL, 0, g->answering.prompts.items[0].text, g->answering.prompts.items[0].size));
    g->begun = clock_seconds();
    if (!g->streaming) progress_begin(&g->progress, "sampling", "texts", 0, (int64_t)g->n);
    rc = generator_run(generator, tokens, g->answering.prompts.n, &options, g->generations);
    if (!g->streaming) progress_end(&g->progress);
    double seconds = clock_seconds() - g->begun;
    if (rc == OK) rc = print_all(g, seconds);
    log_debug("%llu tokens in %.2f s: %.1f tokens/s, %s", (unsigned long long)g->n_tokens, seconds,
              (double)g->n_tokens / seconds, dtype_name(llama_inference_dtype(g->answering.file.model)));
done:
    for (size_t i = 0; g->generations && i < g->n; i++) generation_free(&g->generations[i]);
    free(g->generations);
    free(tokens);
    generator_free(generator);
    return rc;
}

static int run(Generating *g, const char *path) {
    const Arguments *a = g->arguments;
    TRY(answering_open(&g->answering, g->config,
                       &(AnsweringOptions){.model = path,
                                           .tokenizer = a->tokenizer,
                                           .base = a->base,
                                           .chat = a->chat ? ANSWER_CHAT : ANSWER_PLAIN,
                                           .columns = a->columns ? a->columns : "",
                                           .no_bos = a->no_bos,
                                           .chat_option = "give --chat"}));
    TRY(read_prompts(g));
    return generate(g);
}

int command_generate(int argc, char **argv) {
    int rc = OK;
    Arguments arguments = {.samples = 1, .max_batch = 16};
    Config *config;
    CliResult cli;
    const Flag flags[] = {
        {"prompt", 'p', FLAG_TEXT, &arguments.prompt, "TEXT", "", "what the text begins with"},
        {"prompts", 'f', FLAG_TEXT, &arguments.prompt_file, "FILE", "",
         "many prompts: one a line, or records in .jsonl (prompt, messages, instruction …)"},
        {"columns", 0, FLAG_TEXT, &arguments.columns, "LIST", "", "other names in records: prompt=question"},
        {"samples", 0, FLAG_INT, &arguments.samples, "K", ">= 1 <= 1000000",
         "continue each prompt so many times; it is computed once"},
        {"max-new-tokens", 'n', FLAG_OPTION, NULL, "N", "", "longest continuation"},
        {"max-batch", 0, FLAG_INT, &arguments.max_batch, "N", ">= 1 <= 65536", "sequences computed at once (16)"},
        {"max-sequence", 0, FLAG_INT, &arguments.max_sequence, "N", ">= 2",
         "tokens of prompt and continuation; sizes the cache (default: what is needed)"},
        {"tokenizer", 't', FLAG_TEXT, &arguments.tokenizer, "FILE", "", "instead of the model's own"},
        {"base", 0, FLAG_TEXT, &arguments.base, "MODEL", "", MODEL_FILE_BASE_HELP},
        {"chat", 0, FLAG_SWITCH, &arguments.chat, "", "",
         "a prompt is a message, and the answer is generated, by the model's chat template"},
        {"no-bos", 0, FLAG_SWITCH, &arguments.no_bos, "", "", "do not begin with BOS"},
        {"json", 0, FLAG_SWITCH, &arguments.json, "", "", "print one JSON object: texts, ids, log-probabilities"},
        {"jsonl", 0, FLAG_SWITCH, &arguments.jsonl, "", "", "print the same as a line for each text, as they come"},
    };
    TRY(config_new(&config));
    Generating g = {.arguments = &arguments, .config = config};
    CliSpec spec = {
        .usage = "MODEL [-p TEXT] [flags]",
        .about =
            "Continues a prompt; the text goes to stdout as it is made. MODEL: a checkpoint, a run's folder,\n"
            "a Hugging Face directory, a llama2.c file, an adapter. Log-probabilities are the model's own, before\n"
            "temperature and filters; the last is the stop token's, where there is one.",
        .flags = flags,
        .n_flags = sizeof flags / sizeof *flags,
        .min_words = 1,
        .max_words = 1,
        .config = config,
        .section = "generate",
        .sections = "generate template"};
    TRY_TO(done, cli_parse(&cli, &spec, argc, argv));
    if (cli.helped) goto done;
    if (arguments.prompt && arguments.prompt_file) FAIL_TO(done, ERR_USAGE, "--prompt and --prompts: give one of them");
    if (arguments.json && arguments.jsonl) FAIL_TO(done, ERR_USAGE, "--json and --jsonl: give one of them");
    TRY_TO(done, run(&g, cli.words[0]));
done:
    answering_close(&g.answering);
    config_free(config);
    return rc;
}
