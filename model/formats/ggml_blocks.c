/* See ggml_blocks.h. Scales are divided and multiplied in fp32, in the order of the reference, for the bytes to be the
 * same. */
#include "model/formats/ggml_blocks.h"

#include <math.h>
#include <string.h>

#include "model/core/error.h"

/* The least magnitude that rounds to infinity in fp16: 65504, the largest, and half a step. */
static const float F16_OVERFLOW = 65520.0f;

static const GgmlTypeInfo types[] = {
    {GGML_F32, "F32", 1, 4, DTYPE_F32, false},
    {GGML_F16, "F16", 1, 2, DTYPE_F16, false},
    {GGML_Q4_0, "Q4_0", GGML_BLOCK, GGML_Q4_0_BYTES, DTYPE_F32, true},
    {3, "Q4_1", 32, 20, DTYPE_COUNT, false},
    {6, "Q5_0", 32, 22, DTYPE_COUNT, false},
    {7, "Q5_1", 32, 24, DTYPE_COUNT, false},
    {GGML_Q8_0, "Q8_0", GGML_BLOCK, GGML_Q8_0_BYTES, DTYPE_F32, true},
    {9, "Q8_1", 32, 40, DTYPE_COUNT, false},
    {10, "Q2_K", 256, 84, DTYPE_COUNT, false},
    {11, "Q3_K", 256, 110, DTYPE_COUNT, false},
    {12, "Q4_K", 256, 144, DTYPE_COUNT, false},
    {13, "Q5_K", 256, 176, DTYPE_COUNT, false},
    {14, "Q6_K", 256, 210, DTYPE_COUNT, false},
    {15, "Q8_K", 256, 292, DTYPE_COUNT, false},
    {16, "IQ2_XXS", 256, 66, DTYPE_COUNT, false},
    {17, "IQ2_XS", 256, 74, DTYPE_COUNT, false},
    {18, "IQ3_XXS", 256, 98, DTYPE_COUNT, false},
    {19, "IQ1_S", 256, 50, DTYPE_COUNT, false},
    {20, "IQ4_NL", 32, 18, DTYPE_COUNT, false},
    {21, "IQ3_S", 256, 110, DTYPE_COUNT, false},
    {22, "IQ2_S", 256, 82, DTYPE_COUNT, false},
    {23, "IQ4_XS", 256, 136, DTYPE_COUNT, false},
    {24, "I8", 1, 1, DTYPE_COUNT, false},
    {25, "I16", 1, 2, DTYPE_COUNT, false},
    {26, "I32", 1, 4, DTYPE_I32, false},
    {27, "I64", 1, 8, DTYPE_I64, false},
    {28, "F64", 1, 8, DTYPE_F64, false},
    {29, "IQ1_M", 256, 56, DTYPE_COUNT, false},
    {GGML_BF16, "BF16", 1, 2, DTYPE_BF16, false},
    {34, "TQ1_0", 256, 54, DTYPE_COUNT, false},
    {35, "TQ2_0", 256, 66, DTYPE_COUNT, false},
    {39, "MXFP4", 32, 17, DTYPE_COUNT, false},
    {40, "NVFP4", 64, 36, DTYPE_COUNT, false},
    {41, "Q1_0", 128, 18, DTYPE_COUNT, false},
};

const GgmlTypeInfo *ggml_type_info(uint32_t type) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].type == type) return &types[i];
    return NULL;
}

/* ---- reading ---- */

static float scale_of(const unsigned char *block) {
    return f16_to_f32((uint16_t)(block[0] | block[1] << 8));
}

void ggml_decode(const GgmlTypeInfo *info, const void *row, size_t first, size_t n, float *out) {
    for (size_t i = 0; i < n; i++) {
        const unsigned char *block = (const unsigned char *)row + (first + i) / GGML_BLOCK * info->bytes;
        size_t in_block = (first + i) % GGML_BLOCK;
        if (info->type == GGML_Q8_0) {
            out[i] = (float)(int8_t)block[2 + in_block] * scale_of(block);
        } else {
            unsigned char pair = block[2 + in_block % (GGML_BLOCK / 2)];
            out[i] = scale_of(block) * (float)((in_block < GGML_BLOCK / 2 ? pair & 15 : pair >> 4) - 8);
        }
    }
}

/* ---- writing ---- */

static void put_scale(unsigned char *block, float scale) {
    uint16_t bits = f32_to_f16(scale);
    block[0] = (unsigned char)(bits & 0xff);
    block[1] = (unsigned char)(bits >> 8);
}

/* 1/d, and 0 for a block of zeros. */
static float inverse(float d) {
    return d == 0 ? 0 : 1 / d;
}

static void encode_q8_0(const float *in, unsigned char *out) {
    float largest = 0;
    for (int i = 0; i < GGML_BLOCK; i++) largest = fmaxf(largest, fabsf(in[i]));
    float d = largest / 127, id = inverse(d);
    put_scale(out, d);
    for (int i = 0; i < GGML_BLOCK; i++) /* roundf: halves away from zero. A scale so small that 1/d overflows is 0 */
        out[2 + i] = (unsigned char)(int8_t)fmaxf(-127, fminf(127, roundf(in[i] * id)));
}

static unsigned q4_0(float value, float id) {
    return (unsigned)fmaxf(0, fminf(15, truncf(value * id + 8.5f)));
}

/* The number of the greatest magnitude, of equal ones the first, becomes −8. */
static void encode_q4_0(const float *in, unsigned char *out) {
    float extreme = in[0];
    for (int i = 1; i < GGML_BLOCK; i++)
        if (fabsf(in[i]) > fabsf(extreme)) extreme = in[i];
    float d = extreme / -8, id = inverse(d);
    put_scale(out, d);
    for (int i = 0; i < GGML_BLOCK / 2; i++)
        out[2 + i] = (unsigned char)(q4_0(in[i], id) | q4_0(in[GGML_BLOCK / 2 + i], id) << 4);
}

static int check_range(const GgmlTypeInfo *info, const float *in, size_t n) {
    float levels = info->type == GGML_Q8_0 ? 127.0f : info->type == GGML_Q4_0 ? 8.0f : 1.0f;
    for (size_t i = 0; i < n; i++) {
        if (info->quantised && !isfinite(in[i]))
            FAIL(ERR_REFUSED, "it holds %g, which %s cannot; use f32, bf16 or f16", (double)in[i], info->name);
        if (isfinite(in[i]) && fabsf(in[i]) / levels >= F16_OVERFLOW)
            FAIL(ERR_REFUSED, "it holds %g, which is too large for %s%s; use bf16 or f32", (double)in[i], info->name,
                 info->quantised ? "'s scale in fp16" : "");
    }
    return OK;
}

int ggml_encode(GgmlType type, const float *in, size_t n, void *out) {
    const GgmlTypeInfo *info = ggml_type_info(type);
    unsigned char *bytes = out;
    if (!info || info->dtype > DTYPE_F16 || n % info->elements)
        FAIL(ERR_FAILED, "%zu numbers cannot be written as ggml type %d", n, (int)type);
    if (info->type == GGML_F16 || info->quantised) TRY(check_range(info, in, n));
    if (!info->quantised) return dtype_write_f32(out, info->dtype, in, n);
    for (size_t i = 0; i < n; i += GGML_BLOCK, bytes += info->bytes)
        type == GGML_Q8_0 ? encode_q8_0(in + i, bytes) : encode_q4_0(in + i, bytes);
    return OK;
}
