/* A report card's numbers against what can be worked out by hand. */
#include <math.h>
#include <string.h>

#include "eval/reward_card.h"
#include "tests/check_main.h"

START_TEST(intervals_are_wilsons) {
    /* Newcombe 1998, table I: 81 of 263 and 0 of 20; the latter's upper end is z²/(n + z²) */
    Proportion p = proportion(81, 263);
    ck_assert_double_eq_tol(p.share, 81.0 / 263, 1e-15);
    ck_assert_double_eq_tol(p.low, 0.2553, 5e-5);
    ck_assert_double_eq_tol(p.high, 0.3662, 5e-5);
    p = proportion(0, 20);
    ck_assert_double_eq_tol(p.low, 0, 1e-15);
    ck_assert_double_eq_tol(p.high, 0.1611, 5e-5);
    p = proportion(20, 20);
    ck_assert_double_eq_tol(p.low, 1 - 0.1611, 5e-5);
    ck_assert_double_eq_tol(p.high, 1, 1e-15);
    p = proportion(0, 0);
    ck_assert(p.n == 0 && p.low == 0 && p.high == 1);
}
END_TEST

static const RewardPair pairs[] = {
    {{2, 0}, {10, 4}, STRENGTH_SIGNIFICANT},   /* right, the longer */
    {{1, 1.25}, {3, 9}, STRENGTH_SIGNIFICANT}, /* wrong, the longer is ranked first */
    {{0.5, 0.5}, {6, 5}, STRENGTH_SLIGHT},     /* a tie is not right */
    {{-1, -5}, {2, 2}, STRENGTH_UNKNOWN},      /* right, equally long */
};
enum { N = sizeof pairs / sizeof *pairs };

START_TEST(shares_and_means_are_those_of_the_pairs) {
    RewardCard card;
    CHECK_OK(reward_card(&card, pairs, N));
    ck_assert(card.accuracy.n == 4 && card.accuracy.right == 2);
    ck_assert(card.by_strength[STRENGTH_SIGNIFICANT].n == 2 && card.by_strength[STRENGTH_SIGNIFICANT].right == 1);
    ck_assert(card.by_strength[STRENGTH_SLIGHT].right == 0 && card.by_strength[STRENGTH_BETTER].n == 0);
    ck_assert_double_eq_tol(card.margin, (2 - 0.25 + 0 + 4) / 4, 1e-15);
    ck_assert_double_eq_tol(card.mean, (2 + 0 + 1 + 1.25 + 0.5 + 0.5 - 1 - 5) / 8, 1e-15);
    ck_assert(card.least == -5 && card.most == 2);
    double loss = (log1p(exp(-2)) + log1p(exp(0.25)) + log(2) + log1p(exp(-4))) / 4;
    ck_assert_double_eq_tol(card.loss, loss, 1e-14);
    ck_assert(card.longer_chosen.n == 3 && card.longer_chosen.right == 2);
    ck_assert(card.longer_preferred.n == 3 && card.longer_preferred.right == 2);
}
END_TEST

START_TEST(calibration_compares_confidence_with_how_often_it_is_right) {
    RewardCard card;
    double p0 = 1 / (1 + exp(-2.0)), p1 = 1 / (1 + exp(-0.25)), p3 = 1 / (1 + exp(-4.0));
    CHECK_OK(reward_card(&card, pairs, N));
    ck_assert(card.bins[0].observed.n == 2 && card.bins[0].observed.right == 0);
    ck_assert_double_eq_tol(card.bins[0].predicted, (p1 + 0.5) / 2, 1e-15);
    ck_assert(card.bins[3].observed.n == 1 && card.bins[4].observed.n == 1 && card.bins[1].observed.n == 0);
    ck_assert_double_eq_tol(card.bins[3].predicted, p0, 1e-15);
    ck_assert_double_eq_tol(card.bins[4].predicted, p3, 1e-15);
    ck_assert_double_eq_tol(card.calibration_error, (p1 + 0.5) / 4 + (1 - p0) / 4 + (1 - p3) / 4, 1e-15);
}
END_TEST

