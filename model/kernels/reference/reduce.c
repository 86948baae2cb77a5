/* Sums and additions over plain arrays.
 *
 * The sum of squares is cut into chunks of SQUARES_CHUNK elements whatever the number of threads; each chunk is summed
 * alone and the chunk sums are added in index order, a wave of chunks at a time. */
#include "model/core/threads.h"
#include "model/kernels/reference/reference.h"

enum { SQUARES_CHUNK = 65536, WAVE = 512 };

static double chunk_squares(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

double reference_sum_of_squares(const float *x, size_t n) {
    double total = 0, sums[WAVE];
    size_t n_chunks = (n + SQUARES_CHUNK - 1) / SQUARES_CHUNK;
    for (size_t first = 0; first < n_chunks; first += WAVE) {
        size_t in_wave = n_chunks - first < WAVE ? n_chunks - first : WAVE;
#pragma omp parallel for num_threads(threads_count()) schedule(static) if (in_wave > 1)
        for (size_t c = 0; c < in_wave; c++) {
            size_t begin = (first + c) * SQUARES_CHUNK, rest = n - begin;
            sums[c] = chunk_squares(x + begin, rest < SQUARES_CHUNK ? rest : SQUARES_CHUNK);
        }
        for (size_t c = 0; c < in_wave; c++) total += sums[c];
    }
    return total;
}

void reference_add(float *y, const float *a, const float *b, size_t n) {
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (size_t i = 0; i < n; i++) y[i] = a[i] + b[i];
}
