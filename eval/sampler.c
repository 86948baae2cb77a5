/* See sampler.h. Top-p: Holtzman et al. 2020; min-p: Nguyen et al. 2024; repetition penalty: Keskar et al. 2019.
 *
 * A row of logits becomes weights, e^(logit − largest); a filter sets the weights it drops to 0; what is left is drawn
 * from by its running sum in order of id. Top-k and top-p keep the heaviest tokens, the lowest ids first among equals.
 * Where they end is found without sorting the vocabulary: weights are counted by the upper bits of their floats, and
 * only the bucket in which the limit falls is sorted. */
#include "eval/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/philox.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"

enum { CHUNK = 256, PARTS = 8 }; /* weights that are added up at a time, in so many parts */
enum { BUCKET_SHIFT = 16, BUCKETS = (0x3f800000 >> BUCKET_SHIFT) + 1 }; /* weights are in (0, 1] */

typedef struct {
    int32_t id;
    float weight;
} Candidate;

/* What one row needs. */
typedef struct {
    float *logits, *weights; /* [vocab] */
    uint8_t *seen;           /* [vocab] */
    Candidate *candidates;   /* [vocab] */
    double *sums;            /* of chunks of weights */
    double mass[BUCKETS];
    int32_t count[BUCKETS];
} Room;

struct Sampler {
    SamplerOptions options;
    int vocab, n_rooms; /* one for each thread */
    Room *rooms;
};

static bool room_new(Room *room, int vocab) {
    size_t n = (size_t)vocab;
    room->logits = malloc(n * sizeof *room->logits);
    room->weights = malloc(n * sizeof *room->weights);
    room->seen = calloc(n, sizeof *room->seen);
    room->candidates = malloc(n * sizeof *room->candidates);
    room->sums = malloc((n / CHUNK + 1) * sizeof *room->sums);
    return room->logits && room->weights && room->seen && room->candidates && room->sums;
}

static void room_free(Room *room) {
    free(room->logits);
    free(room->weights);
    free(room->seen);
    free(room->candidates);
    free(room->sums);
}

int sampler_new(Sampler **out, int vocab_size, SamplerOptions options) {
    Sampler *sampler = calloc(1, sizeof *sampler);
    *out = NULL;
    if (!sampler) FAIL(ERR_FAILED, "out of memory");
    sampler->options = options;
    sampler->vocab = vocab_size;
    sampler->n_rooms = threads_count();
    sampler->rooms = calloc((size_t)sampler->n_rooms, sizeof *sampler->rooms);
    bool whole = sampler->rooms;
    for (int r = 0; whole && r < sampler->n_rooms; r++) whole = room_new(&sampler->rooms[r], vocab_size);
    if (!whole) {
        sampler_free(sampler);
        FAIL(ERR_FAILED, "out of memory");
    }
    *out = sampler;
    return OK;
}

void sampler_free(Sampler *sampler) {
    if (!sampler) return;
    for (int r = 0; sampler->rooms && r < sampler->n_rooms; r++) room_free(&sampler->rooms[r]);
    free(sampler->rooms);
    free(sampler);
}

/* ---- logits ---- */

