/* cria ghost: makes Ghost Attention data. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "train/console/cli.h"
#include "train/commands.h"
#include "train/sampling/answering.h"
#include "train/sampling/ghost.h"

typedef struct {
    const char *model, *conversations, *instructions, *out; /* words */
    const char *tokenizer, *base, *columns;
    int64_t per_conversation, max_batch, max_sequence;
    bool as_system, json;
} Arguments;

typedef struct {
    Answering answering;
    char *bytes; /* of the instructions, cut into lines */
    const char **lines;
    size_t n_lines;
} Inputs;

static void inputs_free(Inputs *inputs) {
    answering_close(&inputs->answering);
    free(inputs->bytes);
    free(inputs->lines);
}

/* One instruction a line; empty lines are none. */
static int read_instructions(Inputs *inputs, const char *path) {
    size_t size;
    TRY(file_read(&inputs->bytes, &size, path, 0));
    if (strlen(inputs->bytes) != size) FAIL(ERR_REFUSED, "%s: it has a zero byte; text is expected", path);
    for (char *rest = inputs->bytes, *line; (line = strsep(&rest, "\n")) != NULL;) {
        line[strcspn(line, "\r")] = '\0';
        if (line[strspn(line, " \t")] == '\0') continue;
        const char **grown = realloc(inputs->lines, (inputs->n_lines + 1) * sizeof *grown);
        if (!grown) FAIL(ERR_FAILED, "out of memory");
        inputs->lines = grown;
        grown[inputs->n_lines++] = line;
    }
    if (inputs->n_lines == 0) FAIL(ERR_REFUSED, "%s: there is no instruction in it; one a line is expected", path);
    return OK;
}

static int open_inputs(Inputs *inputs, const Arguments *a, const Config *config) {
    Answering *answering = &inputs->answering;
    TRY(read_instructions(inputs, a->instructions));
    if (a->per_conversation > (int64_t)inputs->n_lines)
        FAIL(ERR_USAGE, "--per-conversation: found %lld, and %s has %zu instructions", (long long)a->per_conversation,
             a->instructions, inputs->n_lines);
    TRY(answering_open(answering, config,
                       &(AnsweringOptions){.model = a->model,
                                           .tokenizer = a->tokenizer,
                                           .base = a->base,
                                           .chat = ANSWER_CHAT,
                                           .columns = a->columns ? a->columns : "",
                                           .no_bos = true,
                                           .fingerprint = true}));
    return prompts_read(&answering->prompts, &answering->how, a->conversations);
}

static void report(const GhostResult *r, const Arguments *a) {
    if (a->json) {
        printf("{\"records\": %zu, \"duplicates\": %zu, \"resumed\": %zu, \"written\": %zu, \"unfinished\": %zu, "
               "\"overlong\": %zu, \"empty\": %zu}\n",
               r->records, r->duplicates, r->resumed, r->written, r->unfinished, r->overlong, r->empty);
        return;
    }
    log_info("%s: %zu records written, %zu were there; of %zu wanted", a->out, r->written, r->resumed, r->records);
    if (r->duplicates > 0) log_info("%zu conversations are there twice and were asked once", r->duplicates);
    if (r->unfinished > 0)
        log_warning("%zu left out: an answer did not end by itself (generate.max_new_tokens allows longer ones)",
                    r->unfinished);
    if (r->overlong > 0)
        log_warning("%zu left out: longer than the context of %lld", r->overlong, (long long)a->max_sequence);
    if (r->empty > 0) log_warning("%zu left out: an answer without text, or not in UTF-8", r->empty);
}

static int run(Arguments *a, const Config *config) {
    Inputs inputs = {0};
    GhostResult result = {0};
    int rc = open_inputs(&inputs, a, config);
    Answering *answering = &inputs.answering;
    int64_t limit = rc == OK ? answering->file.model->rotary.n_positions : 0;
    if (a->max_sequence == 0 || a->max_sequence > limit) a->max_sequence = limit;
    GhostOptions options = {.instructions = inputs.lines,
                            .n_instructions = inputs.n_lines,
                            .per_conversation = (size_t)a->per_conversation,
                            .as_system = a->as_system,
                            .model = answering->file.fingerprint,
                            .max_batch = (int)a->max_batch,
                            .max_sequence = (int)a->max_sequence,
                            .generate = answering_generate_options(answering, config)};
    if (rc == OK)
        rc = ghost_run(answering->file.model, answering->file.tokenizer, answering->chat.chat, &answering->prompts,
                       &options, a->out, &result);
    if (rc == OK) report(&result, a);
    if (rc == OK && result.written + result.resumed == 0)
        rc = error_set(ERR_REFUSED, __FILE__, __LINE__, "not one conversation could be answered to its end");
    inputs_free(&inputs);
    return rc;
}

int command_ghost(int argc, char **argv) {
    Arguments a = {.per_conversation = 1, .max_batch = 16};
    Config *config;
    CliResult cli;
    int rc = OK;
    const Flag flags[] = {
        {"per-conversation", 'k', FLAG_INT, &a.per_conversation, "N", ">= 1",
         "different instructions, drawn for each conversation (1)"},
        {"system", 0, FLAG_SWITCH, &a.as_system, "", "",
         "records have the instruction as their system message, not before the first question"},
        {"columns", 0, FLAG_TEXT, &a.columns, "LIST", "", "other names in records: prompt=question"},
        {"max-new-tokens", 'n', FLAG_OPTION, NULL, "N", "", "longest answer; what does not end is left out"},
        {"max-batch", 0, FLAG_INT, &a.max_batch, "N", ">= 1 <= 65536", "sequences computed at once (16; 64 at most)"},
        {"max-sequence", 0, FLAG_INT, &a.max_sequence, "N", ">= 2", "tokens of a conversation (the model's context)"},
        {"tokenizer", 't', FLAG_TEXT, &a.tokenizer, "FILE", "", "instead of the model's own"},
        {"base", 0, FLAG_TEXT, &a.base, "MODEL", "", MODEL_FILE_BASE_HELP},
        {"json", 0, FLAG_SWITCH, &a.json, "", "", "print one JSON object of counts"},
    };
    TRY(config_new(&config));
    CliSpec spec = {
        .usage = "MODEL CONVERSATIONS INSTRUCTIONS OUT.jsonl [flags]",
        .about = "Ghost Attention (Llama 2, section 3.3): has a model answer conversations' questions with an\n"
                 "instruction on every one of them, and writes records that have it on the first only, of which\n"
                 "the last answer alone is trained on. CONVERSATIONS: records (messages, prompt, …) or a question\n"
                 "a line; their own answers are not looked at. INSTRUCTIONS: one a line. Stopped, the same\n"
                 "command goes on.",
        .flags = flags,
        .n_flags = sizeof flags / sizeof *flags,
        .min_words = 4,
        .max_words = 4,
        .config = config,
        .section = "generate",
        .sections = "generate template"};
    TRY_TO(done, cli_parse(&cli, &spec, argc, argv));
    if (cli.helped) goto done;
    a.model = cli.words[0];
    a.conversations = cli.words[1];
    a.instructions = cli.words[2];
    a.out = cli.words[3];
    rc = run(&a, config);
done:
    config_free(config);
    return rc;
}
