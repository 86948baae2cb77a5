/* See lora_setup.h. */
#include "train/lora_setup.h"

#include "model/core/error.h"
#include "model/lora_peft.h"

int setup_lora(LoraOptions *options, bool *wanted, const Config *config) {
    *options = (LoraOptions){.rank = (int)config->lora_rank,
                             .alpha = config->lora_alpha,
                             .rank_stabilised = config->lora_rslora,
                             .magnitudes = config->lora_dora,
                             .dropout = config->lora_dropout,
                             .seed = (uint64_t)config->seed,
                             .plus_ratio = config->lora_plus_ratio};
    *wanted = options->rank > 0;
    if (lora_parse_targets(&options->targets, config->lora_targets) != OK)
        return config_fail(config, OPTION_lora_targets,
                           "found '%s', expected all-linear or a list of q, k, v, o, gate, up, down",
                           config->lora_targets);
    return OK;
}

int setup_lora_parameters(OptimParameter **parameters, size_t *n, const Lora *lora, Arena *arena) {
    ARENA_TRY(*parameters, arena, lora->n_weights);
    *n = (size_t)lora->n_weights;
    for (int i = 0; i < lora->n_weights; i++) {
        const Weight *weight = lora->weights[i];
        (*parameters)[i] = (OptimParameter){.value = weight->value,
                                            .grad = weight->grad,
                                            .n = weight_elements(weight),
                                            .decay = weight->decay,
                                            .rate = lora_rate(lora, weight),
                                            .rows = weight->rows,
                                            .cols = weight->cols,
                                            .forward = weight->forward,
                                            .backward = weight->backward};
    }
    return OK;
}
