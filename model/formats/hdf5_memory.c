/* The callbacks of the driver. Addresses are byte offsets in the file. */
#include "model/formats/hdf5_memory.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

/* What libhdf5 hands back to us; its own part comes first. */
typedef struct {
    H5FD_t base;
    Hdf5Memory *memory;
    haddr_t end_of_allocation;
} MemoryFile;

/* What the property list carries: libhdf5 copies it. */
typedef struct {
    Hdf5Memory *memory;
} AccessInfo;

static const haddr_t MAX_ADDRESS = ((haddr_t)1 << 62) - 1;

static H5FD_t *memory_open(const char *name, unsigned flags, hid_t access, haddr_t max_address) {
    (void)name, (void)flags, (void)max_address;
    const AccessInfo *info = H5Pget_driver_info(access);
    MemoryFile *file = calloc(1, sizeof *file);
    if (!info || !file) {
        free(file);
        return NULL;
    }
    file->memory = info->memory;
    return &file->base;
}

static herr_t memory_close(H5FD_t *base) {
    free(base);
    return 0;
}

static herr_t memory_query(const H5FD_t *base, unsigned long *flags) {
    (void)base;
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA;
    return 0;
}

static haddr_t memory_get_eoa(const H5FD_t *base, H5FD_mem_t type) {
    (void)type;
    return ((const MemoryFile *)base)->end_of_allocation;
}

static herr_t memory_set_eoa(H5FD_t *base, H5FD_mem_t type, haddr_t address) {
    (void)type;
    MemoryFile *file = (MemoryFile *)base;
    file->end_of_allocation = address;
    file->memory->end = address;
    return 0;
}

static haddr_t memory_get_eof(const H5FD_t *base, H5FD_mem_t type) {
    (void)type;
    const Hdf5Memory *memory = ((const MemoryFile *)base)->memory;
    uint64_t end = memory->size;
    for (size_t i = 0; i < memory->n; i++)
        if (memory->pieces[i].offset + memory->pieces[i].size > end)
            end = memory->pieces[i].offset + memory->pieces[i].size;
    return end;
}

/* Copies the part of [offset, offset + size) that the bytes at `at` cover. */
static void overlay(unsigned char *out, uint64_t offset, size_t size, const unsigned char *bytes, uint64_t at,
                    size_t n) {
    uint64_t begin = offset > at ? offset : at, end = offset + size < at + n ? offset + size : at + n;
    if (begin < end) memcpy(out + (begin - offset), bytes + (begin - at), (size_t)(end - begin));
}

static herr_t memory_read(H5FD_t *base, H5FD_mem_t type, hid_t transfer, haddr_t address, size_t size, void *out) {
    (void)type, (void)transfer;
    const Hdf5Memory *memory = ((const MemoryFile *)base)->memory;
    if (address > MAX_ADDRESS || size > MAX_ADDRESS) return -1;
    memset(out, 0, size);
    overlay(out, address, size, memory->bytes, 0, memory->size);
    for (size_t i = 0; i < memory->n; i++)
        overlay(out, address, size, memory->pieces[i].bytes, memory->pieces[i].offset, memory->pieces[i].size);
    return 0;
}

static herr_t memory_write(H5FD_t *base, H5FD_mem_t type, hid_t transfer, haddr_t address, size_t size,
                           const void *bytes) {
    (void)type, (void)transfer;
    Hdf5Memory *memory = ((MemoryFile *)base)->memory;
    unsigned char *copy = malloc(size ? size : 1);
    if (copy && memory->n == memory->capacity) {
        size_t capacity = memory->capacity ? 2 * memory->capacity : 64;
        Hdf5Piece *grown = reallocarray(memory->pieces, capacity, sizeof *grown);
        if (grown) {
            memory->pieces = grown;
            memory->capacity = capacity;
        }
    }
    if (!copy || memory->n == memory->capacity) {
        free(copy);
        memory->failed = true;
        return 0;
    }
    memcpy(copy, bytes, size);
    memory->pieces[memory->n].offset = address;
    memory->pieces[memory->n].size = size;
    memory->pieces[memory->n].bytes = copy;
    memory->n++;
    return 0;
}

static const H5FD_class_t driver_class = {
#if H5_VERSION_GE(1, 13, 2)
    .version = H5FD_CLASS_VERSION,
    .value = 600, /* any above those that the HDF Group reserves */
#endif
    .name = "cria_memory",
    .maxaddr = ((haddr_t)1 << 62) - 1,
    .fc_degree = H5F_CLOSE_STRONG,
    .fapl_size = sizeof(AccessInfo),
    .open = memory_open,
    .close = memory_close,
    .query = memory_query,
    .get_eoa = memory_get_eoa,
    .set_eoa = memory_set_eoa,
    .get_eof = memory_get_eof,
    .read = memory_read,
    .write = memory_write,
    .fl_map = H5FD_FLMAP_SINGLE,
};

int hdf5_memory_access(hid_t *access, hid_t *driver, Hdf5Memory *memory) {
    AccessInfo info = {memory};
    *driver = H5FDregister(&driver_class);
    *access = H5Pcreate(H5P_FILE_ACCESS);
    if (*driver < 0 || *access < 0 || H5Pset_driver(*access, *driver, &info) < 0 ||
        H5Pset_fclose_degree(*access, H5F_CLOSE_STRONG) < 0) {
        hdf5_memory_release(*access, *driver);
        *access = *driver = H5I_INVALID_HID;
        return hdf5_failed(__FILE__, __LINE__, "HDF5", "set-up");
    }
    return OK;
}

void hdf5_memory_release(hid_t access, hid_t driver) {
    if (access >= 0) H5Pclose(access);
    if (driver >= 0) H5FDunregister(driver);
}

void hdf5_memory_free(Hdf5Memory *memory) {
    for (size_t i = 0; i < memory->n; i++) free(memory->pieces[i].bytes);
    free(memory->pieces);
    *memory = (Hdf5Memory){0};
}
