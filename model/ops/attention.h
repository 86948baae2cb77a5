/* What attention and attention_cached share: their shape rule. */
#ifndef CRIA_OPS_ATTENTION_H
#define CRIA_OPS_ATTENTION_H

#include "model/ops/ops.h"

/* The scale of the scores: as given, or 1/sqrt(head_dim). */
float attention_scale(AttentionShape shape);
/* Whether rows of qkv are queries | keys | values of this shape; else an error in the tape. */
bool attention_fits(Tape *tape, const Tensor *qkv, AttentionShape shape);

#endif
