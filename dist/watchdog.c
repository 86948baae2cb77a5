/* One thread that counts, and a signal by which every other thread prints its own stack.
 *
 * backtrace(3) shows the calling thread only, so the watchdog sends each thread of /proc/self/task a real-time signal,
 * one after the other, and waits until its handler has written. backtrace_symbols_fd needs no memory; names appear for
 * functions the linker exports (-rdynamic), for static ones the offset, which addr2line -e turns into file and line. */
#include "dist/watchdog.h"

#include <dirent.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "model/core/error.h"

enum { MAX_FRAMES = 64, TICKS_PER_LIMIT = 20, ANSWER_MILLISECONDS = 1000 };
static const double LONGEST_TICK = 1.0; /* seconds */

struct Watchdog {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stopping; /* under lock */
    double seconds;
    atomic_uint_fast64_t pats;
    _Atomic(const char *) doing;
    struct sigaction previous;
};

/* A signal handler has no argument of ours: where to write, and how many threads have answered. */
static atomic_int stack_fd = -1;
static atomic_int stacks_written;

/* SIGRTMIN is a function call; the first ones belong to the C library and to debuggers. */
static int stack_signal(void) {
    return SIGRTMIN + 5;
}

static void write_text(int fd, const char *text) {
    ssize_t written = write(fd, text, strlen(text));
    (void)written; /* stderr may be closed; the abort follows all the same */
}

static void write_own_stack(int fd) {
    void *frames[MAX_FRAMES];
    int n = backtrace(frames, MAX_FRAMES);
    backtrace_symbols_fd(frames, n, fd);
}

static void on_stack_signal(int signal_number) {
    (void)signal_number;
    int kept = errno;
    write_own_stack(atomic_load(&stack_fd));
    atomic_fetch_add(&stacks_written, 1);
    errno = kept;
}

static void sleep_milliseconds(long milliseconds) {
    struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

static void read_thread_name(char name[64], int tid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/comm", tid);
    snprintf(name, 64, "?");
    FILE *file = fopen(path, "r");
    if (!file) return;
    if (fscanf(file, "%63[^\n]", name) != 1) snprintf(name, 64, "?");
    fclose(file);
}

static void print_thread(int tid, int fd) {
    char name[64], line[160];
    read_thread_name(name, tid);
    snprintf(line, sizeof line, "thread %d (%s)%s:\n", tid, name, tid == getpid() ? ", the main thread" : "");
    write_text(fd, line);
    if (tid == (int)syscall(SYS_gettid)) {
        write_own_stack(fd);
        return;
    }
    int before = atomic_load(&stacks_written);
    if (syscall(SYS_tgkill, getpid(), tid, stack_signal()) != 0) return; /* ended meanwhile */
    for (int waited = 0; waited < ANSWER_MILLISECONDS && atomic_load(&stacks_written) == before; waited++)
        sleep_milliseconds(1);
    if (atomic_load(&stacks_written) == before) write_text(fd, "  (does not answer signals)\n");
}

void watchdog_print_stacks(Watchdog *watchdog, int fd) {
    (void)watchdog; /* proves that the handler is in place */
    atomic_store(&stack_fd, fd);
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks) {
        print_thread(getpid(), fd);
        return;
    }
    for (const struct dirent *entry = readdir(tasks); entry; entry = readdir(tasks)) {
        int tid = atoi(entry->d_name);
        if (tid > 0) print_thread(tid, fd);
    }
    closedir(tasks);
}

static void give_up(Watchdog *watchdog) {
    char line[320];
    const char *doing = atomic_load(&watchdog->doing);
    snprintf(line, sizeof line, "watchdog: process %d gave no sign of life for %g s; last: %.200s; its stacks:\n",
             (int)getpid(), watchdog->seconds, doing ? doing : "start");
    write_text(STDERR_FILENO, line);
    watchdog_print_stacks(watchdog, STDERR_FILENO);
    write_text(STDERR_FILENO, "watchdog: aborting\n");
    abort();
}

