/* See stage.h. Prompts are few beside a corpus: they stay in memory, with the records they came from, which scorers
 * may ask for. Which prompts a rollout has follows from the seed and its number. */
#include <stdlib.h>
#include <string.h>

#include "data/order.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "train/ppo/stage.h"

static int read_sources(Run *run, const ConfigSources *sources) {
    Ppo *ppo = run->own;
    for (size_t i = 0; i < sources->n; i++) {
        const ConfigSource *source = &sources->items[i];
        ChatColumns columns = {.n = 0};
        if (source->weight != 1)
            return config_fail(run->config, OPTION_data_train,
                               "%s: every prompt is taken as often as every other; its "
                               "weight must be 1",
                               source->path);
        TRY(chat_columns_parse(&columns, *source->columns ? source->columns : run->config->data_columns));
        PromptOptions options = {.tokenizer = run->tokenizer,
                                 .chat = ppo->has_template ? ppo->chat.model_template.chat : NULL,
                                 .bos = run->config->data_add_bos,
                                 .columns = &columns,
                                 .chat_option = "give template.name"};
        int rc = prompts_read(&ppo->prompts, &options, source->path);
        chat_columns_free(&columns);
        TRY(rc);
    }
    if (run->config->ppo_overlong == OVERLONG_DROP)
        prompts_drop_overlong(&ppo->prompts, (size_t)run->config->train_context);
    return OK;
}

/* An answer needs room; what else is left of it bounds its length. */
static int check_lengths(const Run *run) {
    const Ppo *ppo = run->own;
    size_t shortened = 0;
    for (size_t i = 0; i < ppo->prompts.n; i++) {
        const char *place = prompt_place(&ppo->prompts.items[i]);
        size_t n = ppo->prompts.items[i].tokens.n;
        if (n == 0) FAIL(ERR_REFUSED, "%s: the prompt is empty, and there is no BOS to begin with", place);
        if (n >= (size_t)run->config->train_context)
            return config_fail(
                run->config, OPTION_train_context,
                "%s has %zu tokens, which leaves no room for an answer in %lld (ppo.overlong: drop leaves it out)",
                place, n, (long long)run->config->train_context);
        shortened += n + (size_t)ppo->options.max_new_tokens > (size_t)run->config->train_context;
    }
    if (shortened > 0)
        log_warning("data: %zu of %zu prompts leave less than generate.max_new_tokens (%d) of train.context (%lld)",
                    shortened, ppo->prompts.n, ppo->options.max_new_tokens, (long long)run->config->train_context);
    return OK;
}

static int numbers_from(uint32_t **out, uint32_t first, uint32_t n) {
    *out = malloc(((size_t)n + 1) * sizeof **out);
    if (!*out) FAIL(ERR_FAILED, "out of memory");
    for (uint32_t i = 0; i < n; i++) (*out)[i] = first + i;
    return OK;
}

static int split(Run *run, size_t n_training) {
    Ppo *ppo = run->own;
    double share = run->config->data_validation.share;
    if (ppo->prompts.n > n_training) {
        ppo->n_training = (uint32_t)n_training;
        ppo->n_held_out = (uint32_t)(ppo->prompts.n - n_training);
        TRY(numbers_from(&ppo->training, 0, ppo->n_training));
        return numbers_from(&ppo->held_out, ppo->n_training, ppo->n_held_out);
    }
    return order_split(&ppo->training, &ppo->n_training, &ppo->held_out, &ppo->n_held_out, (uint32_t)n_training, share,
                       (uint64_t)run->config->seed, 0);
}

static uint64_t fingerprint_of(const Ppo *ppo) {
    uint64_t hash = hash_bytes(&ppo->n_training, sizeof ppo->n_training, HASH_START);
    for (size_t i = 0; i < ppo->prompts.n; i++) {
        const TokenList *tokens = &ppo->prompts.items[i].tokens;
        hash = hash_bytes(&tokens->n, sizeof tokens->n, hash);
        hash = hash_bytes(tokens->ids, tokens->n * sizeof *tokens->ids, hash);
    }
    return hash;
}

int ppo_prompts_open(Run *run) {
    Ppo *ppo = run->own;
    TRY(read_sources(run, &run->config->data_train));
    size_t n_training = ppo->prompts.n;
    if (n_training == 0) return config_fail(run->config, OPTION_data_train, "no prompt is left");
    TRY(read_sources(run, &run->config->data_validation));
    if (ppo->prompts.n > UINT32_MAX) FAIL(ERR_REFUSED, "data.train: %zu prompts are too many", ppo->prompts.n);
    TRY(check_lengths(run));
    TRY(split(run, n_training));
    run->data_fingerprint = fingerprint_of(ppo);
    log_info("data: %u prompts to learn from, %u held out", ppo->n_training, ppo->n_held_out);
    return OK;
}

const Prompt *ppo_prompt(const Ppo *ppo, int64_t k) {
    int64_t epoch = k / ppo->n_training;
    PhiloxKey key = order_key(ppo->options.seed, 0, ORDER_DOCUMENTS, epoch);
    uint64_t place = order_permute(key, ppo->n_training, (uint64_t)(k % ppo->n_training));
    return &ppo->prompts.items[ppo->training[place]];
}
