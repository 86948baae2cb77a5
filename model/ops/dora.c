/* The magnitudes of a weight-decomposed adapter (DoRA: Liu et al. 2024, equation 5; PEFT's lora_magnitude_vector): row
 * r of W + scale·B·A has the length m_r. With z the product of the unscaled sum, by rows r of the weight:
 *
 *   y_r = gain_r·z_r,  gain_r = m_r / ‖(W + scale·B·A)_r‖        a row that is not adapted: gain 1
 *   dz_r = gain_r·dy_r,  dm_r = Σ_tokens dy_r·z_r / ‖…‖_r        the norm is a constant (section 4.3)
 *
 * Of an embedding it is the columns of W + scale·(B·A)ᵀ, whose sums of squares are over the whole vocabulary.
 */
#include <math.h>

#include "model/core/error.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/ops/adapter.h"

enum { ROWS_AT_ONCE = 128, SLICE = 256, ROW_GRAIN = 4, COLUMN_GRAIN = 64 };

bool has_magnitudes(const Weight *weight) {
    return weight->adapter && weight->adapter->gains;
}

void adapter_changed(Weight *weight) {
    if (weight->adapter) weight->adapter->current = false;
}

/* Numbers in a row of z. */
static size_t width_of(const Weight *weight) {
    return (size_t)(weight->adapter->of_tokens ? weight->cols : weight->rows);
}

/* ---- norms ---- */

typedef struct {
    const Weight *weight;
    const float *delta; /* scale·B·A of the rows from first_row on */
    int first_row;
} Norms;

static void norm_range(void *context, size_t begin, size_t end, int thread) {
    const Norms *norms = context;
    size_t cols = (size_t)norms->weight->cols;
    float slice[SLICE];
    (void)thread;
    for (size_t r = begin; r < end; r++) {
        int row = norms->first_row + (int)r;
        double sum = 0;
        for (size_t first = 0; first < cols; first += SLICE) {
            size_t n = cols - first < SLICE ? cols - first : SLICE;
            row_major_read(&norms->weight->stored, row, first, n, slice);
            for (size_t i = 0; i < n; i++) {
                double element = (double)slice[i] + (double)norms->delta[r * cols + first + i];
                sum += element * element;
            }
        }
        norms->weight->adapter->norms[row] = (float)sqrt(sum);
    }
}

size_t dora_refresh_scratch(const Weight *weight) {
    return (size_t)(ROWS_AT_ONCE + 2) * (size_t)weight->cols; /* columns: and their sums in fp64 */
}

/* Of rows [at, …) of the adapted matrix. */
static void set_gains(Adapter *adapter, int at, const Weight *magnitude) {
    for (int r = 0; r < magnitude->cols; r++) {
        float norm = adapter->norms[at + r];
        adapter->gains[at + r] = norm > 0 ? magnitude->value[r] / norm : 0;
    }
}

typedef struct {
    int rows;
    size_t cols;
    const float *values;
    double *squares;
} Columns;

static void refresh_rows(Weight *weight, float *scratch) {
    Adapter *adapter = weight->adapter;
    size_t rank = (size_t)adapter->rank, cols = (size_t)weight->cols;
    for (int v = 0; v < adapter->n; v++) {
        const Weight *b = &adapter->views[v].b, *m = &adapter->views[v].magnitude;
        const float *a = adapter->a.value + (size_t)v * rank * cols;
        int at = adapter->views[v].first_row;
        for (int first = 0; first < b->rows; first += ROWS_AT_ONCE) {
            int n = b->rows - first < ROWS_AT_ONCE ? b->rows - first : ROWS_AT_ONCE;
            Norms norms = {weight, scratch, at + first};
            kernels()->gemm(false, false, n, weight->cols, adapter->rank, adapter->scale,
                            b->value + (size_t)first * rank, rank, a, cols, 0, scratch, cols);
            parallel_for((size_t)n, ROW_GRAIN, norm_range, &norms);
        }
        set_gains(adapter, at, m);
    }
}

/* Σ of squares of some rows' elements, in order of the rows: threads own columns. */
static void add_squares(void *context, size_t begin, size_t end, int thread) {
    const Columns *c = context;
    (void)thread;
    for (int r = 0; r < c->rows; r++)
        for (size_t j = begin; j < end; j++) {
            double element = (double)c->values[(size_t)r * c->cols + j];
            c->squares[j] += element * element;
        }
}

