/* The tile registers of AMX as operations, in two compilations: Intel's instructions, or their emulation in plain C
 * (tests/amx_emulation.h), on which the tests run the same products where the CPU has no tiles.
 *
 *   TILES_CONFIGURE(config)      the shapes of all eight; all become zero. Any other operation needs it first
 *   TILES_ZERO(t)                t = 0
 *   TILES_LOAD(t, from, stride)  every row of t's shape from memory, `stride` bytes apart
 *   TILES_DOT(c, a, b)           c += a·b, pairs of bfloat16 to sums of fp32
 *   TILES_STORE(t, to, stride)   every row of t's shape to memory
 *   TILES_RELEASE()              no tiles: the register file takes no part in context switches any more
 *
 * Tile numbers are written as digits: gcc pastes them into the instruction's text. Where TILES_CONFIGURE is not
 * defined, there are no tiles in this compilation. */
#ifndef CRIA_KERNELS_PRODUCTS_AMX_TILES_H
#define CRIA_KERNELS_PRODUCTS_AMX_TILES_H

#include <stdint.h>

/* What LDTILECFG reads (Intel SDM volume 1, section 18.3, palette 1: eight tiles of at most 16 rows × 64 bytes). */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[8], unused_row_bytes[8];
    uint8_t rows[8], unused_rows[8];
} TileConfig;
_Static_assert(sizeof(TileConfig) == 64, "the instruction reads 64 bytes");

#if defined(AMX_EMULATED)

void emulated_configure(const TileConfig *config);
void emulated_release(void);
void emulated_zero(int tile);
void emulated_load(int tile, const void *from, long stride);
void emulated_dot(int c, int a, int b);
void emulated_store(int tile, void *to, long stride);

#define TILES_CONFIGURE(config) emulated_configure(config)
#define TILES_RELEASE() emulated_release()
#define TILES_ZERO(t) emulated_zero(t)
#define TILES_LOAD(t, from, stride) emulated_load(t, from, (long)(stride))
#define TILES_DOT(c, a, b) emulated_dot(c, a, b)
#define TILES_STORE(t, to, stride) emulated_store(t, to, (long)(stride))

/* gcc's names and those of clang up to 14 */
#elif (defined(__AMX_TILE__) && defined(__AMX_BF16__)) || (defined(__AMXTILE__) && defined(__AMXBF16__))

#include <immintrin.h>

/* gcc 12's instructions do not say which memory they read, so that a store before a load of the same place could be
 * moved behind it: a fence that costs nothing says it. */
#define TILES_FENCE(memory) __asm__ volatile("" : : "r"(memory) : "memory")

#define TILES_CONFIGURE(config)   \
    do {                          \
        TILES_FENCE(config);      \
        _tile_loadconfig(config); \
    } while (0)
#define TILES_RELEASE() _tile_release()
#define TILES_ZERO(t) _tile_zero(t)
#define TILES_LOAD(t, from, stride)       \
    do {                                  \
        TILES_FENCE(from);                \
        _tile_loadd(t, (from), (stride)); \
    } while (0)
#define TILES_DOT(c, a, b) _tile_dpbf16ps(c, a, b)
#define TILES_STORE(t, to, stride)       \
    do {                                 \
        _tile_stored(t, (to), (stride)); \
        TILES_FENCE(to);                 \
    } while (0)

#endif

#endif
