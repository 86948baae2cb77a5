/* Floor 0: errors, dtypes, Philox, text, files. */
#include <math.h>
#include <string.h>

#include "model/core/arena.h"
#include "model/core/dtype.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/philox.h"
#include "model/core/text.h"
#include "model/core/threads.h"
#include "tests/check_main.h"

static int fails(void) {
    FAIL(ERR_REFUSED, "%s:%d: found '%s'", "data.jsonl", 3, "x");
}
static int passes_it_up(void) {
    TRY(fails());
    return OK;
}

START_TEST(an_error_carries_its_text_and_its_path) {
    CHECK_ERROR(passes_it_up(), ERR_REFUSED, "data.jsonl:3: found 'x'");
    ck_assert_ptr_nonnull(strchr(error_trace_text(), '<'));
    error_context(ERR_REFUSED, "reading %s", "corpus");
    ck_assert_str_eq(error_text(), "reading corpus: data.jsonl:3: found 'x'");
    error_replace("data.jsonl", "the data");
    ck_assert_str_eq(error_text(), "reading corpus: the data:3: found 'x'");
    error_replace("a", "the"); /* wherever it is, and not in what was put there */
    ck_assert_str_eq(error_text(), "retheding corpus: the dthetthe:3: found 'x'");
}
END_TEST

START_TEST(every_fp16_and_bf16_survives_fp32) {
    for (uint32_t bits = 0; bits < 65536; bits++) {
        float half = f16_to_f32((uint16_t)bits), brain = bf16_to_f32((uint16_t)bits);
        if (!isnan(half))
            ck_assert_uint_eq(f32_to_f16(half), bits);
        else
            ck_assert(isnan(f16_to_f32(f32_to_f16(half))));
        if (!isnan(brain))
            ck_assert_uint_eq(f32_to_bf16(brain), bits);
        else
            ck_assert(isnan(bf16_to_f32(f32_to_bf16(brain))));
    }
}
END_TEST

START_TEST(rounding_is_to_nearest_even) {
    ck_assert_uint_eq(f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);           /* a tie goes to even */
    ck_assert_uint_eq(f32_to_bf16(1.0f + 0x1p-7f + 0x1p-8f), 0x3f82); /* and up */
    ck_assert_uint_eq(f32_to_f16(1.0f + 0x1p-11f), 0x3c00);
    ck_assert_uint_eq(f32_to_f16(65519.0f), 0x7bff);
    ck_assert_uint_eq(f32_to_f16(65520.0f), 0x7c00);
    ck_assert_uint_eq(f32_to_f16(0x1p-25f), 0); /* a tie between 0 and the least subnormal */
    ck_assert_uint_eq(f32_to_f16(0x1.8p-25f), 1);
}
END_TEST

START_TEST(philox_equals_the_published_vectors) {
    /* Random123's kat_vectors, philox 4x32 10 rounds */
    uint32_t out[4];
    philox4x32(out, (uint32_t[4]){0, 0, 0, 0}, (PhiloxKey){{0, 0}});
    ck_assert_uint_eq(out[0], 0x6627e8d5u);
    ck_assert_uint_eq(out[1], 0xe169c58du);
    ck_assert_uint_eq(out[2], 0xbc57ac4cu);
    ck_assert_uint_eq(out[3], 0x9b00dbd8u);
    philox4x32(out, (uint32_t[4]){0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u},
               (PhiloxKey){{0xa4093822u, 0x299f31d0u}});
    ck_assert_uint_eq(out[0], 0xd16cfe09u);
    ck_assert_uint_eq(out[1], 0x94fdccebu);
    ck_assert_uint_eq(out[2], 0x5001e420u);
    ck_assert_uint_eq(out[3], 0x24126ea1u);
}
END_TEST

START_TEST(normals_have_their_moments_and_do_not_depend_on_the_cut) {
    enum { N = 100000 };
    float *all = malloc(N * sizeof *all), part[7];
    PhiloxKey key = philox_key(1, PHILOX_TEST, 2, 3);
    philox_fill_normal(all, 0, N, key, 0.5f, 2.0f);
    double sum = 0, squares = 0;
    for (int i = 0; i < N; i++) sum += (double)all[i];
    for (int i = 0; i < N; i++) squares += ((double)all[i] - 0.5) * ((double)all[i] - 0.5);
    ck_assert(fabs(sum / N - 0.5) < 0.03); /* 4.7 standard errors */
    ck_assert(fabs(squares / N - 4.0) < 0.09);
    for (uint64_t first = 0; first < 40; first++) {
        philox_fill_normal(part, first, 7, key, 0.5f, 2.0f);
        ck_assert_mem_eq(part, all + first, sizeof part);
    }
    free(all);
}
END_TEST

START_TEST(a_permutation_holds_everything_once) {
    enum { N = 1000 };
    uint32_t order[N];
    bool seen[N] = {false};
    philox_permutation(order, N, philox_key(7, PHILOX_TEST, 0, 0));
    int in_place = 0;
    for (uint32_t i = 0; i < N; i++) {
        ck_assert(order[i] < N && !seen[order[i]]);
        seen[order[i]] = true;
        in_place += order[i] == i;
    }
    ck_assert_int_lt(in_place, 10);
}
END_TEST

