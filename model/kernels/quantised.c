/* See quantised.h. */
#include "model/kernels/quantised.h"

#include <math.h>

#include "model/core/arena.h"
#include "model/kernels/quantised_encode.h"

const float nf4_levels[NF4_LEVELS] = {
    -1.0f,         -0.696192801f, -0.525073051f, -0.394917488f, -0.284441382f, -0.18477343f, -0.0910500363f, 0.0f,
    0.0795802996f, 0.160930201f,  0.246112302f,  0.337915242f,  0.440709829f,  0.562617004f, 0.722956836f,   1.0f,
};

const float scale_levels[SCALE_LEVELS] = {
    -0.99296874f,    -0.9789063f,   -0.96484375f,    -0.9507812f,    -0.93671876f,    -0.92265624f,    -0.9085938f,
    -0.89453125f,    -0.8804687f,   -0.86640626f,    -0.85234374f,   -0.8382813f,     -0.82421875f,    -0.8101562f,
    -0.79609376f,    -0.78203124f,  -0.7679688f,     -0.75390625f,   -0.7398437f,     -0.72578126f,    -0.7117188f,
    -0.6976563f,     -0.68359375f,  -0.6695312f,     -0.65546876f,   -0.6414063f,     -0.6273438f,     -0.61328125f,
    -0.5992187f,     -0.58515626f,  -0.5710938f,     -0.5570313f,    -0.54296875f,    -0.5289062f,     -0.5148437f,
    -0.50078124f,    -0.4867187f,   -0.47265625f,    -0.45859373f,   -0.44453126f,    -0.43046874f,    -0.41640624f,
    -0.40234375f,    -0.38828123f,  -0.37421876f,    -0.36015624f,   -0.34609374f,    -0.33203125f,    -0.31796873f,
    -0.30390626f,    -0.28984374f,  -0.27578127f,    -0.26171875f,   -0.24765624f,    -0.23359375f,    -0.21953125f,
    -0.20546874f,    -0.19140625f,  -0.17734376f,    -0.16328125f,   -0.14921875f,    -0.13515624f,    -0.12109375f,
    -0.107031256f,   -0.09859375f,  -0.09578126f,    -0.092968754f,  -0.09015625f,    -0.08734375f,    -0.08453125f,
    -0.08171876f,    -0.07890625f,  -0.07609375f,    -0.07328125f,   -0.070468746f,   -0.067656256f,   -0.06484375f,
    -0.06203125f,    -0.059218753f, -0.05640625f,    -0.05359375f,   -0.05078125f,    -0.04796875f,    -0.04515625f,
    -0.042343747f,   -0.03953125f,  -0.036718752f,   -0.03390625f,   -0.03109375f,    -0.028281251f,   -0.02546875f,
    -0.02265625f,    -0.019843752f, -0.01703125f,    -0.01421875f,   -0.01140625f,    -0.00971875f,    -0.009156249f,
    -0.00859375f,    -0.00803125f,  -0.00746875f,    -0.00690625f,   -0.00634375f,    -0.00578125f,    -0.0052187503f,
    -0.0046562497f,  -0.00409375f,  -0.0035312497f,  -0.00296875f,   -0.00240625f,    -0.00184375f,    -0.0012812499f,
    -0.0009437501f,  -0.00083125f,  -0.00071875006f, -0.0006062501f, -0.00049375003f, -0.00038125002f, -0.00026875004f,
    -0.00015625001f, -8.875e-5f,    -6.625e-5f,      -4.375e-5f,     -2.1249998e-5f,  -7.75e-6f,       -3.2500002e-6f,
    -5.5000004e-7f,  0.0f,          5.5000004e-7f,   3.2500002e-6f,  7.75e-6f,        2.1249998e-5f,   4.375e-5f,
    6.625e-5f,       8.875e-5f,     0.00015625001f,  0.00026875004f, 0.00038125002f,  0.00049375003f,  0.0006062501f,
    0.00071875006f,  0.00083125f,   0.0009437501f,   0.0012812499f,  0.00184375f,     0.00240625f,     0.00296875f,
    0.0035312497f,   0.00409375f,   0.0046562497f,   0.0052187503f,  0.00578125f,     0.00634375f,     0.00690625f,
    0.00746875f,     0.00803125f,   0.00859375f,     0.009156249f,   0.00971875f,     0.01140625f,     0.01421875f,
    0.01703125f,     0.019843752f,  0.02265625f,     0.02546875f,    0.028281251f,    0.03109375f,     0.03390625f,
    0.036718752f,    0.03953125f,   0.042343747f,    0.04515625f,    0.04796875f,     0.05078125f,     0.05359375f,
    0.05640625f,     0.059218753f,  0.06203125f,     0.06484375f,    0.067656256f,    0.070468746f,    0.07328125f,
    0.07609375f,     0.07890625f,   0.08171876f,     0.08453125f,    0.08734375f,     0.09015625f,     0.092968754f,
    0.09578126f,     0.09859375f,   0.107031256f,    0.12109375f,    0.13515624f,     0.14921875f,     0.16328125f,
    0.17734376f,     0.19140625f,   0.20546874f,     0.21953125f,    0.23359375f,     0.24765624f,     0.26171875f,
    0.27578127f,     0.28984374f,   0.30390626f,     0.31796873f,    0.33203125f,     0.34609374f,     0.36015624f,
    0.37421876f,     0.38828123f,   0.40234375f,     0.41640624f,    0.43046874f,     0.44453126f,     0.45859373f,
    0.47265625f,     0.4867187f,    0.50078124f,     0.5148437f,     0.5289062f,      0.54296875f,     0.5570313f,
    0.5710938f,      0.58515626f,   0.5992187f,      0.61328125f,    0.6273438f,      0.6414063f,      0.65546876f,
    0.6695312f,      0.68359375f,   0.6976563f,      0.7117188f,     0.72578126f,     0.7398437f,      0.75390625f,
    0.7679688f,      0.78203124f,   0.79609376f,     0.8101562f,     0.82421875f,     0.8382813f,      0.85234374f,
    0.86640626f,     0.8804687f,    0.89453125f,     0.9085938f,     0.92265624f,     0.93671876f,     0.9507812f,
    0.96484375f,     0.9789063f,    0.99296874f,     1.0f,
};

