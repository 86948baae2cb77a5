/* Weights in 8 and 4 bits: NF4 against bitsandbytes (tests/golden/quantised.py), int8 against its definition. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/philox.h"
#include "model/formats/named.h"
#include "model/core/error.h"
#include "model/kernels/kernels.h"
#include "model/kernels/quantised.h"
#include "tests/check_main.h"

static const char *const matrices[] = {"heavy", "odd", "zeros", "alike"};
enum { N_MATRICES = sizeof matrices / sizeof *matrices };

typedef struct {
    Arena arena;
    NamedFile *file;
} Golden;

static void golden_open(Golden *golden) {
    *golden = (Golden){0};
    CHECK_OK(named_open(&golden->file, "tests/golden/quantised.safetensors"));
}
static void golden_close(Golden *golden) {
    named_close(golden->file);
    arena_free(&golden->arena);
}

static const NamedArray *find(const Golden *golden, const char *name, const char *part) {
    char key[64];
    const NamedArray *array = NULL;
    snprintf(key, sizeof key, "%s.%s", name, part);
    CHECK_OK(named_get(&array, golden->file, key));
    return array;
}

static float *read_f32(Golden *golden, const char *name, const char *part, size_t *n) {
    const NamedArray *array = find(golden, name, part);
    *n = named_elements(array);
    float *values = arena_alloc(&golden->arena, *n * sizeof *values);
    ck_assert_ptr_nonnull(values);
    CHECK_OK(named_read_f32(golden->file, array, 0, *n, values));
    return values;
}

static uint8_t *read_u8(Golden *golden, const char *name, const char *part, size_t *n) {
    const NamedArray *array = find(golden, name, part);
    *n = named_elements(array);
    uint8_t *values = arena_alloc(&golden->arena, *n);
    ck_assert_ptr_nonnull(values);
    ck_assert_int_eq(array->dtype, DTYPE_U8);
    CHECK_OK(named_read(golden->file, array, 0, *n, values));
    return values;
}

static void same_bits(const void *got, const void *want, size_t bytes, const char *name, const char *part) {
    for (size_t i = 0; i < bytes; i++)
        if (((const char *)got)[i] != ((const char *)want)[i])
            ck_abort_msg("%s: %s differs at byte %zu of %zu", name, part, i, bytes);
}

static Quantised quantised_new(Arena *arena, QuantisedKind kind, size_t elements) {
    void *storage = arena_alloc(arena, quantised_bytes(kind, elements));
    ck_assert_ptr_nonnull(storage);
    return quantised_place(kind, elements, storage);
}

/* The mean is ours where bitsandbytes' is not given: its own, in torch's order of summation, is an ulp or two off. */
START_TEST(nf4_has_the_codes_scales_and_values_of_bitsandbytes) {
    Golden golden;
    golden_open(&golden);
    for (int c = 0; c < N_MATRICES; c++) {
        const char *name = matrices[c];
        size_t n, n_codes, blocks, groups = 0, one;
        float *values = read_f32(&golden, name, "values", &n), *want = read_f32(&golden, name, "dequantised", &n);
        uint8_t *codes = read_u8(&golden, name, "codes", &n_codes);
        float *most = read_f32(&golden, name, "absmax", &blocks);
        float *scales = read_f32(&golden, name, "scales", &groups), mean = *read_f32(&golden, name, "offset", &one);
        Quantised q = quantised_new(&golden.arena, QUANTISED_NF4, n);
        float *absmax = arena_alloc(&golden.arena, blocks * sizeof *absmax);
        float *got = arena_alloc(&golden.arena, n * sizeof *got);
        ck_assert_uint_eq(blocks, quantised_blocks(n));
        ck_assert_uint_eq(n_codes, (n + 1) / 2);
        ck_assert(quantised_encode(&q, 0, n, values, absmax));
        same_bits(q.codes, codes, n_codes, name, "codes");
        same_bits(absmax, most, blocks * sizeof *absmax, name, "absmax");
        ck_assert(fabsf(quantised_mean(absmax, blocks) - mean) <= 4e-7f * mean);
        q.offset = mean;
        quantised_encode_scales(&q, 0, quantised_groups(n), absmax, mean);
        same_bits(q.scale_codes, read_u8(&golden, name, "scale_codes", &blocks), blocks, name, "scale codes");
        same_bits(q.scales, scales, groups * sizeof *scales, name, "scales");
        quantised_read(&q, 0, n, got);
        same_bits(got, want, n * sizeof *got, name, "values");
        for (size_t i = 0; i < n; i++) got[i] = bf16_to_f32(f32_to_bf16(got[i]));
        same_bits(got, read_f32(&golden, name, "dequantised_bf16", &n), n * sizeof *got, name, "bf16 values");
    }
    golden_close(&golden);
}
END_TEST

