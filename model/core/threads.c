/* Thread count from the affinity mask and the kernel's topology files; static ranges over OpenMP. */
#include "model/core/threads.h"

#include <omp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static int thread_count = 1;

/* The first CPU among the hardware threads of `cpu`'s core: two CPUs with the same answer share a core. */
static int first_sibling(int cpu) {
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *file = fopen(path, "r");
    int first = cpu;
    if (file) {
        if (fscanf(file, "%d", &first) != 1) first = cpu;
        fclose(file);
    }
    return first;
}

int threads_physical_cores(void) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return omp_get_num_procs();
    bool seen[CPU_SETSIZE] = {false};
    int cores = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET((size_t)cpu, &allowed)) continue;
        int core = first_sibling(cpu);
        if (core < 0 || core >= CPU_SETSIZE) core = cpu;
        if (!seen[core]) cores++;
        seen[core] = true;
    }
    return cores > 0 ? cores : 1;
}

void threads_init(int wanted) {
    const char *environment = getenv("CRIA_THREADS");
    if (wanted <= 0 && environment) wanted = atoi(environment);
    thread_count = wanted > 0 ? wanted : threads_physical_cores();
    omp_set_dynamic(0);
    omp_set_num_threads(thread_count);
}

int threads_count(void) {
    return thread_count;
}

void threads_range(size_t n, size_t grain, int t, int n_threads, size_t *begin, size_t *end) {
    size_t grains = (n + grain - 1) / grain, count = (size_t)n_threads, index = (size_t)t;
    size_t first = grains * index / count * grain, last = grains * (index + 1) / count * grain;
    *begin = first < n ? first : n;
    *end = last < n ? last : n;
}

void parallel_for(size_t n, size_t grain, ParallelBody body, void *context) {
    if (n == 0) return;
    if (grain == 0) grain = 1;
    if (thread_count == 1 || n <= grain || omp_in_parallel()) {
        body(context, 0, n, 0);
        return;
    }
#pragma omp parallel num_threads(thread_count)
    {
        size_t begin, end;
        int thread = omp_get_thread_num();
        threads_range(n, grain, thread, omp_get_num_threads(), &begin, &end);
        if (begin < end) body(context, begin, end, thread);
    }
}
