/* The rules between keys, those that need no model and no data. */
#include <stdio.h>
#include <string.h>

#include "configs/config.h"
#include "model/core/error.h"

static int check_length(const Config *config) {
    static const OptionId ids[] = {OPTION_train_steps, OPTION_train_epochs, OPTION_train_tokens};
    const bool given[] = {config->train_steps > 0, config->train_epochs > 0, config->train_tokens > 0};
    int first = -1;
    for (int i = 0; i < 3; i++) {
        if (given[i] && first >= 0)
            return config_fail(config, ids[i],
                               "the length of the run is already given by %s (%s); set one of them to 0",
                               option_table[ids[first]].key, config_where(config, ids[first]));
        if (given[i] && first < 0) first = i;
    }
    return OK;
}

static int check_sizes(const Config *config) {
    if (config->train_tokens_per_microbatch < config->train_context)
        return config_fail(
            config,
            config_is_set(config, OPTION_train_tokens_per_microbatch) ? OPTION_train_tokens_per_microbatch
                                                                      : OPTION_train_context,
            "a micro-batch must hold one sequence: train.tokens_per_microbatch is %lld, train.context %lld",
            (long long)config->train_tokens_per_microbatch, (long long)config->train_context);
    if (config->train_tokens_per_batch < config->train_context)
        return config_fail(config,
                           config_is_set(config, OPTION_train_tokens_per_batch) ? OPTION_train_tokens_per_batch
                                                                                : OPTION_train_context,
                           "a batch must hold one sequence: train.tokens_per_batch is %lld, train.context %lld",
                           (long long)config->train_tokens_per_batch, (long long)config->train_context);
    if (config->model_max_context && config->model_max_context < config->train_context)
        return config_fail(config, OPTION_model_max_context, "%lld is less than train.context, %lld",
                           (long long)config->model_max_context, (long long)config->train_context);
    return OK;
}

static int check_model(const Config *config) {
    if (*config->model_base && *config->model_preset)
        return config_fail(config, OPTION_model_preset, "model.base (%s) already gives the shape; remove one of them",
                           config_where(config, OPTION_model_base));
    if (config->model_n_heads && config->model_n_kv_heads && config->model_n_heads % config->model_n_kv_heads)
        return config_fail(config, OPTION_model_n_kv_heads, "%lld does not divide model.n_heads, %lld",
                           (long long)config->model_n_kv_heads, (long long)config->model_n_heads);
    if (config->model_rope_high_freq_factor <= config->model_rope_low_freq_factor)
        return config_fail(config,
                           config_is_set(config, OPTION_model_rope_high_freq_factor)
                               ? OPTION_model_rope_high_freq_factor
                               : OPTION_model_rope_low_freq_factor,
                           "high_freq_factor, %g, must be above low_freq_factor, %g",
                           config->model_rope_high_freq_factor, config->model_rope_low_freq_factor);
    if (strcmp(config->tokenizer_path, "from-model") == 0 && !*config->model_base)
        return config_fail(config, OPTION_tokenizer_path, "'from-model' needs model.base, which has one inside");
    return OK;
}

int config_check(const Config *config) {
    char precision[16];
    option_choice_name(&option_table[OPTION_precision], config->precision, precision, sizeof precision);
    if (strcmp(precision, "bf16") == 0)
        return config_fail(config, OPTION_precision, "bf16 is not in this version of cria; write fp32 or auto");
    TRY(check_length(config));
    TRY(check_sizes(config));
    TRY(check_model(config));
    return OK;
}

int config_require(const Config *config, OptionId id) {
    const Option *option = &option_table[id];
    const void *field = (const char *)config + option->offset;
    bool empty = false;
    switch (option->type) {
    case OPTION_INT:
        empty = *(const int64_t *)field == 0;
        break;
    case OPTION_REAL:
        empty = !(*(const double *)field > 0) && !(*(const double *)field < 0);
        break;
    case OPTION_STRING:
    case OPTION_PATH:
        empty = **(const char *const *)field == '\0';
        break;
    case OPTION_STRINGS:
        empty = ((const ConfigStrings *)field)->n == 0;
        break;
    case OPTION_SOURCES:
        empty = ((const ConfigSources *)field)->n == 0;
        break;
    case OPTION_BOOL:
    case OPTION_CHOICE:
        break;
    }
    if (!empty) return OK;
    FAIL(ERR_USAGE, "%s is needed (%s): set it in the config, or as an argument: %s=...", option->key, option->help,
         option->key);
}
