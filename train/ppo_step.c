/* See ppo_stage.h. Rollout r serves steps r·u … r·u + u - 1, u = epochs × minibatches; it is made at the first of them
 * and follows from the model then, the seed and r. */
#include <math.h>
#include <stdlib.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "train/ppo_stage.h"

/* What is recorded when sampling is what the training graph computes, but for the order of its sums. */
static const double MOST_DISTANCE_F32 = 1e-5, MOST_DISTANCE_BF16 = 2e-2;

static int updates_of(const Ppo *ppo) {
    return ppo->options.epochs * ppo->options.minibatches;
}

/* ---- log-probabilities of the training graph ---- */

/* Without its adapter the model is the reference. */
static void show_adapter(Run *run, bool on) {
    if (run->lora) lora_attach(run->lora, on);
}

static int make_passes(Run *run) {
    Ppo *ppo = run->own;
    if (ppo->policy_pass) return OK;
    double temperature = ppo->options.temperature;
    ppo->memory = tape_memory_new();
    if (!ppo->memory) FAIL(ERR_FAILED, "out of memory");
    TRY(logprob_pass_new(&ppo->policy_pass, run->model, temperature, ppo->capacity, ppo->precision, ppo->memory));
    show_adapter(run, false);
    int rc = logprob_pass_new(&ppo->reference_pass, run->lora ? run->model : ppo->reference, temperature, ppo->capacity,
                              ppo->precision, ppo->memory);
    show_adapter(run, true);
    return rc;
}

static int check_distance(const Ppo *ppo, const Rollout *rollout) {
    double most = ppo->precision == DTYPE_F32 ? MOST_DISTANCE_F32 : MOST_DISTANCE_BF16;
    if (rollout->distance.relative <= most) return OK;
    log_warning(
        "rollout %lld: a log-probability recorded when sampling is %.3g from the training graph's (at most %g "
        "times its log-sum-exp is expected): the policy that is trained is not quite the one that was sampled from",
        (long long)rollout->number, rollout->distance.relative, most);
    return OK;
}

static int add_logprobs(Run *run, Rollout *rollout) {
    Ppo *ppo = run->own;
    int rc = make_passes(run);
    watchdog_pat(run->watchdog, "log-probabilities of answers");
    if (rc == OK) rc = rollout_logprobs(rollout, ppo->policy_pass, ppo->capacity, false);
    show_adapter(run, false);
    if (rc == OK) rc = rollout_logprobs(rollout, ppo->reference_pass, ppo->capacity, true);
    show_adapter(run, true);
    TRY(mesh_agree(run->mesh, rc));
    TRY(rollout_distance(rollout));
    TRY(check_distance(ppo, rollout));
    return rollout_divergences(rollout);
}

/* ---- rollouts ---- */

static int make_rollout(Run *run, int64_t number) {
    Ppo *ppo = run->own;
    int n = ppo->options.prompts;
    int64_t first = number * n;
    const Prompt **prompts = malloc((size_t)n * sizeof *prompts);
    if (!prompts) FAIL(ERR_FAILED, "out of memory");
    for (int p = 0; p < n; p++) prompts[p] = ppo_prompt(ppo, first + p);
    rollout_clear(&ppo->rollout, number);
    int rc = ppo_answer(run, &ppo->rollout, prompts, ppo->options.seed, first);
    free(prompts);
    TRY(rc);
    TRY(add_logprobs(run, &ppo->rollout));
    TRY(rollout_advantages(&ppo->rollout));
    ppo->made = true;
    return OK;
}

int ppo_step(void *context, int64_t step, StepBatch *batch) {
    Run *run = context;
    Ppo *ppo = run->own;
    int64_t number = step / updates_of(ppo);
    if (!ppo->made || ppo->rollout.number != number) TRY(make_rollout(run, number));
    return rollout_update(&ppo->rollout, (int)(step % updates_of(ppo)), ppo->capacity, batch);
}

/* ---- held-out prompts ---- */

static int report(const Run *run, int64_t step, const RolloutFigures *f) {
    Metric rows[] = {{.name = "eval_reward", .value = f->reward},
                     {.name = "eval_reward_std", .value = f->reward_std},
                     {.name = "eval_objective/kl", .value = f->kl},
                     {.name = "eval_objective/entropy", .value = f->entropy},
                     {.name = "eval_completions/mean_length", .value = f->length.mean},
                     {.name = "eval_completions/clipped_ratio", .value = f->cut_off}};
    log_info("step %lld: held-out prompts: reward %.4f, KL %.3f nats, %.1f tokens an answer", (long long)step,
             f->reward, f->kl, f->length.mean);
    return run->metrics ? metrics_write(run->metrics, step, rows, sizeof rows / sizeof *rows) : OK;
}

int ppo_measure(Run *run, int64_t step, double *loss, bool *found) {
    enum { ANOTHER_SEED = 0x68656c64 }; /* than the rollouts', and the same every time */
    Ppo *ppo = run->own;
    Rollout *rollout = &ppo->validation;
    *found = ppo->n_held_out > 0;
    if (!*found) return OK;
    const Prompt **prompts = malloc(ppo->n_held_out * sizeof *prompts);
    if (!prompts) FAIL(ERR_FAILED, "out of memory");
    for (uint32_t p = 0; p < ppo->n_held_out; p++) prompts[p] = &ppo->prompts.items[ppo->held_out[p]];
    rollout_clear(rollout, 0);
    int rc = ppo_answer(run, rollout, prompts, ppo->options.seed ^ ANOTHER_SEED, 0);
    free(prompts);
    TRY(rc);
    TRY(add_logprobs(run, rollout));
    RolloutFigures figures = rollout_figures(rollout);
    *loss = -figures.reward;
    return mesh_agree(run->mesh, report(run, step, &figures));
}
