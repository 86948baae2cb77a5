/* The optimizer against PyTorch, the schedules at their ends, and the guard's decisions. */
#include <math.h>
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "optim/guard.h"
#include "optim/optimizer.h"
#include "tests/check_main.h"
#include "tests/golden/adamw.h"

static const char *const tables[] = {"reference", "openblas", "avx2", "avx512"};
enum { N_TABLES = sizeof tables / sizeof *tables, N_CASES = sizeof golden_cases / sizeof *golden_cases };

/* Both programs round every step to fp32: correct variants stay below 1.1e-6 here, the mistakes below show at 1e-2 and
 * more. */
static const double BOUND = 1e-5;
static const double NOTICED = 1e-3;

/* ---- AdamW against torch ----------------------------------------------------------------------------------------- */

/* What a careless implementation might do. */
typedef enum {
    CORRECT,
    NO_DECAY,
    DECAY_ON_NORMS,
    WRONG_BETA2,
    WRONG_EPSILON,
    NO_CLIPPING,
    NO_WARMUP,
    RATE_ONE_STEP_LATE,
    BIAS_ONE_STEP_LATE,
    STALE_GRADIENT
} Mistake;

static float initial(int p, int i) {
    return p == GOLDEN_NORM ? 1.0F : (float)((i * 37 + p * 11) % 101 - 50) / 1024;
}
static float gradient(int step, int p, int i) {
    long mixed = ((long)i * 7919 + (long)step * 104729 + (long)p * 1299709) % 1009 - 504;
    return ldexpf((float)mixed / 512, step % 4 - 2 - i % 24);
}

typedef struct {
    float values[GOLDEN_ELEMENTS], grads[GOLDEN_ELEMENTS];
    double norms[GOLDEN_STEPS];
} Trained;

static void train(Trained *out, const GoldenCase *golden, Mistake mistake) {
    OptimOptions options = golden->options;
    Schedule schedule = golden->schedule;
    if (mistake == NO_DECAY) options.weight_decay = 0;
    if (mistake == WRONG_BETA2) options.beta2 = options.beta2 == 0.95 ? 0.999 : 0.95;
    if (mistake == WRONG_EPSILON) options.epsilon *= 100;
    if (mistake == NO_CLIPPING) options.clip = 0;
    if (mistake == NO_WARMUP) schedule.warmup = 0;

    OptimParameter parameters[GOLDEN_PARAMETERS];
    int offsets[GOLDEN_PARAMETERS], next = 0;
    for (int p = 0; p < GOLDEN_PARAMETERS; p++) {
        offsets[p] = next;
        parameters[p] = (OptimParameter){.value = out->values + next,
                                         .grad = out->grads + next,
                                         .n = (size_t)golden_sizes[p],
                                         .decay = p != GOLDEN_NORM || mistake == DECAY_ON_NORMS};
        for (int i = 0; i < golden_sizes[p]; i++) out->values[next + i] = initial(p, i);
        next += golden_sizes[p];
    }
    Optimizer *optimizer;
    CHECK_OK(optimizer_new(&optimizer, parameters, GOLDEN_PARAMETERS, options));
    if (mistake == BIAS_ONE_STEP_LATE) optimizer_set_updates(optimizer, 1);
    for (int step = 0; step < GOLDEN_STEPS; step++) {
        int seen = mistake == STALE_GRADIENT && step == GOLDEN_STEPS / 2 ? step - 1 : step;
        for (int p = 0; p < GOLDEN_PARAMETERS; p++)
            for (int i = 0; i < golden_sizes[p]; i++) out->grads[offsets[p] + i] = gradient(seen, p, i);
        out->norms[step] = optimizer_grad_norm(optimizer);
        optimizer_step(optimizer, schedule_at(&schedule, mistake == RATE_ONE_STEP_LATE ? step + 1 : step),
                       out->norms[step]);
    }
    optimizer_free(optimizer);
}

