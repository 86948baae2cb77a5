/* A model whose vocabulary grows: new tokens are new rows of the embedding and of the head. */
#include <string.h>

#include "model/llama.h"

static void copy_weights(Llama *to, const Llama *from, int n) {
    for (int i = 0; i < n; i++)
        if (!to->weights[i]->tied)
            memcpy(to->weights[i]->value, from->weights[i]->value,
                   weight_elements(from->weights[i]) * sizeof *to->weights[i]->value);
    llama_pack(to);
}

void llama_copy_rows(Llama *to, const Llama *from) {
    copy_weights(to, from, to->n_weights);
}

void llama_copy_body(Llama *to, const Llama *from) {
    copy_weights(to, from, to->n_weights - 1); /* the head is the last */
}

static void init_rows(Weight *weight, int first) {
    size_t width = (size_t)weight->cols;
    float *row = weight->value + (size_t)first * width;
    for (size_t c = 0; c < width; c++) {
        double sum = 0;
        for (int r = 0; r < first; r++) sum += (double)weight->value[(size_t)r * width + c];
        row[c] = (float)(sum / first);
    }
    for (int r = first + 1; r < weight->rows; r++) memcpy(weight->value + (size_t)r * width, row, width * sizeof *row);
}

void llama_init_new_rows(Llama *model, int first) {
    if (first <= 0 || first >= model->shape.vocab_size) return;
    init_rows(&model->embedding, first);
    if (!model->head.tied && model->shape.n_scores == 0) init_rows(&model->head, first);
    llama_pack(model);
}
