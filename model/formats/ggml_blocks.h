/* ggml's element types: single numbers, or blocks of neighbours in a row that share a scale (ggml.h, ggml-quants.c;
 * gguf-py's quants.py is the reference for the bytes):
 *
 *   F32, F16, BF16   little-endian numbers
 *   Q8_0             32 numbers in 34 bytes: scale d (fp16), then 32 int8 q; the number is d·q
 *   Q4_0             32 numbers in 18 bytes: scale d (fp16), then 16 bytes: number i in the low half of byte i, number
 *                    16 + i in its high half; the number is d·(q − 8)
 *
 * The others are known by name and size, so that a file that has them can be checked and shown. */
#ifndef CRIA_FORMATS_GGML_BLOCKS_H
#define CRIA_FORMATS_GGML_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/core/dtype.h"

/* The numbers of ggml.h's enum ggml_type. */
typedef enum {
    GGML_F32 = 0,
    GGML_F16 = 1,
    GGML_Q4_0 = 2,
    GGML_Q8_0 = 8,
    GGML_BF16 = 30,
} GgmlType;

enum { GGML_BLOCK = 32, GGML_Q8_0_BYTES = 34, GGML_Q4_0_BYTES = 18 };

typedef struct {
    uint32_t type;
    const char *name;
    uint32_t elements, bytes; /* of a block */
    Dtype dtype;              /* what is read from it; DTYPE_COUNT: it cannot be read here */
    bool quantised;           /* read as fp32 through ggml_decode */
} GgmlTypeInfo;

/* NULL for a number that is no type. */
const GgmlTypeInfo *ggml_type_info(uint32_t type);

/* Elements [first, first + n) of a row of blocks in fp32. */
void ggml_decode(const GgmlTypeInfo *info, const void *row, size_t first, size_t n, float *out);

/* Writes n numbers, whole blocks, of type F32, F16, BF16, Q8_0 or Q4_0; bitwise what gguf-py writes. Refuses what the
 * type cannot hold: in F16 finite numbers beyond its largest, in blocks infinities, NaN and scales beyond fp16. */
int ggml_encode(GgmlType type, const float *in, size_t n, void *out);

#endif
