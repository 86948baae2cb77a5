/* What this process holds of the machine's memory, from /proc/self/status. */
#ifndef CRIA_CORE_MEMORY_H
#define CRIA_CORE_MEMORY_H

#include <stdint.h>

typedef struct {
    uint64_t resident;  /* VmRSS: all of the below, now */
    uint64_t peak;      /* VmHWM: the largest resident so far */
    uint64_t anonymous; /* RssAnon: heap, arenas, stacks */
    uint64_t file;      /* RssFile: mapped files and code; the system can take these back */
    uint64_t shared;    /* RssShmem: shared memory, MPI's included */
    uint64_t mapped;    /* VmSize: address space */
    uint64_t stack;     /* VmStk: of it, the main thread's stack, which grows as deep as calls have gone */
} MemoryUse;

/* In bytes. Where the file cannot be read (not Linux), all zero. */
MemoryUse memory_use(void);

/* `peak` counts from here on (proc(5), /proc/PID/clear_refs); without effect where the system does not allow it. */
void memory_reset_peak(void);

/* Bytes that processes may still take without pushing others out: MemAvailable of /proc/meminfo, or what the control
 * groups this process is in leave of their limits, where that is less. 0: not known. */
uint64_t memory_available(void);

#endif
