/* See peak.h. The Makefile gives this file its instruction set; on another architecture it has no loops. */
#include "model/kernels/peak.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include "model/kernels/fast/peak.h"

const PeakLoops avx512_peak_f32 = {fast_peak_registers, fast_peak_from_cache};
#else
const PeakLoops avx512_peak_f32 = {NULL, NULL};
#endif