/* The largest ‖Δθ − Δθ_ref‖ / ‖Δθ_ref‖ of any parameter. */
static double distance(const Trained *trained, const GoldenCase *golden) {
    double worst = 0;
    for (int p = 0, at = 0; p < GOLDEN_PARAMETERS; at += golden_sizes[p++]) {
        double difference = 0, change = 0;
        for (int i = 0; i < golden_sizes[p]; i++) {
            double reference = (double)golden->values[at + i] - (double)initial(p, i);
            double d = (double)trained->values[at + i] - (double)golden->values[at + i];
            difference += d * d;
            change += reference * reference;
        }
        ck_assert_double_gt(change, 0);
        double relative = sqrt(difference / change);
        if (!(relative <= worst)) worst = relative; /* NaN counts */
    }
    return worst;
}

START_TEST(twenty_steps_equal_torch_adamw_with_every_kernel_table) {
    int ran = 0;
    for (int t = 0; t < N_TABLES; t++) {
        int rc = kernels_select(tables[t]);
        if (rc == ERR_REFUSED) continue;
        CHECK_OK(rc);
        ran++;
        for (int c = 0; c < N_CASES; c++) {
            Trained trained;
            train(&trained, &golden_cases[c], CORRECT);
            double relative = distance(&trained, &golden_cases[c]);
            ck_assert_msg(relative <= BOUND, "%s, %s: the change differs by %.2e", tables[t], golden_cases[c].name,
                          relative);
            for (int step = 0; step < GOLDEN_STEPS; step++)
                ck_assert_double_le(fabs(trained.norms[step] / golden_cases[c].norms[step] - 1), 1e-6);
        }
    }
    ck_assert_int_ge(ran, 2);
}
END_TEST

START_TEST(the_comparison_notices_every_usual_mistake) {
    const struct {
        Mistake mistake;
        int golden;
    } mistakes[] = {{NO_DECAY, 0},    {NO_DECAY, 1},           {DECAY_ON_NORMS, 0},     {WRONG_BETA2, 0},
                    {WRONG_BETA2, 2}, {WRONG_EPSILON, 0},      {WRONG_EPSILON, 2},      {NO_CLIPPING, 1},
                    {NO_CLIPPING, 2}, {NO_WARMUP, 1},          {RATE_ONE_STEP_LATE, 1}, {RATE_ONE_STEP_LATE, 2},
                    {NO_WARMUP, 3},   {RATE_ONE_STEP_LATE, 3}, {BIAS_ONE_STEP_LATE, 0}, {STALE_GRADIENT, 3}};
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        Trained trained;
        train(&trained, &golden_cases[mistakes[i].golden], mistakes[i].mistake);
        double relative = distance(&trained, &golden_cases[mistakes[i].golden]);
        ck_assert_msg(relative >= NOTICED, "mistake %d in '%s' shows at only %.2e", (int)mistakes[i].mistake,
                      golden_cases[mistakes[i].golden].name, relative);
    }
}
END_TEST

START_TEST(clipping_scales_as_torch_clip_grad_norm) {
    ck_assert_double_eq(optimizer_clip_scale(0, 1e9), 1); /* off */
    ck_assert_double_eq(optimizer_clip_scale(1, 0.5), 1);
    ck_assert_double_eq(optimizer_clip_scale(1, 0), 1);
    ck_assert_double_eq(optimizer_clip_scale(1, 4), 1 / (4 + 1e-6));
    ck_assert_double_eq(optimizer_clip_scale(1, 1), 1 / (1 + 1e-6));
    ck_assert(isnan(optimizer_clip_scale(1, NAN)));
    ck_assert_double_eq(optimizer_clip_scale(1, INFINITY), 0);
}
END_TEST

/* ---- the rest of the optimizer ----------------------------------------------------------------------------------- */

enum { LARGE = 3 * 65536 + 17, SMALL = 5 };

