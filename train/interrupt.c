/* The handler does only what signal-safety(7) allows: it sets a flag, or calls _exit. Signals are process-wide, so this
 * state is too. */
#include "train/interrupt.h"

#include <signal.h>
#include <stddef.h>
#include <unistd.h>

#include "model/core/error.h"

static volatile sig_atomic_t requested; /* the signal's number; 0: none */

static void handle(int number) {
    if (number == SIGINT && requested == SIGINT) _exit(ERR_INTERRUPTED);
    requested = number;
}

void interrupt_install(void) {
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART}; /* a save in progress is not disturbed */
    requested = 0;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

void interrupt_restore(void) {
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
}

bool interrupt_requested(void) {
    return requested != 0;
}

const char *interrupt_name(void) {
    return requested == SIGINT ? "SIGINT" : requested == SIGTERM ? "SIGTERM" : "";
}
