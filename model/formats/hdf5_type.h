/* What reading and writing HDF5 share: element types, and libhdf5's errors as ours. */
#ifndef CRIA_FORMATS_HDF5_TYPE_H
#define CRIA_FORMATS_HDF5_TYPE_H

#define H5_USE_110_API
#include <hdf5.h>

#include <stdbool.h>

#include "model/core/dtype.h"

enum { ERROR_MESSAGE = 256 };

/* libhdf5 prints its errors on stderr unless told otherwise; the innermost is put in our text instead. */
void hdf5_silence(void);
/* FAIL with libhdf5's own explanation behind the text: "path: what: innermost message". Returns ERR_FAILED. */
int hdf5_failed(const char *file, int line, const char *path, const char *what);
#define HDF5_FAIL_TO(label, path, what)                       \
    do {                                                      \
        rc = hdf5_failed(__FILE__, __LINE__, (path), (what)); \
        goto label;                                           \
    } while (0)

/* A new type id of the little-endian stored form; H5Tclose it. Negative on failure. */
hid_t hdf5_type_new(Dtype dtype);
/* The dtype whose stored form is `type`, in either byte order; DTYPE_COUNT for any other. *swapped: big-endian. */
Dtype hdf5_type_find(hid_t type, bool *swapped);

#endif
