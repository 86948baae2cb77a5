/* A row-major weight read as fp32, whatever it is kept in. */
#include "model/kernels/bf16.h"
#include "model/kernels/quantised.h"

void row_major_read(const RowMajor *w, int row, size_t first, size_t n, float *out) {
    int v = row_major_view(w, row);
    size_t at = (size_t)(row - w->first_row[v]) * (size_t)w->cols + first;
    if (w->quantised)
        quantised_read(&w->quantised[v], at, n, out);
    else /* of a dtype that can be read */
        (void)dtype_read_f32(out, (const char *)w->view[v] + at * dtype_size(w->dtype), w->dtype, n);
}
