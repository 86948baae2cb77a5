/* manifest.json: what a checkpoint's folder must hold, byte for byte.
 *
 *   {
 *     "format": "cria checkpoint",
 *     "version": 1,
 *     "step": 200,
 *     "files": [
 *       {"name": "model.h5", "size": 1066816, "crc32c": "d2ad12d3"}
 *     ],
 *     "crc32c": "0c9f5bd1"
 *   }
 *
 * The last key is the CRC32C of every byte before its line; that line and the closing brace have a fixed form, so no
 * bit of the file is uncovered. Names are plain file names of letters, digits, '.', '_' and '-'. */
#ifndef CRIA_FORMATS_MANIFEST_H
#define CRIA_FORMATS_MANIFEST_H

#include <stddef.h>
#include <stdint.h>

#include "model/core/output.h"

#define MANIFEST_NAME "manifest.json"

typedef struct {
    char *name;
    FileSum sum;
} ManifestFile;

typedef struct {
    int64_t step;
    ManifestFile *files;
    size_t n;
} Manifest; /* {0} is empty */

/* Appends a file; refuses a name that is taken, or that is not a plain file name. */
int manifest_add(Manifest *manifest, const char *name, const FileSum *sum);
const ManifestFile *manifest_find(const Manifest *manifest, const char *name); /* NULL when absent */
void manifest_free(Manifest *manifest);

/* `path` is for messages. */
int manifest_parse(Manifest *manifest, const char *bytes, size_t size, const char *path);
/* Reads DIRECTORY/manifest.json; says nothing about the files. */
int manifest_read(Manifest *manifest, const char *directory);
/* Writes DIRECTORY/manifest.json.tmp, fsyncs, renames: the commit. */
int manifest_write(const Manifest *manifest, const char *directory);

/* That the file is there with its size and CRC32C. */
int manifest_check_file(const ManifestFile *file, const char *directory);
/* That every file is there with its size; and, all of it, with its CRC32C. */
int manifest_check_sizes(const Manifest *manifest, const char *directory);
int manifest_check_bytes(const Manifest *manifest, const char *directory);

#endif
