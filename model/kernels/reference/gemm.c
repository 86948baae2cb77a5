/* C[M,N] = alpha·op(A)·op(B) + beta·C, where op is the identity or the transpose: the definition of BLAS's sgemm
 * (Dongarra et al. 1990) for row-major arrays. With beta = 0, C is not read. */
#include "model/core/threads.h"
#include "model/kernels/reference/reference.h"

void reference_gemm(bool trans_a, bool trans_b, int m, int n, int k, float alpha, const float *a, size_t lda,
                    const float *b, size_t ldb, float beta, float *c, size_t ldc) {
    size_t a_row = trans_a ? 1 : lda, a_col = trans_a ? lda : 1;
    size_t b_row = trans_b ? 1 : ldb, b_col = trans_b ? ldb : 1;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int i = 0; i < m; i++) {
        float *c_row = c + (size_t)i * ldc;
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int p = 0; p < k; p++)
                sum += (double)a[(size_t)i * a_row + (size_t)p * a_col] * b[(size_t)p * b_row + (size_t)j * b_col];
            sum *= alpha;
            c_row[j] = (float)(beta == 0 ? sum : sum + (double)beta * c_row[j]);
        }
    }
}

void reference_row_major_product(float *y, size_t y_stride, const float *x, size_t x_stride, int m, const RowMajor *w) {
    enum { PIECE = 256 };
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int row = 0; row < w->first_row[w->n_views]; row++)
        for (int r = 0; r < m; r++) {
            float piece[PIECE];
            double sum = 0;
            for (int col = 0, n; col < w->cols; col += n) {
                n = w->cols - col < PIECE ? w->cols - col : PIECE;
                row_major_read(w, row, (size_t)col, (size_t)n, piece);
                for (int i = 0; i < n; i++) sum += (double)x[(size_t)r * x_stride + (size_t)(col + i)] * piece[i];
            }
            y[(size_t)r * y_stride + (size_t)row] = (float)sum;
        }
}
