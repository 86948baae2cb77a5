/* HDF5 files of named arrays. Every array is a contiguous dataset at the root, under its Hugging Face name, so that in
 * h5py f["model.norm.weight"][:] is the array; bf16 is a 16-bit HDF5 float type (1 sign, 8 exponent, 7 mantissa bits,
 * bias 127), which h5py reads as floats. Texts are UTF-8 attributes of the root.
 *
 * libhdf5 lays the file out and describes it, in memory; all bytes reach the disk by our own hand, and the elements are
 * found in a mapping of the file by the offsets libhdf5 gives (H5Dget_offset). libhdf5's serial build is not
 * thread-safe: call these from one thread only. */
#ifndef CRIA_FORMATS_HDF5_FILE_H
#define CRIA_FORMATS_HDF5_FILE_H

#include "model/formats/named.h"
#include "model/core/output.h"

/* Opens a file. With `expected`, its size and CRC32C are checked before libhdf5 sees a byte, for a damaged HDF5 file
 * can crash that library; pass NULL only for files known to be whole. Datasets that are compressed, chunked or
 * big-endian are read through libhdf5 (their NamedArray.data is NULL), others are mapped. */
int hdf5_open(NamedFile **file, const char *path, const FileSum *expected);

/* Writes PATH.tmp, makes it durable, reads it back and compares every array and text with what was given, and only then
 * renames it to PATH. *sum is of the bytes read back. */
int hdf5_write(const char *path, const NamedSource *sources, size_t n, const NamedText *texts, size_t n_texts,
               FileSum *sum);

#endif
