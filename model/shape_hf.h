/* A shape as Hugging Face's config.json has it. */
#ifndef CRIA_MODEL_SHAPE_HF_H
#define CRIA_MODEL_SHAPE_HF_H

#include "model/formats/hf_config.h"
#include "model/shape.h"

LlamaShape llama_shape_from_hf(const HfConfig *config);
/* Token ids are left as `hf_config_default` has them. */
HfConfig llama_shape_to_hf(const LlamaShape *shape);

#endif