/* Waits one tick; true when asked to stop. */
static bool wait_tick(Watchdog *watchdog, double seconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    long nanoseconds = until.tv_nsec + (long)(seconds * 1e9);
    until.tv_sec += nanoseconds / 1000000000;
    until.tv_nsec = nanoseconds % 1000000000;
    pthread_mutex_lock(&watchdog->lock);
    int rc = 0;
    while (!watchdog->stopping && rc == 0) rc = pthread_cond_timedwait(&watchdog->wake, &watchdog->lock, &until);
    bool stopping = watchdog->stopping;
    pthread_mutex_unlock(&watchdog->lock);
    return stopping;
}

static void *watch(void *context) {
    Watchdog *watchdog = context;
    double tick = watchdog->seconds / TICKS_PER_LIMIT, silent = 0;
    if (tick > LONGEST_TICK) tick = LONGEST_TICK;
    uint_fast64_t seen = atomic_load(&watchdog->pats);
    while (!wait_tick(watchdog, tick)) {
        uint_fast64_t pats = atomic_load(&watchdog->pats);
        silent = pats == seen ? silent + tick : 0;
        seen = pats;
        if (silent >= watchdog->seconds) give_up(watchdog);
    }
    return NULL;
}

/* The thread takes no signals meant for the program (Ctrl-C belongs to the main thread). */
static int start_thread(Watchdog *watchdog) {
    sigset_t all, kept;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &kept);
    int rc = pthread_create(&watchdog->thread, NULL, watch, watchdog);
    pthread_sigmask(SIG_SETMASK, &kept, NULL);
    if (rc != 0) FAIL(ERR_FAILED, "watchdog: starting its thread: %s", strerror(rc));
    pthread_setname_np(watchdog->thread, "watchdog");
    return OK;
}

static int install(Watchdog *watchdog) {
    void *frame;
    backtrace(&frame, 1); /* loads what it needs now: not inside a signal handler */
    struct sigaction action = {.sa_handler = on_stack_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    if (sigaction(stack_signal(), &action, &watchdog->previous) != 0)
        FAIL(ERR_FAILED, "watchdog: installing its signal: %s", strerror(errno));
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&watchdog->lock, NULL);
    pthread_cond_init(&watchdog->wake, &clock);
    pthread_condattr_destroy(&clock);
    return OK;
}

static void uninstall(Watchdog *watchdog) {
    sigaction(stack_signal(), &watchdog->previous, NULL);
    pthread_mutex_destroy(&watchdog->lock);
    pthread_cond_destroy(&watchdog->wake);
}

int watchdog_start(Watchdog **out, double seconds) {
    int rc;
    *out = NULL;
    if (!(seconds > 0 && seconds < 1e9)) FAIL(ERR_USAGE, "watchdog: %g seconds; a positive number is needed", seconds);
    Watchdog *watchdog = calloc(1, sizeof *watchdog);
    if (!watchdog) FAIL(ERR_FAILED, "watchdog: out of memory");
    watchdog->seconds = seconds;
    TRY_TO(failed, install(watchdog));
    rc = start_thread(watchdog);
    if (rc != OK) {
        uninstall(watchdog);
        goto failed;
    }
    *out = watchdog;
    return OK;
failed:
    free(watchdog);
    return rc;
}

void watchdog_stop(Watchdog *watchdog) {
    if (!watchdog) return;
    pthread_mutex_lock(&watchdog->lock);
    watchdog->stopping = true;
    pthread_cond_signal(&watchdog->wake);
    pthread_mutex_unlock(&watchdog->lock);
    pthread_join(watchdog->thread, NULL);
    uninstall(watchdog);
    free(watchdog);
}

void watchdog_pat(Watchdog *watchdog, const char *doing) {
    if (!watchdog) return;
    atomic_store(&watchdog->doing, doing);
    atomic_fetch_add(&watchdog->pats, 1);
}
