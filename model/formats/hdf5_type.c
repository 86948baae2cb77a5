/* HDF5 element types. fp16 and bf16 are described to libhdf5 bit by bit, as h5py does for fp16 (HDF5 1.10 has no
 * predefined ones). */
#include "model/formats/hdf5_type.h"

#include <stdio.h>

#include "model/core/error.h"

void hdf5_silence(void) {
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

static herr_t take_message(unsigned depth, const H5E_error2_t *error, void *context) {
    if (depth == 0) snprintf(context, ERROR_MESSAGE, "%s", error->desc ? error->desc : "no reason given");
    return 0;
}

int hdf5_failed(const char *file, int line, const char *path, const char *what) {
    char message[ERROR_MESSAGE] = "no reason given";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_message, message);
    H5Eclear2(H5E_DEFAULT);
    return error_set(ERR_FAILED, file, line, "%s: HDF5 %s: %s", path, what, message);
}

/* A float type of 16 bits: sign, `exponent_bits`, and the rest mantissa. */
static hid_t half_type(size_t exponent_bits, size_t bias) {
    enum { BITS = 16 };
    size_t mantissa_bits = BITS - 1 - exponent_bits;
    hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    if (type < 0) return type;
    if (H5Tset_fields(type, BITS - 1, mantissa_bits, exponent_bits, 0, mantissa_bits) < 0 ||
        H5Tset_size(type, BITS / 8) < 0 || H5Tset_ebias(type, bias) < 0) {
        H5Tclose(type);
        return H5I_INVALID_HID;
    }
    return type;
}

hid_t hdf5_type_new(Dtype dtype) {
    switch (dtype) {
    case DTYPE_F32:
        return H5Tcopy(H5T_IEEE_F32LE);
    case DTYPE_F64:
        return H5Tcopy(H5T_IEEE_F64LE);
    case DTYPE_BF16:
        return half_type(8, 127);
    case DTYPE_F16:
        return half_type(5, 15);
    case DTYPE_I32:
        return H5Tcopy(H5T_STD_I32LE);
    case DTYPE_I64:
        return H5Tcopy(H5T_STD_I64LE);
    case DTYPE_U8:
        return H5Tcopy(H5T_STD_U8LE);
    case DTYPE_COUNT:
        break;
    }
    return H5I_INVALID_HID;
}

Dtype hdf5_type_find(hid_t type, bool *swapped) {
    *swapped = false;
    for (int d = 0; d < DTYPE_COUNT; d++) {
        hid_t known = hdf5_type_new((Dtype)d);
        if (known < 0) continue;
        bool equal = H5Tequal(type, known) > 0;
        if (!equal && H5Tset_order(known, H5T_ORDER_BE) >= 0 && H5Tequal(type, known) > 0) equal = *swapped = true;
        H5Tclose(known);
        if (equal) return (Dtype)d;
    }
    H5Eclear2(H5E_DEFAULT);
    return DTYPE_COUNT;
}
