/* AdamW over a list of parameters, learning-rate schedules, clipping by global norm. Raw arrays; owns the moments. */
#ifndef CRIA_OPTIM_OPTIMIZER_H
#define CRIA_OPTIM_OPTIMIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    float *value, *grad;
    size_t n;
    bool decay;
    float *m, *v; /* moments: set by optimizer_new, owned by it */
} OptimParameter;

typedef struct {
    double learning_rate, beta1, beta2, epsilon, weight_decay;
    double clip; /* global norm; 0: none */
} OptimOptions;

typedef struct Optimizer Optimizer;

/* Copies the array of parameters (not what they point to) and allocates the moments, zeroed. */
int optimizer_new(Optimizer **optimizer, const OptimParameter *parameters, size_t n, OptimOptions options);
void optimizer_free(Optimizer *optimizer);
size_t optimizer_bytes(const Optimizer *optimizer);
OptimParameter *optimizer_parameter(Optimizer *optimizer, size_t index); /* for checkpoints: m and v */
int64_t optimizer_updates(const Optimizer *optimizer);                   /* applied so far: the t of bias correction */
void optimizer_set_updates(Optimizer *optimizer, int64_t updates);

/* Global gradient norm in fp64 (fixed chunks, parameter order). */
double optimizer_grad_norm(const Optimizer *optimizer);
/* One update at this learning rate: clips by `norm` (from above), decays, updates. */
void optimizer_step(Optimizer *optimizer, double learning_rate, double norm);
void optimizer_zero_grad(Optimizer *optimizer);

typedef enum { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_WSD } ScheduleKind;
typedef struct {
    ScheduleKind kind;
    double peak;           /* learning rate after warm-up */
    double final_ratio;    /* last learning rate / peak */
    int64_t warmup, total; /* steps */
    int64_t decay;         /* WSD: the steps of the final decline */
} Schedule;
/* Learning rate of update number `step` (0-based): linear warm-up (step+1)/warmup, then the kind. */
double schedule_at(const Schedule *schedule, int64_t step);

#endif