/* The first of the largest. -infinity is a token that is ruled out. */
static int32_t most_probable(const float *logits, int n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* No probability can be made of them: why. */
static int refuse_logits(const float *logits, int n) {
    for (int32_t i = 0; i < n; i++)
        if (isnan(logits[i]) || logits[i] == INFINITY)
            FAIL(ERR_REFUSED, "the model's logit of token %d is %g: its weights, or what it computes, are broken", i,
                 (double)logits[i]);
    FAIL(ERR_REFUSED, "the model's logits are all -infinity: its weights, or what it computes, are broken");
}

/* Each token that occurs in the history is penalised once. */
static void penalise(const Sampler *sampler, Room *room, const Draw *draw) {
    float penalty = (float)sampler->options.repetition_penalty;
    memcpy(room->logits, draw->logits, (size_t)sampler->vocab * sizeof *room->logits);
    for (size_t i = 0; i < draw->n_history; i++) {
        int32_t id = draw->history[i];
        if (id < 0 || id >= sampler->vocab || room->seen[id]) continue;
        room->seen[id] = 1;
        room->logits[id] = room->logits[id] > 0 ? room->logits[id] / penalty : room->logits[id] * penalty;
    }
    for (size_t i = 0; i < draw->n_history; i++)
        if (draw->history[i] >= 0 && draw->history[i] < sampler->vocab) room->seen[draw->history[i]] = 0;
}

/* ---- filters ---- */

static int heaviest_first(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->weight != y->weight) return x->weight < y->weight ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

static int32_t bucket_of(float weight) {
    uint32_t bits;
    memcpy(&bits, &weight, sizeof bits);
    return (int32_t)(bits >> BUCKET_SHIFT);
}

/* Keeps the heaviest until there are `count` of them, or until they weigh `mass` together. */
static void keep_heaviest(Room *room, int vocab, int64_t count, double mass) {
    float *w = room->weights;
    memset(room->mass, 0, sizeof room->mass);
    memset(room->count, 0, sizeof room->count);
    for (int i = 0; i < vocab; i++) {
        int32_t bucket = bucket_of(w[i]);
        room->mass[bucket] += (double)w[i];
        room->count[bucket]++;
    }
    int last = BUCKETS - 1;
    double sum = 0;
    int64_t n = 0;
    for (; last > 0; last--) {
        if (n + room->count[last] >= count || sum + room->mass[last] >= mass) break;
        n += room->count[last];
        sum += room->mass[last];
    }
    size_t n_candidates = 0;
    for (int32_t i = 0; i < vocab; i++) {
        if (w[i] <= 0 || bucket_of(w[i]) > last) continue;
        if (bucket_of(w[i]) == last) room->candidates[n_candidates++] = (Candidate){i, w[i]};
        w[i] = 0;
    }
    qsort(room->candidates, n_candidates, sizeof *room->candidates, heaviest_first);
    for (size_t i = 0; i < n_candidates && n < count && sum < mass; i++, n++) {
        w[room->candidates[i].id] = room->candidates[i].weight;
        sum += (double)room->candidates[i].weight;
    }
}

/* Σ w in fp64, in one fixed order that does not wait for each addition. */
static double weigh(const float *w, int n) {
    double part[PARTS] = {0};
    int i = 0;
    for (; i + PARTS <= n; i += PARTS)
        for (int p = 0; p < PARTS; p++) part[p] += (double)w[i + p];
    for (int p = 0; i < n; i++, p++) part[p] += (double)w[i];
    for (int step = PARTS / 2; step > 0; step /= 2)
        for (int p = 0; p < step; p++) part[p] += part[p + step];
    return part[0];
}

static double weigh_all(const float *w, int n) {
    double total = 0;
    for (int first = 0; first < n; first += CHUNK) total += weigh(w + first, n - first < CHUNK ? n - first : CHUNK);
    return total;
}

static void filter(const SamplerOptions *options, Room *room, int vocab) {
    if (options->top_k > 0 && options->top_k < vocab) keep_heaviest(room, vocab, options->top_k, INFINITY);
    if (options->top_p < 1) keep_heaviest(room, vocab, INT64_MAX, options->top_p * weigh_all(room->weights, vocab));
    if (options->min_p > 0) /* the heaviest weighs 1 */
        for (int i = 0; i < vocab; i++)
            room->weights[i] = (double)room->weights[i] < options->min_p ? 0 : room->weights[i];
}

/* The last token of the chunk that is not ruled out. */
static int32_t last_of(const float *w, int first, int n) {
    int i = n - 1;
    while (i > 0 && w[first + i] <= 0) i--;
    return first + i;
}

/* The token at the share u of the running sum of weights. */
static int32_t pick(Room *room, int vocab, double u) {
    const float *w = room->weights;
    double total = 0;
    int n_chunks = (vocab + CHUNK - 1) / CHUNK, c = 0;
    for (; c < n_chunks; c++) {
        room->sums[c] = weigh(w + (size_t)c * CHUNK, vocab - c * CHUNK < CHUNK ? vocab - c * CHUNK : CHUNK);
        total += room->sums[c];
    }
    double left = u * total;
    int chosen = 0; /* the chunk in which the share lies; where rounding leaves none, the last with any weight */
    for (c = 0; c < n_chunks; c++) {
        if (room->sums[c] <= 0) continue;
        chosen = c;
        if (left < room->sums[c]) break;
        left -= room->sums[c];
    }
    int first = chosen * CHUNK, n = vocab - first < CHUNK ? vocab - first : CHUNK;
    if (c == n_chunks) return last_of(w, first, n);
    for (int i = 0; i < n; i++) {
        left -= (double)w[first + i];
        if (left < 0 && w[first + i] > 0) return first + i;
    }
    return last_of(w, first, n); /* added up one by one they are less than the chunk's sum */
}

/* ---- draws ---- */

/* Token -1 where the logits are no logits. */
static void draw_one(const Sampler *sampler, Room *room, Draw *draw) {
    const SamplerOptions *options = &sampler->options;
    int vocab = sampler->vocab;
    bool greedy = draw->temperature <= 0, penalty = options->repetition_penalty != 1;
    float scale = greedy ? 1 : (float)(1 / draw->temperature), top = 0, unused;
    float record = options->tempered_logprobs ? scale : 1;
    const float *logits = draw->logits;
    double recorded = kernels()->softmax_weights(room->weights, &top, logits, (size_t)vocab, record);
    draw->token = -1;
    if (isnan(recorded)) return;
    if (penalty) {
        penalise(sampler, room, draw);
        logits = room->logits;
    }
    if (greedy) {
        draw->token = most_probable(logits, vocab);
    } else {
        if (penalty || record != scale)
            kernels()->softmax_weights(room->weights, &unused, logits, (size_t)vocab, scale);
        filter(options, room, vocab);
        PhiloxKey key = philox_key(options->seed, PHILOX_SAMPLE, draw->prompt, draw->sample);
        draw->token = pick(room, vocab, (double)(philox_u64(key, draw->position) >> 11) * 0x1p-53);
    }
    draw->logprob = (double)record * ((double)draw->logits[draw->token] - (double)top) - log(recorded);
}

typedef struct {
    Sampler *sampler;
    Draw *draws;
} Drawing;

static void draw_range(void *context, size_t begin, size_t end, int thread) {
    Drawing *d = context;
    for (size_t i = begin; i < end; i++) draw_one(d->sampler, &d->sampler->rooms[thread], &d->draws[i]);
}

int sampler_draw(Sampler *sampler, Draw *draws, size_t n) {
    Drawing drawing = {sampler, draws};
    parallel_for(n, 1, draw_range, &drawing);
    for (size_t i = 0; i < n; i++)
        if (draws[i].token < 0) return refuse_logits(draws[i].logits, sampler->vocab);
    return OK;
}
