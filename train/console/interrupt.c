/* The handler does only what signal-safety(7) allows: it sets a flag, or calls _exit. Signals are process-wide, so this
 * state is too. */
#include "train/console/interrupt.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/log.h"

static volatile sig_atomic_t requested; /* the signal's number; 0: none */
static const char *on_ctrl_c;           /* set while no handler is installed */

static void handle(int number) {
    int before = errno;
    if (number == SIGINT && requested == SIGINT) _exit(ERR_FAILED); /* ERR_INTERRUPTED promises a checkpoint */
    requested = number;
    if (number == SIGINT && on_ctrl_c && !log_is_quiet_rank()) {
        ssize_t written = write(STDERR_FILENO, on_ctrl_c, strlen(on_ctrl_c));
        (void)written; /* a closed stderr must not stop a run */
    }
    errno = before;
}

static const int asking[] = {SIGINT, SIGTERM, SIGHUP};
enum { N_ASKING = sizeof asking / sizeof *asking };

/* A terminal that closes asks as well, unless nohup(1) has it ignored. */
void interrupt_install(const char *notice) {
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART}, before; /* a save is not disturbed */
    requested = 0;
    on_ctrl_c = notice;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < N_ASKING; i++)
        if (asking[i] != SIGHUP || sigaction(SIGHUP, NULL, &before) != 0 || before.sa_handler != SIG_IGN)
            sigaction(asking[i], &action, NULL);
}

void interrupt_restore(void) {
    struct sigaction now;
    for (int i = 0; i < N_ASKING; i++)
        if (sigaction(asking[i], NULL, &now) == 0 && now.sa_handler == handle) signal(asking[i], SIG_DFL);
}

bool interrupt_requested(void) {
    return requested != 0;
}

const char *interrupt_name(void) {
    return requested == SIGINT ? "SIGINT" : requested == SIGTERM ? "SIGTERM" : requested == SIGHUP ? "SIGHUP" : "";
}
