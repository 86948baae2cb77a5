/* cria generate: continues prompts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "eval/generator.h"
#include "model/core/clock.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "train/cli.h"
#include "train/commands.h"
#include "train/model_file.h"
#include "train/model_template.h"
#include "train/setup.h"

typedef struct {
    const char *prompt, *prompt_file, *tokenizer, *base;
    int64_t copies, max_batch, max_sequence;
    bool json, no_bos, chat;
} Arguments;

typedef struct {
    TokenList *items;
    char **texts;
    size_t n;
    ModelTemplate chat; /* with --chat: prompts are messages to be answered */
} Prompts;

static void prompts_free(Prompts *prompts) {
    for (size_t i = 0; i < prompts->n; i++) {
        token_list_free(&prompts->items[i]);
        free(prompts->texts[i]);
    }
    free(prompts->items);
    free(prompts->texts);
    model_template_free(&prompts->chat);
}

/* A user's message, up to where the model's answer begins. */
static int render_message(const ChatTemplate *chat, const char *text, TokenList *out) {
    int rc = OK;
    Conversation conversation = {.kind = RECORD_MESSAGES};
    ChatTokens tokens = {0};
    TRY_TO(done, conversation_add(&conversation, CHAT_USER, text));
    TRY_TO(done, chat_render_prompt(chat, &conversation, &tokens));
    TRY_TO(done, token_list_append(out, tokens.ids, tokens.n));
done:
    chat_tokens_free(&tokens);
    conversation_free(&conversation);
    return rc;
}

static int add_prompt(Prompts *prompts, const Tokenizer *tokenizer, const char *text, size_t size, int flags) {
    TokenList *items = realloc(prompts->items, (prompts->n + 1) * sizeof *items);
    if (items) prompts->items = items;
    char **texts = realloc(prompts->texts, (prompts->n + 1) * sizeof *texts);
    if (texts) prompts->texts = texts;
    char *copy = strndup(text, size);
    if (!items || !texts || !copy) {
        free(copy);
        FAIL(ERR_FAILED, "out of memory");
    }
    items[prompts->n] = (TokenList){0};
    texts[prompts->n] = copy;
    prompts->n++;
    if (prompts->chat.chat) return render_message(prompts->chat.chat, copy, &items[prompts->n - 1]);
    return tokenizer_encode(tokenizer, text, size, flags, &items[prompts->n - 1]);
}

/* One prompt, or the lines of a file, each `copies` times. */
static int read_prompts(Prompts *prompts, const Arguments *arguments, const Tokenizer *tokenizer) {
    int rc = OK, flags = arguments->no_bos ? 0 : TOKENIZE_BOS;
    const char *prompt = arguments->prompt ? arguments->prompt : "";
    char *bytes = NULL;
    size_t size;
    if (arguments->prompt_file) {
        TRY(file_read(&bytes, &size, arguments->prompt_file, 0));
        for (char *line = bytes, *end; line < bytes + size; line = end + 1) {
            end = memchr(line, '\n', (size_t)(bytes + size - line));
            if (!end) end = bytes + size;
            const char *last = end > line && end[-1] == '\r' ? end - 1 : end; /* a file from Windows */
            for (int64_t copy = 0; copy < arguments->copies && last > line; copy++)
                TRY_TO(done, add_prompt(prompts, tokenizer, line, (size_t)(last - line), flags));
        }
    } else {
        for (int64_t copy = 0; copy < arguments->copies; copy++)
            TRY_TO(done, add_prompt(prompts, tokenizer, prompt, strlen(prompt), flags));
    }
    if (prompts->n == 0) FAIL_TO(done, ERR_REFUSED, "%s: there is no prompt in it", arguments->prompt_file);
done:
    free(bytes);
    return rc;
}

static int stream(void *context, size_t prompt, const char *bytes, size_t n) {
    (void)context, (void)prompt;
    if (fwrite(bytes, 1, n, stdout) != n || fflush(stdout) != 0) FAIL(ERR_FAILED, "writing to standard output failed");
    return OK;
}

