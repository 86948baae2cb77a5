/* The state machine of optim/guard.h. Saved form, all int64:
 *
 *   version (1), bad_in_a_row, roll_backs_in_a_row, bad_steps, roll_backs, then first, last of every window
 */
#include "optim/guard.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

enum { SAVED_VERSION = 1, SAVED_HEADER = 5 };

GuardVerdict guard_check(Guard *guard, double loss, double grad_norm) {
    if (isfinite(loss) && isfinite(grad_norm)) {
        guard->bad_in_a_row = 0;
        return GUARD_APPLY;
    }
    guard->bad_steps++;
    if (++guard->bad_in_a_row < GUARD_PATIENCE) return GUARD_SKIP;
    return guard->roll_backs_in_a_row < GUARD_ROLL_BACKS ? GUARD_ROLL_BACK : GUARD_STOP;
}

int guard_roll_back(Guard *guard, int64_t checkpoint_step, int64_t bad_step) {
    if (checkpoint_step < 0 || checkpoint_step > bad_step)
        FAIL(ERR_FAILED, "guard: cannot go back from step %lld to a checkpoint at step %lld", (long long)bad_step,
             (long long)checkpoint_step);
    /* Windows that reach to the checkpoint become part of the new one, which is always the last. */
    size_t keep = 0;
    while (keep < guard->n_windows && guard->windows[keep].last < checkpoint_step - 1) keep++;
    GuardWindow window = {checkpoint_step, bad_step};
    for (size_t i = keep; i < guard->n_windows; i++) {
        if (guard->windows[i].first < window.first) window.first = guard->windows[i].first;
        if (guard->windows[i].last > window.last) window.last = guard->windows[i].last;
    }
    GuardWindow *grown = realloc(guard->windows, (keep + 1) * sizeof *grown);
    if (!grown) FAIL(ERR_FAILED, "guard: out of memory for %zu skipped windows", keep + 1);
    grown[keep] = window;
    guard->windows = grown;
    guard->n_windows = keep + 1;
    guard->bad_in_a_row = 0;
    guard->roll_backs_in_a_row++;
    guard->roll_backs++;
    return OK;
}

int64_t guard_next(const Guard *guard, int64_t step) {
    for (size_t i = 0; i < guard->n_windows; i++)
        if (step >= guard->windows[i].first && step <= guard->windows[i].last) step = guard->windows[i].last + 1;
    return step;
}

int guard_save(const Guard *guard, int64_t **out, size_t *n) {
    *n = SAVED_HEADER + 2 * guard->n_windows;
    int64_t *numbers = *out = malloc(*n * sizeof *numbers);
    if (!numbers) FAIL(ERR_FAILED, "guard: out of memory for its saved state");
    const int64_t header[SAVED_HEADER] = {SAVED_VERSION, guard->bad_in_a_row, guard->roll_backs_in_a_row,
                                          guard->bad_steps, guard->roll_backs};
    memcpy(numbers, header, sizeof header);
    for (size_t i = 0; i < guard->n_windows; i++) {
        numbers[SAVED_HEADER + 2 * i] = guard->windows[i].first;
        numbers[SAVED_HEADER + 2 * i + 1] = guard->windows[i].last;
    }
    return OK;
}

static int check_saved(const int64_t *numbers, size_t n) {
    if (n < SAVED_HEADER || (n - SAVED_HEADER) % 2 != 0)
        FAIL(ERR_REFUSED, "guard: its saved state has %zu numbers; expected %d and two for each window", n,
             (int)SAVED_HEADER);
    if (numbers[0] != SAVED_VERSION)
        FAIL(ERR_REFUSED, "guard: its saved state is of version %lld; this program reads %d", (long long)numbers[0],
             (int)SAVED_VERSION);
    if (numbers[1] < 0 || numbers[1] > GUARD_PATIENCE || numbers[2] < 0 || numbers[2] > GUARD_ROLL_BACKS ||
        numbers[3] < numbers[1] || numbers[4] < numbers[2])
        FAIL(ERR_REFUSED, "guard: its saved counts (%lld, %lld, %lld, %lld) contradict each other",
             (long long)numbers[1], (long long)numbers[2], (long long)numbers[3], (long long)numbers[4]);
    int64_t lowest = 0;
    for (size_t i = SAVED_HEADER; i < n; i += 2) {
        if (numbers[i] < lowest || numbers[i + 1] < numbers[i] || numbers[i + 1] > INT64_MAX - 2)
            FAIL(ERR_REFUSED, "guard: saved window %lld-%lld is reversed, or not behind the one before",
                 (long long)numbers[i], (long long)numbers[i + 1]);
        lowest = numbers[i + 1] + 2;
    }
    return OK;
}

int guard_load(Guard *guard, const int64_t *numbers, size_t n) {
    TRY(check_saved(numbers, n));
    size_t n_windows = (n - SAVED_HEADER) / 2;
    GuardWindow *windows = NULL;
    if (n_windows) {
        windows = calloc(n_windows, sizeof *windows);
        if (!windows) FAIL(ERR_FAILED, "guard: out of memory for %zu skipped windows", n_windows);
    }
    for (size_t i = 0; i < n_windows; i++)
        windows[i] = (GuardWindow){numbers[SAVED_HEADER + 2 * i], numbers[SAVED_HEADER + 2 * i + 1]};
    guard_free(guard);
    *guard = (Guard){.bad_in_a_row = numbers[1],
                     .roll_backs_in_a_row = numbers[2],
                     .bad_steps = numbers[3],
                     .roll_backs = numbers[4],
                     .windows = windows,
                     .n_windows = n_windows};
    return OK;
}

void guard_free(Guard *guard) {
    free(guard->windows);
    *guard = (Guard){0};
}
