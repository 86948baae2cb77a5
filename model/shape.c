/* Presets and checks of shapes.
 *
 * Sources: Llama 1, Touvron et al. 2023a table 2 (FFN widths from the released weights); Llama 2, Touvron et al. 2023b
 * and its model card (7B and 13B have no grouped queries; some lists published later say otherwise and are wrong; 34B
 * as in Code Llama, Rozière et al. 2023); Llama 3, 3.1 and 3.2, model cards and Grattafiori et al. 2024 table 3; the
 * small ones, llama2.c's table of models. */
#include "model/shape.h"

#include <math.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/text.h"

/* NOLINTBEGIN(bugprone-macro-parentheses): each argument is a whole initialiser */
#define SCALED(f) \
    { .factor = (f), .low_freq_factor = 1.0f, .high_freq_factor = 4.0f, .original_context = 8192 }
#define PRESET(id, d, l, h, kv, hd, ffn, v, context, eps, theta, scaling, is_tied)                                    \
    {                                                                                                                 \
        id, {                                                                                                         \
            .dim = d, .n_layers = l, .n_heads = h, .n_kv_heads = kv, .head_dim = hd, .ffn_dim = ffn, .vocab_size = v, \
            .max_context = context, .norm_eps = eps, .rope_theta = theta, .rope_scaling = scaling, .tied = is_tied    \
        }                                                                                                             \
    }
#define NOT_SCALED \
    { .factor = 0.0f }
/* NOLINTEND(bugprone-macro-parentheses) */

static const struct {
    const char *name;
    LlamaShape shape;
} presets[] = {
    PRESET("260k", 64, 5, 8, 4, 8, 172, 512, 512, 1e-5f, 1e4f, NOT_SCALED, true),
    PRESET("15m", 288, 6, 6, 6, 48, 768, 32000, 256, 1e-5f, 1e4f, NOT_SCALED, true),
    PRESET("42m", 512, 8, 8, 8, 64, 1376, 32000, 1024, 1e-5f, 1e4f, NOT_SCALED, true),
    PRESET("110m", 768, 12, 12, 12, 64, 2048, 32000, 1024, 1e-5f, 1e4f, NOT_SCALED, true),
    PRESET("llama1-7b", 4096, 32, 32, 32, 128, 11008, 32000, 2048, 1e-6f, 1e4f, NOT_SCALED, false),
    PRESET("llama1-13b", 5120, 40, 40, 40, 128, 13824, 32000, 2048, 1e-6f, 1e4f, NOT_SCALED, false),
    PRESET("llama1-33b", 6656, 60, 52, 52, 128, 17920, 32000, 2048, 1e-6f, 1e4f, NOT_SCALED, false),
    PRESET("llama1-65b", 8192, 80, 64, 64, 128, 22016, 32000, 2048, 1e-5f, 1e4f, NOT_SCALED, false),
    PRESET("llama2-7b", 4096, 32, 32, 32, 128, 11008, 32000, 4096, 1e-5f, 1e4f, NOT_SCALED, false),
    PRESET("llama2-13b", 5120, 40, 40, 40, 128, 13824, 32000, 4096, 1e-5f, 1e4f, NOT_SCALED, false),
    PRESET("llama2-34b", 8192, 48, 64, 8, 128, 22016, 32000, 4096, 1e-5f, 1e4f, NOT_SCALED, false),
    PRESET("llama2-70b", 8192, 80, 64, 8, 128, 28672, 32000, 4096, 1e-5f, 1e4f, NOT_SCALED, false),
    PRESET("llama3-8b", 4096, 32, 32, 8, 128, 14336, 128256, 8192, 1e-5f, 5e5f, NOT_SCALED, false),
    PRESET("llama3-70b", 8192, 80, 64, 8, 128, 28672, 128256, 8192, 1e-5f, 5e5f, NOT_SCALED, false),
    PRESET("llama3.1-8b", 4096, 32, 32, 8, 128, 14336, 128256, 131072, 1e-5f, 5e5f, SCALED(8.0f), false),
    PRESET("llama3.1-70b", 8192, 80, 64, 8, 128, 28672, 128256, 131072, 1e-5f, 5e5f, SCALED(8.0f), false),
    PRESET("llama3.1-405b", 16384, 126, 128, 8, 128, 53248, 128256, 131072, 1e-5f, 5e5f, SCALED(8.0f), false),
    PRESET("llama3.2-1b", 2048, 16, 32, 8, 64, 8192, 128256, 131072, 1e-5f, 5e5f, SCALED(32.0f), true),
    PRESET("llama3.2-3b", 3072, 28, 24, 8, 128, 8192, 128256, 131072, 1e-5f, 5e5f, SCALED(32.0f), true),
};
enum { N_PRESETS = sizeof presets / sizeof *presets };

size_t llama_preset_count(void) {
    return N_PRESETS;
}
const char *llama_preset_name(size_t index) {
    return index < N_PRESETS ? presets[index].name : NULL;
}

