/* See peak.h. The Makefile gives this file its instruction set; on another architecture it has no loops. */
#include "model/kernels/peak.h"

#if defined(__AVX2__) && defined(__FMA__)
#include "model/kernels/fast/peak.h"

const PeakLoops avx2_peak_f32 = {fast_peak_registers, fast_peak_from_cache};
#else
const PeakLoops avx2_peak_f32 = {NULL, NULL};
#endif
