/* Reading HDF5: libhdf5 tells where each dataset lies, the file is mapped, and libhdf5 is needed again only for
 * datasets that are not plain bytes in the file. */
#include "model/formats/hdf5_file.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/formats/hdf5_memory.h"
#include "model/formats/named_file.h"

typedef struct {
    FileMap map;
    Hdf5Memory memory; /* the mapping, as libhdf5 sees it */
    hid_t file, access, driver;
} Hdf5State;

/* libhdf5's part; the mapping stays. */
static void close_library(Hdf5State *hdf5) {
    if (hdf5->file >= 0) H5Fclose(hdf5->file);
    hdf5_memory_release(hdf5->access, hdf5->driver);
    hdf5->file = hdf5->access = hdf5->driver = H5I_INVALID_HID;
}

static void state_close(void *state) {
    Hdf5State *hdf5 = state;
    close_library(hdf5);
    file_unmap(&hdf5->map);
    free(hdf5);
}

/* Elements of a dataset that is not mapped, one run along the last dimension at a time. */
static int read_through_library(const NamedFile *file, const NamedArray *array, size_t first, size_t n, void *out) {
    int rc = OK;
    const Hdf5State *hdf5 = file->state;
    size_t size = dtype_size(array->dtype);
    int rank = array->n_dims;
    size_t row = rank ? (size_t)array->dims[rank - 1] : 1;
    hid_t type = hdf5_type_new(array->dtype), memory = H5I_INVALID_HID, space = H5I_INVALID_HID;
    hid_t dataset = H5Dopen2(hdf5->file, array->name, H5P_DEFAULT);
    if (type < 0 || dataset < 0) HDF5_FAIL_TO(done, file->path, array->name);
    space = H5Dget_space(dataset);
    if (space < 0) HDF5_FAIL_TO(done, file->path, array->name);
    for (size_t done_elements = 0; done_elements < n;) {
        hsize_t start[NAMED_MAX_DIMS], count[NAMED_MAX_DIMS];
        size_t rest = first + done_elements, within = rest % row;
        hsize_t run = row - within < n - done_elements ? row - within : n - done_elements;
        for (int d = rank - 1; d >= 0; d--) {
            start[d] = rest % (size_t)array->dims[d];
            count[d] = d == rank - 1 ? run : 1;
            rest /= (size_t)array->dims[d];
        }
        memory = H5Screate_simple(1, &run, NULL);
        if (memory < 0 || (rank && H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL) < 0) ||
            H5Dread(dataset, type, memory, space, H5P_DEFAULT, (char *)out + done_elements * size) < 0)
            HDF5_FAIL_TO(done, file->path, array->name);
        H5Sclose(memory);
        memory = H5I_INVALID_HID;
        done_elements += run;
    }
done:
    if (memory >= 0) H5Sclose(memory);
    if (space >= 0) H5Sclose(space);
    if (dataset >= 0) H5Dclose(dataset);
    if (type >= 0) H5Tclose(type);
    return rc;
}

/* ---- what is in the file ---- */

/* Where the elements lie in the mapping; NULL where libhdf5 must read them. Data in other files (external, virtual) is
 * refused: a checkpoint must not reach outside itself. */
static int locate(const FileMap *map, hid_t dataset, NamedArray *array, bool swapped) {
    int rc = OK;
    hid_t create = H5Dget_create_plist(dataset);
    if (create < 0) FAIL(ERR_REFUSED, "'%s' cannot be read", array->name);
    H5D_layout_t layout = H5Pget_layout(create);
    if (layout == H5D_VIRTUAL || (layout == H5D_CONTIGUOUS && H5Pget_external_count(create) != 0))
        FAIL_TO(done, ERR_REFUSED, "'%s' keeps its data in other files; that is not followed", array->name);
    haddr_t offset = H5Dget_offset(dataset);
    if (layout != H5D_CONTIGUOUS || offset == HADDR_UNDEF || swapped) goto done;
    if (offset > map->size || named_bytes(array) > map->size - offset)
        FAIL_TO(done, ERR_REFUSED, "'%s' lies at byte %llu, outside the file's %zu bytes", array->name,
                (unsigned long long)offset, map->size);
    array->data = map->bytes + offset;
done:
    H5Pclose(create);
    return rc;
}

static int add_dataset(NamedFile *file, hid_t root, const char *name) {
    int rc = OK;
    const Hdf5State *hdf5 = file->state;
    NamedArray array = {.name = name};
    hsize_t dims[H5S_MAX_RANK];
    bool swapped = false;
    hid_t dataset = H5Dopen2(root, name, H5P_DEFAULT), type = H5I_INVALID_HID, space = H5I_INVALID_HID;
    if (dataset < 0) HDF5_FAIL_TO(done, file->path, name);
    type = H5Dget_type(dataset);
    space = H5Dget_space(dataset);
    if (type < 0 || space < 0) HDF5_FAIL_TO(done, file->path, name);
    array.dtype = hdf5_type_find(type, &swapped);
    array.n_dims = H5Sget_simple_extent_dims(space, dims, NULL);
    if (H5Sget_simple_extent_type(space) == H5S_NULL) goto done;
    if (array.n_dims < 0) HDF5_FAIL_TO(done, file->path, name);
    for (int d = 0; d < array.n_dims && d < NAMED_MAX_DIMS; d++) {
        if (dims[d] > INT64_MAX) FAIL_TO(done, ERR_REFUSED, "'%s': dimension %d is too large", name, d);
        array.dims[d] = (int64_t)dims[d];
    }
    TRY_TO(done, named_check(&array));
    TRY_TO(done, locate(&hdf5->map, dataset, &array, swapped));
    TRY_TO(done, named_file_add(file, &array));
done:
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    if (dataset >= 0) H5Dclose(dataset);
    return rc;
}

