/* Matrix products through OpenBLAS. A product with one row or one column goes to sgemv, which reads the matrix once
 * without repacking it (a decoding step is made of these). */
#include <cblas.h>

#include "model/core/log.h"
#include "model/core/threads.h"
#include "model/kernels/fast/fast.h"

enum { OPENBLAS_USES_OPENMP = 2 }; /* what openblas_get_parallel returns for that build */

void openblas_start(void) {
    if (threads_count() > 1 && openblas_get_parallel() != OPENBLAS_USES_OPENMP)
        log_warning("this OpenBLAS (%s) does not use OpenMP: its threads compete with cria's; install "
                    "libopenblas0-openmp",
                    openblas_get_config());
    openblas_set_num_threads(threads_count());
}

void openblas_gemm(bool trans_a, bool trans_b, int m, int n, int k, float alpha, const float *a, size_t lda,
                   const float *b, size_t ldb, float beta, float *c, size_t ldc) {
    if (m <= 0 || n <= 0) return;
    /* One row: c = op(B)ᵀ·a. */
    if (m == 1) {
        int b_rows = trans_b ? n : k, b_columns = trans_b ? k : n, a_step = trans_a ? (int)lda : 1;
        cblas_sgemv(CblasRowMajor, trans_b ? CblasNoTrans : CblasTrans, b_rows, b_columns, alpha, b, (int)ldb, a,
                    a_step, beta, c, 1);
        return;
    }
    cblas_sgemm(CblasRowMajor, trans_a ? CblasTrans : CblasNoTrans, trans_b ? CblasTrans : CblasNoTrans, m, n, k, alpha,
                a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}
