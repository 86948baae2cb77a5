/* Ctrl-C and SIGTERM ask a run to save and stop. The loop looks at the flag between steps; a second Ctrl-C ends the
 * process at once, saving nothing. */
#ifndef CRIA_TRAIN_INTERRUPT_H
#define CRIA_TRAIN_INTERRUPT_H

#include <stdbool.h>

/* From here until interrupt_restore, SIGINT and SIGTERM set the flag (which is cleared first). */
void interrupt_install(void);
void interrupt_restore(void);

bool interrupt_requested(void);
const char *interrupt_name(void); /* "SIGINT", "SIGTERM", or "" */

#endif
