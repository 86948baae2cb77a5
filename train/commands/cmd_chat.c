/* cria chat: a conversation in the terminal, or from a pipe: each line is a message, and only answers go to stdout. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <readline.h> /* libedit's */

#include "eval/chat.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "train/console/cli.h"
#include "train/commands.h"
#include "train/console/interrupt.h"
#include "train/files/model_file.h"
#include "train/files/model_template.h"
#include "train/setup.h"

enum { USUAL_CONTEXT = 8192 /* tokens: the cache of a model with a longer one would be large */ };

typedef struct {
    const char *system, *tokenizer, *base, *template_name, *prompt;
    int64_t context;
    bool once, drop_old;
} Arguments;

typedef struct {
    const Arguments *arguments;
    Chat *chat;
    GenerateOptions options;
    char *system;
    bool terminal, finished;
    size_t printed; /* bytes of the running answer */
} Session;

/* ---- answers ---- */

/* White space in front of an answer is the template's, as Llama 2's " ", and is not shown. */
static int emit(void *context, size_t prompt, const char *bytes, size_t n) {
    (void)prompt;
    Session *session = context;
    if (interrupt_requested()) FAIL(ERR_INTERRUPTED, "stopped");
    while (session->printed == 0 && n > 0 && strchr(" \n", *bytes)) bytes++, n--;
    session->printed += n;
    if (fwrite(bytes, 1, n, stdout) != n || fflush(stdout) != 0) FAIL(ERR_FAILED, "writing to standard output failed");
    return OK;
}

/* Room for the question, and an answer as long as may be, or half of the context. *dropped turns were forgotten for it.
 */
static int make_room(Session *session, const char *text, int *dropped) {
    size_t n, context = (size_t)chat_context(session->chat), answer = (size_t)session->options.max_new_tokens;
    if (answer > context / 2) answer = context / 2;
    *dropped = 0;
    for (;;) {
        TRY(chat_count(session->chat, text, &n));
        if (!session->arguments->drop_old || n + answer <= context || !chat_drop_oldest(session->chat)) return OK;
        ++*dropped;
    }
}

/* What can be done where the refusal was for want of room. */
static int explain_full(Session *session, const char *text, int rc) {
    size_t n;
    bool full =
        rc == ERR_REFUSED && chat_count(session->chat, text, &n) == OK && n >= (size_t)chat_context(session->chat);
    return full ? error_context(rc, "the context is full: /drop forgets the oldest turn, /reset all "
                                    "(--drop-old: forget old turns as needed)")
                : rc;
}

static int ask(Session *session, const char *text) {
    static const char *const ends[] = {[FINISH_LENGTH] = "[cut off: generate.max_new_tokens]",
                                       [FINISH_CONTEXT] = "[cut off: the context is full; /drop forgets the oldest "
                                                          "turn, /reset all]"};
    FinishReason reason = FINISH_STOP_TOKEN;
    int dropped;
    TRY(make_room(session, text, &dropped));
    if (dropped > 0) log_warning("forgot the oldest %d turn%s to make room", dropped, dropped > 1 ? "s" : "");
    session->printed = 0;
    interrupt_install(NULL);
    int rc = chat_ask(session->chat, text, &session->options, &reason);
    bool stopped = rc == ERR_INTERRUPTED;
    interrupt_restore();
    if (rc != OK && !stopped) return explain_full(session, text, rc);
    printf("\n");
    fflush(stdout);
    if (stopped) {
        if (!session->terminal) return rc;
        error_clear();
        log_info("[stopped]");
    } else if (reason == FINISH_LENGTH || reason == FINISH_CONTEXT) {
        log_warning("%s", ends[reason]);
    }
    return OK;
}

/* ---- commands ---- */

static void help(void) {
    log_info("/system TEXT   begin anew with this system message\n"
             "/reset         begin anew\n"
             "/drop          forget the oldest turn\n"
             "/save FILE     add the conversation to FILE as a record that cria sft reads\n"
             "/quit          end (also Ctrl-D); Ctrl-C stops an answer\n"
             "A line that ends in \\ goes on in the next; //text sends /text.");
}

