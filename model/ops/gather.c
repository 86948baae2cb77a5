/* y[i] = x[index[i]], whole rows; dx[index[i]] += dy[i], in order of i. An index outside x's live rows gives NaN, which
 * the loss then shows. */
#include <string.h>

#include "model/ops/elementwise.h"

Tensor *op_gather(Tape *tape, Tensor *x, Tensor *index) {
    Node *node = tape_node(tape, &op_specs[OP_gather], 2, (Tensor *[]){x, index}, NULL, NULL, 0);
    if (!node) return NULL;
    if (index->dtype != DTYPE_I32 || index->width != 1)
        return tape_fail(tape, "gather: the index must be int32 of width 1");
    return tape_output(tape, node, index->rows, x->width, x->dtype);
}

static bool is_row(const OpCall *call, int32_t index) {
    return index >= 0 && index < batch_rows(call->batch, call->node->inputs[0]->rows);
}

void op_gather_forward(OpCall *call) {
    const Tensor *x = call->node->inputs[0];
    const int32_t *index = call->in[1];
    size_t row = (size_t)x->width * dtype_size(x->dtype);
    int n = batch_rows(call->batch, call->node->inputs[1]->rows);
    char *y = call->out[0];
    for (int i = 0; i < n; i++, y += row) {
        if (is_row(call, index[i]))
            memcpy(y, (const char *)call->in[0] + (size_t)index[i] * row, row);
        else
            memset(y, 0xff, row); /* NaN in either dtype */
    }
}

/* A row of an activation that is gathered twice is rounded twice. */
void op_gather_backward_inputs(OpCall *call) {
    const Tensor *x = call->node->inputs[0];
    const int32_t *index = call->in[1];
    size_t width = (size_t)x->width;
    int rows = batch_rows(call->batch, x->rows), n = batch_rows(call->batch, call->node->inputs[1]->rows);
    if (!call->accumulate[0]) memset(call->in_grad[0], 0, (size_t)rows * width * dtype_size(x->dtype));
    for (int i = 0; i < n; i++) {
        if (!is_row(call, index[i])) continue;
        size_t to = (size_t)index[i] * width, from = (size_t)i * width;
        float *wide = call->in_grad[0];
        const float *dwide = call->out_grad[0];
        bf16 *narrow = call->in_grad[0];
        const bf16 *dnarrow = call->out_grad[0];
        for (size_t j = 0; j < width && x->dtype == DTYPE_F32; j++) wide[to + j] += dwide[from + j];
        for (size_t j = 0; j < width && x->dtype == DTYPE_BF16; j++)
            narrow[to + j] = f32_to_bf16(bf16_to_f32(narrow[to + j]) + bf16_to_f32(dnarrow[from + j]));
    }
}
