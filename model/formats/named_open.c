/* Which reader a path asks for. */
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/text.h"
#include "model/formats/checkpoint.h"
#include "model/formats/gguf.h"
#include "model/formats/llama2c.h"
#include "model/formats/named.h"
#include "model/formats/safetensors.h"

static bool has(const char *directory, const char *name) {
    char *path = path_join(directory, name);
    bool found = path && (file_exists(path) || directory_exists(path));
    free(path);
    return found;
}

static int open_checkpoint(NamedFile **file, const char *path) {
    char *folder;
    TRY(checkpoint_resolve(&folder, path));
    int rc = checkpoint_open_arrays(file, folder, CHECKPOINT_MODEL);
    free(folder);
    TRY(rc);
    return OK;
}

/* An HDF5 file by itself: the manifest beside it must vouch for it, since libhdf5 does not survive every damage. */
static int open_hdf5(NamedFile **file, const char *path) {
    int rc = OK;
    const char *base = path_base(path);
    char *folder = base == path ? strdup(".") : strndup(path, (size_t)(base - path));
    if (!folder) FAIL(ERR_FAILED, "out of memory");
    if (!has(folder, MANIFEST_NAME))
        FAIL_TO(done, ERR_REFUSED,
                "%s: there is no " MANIFEST_NAME " beside it to check it against; HDF5 files are opened inside their "
                "checkpoint's folder only",
                path);
    TRY_TO(done, checkpoint_open_arrays(file, folder, base));
done:
    free(folder);
    return rc;
}

int named_open(NamedFile **file, const char *path) {
    *file = NULL;
    bool directory = directory_exists(path);
    if (directory ? has(path, MANIFEST_NAME) || has(path, "checkpoints") : text_ends_with(path, "/best"))
        TRY(open_checkpoint(file, path));
    else if (directory || text_ends_with(path, ".safetensors") || text_ends_with(path, ".safetensors.index.json"))
        TRY(safetensors_open(file, path));
    else if (text_ends_with(path, ".h5") || text_ends_with(path, ".hdf5"))
        TRY(open_hdf5(file, path));
    else if (text_ends_with(path, ".gguf") || gguf_recognises(path))
        TRY(gguf_open(file, path));
    else if (text_ends_with(path, ".bin"))
        TRY(llama2c_open(file, NULL, path));
    else if (!file_exists(path))
        FAIL(ERR_REFUSED, "%s: no such file or directory", path);
    else
        FAIL(ERR_REFUSED,
             "%s: not a model that is known here: a .safetensors, .gguf, .h5 or llama2.c .bin file, a Hugging Face "
             "directory, a checkpoint or a run's folder is expected",
             path);
    return OK;
}