static int save(const Session *session, const char *path) {
    if (!*path) FAIL(ERR_USAGE, "/save: a file's name is expected");
    Text record = {0};
    int rc = chat_record(session->chat, &record);
    FILE *file = rc == OK ? fopen(path, "ae") : NULL;
    bool written = file && fwrite(record.bytes, 1, record.length, file) == record.length;
    if (file && fclose(file) != 0) written = false;
    int code = errno;
    text_free(&record);
    TRY(rc);
    if (!written) FAIL(ERR_FAILED, "/save: %s cannot be written: %s", path, strerror(code));
    log_info("saved to %s", path);
    return OK;
}

static int set_system(Session *session, const char *text) {
    char *copy = *text ? strdup(text) : NULL;
    if (*text && !copy) FAIL(ERR_FAILED, "out of memory");
    free(session->system);
    session->system = copy;
    return chat_begin(session->chat, copy);
}

/* The rest of the line where it is this command, else NULL. */
static const char *command(const char *line, const char *name) {
    size_t n = strlen(name);
    if (strncmp(line, name, n) != 0 || (line[n] && line[n] != ' ')) return NULL;
    return line + n + strspn(line + n, " ");
}

static int obey(Session *session, const char *line) {
    const char *rest;
    if ((rest = command(line, "/system"))) return set_system(session, rest);
    if (command(line, "/reset")) return chat_begin(session->chat, session->system);
    if ((rest = command(line, "/save"))) return save(session, rest);
    if (command(line, "/drop")) {
        log_info(chat_drop_oldest(session->chat) ? "the oldest turn is forgotten" : "there is no turn to forget");
        return OK;
    }
    if (command(line, "/quit") || command(line, "/exit")) {
        session->finished = true;
        return OK;
    }
    if (!command(line, "/help")) log_warning("there is no command %.40s", line);
    help();
    return OK;
}

static int take(Session *session, const char *line) {
    if (line[0] == '/' && line[1] != '/') return obey(session, line);
    return ask(session, line + (line[0] == '/'));
}

/* ---- lines ---- */

/* The next line without its end, malloc'd; NULL at the end. */
static char *read_line(const Session *session, const char *prompt) {
    if (session->terminal) return readline(prompt);
    char *line = NULL;
    size_t room = 0;
    ssize_t n = getline(&line, &room, stdin);
    if (n < 0) {
        free(line);
        return NULL;
    }
    while (n > 0 && strchr("\r\n", line[n - 1])) line[--n] = '\0';
    return line;
}

/* A message: a line, and the next where it ends in a backslash. *found is false at the end. */
static int read_message(const Session *session, Text *message, bool *found) {
    char *line = read_line(session, "> ");
    text_clear(message);
    *found = line != NULL;
    while (line) {
        size_t n = strlen(line);
        bool more = n > 0 && line[n - 1] == '\\';
        text_append(message, line, n - more);
        if (more) text_puts(message, "\n");
        free(line);
        line = more ? read_line(session, "… ") : NULL;
    }
    return text_check(message);
}

static int converse(Session *session) {
    int rc = OK;
    Text message = {0};
    bool found = true;
    if (session->terminal) log_info("/help lists the commands; Ctrl-D ends");
    while (!session->finished) {
        TRY_TO(done, read_message(session, &message, &found));
        if (!found) break;
        if (message.length == 0) continue;
        if (session->terminal) add_history(message.bytes);
        rc = take(session, message.bytes);
        if (rc == OK || !session->terminal) {
            if (rc != OK) break;
            continue;
        }
        if (rc == ERR_FAILED) break; /* the machine's; what the user can mend is told, and the conversation goes on */
        log_warning("%s", error_text());
        error_clear();
        rc = OK;
    }
done:
    text_free(&message);
    return rc;
}

/* One message, the argument or all of standard input, and its answer. */
static int once(Session *session) {
    Text message = {0};
    char buffer[4096];
    size_t n;
    if (session->arguments->prompt)
        text_puts(&message, session->arguments->prompt);
    else
        while ((n = fread(buffer, 1, sizeof buffer, stdin)) > 0) text_append(&message, buffer, n);
    while (message.length > 0 && strchr("\r\n", message.bytes[message.length - 1]))
        message.bytes[--message.length] = '\0';
    int rc = text_check(&message);
    if (rc == OK && message.length == 0) rc = error_set(ERR_USAGE, __FILE__, __LINE__, "there is no message to answer");
    if (rc == OK) rc = ask(session, message.bytes);
    text_free(&message);
    return rc;
}

