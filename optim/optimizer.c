/* AdamW over a list of parameters. The arithmetic of one element is the kernel's (model/kernels, row bf16.adamw,
 * whatever the moments' dtype): one pass over memory that clips, updates, writes packings and clears the gradient. Here
 * are the moments' memory, the order of the list, clipping and the count of updates.
 *
 * All moments lie in one run of pages, m and v of each parameter one after the other, each at a cache line:
 *
 *   m[0] | v[0] | m[1] | v[1] | …
 *
 * Clipping: torch.nn.utils.clip_grad_norm_ scales every gradient by min(1, clip / (norm + 1e-6)), norm being the
 * Euclidean norm of all gradients together (Pascanu et al. 2013). Here the factor rides along in the update's own pass.
 */
#include "optim/optimizer.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/arena.h"
#include "model/core/error.h"
#include "model/core/philox.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"

static const double CLIP_EPSILON = 1e-6; /* torch.nn.utils.clip_grad_norm_ */

enum { ZERO_GRAIN = 1 << 16 };

struct Optimizer {
    OptimParameter *parameters;
    size_t n;
    OptimOptions options;
    int64_t updates;
    char *moments;
    size_t moment_bytes;
    bool cleared; /* the last update has left the gradients zero, and nothing was added since */
};

static size_t padded(size_t n, Dtype moments) {
    return arena_round_up(n * dtype_size(moments));
}

/* Bytes of all moments; false where they exceed what can be counted. */
static bool moments_size(size_t *bytes, const OptimParameter *parameters, size_t n, Dtype moments) {
    size_t sum = 0, limit = SIZE_MAX / 8;
    for (size_t i = 0; i < n; i++) {
        if (parameters[i].n > limit / dtype_size(moments) - ARENA_ALIGNMENT) return false;
        if (padded(parameters[i].n, moments) > limit - sum) return false;
        sum += padded(parameters[i].n, moments);
    }
    *bytes = 2 * sum;
    return true;
}

/* `low` <= value, and value < `below` */
static int check_range(const char *name, double value, double low, double below) {
    if (value >= low && value < below) return OK;
    if (below < INFINITY)
        FAIL(ERR_USAGE, "optimizer: %s is %g; it must be at least %g and below %g", name, value, low, below);
    FAIL(ERR_USAGE, "optimizer: %s is %g; it must be a number of at least %g", name, value, low);
}

static int check_options(const OptimOptions *options) {
    TRY(check_range("learning_rate", options->learning_rate, 0, INFINITY));
    TRY(check_range("beta1", options->beta1, 0, 1));
    TRY(check_range("beta2", options->beta2, 0, 1));
    TRY(check_range("epsilon", options->epsilon, 0, INFINITY));
    TRY(check_range("weight_decay", options->weight_decay, 0, INFINITY));
    TRY(check_range("clip", options->clip, 0, INFINITY));
    return OK;
}

static void place_moments(Optimizer *optimizer) {
    char *next = optimizer->moments;
    for (size_t i = 0; i < optimizer->n; i++) {
        OptimParameter *parameter = &optimizer->parameters[i];
        size_t bytes = padded(parameter->n, optimizer->options.moments);
        parameter->m = next;
        parameter->v = next + bytes;
        next += 2 * bytes;
    }
}

int optimizer_new(Optimizer **out, const OptimParameter *parameters, size_t n, OptimOptions options) {
    int rc = OK;
    *out = NULL;
    TRY(check_options(&options));
    Optimizer *optimizer = calloc(1, sizeof *optimizer);
    if (!optimizer) FAIL(ERR_FAILED, "optimizer: out of memory");
    optimizer->n = n;
    optimizer->options = options;
    optimizer->parameters = calloc(n ? n : 1, sizeof *parameters);
    if (!optimizer->parameters) FAIL_TO(failed, ERR_FAILED, "optimizer: out of memory for %zu parameters", n);
    if (n) memcpy(optimizer->parameters, parameters, n * sizeof *parameters);
    if (!moments_size(&optimizer->moment_bytes, parameters, n, options.moments))
        FAIL_TO(failed, ERR_REFUSED, "optimizer: %zu parameters have more elements than this machine can count", n);
    for (size_t i = 0; i < n; i++)
        if (parameters[i].n > INT_MAX && parameters[i].rows <= 0)
            FAIL_TO(failed, ERR_REFUSED, "optimizer: parameter %zu has %zu elements and no shape", i, parameters[i].n);
    if (optimizer->moment_bytes) {
        optimizer->moments = pages_alloc(optimizer->moment_bytes);
        if (!optimizer->moments)
            FAIL_TO(failed, ERR_FAILED, "optimizer: out of memory: %zu bytes were asked for AdamW's two moments",
                    optimizer->moment_bytes);
        place_moments(optimizer);
    }
    *out = optimizer;
    return OK;
failed:
    optimizer_free(optimizer);
    return rc;
}