int dora_columns(Weight *weight, DoraRows read, void *context, float *scratch) {
    Adapter *adapter = weight->adapter;
    size_t cols = (size_t)weight->cols;
    const Weight *a = &adapter->a, *b = &adapter->views[0].b;
    double *squares = (double *)(void *)scratch;
    float *values = scratch + 2 * cols;
    for (size_t j = 0; j < cols; j++) squares[j] = 0;
    for (int first = 0; first < weight->rows; first += ROWS_AT_ONCE) {
        Columns columns = {.rows = weight->rows - first < ROWS_AT_ONCE ? weight->rows - first : ROWS_AT_ONCE,
                           .cols = cols,
                           .values = values,
                           .squares = squares};
        TRY(read(context, first, columns.rows, values));
        kernels()->gemm(true, true, columns.rows, weight->cols, adapter->rank, adapter->scale, a->value + first,
                        (size_t)a->cols, b->value, (size_t)adapter->rank, 1, values, cols);
        parallel_for(cols, COLUMN_GRAIN, add_squares, &columns);
    }
    for (size_t j = 0; j < cols; j++) adapter->norms[j] = (float)sqrt(squares[j]);
    set_gains(adapter, 0, &adapter->views[0].magnitude);
    adapter->current = true;
    return OK;
}

static int read_stored(void *context, int first, int n, float *to) {
    const Weight *weight = context;
    size_t cols = (size_t)weight->cols;
    for (int r = 0; r < n; r++) row_major_read(&weight->stored, first + r, 0, cols, to + (size_t)r * cols);
    return OK;
}

void dora_refresh(Weight *weight, float *scratch) {
    if (weight->adapter->current) return;
    if (weight->adapter->of_tokens)
        (void)dora_columns(weight, read_stored, weight, scratch); /* memory is read without errors */
    else
        refresh_rows(weight, scratch);
    weight->adapter->current = true;
}

/* ---- rows ---- */

typedef struct {
    const Weight *weight;
    const void *dy, *z;
    void *to;
    Dtype dtype;
    int rows;
} Rows;

/* to = gain∘z */
static void scale_range(void *context, size_t begin, size_t end, int thread) {
    const Rows *rows = context;
    size_t width = width_of(rows->weight), size = dtype_size(rows->dtype);
    const float *gains = rows->weight->adapter->gains;
    float slice[SLICE];
    (void)thread;
    for (size_t row = begin; row < end; row++)
        for (size_t first = 0; first < width; first += SLICE) {
            size_t n = width - first < SLICE ? width - first : SLICE, at = (row * width + first) * size;
            dtype_read_f32(slice, (const char *)rows->z + at, rows->dtype, n);
            for (size_t i = 0; i < n; i++) slice[i] *= gains[first + i];
            dtype_write_f32((char *)rows->to + at, rows->dtype, slice, n);
        }
}

void dora_forward(void *y, const void *z, const Weight *weight, Dtype dtype, int rows) {
    Rows all = {.weight = weight, .z = z, .to = y, .dtype = dtype, .rows = rows};
    parallel_for((size_t)rows, ROW_GRAIN, scale_range, &all);
}

/* Sums over the tokens in their order, of some of the weight's rows. */
static void magnitude_range(void *context, size_t begin, size_t end, int thread) {
    const Rows *rows = context;
    const Adapter *adapter = rows->weight->adapter;
    size_t width = width_of(rows->weight), size = dtype_size(rows->dtype);
    float dy[COLUMN_GRAIN], z[COLUMN_GRAIN];
    (void)thread;
    for (size_t first = begin; first < end; first += COLUMN_GRAIN) {
        size_t n = end - first < COLUMN_GRAIN ? end - first : COLUMN_GRAIN;
        double sum[COLUMN_GRAIN] = {0};
        for (size_t t = 0; t < (size_t)rows->rows; t++) {
            size_t at = (t * width + first) * size;
            dtype_read_f32(dy, (const char *)rows->dy + at, rows->dtype, n);
            dtype_read_f32(z, (const char *)rows->z + at, rows->dtype, n);
            for (size_t i = 0; i < n; i++) sum[i] += (double)dy[i] * (double)z[i];
        }
        for (size_t i = 0; i < n; i++)
            for (int v = 0; v < adapter->n; v++) {
                size_t r = first + i - (size_t)adapter->views[v].first_row; /* wraps below the view */
                const Weight *m = &adapter->views[v].magnitude;
                float norm = adapter->norms[first + i];
                if (r < (size_t)m->cols && norm > 0) m->grad[r] += (float)(sum[i] / (double)norm);
            }
    }
}

void dora_backward(void *to, const void *dy, const void *z, Weight *weight, bool weights, Dtype dtype, int rows) {
    Rows sums = {.weight = weight, .dy = dy, .z = z, .dtype = dtype, .rows = rows};
    Rows scaled = {.weight = weight, .z = dy, .to = to, .dtype = dtype, .rows = rows};
    if (weights) parallel_for(width_of(weight), COLUMN_GRAIN, magnitude_range, &sums);
    parallel_for((size_t)rows, ROW_GRAIN, scale_range, &scaled);
    if (weights) adapter_changed(weight); /* an update follows, now or after other micro-batches */
}
