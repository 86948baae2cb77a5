/* The program: cria COMMAND … What is written here once, for every command: start-up, the one line that reports an
 * error, and the exit status. */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "train/commands.h"

/* stdout holds results: a full disk or a closed pipe must not pass for success. */
static int flush_results(void) {
    errno = 0;
    if (fflush(stdout) != 0 || ferror(stdout)) FAIL(ERR_FAILED, "writing to standard output: %s", strerror(errno));
    return OK;
}

static int run(int argc, char **argv) {
    char help[] = "help", *help_argv[] = {help, NULL};
    if (argc < 2) {
        commands_list(stderr);
        FAIL(ERR_USAGE, "no command was given");
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("cria %s\n", CRIA_VERSION);
        return flush_results();
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        TRY(command_help(1, help_argv));
        return flush_results();
    }
    const Command *command;
    TRY(command_find(&command, argv[1]));
    threads_init(0);
    TRY(kernels_select("auto"));
    TRY(command->run(argc - 1, argv + 1));
    return flush_results();
}

int main(int argc, char **argv) {
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow further is an error of write(2), to be told, not a death */
    const char *variable = getenv("CRIA_DEBUG");
    if (variable && *variable && strcmp(variable, "0") != 0) log_set_level(LOG_DEBUG);
    int status = run(argc, argv);
    if (status != OK) command_report(status);
    return status;
}
