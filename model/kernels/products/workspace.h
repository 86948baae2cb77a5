/* The memory in which the products pack their operands: made once, when a table with products is selected, since
 * kernels do not allocate. Pages that no product touches cost nothing. */
#ifndef CRIA_KERNELS_PRODUCTS_WORKSPACE_H
#define CRIA_KERNELS_PRODUCTS_WORKSPACE_H

#include <stdbool.h>
#include <stddef.h>

enum { WORKSPACE_THREAD = 2 << 20, WORKSPACE_SHARED = 9 << 20 }; /* bytes: a thread's own, and for all threads */

typedef struct {
    int threads;  /* that have room of their own */
    char *shared; /* WORKSPACE_SHARED */
    char *own;    /* [threads][WORKSPACE_THREAD] */
} Workspace;

/* Room for as many threads as there are; false, and a warning is logged, when memory is out. */
bool workspace_reserve(void);
Workspace workspace(void);
/* Makes all of it resident, as products with matrices that are not packed do. */
void workspace_touch(void);

#endif
