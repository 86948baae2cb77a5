/* A virtual file driver for libhdf5 (H5FDpublic.h), through which it never touches a disk. libhdf5 does not recover
 * from a failed write: a file that cannot be closed brings the process down at exit. So when writing, what libhdf5
 * writes (its descriptions, a few KB) is collected here, and goes to the disk by our own hand; when reading, libhdf5 is
 * shown the very bytes whose CRC32C was checked. */
#ifndef CRIA_FORMATS_HDF5_MEMORY_H
#define CRIA_FORMATS_HDF5_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/formats/hdf5_type.h"

typedef struct {
    uint64_t offset;
    size_t size;
    unsigned char *bytes;
} Hdf5Piece;

/* A file in memory. Reading: `bytes`, `size`. Writing: pieces in the order they were written; later ones win. */
typedef struct {
    const unsigned char *bytes;
    size_t size;
    Hdf5Piece *pieces;
    size_t n, capacity;
    uint64_t end; /* the file's length, holes and reserved places included */
    bool failed;  /* memory ran out: the pieces are incomplete. libhdf5 is not told */
} Hdf5Memory;

/* A file-access property list and the driver's id, both to be released with hdf5_memory_release after the file is
 * closed. `memory` must outlive the file. */
int hdf5_memory_access(hid_t *access, hid_t *driver, Hdf5Memory *memory);
void hdf5_memory_release(hid_t access, hid_t driver);
void hdf5_memory_free(Hdf5Memory *memory);

#endif