int llama_preset(LlamaShape *shape, const char *name) {
    const char *names[N_PRESETS];
    for (size_t p = 0; p < N_PRESETS; p++) {
        names[p] = presets[p].name;
        if (strcmp(name, presets[p].name) == 0) {
            *shape = presets[p].shape;
            return OK;
        }
    }
    const char *nearest = text_nearest(name, names, N_PRESETS);
    FAIL(ERR_USAGE, "there is no preset '%s'%s%s%s (cria pretrain --help lists them)", name,
         nearest ? "; did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "");
}

/* Llama 1's FFN width: two thirds of 4·dim, so that three matrices cost what two of 4·dim would. */
static int default_ffn_dim(int dim) {
    enum { SMALL_WIDTH = 1024, MULTIPLE = 256, SMALL_MULTIPLE = 32 };
    int multiple = dim >= SMALL_WIDTH ? MULTIPLE : SMALL_MULTIPLE, ffn = 2 * 4 * dim / 3;
    return (ffn + multiple - 1) / multiple * multiple;
}

int llama_shape_check(LlamaShape *shape) {
    enum { MOST = 1 << 20, MOST_LAYERS = 4096 }; /* no product of them in bytes reaches 2^63 */
    if (shape->n_kv_heads == 0) shape->n_kv_heads = shape->n_heads;
    if (shape->head_dim == 0 && shape->n_heads > 0) {
        if (shape->dim % shape->n_heads != 0)
            FAIL(ERR_REFUSED, "model.dim %d is not a multiple of n_heads %d; give head_dim", shape->dim,
                 shape->n_heads);
        shape->head_dim = shape->dim / shape->n_heads;
    }
    if (shape->ffn_dim == 0 && shape->dim > 0 && shape->dim <= MOST) shape->ffn_dim = default_ffn_dim(shape->dim);
    const struct {
        const char *name;
        int value;
    } counts[] = {{"dim", shape->dim},
                  {"n_layers", shape->n_layers},
                  {"n_heads", shape->n_heads},
                  {"n_kv_heads", shape->n_kv_heads},
                  {"head_dim", shape->head_dim},
                  {"ffn_dim", shape->ffn_dim},
                  {"vocab_size", shape->vocab_size},
                  {"max_context", shape->max_context}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (counts[i].value <= 0 || counts[i].value > MOST)
            FAIL(ERR_REFUSED, "model.%s is %d; it must be between 1 and %d", counts[i].name, counts[i].value, MOST);
    if (shape->n_layers > MOST_LAYERS)
        FAIL(ERR_REFUSED, "model.n_layers is %d; at most %d are possible", shape->n_layers, MOST_LAYERS);
    if (shape->n_scores < 0 || shape->n_scores > MOST)
        FAIL(ERR_REFUSED, "a score head of %d rows; between 1 and %d are possible", shape->n_scores, MOST);
    if (shape->n_heads % shape->n_kv_heads != 0)
        FAIL(ERR_REFUSED, "model.n_heads %d is not a multiple of n_kv_heads %d", shape->n_heads, shape->n_kv_heads);
    if (shape->head_dim % 2 != 0)
        FAIL(ERR_REFUSED, "model.head_dim is %d; rotary embedding needs an even number", shape->head_dim);
    if ((int64_t)shape->n_heads * shape->head_dim > MOST)
        FAIL(ERR_REFUSED, "model: %d heads of width %d are too wide", shape->n_heads, shape->head_dim);
    if (!(shape->norm_eps > 0 && shape->norm_eps < INFINITY && shape->rope_theta > 0 && shape->rope_theta < INFINITY))
        FAIL(ERR_REFUSED, "model.norm_eps %g and rope_theta %g must be positive, and numbers that fp32 can hold",
             (double)shape->norm_eps, (double)shape->rope_theta);
    const RotaryScaling *scaling = &shape->rope_scaling;
    if (scaling->factor != 0 && !(scaling->factor >= 1 && scaling->factor < INFINITY && scaling->low_freq_factor > 0 &&
                                  scaling->high_freq_factor > scaling->low_freq_factor &&
                                  scaling->high_freq_factor < INFINITY && scaling->original_context > 0))
        FAIL(ERR_REFUSED,
             "model.rope_scaling: factor %g, low_freq_factor %g, high_freq_factor %g, original_context %d; expected "
             "factor ≥ 1, 0 < low < high, original_context ≥ 1",
             (double)scaling->factor, (double)scaling->low_freq_factor, (double)scaling->high_freq_factor,
             scaling->original_context);
    return OK;
}

uint64_t llama_parameters(const LlamaShape *shape) {
    uint64_t dim = (uint64_t)shape->dim, width = (uint64_t)shape->head_dim, ffn = (uint64_t)shape->ffn_dim;
    uint64_t query = (uint64_t)shape->n_heads * width, key = (uint64_t)shape->n_kv_heads * width;
    uint64_t layer = 2 * dim + dim * (query + 2 * key) + query * dim + 3 * dim * ffn;
    uint64_t embedding = (uint64_t)shape->vocab_size * dim;
    uint64_t head = shape->n_scores > 0 ? (uint64_t)shape->n_scores * dim : shape->tied ? 0 : embedding;
    return (uint64_t)shape->n_layers * layer + dim + embedding + head;
}
