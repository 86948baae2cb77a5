/* See chat_sample.h. The generator lives for the samples of one step, so that training holds no cache between. */
#include "train/chat_sample.h"

#include "eval/generator.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "train/sample.h"
#include "train/setup.h"

static int answer(Llama *model, const Tokenizer *tokenizer, const ChatTemplate *chat, const Config *config,
                  const ChatTokens *tokens, Generation *out) {
    Generator *generator;
    int32_t stops[2];
    int limit = model->rotary.n_positions;
    int64_t wanted = (int64_t)tokens->n + config->generate_max_new_tokens;
    TokenList prompt = {tokens->ids, tokens->n, tokens->n};
    GenerateOptions options = {.sampler = setup_sampler(config),
                               .max_new_tokens = (int)config->generate_max_new_tokens,
                               .stop_tokens = stops,
                               .n_stop_tokens = chat_template_stops(chat, stops)};
    TRY(generator_new(&generator, model, tokenizer,
                      (GeneratorOptions){.max_batch = 1, .max_sequence = wanted < limit ? (int)wanted : limit}));
    int rc = generator_run(generator, &prompt, 1, &options, out);
    generator_free(generator);
    return rc;
}

static int sample(Llama *model, const Tokenizer *tokenizer, const ChatTemplate *chat, const Config *config,
                  int64_t step, const char *prompt) {
    int rc = OK;
    Conversation conversation = {.kind = RECORD_MESSAGES};
    ChatTokens tokens = {0};
    Generation out = {0};
    TRY_TO(done, conversation_add(&conversation, CHAT_USER, prompt));
    TRY_TO(done, chat_render_prompt(chat, &conversation, &tokens));
    TRY_TO(done, answer(model, tokenizer, chat, config, &tokens, &out));
    log_info("step %lld: %s\n  -> %s%s", (long long)step, prompt, out.text,
             out.reason == FINISH_STOP_TOKEN ? "" : " … (no stop)");
done:
    generation_free(&out);
    chat_tokens_free(&tokens);
    conversation_free(&conversation);
    return rc;
}

void chat_sample(Llama *model, const Tokenizer *tokenizer, const ChatTemplate *chat, const Config *config,
                 int64_t step) {
    const char *one = config->train_sample_prompt;
    size_t n = config->sft_sample_prompts.n;
    for (size_t i = 0; i < (n > 0 ? n : *one != '\0'); i++) {
        const char *prompt = n > 0 ? config->sft_sample_prompts.items[i] : one;
        if (sample(model, tokenizer, chat, config, step, prompt) != OK)
            log_warning("step %lld: no answer to '%s': %s", (long long)step, prompt, error_text());
    }
}
