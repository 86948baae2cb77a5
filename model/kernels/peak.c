/* See peak.h. */
#include "model/kernels/peak.h"

#include <string.h>

#include "model/core/arena.h"
#include "model/core/clock.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"

static const double SAMPLE_SECONDS = 0.01;
enum { LEAST_ROUNDS = 1 << 10, MOST_ROUNDS = 1 << 24 }; /* the least take some 3 ms */

/* The loop that the selected table's products are made of. */
static const PeakLoops *find_loops(Dtype dtype) {
    static const struct {
        const char *table;
        const PeakLoops *f32, *bf16;
    } sets[] = {
        {"avx2", &avx2_peak_f32, NULL},
        {"avx512", &avx512_peak_f32, NULL},
        {"avx512bf16", &avx512_peak_f32, &avx512bf16_peak},
        {"amx", &avx512_peak_f32, &amx_peak},
    };
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (strcmp(kernels()->name, sets[i].table) == 0) return dtype == DTYPE_BF16 ? sets[i].bf16 : sets[i].f32;
    return NULL;
}

typedef struct {
    const PeakLoops *loops;
    PeakKind kind;
    Dtype dtype;
    char *operands; /* PEAK_OPERAND_BYTES for each thread */
    long rounds;
    double flops; /* of one thread: all do the same */
} Sample;

/* Ones: real numbers on touched pages. */
static void fill(void *operands, Dtype dtype) {
    enum { ONE_F32 = 0x3f800000, ONES_BF16 = 0x3f803f80 };
    const uint32_t value = dtype == DTYPE_BF16 ? ONES_BF16 : ONE_F32;
    uint32_t *word = operands;
    for (size_t i = 0; i < PEAK_OPERAND_BYTES / sizeof *word; i++) word[i] = value;
}

static void run(void *context, size_t begin, size_t end, int thread) {
    Sample *sample = context;
    (void)thread;
    for (size_t part = begin; part < end; part++) {
        const char *operands = sample->operands + part * PEAK_OPERAND_BYTES;
        double flops = sample->kind == PEAK_REGISTERS ? sample->loops->registers(sample->rounds)
                                                      : sample->loops->from_cache(operands, sample->rounds);
        if (part == 0) sample->flops = flops;
    }
}

static double timed(Sample *sample) {
    double start = clock_seconds();
    parallel_for((size_t)threads_count(), 1, run, sample);
    return clock_seconds() - start;
}

double peak_flops(Dtype dtype, PeakKind kind) {
    const PeakLoops *loops = find_loops(dtype);
    size_t n_threads = (size_t)threads_count(), bytes = n_threads * PEAK_OPERAND_BYTES;
    if (!loops || !loops->registers || !loops->from_cache) return 0;
    Sample sample = {.loops = loops, .kind = kind, .dtype = dtype, .operands = pages_alloc(bytes), .rounds = 1};
    if (!sample.operands) return 0;
    for (size_t part = 0; part < n_threads; part++) fill(sample.operands + part * PEAK_OPERAND_BYTES, dtype);
    /* So many rounds that they take long enough undisturbed: a short run that was interrupted measures nothing. */
    timed(&sample); /* wakes the threads */
    sample.rounds = LEAST_ROUNDS;
    double seconds = timed(&sample), best = seconds / LEAST_ROUNDS; /* of one */
    while ((double)sample.rounds * best < SAMPLE_SECONDS && sample.rounds < MOST_ROUNDS) {
        sample.rounds *= 2;
        seconds = timed(&sample);
        if (seconds / (double)sample.rounds < best) best = seconds / (double)sample.rounds;
    }
    pages_free(sample.operands, bytes);
    return (double)n_threads * sample.flops / seconds;
}