/* libhdf5 stops at a callback's negative result; ours is kept beside it. */
typedef struct {
    NamedFile *file;
    int rc;
} Visit;

static herr_t visit_object(hid_t root, const char *name, const H5O_info_t *info, void *context) {
    Visit *visit = context;
    if (info->type == H5O_TYPE_DATASET) visit->rc = add_dataset(visit->file, root, name);
    return visit->rc == OK ? 0 : -1;
}

static herr_t visit_attribute(hid_t root, const char *name, const H5A_info_t *info, void *context) {
    (void)info;
    Visit *visit = context;
    char *text = NULL;
    hid_t attribute = H5Aopen(root, name, H5P_DEFAULT);
    hid_t type = attribute >= 0 ? H5Aget_type(attribute) : H5I_INVALID_HID;
    hid_t space = attribute >= 0 ? H5Aget_space(attribute) : H5I_INVALID_HID;
    bool one_text =
        type >= 0 && space >= 0 && H5Tget_class(type) == H5T_STRING && H5Sget_simple_extent_npoints(space) == 1;
    if (one_text && H5Tis_variable_str(type) > 0) {
        if (H5Aread(attribute, type, &text) >= 0 && text) visit->rc = named_file_add_text(visit->file, name, text);
        if (text) H5Dvlen_reclaim(type, space, H5P_DEFAULT, &text);
    } else if (one_text) {
        text = calloc(H5Tget_size(type) + 1, 1);
        if (text && H5Aread(attribute, type, text) >= 0) visit->rc = named_file_add_text(visit->file, name, text);
        free(text);
    }
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    if (attribute >= 0) H5Aclose(attribute);
    return visit->rc == OK ? 0 : -1;
}

static int read_layout(NamedFile *file, hid_t hdf5) {
    int rc = OK;
    Visit visit = {file, OK};
    herr_t arrays = H5Ovisit(hdf5, H5_INDEX_NAME, H5_ITER_INC, visit_object, &visit);
    TRY(visit.rc);
    if (arrays < 0) HDF5_FAIL_TO(done, file->path, "list of datasets");
    herr_t texts = H5Aiterate2(hdf5, H5_INDEX_NAME, H5_ITER_INC, NULL, visit_attribute, &visit);
    TRY(visit.rc);
    if (texts < 0) HDF5_FAIL_TO(done, file->path, "list of attributes");
done:
    return rc;
}

static int check_sum(const FileMap *map, const FileSum *expected) {
    if (map->size != expected->size)
        FAIL(ERR_REFUSED, "it has %zu bytes where its manifest says %llu: it is truncated or was replaced", map->size,
             (unsigned long long)expected->size);
    uint32_t crc = crc32c(0, map->bytes, map->size);
    if (crc != expected->crc32c)
        FAIL(ERR_REFUSED, "its CRC32C is %08x where its manifest says %08x: it is damaged", crc, expected->crc32c);
    return OK;
}

static bool any_unmapped(const NamedFile *file) {
    for (size_t i = 0; i < file->n; i++)
        if (!file->arrays[i].data && named_bytes(&file->arrays[i]) > 0) return true;
    return false;
}

static int open_state(NamedFile *file, Hdf5State *hdf5, const char *path, const FileSum *expected) {
    TRY(file_map(&hdf5->map, path));
    if (expected) TRY(check_sum(&hdf5->map, expected));
    hdf5->memory = (Hdf5Memory){.bytes = hdf5->map.bytes, .size = hdf5->map.size};
    TRY(hdf5_memory_access(&hdf5->access, &hdf5->driver, &hdf5->memory));
    hdf5->file = H5Fopen(path, H5F_ACC_RDONLY, hdf5->access);
    if (hdf5->file < 0) {
        (void)hdf5_failed(__FILE__, __LINE__, path, "open");
        return ERR_REFUSED;
    }
    TRY(read_layout(file, hdf5->file));
    TRY(named_file_finish(file));
    if (!any_unmapped(file)) close_library(hdf5);
    return OK;
}

int hdf5_open(NamedFile **file, const char *path, const FileSum *expected) {
    hdf5_silence();
    TRY(named_file_new(file, "hdf5", path));
    int rc = OK;
    Hdf5State *hdf5 = calloc(1, sizeof *hdf5);
    if (!hdf5) FAIL_TO(done, ERR_FAILED, "out of memory");
    hdf5->file = hdf5->access = hdf5->driver = H5I_INVALID_HID;
    (*file)->state = hdf5;
    (*file)->close = state_close;
    (*file)->read = read_through_library;
    TRY_TO(done, open_state(*file, hdf5, path, expected));
done:
    if (rc != OK) {
        if (!strstr(error_text(), path)) error_context(rc, "%s", path);
        named_close(*file);
        *file = NULL;
    }
    return rc;
}
