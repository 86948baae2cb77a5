#include <math.h>
#include <string.h>

#include "model/kernels/reference.h"

static void reference_adamw_matrix(const AdamwMatrix *matrix, AdamwStep step) {
    size_t n = (size_t)matrix->rows * (size_t)matrix->cols;
    reference_adamw(matrix->param, matrix->m, matrix->v, matrix->grad, n, step);
    if (matrix->zero_grad) memset(matrix->grad, 0, n * sizeof(float));
    RowMajor rows = {.dtype = DTYPE_F32, .n_views = 1, .cols = matrix->cols, .view = {matrix->param}, .first_row = {0, matrix->rows}};
    Panels forward = {matrix->rows, matrix->cols, NULL, &rows, false}, backward = {matrix->cols, matrix->rows, NULL, &rows, true};
    if (matrix->forward) kernels()->bf16.pack(matrix->forward, panels_elements(16, matrix->cols), &forward, 0, matrix->rows, 0, matrix->cols);
    if (matrix->backward) kernels()->bf16.pack(matrix->backward, panels_elements(16, matrix->rows), &backward, 0, matrix->cols, 0, matrix->rows);
}

void reference_bf16_adamw(Bf16Kernels *table) {
    table->adamw = reference_adamw_matrix;
}
