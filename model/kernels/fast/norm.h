/* RMSNorm in fp32, alone and with the residual addition: the rows of fast/norm_rows.h. Included by avx2_kernels.c and
 * avx512_kernels.c. */
#include "model/kernels/fast/norm_rows.h"
#include "model/kernels/kernels.h"
#include "model/kernels/fast/simd.h"

static void fast_add_rmsnorm_forward(float *sum, float *y, float *rstd, const float *x, const float *delta,
                                     const float *w, int n_tokens, int width, float eps) {
    norm_rows(false, sum, y, rstd, x, delta, w, n_tokens, width, eps);
}

static void fast_add_rmsnorm_backward(float *dx, bool accumulate, float *ddelta, float *dw, const float *dsum,
                                      const float *dy, const float *sum, const float *w, const float *rstd,
                                      int n_tokens, int width, float *scratch) {
    NormBackward b = {dx, ddelta, dsum, sum, w, rstd, dy, (size_t)width, accumulate};
    norm_rows_backward(false, b, dw, n_tokens, scratch);
}

static void fast_rmsnorm_forward(float *y, float *rstd, const float *x, const float *w, int n_tokens, int width,
                                 float eps) {
    norm_rows(false, NULL, y, rstd, x, NULL, w, n_tokens, width, eps);
}
