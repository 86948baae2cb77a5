/* See flops.h. A product of [T, K] and [K, N] takes 2·T·K·N. */
#include "train/flops.h"

ForwardFlops forward_flops(const LlamaShape *shape, int context) {
    double dim = shape->dim, ffn = shape->ffn_dim, layers = shape->n_layers;
    double query = (double)shape->n_heads * shape->head_dim, key = (double)shape->n_kv_heads * shape->head_dim;
    double weights = dim * (query + 2 * key) + query * dim + 3 * dim * ffn;
    return (ForwardFlops){.matrices = 2 * layers * weights,
                          .attention = 4 * layers * query * (context + 1) / 2, /* scores, and values weighed by them */
                          .head = 2 * dim * (shape->n_scores > 0 ? shape->n_scores : shape->vocab_size)};
}

double recomputed_norm_bytes(const LlamaShape *shape, size_t activation_bytes) {
    double activation = (double)activation_bytes;
    double norms = 2.0 * shape->dim * (sizeof(float) + activation); /* two: the stream in, what products read out */
    double swiglu = 3.0 * shape->ffn_dim * activation;              /* gate and up in, their product out */
    return shape->n_layers * (norms + swiglu);
}

double adamw_bytes_per_parameter(bool packed, Dtype moments) {
    double read_and_written = 2.0 * (2.0 * (double)sizeof(float) + 2.0 * (double)dtype_size(moments));
    return read_and_written + (packed ? 2.0 * (double)sizeof(bf16) : 0);
}
