/* ops.def as an array of OpSpec. */
#include "model/ops/registry.h"

#define BACKWARD_INPUTS(name) .backward_inputs = op_##name##_backward_inputs,
#define BACKWARD_WEIGHTS(name) .backward_weights = op_##name##_backward_weights,
#define BACKWARD_INPUTS_AND_WEIGHTS(name) BACKWARD_INPUTS(name) BACKWARD_WEIGHTS(name)
#define BACKWARD_INFERENCE(name) .inference = true,
#define COUNT_FLOPS(name) .flops = op_##name##_flops,
#define COUNT_NO_FLOPS(name)
#define WANT_SCRATCH(name) .scratch = op_##name##_scratch,
#define WANT_NO_SCRATCH(name)

#define OP(op, activation_input, backward_kind, flops_kind, scratch_kind, inputs_read, weights_read, output_over, \
           gradient_over)                                                                                         \
    [OP_##op] = {.name = #op,                                                                                     \
                 .activation = (activation_input),                                                                \
                 .forward = op_##op##_forward,                                                                    \
                 BACKWARD_##backward_kind(op) COUNT_##flops_kind(op) WANT_##scratch_kind(op).saves_for_inputs =   \
                     (inputs_read),                                                                               \
                 .saves_for_weights = (weights_read),                                                             \
                 .in_place = (output_over),                                                                       \
                 .grad_in_place = (gradient_over)},

const OpSpec op_specs[OP_COUNT] = {
#include "model/ops/ops.def"
};
