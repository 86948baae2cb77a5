/* Writing HDF5. libhdf5 makes the file in memory (hdf5_memory.h), with every dataset's place reserved but nothing in
 * it; its description and then the elements are written to the disk here. The 1.8 file format is asked for: its
 * metadata carries checksums. */
#include "model/formats/hdf5_file.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/formats/hdf5_memory.h"

enum {
    DATA_ALIGNMENT = 64, /* of datasets in the file: one cache line, one vector */
    ALIGN_FROM = 1,      /* bytes: everything is aligned */
};

/* What was written of one array: where, and the CRC32C of its elements. */
typedef struct {
    uint64_t offset;
    uint32_t crc32c;
} Written;

static int write_text(hid_t file, const char *path, const NamedText *text) {
    int rc = OK;
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR), attribute = H5I_INVALID_HID;
    if (type < 0 || space < 0 || H5Tset_size(type, H5T_VARIABLE) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0)
        HDF5_FAIL_TO(done, path, text->key);
    attribute = H5Acreate2(file, text->key, type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (attribute < 0 || H5Awrite(attribute, type, &text->value) < 0) HDF5_FAIL_TO(done, path, text->key);
done:
    if (attribute >= 0) H5Aclose(attribute);
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    return rc;
}

/* Reserves the array's place in the file. */
static int create_dataset(hid_t file, const char *path, const NamedArray *array, hid_t links, hid_t create,
                          Written *written) {
    int rc = OK;
    hsize_t dims[NAMED_MAX_DIMS];
    hid_t type = hdf5_type_new(array->dtype), space = H5I_INVALID_HID, dataset = H5I_INVALID_HID;
    for (int d = 0; d < array->n_dims; d++) dims[d] = (hsize_t)array->dims[d];
    space = array->n_dims ? H5Screate_simple(array->n_dims, dims, NULL) : H5Screate(H5S_SCALAR);
    if (type < 0 || space < 0) HDF5_FAIL_TO(done, path, array->name);
    dataset = H5Dcreate2(file, array->name, type, space, links, create, H5P_DEFAULT);
    if (dataset < 0) HDF5_FAIL_TO(done, path, array->name);
    haddr_t offset = H5Dget_offset(dataset);
    if (offset == HADDR_UNDEF && named_elements(array) > 0) HDF5_FAIL_TO(done, path, array->name);
    written->offset = offset == HADDR_UNDEF ? 0 : offset;
done:
    if (dataset >= 0) H5Dclose(dataset);
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    return rc;
}

/* Everything but the elements, into an open file. */
static int describe(hid_t file, const char *path, const NamedSource *sources, size_t n, const NamedText *texts,
                    size_t n_texts, Written *written) {
    int rc = OK;
    hid_t links = H5Pcreate(H5P_LINK_CREATE), create = H5Pcreate(H5P_DATASET_CREATE);
    if (links < 0 || create < 0 || H5Pset_create_intermediate_group(links, 1) < 0 ||
        H5Pset_layout(create, H5D_CONTIGUOUS) < 0 || H5Pset_alloc_time(create, H5D_ALLOC_TIME_EARLY) < 0 ||
        H5Pset_fill_time(create, H5D_FILL_TIME_NEVER) < 0 || H5Pset_obj_track_times(create, false) < 0)
        HDF5_FAIL_TO(done, path, "set-up");
    for (size_t i = 0; i < n_texts; i++) TRY_TO(done, write_text(file, path, &texts[i]));
    for (size_t i = 0; i < n; i++)
        TRY_TO(done, create_dataset(file, path, &sources[i].array, links, create, &written[i]));
done:
    if (create >= 0) H5Pclose(create);
    if (links >= 0) H5Pclose(links);
    return rc;
}

/* The file without its elements, in memory. */
static int lay_out(Hdf5Memory *memory, const char *path, const NamedSource *sources, size_t n, const NamedText *texts,
                   size_t n_texts, Written *written) {
    int rc = OK;
    hid_t access, driver, file = H5I_INVALID_HID, create = H5Pcreate(H5P_FILE_CREATE);
    rc = hdf5_memory_access(&access, &driver, memory);
    if (rc != OK && create >= 0) H5Pclose(create);
    TRY(rc);
    /* No times in the root group: equal contents are equal files. */
    if (create < 0 || H5Pset_obj_track_times(create, false) < 0 ||
        H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V18) < 0 ||
        H5Pset_alignment(access, ALIGN_FROM, DATA_ALIGNMENT) < 0)
        HDF5_FAIL_TO(done, path, "set-up");
    file = H5Fcreate(path, H5F_ACC_TRUNC, create, access);
    if (file < 0) HDF5_FAIL_TO(done, path, "create");
    TRY_TO(done, describe(file, path, sources, n, texts, n_texts, written));
