/* See child.h. */
#include "train/rounds/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model/core/error.h"

/* exec keeps this program even where its file has been replaced meanwhile. */
static const char this_program[] = "/proc/self/exe";

enum { NOT_STARTED = 127, NAME_SIZE = 4096 };

/* ---- signals ---- */

static volatile sig_atomic_t running, requested; /* the child's process id, the signal's number; 0: none */
static const int passed_on[] = {SIGINT, SIGTERM, SIGHUP};
enum { N_PASSED_ON = sizeof passed_on / sizeof *passed_on };
static struct sigaction before[N_PASSED_ON];

static void pass_on(int number) {
    int saved = errno;
    requested = number;
    if (running > 0) kill((pid_t)running, number);
    errno = saved;
}

/* A hang-up that nohup(1) has ignored stays so, for the child too; a shell's SIG_IGN of what it starts in the
 * background does not, as in a single stage (train/console/interrupt.c). */
void children_begin(void) {
    struct sigaction action = {.sa_handler = pass_on, .sa_flags = SA_RESTART};
    requested = 0;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < N_PASSED_ON; i++) {
        sigaction(passed_on[i], NULL, &before[i]);
        if (passed_on[i] != SIGHUP || before[i].sa_handler != SIG_IGN) sigaction(passed_on[i], &action, NULL);
    }
}

void children_end(void) {
    for (int i = 0; i < N_PASSED_ON; i++) sigaction(passed_on[i], &before[i], NULL);
}

/* ---- the child ---- */

/* Between fork and exec: what signal-safety(7) allows. */
static void become(const ChildOptions *options, const char *program, char *const *words, pid_t parent, int input,
                   const sigset_t *mask) {
    for (int i = 0; i < N_PASSED_ON; i++) {
        struct sigaction now;
        if (sigaction(passed_on[i], NULL, &now) == 0 && now.sa_handler == pass_on) signal(passed_on[i], SIG_DFL);
    }
    sigprocmask(SIG_SETMASK, mask, NULL);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, *options->launcher ? SIGTERM : SIGKILL); /* a launcher ends its ranks */
    if (getppid() != parent) _exit(NOT_STARTED);                     /* it died before that */
    if (options->lock >= 0) fcntl(options->lock, F_SETFD, 0);
    dup2(input, STDIN_FILENO);
    dup2(options->output, STDOUT_FILENO);
    execv(program, words);
    _exit(NOT_STARTED);
}

/* /bin/sh -c 'exec LAUNCHER "$@"' sh CRIA ARGUMENTS… */
static int launched_words(char ***out, char command[NAME_SIZE], char name[NAME_SIZE], const ChildOptions *options) {
    static char shell[] = "sh", flag[] = "-c";
    size_t n = 0;
    while (options->arguments[n]) n++;
    ssize_t length = readlink(this_program, name, NAME_SIZE - 1);
    if (length <= 0) FAIL(ERR_FAILED, "%s: readlink: %s", this_program, strerror(errno));
    name[length] = '\0';
    if (snprintf(command, NAME_SIZE, "exec %s \"$@\"", options->launcher) >= NAME_SIZE)
        FAIL(ERR_USAGE, "rounds.launcher: longer than %d bytes", NAME_SIZE);
    char **words = calloc(n + 6, sizeof *words);
    if (!words) FAIL(ERR_FAILED, "out of memory");
    words[0] = words[3] = shell;
    words[1] = flag;
    words[2] = command;
    words[4] = name;
    memcpy(words + 5, options->arguments, n * sizeof *words);
    *out = words;
    return OK;
}

static int own_words(char ***out, const ChildOptions *options) {
    static char name[] = "cria";
    size_t n = 0;
    while (options->arguments[n]) n++;
    char **words = calloc(n + 2, sizeof *words);
    if (!words) FAIL(ERR_FAILED, "out of memory");
    words[0] = name;
    memcpy(words + 1, options->arguments, n * sizeof *words);
    *out = words;
    return OK;
}

/* Before it watches for signals itself, while it opens its files, one that is passed on ends it: that is no failure. */
static int ended(int status, const char *command) {
    if (requested && !(WIFEXITED(status) && WEXITSTATUS(status) == OK)) FAIL(ERR_INTERRUPTED, "interrupted");
    if (WIFSIGNALED(status))
        FAIL(ERR_FAILED, "cria %s was ended by signal %d (%s)%s", command, WTERMSIG(status),
             strsignal(WTERMSIG(status)), WTERMSIG(status) == SIGKILL ? "; is there enough memory?" : "");
    int code = WEXITSTATUS(status);
    if (code == OK) return OK;
    if (code == NOT_STARTED) FAIL(ERR_FAILED, "cria %s could not be started", command);
    error_set(code, __FILE__, __LINE__, "cria %s ended with status %d", command, code);
    error_mark_reported();
    return code;
}

static int run(const ChildOptions *options, const char *program, char *const *words, int input) {
    sigset_t all, mask;
    int status = 0, code = 0;
    pid_t parent = getpid(), child = 0;
    bool stopped = false;
    sigemptyset(&all);
    for (int i = 0; i < N_PASSED_ON; i++) sigaddset(&all, passed_on[i]);
    sigprocmask(SIG_BLOCK, &all, &mask); /* none is lost between fork and `running` */
    stopped = requested != 0;
    if (!stopped) {
        child = fork();
        code = errno;
        if (child == 0) become(options, program, words, parent, input, &mask);
        if (child > 0) setpgid(child, child);
        if (child > 0) running = (sig_atomic_t)child;
    }
    sigprocmask(SIG_SETMASK, &mask, NULL);
    if (stopped) FAIL(ERR_INTERRUPTED, "interrupted");
    if (child < 0) FAIL(ERR_FAILED, "fork: %s", strerror(code));
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    running = 0;
    return ended(status, options->arguments[0]);
}

int child_run(const ChildOptions *options) {
    static const char shell[] = "/bin/sh";
    char command[NAME_SIZE], name[NAME_SIZE], **words;
    bool launched = *options->launcher != '\0';
    TRY(launched ? launched_words(&words, command, name, options) : own_words(&words, options));
    int input = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int rc = input >= 0 ? run(options, launched ? shell : this_program, words, input)
                        : error_set(ERR_FAILED, __FILE__, __LINE__, "/dev/null: open: %s", strerror(errno));
    if (input >= 0) close(input);
    free(words);
    return rc;
}
