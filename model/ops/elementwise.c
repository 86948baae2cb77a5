/* Shape rules of the elementwise ops. */
#include "model/ops/elementwise.h"

Tensor *elementwise_unary(Tape *tape, const OpSpec *spec, Tensor *x, const void *attributes, size_t attributes_size) {
    Node *node = tape_node(tape, spec, 1, &x, NULL, attributes, attributes_size);
    if (!node) return NULL;
    if (x->dtype != DTYPE_F32) return tape_fail(tape, "%s: its input must be fp32", spec->name);
    return tape_output(tape, node, x->rows, x->width, DTYPE_F32);
}

Tensor *elementwise_binary(Tape *tape, const OpSpec *spec, Tensor *a, Tensor *b) {
    Node *node = tape_node(tape, spec, 2, (Tensor *[]){a, b}, NULL, NULL, 0);
    if (!node) return NULL;
    if (a->rows != b->rows || a->width != b->width || a->dtype != DTYPE_F32 || b->dtype != DTYPE_F32)
        return tape_fail(tape, "%s: operands must be fp32 of one shape; they have widths %d and %d", spec->name,
                         a->width, b->width);
    return tape_output(tape, node, a->rows, a->width, DTYPE_F32);
}
