/* Field by field; see shape_hf.h. */
#include "model/shape_hf.h"

#include "model/core/text.h"

LlamaShape llama_shape_from_hf(const HfConfig *config) {
    LlamaShape shape = {.dim = config->dim,
                        .n_layers = config->n_layers,
                        .n_heads = config->n_heads,
                        .n_kv_heads = config->n_kv_heads,
                        .head_dim = config->head_dim,
                        .ffn_dim = config->ffn_dim,
                        .vocab_size = config->vocab_size,
                        .max_context = config->max_position_embeddings,
                        .norm_eps = (float)config->rms_norm_eps,
                        .rope_theta = (float)config->rope_theta,
                        .tied = config->tie_word_embeddings && config->labels.n == 0,
                        .n_scores = config->labels.n};
    if (config->rope_scaling.llama3)
        shape.rope_scaling = (RotaryScaling){.factor = (float)config->rope_scaling.factor,
                                             .low_freq_factor = (float)config->rope_scaling.low_freq_factor,
                                             .high_freq_factor = (float)config->rope_scaling.high_freq_factor,
                                             .original_context = config->rope_scaling.original_max_position_embeddings};
    return shape;
}

HfConfig llama_shape_to_hf(const LlamaShape *shape) {
    HfConfig config = hf_config_default();
    config.dim = shape->dim;
    config.n_layers = shape->n_layers;
    config.n_heads = shape->n_heads;
    config.n_kv_heads = shape->n_kv_heads;
    config.head_dim = shape->head_dim;
    config.ffn_dim = shape->ffn_dim;
    config.vocab_size = shape->vocab_size;
    config.max_position_embeddings = shape->max_context;
    config.rms_norm_eps = text_float(shape->norm_eps);
    config.rope_theta = text_float(shape->rope_theta);
    config.tie_word_embeddings = shape->tied;
    config.labels = hf_labels_unnamed(shape->n_scores);
    config.rope_scaling.llama3 = shape->rope_scaling.factor > 0;
    if (config.rope_scaling.llama3) {
        config.rope_scaling.factor = text_float(shape->rope_scaling.factor);
        config.rope_scaling.low_freq_factor = text_float(shape->rope_scaling.low_freq_factor);
        config.rope_scaling.high_freq_factor = text_float(shape->rope_scaling.high_freq_factor);
        config.rope_scaling.original_max_position_embeddings = shape->rope_scaling.original_context;
    }
    return config;
}
