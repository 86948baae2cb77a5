/* cria merge of models: every element is the weighted sum of theirs; what is not of one shape is refused. */
#include <string.h>
#include <unistd.h>

#include "model/core/file.h"
#include "model/core/log.h"
#include "model/formats/named.h"
#include "tests/check_main.h"
#include "train/commands.h"

#define BASE "tests/golden/llama_packed"
#define ADAPTER "tests/golden/lora_subset"

static char folder[64];

static char *path_of(const char *name) {
    char *path = NULL;
    ck_assert_int_gt(asprintf(&path, "%s/%s", folder, name), 0);
    return path;
}

static int merge(const char *const *words, int n) {
    char *argv[16] = {"merge"};
    for (int i = 0; i < n; i++) argv[i + 1] = (char *)(uintptr_t)words[i];
    return command_merge(n + 1, argv);
}
#define MERGE(...) \
    merge((const char *const[]){__VA_ARGS__}, (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)))

/* The base, and in `other` another model of its shape: the base with an adapter folded in. */
static char *make_other(void) {
    log_set_level(LOG_ERROR);
    strcpy(folder, "/tmp/cria-test-average-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    char *other = path_of("other");
    CHECK_OK(MERGE(BASE, ADAPTER, other, "--no-check"));
    return other;
}

static float *read_all(const NamedFile *file, const NamedArray *array) {
    float *values = malloc(named_elements(array) * sizeof *values);
    CHECK_OK(named_read_f32(file, array, 0, named_elements(array), values));
    return values;
}

/* Every element of `path` is a·BASE + b·other. */
static void check_elements(const char *path, const char *other_path, double a, double b) {
    NamedFile *file, *base, *other;
    size_t n_unlike = 0;
    CHECK_OK(named_open(&file, path));
    CHECK_OK(named_open(&base, BASE));
    CHECK_OK(named_open(&other, other_path));
    ck_assert_uint_eq(named_count(file), named_count(base));
    for (size_t i = 0; i < named_count(file); i++) {
        const NamedArray *array = named_at(file, i), *one, *two;
        CHECK_OK(named_get(&one, base, array->name));
        CHECK_OK(named_get(&two, other, array->name));
        float *found = read_all(file, array), *x = read_all(base, one), *y = read_all(other, two);
        for (size_t k = 0; k < named_elements(array); k++) {
            float expected = (float)(a * (double)x[k] + b * (double)y[k]);
            if (memcmp(&found[k], &expected, sizeof expected) != 0)
                ck_abort_msg("%s[%zu] is %.9g, expected %.9g", array->name, k, (double)found[k], (double)expected);
            n_unlike += memcmp(&x[k], &y[k], sizeof x[k]) != 0;
        }
        free(found);
        free(x);
        free(y);
    }
    ck_assert_uint_gt(n_unlike, 1000); /* they are two models */
    named_close(file);
    named_close(base);
    named_close(other);
}

START_TEST(an_average_has_the_weighted_sum_of_every_element) {
    char *other = make_other(), *even = path_of("even"), *uneven = path_of("uneven"), *three = path_of("three");
    CHECK_OK(MERGE(BASE, other, even));
    check_elements(even, other, 0.5, 0.5);
    CHECK_OK(MERGE(BASE, other, uneven, "--weights", "0.25,0.75"));
    check_elements(uneven, other, 0.25, 0.75);
    CHECK_OK(MERGE(BASE, other, BASE, three, "--weights", "0.5,-0.5,1"));
    check_elements(three, other, 1.5, -0.5);
    CHECK_OK(directory_remove(folder));
    free(other);
    free(even);
    free(uneven);
    free(three);
}
END_TEST

START_TEST(models_of_different_shapes_are_not_averaged) {
    char *other = make_other(), *to = path_of("no");
    CHECK_ERROR(MERGE(BASE, "tests/golden/llama_odd_heads", to), ERR_REFUSED, "only models of one shape");
    CHECK_ERROR(MERGE(BASE, other, "tests/golden/llama_tied", to), ERR_REFUSED, "llama_tied: its ");
    CHECK_ERROR(MERGE(BASE, other, to, "--weights", "1,1"), ERR_USAGE, "sum to 2");
    CHECK_ERROR(MERGE(BASE, other, to, "--weights", "1"), ERR_USAGE, "1 numbers for 2 models");
    CHECK_ERROR(MERGE(BASE, other, ADAPTER, to), ERR_REFUSED, "adapter");
    CHECK_ERROR(MERGE(BASE, other, other), ERR_REFUSED, other);
    ck_assert(!directory_exists(to));
    CHECK_OK(directory_remove(folder));
    free(other);
    free(to);
}
END_TEST

CHECK_MAIN("average", an_average_has_the_weighted_sum_of_every_element, models_of_different_shapes_are_not_averaged)
