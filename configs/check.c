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

/* 0, "", or nothing in the list. */
static bool is_empty(const Config *config, OptionId id) {
    const Option *option = &option_table[id];
    const void *field = (const char *)config + option->offset;
    switch (option->type) {
    case OPTION_INT:
        return *(const int64_t *)field == 0;
    case OPTION_REAL:
        return !(*(const double *)field > 0) && !(*(const double *)field < 0);
    case OPTION_STRING:
    case OPTION_PATH:
        return **(const char *const *)field == '\0';
    case OPTION_STRINGS:
        return ((const ConfigStrings *)field)->n == 0;
    case OPTION_SOURCES:
        return ((const ConfigSources *)field)->n == 0;
    case OPTION_BOOL:
    case OPTION_CHOICE:
        break;
    }
    return false;
}

/* model.base has all of these already: a number beside it would be passed over. */
static int check_base(const Config *config) {
    static const OptionId shape[] = {OPTION_model_preset,      OPTION_model_dim,        OPTION_model_n_layers,
                                     OPTION_model_n_heads,     OPTION_model_n_kv_heads, OPTION_model_head_dim,
                                     OPTION_model_ffn_dim,     OPTION_model_vocab_size, OPTION_model_rope_theta,
                                     OPTION_model_rope_factor, OPTION_model_norm_eps,   OPTION_model_max_context};
    if (!*config->model_base) return OK;
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++)
        if (!is_empty(config, shape[i]))
            return config_fail(config, shape[i], "model.base (%s) already gives the shape; remove one of them",
                               config_where(config, OPTION_model_base));
    return OK;
}

static int check_model(const Config *config) {
    TRY(check_base(config));
    if (config->model_n_heads && config->model_n_kv_heads && config->model_n_heads % config->model_n_kv_heads)
        return config_fail(config, OPTION_model_n_kv_heads, "%lld does not divide model.n_heads, %lld",
                           (long long)config->model_n_kv_heads, (long long)config->model_n_heads);
    if (config->model_rope_factor > 0 && config->model_rope_factor < 1)
        return config_fail(config, OPTION_model_rope_factor,
                           "%g shortens the wavelengths; 1 or more (or 0) is expected", config->model_rope_factor);
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
    TRY(check_length(config));
    TRY(check_sizes(config));
    TRY(check_model(config));
    return OK;
}

int config_require(const Config *config, OptionId id) {
    const Option *option = &option_table[id];
    if (!is_empty(config, id)) return OK;
    FAIL(ERR_USAGE, "%s is needed (%s): set it in the config, or as an argument: %s=...", option->key, option->help,
         option->key);
}
