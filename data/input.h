/* A file's bytes, decompressed as they are read: plain, .gz (RFC 1952, also several members) or .zst (RFC 8878, also
 * several frames), told by the ending of the name. */
#ifndef CRIA_DATA_INPUT_H
#define CRIA_DATA_INPUT_H

#include <stddef.h>
#include <stdint.h>

/* What a token cache remembers of a source file, to notice that it changed. */
typedef struct {
    uint64_t size;
    int64_t modified, changed; /* mtime and ctime in nanoseconds */
    uint32_t crc;              /* CRC32C of the file's own (compressed) bytes */
    uint32_t unused;
} FileStamp;

typedef struct Input Input;

int input_open(Input **input, const char *path);

/* Up to `capacity` bytes into `out`; *n is 0 at the end only. ERR_REFUSED: the compressed data is damaged or cut short
 * (the text does not name the file: the caller does, with its line); ERR_FAILED: the file cannot be read. */
int input_read(Input *input, char *out, size_t capacity, size_t *n);

/* Reads what is left of the file (after damage, say) without decompressing it, so that the stamp is whole. */
int input_finish(Input *input, FileStamp *stamp);

uint64_t input_position(const Input *input); /* bytes of the file read so far */
void input_close(Input *input);

/* Size and times of a file now; `crc` is left 0. */
int file_stamp(FileStamp *stamp, const char *path);

#endif