/* ---- the whole ---- */

static int open_chat(Session *session, const Config *config, ModelFile *file, ModelTemplate *model_template) {
    const Arguments *arguments = session->arguments;
    Tokenizer *tokenizer = file->tokenizer;
    TRY(model_template_choose(model_template, config, file->chat_template, file->path, tokenizer));
    TRY(model_template_open(model_template, tokenizer));
    int limit = file->model->rotary.n_positions;
    int64_t context = arguments->context > 0 ? arguments->context : USUAL_CONTEXT;
    if (arguments->context > limit) FAIL(ERR_USAGE, "--context: the model was made for %d tokens at most", limit);
    TRY(chat_new(&session->chat, file->model, tokenizer, model_template->chat, context < limit ? (int)context : limit));
    session->options = (GenerateOptions){.sampler = setup_sampler(config),
                                         .max_new_tokens = (int)config->generate_max_new_tokens,
                                         .stop = config->generate_stop.items,
                                         .n_stop = config->generate_stop.n,
                                         .emit = emit,
                                         .context = session};
    return set_system(session, arguments->system ? arguments->system : "");
}

static int talk(const Arguments *arguments, Config *config, const char *model) {
    int rc = OK;
    ModelFile file = {0};
    ModelTemplate model_template = {0};
    Session session = {.arguments = arguments, .terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)};
    if (arguments->template_name) TRY(config_set_text(config, OPTION_template_name, arguments->template_name));
    TRY(model_file_open(&file, model,
                        (ModelFileOptions){.tokenizer = arguments->tokenizer,
                                           .need_tokenizer = true,
                                           .base = arguments->base,
                                           .inference = setup_inference(config),
                                           .frozen = setup_inference_weights(config)}));
    TRY_TO(done, open_chat(&session, config, &file, &model_template));
    rc = arguments->once || arguments->prompt ? once(&session) : converse(&session);
done:
    chat_free(session.chat);
    free(session.system);
    model_template_free(&model_template);
    model_file_close(&file);
    return rc;
}

int command_chat(int argc, char **argv) {
    Arguments arguments = {0};
    Config *config;
    CliResult cli;
    const Flag flags[] = {
        {"prompt", 'p', FLAG_TEXT, &arguments.prompt, "TEXT", "", "answer this one message and end"},
        {"once", 0, FLAG_SWITCH, &arguments.once, "", "", "answer one message, all of standard input, and end"},
        {"system", 's', FLAG_TEXT, &arguments.system, "TEXT", "", "the system message"},
        {"max-new-tokens", 'n', FLAG_OPTION, NULL, "N", "", "longest answer"},
        {"context", 'c', FLAG_INT, &arguments.context, "N", ">= 2", "tokens of a conversation (the model's, or 8192)"},
        {"drop-old", 0, FLAG_SWITCH, &arguments.drop_old, "", "", "forget the oldest turns when the context is full"},
        {"template", 0, FLAG_TEXT, &arguments.template_name, "NAME", "", "instead of the model's own"},
        {"tokenizer", 't', FLAG_TEXT, &arguments.tokenizer, "FILE", "", "instead of the model's own"},
        {"base", 0, FLAG_TEXT, &arguments.base, "MODEL", "", MODEL_FILE_BASE_HELP},
    };
    TRY(config_new(&config));
    CliSpec spec = {.usage = "MODEL [flags]",
                    .about = "Talks with a model in its own chat template. In a terminal with line editing and /help;\n"
                             "from a pipe, each line is a message and the answers go to stdout.",
                    .flags = flags,
                    .n_flags = sizeof flags / sizeof *flags,
                    .min_words = 1,
                    .max_words = 1,
                    .config = config,
                    .section = "generate",
                    .sections = "generate template"};
    int rc = cli_parse(&cli, &spec, argc, argv);
    if (rc == OK && !cli.helped) rc = talk(&arguments, config, cli.words[0]);
    config_free(config);
    return rc;
}
