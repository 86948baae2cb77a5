/* Files: whole reads, mappings, and writes that are complete or absent. Every error names the path and the failing
 * call. */
#ifndef CRIA_CORE_FILE_H
#define CRIA_CORE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Reads a whole file into malloc'd memory with a NUL after it (not counted in *size). Refuses files above `limit`
 * bytes when limit is not 0. */
int file_read(char **bytes, size_t *size, const char *path, size_t limit);

typedef struct {
    const unsigned char *bytes;
    size_t size;
} FileMap; /* read-only, private; an empty file maps to size 0 */
int file_map(FileMap *map, const char *path);
void file_unmap(FileMap *map);
/* Begins to read these bytes of a mapping into memory, and does not wait. */
void file_expect(const void *bytes, size_t size);
/* The pages of a mapping that lie within these bytes count no longer as this process's memory; they can still be read.
 */
void file_forget(const void *bytes, size_t size);

/* Writes path.tmp, fsyncs and closes it, renames it to path and fsyncs the directory: after any crash `path` holds
 * either what it held before or all of the new bytes. */
int file_write_atomic(const char *path, const void *bytes, size_t size);

/* The pieces of the above, for writers that make files themselves (HDF5): make an existing file, or the entries of a
 * directory, durable. */
int file_sync(const char *path);
int directory_sync(const char *path);
int directory_sync_parent(const char *path);       /* the directory that holds `path` */
int file_sync_and_close(int fd, const char *path); /* closes whatever happens; `path` is for messages */
int file_rename(const char *from, const char *to); /* then fsyncs the directory of `to` */

int directory_make(const char *path);        /* with parents; an existing directory is fine */
int directory_make_parent(const char *path); /* the directory that is to hold `path` */
int directory_remove(const char *path);      /* with everything in it; absent is fine */
bool file_exists(const char *path);
bool directory_exists(const char *path);
int file_size(uint64_t *size, const char *path);
/* Modification time in nanoseconds, for caches. */
int file_modified(int64_t *nanoseconds, const char *path);

/* Names in a directory (without . and ..), sorted bytewise; free each and the array with names_free. */
int directory_list(char ***names, size_t *n, const char *path);
/* Paths matching a glob, sorted; a pattern without wildcards must exist. No match is an error. */
int glob_list(char ***paths, size_t *n, const char *pattern);
void names_free(char **names, size_t n);

/* malloc'd "a/b". NULL when memory is out. */
char *path_join(const char *a, const char *b);
const char *path_base(const char *path); /* the part after the last slash */

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4; CRC of "123456789" is 0xE3069283). Start with 0 and chain. */
uint32_t crc32c(uint32_t crc, const void *bytes, size_t size);
int file_crc32c(uint32_t *crc, uint64_t *size, const char *path);

#endif
