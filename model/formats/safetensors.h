/* safetensors, the format of Hugging Face models (github.com/huggingface/safetensors, README "Format"):
 *
 *   8 bytes   N, little-endian
 *   N bytes   JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, …,
 *                    "__metadata__": {"key": "text"}}, padded with spaces
 *   the rest  the arrays, row-major little-endian; offsets count from here; no holes, no overlaps
 *
 * A model above a size is split into shards, listed in model.safetensors.index.json. */
#ifndef CRIA_FORMATS_SAFETENSORS_H
#define CRIA_FORMATS_SAFETENSORS_H

#include "model/formats/named.h"

/* Opens one .safetensors file, an index (*.safetensors.index.json) with its shards, or a directory that has either.
 * Everything in the header is checked against the file's size first; the arrays are memory-mapped. */
int safetensors_open(NamedFile **file, const char *path);

/* Writes one file, complete or not at all. {"format": "pt"} is added to `texts`, for transformers asks for it. */
int safetensors_write(const char *path, const NamedSource *sources, size_t n, const NamedText *texts, size_t n_texts);

/* Writes DIRECTORY/model.safetensors, or shards of at most `shard_bytes` of data (0: 5 GB, transformers' default; a
 * larger array gets a shard of its own) and DIRECTORY/model.safetensors.index.json. Removes what the other form left
 * under those names, so that only one model is in the directory. */
int safetensors_write_directory(const char *directory, const NamedSource *sources, size_t n, uint64_t shard_bytes);

/* The format's own name of a dtype ("F32", "BF16", …). */
const char *safetensors_dtype_name(Dtype dtype);

#endif