START_TEST(correlations_with_length) {
    /* rewards 3·length + 1: 1 of both kinds; against a curve the ranks still agree */
    RewardPair line[3], curve[3], flat[3];
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 2; k++) {
            double length = 2 * i + k + 1;
            line[i].length[k] = curve[i].length[k] = flat[i].length[k] = length;
            line[i].reward[k] = 3 * length + 1;
            curve[i].reward[k] = -exp(length);
            flat[i].reward[k] = 7;
            line[i].strength = curve[i].strength = flat[i].strength = STRENGTH_UNKNOWN;
        }
    RewardCard card;
    CHECK_OK(reward_card(&card, line, 3));
    ck_assert_double_eq_tol(card.length_pearson, 1, 1e-12);
    ck_assert_double_eq_tol(card.length_spearman, 1, 1e-12);
    CHECK_OK(reward_card(&card, curve, 3));
    ck_assert_double_eq_tol(card.length_spearman, -1, 1e-12);
    ck_assert(card.length_pearson > -0.9);
    CHECK_OK(reward_card(&card, flat, 3));
    ck_assert(card.length_pearson == 0 && card.length_spearman == 0);
    /* ties share their rank: 0.5 0.5 2 3 4 5 against 0 1 2 3 4 5, worked out by hand */
    line[0].reward[1] = line[0].reward[0];
    CHECK_OK(reward_card(&card, line, 3));
    ck_assert_double_eq_tol(card.length_spearman, 17 / sqrt(17 * 17.5), 1e-12);
}
END_TEST

START_TEST(the_worst_pairs_come_first) {
    size_t order[N];
    reward_worst_first(order, pairs, N);
    ck_assert(order[0] == 1 && order[1] == 2 && order[2] == 0 && order[3] == 3);
}
END_TEST

/* n pairs, of which `right` are ranked right with these rewards' distance; the longer answer is chosen in half of them,
 * and ranked first in `longer`. */
static void expect_remarks(size_t n, size_t right, double apart, size_t longer, const char *says) {
    RewardPair made[200];
    RewardCard card;
    Text text = {0};
    for (size_t i = 0; i < n; i++) {
        int is_right = i < right, first_is_longer = (i * 7919) % n < longer;
        made[i] = (RewardPair){.reward = {is_right ? apart : 0, is_right ? 0 : apart}, .strength = STRENGTH_UNKNOWN};
        made[i].length[0] = is_right == first_is_longer ? 9 : 3;
        made[i].length[1] = 12 - made[i].length[0];
    }
    CHECK_OK(reward_card(&card, made, n));
    reward_remarks(&text, &card);
    if (*says)
        ck_assert_msg(text.bytes && strstr(text.bytes, says), "'%s' lacks '%s'", text.bytes ? text.bytes : "", says);
    else
        ck_assert_msg(text.length == 0, "'%s'", text.bytes);
    text_free(&text);
}

START_TEST(a_card_says_in_words_what_it_shows) {
    expect_remarks(100, 75, 1.1, 50, "");
    expect_remarks(40, 22, 0.2, 20, "cannot be told from chance");
    expect_remarks(100, 20, 1.1, 50, "swapped?");
    expect_remarks(100, 70, 0.8, 95, "follows length: the longer answer is ranked first in 95 %");
    expect_remarks(100, 70, 0.8, 5, "follows brevity");
    expect_remarks(100, 70, 4, 50, "too sure of itself");
    expect_remarks(100, 90, 0.2, 50, "less sure than it could be");
}
END_TEST

CHECK_MAIN("reward card", intervals_are_wilsons, shares_and_means_are_those_of_the_pairs,
           calibration_compares_confidence_with_how_often_it_is_right, correlations_with_length,
           the_worst_pairs_come_first, a_card_says_in_words_what_it_shows)