START_TEST(the_gradient_norm_has_the_same_bits_for_any_number_of_threads) {
    float *grad = malloc(LARGE * sizeof *grad), small[SMALL] = {3, 4, 0, 0, 12};
    float *value = calloc(LARGE, sizeof *value);
    for (int i = 0; i < LARGE; i++) grad[i] = gradient(i % 7, 2, i);
    OptimParameter parameters[] = {{.value = value, .grad = grad, .n = LARGE, .decay = true},
                                   {.value = value, .grad = small, .n = SMALL}};
    OptimOptions options = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8};
    Optimizer *optimizer;
    CHECK_OK(optimizer_new(&optimizer, parameters, 2, options));
    double first = 0;
    for (int threads = 1; threads <= 4; threads++) {
        threads_init(threads);
        double norm = optimizer_grad_norm(optimizer);
        if (threads == 1) first = norm;
        ck_assert_mem_eq(&norm, &first, sizeof norm);
    }
    double expected = 169; /* 3² + 4² + 12² */
    for (int i = 0; i < LARGE; i++) expected += (double)grad[i] * (double)grad[i];
    ck_assert_double_le(fabs(first / sqrt(expected) - 1), 1e-12);

    grad[LARGE - 1] = NAN;
    ck_assert(isnan(optimizer_grad_norm(optimizer)));
    grad[LARGE - 1] = -INFINITY;
    ck_assert(isinf(optimizer_grad_norm(optimizer)));
    optimizer_zero_grad(optimizer);
    ck_assert_double_eq(optimizer_grad_norm(optimizer), 0);
    optimizer_free(optimizer);
    free(grad);
    free(value);
}
END_TEST

START_TEST(a_run_continued_from_saved_moments_is_bitwise_the_same) {
    float values[2][SMALL] = {{1, -2, 3, -4, 5}, {1, -2, 3, -4, 5}}, grad[SMALL];
    OptimOptions options = {
        .learning_rate = 1, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1, .clip = 1};
    Optimizer *whole, *part;
    OptimParameter parameter = {.value = values[0], .grad = grad, .n = SMALL, .decay = true};
    CHECK_OK(optimizer_new(&whole, &parameter, 1, options));
    parameter.value = values[1];
    CHECK_OK(optimizer_new(&part, &parameter, 1, options));
    for (int step = 0; step < 9; step++) {
        for (int i = 0; i < SMALL; i++) grad[i] = gradient(step, 0, i);
        double norm = optimizer_grad_norm(whole);
        optimizer_step(whole, 1e-3, norm);
        if (step == 4) { /* a new process reads m, v and the count */
            Optimizer *next;
            CHECK_OK(optimizer_new(&next, &parameter, 1, options));
            memcpy(optimizer_parameter(next, 0)->m, optimizer_parameter(part, 0)->m, sizeof grad);
            memcpy(optimizer_parameter(next, 0)->v, optimizer_parameter(part, 0)->v, sizeof grad);
            optimizer_set_updates(next, optimizer_updates(part));
            optimizer_free(part);
            part = next;
        }
        for (int i = 0; i < SMALL; i++) ck_assert(grad[i] == 0); /* the update has cleared it */
        for (int i = 0; i < SMALL; i++) grad[i] = gradient(step, 0, i);
        optimizer_step(part, 1e-3, norm);
        ck_assert_mem_eq(values[0], values[1], sizeof values[0]);
    }
    ck_assert_int_eq(optimizer_updates(part), 9);
    ck_assert_ptr_null(optimizer_parameter(part, 1));
    optimizer_free(whole);
    optimizer_free(part);
}
END_TEST

START_TEST(moments_are_counted_and_lie_on_cache_lines) {
    float data[SMALL];
    OptimParameter parameters[] = {{.value = data, .grad = data, .n = SMALL}, {.value = data, .grad = data, .n = 16}};
    OptimOptions options = {.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8};
    Optimizer *optimizer;
    CHECK_OK(optimizer_new(&optimizer, parameters, 2, options));
    ck_assert_uint_ge(optimizer_bytes(optimizer), 4 * 64); /* 2 parameters, 2 moments of a line each */
    ck_assert_uint_eq(optimizer_bytes(optimizer), optimizer_bytes_for(parameters, 2, DTYPE_F32));
    parameters[1].n = 1 << 16;
    ck_assert_uint_eq(optimizer_bytes_for(parameters, 2, DTYPE_F32) - optimizer_bytes_for(parameters, 2, DTYPE_BF16),
                      2 * (sizeof(float) - sizeof(bf16)) << 16);
    for (size_t p = 0; p < 2; p++) {
        const OptimParameter *parameter = optimizer_parameter(optimizer, p);
        ck_assert_uint_eq((uintptr_t)parameter->m % 64, 0);
        ck_assert_uint_eq((uintptr_t)parameter->v % 64, 0);
        const float *m = parameter->m, *v = parameter->v;
        for (size_t i = 0; i < parameter->n; i++) ck_assert(m[i] == 0 && v[i] == 0);
    }
    optimizer_free(optimizer);
}
END_TEST