void optimizer_free(Optimizer *optimizer) {
    if (!optimizer) return;
    if (optimizer->moments) pages_free(optimizer->moments, optimizer->moment_bytes);
    free(optimizer->parameters);
    free(optimizer);
}

size_t optimizer_bytes_for(const OptimParameter *parameters, size_t n, Dtype moments) {
    size_t bytes;
    if (!moments_size(&bytes, parameters, n, moments)) return SIZE_MAX;
    return bytes + sizeof(Optimizer) + n * sizeof *parameters;
}

size_t optimizer_bytes(const Optimizer *optimizer) {
    return optimizer->moment_bytes + sizeof *optimizer + optimizer->n * sizeof *optimizer->parameters;
}

OptimParameter *optimizer_parameter(Optimizer *optimizer, size_t index) {
    return index < optimizer->n ? &optimizer->parameters[index] : NULL;
}

Dtype optimizer_moments(const Optimizer *optimizer) {
    return optimizer->options.moments;
}

void optimizer_reset(Optimizer *optimizer) {
    if (optimizer->moments) memset(optimizer->moments, 0, optimizer->moment_bytes);
    optimizer->updates = 0;
}

int64_t optimizer_updates(const Optimizer *optimizer) {
    return optimizer->updates;
}

void optimizer_set_updates(Optimizer *optimizer, int64_t updates) {
    optimizer->updates = updates;
}

double optimizer_grad_norm(const Optimizer *optimizer) {
    double sum = 0;
    for (size_t i = 0; i < optimizer->n; i++)
        sum += kernels()->sum_of_squares(optimizer->parameters[i].grad, optimizer->parameters[i].n);
    return sqrt(sum);
}

double optimizer_clip_scale(double clip, double norm) {
    if (clip <= 0) return 1;
    double scale = clip / (norm + CLIP_EPSILON);
    return scale > 1 ? 1 : scale; /* in this order a NaN stays one, as in PyTorch */
}

static void update(const Optimizer *optimizer, const OptimParameter *parameter, AdamwStep step) {
    bool shaped = parameter->rows > 0;
    AdamwMatrix matrix = {.param = parameter->value,
                          .grad = parameter->grad,
                          .m = parameter->m,
                          .v = parameter->v,
                          .moments = optimizer->options.moments,
                          .rows = shaped ? parameter->rows : 1,
                          .cols = shaped ? parameter->cols : (int)parameter->n,
                          .zero_grad = true,
                          .forward = parameter->forward,
                          .backward = parameter->backward,
                          .rounding = philox_key(optimizer->options.seed, PHILOX_ROUNDING, (uint32_t)parameter->name,
                                                 (uint32_t)(parameter->name >> 32)),
                          .update = (uint32_t)optimizer->updates};
    kernels()->bf16.adamw(&matrix, step);
}

void optimizer_step(Optimizer *optimizer, double learning_rate, double norm) {
    const OptimOptions *options = &optimizer->options;
    double t = (double)++optimizer->updates;
    AdamwStep step = {
        .beta1 = options->beta1,
        .beta2 = options->beta2,
        .epsilon = options->epsilon,
        .bias_correction1 = 1 - pow(options->beta1, t),
        .bias_correction2 = 1 - pow(options->beta2, t),
        .grad_scale = optimizer_clip_scale(options->clip, norm),
    };
    for (size_t i = 0; i < optimizer->n; i++) {
        const OptimParameter *parameter = &optimizer->parameters[i];
        step.weight_decay = parameter->decay ? options->weight_decay : 0;
        step.learning_rate = parameter->rate > 0 ? learning_rate * parameter->rate : learning_rate;
        update(optimizer, parameter, step);
    }
    optimizer->cleared = true;
}

static void zero_range(void *context, size_t begin, size_t end, int thread) {
    (void)thread;
    memset((float *)context + begin, 0, (end - begin) * sizeof(float));
}

void optimizer_zero_grad(Optimizer *optimizer) {
    bool cleared = optimizer->cleared;
    optimizer->cleared = false;
    for (size_t i = 0; i < optimizer->n && !cleared; i++)
        parallel_for(optimizer->parameters[i].n, ZERO_GRAIN, zero_range, optimizer->parameters[i].grad);
}
