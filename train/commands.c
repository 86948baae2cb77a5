/* Looking commands up, and `cria help`. */
#include "train/commands.h"

#include <stdio.h>
#include <string.h>

#include "configs/config.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/text.h"

static const Command table[] = {
#define COMMAND(name, function, help) {name, function, help},
#include "train/commands.def"
#undef COMMAND
};
enum { N_COMMANDS = sizeof table / sizeof *table };

const Command *command_table(size_t *n) {
    *n = N_COMMANDS;
    return table;
}

int command_find(const Command **command, const char *name) {
    const char *names[N_COMMANDS];
    for (size_t i = 0; i < N_COMMANDS; i++) {
        names[i] = table[i].name;
        if (strcmp(name, names[i]) == 0) {
            *command = &table[i];
            return OK;
        }
    }
    const char *nearest = text_nearest(name, names, N_COMMANDS);
    if (nearest) FAIL(ERR_USAGE, "there is no command '%s'; did you mean '%s'?", name, nearest);
    FAIL(ERR_USAGE, "there is no command '%s'; 'cria help' lists them", name);
}

void command_report(int status) {
    if (error_is_reported()) return;
    if (status == ERR_INTERRUPTED)
        log_info("%s", error_text()[0] ? error_text() : "interrupted");
    else
        log_error("%s", error_text()[0] ? error_text() : "no reason was given (please report this as a bug)");
    log_debug("%s", error_trace_text());
    error_mark_reported();
}

void commands_list(FILE *out) {
    int width = 0;
    for (size_t i = 0; i < N_COMMANDS; i++)
        if ((int)strlen(table[i].name) > width) width = (int)strlen(table[i].name);
    fprintf(out,
            "cria %s: train, fine-tune and run Llama models on CPUs\n\n"
            "usage: cria COMMAND [CONFIG.yaml] [key=value ...] [--flags]\n\n",
            CRIA_VERSION);
    for (size_t i = 0; i < N_COMMANDS; i++) fprintf(out, "  %-*s  %s\n", width, table[i].name, table[i].help);
    fprintf(out,
            "\n'cria help COMMAND' or 'cria COMMAND --help' explains one; 'cria help options' lists every\n"
            "key of a config. 'cria --version' prints the version.\n"
            "Exit status: 0 done, 1 failed, 2 wrong usage or config, 3 refused (bad data, does not fit),\n"
            "130 interrupted with a checkpoint saved. CRIA_DEBUG=1 in the environment shows where an error arose.\n");
}

/* `cria help options`: the whole option table. */
static int list_options(void) {
    Text text = {0};
    config_help(&text, NULL);
    int rc = text_check(&text);
    if (rc == OK) fputs(text.bytes, stdout);
    text_free(&text);
    return rc;
}

int command_help(int argc, char **argv) {
    if (argc > 2) FAIL(ERR_USAGE, "'cria help' takes one command, not %d", argc - 1);
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        commands_list(stdout);
        return OK;
    }
    if (strcmp(argv[1], "options") == 0) return list_options();
    const Command *command;
    TRY(command_find(&command, argv[1]));
    char flag[] = "--help", *arguments[] = {argv[1], flag, NULL};
    TRY(command->run(2, arguments));
    return OK;
}
