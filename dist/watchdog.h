/* A watch over a run that may hang (a rank that waits for another that will never come): when no sign of life is given
 * for a while it prints the stacks of all threads to stderr and aborts the process, whereupon mpirun ends the job. So
 * a hang is a failure with stacks, and never a silent wait.
 *
 * Time is counted in the watchdog's own wake-ups: a process that was stopped and continued has not hung. */
#ifndef CRIA_DIST_WATCHDOG_H
#define CRIA_DIST_WATCHDOG_H

typedef struct Watchdog Watchdog;

/* Starts the watch; one per process. `seconds` must exceed the longest step between two signs of life. */
int watchdog_start(Watchdog **watchdog, double seconds);
void watchdog_stop(Watchdog *watchdog);

/* A sign of life. `doing` says what begins now ("all-reduce of step 12"): it is shown when nothing follows, and must
 * stay valid until the next one (usually a literal). NULL watchdog: nothing is watched. */
void watchdog_pat(Watchdog *watchdog, const char *doing);

/* Prints the stacks of all other threads of this process and of the caller to file descriptor `fd`. Needs a running
 * watchdog, whose signal handler does the work in each thread. */
void watchdog_print_stacks(Watchdog *watchdog, int fd);

#endif
