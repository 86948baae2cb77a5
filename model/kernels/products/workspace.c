/* One mapping, kept for the life of the process; it grows when a table is selected for more threads than before. */
#include "model/kernels/products/workspace.h"

#include "model/core/arena.h"
#include "model/core/log.h"
#include "model/core/threads.h"

static Workspace current;

static size_t workspace_bytes(int threads) {
    return WORKSPACE_SHARED + (size_t)threads * WORKSPACE_THREAD;
}

bool workspace_reserve(void) {
    int threads = threads_count();
    if (current.threads >= threads) return true;
    char *pages = pages_alloc(workspace_bytes(threads));
    if (!pages) {
        log_warning("out of memory: %zu bytes for the products of bf16; slower ones are used",
                    workspace_bytes(threads));
        return false;
    }
    if (current.threads > 0) pages_free(current.shared, workspace_bytes(current.threads));
    current = (Workspace){threads, pages, pages + WORKSPACE_SHARED};
    return true;
}

void workspace_touch(void) {
    enum { PAGE = 4096 };
    for (size_t at = 0; current.threads > 0 && at < workspace_bytes(current.threads); at += PAGE)
        ((volatile char *)current.shared)[at] = 0;
}

Workspace workspace(void) {
    return current;
}
