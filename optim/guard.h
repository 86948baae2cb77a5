/* The guard against NaN and infinity in a training run: says of every step whether its update may be applied, when to
 * go back to the last checkpoint, and keeps which steps' data are left out from then on.
 *
 * A step is bad when its loss or its gradient norm is not finite. A bad step is not applied. After GUARD_PATIENCE bad
 * ones in a row the run goes back to the last checkpoint, and all steps from there to the last bad one are skipped, as
 * Chowdhery et al. 2022 (PaLM, section 5.1) did against loss spikes. The whole way from the checkpoint is left out, not
 * just the bad steps: those were not applied, so that replaying the good ones would end at exactly the weights that
 * just failed. Steps keep their numbers (and so their learning rates and their data): the run goes on behind the
 * window.
 *
 *   step          100      …     138 139 140 | 141 …
 *   first time    ckpt  applied  bad bad bad            -> ROLL_BACK
 *   afterwards    [-------- skipped --------] applied …    with the weights of the checkpoint
 *
 * When that does not help (GUARD_ROLL_BACKS roll-backs to the same checkpoint; a step applied between them says
 * little: it may be the one that ruins the weights) it says STOP. Only NaN and infinity count: a finite spike in the
 * loss is not detected (clipping bounds what it can do).
 *
 * The guard holds no ranks: feed it values all ranks agree on (the all-reduced loss and norm), and all ranks decide
 * alike.
 */
#ifndef CRIA_OPTIM_GUARD_H
#define CRIA_OPTIM_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { GUARD_PATIENCE = 3, GUARD_ROLL_BACKS = 3 };

typedef struct {
    int64_t first, last; /* both skipped */
} GuardWindow;

typedef struct {
    int64_t bad_in_a_row;
    int64_t roll_backs_in_a_row; /* to the newest checkpoint; set to 0 when another is saved */
    int64_t bad_steps;           /* in all; for reports */
    int64_t roll_backs;          /* in all; for reports */
    GuardWindow *windows;        /* in rising order, not touching */
    size_t n_windows;
} Guard; /* {0} is a new one */

typedef enum {
    GUARD_APPLY,     /* update */
    GUARD_SKIP,      /* do not update; go on with the next step */
    GUARD_ROLL_BACK, /* do not update; call guard_roll_back and load that checkpoint (or start anew) */
    GUARD_STOP,      /* do not update; rolling back did not help: fail */
} GuardVerdict;

GuardVerdict guard_check(Guard *guard, double loss, double grad_norm);

/* After ROLL_BACK at `bad_step`: the run's next step was `checkpoint_step` when the checkpoint was saved (0 where there
 * is none yet and the run starts anew). Skips checkpoint_step … bad_step. Keep this guard: the one inside the
 * checkpoint has not seen what happened since. */
int guard_roll_back(Guard *guard, int64_t checkpoint_step, int64_t bad_step);

/* The first step from `step` on that is not skipped. Every step is asked: step = guard_next(guard, step). */
int64_t guard_next(const Guard *guard, int64_t step);

/* For checkpoints: the state as *n numbers (malloc'd; the caller frees them), and back. Loading refuses (ERR_REFUSED)
 * what guard_save cannot have written, and leaves the guard as it was. */
int guard_save(const Guard *guard, int64_t **numbers, size_t *n);
int guard_load(Guard *guard, const int64_t *numbers, size_t n);
void guard_free(Guard *guard); /* leaves {0} */

#endif