START_TEST(options_out_of_range_are_refused_by_name) {
    const OptimOptions good = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8};
    Optimizer *optimizer;
    OptimOptions options = good;
    options.beta2 = 1;
    CHECK_ERROR(optimizer_new(&optimizer, NULL, 0, options), ERR_USAGE, "beta2 is 1");
    options = good;
    options.weight_decay = -0.1;
    CHECK_ERROR(optimizer_new(&optimizer, NULL, 0, options), ERR_USAGE, "weight_decay");
    options = good;
    options.clip = NAN;
    CHECK_ERROR(optimizer_new(&optimizer, NULL, 0, options), ERR_USAGE, "clip");
    OptimParameter huge = {.n = SIZE_MAX / 8};
    CHECK_ERROR(optimizer_new(&optimizer, &huge, 1, good), ERR_REFUSED, "more elements");
    ck_assert_ptr_null(optimizer);
    Schedule schedule = {.kind = SCHEDULE_COSINE, .peak = 1e-3, .final_ratio = 1.5, .warmup = 1, .total = 2};
    CHECK_ERROR(schedule_check(&schedule), ERR_USAGE, "final ratio is 1.5");
    schedule.final_ratio = 0.1;
    CHECK_OK(schedule_check(&schedule));
    schedule.warmup = -1;
    CHECK_ERROR(schedule_check(&schedule), ERR_USAGE, "warmup -1");
}
END_TEST

/* ---- schedules --------------------------------------------------------------------------------------------------- */

START_TEST(schedules_equal_transformers_at_every_step) {
    for (int c = 0; c < N_CASES; c++)
        for (int step = 0; step < GOLDEN_STEPS; step++)
            ck_assert_double_eq_tol(schedule_at(&golden_cases[c].schedule, step), golden_cases[c].rates[step], 1e-16);
}
END_TEST

START_TEST(schedules_hold_their_formulas_at_the_ends) {
    const double peak = 3e-4, ratio = 0.1, pi = acos(-1.0), tolerance = 1e-17;
    Schedule s = {.peak = peak, .final_ratio = ratio, .warmup = 10, .total = 110, .decay = 25};
    for (int kind = SCHEDULE_CONSTANT; kind <= SCHEDULE_WSD; kind++) {
        s.kind = (ScheduleKind)kind;
        ck_assert_double_eq_tol(schedule_at(&s, 0), peak / 10, tolerance);
        ck_assert_double_eq_tol(schedule_at(&s, 4), peak / 2, tolerance);
        ck_assert_double_eq(schedule_at(&s, 9), peak);
        ck_assert_double_eq(schedule_at(&s, 10), peak);
        ck_assert_double_eq_tol(schedule_at(&s, 110), kind == SCHEDULE_CONSTANT ? peak : peak * ratio, tolerance);
        ck_assert_double_eq(schedule_at(&s, 111), schedule_at(&s, 110));
        for (int step = 10; step < 112; step++) ck_assert(schedule_at(&s, step + 1) <= schedule_at(&s, step));
    }
    s.kind = SCHEDULE_LINEAR;
    ck_assert_double_eq_tol(schedule_at(&s, 60), peak * (ratio + 0.9 / 2), tolerance);
    ck_assert_double_eq_tol(schedule_at(&s, 109), peak * (ratio + 0.9 * 0.01), tolerance);
    s.kind = SCHEDULE_COSINE;
    ck_assert_double_eq_tol(schedule_at(&s, 60), peak * (ratio + 0.9 / 2), tolerance);
    ck_assert_double_eq_tol(schedule_at(&s, 109), peak * (ratio + 0.9 * (1 + cos(pi * 0.99)) / 2), tolerance);
    s.kind = SCHEDULE_WSD;
    ck_assert_double_eq(schedule_at(&s, 85), peak); /* the decline starts here */
    ck_assert_double_lt(schedule_at(&s, 86), peak);
    ck_assert_double_eq_tol(schedule_at(&s, 109), peak * (ratio + 0.9 * (1 - sqrt(24.0 / 25))), tolerance);
}
END_TEST