START_TEST(crc32c_is_castagnoli) {
    ck_assert_uint_eq(crc32c(0, "123456789", 9), 0xE3069283u);
    ck_assert_uint_eq(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xE3069283u);
}
END_TEST

START_TEST(an_atomic_write_leaves_one_whole_file) {
    char directory[] = "/tmp/cria-test-XXXXXX";
    ck_assert_ptr_nonnull(mkdtemp(directory));
    char *path = path_join(directory, "a.txt"), *bytes;
    size_t size;
    CHECK_OK(file_write_atomic(path, "first", 5));
    CHECK_OK(file_write_atomic(path, "second", 6));
    CHECK_OK(file_read(&bytes, &size, path, 0));
    ck_assert_str_eq(bytes, "second");
    free(bytes);
    CHECK_ERROR(file_read(&bytes, &size, path, 5), ERR_REFUSED, "a.txt");
    char **names;
    CHECK_OK(directory_list(&names, &size, directory));
    ck_assert_uint_eq(size, 1);
    names_free(names, size);
    CHECK_ERROR(file_write_atomic("/nonexistent/a", "x", 1), ERR_FAILED, "/nonexistent/a");
    CHECK_OK(directory_remove(directory));
    ck_assert(!directory_exists(directory));
    free(path);
}
END_TEST

START_TEST(numbers_parse_whole_or_not_at_all) {
    int64_t i;
    double d;
    ck_assert(text_parse_int("1_000", &i) && i == 1000);
    ck_assert(text_parse_int("64k", &i) && i == 65536);
    ck_assert(text_parse_int("1e6", &i) && i == 1000000);
    ck_assert(text_parse_int("-3", &i) && i == -3);
    ck_assert(!text_parse_int("", &i) && !text_parse_int("3x", &i) && !text_parse_int("1.5", &i));
    ck_assert(!text_parse_int("99999999999999999999", &i) && !text_parse_int("9999999999G", &i));
    ck_assert(text_parse_double("2.0e-4", &d) && d == 2.0e-4);
    ck_assert(!text_parse_double("1.0.0", &d) && !text_parse_double(" 1", &d));
}
END_TEST

START_TEST(utf8_is_strict) {
    uint32_t code;
    char out[4];
    ck_assert_int_eq(utf8_decode("\xf0\x9f\xa6\x99", 4, &code), 4);
    ck_assert_uint_eq(code, 0x1F999);
    ck_assert_int_eq(utf8_encode(out, code), 4);
    ck_assert_mem_eq(out, "\xf0\x9f\xa6\x99", 4);
    ck_assert_int_eq(utf8_decode("\xf0\x9f\xa6", 3, &code), 0);
    ck_assert_int_eq(utf8_decode("\xc0\x80", 2, &code), 0);
    ck_assert_int_eq(utf8_decode("\xed\xa0\x80", 3, &code), 0);
    ck_assert_int_eq(utf8_decode("\xf4\x90\x80\x80", 4, &code), 0);
}
END_TEST

START_TEST(a_float_is_written_as_people_write_it) {
    ck_assert_double_eq(text_float(1e-5f), 1e-5);
    ck_assert_double_eq(text_float(5e5f), 500000);
    ck_assert_double_eq(text_float(1.0f / 3), 0.33333334);
    ck_assert((float)text_float(0x1.fffffep127f) == 0x1.fffffep127f);
    ck_assert((float)text_float(0x1p-149f) == 0x1p-149f);
}
END_TEST

START_TEST(the_nearest_name_is_offered_for_a_typing_error_only) {
    const char *names[] = {"learning_rate", "weight_decay", "warmup"};
    ck_assert_str_eq(text_nearest("learnign_rate", names, 3), "learning_rate");
    ck_assert_ptr_null(text_nearest("zebra", names, 3));
}
END_TEST

START_TEST(thread_ranges_cover_everything_once) {
    for (size_t n = 0; n < 70; n++)
        for (int threads = 1; threads < 6; threads++) {
            size_t next = 0;
            for (int t = 0; t < threads; t++) {
                size_t begin, end;
                threads_range(n, 8, t, threads, &begin, &end);
                ck_assert_uint_eq(begin, next);
                ck_assert(end == n || end % 8 == 0);
                next = end;
            }
            ck_assert_uint_eq(next, n);
        }
}
END_TEST

CHECK_MAIN("core", an_error_carries_its_text_and_its_path, every_fp16_and_bf16_survives_fp32,
           rounding_is_to_nearest_even, philox_equals_the_published_vectors,
           normals_have_their_moments_and_do_not_depend_on_the_cut, a_permutation_holds_everything_once,
           crc32c_is_castagnoli, an_atomic_write_leaves_one_whole_file, numbers_parse_whole_or_not_at_all,
           utf8_is_strict, a_float_is_written_as_people_write_it, the_nearest_name_is_offered_for_a_typing_error_only,
           thread_ranges_cover_everything_once)
