/* The arithmetic of rejection sampling: expected maxima and medians against an enumeration of every choice, and what
 * counts as the last number of an answer. */
#include <stdlib.h>
#include <string.h>

#include "tests/check_main.h"
#include "train/sampling/rejection.h"
#include "train/answers/scorer.h"

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The mean of the m-th smallest over all choices of k of n. */
static double by_enumeration(const double *scores, int n, int k, int m) {
    double sum = 0, chosen[16];
    int choices = 0;
    for (unsigned set = 0; set < 1u << n; set++) {
        int size = 0;
        for (int i = 0; i < n; i++)
            if (set >> i & 1) chosen[size++] = scores[i];
        if (size != k) continue;
        qsort(chosen, (size_t)k, sizeof *chosen, ascending);
        sum += chosen[m - 1];
        choices++;
    }
    return sum / choices;
}

START_TEST(expected_order_is_the_mean_over_every_choice) {
    const double scores[] = {-3, -1, -1, 0.5, 2, 2.25, 7, 40};
    for (int n = 1; n <= 8; n++)
        for (int k = 1; k <= n; k++)
            for (int m = 1; m <= k; m++) {
                double wanted = by_enumeration(scores, n, k, m);
                ck_assert_double_eq_tol(expected_order(scores, n, k, m), wanted, 1e-12 * (1 + 40));
            }
}
END_TEST

START_TEST(expected_order_stays_a_mean_with_thousands_of_answers) {
    enum { MANY = 5000 };
    static double scores[MANY];
    for (int i = 0; i < MANY; i++) scores[i] = 1;
    for (int k = 1; k <= MANY; k += 613) ck_assert_double_eq_tol(expected_order(scores, MANY, k, k), 1, 1e-8);
}
END_TEST

START_TEST(the_last_number_is_the_one_behind_the_mark_or_else_the_last) {
    static const struct {
        const char *text;
        bool found;
        double number;
    } cases[] = {{"#### 72", true, 72},
                 {"3 + 4 = <<3+4=7>>7\n#### 1,234", true, 1234},
                 {"#### -5 and 6", true, -5},
                 {"It costs $18.50.", true, 18.5},
                 {"So -$3 it is", true, -3},
                 {"first 1, then 2.", true, 2},
                 {"10,000,000 of them", true, 10000000},
                 {"none", false, 0},
                 {"#### none, though 7 before", true, 7},
                 {"7 before #### none", false, 0},
                 {"", false, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double number = 0;
        bool found = final_number(cases[i].text, strlen(cases[i].text), &number);
        ck_assert_msg(found == cases[i].found && (!found || number == cases[i].number), "'%s': %d, %g", cases[i].text,
                      found, number);
    }
}
END_TEST

CHECK_MAIN("rejection", expected_order_is_the_mean_over_every_choice,
           expected_order_stays_a_mean_with_thousands_of_answers,
           the_last_number_is_the_one_behind_the_mark_or_else_the_last)