START_TEST(scale_levels_follow_their_formula) {
    ck_assert(scale_levels[127] == 0 && scale_levels[255] == 1);
    for (int k = 1; k < 128; k++) {
        int i = 0;
        while (2 << i <= k) i++;
        int parts = 1 << i, j = k - parts;
        double step = (1.0 - 0.1) / parts, level = (0.1 + (j + 0.5) * step) * pow(10, i - 6);
        ck_assert_msg(fabs((double)scale_levels[127 + k] / level - 1) < 2e-7, "%d", k);
        ck_assert(scale_levels[127 - k] == -scale_levels[127 + k]);
    }
}
END_TEST

/* Nothing is nearer than half a step, and the step is the block's own. */
START_TEST(int8_is_within_half_a_step_of_every_element) {
    enum { N = 5 * 64 + 37 };
    Arena arena = {0};
    float values[N], got[N], absmax[6];
    philox_fill_normal(values, 0, N, philox_key(3, PHILOX_TEST, 0, 0), 0, 1);
    for (int i = 0; i < N; i++) values[i] *= (float)(1 + i / 64 * 1000);
    memset(values + 64, 0, 64 * sizeof *values);
    Quantised q = quantised_new(&arena, QUANTISED_INT8, N);
    ck_assert(quantised_encode(&q, 0, N, values, absmax));
    quantised_read(&q, 0, N, got);
    for (int i = 0; i < N; i++) {
        float most = 0;
        for (int j = i / 64 * 64; j < N && j < (i / 64 + 1) * 64; j++) most = fmaxf(most, fabsf(values[j]));
        ck_assert(absmax[i / 64] == most);
        ck_assert_msg(fabsf(got[i] - values[i]) <= most / 127 * 0.50001f, "%d: %g is %g", i, (double)values[i],
                      (double)got[i]);
        if (fabsf(values[i]) == most) ck_assert(fabsf(got[i] - values[i]) <= 1e-6f * most);
    }
    arena_free(&arena);
}
END_TEST

START_TEST(any_range_reads_as_the_whole_does) {
    enum { N = 3 * 64 + 11 };
    Arena arena = {0};
    float values[N], all[N], part[N], absmax[4];
    philox_fill_normal(values, 0, N, philox_key(4, PHILOX_TEST, 0, 0), 0, 1);
    for (int kind = 0; kind < 2; kind++) {
        Quantised q = quantised_new(&arena, (QuantisedKind)kind, N);
        for (size_t first = 0; first < N; first += 128) /* in pieces, as threads write it */
            ck_assert(
                quantised_encode(&q, first, N - first < 128 ? N - first : 128, values + first, absmax + first / 64));
        q.offset = quantised_mean(absmax, 4);
        if (kind == QUANTISED_NF4) quantised_encode_scales(&q, 0, quantised_groups(N), absmax, q.offset);
        quantised_read(&q, 0, N, all);
        for (size_t first = 0; first < N; first += 7)
            for (size_t n = 0; first + n <= N; n += 5) {
                quantised_read(&q, first, n, part);
                same_bits(part, all + first, n * sizeof *part, "a range", "values");
            }
    }
    arena_free(&arena);
}
END_TEST

