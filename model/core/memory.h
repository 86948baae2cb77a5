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
} MemoryUse;

/* In bytes. Where the file cannot be read (not Linux), all zero. */
MemoryUse memory_use(void);

#endif