done:
    if (file >= 0 && H5Fclose(file) < 0 && rc == OK) rc = hdf5_failed(__FILE__, __LINE__, path, "close");
    if (create >= 0) H5Pclose(create);
    hdf5_memory_release(access, driver);
    if (rc == OK && memory->failed) FAIL(ERR_FAILED, "out of memory");
    return rc;
}

/* The description, and the file's whole length. */
static int write_description(Output *output, const Hdf5Memory *memory) {
    TRY(output_resize(output, memory->end));
    for (size_t i = 0; i < memory->n; i++) {
        output->offset = memory->pieces[i].offset;
        TRY(output_write(output, memory->pieces[i].bytes, memory->pieces[i].size));
    }
    return OK;
}

/* ---- elements ---- */

typedef struct {
    Output *output;
    Written *written;
} ElementSink;

static int sink_elements(void *context, const void *bytes, size_t size) {
    ElementSink *sink = context;
    sink->written->crc32c = crc32c(sink->written->crc32c, bytes, size);
    TRY(output_write(sink->output, bytes, size));
    return OK;
}

/* Every array and text, as a reader finds them, against what was given. */
static int read_back(const char *path, const NamedSource *sources, size_t n, const NamedText *texts, size_t n_texts,
                     const Written *written) {
    int rc = OK;
    NamedFile *file;
    TRY(hdf5_open(&file, path, NULL));
    if (named_count(file) != n)
        FAIL_TO(done, ERR_FAILED, "%s: read back %zu arrays where %zu were written", path, named_count(file), n);
    for (size_t i = 0; i < n; i++) {
        const NamedArray *given = &sources[i].array, *found;
        TRY_TO(done, named_get(&found, file, given->name));
        bool same = found->dtype == given->dtype && found->n_dims == given->n_dims &&
                    memcmp(found->dims, given->dims, (size_t)given->n_dims * sizeof *given->dims) == 0 &&
                    (found->data || named_elements(found) == 0) &&
                    crc32c(0, found->data, named_bytes(found)) == written[i].crc32c;
        if (!same)
            FAIL_TO(done, ERR_FAILED, "%s: '%s' reads back unlike what was written; the disk or memory is faulty", path,
                    given->name);
    }
    for (size_t i = 0; i < n_texts; i++) {
        const char *found = named_text(file, texts[i].key);
        if (!found || strcmp(found, texts[i].value) != 0)
            FAIL_TO(done, ERR_FAILED, "%s: attribute '%s' reads back unlike what was written", path, texts[i].key);
    }
done:
    named_close(file);
    return rc;
}

int hdf5_write(const char *path, const NamedSource *sources, size_t n, const NamedText *texts, size_t n_texts,
               FileSum *sum) {
    int rc = OK;
    Output output = {.fd = -1};
    Hdf5Memory memory = {0};
    hdf5_silence();
    TRY(named_check_sources(sources, n));
    Written *written = calloc(n + 1, sizeof *written);
    if (!written) FAIL_TO(done, ERR_FAILED, "%s: out of memory", path);
    TRY_TO(done, lay_out(&memory, path, sources, n, texts, n_texts, written));
    TRY_TO(done, output_begin(&output, path));
    TRY_TO(done, write_description(&output, &memory));
    for (size_t i = 0; i < n; i++) {
        ElementSink sink = {&output, &written[i]};
        output.offset = written[i].offset;
        TRY_TO(done, named_stream(&sources[i], sink_elements, &sink));
    }
    TRY_TO(done, output_sync(&output));
    TRY_TO(done, file_sum(sum, output.temporary));
    TRY_TO(done, read_back(output.temporary, sources, n, texts, n_texts, written));
    TRY_TO(done, output_commit(&output));
done:
    if (rc != OK && !strstr(error_text(), path)) error_context(rc, "%s", path);
    output_abandon(&output);
    hdf5_memory_free(&memory);
    free(written);
    return rc;
}