START_TEST(numbers_that_are_not_finite_are_noticed) {
    Arena arena = {0};
    float values[100] = {0}, absmax[2];
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int kind = 0; kind < 2; kind++)
        for (int b = 0; b < 3; b++) {
            Quantised q = quantised_new(&arena, (QuantisedKind)kind, 100);
            values[70] = bad[b];
            ck_assert(!quantised_encode(&q, 0, 100, values, absmax));
            values[70] = 3e38f;
            ck_assert(quantised_encode(&q, 0, 100, values, absmax));
        }
    arena_free(&arena);
}
END_TEST

static const char *const sets[] = {"avx2", "avx512"};

/* From the smallest to beyond what a scale of fp32 holds, zeros of both signs, and levels' middles. */
START_TEST(every_set_of_kernels_quantises_to_the_same_bits) {
    enum { N = 40 * 64 + 29, BLOCKS = 41 };
    Arena arena = {0};
    float values[N], absmax[2][BLOCKS];
    philox_fill_normal(values, 0, N, philox_key(5, PHILOX_TEST, 0, 0), 0, 1);
    for (int i = 0; i < N; i++) values[i] *= powf(10, (float)(i / 64 * 2 - 44));
    for (int l = 0; l + 1 < NF4_LEVELS; l++) values[64 * 22 + l] = (nf4_levels[l] + nf4_levels[l + 1]) / 2;
    for (int i = 0; i < 64; i++) values[64 * 23 + i] = (float)(i - 32) * 0.5f;
    values[64 * 22 + 20] = 1;
    memset(values + 64, 0, 64 * sizeof *values);
    values[70] = -0.0f;
    for (int s = 0; s < 2; s++)
        for (int kind = 0; kind < 2; kind++) {
            size_t bytes = quantised_bytes((QuantisedKind)kind, N);
            Quantised q[2] = {quantised_new(&arena, (QuantisedKind)kind, N),
                              quantised_new(&arena, (QuantisedKind)kind, N)};
            if (kernels_select(sets[s]) != OK) {
                error_clear();
                continue;
            }
            ck_assert(quantised_encode(&q[0], 0, N, values, absmax[0]));
            ck_assert(kernels()->quantise(&q[1], 0, N, values, absmax[1]));
            same_bits(absmax[1], absmax[0], sizeof absmax[0], sets[s], "absmax");
            same_bits(q[1].codes, q[0].codes, bytes, sets[s], "codes and scales");
            values[N - 1] = INFINITY;
            ck_assert(!kernels()->quantise(&q[1], 0, N, values, absmax[1]));
            values[N - 1] = 0.25f;
        }
    ck_assert_int_eq(kernels_select("reference"), OK);
    arena_free(&arena);
}
END_TEST

START_TEST(storage_is_as_small_as_it_is_said_to_be) {
    size_t n = (size_t)4096 * 14336;
    double nf4 = 8 * (double)quantised_bytes(QUANTISED_NF4, n) / (double)n;
    double int8 = 8 * (double)quantised_bytes(QUANTISED_INT8, n) / (double)n;
    ck_assert_msg(fabs(nf4 - (4 + 8.0 / 64 + 32.0 / 64 / 256)) < 1e-4, "%g bits", nf4);
    ck_assert_msg(fabs(int8 - 8.5) < 1e-4, "%g bits", int8);
}
END_TEST

CHECK_MAIN("quantised", nf4_has_the_codes_scales_and_values_of_bitsandbytes, scale_levels_follow_their_formula,
           int8_is_within_half_a_step_of_every_element, any_range_reads_as_the_whole_does,
           numbers_that_are_not_finite_are_noticed, every_set_of_kernels_quantises_to_the_same_bits,
           storage_is_as_small_as_it_is_said_to_be)
