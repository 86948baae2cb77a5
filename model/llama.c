/* The forward pass. Storage is in storage.c, names and files in parameters.c. */
#include "model/llama.h"

#include "model/autodiff/node.h"

/* The norm of the stream, to which what waits is added first. With its norm recomputed, the sum is taken apart from it,
 * outside the region. */
static Tensor *normed(Tape *tape, Stream *stream, Weight *gain, float epsilon, Recompute recompute) {
    if (stream->delta && recompute != RECOMPUTE_NORMS) {
        Normed out = op_add_rmsnorm(tape, stream->x, stream->delta, gain, epsilon);
        *stream = (Stream){.x = out.sum};
        return out.y;
    }
    if (stream->delta) *stream = (Stream){.x = op_residual(tape, stream->x, stream->delta)};
    if (recompute == RECOMPUTE_NORMS) tape_recompute_begin(tape);
    return op_rmsnorm(tape, stream->x, gain, epsilon);
}

Stream llama_layer(Tape *tape, Stream stream, Llama *model, int layer, LlamaRecord record) {
    const LlamaShape *shape = &model->shape;
    LlamaLayer *w = &model->layers[layer];
    AttentionShape heads = {.n_heads = shape->n_heads, .n_kv_heads = shape->n_kv_heads, .head_dim = shape->head_dim};
    Recompute recompute = record.recompute;

    if (recompute == RECOMPUTE_LAYER) tape_recompute_begin(tape);
    Tensor *h = normed(tape, &stream, &w->attention_norm, shape->norm_eps, recompute);
    Tensor *qkv = op_qkv(tape, h, &w->qkv, shape->n_heads + shape->n_kv_heads, model->rotary);
    if (recompute == RECOMPUTE_NORMS) tape_recompute_end(tape);
    Tensor *mixed = record.cache ? op_attention_cached(tape, qkv, heads, &record.cache->layers[layer])
                                 : op_attention(tape, qkv, heads);
    stream.delta = op_linear(tape, mixed, &w->attention_out);

    h = normed(tape, &stream, &w->ffn_norm, shape->norm_eps, recompute);
    Tensor *gate_up = op_linear(tape, h, &w->gate_up);
    if (recompute == RECOMPUTE_NORMS) tape_recompute_end(tape);
    if (recompute == RECOMPUTE_NORMS) tape_recompute_begin(tape);
    stream.delta = op_linear(tape, op_swiglu(tape, gate_up), &w->down);
    if (recompute != RECOMPUTE_NONE) tape_recompute_end(tape);
    return stream;
}

Tensor *llama_hidden(Tape *tape, Llama *model, LlamaRecord record) {
    Stream stream = {.x = op_embedding(tape, &model->embedding)};
    for (int layer = 0; layer < model->shape.n_layers; layer++)
        stream = llama_layer(tape, stream, model, layer, record);
    return normed(tape, &stream, &model->norm, model->shape.norm_eps, RECOMPUTE_NONE);
}

Tensor *llama_score(Tape *tape, Llama *model, LlamaRecord record, Tensor *index) {
    if (model->shape.n_scores == 0) return tape_fail(tape, "score: a language model has no score head");
    Tensor *hidden = llama_hidden(tape, model, record);
    return op_score(tape, index ? op_gather(tape, hidden, index) : hidden, &model->head);
}

HeadOutputs llama_record(Tape *tape, Llama *model, LlamaRecord record, HeadOptions head) {
    return op_head(tape, llama_hidden(tape, model, record), &model->head, head);
}
