/* The file that cria ghost writes, one record a line, and goes on with after it was stopped. */
#ifndef CRIA_TRAIN_GHOST_FILE_H
#define CRIA_TRAIN_GHOST_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "model/core/text.h"

typedef struct {
    int fd;
    const char *path; /* the caller's */
    uint64_t *ids;    /* of its lines, in order; the file's */
    size_t n;
} GhostFile;

/* Opens or makes it. A last line that was cut short is taken off; anything that is no record of cria ghost is
 * ERR_REFUSED. One writer at a time. ghost_file_close, whatever happens. */
int ghost_file_open(GhostFile *file, const char *path);
int ghost_file_append(GhostFile *file, const Text *lines); /* durable when it returns */
void ghost_file_close(GhostFile *file);

/* What each line begins with, 16 hexadecimal digits, and a quote. */
#define GHOST_LINE "{\"ghost\": \""

#endif