START_TEST(schedules_of_no_length_stay_finite) {
    for (int kind = SCHEDULE_CONSTANT; kind <= SCHEDULE_WSD; kind++)
        for (int64_t warmup = 0; warmup < 5; warmup++)
            for (int64_t total = 0; total < 5; total++)
                for (int64_t decay = 0; decay < 7; decay++) {
                    Schedule s = {.kind = (ScheduleKind)kind,
                                  .peak = 1,
                                  .final_ratio = 0,
                                  .warmup = warmup,
                                  .total = total,
                                  .decay = decay};
                    for (int64_t step = 0; step < 6; step++)
                        ck_assert(schedule_at(&s, step) >= 0 && schedule_at(&s, step) <= 1);
                    if (total > warmup) ck_assert_double_gt(schedule_at(&s, total - 1), 0); /* no update is wasted */
                }
}
END_TEST

/* ---- the guard --------------------------------------------------------------------------------------------------- */

START_TEST(finite_steps_are_applied_and_bad_ones_are_not) {
    Guard guard = {0};
    ck_assert_int_eq(guard_check(&guard, 2.5, 1e30), GUARD_APPLY);
    ck_assert_int_eq(guard_check(&guard, NAN, 1), GUARD_SKIP);
    ck_assert_int_eq(guard_check(&guard, 2.5, 1), GUARD_APPLY);
    ck_assert_int_eq(guard_check(&guard, 2.5, INFINITY), GUARD_SKIP);
    ck_assert_int_eq(guard_check(&guard, -INFINITY, 1), GUARD_SKIP);
    ck_assert_int_eq(guard_check(&guard, 2.5, 1), GUARD_APPLY); /* two in a row are not three */
    ck_assert_int_eq(guard.bad_steps, 3);
    ck_assert_int_eq(guard_next(&guard, 4), 4);
    guard_free(&guard);
}
END_TEST

START_TEST(three_bad_steps_in_a_row_roll_back_and_skip_the_window) {
    Guard guard = {0};
    ck_assert_int_eq(guard_check(&guard, 2, 1), GUARD_APPLY);       /* 137 */
    ck_assert_int_eq(guard_check(&guard, NAN, NAN), GUARD_SKIP);    /* 138 */
    ck_assert_int_eq(guard_check(&guard, 2, NAN), GUARD_SKIP);      /* 139 */
    ck_assert_int_eq(guard_check(&guard, 2, NAN), GUARD_ROLL_BACK); /* 140 */
    CHECK_OK(guard_roll_back(&guard, 100, 140));
    ck_assert_int_eq(guard_next(&guard, 99), 99);
    for (int step = 100; step <= 140; step++) ck_assert_int_eq(guard_next(&guard, step), 141);
    ck_assert_int_eq(guard_next(&guard, 141), 141);

    /* again, before the next checkpoint: one longer window; later, after one at 200: a second */
    for (int i = 0; i < GUARD_PATIENCE; i++) guard_check(&guard, NAN, 1);
    CHECK_OK(guard_roll_back(&guard, 100, 143));
    ck_assert_uint_eq(guard.n_windows, 1);
    ck_assert_int_eq(guard_next(&guard, 100), 144);
    CHECK_OK(guard_roll_back(&guard, 200, 203));
    ck_assert_uint_eq(guard.n_windows, 2);
    ck_assert_int_eq(guard_next(&guard, 150), 150);
    ck_assert_int_eq(guard_next(&guard, 201), 204);
    CHECK_OK(guard_roll_back(&guard, 204, 210)); /* touches the last: they join */
    ck_assert_uint_eq(guard.n_windows, 2);
    ck_assert_int_eq(guard_next(&guard, 200), 211);
    ck_assert_int_eq(guard.roll_backs, 4);
    CHECK_ERROR(guard_roll_back(&guard, 300, 299), ERR_FAILED, "cannot go back");
    guard_free(&guard);
}
END_TEST