static const char *const reasons[] = {"stop-token", "stop-text", "length", "context"};

/* Null where the bytes are not valid UTF-8: the ids say it all. */
static json_t *text_or_null(const char *text, size_t size) {
    json_t *string = json_stringn(text, size);
    return string ? string : json_null();
}

static json_t *generation_json(const char *prompt, const Generation *generation) {
    json_t *ids = json_array();
    for (size_t t = 0; t < generation->tokens.n; t++)
        json_array_append_new(ids, json_integer(generation->tokens.ids[t]));
    return json_pack("{s:o, s:o, s:o, s:s, s:f}", "prompt", text_or_null(prompt, strlen(prompt)), "text",
                     text_or_null(generation->text, generation->text_size), "tokens", ids, "finish_reason",
                     reasons[generation->reason], "logprob", generation->logprob);
}

static int print_json(const Prompts *prompts, const Generation *generations, double seconds) {
    json_t *list = json_array();
    uint64_t tokens = 0;
    int rc = OK;
    for (size_t i = 0; i < prompts->n && rc == 0; i++) {
        tokens += generations[i].tokens.n;
        rc = json_array_append_new(list, generation_json(prompts->texts[i], &generations[i]));
    }
    json_t *root = json_pack("{s:o, s:I, s:f}", "generations", list, "tokens", (json_int_t)tokens, "tokens_per_second",
                             (double)tokens / seconds);
    if (rc == 0 && root) json_dumpf(root, stdout, JSON_REAL_PRECISION(9));
    json_decref(root);
    if (rc != 0 || !root) FAIL(ERR_FAILED, "out of memory for %zu texts as JSON", prompts->n);
    printf("\n");
    return OK;
}

static void print_texts(const Prompts *prompts, const Generation *generations) {
    for (size_t i = 0; i < prompts->n; i++) {
        if (i) printf("\n---\n");
        if (!prompts->chat.chat) fwrite(prompts->texts[i], 1, strlen(prompts->texts[i]), stdout);
        fwrite(generations[i].text, 1, generations[i].text_size, stdout);
    }
    printf("\n");
}

static GenerateOptions options_from(const Config *config, const ModelFile *file) {
    return (GenerateOptions){.sampler = setup_sampler(config),
                             .max_new_tokens = (int)config->generate_max_new_tokens,
                             .stop = config->generate_stop.items,
                             .n_stop = config->generate_stop.n,
                             .stop_tokens = file->generation.eos_token_ids,
                             .n_stop_tokens = (size_t)file->generation.n_eos};
}

/* The cache holds the longest prompt and its continuation, unless that is more than the model was made for. */
static int64_t sequence_length(const Arguments *arguments, const Config *config, const ModelFile *file,
                               const Prompts *prompts) {
    int64_t longest = 1, limit = file->model->rotary.n_positions;
    for (size_t i = 0; i < prompts->n; i++)
        if ((int64_t)prompts->items[i].n > longest) longest = (int64_t)prompts->items[i].n;
    int64_t wanted = arguments->max_sequence > 0 ? arguments->max_sequence : longest + config->generate_max_new_tokens;
    return wanted < limit ? wanted : limit;
}

static int generate(const Arguments *arguments, const Config *config, ModelFile *file, Prompts *prompts) {
    int rc = OK;
    Generator *generator = NULL;
    Generation *generations = calloc(prompts->n, sizeof *generations);
    if (!generations) FAIL(ERR_FAILED, "out of memory");
    int64_t batch = (int64_t)prompts->n < arguments->max_batch ? (int64_t)prompts->n : arguments->max_batch;
    GenerateOptions options = options_from(config, file);
    bool streaming = prompts->n == 1 && !arguments->json;
    if (streaming) options.emit = stream;
    TRY_TO(done,
           generator_new(&generator, file->model, file->tokenizer,
                         (GeneratorOptions){.max_batch = (int)batch,
                                            .max_sequence = (int)sequence_length(arguments, config, file, prompts)}));
    if (streaming && !arguments->chat) TRY_TO(done, stream(NULL, 0, prompts->texts[0], strlen(prompts->texts[0])));
    double start = clock_seconds();
    TRY_TO(done, generator_run(generator, prompts->items, prompts->n, &options, generations));
    double seconds = clock_seconds() - start;
    if (arguments->json)
        TRY_TO(done, print_json(prompts, generations, seconds));
    else if (streaming) {
        if (isatty(STDOUT_FILENO)) printf("\n"); /* a pipe or a file gets the text and nothing else */
    } else
        print_texts(prompts, generations);
    uint64_t tokens = 0;
    for (size_t i = 0; i < prompts->n; i++) tokens += generations[i].tokens.n;
    log_debug("%llu tokens in %.2f s: %.1f tokens/s", (unsigned long long)tokens, seconds, (double)tokens / seconds);
done:
    for (size_t i = 0; i < prompts->n; i++) generation_free(&generations[i]);
    free(generations);
    generator_free(generator);
    return rc;
}

