/* A file being written: bytes go to PATH.tmp, and appear under PATH, durable, at output_commit. */
#ifndef CRIA_CORE_OUTPUT_H
#define CRIA_CORE_OUTPUT_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    char *path, *temporary;
    int fd;
    uint64_t offset; /* of the next output_write */
} Output;

/* A file's length and CRC32C. */
typedef struct {
    uint64_t size;
    uint32_t crc32c;
} FileSum;

/* Begins PATH.tmp, empty. Where it fails there is nothing to abandon. */
int output_begin(Output *output, const char *path);
int output_resize(Output *output, uint64_t size); /* what was not written reads as zeros */
int output_write(Output *output, const void *bytes, size_t size);
int output_sync(Output *output); /* fsync; a reader of output->temporary then sees what the disk has */
/* fsync, close, rename to PATH, fsync of the directory. Releases `output` whatever happens. */
int output_commit(Output *output);
/* Closes and removes PATH.tmp; harmless after output_commit and on {0} with fd -1. */
void output_abandon(Output *output);

/* Reads the file as the disk holds it: cached pages are dropped first, where the kernel agrees. */
int file_sum(FileSum *sum, const char *path);

#endif
