/* Tiles of 8 × 3, with 32 registers of 16 lanes. Included by avx512_products.c and avx512bf16_products.c, which define
 * tile_step. */
#ifndef CRIA_KERNELS_PRODUCTS_REGISTERS_AVX512_H
#define CRIA_KERNELS_PRODUCTS_REGISTERS_AVX512_H

#include "model/kernels/products/registers.h"

#define TILES_OF(rows)   \
    TILE_KERNEL(rows, 1) \
    TILE_KERNEL(rows, 2) \
    TILE_KERNEL(rows, 3)
TILES_OF(1)
TILES_OF(2)
TILES_OF(3)
TILES_OF(4)
TILES_OF(5)
TILES_OF(6)
TILES_OF(7)
TILES_OF(8)

static void tile_multiply(const Tile *t) {
    static void (*const kernel[TILE_ROWS][TILE_PANELS])(const Tile *) = {
        {tile_1_1, tile_1_2, tile_1_3}, {tile_2_1, tile_2_2, tile_2_3}, {tile_3_1, tile_3_2, tile_3_3},
        {tile_4_1, tile_4_2, tile_4_3}, {tile_5_1, tile_5_2, tile_5_3}, {tile_6_1, tile_6_2, tile_6_3},
        {tile_7_1, tile_7_2, tile_7_3}, {tile_8_1, tile_8_2, tile_8_3},
    };
    kernel[t->rows - 1][(t->lanes - 1) / PANEL_LANES](t);
}

#endif