START_TEST(roll_backs_that_do_not_help_end_in_stop) {
    Guard guard = {0};
    int64_t step = 0;
    for (int round = 0; round <= GUARD_ROLL_BACKS; round++) {
        ck_assert_int_eq(guard_check(&guard, 2, 1),
                         GUARD_APPLY); /* a step that ruins the weights is itself a good one */
        ck_assert_int_eq(guard_check(&guard, NAN, 1), GUARD_SKIP);
        ck_assert_int_eq(guard_check(&guard, NAN, 1), GUARD_SKIP);
        GuardVerdict verdict = guard_check(&guard, NAN, 1);
        ck_assert_int_eq(verdict, round < GUARD_ROLL_BACKS ? GUARD_ROLL_BACK : GUARD_STOP);
        if (verdict == GUARD_ROLL_BACK) CHECK_OK(guard_roll_back(&guard, 0, step + 3));
        step += 4;
    }
    guard_free(&guard);
}
END_TEST

START_TEST(the_guard_survives_saving_and_refuses_what_it_cannot_have_saved) {
    Guard guard = {0}, copy = {0};
    for (int i = 0; i < GUARD_PATIENCE; i++) guard_check(&guard, NAN, 1);
    CHECK_OK(guard_roll_back(&guard, 10, 20));
    guard_check(&guard, 1, 1);
    CHECK_OK(guard_roll_back(&guard, 30, 40));
    guard_check(&guard, NAN, 1);
    int64_t *numbers;
    size_t n;
    CHECK_OK(guard_save(&guard, &numbers, &n));
    CHECK_OK(guard_load(&copy, numbers, n));
    ck_assert_int_eq(guard_next(&copy, 15), 21);
    ck_assert_int_eq(guard_next(&copy, 30), 41);
    ck_assert_int_eq(copy.bad_steps, guard.bad_steps);
    ck_assert_int_eq(copy.roll_backs, 2);
    ck_assert_int_eq(guard_check(&copy, NAN, 1), GUARD_SKIP); /* the second in a row: the first was before saving */
    ck_assert_int_eq(guard_check(&copy, NAN, 1), GUARD_ROLL_BACK);

    for (size_t cut = 0; cut < n; cut++) {
        int rc = guard_load(&copy, numbers, cut);
        bool whole_windows = cut >= 5 && (cut - 5) % 2 == 0; /* shorter but well formed */
        ck_assert_int_eq(rc, whole_windows ? OK : ERR_REFUSED);
    }
    for (size_t i = 0; i < n; i++) {
        int64_t kept = numbers[i];
        numbers[i] = -1;
        CHECK_ERROR(guard_load(&copy, numbers, n), ERR_REFUSED, "guard");
        numbers[i] = kept;
    }
    numbers[6] = INT64_MAX;
    CHECK_ERROR(guard_load(&copy, numbers, n), ERR_REFUSED, "window");
    free(numbers);
    guard_free(&guard);
    guard_free(&copy);
}
END_TEST

CHECK_MAIN("optim", twenty_steps_equal_torch_adamw_with_every_kernel_table, the_comparison_notices_every_usual_mistake,
           clipping_scales_as_torch_clip_grad_norm, the_gradient_norm_has_the_same_bits_for_any_number_of_threads,
           a_run_continued_from_saved_moments_is_bitwise_the_same, moments_are_counted_and_lie_on_cache_lines,
           options_out_of_range_are_refused_by_name, schedules_equal_transformers_at_every_step,
           schedules_hold_their_formulas_at_the_ends, schedules_of_no_length_stay_finite,
           finite_steps_are_applied_and_bad_ones_are_not, three_bad_steps_in_a_row_roll_back_and_skip_the_window,
           roll_backs_that_do_not_help_end_in_stop, the_guard_survives_saving_and_refuses_what_it_cannot_have_saved)
