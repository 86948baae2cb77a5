/* The tile registers of AMX, emulated: LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED and TDPBF16PS from their
 * definitions in Intel's SDM (volume 2, and volume 1 section 18.3 for the configuration). Exact: the order of
 * TDPBF16PS's sums, rounding to nearest even, subnormal operands and results as zeros.
 *
 * What raises #GP or #UD on the CPU is counted as a fault, and so is the use of a register that has been neither zeroed
 * nor loaded (there it is zero: defined, but never meant). Memory is read and written row by row as the instructions do
 * it, so that a page without access stops the program where the CPU would stop it. */
#include "tests/amx_emulation.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { REGISTERS = 8, MOST_ROWS = 16, MOST_BYTES = 64 };

typedef struct {
    int rows, bytes; /* of a row */
    bool written;
    unsigned char data[MOST_ROWS][MOST_BYTES];
} Register;

static _Thread_local struct {
    bool configured;
    Register tile[REGISTERS];
} unit;

static atomic_int configured, faults;
static char first_fault[120];

#define FAULT(...)                                                                                     \
    do {                                                                                               \
        if (atomic_fetch_add(&faults, 1) == 0) snprintf(first_fault, sizeof first_fault, __VA_ARGS__); \
    } while (0)

int emulation_faults(char *text, size_t size) {
    snprintf(text, size, "%s", first_fault);
    first_fault[0] = 0;
    return atomic_exchange(&faults, 0);
}

int emulation_configured(void) {
    return atomic_load(&configured);
}

static bool valid(const TileConfig *c) {
    if (c->palette != 1 || c->start_row != 0) return false;
    for (size_t i = 0; i < sizeof c->reserved; i++)
        if (c->reserved[i]) return false;
    for (int i = 0; i < REGISTERS; i++) {
        if (c->unused_row_bytes[i] || c->unused_rows[i]) return false;
        if (c->rows[i] > MOST_ROWS || c->row_bytes[i] > MOST_BYTES) return false;
        if (!c->rows[i] != !c->row_bytes[i]) return false;
    }
    return true;
}

void emulated_configure(const TileConfig *config) {
    if (!valid(config)) {
        FAULT("configure: not a configuration of palette 1");
        return;
    }
    if (!unit.configured) atomic_fetch_add(&configured, 1);
    memset(&unit, 0, sizeof unit);
    unit.configured = true;
    for (int i = 0; i < REGISTERS; i++) {
        unit.tile[i].rows = config->rows[i];
        unit.tile[i].bytes = config->row_bytes[i];
    }
}

void emulated_release(void) {
    if (unit.configured) atomic_fetch_sub(&configured, 1);
    memset(&unit, 0, sizeof unit);
}

/* The register, or NULL and a fault. */
static Register *register_of(int number, const char *what) {
    if (!unit.configured)
        FAULT("%s: tiles are not configured", what);
    else if (number < 0 || number >= REGISTERS || unit.tile[number].rows == 0)
        FAULT("%s: tile %d is not configured", what, number);
    else
        return &unit.tile[number];
    return NULL;
}

void emulated_zero(int number) {
    Register *t = register_of(number, "zero");
    if (!t) return;
    memset(t->data, 0, sizeof t->data);
    t->written = true;
}

void emulated_load(int number, const void *from, long stride) {
    Register *t = register_of(number, "load");
    if (!t) return;
    memset(t->data, 0, sizeof t->data);
    for (int r = 0; r < t->rows; r++) memcpy(t->data[r], (const char *)from + r * stride, (size_t)t->bytes);
    t->written = true;
}

void emulated_store(int number, void *to, long stride) {
    Register *t = register_of(number, "store");
    if (!t) return;
    if (!t->written) FAULT("store: tile %d was never written", number);
    for (int r = 0; r < t->rows; r++) memcpy((char *)to + r * stride, t->data[r], (size_t)t->bytes);
}

static inline float no_subnormal(float x) {
    return fabsf(x) < FLT_MIN ? copysignf(0, x) : x;
}

static inline float widened(const unsigned char *row, int i) {
    uint16_t half;
    memcpy(&half, row + 2 * i, sizeof half);
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return no_subnormal(x);
}

/* One row of C: even and odd members of the pairs have sums of their own, from zero; then their sum is added. */
static void dot_row(Register *c, const Register *a, const Register *b, int row) {
    float sum[2 * MOST_BYTES / 4] = {0}, result[MOST_BYTES / 4];
    const int lanes = c->bytes / 4;
    for (int k = 0; k < a->bytes / 4; k++) {
        float pair[2] = {widened(a->data[row], 2 * k), widened(a->data[row], 2 * k + 1)};
        for (int i = 0; i < 2 * lanes; i++) sum[i] = no_subnormal(fmaf(pair[i % 2], widened(b->data[k], i), sum[i]));
    }
    memcpy(result, c->data[row], sizeof result);
    for (int n = 0; n < lanes; n++)
        result[n] = no_subnormal(no_subnormal(result[n]) + no_subnormal(sum[2 * n] + sum[2 * n + 1]));
    memcpy(c->data[row], result, (size_t)c->bytes);
}

void emulated_dot(int to, int left, int right) {
    Register *c = register_of(to, "dot"), *a = register_of(left, "dot"), *b = register_of(right, "dot");
    if (!c || !a || !b) return;
    if (c == a || c == b || a == b) {
        FAULT("dot: tiles %d, %d and %d must be three", to, left, right);
    } else if (c->rows != a->rows || c->bytes != b->bytes || a->bytes % 4 || c->bytes % 4 || a->bytes / 4 != b->rows) {
        FAULT("dot: tiles %d, %d and %d do not fit each other", to, left, right);
    } else {
        if (!c->written || !a->written || !b->written)
            FAULT("dot: one of the tiles %d, %d and %d was never written", to, left, right);
        for (int r = 0; r < c->rows; r++) dot_row(c, a, b, r);
    }
}

#include "model/kernels/products/amx_products.c"
