/* See sampler.h. Top-p: Holtzman et al. 2020; min-p: Nguyen et al. 2024; repetition penalty: Keskar et al. 2019. */
#include "eval/sampler.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/philox.h"

typedef struct {
    int32_t id;
    double weight; /* a logit, then exp(logit - largest) */
} Candidate;

struct Sampler {
    SamplerOptions options;
    int vocab;
    float *logits;
    Candidate *candidates;
    uint8_t *seen;
};

int sampler_new(Sampler **out, int vocab_size, SamplerOptions options) {
    Sampler *sampler = calloc(1, sizeof *sampler);
    *out = NULL;
    if (!sampler) FAIL(ERR_FAILED, "out of memory");
    sampler->options = options;
    sampler->vocab = vocab_size;
    sampler->logits = malloc((size_t)vocab_size * sizeof *sampler->logits);
    sampler->candidates = malloc((size_t)vocab_size * sizeof *sampler->candidates);
    sampler->seen = calloc((size_t)vocab_size, 1);
    if (!sampler->logits || !sampler->candidates || !sampler->seen) {
        sampler_free(sampler);
        FAIL(ERR_FAILED, "out of memory");
    }
    *out = sampler;
    return OK;
}

void sampler_free(Sampler *sampler) {
    if (!sampler) return;
    free(sampler->logits);
    free(sampler->candidates);
    free(sampler->seen);
    free(sampler);
}

/* The first of the largest. -infinity is a token that is ruled out. */
static int32_t most_probable(const float *logits, int n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* A probability can be made of them. */
static int check_logits(const float *logits, int n) {
    for (int32_t i = 0; i < n; i++)
        if (isnan(logits[i]) || logits[i] == INFINITY)
            FAIL(ERR_REFUSED, "the model's logit of token %d is %g: its weights, or what it computes, are broken", i,
                 (double)logits[i]);
    if (isinf(logits[most_probable(logits, n)]))
        FAIL(ERR_REFUSED, "the model's logits are all -infinity: its weights, or what it computes, are broken");
    return OK;
}

/* Each token that occurs in the history is penalised once. */
static void penalise(Sampler *sampler, const int32_t *history, size_t n) {
    float penalty = (float)sampler->options.repetition_penalty;
    if (sampler->options.repetition_penalty == 1) return;
    for (size_t i = 0; i < n; i++) {
        int32_t id = history[i];
        if (id < 0 || id >= sampler->vocab || sampler->seen[id]) continue;
        sampler->seen[id] = 1;
        sampler->logits[id] = sampler->logits[id] > 0 ? sampler->logits[id] / penalty : sampler->logits[id] * penalty;
    }
    for (size_t i = 0; i < n; i++)
        if (history[i] >= 0 && history[i] < sampler->vocab) sampler->seen[history[i]] = 0;
}

static int heaviest_first(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->weight != y->weight) return x->weight < y->weight ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

/* The candidates that pass every filter, heaviest first where a filter needed the order. */
static size_t filter(Sampler *sampler, double largest) {
    const SamplerOptions *options = &sampler->options;
    Candidate *list = sampler->candidates;
    size_t n = 0;
    double total = 0;
    for (int32_t id = 0; id < sampler->vocab; id++) {
        double weight = exp(((double)sampler->logits[id] - largest) / options->temperature);
        if (weight <= 0) continue;
        list[n++] = (Candidate){id, weight};
        total += weight;
    }
    bool by_k = options->top_k > 0 && (size_t)options->top_k < n, by_p = options->top_p < 1;
    if (by_p && !by_k) {
        /* Tokens below this weight sum to less than 1 - top_p even all together: no need to sort them. */
        double least = (1 - options->top_p) * total / (double)n;
        size_t kept = 0;
        for (size_t i = 0; i < n; i++)
            if (list[i].weight >= least) list[kept++] = list[i];
        n = kept;
    }
    if (by_k || by_p) qsort(list, n, sizeof *list, heaviest_first);
    if (by_k) {
        n = (size_t)options->top_k;
        total = 0;
        for (size_t i = 0; i < n; i++) total += list[i].weight;
    }
    if (by_p) {
        double sum = 0;
        size_t kept = 0;
        while (kept < n && sum < options->top_p * total) sum += list[kept++].weight;
        n = kept;
    }
    if (options->min_p > 0) { /* the heaviest has weight 1 */
        size_t kept = 0;
        for (size_t i = 0; i < n; i++)
            if (list[i].weight >= options->min_p) list[kept++] = list[i];
        n = kept;
    }
    return n;
}

static double log_probability(const float *logits, int vocab, int32_t id) {
    double largest = (double)logits[most_probable(logits, vocab)], sum = 0;
    for (int i = 0; i < vocab; i++) sum += exp((double)logits[i] - largest);
    return (double)logits[id] - largest - log(sum); /* cppcheck-suppress invalidFunctionArg ; one term is 1 */
}

int sampler_next(Sampler *sampler, const float *logits, const int32_t *history, size_t n_history, uint64_t sample,
                 uint64_t position, int32_t *token, double *logprob) {
    TRY(check_logits(logits, sampler->vocab));
    memcpy(sampler->logits, logits, (size_t)sampler->vocab * sizeof *logits);
    penalise(sampler, history, n_history);
    int32_t chosen = most_probable(sampler->logits, sampler->vocab);
    if (sampler->options.temperature > 0) {
        size_t n = filter(sampler, (double)sampler->logits[chosen]);
        double total = 0;
        for (size_t i = 0; i < n; i++) total += sampler->candidates[i].weight;
        PhiloxKey key = philox_key(sampler->options.seed, PHILOX_SAMPLE, (uint32_t)sample, (uint32_t)(sample >> 32));
        double left = (double)(philox_u64(key, position) >> 11) * 0x1p-53 * total;
        for (size_t i = 0; i < n; i++) {
            chosen = sampler->candidates[i].id;
            left -= sampler->candidates[i].weight;
            if (left < 0) break;
        }
    }
    if (logprob) *logprob = log_probability(logits, sampler->vocab, chosen);
    *token = chosen;
    return OK;
}
