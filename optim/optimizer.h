/* AdamW over a list of parameters, learning-rate schedules, clipping by global norm. Raw arrays; owns the moments. */
#ifndef CRIA_OPTIM_OPTIMIZER_H
#define CRIA_OPTIM_OPTIMIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/core/dtype.h"

typedef struct {
    float *value, *grad;
    size_t n;
    bool decay;
    double rate;              /* of the step's learning rate (LoRA+: Hayou et al. 2024); 0 means 1 */
    int rows, cols;           /* n = rows·cols, or both 0 where the shape does not matter */
    bf16 *forward, *backward; /* packings (model/kernels/bf16.h), rewritten by every update; or NULL */
    uint64_t name;            /* a hash of its name: what random numbers for it follow from (bf16 moments) */
    void *m, *v;              /* moments, of OptimOptions.moments: set by optimizer_new, owned by it */
} OptimParameter;

typedef struct {
    double learning_rate; /* the schedule's peak; a step uses what optimizer_step is given */
    double beta1, beta2, epsilon, weight_decay;
    double clip;   /* global norm; 0: none */
    Dtype moments; /* DTYPE_F32, or DTYPE_BF16: half the memory, stochastically rounded (reference_bf16_adamw.c) */
    uint64_t seed; /* of that rounding */
} OptimOptions;

typedef struct Optimizer Optimizer;

/* Copies the array of parameters (not what they point to) and allocates the moments, zeroed. ERR_USAGE for a number
 * out of its range (it names which), ERR_FAILED when memory is out. */
int optimizer_new(Optimizer **optimizer, const OptimParameter *parameters, size_t n, OptimOptions options);
void optimizer_free(Optimizer *optimizer);
/* What optimizer_new allocates, for the planner, before and after. */
size_t optimizer_bytes(const Optimizer *optimizer);
size_t optimizer_bytes_for(const OptimParameter *parameters, size_t n, Dtype moments);
/* Parameter `index`, for checkpoints: m and v. NULL beyond the last. */
OptimParameter *optimizer_parameter(Optimizer *optimizer, size_t index);
Dtype optimizer_moments(const Optimizer *optimizer);
/* All moments zero, no update applied: as optimizer_new left it. */
void optimizer_reset(Optimizer *optimizer);
int64_t optimizer_updates(const Optimizer *optimizer); /* applied so far: the t of bias correction */
void optimizer_set_updates(Optimizer *optimizer, int64_t updates);

/* Global gradient norm in fp64 (fixed chunks, parameter order): the same bits for any number of threads. Infinite or
 * NaN where a gradient is: ask the guard (optim/guard.h) before optimizer_step. */
double optimizer_grad_norm(const Optimizer *optimizer);
/* What gradients are multiplied by to clip them, as torch.nn.utils.clip_grad_norm_: min(1, clip / (norm + 1e-6)); 1
 * where clip is 0. */
double optimizer_clip_scale(double clip, double norm);
/* One update at this learning rate: clips by `norm` (from above), decays, updates. Gradients are zero afterwards: the
 * same pass over memory clears them. */
void optimizer_step(Optimizer *optimizer, double learning_rate, double norm);
/* Before gradients are added up: clears them, unless an update just has. */
void optimizer_zero_grad(Optimizer *optimizer);

/* Learning-rate schedules. With s the number of the update (0-based), W warmup, T total, D decay, r final_ratio:
 *
 *   s < W      peak · (s+1)/W                                    the first step already learns, step W-1 is at the peak
 *   CONSTANT   peak
 *   LINEAR     peak · (r + (1-r)·(1-p))              p = (s-W)/(T-W)
 *   COSINE     peak · (r + (1-r)·(1 + cos πp)/2)     p = (s-W)/(T-W): Loshchilov and Hutter 2017 (SGDR), equation 5
 *   WSD        peak until T-D, then
 *              peak · (r + (1-r)·(1 - sqrt p))       p = (s-(T-D))/D: Hu et al. 2024 (MiniCPM); the decline's shape is
 *                                                    that of Hägele et al. 2024, section 3 ("1-sqrt")
 *   s >= T     peak · r (not for CONSTANT)
 *
 * As in the usual recipes p reaches 1 at s = T, one step after the last update: with r = 0 no update is wasted. */
typedef enum { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_WSD } ScheduleKind;
typedef struct {
    ScheduleKind kind;
    double peak;           /* learning rate after warm-up */
    double final_ratio;    /* learning rate at `total` / peak */
    int64_t warmup, total; /* steps */
    int64_t decay;         /* WSD: the steps of the final decline */
} Schedule;
/* ERR_USAGE, naming the number, where one is negative, not finite or (final_ratio) above 1. */
int schedule_check(const Schedule *schedule);
double schedule_at(const Schedule *schedule, int64_t step);

#endif
