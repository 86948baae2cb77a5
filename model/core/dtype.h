/* Element types and their conversions. bf16 and fp16 are stored as uint16_t bit patterns; rounding is to nearest even,
 * NaN stays NaN (quiet), overflow in fp16 gives infinity (IEEE 754-2019 binary16; bfloat16 is the upper half of
 * binary32). */
#ifndef CRIA_CORE_DTYPE_H
#define CRIA_CORE_DTYPE_H

#include <stddef.h>
#include <stdint.h>

typedef enum {
    DTYPE_F32,
    DTYPE_BF16,
    DTYPE_F16,
    DTYPE_F64,
    DTYPE_I32,
    DTYPE_I64,
    DTYPE_U8,
    DTYPE_COUNT,
} Dtype;

typedef uint16_t bf16; /* the bits of a bfloat16 */

size_t dtype_size(Dtype dtype);      /* bytes per element */
const char *dtype_name(Dtype dtype); /* "fp32", "bf16", … */
int dtype_parse(Dtype *dtype, const char *name);

float bf16_to_f32(bf16 bits);
bf16 f32_to_bf16(float value);
float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);

/* Converts n elements of a floating dtype (f32, bf16, f16, f64) from or to fp32. Any alignment; no overlap. */
int dtype_read_f32(float *out, const void *in, Dtype in_dtype, size_t n);
int dtype_write_f32(void *out, Dtype out_dtype, const float *in, size_t n);

#endif
