/* Permutations: a Feistel network (Luby and Rackoff 1988, four rounds make a pseudorandom permutation of pseudorandom
 * functions) with Philox as its round function on the smallest even number of bits that holds n; values outside are
 * walked back in by applying it again (Black and Rogaway 2002, "cycle walking"; fewer than four steps on average).
 *
 * Counting in a Weyl sequence: with x_j = (j·A + B) mod M,
 *     [x_j < t] = floor((j·A + B) / M) - floor((j·A + B + M - t) / M) + 1,
 * and Σ_j floor((j·A + B) / M) has a closed form by Euclid's algorithm on (A, M) (Graham, Knuth, Patashnik, Concrete
 * Mathematics, 3.5, exercise 3.33 ff.). */
#include "data/order.h"
#include "model/core/error.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { FEISTEL_ROUNDS = 4 };

static const uint64_t CIRCLE = (uint64_t)1 << 32;
static const uint64_t GOLDEN_STEP = 2654435769; /* 2^32 / golden ratio, odd: every point once in 2^32 steps */

typedef unsigned __int128 Wide;

PhiloxKey order_key(uint64_t seed, int source, OrderKind kind, int64_t epoch) {
    return philox_key(seed, PHILOX_SHUFFLE, (uint32_t)source * ORDER_KINDS + (uint32_t)kind, (uint32_t)epoch);
}

static uint64_t feistel(PhiloxKey key, unsigned half_bits, uint64_t value) {
    uint32_t mask = half_bits == 32 ? UINT32_MAX : ((uint32_t)1 << half_bits) - 1;
    uint32_t left = (uint32_t)(value >> half_bits), right = (uint32_t)value & mask;
    for (uint32_t round = 0; round < FEISTEL_ROUNDS; round++) {
        uint32_t out[4];
        philox4x32(out, (uint32_t[4]){right, round, half_bits, 0}, key);
        uint32_t mixed = (left ^ out[0]) & mask;
        left = right;
        right = mixed;
    }
    return (uint64_t)left << half_bits | right;
}

uint64_t order_permute(PhiloxKey key, uint64_t n, uint64_t index) {
    unsigned half_bits = 1;
    while (half_bits < 32 && (uint64_t)1 << 2 * half_bits < n) half_bits++;
    do index = feistel(key, half_bits, index);
    while (index >= n);
    return index;
}

int order_split(uint32_t **train, uint32_t *n_train, uint32_t **validation, uint32_t *n_validation, uint32_t n,
                double share, uint64_t seed, int source) {
    double wanted = floor(share * (double)n + 0.5);
    uint32_t taken = wanted >= (double)n ? n - 1 : (uint32_t)wanted;
    if (taken == 0 && share > 0 && n > 1) taken = 1;
    uint32_t *order = malloc((size_t)n * sizeof *order);
    bool *is_taken = calloc(n, sizeof *is_taken);
    *train = malloc(((size_t)n - taken) * sizeof **train);
    *validation = malloc(((size_t)taken + 1) * sizeof **validation);
    int rc = OK;
    if (!order || !is_taken || !*train || !*validation)
        FAIL_TO(done, ERR_FAILED, "out of memory: the order of %u documents", n);
    philox_permutation(order, n, philox_key(seed, PHILOX_SPLIT, (uint32_t)source, 0));
    for (uint32_t i = 0; i < taken; i++) is_taken[order[i]] = true;
    *n_train = *n_validation = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (is_taken[i])
            (*validation)[(*n_validation)++] = i;
        else
            (*train)[(*n_train)++] = i;
    }
done:
    free(order);
    free(is_taken);
    if (rc != OK) {
        free(*train);
        free(*validation);
        *train = *validation = NULL;
    }
    return rc;
}

/* Σ floor((a·j + b) / m) over 0 <= j < n. Exact while the sum fits 128 bits: n < 2^60 with a, m <= 2^32, b < 2^34. */
static Wide floor_sum(Wide n, Wide m, Wide a, Wide b) {
    Wide sum = 0;
    while (n > 0) {
        sum += n * (n - 1) / 2 * (a / m) + n * (b / m);
        a %= m;
        b %= m;
        Wide top = a * n + b; /* the lattice points below a line, counted along the other axis next */
        if (top < m) break;
        n = top / m;
        b = top % m;
        Wide swapped = m;
        m = a;
        a = swapped;
    }
    return sum;
}

int mix_init(Mix *mix, const double *shares, int n, uint64_t seed) {
    double total = 0, before = 0;
    for (int i = 0; i < n; i++) total += shares[i];
    if (!isfinite(total)) FAIL(ERR_USAGE, "the weights of the sources are too large to be added");
    mix->n = n;
    mix->offset = philox_u64(philox_key(seed, PHILOX_MIX, 0, 0), 0) % CIRCLE;
    mix->bound = calloc((size_t)n + 1, sizeof *mix->bound);
    if (!mix->bound) FAIL(ERR_FAILED, "out of memory");
    for (int i = 0; i < n; i++) {
        before += shares[i];
        mix->bound[i + 1] = i == n - 1 ? CIRCLE : (uint64_t)llround(before / total * (double)CIRCLE);
        if (mix->bound[i + 1] <= mix->bound[i])
            FAIL(ERR_USAGE, "the weight of source %d is too small beside the others", i);
    }
    return OK;
}

void mix_free(Mix *mix) {
    free(mix->bound);
    *mix = (Mix){0};
}

int mix_source(const Mix *mix, int64_t k) {
    uint64_t point = ((uint64_t)k * GOLDEN_STEP + mix->offset) % CIRCLE;
    int source = 0;
    while (point >= mix->bound[source + 1]) source++;
    return source;
}

/* Sequences before k whose point lies below `bound`. */
static int64_t count_below(const Mix *mix, uint64_t bound, int64_t k) {
    Wide n = (Wide)k;
    return (int64_t)(n + floor_sum(n, CIRCLE, GOLDEN_STEP, mix->offset) -
                     floor_sum(n, CIRCLE, GOLDEN_STEP, mix->offset + CIRCLE - bound));
}

int64_t mix_count(const Mix *mix, int source, int64_t k) {
    return count_below(mix, mix->bound[source + 1], k) - count_below(mix, mix->bound[source], k);
}
