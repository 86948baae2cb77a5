/* The table made of ops.def, for the files of this room and for tests that walk it. */
#ifndef CRIA_OPS_REGISTRY_H
#define CRIA_OPS_REGISTRY_H

#include "model/autodiff/node.h"

/* The functions that a row promises; each is defined in its op's file. */
#define DECLARE_INPUTS(name) void op_##name##_backward_inputs(OpCall *call);
#define DECLARE_WEIGHTS(name) void op_##name##_backward_weights(OpCall *call);
#define DECLARE_INPUTS_AND_WEIGHTS(name) DECLARE_INPUTS(name) DECLARE_WEIGHTS(name)
#define DECLARE_INFERENCE(name)
#define DECLARE_FLOPS(name) double op_##name##_flops(const Node *node, const TapeBatch *batch);
#define DECLARE_NO_FLOPS(name)
#define DECLARE_SCRATCH(name) size_t op_##name##_scratch(const Node *node, int capacity);
#define DECLARE_NO_SCRATCH(name)
#define OP(name, activation, backward, flops, scratch, ...) \
    void op_##name##_forward(OpCall *call);                 \
    DECLARE_##backward(name) DECLARE_##flops(name) DECLARE_##scratch(name)
#include "model/ops/ops.def"
#undef OP

enum {
#define OP(name, ...) OP_##name,
#include "model/ops/ops.def"
#undef OP
    OP_COUNT
};

extern const OpSpec op_specs[OP_COUNT];

#endif
