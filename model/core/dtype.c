/* Scalar and array conversions between element types; see dtype.h for the rounding rules. */
#include "model/core/dtype.h"
#include "model/core/error.h"

#include <string.h>

static const struct {
    const char *name;
    size_t size;
} dtypes[DTYPE_COUNT] = {
    [DTYPE_F32] = {"fp32", 4},  [DTYPE_BF16] = {"bf16", 2}, [DTYPE_F16] = {"fp16", 2}, [DTYPE_F64] = {"fp64", 8},
    [DTYPE_I32] = {"int32", 4}, [DTYPE_I64] = {"int64", 8}, [DTYPE_U8] = {"uint8", 1},
};

size_t dtype_size(Dtype dtype) {
    return dtypes[dtype].size;
}
const char *dtype_name(Dtype dtype) {
    return dtypes[dtype].name;
}

int dtype_parse(Dtype *dtype, const char *name) {
    for (int d = 0; d < DTYPE_COUNT; d++)
        if (strcmp(dtypes[d].name, name) == 0) {
            *dtype = (Dtype)d;
            return OK;
        }
    FAIL(ERR_USAGE, "unknown dtype '%s'; expected fp32, bf16 or fp16", name);
}

static uint32_t f32_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float bits_f32(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float bf16_to_f32(bf16 bits) {
    return bits_f32((uint32_t)bits << 16);
}

bf16 f32_to_bf16(float value) {
    uint32_t bits = f32_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u); /* keep NaN, quiet */
    uint32_t round = 0x7fffu + ((bits >> 16) & 1u);
    return (uint16_t)((bits + round) >> 16);
}

float f16_to_f32(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    uint32_t exponent = (bits >> 10) & 0x1fu;
    uint32_t fraction = bits & 0x3ffu;
    if (exponent == 0x1f) return bits_f32(sign | 0x7f800000u | (fraction << 13));
    if (exponent == 0) { /* zero or subnormal: fraction · 2^-24, exact in fp32 */
        float magnitude = (float)fraction * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return bits_f32(sign | ((exponent + 112) << 23) | (fraction << 13));
}

uint16_t f32_to_f16(float value) {
    uint32_t bits = f32_bits(value);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x47800000u) return (uint16_t)(sign | 0x7c00u); /* at least 65536, and infinity */
    if (magnitude < 0x38800000u) {                                   /* below 2^-14: subnormal */
        /* Adding 0.5 aligns the value so that the fp32 adder itself rounds to nearest even at 2^-24. */
        uint32_t shifted = f32_bits(bits_f32(magnitude) + 0.5f);
        return (uint16_t)(sign | (shifted - 0x3f000000u));
    }
    uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u); /* 65520 and above carries into infinity */
    return (uint16_t)(sign | ((rounded - 0x38000000u) >> 13));
}

int dtype_read_f32(float *out, const void *in, Dtype in_dtype, size_t n) {
    const unsigned char *bytes = in;
    switch (in_dtype) {
    case DTYPE_F32:
        memcpy(out, in, n * sizeof *out);
        return OK;
    case DTYPE_BF16: /* a loop of its own: it becomes one of vectors */
        for (size_t i = 0; i < n; i++) {
            bf16 bits;
            memcpy(&bits, bytes + 2 * i, sizeof bits);
            out[i] = bf16_to_f32(bits);
        }
        return OK;
    case DTYPE_F16:
        for (size_t i = 0; i < n; i++) {
            uint16_t bits;
            memcpy(&bits, bytes + 2 * i, sizeof bits);
            out[i] = f16_to_f32(bits);
        }
        return OK;
    case DTYPE_F64:
        for (size_t i = 0; i < n; i++) {
            double value;
            memcpy(&value, bytes + 8 * i, sizeof value);
            out[i] = (float)value;
        }
        return OK;
    default:
        FAIL(ERR_REFUSED, "%s values cannot be read as fp32; a floating type is needed", dtype_name(in_dtype));
    }
}

int dtype_write_f32(void *out, Dtype out_dtype, const float *in, size_t n) {
    unsigned char *bytes = out;
    switch (out_dtype) {
    case DTYPE_F32:
        memcpy(out, in, n * sizeof *in);
        return OK;
    case DTYPE_BF16:
    case DTYPE_F16:
        for (size_t i = 0; i < n; i++) {
            uint16_t bits = out_dtype == DTYPE_BF16 ? f32_to_bf16(in[i]) : f32_to_f16(in[i]);
            memcpy(bytes + 2 * i, &bits, sizeof bits);
        }
        return OK;
    case DTYPE_F64:
        for (size_t i = 0; i < n; i++) {
            double value = (double)in[i];
            memcpy(bytes + 8 * i, &value, sizeof value);
        }
        return OK;
    default:
        FAIL(ERR_REFUSED, "fp32 values cannot be stored as %s; a floating type is needed", dtype_name(out_dtype));
    }
}
