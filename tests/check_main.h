/* The main of every Check program: CHECK_MAIN("room", {case, …}). Under mpirun set CK_FORK=no. */
#ifndef CRIA_TESTS_CHECK_MAIN_H
#define CRIA_TESTS_CHECK_MAIN_H

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/core/error.h"

/* The call succeeds; its error text is shown where it does not. */
#define CHECK_OK(call) ck_assert_msg((call) == OK, "%s: %s (%s)", #call, error_text(), error_trace_text())
/* The call fails with this code, and its text contains `part`. */
#define CHECK_ERROR(call, code, part)                                                                    \
    do {                                                                                                 \
        error_clear();                                                                                   \
        ck_assert_int_eq((call), (code));                                                                \
        ck_assert_msg(strstr(error_text(), (part)) != NULL, "'%s' is not in: %s", (part), error_text()); \
    } while (0)

/* How many random cases to try: n, or CRIA_FUZZ times as many (make soak; set CK_TIMEOUT_MULTIPLIER too). */
static inline int check_rounds(int n) {
    const char *text = getenv("CRIA_FUZZ");
    int factor = text ? atoi(text) : 1;
    return factor > 1 && factor < 10000 ? n * factor : n;
}

typedef const TTest *CheckCase;

static inline int check_run(const char *name, const CheckCase *cases, int n) {
    Suite *suite = suite_create(name);
    TCase *group = tcase_create(name);
    tcase_set_timeout(group, 300);
    for (int i = 0; i < n; i++) tcase_add_test(group, cases[i]);
    suite_add_tcase(suite, group);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

#define CHECK_MAIN(name, ...)                                                 \
    int main(void) {                                                          \
        const CheckCase cases[] = {__VA_ARGS__};                              \
        return check_run((name), cases, (int)(sizeof cases / sizeof *cases)); \
    }

#endif
