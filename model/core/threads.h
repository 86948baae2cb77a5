/* OpenMP threads: how many, and how work is cut. Work is always cut into fixed, contiguous ranges, so that a result
 * depends on the number of threads at most, never on their timing. */
#ifndef CRIA_CORE_THREADS_H
#define CRIA_CORE_THREADS_H

#include <stddef.h>

/* Sets the number of threads for this process: `wanted`, or with 0 one per physical core this process may run on
 * (CRIA_THREADS overrides 0). Called once at start-up, before any kernel. */
void threads_init(int wanted);
int threads_count(void);
int threads_physical_cores(void); /* that the affinity mask allows */

/* The part [begin, end) of 0..n that thread `t` of `n_threads` owns; boundaries are multiples of `grain`. */
void threads_range(size_t n, size_t grain, int t, int n_threads, size_t *begin, size_t *end);

/* Runs body(context, begin, end, thread) on every non-empty part of 0..n, at most one part per thread, and waits.
 * With n <= grain it runs in the caller. */
typedef void (*ParallelBody)(void *context, size_t begin, size_t end, int thread);
void parallel_for(size_t n, size_t grain, ParallelBody body, void *context);

#endif
