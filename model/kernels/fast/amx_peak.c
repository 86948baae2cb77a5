/* See peak.h: 2 × 2 tiles of C, two tiles of A and two of B a step, TDPBF16PS (Intel's manual of instruction set
 * extensions, chapter 3): 16 × 16 sums of 16 pairs, each tile 1 KiB. */
#include "model/kernels/peak.h"

#if defined(__AMX_BF16__)
#include <immintrin.h>
#include <stdint.h>

enum { TILE_BYTES = 1024, TILE_ROW = 64, STEPS = PEAK_OPERAND_BYTES / (4 * TILE_BYTES), FLOPS = 4 * 2 * 16 * 16 * 32 };

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;
_Static_assert(sizeof(TileConfig) == 64, "the layout that LDTILECFG reads");

/* Eight full tiles, the sums in 0 to 3 zeroed. What the thread had configured before comes back afterwards. */
static void begin(TileConfig *before) {
    TileConfig whole = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        whole.row_bytes[i] = TILE_ROW;
        whole.rows[i] = 16;
    }
    _tile_storeconfig(before);
    _tile_loadconfig(&whole);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

static void end(const TileConfig *before) {
    if (before->palette)
        _tile_loadconfig(before);
    else
        _tile_release();
}

static double registers(long rounds) {
    TileConfig before;
    begin(&before);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (long step = 0; step < rounds * STEPS; step++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    end(&before);
    return (double)rounds * STEPS * FLOPS;
}

static double from_cache(const void *operands, long rounds) {
    TileConfig before;
    begin(&before);
    for (long round = 0; round < rounds; round++) {
        const char *at = operands;
        for (int step = 0; step < STEPS; step++, at += 4 * TILE_BYTES) {
            _tile_loadd(4, at, TILE_ROW);
            _tile_loadd(6, at + TILE_BYTES, TILE_ROW);
            _tile_loadd(7, at + 2 * TILE_BYTES, TILE_ROW);
            _tile_loadd(5, at + 3 * TILE_BYTES, TILE_ROW);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    end(&before);
    return (double)rounds * STEPS * FLOPS;
}

const PeakLoops amx_peak = {registers, from_cache};
#else
const PeakLoops amx_peak = {NULL, NULL};
#endif