/* An answer also ends with the template's stops. */
static int open_template(ModelTemplate *chat, const Config *config, ModelFile *file) {
    int32_t stops[2];
    TRY(model_template_choose(chat, config, file->chat_template, file->path, file->tokenizer));
    TRY(model_template_open(chat, file->tokenizer));
    size_t n = chat_template_stops(chat->chat, stops);
    for (size_t i = 0; i < n && file->generation.n_eos < HF_MAX_EOS; i++)
        file->generation.eos_token_ids[file->generation.n_eos++] = stops[i];
    return OK;
}

int command_generate(int argc, char **argv) {
    int rc = OK;
    Arguments arguments = {.copies = 1, .max_batch = 16};
    Config *config;
    ModelFile file = {0};
    Prompts prompts = {0};
    CliResult cli;
    const Flag flags[] = {
        {"prompt", 'p', FLAG_TEXT, &arguments.prompt, "TEXT", "", "what the text begins with"},
        {"prompts", 'f', FLAG_TEXT, &arguments.prompt_file, "FILE", "", "many prompts, one a line"},
        {"copies", 0, FLAG_INT, &arguments.copies, "N", ">= 1", "continue each prompt so many times"},
        {"max-new-tokens", 'n', FLAG_OPTION, NULL, "N", "", "longest continuation"},
        {"max-batch", 0, FLAG_INT, &arguments.max_batch, "N", ">= 1", "sequences computed at once (16)"},
        {"max-sequence", 0, FLAG_INT, &arguments.max_sequence, "N", ">= 2",
         "tokens of prompt and continuation; sizes the cache (default: what is needed)"},
        {"tokenizer", 't', FLAG_TEXT, &arguments.tokenizer, "FILE", "", "instead of the model's own"},
        {"base", 0, FLAG_TEXT, &arguments.base, "MODEL", "", MODEL_FILE_BASE_HELP},
        {"chat", 0, FLAG_SWITCH, &arguments.chat, "", "",
         "a prompt is a message, and the answer is generated, by the model's chat template"},
        {"no-bos", 0, FLAG_SWITCH, &arguments.no_bos, "", "", "do not begin with BOS"},
        {"json", 0, FLAG_SWITCH, &arguments.json, "", "", "print one JSON object: texts, ids, log-probabilities"},
    };
    TRY(config_new(&config));
    CliSpec spec = {
        .usage = "MODEL [-p TEXT] [flags]",
        .about = "Continues a prompt; the text goes to stdout as it is made. MODEL: a checkpoint, a run's folder,\n"
                 "a Hugging Face directory, a llama2.c file, an adapter.",
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
    TRY_TO(done,
           model_file_open(
               &file, cli.words[0],
               (ModelFileOptions){.tokenizer = arguments.tokenizer, .need_tokenizer = true, .base = arguments.base}));
    if (arguments.chat) TRY_TO(done, open_template(&prompts.chat, config, &file));
    TRY_TO(done, read_prompts(&prompts, &arguments, file.tokenizer));
    TRY_TO(done, generate(&arguments, config, &file, &prompts));
done:
    prompts_free(&prompts);
    model_file_close(&file);
    config_free(config);
    return rc;
}
