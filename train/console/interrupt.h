/* Ctrl-C, SIGTERM and a terminal that closes (SIGHUP) ask a run to save and stop. The loop looks at the flag between
 * steps; a second Ctrl-C ends the process at once, saving nothing, with status 1. */
#ifndef CRIA_TRAIN_INTERRUPT_H
#define CRIA_TRAIN_INTERRUPT_H

#include <stdbool.h>

/* From here until interrupt_restore, these signals set the flag (which is cleared first). `notice` (or NULL) is what
 * the first Ctrl-C says on stderr, at once; it must outlive the run. */
void interrupt_install(const char *notice);
void interrupt_restore(void);

bool interrupt_requested(void);
const char *interrupt_name(void); /* "SIGINT", "SIGTERM", "SIGHUP", or "" */

#endif
