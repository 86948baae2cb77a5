/* See stage.h. Rollout r serves steps r·u … r·u + u - 1, u = epochs × minibatches; it is made at the first of them
 * and follows from the model then, the seed and r. */
#include <math.h>
#include <stdlib.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "train/ppo/stage.h"

double ppo_most_distance(Dtype precision) {
    return precision == DTYPE_F32 ? 1e-5 : 2e-2;
}

/* ---- log-probabilities of the training graph ---- */

/* Without its adapter the model is the reference. */
static void show_adapter(Run *run, bool on) {
    if (run->lora) lora_attach(run->lora, on);
}

static Llama *reference_of(const Run *run) {
    const Ppo *ppo = run->own;
    if (ppo->other_reference.model) return ppo->other_reference.model;
    return run->lora ? run->model : ppo->reference;
}

static int make_passes(Run *run) {
    Ppo *ppo = run->own;
    if (ppo->policy_pass) return OK;
    double temperature = ppo->options.temperature;
    ppo->memory = tape_memory_new();
    if (!ppo->memory) FAIL(ERR_FAILED, "out of memory");
    TRY(logprob_pass_new(&ppo->policy_pass, run->model, temperature, ppo->capacity, ppo->precision, ppo->memory));
    if (ppo->value.model)
        TRY(value_pass_new(
            &ppo->value_pass, ppo->value.model,
            (ValuePassOptions){.capacity = ppo->capacity, .precision = ppo->precision, .memory = ppo->memory}));
    show_adapter(run, false);
    int rc = logprob_pass_new(&ppo->reference_pass, reference_of(run), temperature, ppo->capacity, ppo->precision,
                              ppo->memory);
    show_adapter(run, true);
    return rc;
}

static int check_distance(const Ppo *ppo, const Rollout *rollout) {
    double most = ppo_most_distance(ppo->precision);
    if (rollout->distance.relative <= most) return OK;
    log_warning(
        "rollout %lld: a log-probability recorded when sampling is %.3g from the training graph's (at most %g "
        "times its log-sum-exp is expected): the policy that is trained is not quite the one that was sampled from",
        (long long)rollout->number, rollout->distance.relative, most);
    return OK;
}

static int check_reference(const Run *run, const Rollout *rollout) {
    const Ppo *ppo = run->own;
    const char *path = ppo->other_reference.model ? ppo->other_reference.path : run->config->model_base;
    for (int i = 0; i < rollout->options.prompts * rollout->options.samples; i++) {
        const Answer *answer = &rollout->answers[i];
        for (int t = 0; answer->reference && t < answer_length(answer); t++)
            if (!isfinite(answer->reference[t]))
                FAIL(ERR_REFUSED,
                     "%s: as the reference it gives token %d of answer %d a log-probability of %g; are there NaN or "
                     "infinite values among its weights?",
                     path, t + 1, i + 1, (double)answer->reference[t]);
    }
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
    if (rc == OK) rc = check_reference(run, rollout);
    TRY(mesh_agree(run->mesh, rc));
    TRY(rollout_distance(rollout));
    TRY(check_distance(ppo, rollout));
    return rollout_divergences(rollout);
}

/* At the start the policy is its reference, to the last bit. */
static int check_start(const Run *run) {
    const Ppo *ppo = run->own;
    if (ppo->rollout.number != 0 || ppo->other_reference.model) return OK;
    for (int i = 0; i < ppo->options.prompts * ppo->options.samples; i++) {
        const Answer *answer = &ppo->rollout.answers[i];
        for (int t = 0; answer->tokens && t < answer_length(answer); t++)
            if (answer->logprob[t] < answer->reference[t] || answer->logprob[t] > answer->reference[t])
                FAIL(ERR_FAILED,
                     "before the first update the policy is not its reference: the log-probability of answer %d's "
                     "token %d is %.9g, and %.9g by the reference",
                     i, t, (double)answer->logprob[t], (double)answer->reference[t]);
    }
    return OK;
}

static int add_values(const Run *run) {
    Ppo *ppo = run->own;
    if (!ppo->value_pass) return OK;
    watchdog_pat(run->watchdog, "values of answers");
    return rollout_values(&ppo->rollout, ppo->value_pass, ppo->capacity);
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
    rc = check_start(run);
    if (rc == OK) rc = add_values(run);
    TRY(mesh_agree(run->mesh, rc));
    TRY(rollout_advantages(&ppo->rollout));
    ppo->made = true;
    return OK;
}

int ppo_step(void *context, int64_t step, StepBatch *batch) {
    Run *run = context;
    Ppo *ppo = run->own;
    int64_t updates = rollout_updates(&ppo->rollout), number = step / updates;
    if (!ppo->made || ppo->rollout.number != number) TRY(make_rollout(run, number));
    return rollout_update(&ppo->rollout, (int)(step % updates), ppo->capacity, batch);
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
