/* A bump allocator for things that live and die together. Blocks are 64-byte aligned (one cache line, one AVX-512
 * vector) and zeroed. */
#ifndef CRIA_CORE_ARENA_H
#define CRIA_CORE_ARENA_H

#include <stddef.h>

typedef struct ArenaBlock ArenaBlock;
typedef struct {
    ArenaBlock *blocks; /* newest first */
    size_t total;       /* bytes handed out */
} Arena;                /* {0} is an empty arena */

enum { ARENA_ALIGNMENT = 64 };

/* `bytes` rounded up to whole cache lines. */
static inline size_t arena_round_up(size_t bytes) {
    return (bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
}

/* NULL when memory is out (no error is set: use arena_new below, or ARENA_TRY). */
void *arena_alloc(Arena *arena, size_t bytes);
char *arena_strdup(Arena *arena, const char *text);
void arena_free(Arena *arena);

/* A zeroed array of n T, or an error from the calling function. */
#define ARENA_TRY(pointer, arena, n)                                                                                  \
    do {                                                                                                              \
        (pointer) = arena_alloc((arena), (size_t)(n) * sizeof *(pointer));                                            \
        if (!(pointer)) FAIL(ERR_FAILED, "out of memory: %zu bytes were asked for", (size_t)(n) * sizeof *(pointer)); \
    } while (0)

/* Large, page-aligned, zeroed memory of its own (mmap): returned to the system by pages_free. NULL when out. */
void *pages_alloc(size_t bytes);
void pages_free(void *pages, size_t bytes);
/* Asks for large pages, for memory that is read from end to end again and again. */
void pages_large(void *pages, size_t bytes);
/* Gives the memory of the whole pages within back to the system; they read as zeros then. */
void pages_discard(void *first, size_t bytes);

#endif
