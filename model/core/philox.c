/* Philox4x32-10 and the few distributions cria draws from; constants from the paper's table 2 and section 3.3. */
#include "model/core/philox.h"

#include <math.h>
#include <stddef.h>

static const uint32_t multiplier_0 = 0xD2511F53u, multiplier_1 = 0xCD9E8D57u;
static const uint32_t weyl_0 = 0x9E3779B9u, weyl_1 = 0xBB67AE85u;
enum { ROUNDS = 10 };

void philox4x32(uint32_t out[4], const uint32_t counter[4], PhiloxKey key) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key.word[0], k1 = key.word[1];
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t product_0 = (uint64_t)multiplier_0 * c0, product_1 = (uint64_t)multiplier_1 * c2;
        uint32_t n0 = (uint32_t)(product_1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(product_0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)product_1;
        c3 = (uint32_t)product_0;
        c0 = n0;
        c2 = n2;
        k0 += weyl_0;
        k1 += weyl_1;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* Several blocks side by side, which compilers make vectors of. */
void philox_blocks(uint32_t *out, const uint32_t counter[4], uint64_t n, PhiloxKey key) {
    enum { LANES = 16 };
    for (uint64_t first = 0; first < n; first += LANES) {
        uint32_t c0[LANES], c1[LANES], c2[LANES], c3[LANES], k0 = key.word[0], k1 = key.word[1];
        for (uint32_t i = 0; i < LANES; i++) {
            c0[i] = counter[0] + (uint32_t)first + i;
            c1[i] = counter[1];
            c2[i] = counter[2];
            c3[i] = counter[3];
        }
        for (int round = 0; round < ROUNDS; round++, k0 += weyl_0, k1 += weyl_1)
            for (int i = 0; i < LANES; i++) {
                uint64_t product_0 = (uint64_t)multiplier_0 * c0[i], product_1 = (uint64_t)multiplier_1 * c2[i];
                uint32_t n0 = (uint32_t)(product_1 >> 32) ^ c1[i] ^ k0, n2 = (uint32_t)(product_0 >> 32) ^ c3[i] ^ k1;
                c1[i] = (uint32_t)product_1;
                c3[i] = (uint32_t)product_0;
                c0[i] = n0;
                c2[i] = n2;
            }
        for (uint64_t i = 0; i < LANES && first + i < n; i++) {
            uint32_t *block = out + 4 * (first + i);
            block[0] = c0[i];
            block[1] = c1[i];
            block[2] = c2[i];
            block[3] = c3[i];
        }
    }
}

uint64_t hash_bytes(const void *bytes, uint64_t n, uint64_t start) {
    const unsigned char *p = bytes;
    uint64_t hash = 0xcbf29ce484222325ull ^ start;
    for (uint64_t i = 0; i < n; i++) hash = (hash ^ p[i]) * 0x100000001b3ull;
    return hash;
}

PhiloxKey philox_key(uint64_t seed, PhiloxPurpose purpose, uint32_t layer, uint32_t module) {
    uint32_t parts[5] = {(uint32_t)seed, (uint32_t)(seed >> 32), (uint32_t)purpose, layer, module};
    uint64_t hash = HASH_START;
    for (int i = 0; i < 5; i++)
        for (int byte = 0; byte < 4; byte++) {
            unsigned char b = (unsigned char)(parts[i] >> (8 * byte)); /* the same on any byte order */
            hash = hash_bytes(&b, 1, hash);
        }
    hash ^= hash >> 33; /* FNV's low bits carry little of the last words: finish with a murmur3 mix */
    hash *= 0xff51afd7ed558ccdull;
    hash ^= hash >> 33;
    return (PhiloxKey){{(uint32_t)hash, (uint32_t)(hash >> 32)}};
}

static void block_at(uint32_t out[4], PhiloxKey key, uint64_t block) {
    philox4x32(out, (uint32_t[4]){(uint32_t)block, (uint32_t)(block >> 32), 0, 0}, key);
}

static float unit_interval(uint32_t bits) {
    return (float)(bits >> 8) * 0x1p-24f;
}

float philox_uniform(PhiloxKey key, uint64_t index) {
    uint32_t words[4];
    block_at(words, key, index / 4);
    return unit_interval(words[index % 4]);
}

uint64_t philox_u64(PhiloxKey key, uint64_t index) {
    uint32_t words[4];
    block_at(words, key, index / 2);
    return (uint64_t)words[2 * (index % 2)] << 32 | words[2 * (index % 2) + 1];
}

uint64_t philox_below(PhiloxKey key, uint64_t index, uint64_t bound) {
    return (uint64_t)(((unsigned __int128)philox_u64(key, index) * bound) >> 64);
}

/* Box–Muller on the pairs (0,1) and (2,3) of a block; 1 - u keeps the logarithm finite. */
static void normal_block(float out[4], PhiloxKey key, uint64_t block) {
    uint32_t words[4];
    block_at(words, key, block);
    for (size_t pair = 0; pair < 2; pair++) {
        double u = 1.0 - (double)(words[2 * pair] >> 8) * 0x1p-24, v = (double)words[2 * pair + 1] * 0x1p-32;
        double radius = sqrt(-2.0 * log(u)), angle = 6.283185307179586 * v;
        out[2 * pair] = (float)(radius * cos(angle));
        out[2 * pair + 1] = (float)(radius * sin(angle));
    }
}

void philox_fill_normal(float *out, uint64_t first, uint64_t n, PhiloxKey key, float mean, float stddev) {
    uint64_t done = 0;
    while (done < n) {
        float block[4];
        uint64_t index = first + done;
        normal_block(block, key, index / 4);
        for (uint64_t lane = index % 4; lane < 4 && done < n; lane++, done++) out[done] = mean + stddev * block[lane];
    }
}

void philox_permutation(uint32_t *out, uint32_t n, PhiloxKey key) {
    for (uint32_t i = 0; i < n; i++) out[i] = i;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = (uint32_t)philox_below(key, i, i), last = out[i - 1];
        out[i - 1] = out[j];
        out[j] = last;
    }
}