/* ---- storage ---- */

static size_t code_bytes(QuantisedKind kind, size_t elements) {
    return arena_round_up((kind == QUANTISED_NF4 ? (elements + 1) / 2 : elements) + QUANTISED_SLACK);
}
static size_t scale_code_bytes(QuantisedKind kind, size_t elements) {
    return kind == QUANTISED_NF4 ? arena_round_up(quantised_blocks(elements)) : 0;
}
static size_t scale_bytes(QuantisedKind kind, size_t elements) {
    size_t blocks = quantised_blocks(elements), group = kind == QUANTISED_NF4 ? QUANTISED_GROUP : 1;
    return arena_round_up((blocks + group - 1) / group * sizeof(float));
}

size_t quantised_bytes(QuantisedKind kind, size_t elements) {
    return code_bytes(kind, elements) + scale_code_bytes(kind, elements) + scale_bytes(kind, elements);
}

Quantised quantised_place(QuantisedKind kind, size_t elements, void *storage) {
    uint8_t *codes = storage, *scale_codes = codes + code_bytes(kind, elements);
    void *scales = scale_codes + scale_code_bytes(kind, elements);
    return (Quantised){
        .kind = kind, .elements = elements, .codes = codes, .scale_codes = scale_codes, .scales = scales};
}

/* ---- from fp32 ---- */

/* How many of the ascending bounds are below x: with the middles between levels as bounds, the nearest level; of two
 * that are as near the lower. */
static unsigned bounds_below(float x, const float *levels, unsigned n) {
    unsigned low = 0, high = n - 1;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if ((levels[middle] + levels[middle + 1]) / 2 < x)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool quantised_encode(const Quantised *q, size_t first, size_t n, const float *values, float *absmax) {
    return encode_blocks(q, first, n, values, absmax);
}

float quantised_mean(const float *absmax, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)absmax[i];
    return n > 0 ? (float)(sum / (double)n) : 0;
}

/* bitsandbytes on a CPU looks up the nearest level of the nearest of 65,536 numbers in [-1, 1]. */
static uint8_t scale_code(float x) {
    enum { STEPS = 65535 };
    int step = (int)((clamp_unit(x) + 1) * 0.5f * (float)STEPS + 0.5f);
    return (uint8_t)bounds_below(-1 + 2 * (float)step / (float)STEPS, scale_levels, SCALE_LEVELS);
}

void quantised_encode_scales(const Quantised *q, size_t first_group, size_t end_group, const float *absmax,
                             float mean) {
    size_t blocks = quantised_blocks(q->elements);
    for (size_t g = first_group; g < end_group; g++) {
        size_t first = g * QUANTISED_GROUP, end = blocks - first < QUANTISED_GROUP ? blocks : first + QUANTISED_GROUP;
        float most = 0;
        for (size_t b = first; b < end; b++) most = fmaxf(most, fabsf(absmax[b] - mean));
        float inverse = 1 / most;
        q->scales[g] = most;
        for (size_t b = first; b < end; b++)
            q->scale_codes[b] = most > 0 ? scale_code((absmax[b] - mean) * inverse) : 0;
    }
}

/* ---- to fp32 ---- */

static void read_nf4(const Quantised *q, size_t first, size_t n, float scale, float *out) {
    float level[NF4_LEVELS];
    for (int l = 0; l < NF4_LEVELS; l++) level[l] = nf4_levels[l] * scale;
    for (size_t i = 0; i < n; i++) {
        unsigned both = q->codes[(first + i) / 2];
        out[i] = level[(first + i) % 2 == 0 ? both >> 4 : both & 15];
    }
}

void quantised_read(const Quantised *q, size_t first, size_t n, float *out) {
    for (size_t at = first, end = first + n; at < end;) {
        size_t block = at / QUANTISED_BLOCK, next = (block + 1) * QUANTISED_BLOCK, stop = next < end ? next : end;
        float scale = quantised_scale(q, block);
        if (q->kind == QUANTISED_NF4)
            read_nf4(q, at, stop - at, scale, out);
        else
            for (size_t i = 0; i < stop - at; i++) out[i] = (float)(int8_t)q->codes[at + i] * scale;
        out += stop - at;
        at = stop;
    }
}
