/* Blocks of at least 64 KiB in a list; an allocation never moves. */
#include "model/core/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct ArenaBlock {
    ArenaBlock *next;
    size_t size, used;
    char *bytes;
};

enum { BLOCK_SIZE = 64 * 1024 };

void *arena_alloc(Arena *arena, size_t bytes) {
    if (bytes > SIZE_MAX / 2) return NULL;
    size_t size = arena_round_up(bytes ? bytes : 1);
    ArenaBlock *block = arena->blocks;
    if (!block || block->size - block->used < size) {
        block = malloc(sizeof *block);
        if (!block) return NULL;
        block->size = size > BLOCK_SIZE ? size : BLOCK_SIZE;
        block->used = 0;
        block->bytes = aligned_alloc(ARENA_ALIGNMENT, block->size);
        if (!block->bytes) {
            free(block);
            return NULL;
        }
        block->next = arena->blocks;
        arena->blocks = block;
    }
    void *result = block->bytes + block->used;
    block->used += size;
    arena->total += size;
    return memset(result, 0, size);
}

char *arena_strdup(Arena *arena, const char *text) {
    size_t size = strlen(text) + 1;
    char *copy = arena_alloc(arena, size);
    return copy ? memcpy(copy, text, size) : NULL;
}

void arena_free(Arena *arena) {
    while (arena->blocks) {
        ArenaBlock *next = arena->blocks->next;
        free(arena->blocks->bytes);
        free(arena->blocks);
        arena->blocks = next;
    }
    arena->total = 0;
}

void *pages_alloc(size_t bytes) {
    void *pages = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

void pages_free(void *pages, size_t bytes) {
    if (pages) munmap(pages, bytes ? bytes : 1);
}

void pages_discard(void *first, size_t bytes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = ((uintptr_t)first + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)first + bytes) / page * page;
    if (begin < end) madvise((char *)first + (begin - (uintptr_t)first), end - begin, MADV_DONTNEED);
}

void pages_large(void *pages, size_t bytes) {
    enum { WORTH = 4 << 20 };
    if (pages && bytes >= WORTH) madvise(pages, bytes, MADV_HUGEPAGE);
}
