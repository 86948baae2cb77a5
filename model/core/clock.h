/* The clock that durations are measured with. */
#ifndef CRIA_CORE_CLOCK_H
#define CRIA_CORE_CLOCK_H

#include <time.h>

/* Seconds of the monotonic clock: only differences mean anything. */
static inline double clock_seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

#endif
