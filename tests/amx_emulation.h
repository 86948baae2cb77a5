/* AMX's tile registers in plain C, for CPUs without them, and the products compiled on top (amx_emulation.c). */
#ifndef CRIA_TESTS_AMX_EMULATION_H
#define CRIA_TESTS_AMX_EMULATION_H

#include "model/kernels/bf16.h"
#define AMX_EMULATED 1
#include "model/kernels/products/amx_tiles.h"

/* model/kernels/products/amx_products.c on emulated tiles. Only for CPUs that run the avx512 kernels. */
void amx_emulated_products(Bf16Kernels *table);

/* What hardware would not have survived, or what would have computed from nothing: how often, the first one's text.
 * Reading clears both. */
int emulation_faults(char *text, size_t size);
/* Threads that have configured tiles and not released them. */
int emulation_configured(void);

#endif
